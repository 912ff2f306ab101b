"""Fetching over HTTP under Twisted, against a real resource on treq's memory transport."""

from __future__ import annotations

import json
from typing import Any

import pytest
from treq.testing import StubTreq
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource

from tcprepl.errors import ConnectionFailed
from tcprepl.replication.following import catchup
from tcprepl.replication.following.catchup import CatchUpPage
from tcprepl.replication.following.http_catchup import HttpCatchUp, _Body


class Updates(Resource):
    """Answers as told, and notes what was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.isLeaf = True
        self.requests: list[Any] = []
        self.code = 200
        self.body = json.dumps(
            {"updates": [[2, ["!r:x", []]], [3, [1]]], "upto_token": 3, "limited": True}
        ).encode()

    def render_GET(self, request: Any) -> bytes:
        """Answer."""
        self.requests.append(request)
        request.setResponseCode(self.code)
        return self.body


class World:
    """A catch-up client and what answers it."""

    def __init__(self, urls: dict[str, str] | None = None, secret: str | None = None) -> None:
        self.site = Updates()
        self.catch_up = HttpCatchUp(Clock(), urls or {"*": "http://main:9093/"}, secret)
        self.stub: Any = StubTreq(self.site)
        self.catch_up._client = self.stub

    def fetch(self, instance: str = "master", stream: str = "typing") -> Any:
        """Fetch; return the page or raise what came."""
        result: list[Any] = []
        fetched = Deferred.fromCoroutine(self.catch_up.fetch(stream, instance, 1, 9))
        fetched.addBoth(result.append)
        self.stub.flush()
        (answer,) = result
        if isinstance(answer, CatchUpPage):
            return answer
        answer.raiseException()
        return None


def test_a_page_and_what_was_asked() -> None:
    world = World(secret="s3cret")
    page = world.fetch(stream="a/b")
    assert page.updates == [(2, b'["!r:x", []]'), (3, b"[1]")]
    assert (page.upto, page.limited) == (3, True)
    (request,) = world.site.requests
    assert request.path.startswith(b"/_synapse/replication/get_repl_stream_updates/a%2Fb/")
    assert request.args[b"from_token"] == [b"1"]
    assert request.args[b"upto_token"] == [b"9"]
    assert request.getHeader("authorization") == "Bearer s3cret"


def test_each_request_has_an_id_of_its_own() -> None:
    world = World()
    world.fetch()
    world.fetch()
    first, second = (request.path.rpartition(b"/")[2] for request in world.site.requests)
    assert first != second
    assert world.site.requests[0].getHeader("authorization") is None


@pytest.mark.parametrize(
    ("code", "transient"), [(400, False), (401, False), (429, True), (502, True)]
)
def test_a_refusal_says_whether_trying_again_helps(code: int, transient: bool) -> None:
    world = World()
    world.site.code = code
    world.site.body = b"no"
    with pytest.raises(ConnectionFailed, match=f"answered {code} when asked for typing") as raised:
        world.fetch()
    assert raised.value.transient is transient


def test_another_answer_than_updates() -> None:
    world = World()
    world.site.body = b"<html>"
    with pytest.raises(ConnectionFailed, match="something else than updates"):
        world.fetch()


def test_an_answer_without_end_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup, "MAX_ANSWER_BYTES", 10)
    with pytest.raises(ConnectionFailed, match="more than 10"):
        World().fetch()


def test_an_instance_without_a_url() -> None:
    world = World({"other": "http://other"})
    with pytest.raises(ConnectionFailed, match="no URL is configured for instance master"):
        world.fetch()
    closed = Deferred.fromCoroutine(world.catch_up.close())
    assert closed.called


def test_it_may_be_sent_elsewhere() -> None:
    world = World(secret="old")
    world.catch_up.change({"*": "http://other:1"}, "new")
    world.fetch()
    (request,) = world.site.requests
    assert request.getHeader("host") == "other:1"
    assert request.getHeader("authorization") == "Bearer new"


def test_the_socket_of_an_instance_is_connected_to() -> None:
    """By its path; the host of the request is this machine."""
    reactor = MemoryReactorClock()
    catch_up = HttpCatchUp(reactor, {"master": "http://unix:/run/main.sock"})
    fetching = Deferred.fromCoroutine(catch_up.fetch("typing", "master", 1, 9))
    ((path, factory, *_),) = reactor.unixClients
    assert path == "/run/main.sock"
    transport = StringTransport()
    factory.buildProtocol(None).makeConnection(transport)
    assert b"\r\nHost: localhost\r\n" in transport.value()
    failures: list[Any] = []
    fetching.addErrback(failures.append)
    fetching.cancel()


class Wire:
    """A catch-up client on a reactor in memory, and the connection that it makes."""

    def __init__(self) -> None:
        self.reactor = MemoryReactorClock()
        self.catch_up = HttpCatchUp(self.reactor, {"*": "http://127.0.0.1:9093"})
        self.result: list[Any] = []
        self.fetching = Deferred.fromCoroutine(self.catch_up.fetch("typing", "master", 1, 9))
        self.fetching.addBoth(self.result.append)
        ((host, port, factory, *_),) = self.reactor.tcpClients
        assert (host, port) == ("127.0.0.1", 9093)
        self.protocol = factory.buildProtocol(None)
        self.transport: Any = StringTransport()
        self.protocol.makeConnection(self.transport)
        assert self.transport.value().startswith(b"GET /_synapse/replication/")

    def hear(self, length: int, *parts: bytes) -> None:
        """Let an answer come."""
        self.protocol.dataReceived(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
        for part in parts:
            self.protocol.dataReceived(part)


def test_a_connection_is_kept_for_the_next_question_and_closed_in_the_end() -> None:
    wire, body = Wire(), Updates().body
    wire.hear(len(body), body)
    assert wire.result[0].upto == 3
    assert not wire.transport.disconnecting
    closing = Deferred.fromCoroutine(wire.catch_up.close())
    assert wire.transport.disconnecting
    assert not closing.called
    wire.protocol.connectionLost(Failure(ConnectionDone()))
    assert closing.called


def test_an_answer_that_does_not_end_in_time_is_waited_for_no_longer() -> None:
    wire = Wire()
    wire.hear(100, b"{")
    wire.reactor.advance(catchup.REQUEST_TIMEOUT_S - 1)
    assert wire.result == []
    assert not wire.transport.disconnecting
    wire.reactor.advance(1)
    assert wire.result[0].check(TimeoutError)
    assert wire.transport.disconnecting  # or each try would leave one behind


def test_who_waits_no_longer_ends_the_connection_that_the_answer_comes_on() -> None:
    wire = Wire()
    wire.hear(100, b"{")
    wire.fetching.cancel()
    assert wire.result[0].check(CancelledError)
    assert wire.transport.disconnecting


def test_an_answer_that_breaks_off_is_not_taken_for_whole() -> None:
    wire, body = Wire(), Updates().body
    wire.hear(len(body) + 2, body)
    wire.protocol.connectionLost(Failure(ConnectionDone()))
    assert isinstance(wire.result[0], Failure)


def test_an_answer_that_goes_on_behind_what_is_read_is_not_taken_for_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wire, body = Wire(), Updates().body
    monkeypatch.setattr(catchup, "MAX_ANSWER_BYTES", len(body))
    wire.hear(len(body) + 2, body, b" ", b" ")
    assert "more than" in str(wire.result[0].value)
    assert wire.transport.disconnecting


def test_what_comes_after_the_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that goes on sending behind TLS would fill the memory."""
    monkeypatch.setattr(catchup, "MAX_ANSWER_BYTES", 4)
    body = _Body()
    body.makeConnection(StringTransport())
    for _ in range(3):
        body.dataReceived(b"12345")
    assert len(body._parts) == 5
