"""Requests to other servers: addresses, TLS names, signatures, answers, what failures mean."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trustme
from signedjson.key import generate_signing_key, get_verify_key
from signedjson.sign import verify_signed_json
from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.web.client import URI, ResponseNeverReceived
from twisted.web.http_headers import Headers

from tcprepl.federation.wire import transport as module
from tcprepl.federation.wire.addresses import AddressPolicy
from tcprepl.federation.wire.discovery import Target
from tcprepl.federation.wire.failures import ConnectionDropped, NotReached, RequestFailed
from tcprepl.federation.wire.signing import Signer, parse_authorization
from tcprepl.federation.wire.transport import FederationTransport

KEY = generate_signing_key("a_1")
BODY = b'{"edus":[],"origin":"x.example"}'


class Response:
    """An answer that the agent gives."""

    def __init__(self, code: int = 200, body: bytes = b"{}", **headers: str) -> None:
        self.code = code
        self.body = body
        self.headers = Headers({name.replace("_", "-"): [v] for name, v in headers.items()})

    def deliverBody(self, protocol: Any) -> None:
        protocol.makeConnection(_NoConnection())
        protocol.dataReceived(self.body)
        protocol.connectionLost(Failure(error.ConnectionDone()))


class Raw(Response):
    """An answer whose body does not end."""

    def deliverBody(self, protocol: Any) -> None:
        protocol.dataReceived(b"{")


class Held:
    """A connection that can be aborted."""

    aborted = 0

    def abort(self) -> None:
        self.aborted += 1


class _NoConnection:
    def loseConnection(self) -> None:
        """There is none."""


class Agent:
    """Notes requests, answers as told."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, str, Headers, bytes]] = []

    def request(
        self, method: bytes, url: bytes, headers: Headers | None = None, body: Any = None
    ) -> Any:
        sent: list[bytes] = []
        if body is not None:
            consumer: Any = type("Consumer", (), {"write": staticmethod(sent.append)})
            body.startProducing(consumer)
            assert body.length == len(b"".join(sent))
            body.pauseProducing()
            body.resumeProducing()
            body.stopProducing()
        headers = headers or Headers()
        self.requests.append((method.decode(), url.decode(), headers, b"".join(sent)))
        answer = self.answers.pop(0) if self.answers else Deferred()
        return (
            fail(answer)
            if isinstance(answer, Exception)
            else succeed(answer)
            if isinstance(answer, Response)
            else answer
        )


def make(*answers: object, **options: Any) -> tuple[FederationTransport, Agent]:
    made = FederationTransport(
        MemoryReactorClock(),
        Signer("x.example", KEY),
        trust=trustme_root(),
        overrides={"y.example": ("127.0.0.1", 5), "z.example": ("127.0.0.1", 5)},
        **options,
    )
    agent = Agent(*answers)
    made._agent = agent  # type: ignore[assignment]
    return made, agent


def trustme_root() -> Any:
    from twisted.internet.ssl import Certificate, trustRootFromCertificates

    return trustRootFromCertificates([Certificate.loadPEM(trustme.CA().cert_pem.bytes())])


def result(work: Any) -> Any:
    found: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(found.append)
    if not found:
        return None
    if hasattr(found[0], "raiseException"):
        found[0].raiseException()
    return found[0]


def test_a_transaction_is_signed_and_addressed() -> None:
    made, agent = make(Response(200, b'{"pdus":{}}'))
    answer = result(made.send_transaction("y.example", "t 1", BODY))
    assert (answer.status, answer.body) == (200, b'{"pdus":{}}')
    ((method, url, headers, body),) = agent.requests
    assert method == "PUT"
    assert url.endswith("/_matrix/federation/v1/send/t%201")
    assert body == BODY
    assert headers.getRawHeaders("Host") == ["y.example"]
    (header,) = headers.getRawHeaders("Authorization") or []
    claims = parse_authorization(header)
    request = {
        "method": "PUT",
        "uri": "/_matrix/federation/v1/send/t%201",
        "origin": "x.example",
        "destination": "y.example",
        "content": json.loads(BODY),
        "signatures": {"x.example": {claims.key_id: claims.signature}},
    }
    verify_signed_json(request, "x.example", get_verify_key(KEY))


def test_an_old_server_is_asked_again_with_a_slash() -> None:
    made, agent = make(Response(400, b'{"errcode":"M_UNRECOGNIZED"}'), Response())
    assert result(made.send_transaction("y.example", "t", BODY)).status == 200
    assert [url[-2:] for _, url, *_ in agent.requests] == ["/t", "t/"]


def test_a_kept_connection_that_was_just_closed_costs_one_more_try() -> None:
    gone = ResponseNeverReceived([Failure(error.ConnectionDone())])
    made, agent = make(gone, Response())
    answer = result(made.send_transaction("y.example", "t", BODY))
    assert (answer.status, answer.repeated) == (200, True)
    made, agent = make(gone, Response())
    assert result(made.fetch("y.example", "/")).status == 200
    made, agent = make(gone, gone)
    with pytest.raises(ConnectionDropped):
        result(made.send_transaction("y.example", "t", BODY))
    assert len(agent.requests) == 2


def test_a_second_try_that_is_not_reached_does_not_make_the_first_undone() -> None:
    """The remote died while it was answering: it may have what the first try brought."""
    gone = ResponseNeverReceived([Failure(error.ConnectionLost())])
    made, _ = make(gone, error.ConnectionRefusedError())
    with pytest.raises(ConnectionDropped):
        result(made.send_transaction("y.example", "t", BODY))


def test_no_answer_in_time_is_a_failure() -> None:
    made, _ = make(timeout_s=10.0)
    failures: list[Any] = []
    asked = Deferred.fromCoroutine(made.fetch("y.example", "/"))
    asked.addErrback(failures.append)
    made._reactor.advance(11)
    assert failures[0].check(RequestFailed)
    assert "10 s" in str(failures[0].value)


@pytest.mark.parametrize("how", ["drips", "silent", "cancelled", "too long"])
def test_a_request_that_ends_without_a_whole_answer_takes_its_connection_along(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether headers came or not: who drips does not keep our socket."""
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 10)
    made, agent = make(timeout_s=10.0)
    held = Held()

    def request(*_: Any, **__: Any) -> Deferred[Any]:
        grip = made._pool.grip
        assert grip is not None
        grip.take(held)
        if how == "too long":
            return succeed(Response(200, b"x" * 11))
        return succeed(Raw()) if how != "silent" else Deferred()

    agent.request = request  # type: ignore[assignment, method-assign]
    failures: list[Any] = []
    asked = Deferred.fromCoroutine(made.fetch("y.example", "/"))
    asked.addErrback(failures.append)
    if how == "cancelled":
        asked.cancel()
    made._reactor.advance(11)
    assert failures[0].check(CancelledError if how == "cancelled" else RequestFailed)
    assert held.aborted == 1


def test_a_transaction_has_one_deadline_for_all_its_tries() -> None:
    made, agent = make(
        ResponseNeverReceived([Failure(error.ConnectionDone())]), Raw(), timeout_s=10.0
    )
    failures: list[Any] = []
    sent = Deferred.fromCoroutine(made.send_transaction("y.example", "t", BODY))
    sent.addErrback(failures.append)
    assert len(agent.requests) == 2
    made._reactor.advance(10.1)
    assert failures[0].check(RequestFailed)


def test_a_request_can_be_cancelled() -> None:
    made, _ = make()
    failures: list[Any] = []
    asked = Deferred.fromCoroutine(made.fetch("y.example", "/"))
    asked.addErrback(failures.append)
    asked.cancel()
    assert failures[0].check(CancelledError)


def test_an_answer_that_is_too_long_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 10)
    made, _ = make(Response(200, b"x" * 11))
    with pytest.raises(RequestFailed, match="too long"):
        result(made.fetch("y.example", "/"))


def test_what_is_no_server_is_not_reached() -> None:
    made, agent = make()
    with pytest.raises(NotReached):
        result(made.fetch("not a name", "/"))
    assert agent.requests == []


def test_several_targets_are_tried_in_turn() -> None:
    made, agent = make(error.ConnectionRefusedError(), Response())

    async def two(destination: str) -> list[Target]:
        return [Target("1.1.1.1", 1, "y", "y"), Target("2.2.2.2", 2, "y", "y")]

    made.discovery.resolve = two  # type: ignore[method-assign]
    assert result(made.fetch("y.example", "/")).status == 200
    assert len(agent.requests) == 2


def test_connections_are_shared_only_where_the_certificate_is_the_same() -> None:
    made, agent = make(Response(), Response(), Response())
    for name in ("y.example", "z.example", "y.example"):
        result(made.fetch(name, "/"))
    labels = [url.split("/")[2] for _, url, *_ in agent.requests]
    assert labels[0] == labels[2] != labels[1]
    target = made.target_of(URI.fromBytes(f"https://{labels[1]}/".encode()))
    assert (target.tls_name, target.host, target.port) == ("z.example", "127.0.0.1", 5)


def test_what_an_answer_says_is_told() -> None:
    made, _ = make(Response(429, b"{}", Retry_After="7", Content_Type="text/x"))
    answer = result(made.fetch("y.example", "/"))
    assert (answer.retry_after_ms, answer.content_type) == (7_000, "text/x")


def test_open_connections_are_counted_and_closed() -> None:
    made, _ = make()
    reactor = made._reactor
    endpoint = made.endpoint(Target("127.0.0.1", 5, "y.example", "y.example", pinned=True))
    endpoint.connect(Factory.forProtocol(Protocol))
    _, _, factory, *_ = reactor.tcpClients[-1]
    protocol = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 5))
    transport = StringTransport()
    protocol.makeConnection(transport)
    assert len(made._connections) == 1
    transport.abortConnection = lambda: protocol.connectionLost(  # type: ignore[method-assign]
        Failure(error.ConnectionAborted())
    )
    assert result(made.close()) is None
    assert len(made._connections) == 0


def test_a_well_known_is_fetched_with_what_its_headers_say() -> None:
    made, _ = make()
    web = Agent(Response(200, b'{"m.server":"d.example:5"}', Cache_Control="max-age=5"))
    made._web = web  # type: ignore[assignment]
    answer = result(made._fetch_well_known("h.example"))
    assert (answer.status, answer.cache_control) == (200, "max-age=5")
    assert web.requests[0][1] == "https://h.example/.well-known/matrix/server"


def test_redirects_of_a_well_known_are_followed_a_few_times() -> None:
    made, _ = make()
    web = Agent(
        Response(302, b"x", Location="/other"),
        Response(307, b"x", Location="https://i.example/"),
        Response(200, b"{}"),
    )
    made._web = web  # type: ignore[assignment]
    assert result(made._fetch_well_known("h.example")).status == 200
    assert [url for _, url, *_ in web.requests][1:] == [
        "https://h.example/other",
        "https://i.example/",
    ]
    made._web = Agent(*[Response(302, b"", Location="/") for _ in range(9)])  # type: ignore[assignment]
    with pytest.raises(RequestFailed, match="too many"):
        result(made._fetch_well_known("h.example"))
    for odd in ("https://\xe9/", "https://[x/"):
        made._web = Agent(Response(302, b"", Location=odd))  # type: ignore[assignment]
        with pytest.raises(RequestFailed, match="no URL"):
            result(made._fetch_well_known("h.example"))


def test_a_well_known_is_fetched_by_https_only() -> None:
    made, _ = make()
    endpoints = module._WebEndpoints(made)
    assert endpoints.endpointForURI(URI.fromBytes(b"https://[::1]:5/"))
    with pytest.raises(NotReached):
        endpoints.endpointForURI(URI.fromBytes(b"http://h.example/"))


def test_settings_may_change_while_it_runs() -> None:
    """Connections that are made from then on go by the new ones."""
    transport, _ = make()
    target = transport.discovery
    policy = AddressPolicy(allow_private=True)
    transport.change(trust=None, policy=policy, overrides={"y.example": ("127.0.0.1", 6)})
    assert transport.discovery is target
    assert result(target.resolve("y.example"))[0].port == 6
    assert transport._policy is policy
    root = trustme_root()
    transport.change(trust=root, policy=policy, overrides={})
    assert transport._tls._options.trustRoot is root
