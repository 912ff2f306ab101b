"""The end of a connection over a real socket, turned by hand: last words arrive."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from tcprepl.limits import LINGER_BYTES, LINGER_S
from tcprepl.replication import lingering


class Ending:
    """A connection, its protocol, and the socket at its other end."""

    def __init__(self) -> None:
        self.ours, self.far = socket.socketpair()
        self.far.setblocking(False)
        self.reactor: Any = MemoryReactorClock()
        self.connection: Any = Connection(self.ours, self, self.reactor)  # type: ignore[arg-type]  # it is one
        self.connection.connected = 1
        self.heard = b""
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        """Note what the protocol hears."""
        self.heard += data

    def connectionLost(self, reason: Failure) -> None:
        """Note the end."""
        self.lost = reason

    def turn(self) -> None:
        """Do what the reactor does with a socket."""
        if self.connection in self.reactor.readers and self.connection.doRead() is not None:
            self.connection.readConnectionLost(Failure(ConnectionDone()))
        if self.connection in self.reactor.writers and self.connection.doWrite() is not None:
            self.connection.connectionLost(Failure(ConnectionDone()))

    def close(self) -> None:
        """Close both ends."""
        self.far.close()
        self.ours.close()


@pytest.fixture
def ending() -> Iterator[Ending]:
    """A connection whose peer has said something that nobody has read."""
    made = Ending()
    made.far.send(b"unread")
    made.connection.write(b"why\n")
    yield made
    made.close()
    assert not made.reactor.getDelayedCalls()
    assert not lingering._lingering


def test_the_peer_hears_all_and_its_own_close_is_the_end(ending: Ending) -> None:
    lingering.close(ending.connection)
    ending.turn()
    assert ending.far.recv(100) == b"why\n"
    assert ending.far.recv(100) == b""
    ending.far.send(b"more")
    ending.turn()
    assert ending.lost is None
    ending.far.close()
    ending.turn()
    assert ending.lost is not None
    assert ending.lost.check(ConnectionDone)
    assert ending.heard == b""


def test_a_peer_that_does_not_close_has_a_moment(ending: Ending) -> None:
    lingering.close(ending.connection)
    ending.turn()
    ending.turn()
    ending.reactor.advance(LINGER_S - 0.1)
    assert ending.lost is None
    ending.reactor.advance(0.2)
    assert ending.lost is not None


def test_a_peer_that_goes_on_is_not_read_for_ever(
    ending: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    lingering.close(ending.connection)
    monkeypatch.setattr(ending.connection.protocol, "_bytes_left", 5)
    ending.turn()
    ending.turn()
    assert ending.lost is not None
    assert LINGER_BYTES > 16 * 2**20


def test_a_peer_that_has_nothing_more_to_say_still_gets_what_waits(ending: Ending) -> None:
    """Its half of the connection may have ended long ago."""
    ending.connection.write(b"x" * 3_000_000)
    ending.far.shutdown(socket.SHUT_WR)
    lingering.close(ending.connection)
    read = b""
    for _ in range(1_000):
        ending.turn()
        try:
            piece = ending.far.recv(1_000_000)
        except BlockingIOError:
            continue
        read += piece
        if not piece:
            break
    assert read == b"why\n" + b"x" * 3_000_000
    assert ending.lost is not None


def test_not_more_than_so_many_linger(ending: Ending, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes first."""
    monkeypatch.setattr(lingering, "MAX_LINGERING", 1)
    other = Ending()
    lingering.close(ending.connection)
    ending.turn()
    lingering.close(other.connection)
    assert ending.lost is not None
    assert other.lost is None
    other.connection.connectionLost(Failure(ConnectionDone()))
    other.close()


def test_other_transports_close_in_their_own_way() -> None:
    transport: Any = StringTransport()
    lingering.close(transport)
    assert transport.disconnecting
