"""Outlets: straight to the socket while it takes everything, a view of the rest when not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactorClock, StringTransport

from tcprepl.replication.transport import SocketOutlet, TransportOutlet, make_outlet, read_more


class Sink:
    """A protocol that nobody feeds."""

    lost: Any = None

    def connectionLost(self, reason: Any) -> None:
        """Note the end."""
        self.lost = reason


class Pipe:
    """A Twisted connection over a real socket, and its other end."""

    def __init__(self) -> None:
        self.ours, self.far = socket.socketpair()
        ours = self.ours
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        self.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        self.reactor = MemoryReactorClock()
        self.protocol = Sink()
        self.connection = Connection(ours, self.protocol, self.reactor)
        self.connection.connected = 1
        self.drained = 0

    def outlet(self) -> SocketOutlet:
        """Return an outlet for the connection."""
        outlet = make_outlet(self.connection, self._drained)
        assert isinstance(outlet, SocketOutlet)
        return outlet

    def _drained(self) -> None:
        self.drained += 1

    def read_all(self) -> bytes:
        """Read what has arrived, letting the reactor write as it would."""
        self.far.setblocking(False)
        parts = []
        for _ in range(10_000):
            try:
                parts.append(self.far.recv(65_536))
            except BlockingIOError:
                if self.connection not in self.reactor.writers:
                    break
            if self.connection in self.reactor.writers:
                self.connection.doWrite()
        return b"".join(parts)

    def close(self) -> None:
        """Close both ends."""
        self.far.close()
        self.ours.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A connection over a real socket."""
    made = Pipe()
    yield made
    made.close()


def test_what_fits_leaves_at_once(pipe: Pipe) -> None:
    outlet = pipe.outlet()
    assert outlet.write(b"POSITION typing master 1 1\n")
    assert not outlet.busy
    assert not outlet.buffered_bytes
    assert pipe.read_all() == b"POSITION typing master 1 1\n"
    assert not pipe.drained


def test_what_does_not_fit_waits_for_the_socket_in_order(pipe: Pipe) -> None:
    outlet = pipe.outlet()
    big = bytes(range(256)) * 4_096
    assert not outlet.write(big)
    assert outlet.busy
    assert 0 < outlet.buffered_bytes < len(big)
    assert not outlet.write(b"after")
    assert pipe.read_all() == big + b"after"
    assert not outlet.busy
    assert not outlet.buffered_bytes
    assert pipe.drained == 1
    assert outlet.write(b"more")


def test_the_transport_holds_nothing(pipe: Pipe) -> None:
    outlet = pipe.outlet()
    outlet.write(b"x" * 1_000_000)
    assert not pipe.connection.dataBuffer
    assert not pipe.connection._tempDataBuffer


def test_close_waits_for_what_is_queued(pipe: Pipe) -> None:
    outlet = pipe.outlet()
    big = b"y" * 500_000
    outlet.write(big)
    pipe.connection.loseConnection()
    assert pipe.read_all() == big
    assert pipe.connection.disconnecting


def test_a_dead_socket_is_aborted_not_raised(pipe: Pipe) -> None:
    outlet = pipe.outlet()
    pipe.far.close()
    assert not outlet.write(b"nobody reads this")
    pipe.reactor.advance(0)
    assert pipe.connection.disconnecting or pipe.protocol.lost or outlet.busy


def test_a_socket_that_dies_while_it_drains_is_aborted(pipe: Pipe) -> None:
    outlet = pipe.outlet()
    outlet.write(b"z" * 1_000_000)
    pipe.far.close()
    outlet.resumeProducing()
    assert not pipe.drained


def test_a_lost_connection_frees_what_waits(pipe: Pipe) -> None:
    outlet = pipe.outlet()
    outlet.write(b"z" * 1_000_000)
    outlet.stopProducing()
    assert not outlet.busy
    assert not outlet.buffered_bytes
    outlet.resumeProducing()
    assert not pipe.drained


def test_any_other_transport_says_when_it_is_full() -> None:
    transport = StringTransport()
    drained: list[bool] = []
    outlet = make_outlet(transport, lambda: drained.append(True))
    assert isinstance(outlet, TransportOutlet)
    assert outlet.write(b"one\n")
    outlet.pauseProducing()
    assert outlet.busy
    assert not outlet.write(b"two\n")
    outlet.resumeProducing()
    assert drained == [True]
    outlet.resumeProducing()
    assert drained == [True]
    assert outlet.write(b"three\n")
    assert transport.value() == b"one\ntwo\nthree\n"
    outlet.stopProducing()
    assert outlet.busy


def test_closing_lets_tls_say_goodbye() -> None:
    """A producer that stays registered keeps TLS from closing: it goes first."""
    transport = StringTransport()
    outlet = make_outlet(transport, lambda: None)
    assert transport.producer is not None
    outlet.close()
    assert transport.producer is None
    assert transport.disconnecting


def test_who_has_much_to_say_is_read_in_larger_pieces(pipe: Pipe) -> None:
    half = pipe.connection.bufferSize
    read_more(pipe.connection)
    assert pipe.connection.bufferSize == 2 * half
    read_more(StringTransport())  # one that reads nothing itself
