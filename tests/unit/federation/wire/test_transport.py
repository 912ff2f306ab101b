"""Requests to other servers: addresses, TLS names, signatures, answers, what failures mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trustme
from OpenSSL import SSL
from service_identity import VerificationError
from signedjson.key import generate_signing_key, get_verify_key
from signedjson.sign import verify_signed_json
from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.names import dns
from twisted.names.error import DNSNameError
from twisted.python.failure import Failure
from twisted.web.client import URI, ResponseNeverReceived
from twisted.web.http_headers import Headers

from tcprepl.federation.wire import transport as module
from tcprepl.federation.wire.discovery import Target
from tcprepl.federation.wire.signing import Signer, parse_authorization
from tcprepl.federation.wire.transport import (
    AddressPolicy,
    Answer,
    ConnectionDropped,
    FederationTransport,
    GuardedEndpoint,
    NotReached,
    RequestFailed,
    SystemAndFile,
    _classify,
)

KEY = generate_signing_key("a_1")
BODY = b'{"edus":[],"origin":"x.example"}'


@pytest.mark.parametrize(
    ("address", "fine"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
    ],
)
def test_only_public_addresses_are_connected_to(address: str, fine: bool) -> None:
    assert AddressPolicy().permits(address) is fine
    assert AddressPolicy(allow_private=True).permits(address)


def test_ranges_can_be_allowed() -> None:
    policy = AddressPolicy(["10.0.0.0/8", "fd00::/8"])
    assert policy.permits("10.1.2.3")
    assert policy.permits("fd00::1")
    assert not policy.permits("192.168.0.1")
    with pytest.raises(ValueError, match="nonsense"):
        AddressPolicy(["nonsense"])


NAMES = {"a.example": ("127.0.0.1", "8.8.8.8"), "in.example": ("10.0.0.1",)}


class Resolver:
    """Knows some names."""

    def resolveHostName(self, receiver: Any, host: str, port: int) -> None:
        receiver.resolutionBegan(None)
        for address in NAMES.get(host, ()):
            receiver.addressResolved(IPv4Address("TCP", address, port))
        receiver.resolutionComplete()


class Reactor(MemoryReactorClock):
    """A reactor in memory that resolves names."""

    def __init__(self) -> None:
        super().__init__()
        self.nameResolver: Any = Resolver()


def connect(reactor: Reactor, host: str, policy: AddressPolicy | None) -> list[Any]:
    found: list[Any] = []
    endpoint = GuardedEndpoint(reactor, host, 443, policy)
    endpoint.connect(Factory.forProtocol(Protocol)).addBoth(found.append)
    return found


def test_addresses_that_are_not_permitted_are_passed_over() -> None:
    reactor = Reactor()
    connect(reactor, "a.example", AddressPolicy())
    assert [client[0] for client in reactor.tcpClients] == ["8.8.8.8"]
    (failure,) = connect(reactor, "in.example", AddressPolicy())
    assert "10.0.0.1 is not a public address" in str(failure.value)
    (failure,) = connect(reactor, "nowhere.example", AddressPolicy())
    assert failure.check(error.DNSLookupError)
    (failure,) = connect(reactor, "127.0.0.1", AddressPolicy())
    assert failure.check(error.ConnectError)


def test_one_address_after_the_other_is_tried() -> None:
    reactor = Reactor()
    found = connect(reactor, "a.example", None)
    for expected in ("127.0.0.1", "8.8.8.8"):
        host, _, factory, *_ = reactor.tcpClients[-1]
        assert host == expected
        connector: Any = None
        factory.clientConnectionFailed(connector, Failure(error.ConnectionRefusedError()))
    assert found[0].check(error.ConnectionRefusedError)


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
        Reactor(),
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
    assert result(made.send_transaction("y.example", "t", BODY)).status == 200
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
    asked = Deferred.fromCoroutine(made.request("y.example", "GET", "/"))
    asked.addErrback(failures.append)
    made._reactor.advance(11)
    assert failures[0].check(RequestFailed)
    assert "10 s" in str(failures[0].value)


def test_a_request_can_be_cancelled() -> None:
    made, _ = make()
    failures: list[Any] = []
    asked = Deferred.fromCoroutine(made.request("y.example", "GET", "/"))
    asked.addErrback(failures.append)
    asked.cancel()
    assert failures[0].check(CancelledError)


def test_an_answer_that_is_too_long_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 10)
    made, _ = make(Response(200, b"x" * 11))
    with pytest.raises(RequestFailed, match="too long"):
        result(made.fetch("y.example", "/"))


def test_an_answer_that_breaks_off_is_a_failure() -> None:
    class Broken(Response):
        def deliverBody(self, protocol: Any) -> None:
            protocol.dataReceived(b"half")
            protocol.connectionLost(Failure(module.ResponseFailed([])))

    made, _ = make(Broken())
    with pytest.raises(RequestFailed, match="ended within"):
        result(made.fetch("y.example", "/"))


def test_what_is_no_server_is_not_reached() -> None:
    made, agent = make()
    with pytest.raises(NotReached):
        result(made.request("not a name", "GET", "/"))
    assert agent.requests == []


def test_several_targets_are_tried_in_turn() -> None:
    made, agent = make(error.ConnectionRefusedError(), Response())

    async def two(destination: str) -> list[Target]:
        return [Target("1.1.1.1", 1, "y", "y"), Target("2.2.2.2", 2, "y", "y")]

    made.discovery.resolve = two  # type: ignore[method-assign]
    assert result(made.request("y.example", "GET", "/")).status == 200
    assert len(agent.requests) == 2


def test_connections_are_shared_only_where_the_certificate_is_the_same() -> None:
    made, agent = make(Response(), Response(), Response())
    for name in ("y.example", "z.example", "y.example"):
        result(made.fetch(name, "/"))
    labels = [url.split("/")[2] for _, url, *_ in agent.requests]
    assert labels[0] == labels[2] != labels[1]
    target = made.target_of(URI.fromBytes(f"https://{labels[1]}/".encode()))
    assert (target.tls_name, target.host, target.port) == ("z.example", "127.0.0.1", 5)


@pytest.mark.parametrize(
    ("response", "retry_after_ms"),
    [
        (Response(429, Retry_After="7"), 7_000),
        (Response(503, Retry_After="7"), 7_000),
        (Response(500, Retry_After="7"), None),
        (Response(429, b'{"retry_after_ms":1500}'), 1_500),
        (Response(429, b'{"retry_after_ms":-5}'), 0),
        (Response(429, b"<html>"), None),
        (Response(429, b"{}", Retry_After="soon"), None),
    ],
)
def test_how_long_an_answer_asks_us_to_wait(response: Response, retry_after_ms: int | None) -> None:
    made, _ = make(response)
    assert result(made.fetch("y.example", "/")).retry_after_ms == retry_after_ms


def test_an_answer_in_words() -> None:
    body = b'{"errcode":"M_FORBIDDEN","error":"no"}'
    assert Answer(403, body).describe() == "HTTP 403 M_FORBIDDEN no"
    assert Answer(502, b"<html>").describe() == "HTTP 502"
    assert Answer(502, b"\xff").errcode == ""


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (error.ConnectionRefusedError(), NotReached),
        (error.DNSLookupError("no such name"), NotReached),
        (error.TimeoutError(), NotReached),
        (ResponseNeverReceived([Failure(VerificationError([]))]), NotReached),
        (ResponseNeverReceived([Failure(SSL.Error("certificate verify failed"))]), NotReached),
        (ResponseNeverReceived([Failure(SSL.Error("bad record"))]), RequestFailed),
        (ResponseNeverReceived([Failure(error.ConnectionLost())]), ConnectionDropped),
        (ValueError("odd"), RequestFailed),
    ],
)
def test_what_a_failure_means(failure: Exception, kind: type[Exception]) -> None:
    assert type(_classify(failure)) is kind


def test_open_connections_are_counted() -> None:
    made, _ = make()
    reactor = made._reactor
    endpoint = made.endpoint(Target("127.0.0.1", 5, "y.example", "y.example", pinned=True))
    endpoint.connect(Factory.forProtocol(Protocol))
    _, _, factory, *_ = reactor.tcpClients[-1]
    protocol = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 5))
    from twisted.internet.testing import StringTransport

    protocol.makeConnection(StringTransport())
    assert made.open_connections == 1
    protocol.connectionLost(Failure(error.ConnectionDone()))
    assert made.open_connections == 0
    assert result_of(made.close()) is None


def result_of(done: Deferred[Any]) -> Any:
    found: list[Any] = []
    done.addBoth(found.append)
    return found[0]


def test_a_well_known_is_fetched_with_what_its_headers_say() -> None:
    made, _ = make()
    web = Agent(Response(200, b'{"m.server":"d.example:5"}', Cache_Control="max-age=5"))
    made._web = web  # type: ignore[assignment]
    answer = result(made._fetch_well_known("h.example"))
    assert (answer.status, answer.cache_control) == (200, "max-age=5")
    assert web.requests[0][1] == "https://h.example/.well-known/matrix/server"


def test_a_well_known_is_fetched_by_https_only() -> None:
    made, _ = make()
    endpoints = module._WebEndpoints(made)
    assert endpoints.endpointForURI(URI.fromBytes(b"https://[::1]:5/"))
    with pytest.raises(NotReached):
        endpoints.endpointForURI(URI.fromBytes(b"http://h.example/"))


def test_srv_records_are_looked_up() -> None:
    made, _ = make()

    class Names:
        def lookupService(self, name: str, timeout: object) -> Deferred[Any]:
            if name == "none":
                return fail(DNSNameError())
            header = dns.RRHeader(
                b"x", dns.SRV, ttl=60, payload=dns.Record_SRV(1, 2, 3, b"t.example")
            )
            other = dns.RRHeader(b"x", dns.A, payload=dns.Record_A("1.2.3.4"))
            return succeed(([header, other], [], []))

    made._resolver = Names()
    (found,) = result(made._lookup_srv("_matrix-fed._tcp.h"))
    assert (found.priority, found.weight, found.port, found.target, found.ttl_s) == (
        1,
        2,
        3,
        "t.example",
        60,
    )
    assert result(made._lookup_srv("none")) == []


def test_a_file_of_certificates_is_trusted_besides_the_system(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(trustme.CA().cert_pem.bytes() + trustme.CA().cert_pem.bytes())
    trust = SystemAndFile(path)
    context = SSL.Context(SSL.TLS_METHOD)
    trust._addCACertsToContext(context)
    path.write_text("rubbish")
    with pytest.raises(ValueError, match="PEM"):
        SystemAndFile(path)


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
    assert transport._trust is root
