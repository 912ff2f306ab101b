"""A service that is connected, or tries to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
from structlog.testing import capture_logs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from tcprepl.limits import RECONNECT_MIN_S
from tcprepl.protocol.dialects import DIALECTS, Dialect
from tcprepl.replication.following.connection import Ended
from tcprepl.replication.following.reconnecting import Reconnecting


class Service(Reconnecting):
    """Keeps what happens to it."""

    def __init__(self, reactor: Any) -> None:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", 1)
        super().__init__(reactor, endpoint, "test", name="t", server_name=None, token=None)
        self.happened: list[str] = []

    def _take(self, events: Sequence[object]) -> None:
        self.happened.append("rows")

    def _greeted(self, dialect: Dialect) -> None:
        assert self._connection is not None
        self.happened.append(dialect.name)

    async def _left(self, ended: Ended) -> None:
        self.happened.append("left")

    async def _over(self) -> None:
        self.happened.append("over")


def connected(reactor: MemoryReactorClock) -> Any:
    """Let the newest attempt succeed; return the protocol."""
    protocol = reactor.tcpClients[-1][2].buildProtocol(None)
    protocol.makeConnection(StringTransport())
    return protocol


def test_what_is_lost_is_made_again_until_it_stops() -> None:
    reactor = MemoryReactorClock()
    service = Service(reactor)
    with capture_logs() as logs:
        service.startService()
        service.startService()
        assert service.last_error is None
        reactor.tcpClients[0][2].clientConnectionFailed(None, Failure(OSError("nobody")))
        assert service.last_error == "nobody"
        reactor.advance(RECONNECT_MIN_S)
        protocol = connected(reactor)
        protocol.dataReceived(b"SERVER x\nPING 1\n")
        protocol.connectionLost(Failure(ConnectionDone()))
        assert service.happened[-1] == "left"
        reactor.advance(2 * RECONNECT_MIN_S)
    assert len(reactor.tcpClients) == 3
    assert service.reconnects == 2
    assert [line["event"] for line in logs] == [
        "replication.test.unreachable",
        "replication.test.disconnected",
    ]


def test_whatever_happens_it_tries_again() -> None:
    """It ended for ever, and nobody who waited for a row or an answer heard of it."""
    reactor = MemoryReactorClock()
    service = Service(reactor)

    async def failing(**_: object) -> Any:
        raise RuntimeError("nobody has thought of it")

    connect, service._connect = service._connect, cast(Any, failing)
    with capture_logs() as logs:
        service.startService()
        assert service.last_error == "RuntimeError: nobody has thought of it"
        service._connect = connect
        reactor.advance(RECONNECT_MIN_S)
        protocol = connected(reactor)
        protocol.dataReceived(b"SERVER x\nPING 1\n")
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("replication.test.unreachable", "error")
    ]
    assert len(service.happened) == 2
    stopped = service.stopService()
    protocol.connectionLost(Failure(ConnectionDone()))
    assert stopped.called


def test_who_was_never_connected_is_warned_once() -> None:
    """Where nothing else is said, as in a program without a log of its own."""
    reactor = MemoryReactorClock()
    service = Service(reactor)
    with capture_logs() as logs:
        service.startService()
        for number in range(3):
            reactor.tcpClients[number][2].clientConnectionFailed(None, Failure(OSError("nobody")))
            reactor.advance(60)
    assert [line["log_level"] for line in logs] == ["warning", "info", "info"]
    assert service.stopService().called


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"endpoint": ["h:1"]}, "no endpoint to connect to"),
        ({"name": "a\nb"}, "the name 'a\\\\nb' is not"),
        ({"name": " a"}, "the name ' a' is not"),
        ({"token": b"secret"}, "token is of type bytes; expected a str"),
    ],
)
def test_what_can_never_do_is_told_at_once(given: dict[str, Any], why: str) -> None:
    reactor = MemoryReactorClock()
    words: dict[str, Any] = {"name": "t", "server_name": None, "token": None, **given}
    endpoint = words.pop("endpoint", TCP4ClientEndpoint(reactor, "127.0.0.1", 1))
    with pytest.raises(ValueError, match=why):
        Reconnecting(reactor, endpoint, "test", **words)


def test_a_stop_waits_for_nothing_but_the_connection() -> None:
    """Neither for an attempt nor for the time until the next one."""
    for attempt_fails in (False, True):
        reactor = MemoryReactorClock()
        service = Service(reactor)
        service.startService()
        if attempt_fails:
            reactor.tcpClients[0][2].clientConnectionFailed(None, Failure(OSError("nobody")))
        assert service.stopService().called
        assert service.stopService().called
        assert service.happened == ["over"]
        assert not reactor.getDelayedCalls()


def test_who_stops_before_there_is_a_connection_has_waited_for_no_time() -> None:
    """It was told that there had been none within 15 s."""
    reactor = MemoryReactorClock()
    service = Service(reactor)
    service.startService()
    assert service.stopService().called
    assert service.last_error == "given up before there was a connection"


def test_a_connection_that_is_there_is_closed_by_the_stop() -> None:
    reactor = MemoryReactorClock()
    service = Service(reactor)
    service.startService()
    protocol = connected(reactor)
    stopped = service.stopService()
    assert protocol.transport.disconnecting
    assert not stopped.called
    protocol.connectionLost(Failure(ConnectionDone()))
    assert stopped.called
    assert service.last_error == "test stopping"
    assert service.happened == ["left", "over"]


@pytest.mark.parametrize("stops_again", [False, True])
def test_a_start_while_it_still_stops_begins_when_that_has_ended(stops_again: bool) -> None:
    """Two loops would keep two connections, and mix what they bring."""
    reactor = MemoryReactorClock()
    service = Service(reactor)
    service.startService()
    first = connected(reactor)
    stopped = service.stopService()
    service.startService()
    assert len(reactor.tcpClients) == 1
    if stops_again:
        assert not service.stopService().called
    first.connectionLost(Failure(ConnectionDone()))
    assert stopped.called
    assert service.happened == ["left", "over"]
    assert len(reactor.tcpClients) == (1 if stops_again else 2)
    if not stops_again:
        second = connected(reactor)
        again = service.stopService()
        second.connectionLost(Failure(ConnectionDone()))
        assert again.called
    assert service._finished is None
    assert not reactor.getDelayedCalls()


def test_who_starts_it_when_the_stop_has_ended_starts_it_once() -> None:
    reactor = MemoryReactorClock()
    service = Service(reactor)
    service.startService()
    first = connected(reactor)
    service.stopService().addCallback(lambda _: service.startService())
    first.connectionLost(Failure(ConnectionDone()))
    assert len(reactor.tcpClients) == 2
    assert service.stopService().called


def test_waits_double_while_nobody_is_there_and_begin_anew_with_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tcprepl.replication.failures.random.uniform", lambda low, high: high)
    reactor = MemoryReactorClock()
    service = Service(reactor)

    def waits(attempts: int) -> list[float]:
        found = []
        for _ in range(attempts):
            reactor.tcpClients[-1][2].clientConnectionFailed(None, Failure(OSError("nobody")))
            (call,) = reactor.getDelayedCalls()
            found.append(round((call.getTime() - reactor.seconds()) / RECONNECT_MIN_S))
            reactor.advance(call.getTime() - reactor.seconds())
        return found

    service.startService()
    assert waits(4) == [1, 2, 4, 8]
    assert service.stopService().called
    service.startService()
    assert waits(2) == [1, 2]
    assert service.stopService().called


def test_who_stops_waiting_while_the_service_goes_on_hears_of_it() -> None:
    service = Service(MemoryReactorClock())
    service.running = True
    waiting = Deferred.fromCoroutine(service._wait(5))
    waiting.cancel()
    failures: list[Failure] = []
    waiting.addErrback(failures.append)
    assert failures[0].check(CancelledError)


def test_who_inherits_says_what_is_done() -> None:
    reactor = MemoryReactorClock()
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", 1)
    bare = Reconnecting(reactor, endpoint, "test", name="t", server_name=None, token=None)
    with pytest.raises(NotImplementedError):
        bare._take([])
    with pytest.raises(NotImplementedError):
        bare._greeted(DIALECTS["tcprepl"])


def test_what_is_thrown_away_waits_for_nothing() -> None:
    """A program that ends need not stop its services: nothing is awaited that cannot come."""

    class Lingering(Service):
        async def _over(self) -> None:
            self.happened.append("over")
            await Deferred()

    service = Lingering(MemoryReactorClock())
    service.running = True
    service._failures = 0
    running = service._run()
    running.send(None)
    running.close()
    assert service.happened == []


def test_a_bug_in_what_follows_ends_it_all_the_same() -> None:
    """Who waits for the end of the service would wait for ever."""

    class Broken(Service):
        async def _left(self, ended: Ended) -> None:
            raise RuntimeError("a bug")

    reactor = MemoryReactorClock()
    service = Broken(reactor)
    running: list[Any] = []
    service.running = True
    service._failures = 0
    Deferred.fromCoroutine(service._run()).addErrback(running.append)
    connected(reactor).connectionLost(Failure(ConnectionDone()))
    assert service.happened == ["over"]
    assert running[0].check(RuntimeError)
