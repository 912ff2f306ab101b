"""One connection of a client: what it hands on, and how it ends."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from tcprepl import limits
from tcprepl.errors import CloseReason
from tcprepl.protocol.client_session import ClientSession
from tcprepl.protocol.commands import ErrorCommand, PositionCommand, ReplicateCommand
from tcprepl.protocol.events import Closing, RowsReceived
from tcprepl.replication.following.connection import ClientConnection


class Transport(StringTransport):
    """A memory transport that can be aborted."""

    aborted = False

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
