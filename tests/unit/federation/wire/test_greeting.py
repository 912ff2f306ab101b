"""Asking a writer for its name."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import ConnectingCancelledError, DNSLookupError
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from tcprepl.federation.wire.greeting import ANSWER_WITHIN_S, ASK_AGAIN_S, ask_server_name


class Endpoint:
    """An endpoint that connects to a transport in memory, or not at all."""

    def __init__(self, lines: list[bytes] | None) -> None:
        self.lines = lines

    def connect(self, factory: Any) -> Deferred[Any]:
        if self.lines is None:
            return fail(Refused())
        protocol = factory.buildProtocol(None)
        protocol.makeConnection(StringTransport())
        for line in self.lines:
            protocol.dataReceived(line)
        protocol.connectionLost()
        return succeed(protocol)


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        ([b"SERVER x.example\nPING 1\n"], "x.example"),
        ([b"SERV", b"ER x.example\r\n"], "x.example"),
        ([b"HTTP/1.1 400\n"], ""),
        ([b"SERVER x"], ""),
        ([], ""),
        (None, ""),
    ],
)
def test_the_first_line_says_who_it_is(lines: list[bytes] | None, name: str) -> None:
    clock = Clock()
    found: list[str] = []
    endpoint: Any = Endpoint(lines)
    Deferred.fromCoroutine(ask_server_name(clock, endpoint)).addCallback(found.append)
    if not name:
        # Whoever does not say is not asked again at once.
        assert found == []
        clock.advance(ASK_AGAIN_S)
    assert found == [name]


@pytest.mark.parametrize(
    "made_of_it",
    [None, ConnectingCancelledError(None), DNSLookupError("no such name")],  # type: ignore[arg-type]
)
def test_it_can_be_cancelled(made_of_it: Exception | None) -> None:
    """Whatever an endpoint makes of the cancellation, it is not asked again."""

    class Never:
        def connect(self, factory: Any) -> Deferred[Any]:
            return Deferred(lambda d: None if made_of_it is None else d.errback(made_of_it))

    never: Any = Never()
    clock = Clock()
    failures: list[Any] = []
    asking = Deferred.fromCoroutine(ask_server_name(clock, never))
    asking.addErrback(failures.append)
    asking.cancel()
    assert failures[0].check(CancelledError)
    assert clock.getDelayedCalls() == []


class Silent:
    """A writer that takes the connection and says nothing, yet."""

    def __init__(self, connected: bool = True) -> None:
        self.transport = StringTransport()
        self.made: Any = None
        self.done: Deferred[Any] = Deferred()
        self._connected = connected

    def connect(self, factory: Any) -> Deferred[Any]:
        self.made = factory.buildProtocol(None)
        if self._connected:
            self.let_in()
        return self.done

    def let_in(self) -> None:
        self.made.makeConnection(self.transport)
        self.done.callback(self.made)


def test_one_that_says_nothing_is_asked_again_on_another_connection() -> None:
    """Who starts would wait for ever otherwise, whatever the writer does later."""
    clock, silent = Clock(), Silent()
    found: list[str] = []
    endpoint: Any = silent
    Deferred.fromCoroutine(ask_server_name(clock, endpoint)).addCallback(found.append)
    clock.advance(ANSWER_WITHIN_S - 1)
    assert not silent.transport.disconnecting
    clock.advance(1)
    assert silent.transport.disconnecting
    silent.made.connectionLost()
    clock.advance(ASK_AGAIN_S)
    assert found == [""]
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("connected", [True, False])
def test_who_gives_up_leaves_no_connection_behind(connected: bool) -> None:
    """Nor does an endpoint that connects all the same."""
    clock, silent = Clock(), Silent(connected)
    failures: list[Any] = []
    endpoint: Any = silent
    asking = Deferred.fromCoroutine(ask_server_name(clock, endpoint))
    asking.addErrback(failures.append)
    asking.cancel()
    assert failures[0].check(CancelledError)
    if not connected:
        silent.let_in()
    assert silent.transport.disconnecting
    assert clock.getDelayedCalls() == []
