"""One connection of a client: what it hands on, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from tcprepl import limits
from tcprepl.errors import CloseReason, ConfigError, ConnectionFailed
from tcprepl.protocol.client_session import ClientSession
from tcprepl.protocol.commands import ErrorCommand, PositionCommand, ReplicateCommand
from tcprepl.protocol.events import Closing, RowsReceived
from tcprepl.replication.following.connection import ClientConnection, Token, connect


class Transport(StringTransport):
    """A memory transport that can be aborted, and takes nothing once it is to close."""

    aborted = False

    def write(self, data: bytes) -> None:
        """Keep *data*, as a socket does that is not being closed."""
        if not self.disconnecting:
            super().write(data)

    def abortConnection(self) -> None:
        """Note it."""
        self.aborted = True


class World:
    """A connection to nobody."""

    def __init__(self, dialect: str = "auto") -> None:
        self.clock = Clock()
        self.handed: list[Any] = []
        self.ready: list[str] = []
        self.connection = ClientConnection(
            self.clock,
            lambda: ClientSession(self.clock.seconds(), name="w", dialect=dialect),
            self.handed.extend,
            lambda _, dialect: self.ready.append(dialect.name),
        )
        self.transport: Any = Transport()
        self.connection.makeConnection(self.transport)
        self.connection.connectionMade()
        self.ended: list[Any] = []
        self.connection.lost.addCallback(self.ended.append)

    def hear(self, *lines: str) -> None:
        """Let lines come."""
        self.connection.dataReceived("".join(line + "\n" for line in lines).encode())

    def lose(self) -> Any:
        """Let the connection go; return how it ended."""
        self.connection.connectionLost(Failure(ConnectionLost()))
        return self.ended[0]


def test_names_itself_at_once_and_is_ready_after_the_greeting() -> None:
    world = World()
    assert world.transport.value() == b"NAME w\nPING 0\n"
    assert not world.connection.ready
    world.hear("SERVER example.com", "PING 1 tcprepl/1")
    assert world.connection.ready
    assert world.ready == ["tcprepl"]
    assert world.connection.dialect.name == "tcprepl"
    world.lose()


def test_keep_alives_stay_here_and_the_rest_is_handed_on() -> None:
    world = World()
    world.hear("SERVER x", "PING 1 tcprepl/1", "POSITION typing master 1 1", "PING 2")
    world.hear("RDATA typing master 2 [1]")
    world.hear("ERROR as you like")
    assert [command for command in world.handed if not hasattr(command, "server_name")] == [
        PositionCommand("typing", "master", 1, 1),
        RowsReceived("typing", "master", 2, [b"[1]"]),
        ErrorCommand("as you like"),
    ]
    ended = world.lose()
    assert ended.text == "as you like"
    assert ended.reason is CloseReason.CONNECTION_LOST
    assert ended.established


def test_a_one_token_position_changes_the_dialect_once_ready() -> None:
    world = World()
    world.hear("SERVER x", "PING 1")
    world.hear("POSITION typing master 1")
    assert world.ready == ["1.22"]
    assert world.connection.dialect.name == "1.13"
    world.lose()


def test_a_refused_replicate_speaks_of_2017() -> None:
    world = World()
    world.hear("SERVER x", "PING 1")
    world.connection.send(ReplicateCommand())
    world.hear("ERROR failed to parse line for REPLICATE")
    assert world.lose().speaks_2017


def test_closing_says_why_and_closes_once() -> None:
    world = World()
    world.hear("SERVER x", "PING 1 tcprepl/1")
    world.connection.pause()
    world.connection.pause()
    assert world.transport.producerState == "paused"
    world.connection.close("enough")
    world.connection.close("twice")
    assert world.transport.disconnecting
    assert world.transport.producerState == "producing"
    ended = world.lose()
    assert (ended.reason, ended.text) == (CloseReason.SHUTDOWN, "enough")


def test_a_close_that_does_not_end_is_aborted() -> None:
    world = World()
    world.connection.close("enough")
    for _ in range(40):
        world.clock.advance(1)
    assert world.transport.aborted
    world.lose()
    assert not world.clock.getDelayedCalls()


def test_nothing_is_sent_once_it_closes() -> None:
    world = World()
    world.connection._shut(Closing(CloseReason.SHUTDOWN, ""))
    world.transport.clear()
    world.connection.send(ErrorCommand("x"))
    assert world.transport.value() == b""
    world.lose()


def test_what_is_sent_together_goes_out_at_once_until_it_closes() -> None:
    world = World()
    world.hear("SERVER x", "PING 1 tcprepl/1")
    world.transport.clear()
    world.connection.send_all([ErrorCommand("a"), ErrorCommand("b")])
    assert world.transport.value() == b"ERROR a\nERROR b\n"
    world.connection.close("enough")
    world.transport.clear()
    world.connection.send_all([ErrorCommand("c")])
    assert world.connection._session.data_to_send() == b""
    assert world.transport.value() == b""
    world.lose()


def test_words_of_a_newer_server_are_passed_over_and_counted() -> None:
    world = World()
    world.hear("SERVER x", "PING 1 tcprepl/1")
    world.transport.clear()
    for number in range(limits.MAX_BAD_LINES + 1):
        world.hear(f"USER_SYNC_KEEPALIVE {number}", "RDATA typing master 2 [1]")
    assert world.transport.value() == b""
    assert not world.transport.disconnecting
    assert world.connection._session.unknown_lines == limits.MAX_BAD_LINES + 1
    world.lose()


def test_rows_and_commands_of_one_read_are_handed_on_together_and_in_order() -> None:
    world = World()
    world.hear("SERVER x", "PING 1 tcprepl/1", "POSITION typing master 1 1")
    world.handed.clear()
    world.hear("RDATA typing master 2 [1]", "PING 2", "ERROR so", "RDATA typing master 3 [1]")
    assert world.handed == [
        RowsReceived("typing", "master", 2, [b"[1]"]),
        ErrorCommand("so"),
        RowsReceived("typing", "master", 3, [b"[1]"]),
    ]
    world.lose()


def test_reading_stops_and_goes_on_as_often_as_it_is_asked_for() -> None:
    world = World()
    for _ in range(3):
        world.connection.pause()
        assert world.transport.producerState == "paused"
        world.connection.resume()
        assert world.transport.producerState == "producing"
    world.lose()


def test_why_a_connection_is_left_is_said_before_it_closes() -> None:
    world = World()
    world.hear("SERVER x", "PING 1 tcprepl/1", "POSITION typing master 1 1")
    world.transport.clear()
    world.hear("RDATA typing master nonsense [1]")
    assert world.transport.disconnecting
    assert world.transport.value().startswith(b"ERROR ")
    assert world.lose().reason is not CloseReason.CONNECTION_LOST


@pytest.mark.parametrize("paused", [False, True])
def test_silence_is_the_server_s_fault_only_if_we_read(paused: bool) -> None:
    """The server hears us all the while, with the time of day."""
    world = World()
    world.hear("SERVER x", "PING 1 tcprepl/1")
    if paused:
        world.connection.pause()
    world.transport.clear()
    for _ in range(round(limits.PING_TIMEOUT_S) + 2):
        world.clock.advance(1)
    pings = [line for line in world.transport.value().splitlines() if line.startswith(b"PING ")]
    assert pings[:2] == [b"PING 10000", b"PING 20000"]
    assert world.transport.disconnecting is not paused
    assert world.lose().reason is (
        CloseReason.CONNECTION_LOST if paused else CloseReason.PING_TIMEOUT
    )


def test_keep_alives_follow_the_time_of_day_when_it_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.transport.clear()
    monkeypatch.setattr("tcprepl.replication.following.connection.epoch_s", lambda reactor: 1_000.0)
    for _ in range(10):
        world.clock.advance(1)
    assert world.transport.value() == b"PING 1010000\n"
    world.lose()


# --- connecting -------------------------------------------------------------------------------


class Endpoint:
    """A place that answers as told."""

    def __init__(self, way: Callable[[Any], Deferred[Any]]) -> None:
        self.connect = way


def connected(
    way: Callable[[Any], Deferred[Any]], token: Token | None = None, clock: Clock | None = None
) -> list[Any]:
    """Connect; return a list of the connection, or of the exception, once there is one."""
    result: list[Any] = []
    connecting = Deferred.fromCoroutine(
        connect(
            clock or Clock(),
            Endpoint(way),  # type: ignore[arg-type]
            worker_name="w",
            server_name="example.com",
            dialect="auto",
            deliver=lambda events: None,
            ready=lambda connection, dialect: None,
            token=token,
        )
    )
    connecting.addCallbacks(result.append, lambda failure: result.append(failure.value))
    return result


@pytest.mark.parametrize("token", ["secret", lambda: "secret", "", lambda: "", None])
def test_a_token_is_said_to_a_server_of_ours(token: Token | None) -> None:
    """Whether it is given or read anew; an empty one is none."""
    transport: Any = Transport()

    def way(factory: Any) -> Deferred[Any]:
        protocol = factory.buildProtocol(None)
        protocol.makeConnection(transport)
        return succeed(protocol)

    (connection,) = connected(way, token)
    connection.dataReceived(b"SERVER example.com\nPING 1 tcprepl/1\n")
    said = token() if callable(token) else token
    assert (b"AUTH secret\n" in transport.value()) is bool(said)
    assert (b"AUTH" in transport.value()) is bool(said)
    connection.connectionLost(Failure(ConnectionLost()))


def test_a_token_that_cannot_be_read_is_no_reason_to_try_without() -> None:
    asked: list[Any] = []

    def unreadable() -> str:
        raise ConfigError("no such file")

    (error,) = connected(lambda factory: asked.append(factory) or Deferred(), unreadable)
    assert isinstance(error, ConnectionFailed)
    assert error.reason is CloseReason.NOT_AUTHORIZED
    assert asked == []


@pytest.mark.parametrize("token", ["two words", lambda: "two\nlines", "\x7f"])
def test_a_token_that_no_line_can_say_is_not_tried(token: Token) -> None:
    asked: list[Any] = []
    (error,) = connected(lambda factory: asked.append(factory) or Deferred(), token)
    assert isinstance(error, ConnectionFailed)
    assert error.reason is CloseReason.NOT_AUTHORIZED
    assert str(error).startswith("the token is not 1 to 1024 printable ASCII")
    assert asked == []


def test_what_is_lost_cannot_be_closed_any_more() -> None:
    """Whoever is handed what came may find its connection gone."""
    transport: Any = Transport()

    def way(factory: Any) -> Deferred[Any]:
        protocol = factory.buildProtocol(None)
        protocol.makeConnection(transport)
        return succeed(protocol)

    (connection,) = connected(way)
    connection.dataReceived(b"SERVER example.com\nPING 1 tcprepl/1\n")
    connection.connectionLost(Failure(ConnectionLost()))
    before = transport.value(), transport.disconnecting
    connection.fail("too late")
    connection.close("as well")
    assert (transport.value(), transport.disconnecting) == before


def test_who_does_not_answer_is_left() -> None:
    clock = Clock()
    attempt = connected(lambda _: Deferred(), clock=clock)
    clock.advance(limits.HANDSHAKE_TIMEOUT_S - 1)
    assert attempt == []
    clock.advance(1)
    assert attempt[0].reason is CloseReason.HANDSHAKE_TIMEOUT
    (refused,) = connected(lambda _: fail(OSError("refused")))
    assert (refused.reason, str(refused)) == (CloseReason.CONNECTION_LOST, "refused")
