"""What of the lines that were written has arrived, by the kernel's word."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactorClock, StringTransport

from tcprepl.replication.bus.delivered import Delivered, Stand
from tcprepl.replication.transport import SocketOutlet, make_outlet, process_of

ROWS = (
    b"RDATA events w1 5 [5]\nRDATA events w1 batch [6]\nRDATA events w1 7 [7]\n"
    b"POSITION typing tw 3 4\nRDATA typing tw 5 []\n"
)


class Sink:
    """A protocol that nobody feeds."""

    def connectionLost(self, reason: Any) -> None:
        """Do nothing."""


@pytest.fixture
def tcp() -> Iterator[tuple[SocketOutlet, Delivered, socket.socket]]:
    """An outlet over real TCP whose other side reads when it is told to."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    far = socket.create_connection(listener.getsockname())
    ours, _ = listener.accept()
    ours.setblocking(False)
    connection: Any = Connection(far, Sink(), MemoryReactorClock())
    connection.connected = 1
    outlet = make_outlet(connection, lambda: None)
    assert isinstance(outlet, SocketOutlet)
    delivered = Delivered(outlet, connection)
    yield outlet, delivered, ours
    delivered.close()
    for one in (ours, far, listener):
        one.close()


def write(outlet: SocketOutlet, delivered: Delivered, chunk: bytes, size: int) -> None:
    """Write *chunk*, each line of which is a message of *size* bytes."""
    outlet.write(b"x" * size * chunk.count(b"\n"))
    delivered.note(chunk)


def test_what_the_kernel_of_the_other_side_has_has_arrived(
    tcp: tuple[SocketOutlet, Delivered, socket.socket],
) -> None:
    outlet, delivered, _ = tcp
    write(outlet, delivered, ROWS, 10)
    for _ in range(1_000):
        if not delivered.under_way(lambda _: 10):
            break
    else:
        pytest.fail("it never arrived")


def test_what_it_does_not_take_has_not(
    tcp: tuple[SocketOutlet, Delivered, socket.socket],
) -> None:
    outlet, delivered, _ = tcp
    first = 20_000_000
    outlet.write(b"y" * first)  # more than any kernel takes
    write(outlet, delivered, ROWS, 10)
    assert outlet.busy
    assert delivered.under_way(lambda _: 10) == {
        ("events", "w1"): Stand(4, told=False),
        ("typing", "tw"): Stand(3),
    }


def test_a_line_has_arrived_with_its_last_byte() -> None:
    outlet = make_outlet(StringTransport(), lambda: None)
    delivered = Delivered(outlet, None)
    outlet.write(b"x" * 70)
    delivered.note(ROWS + b"POSITION none w1 0 0\nPOSITION typing tw 5 6\n")

    def arrived(count: int) -> dict[Any, Stand]:
        delivered._arrived_bytes = lambda: count  # type: ignore[method-assign]
        return delivered.under_way(lambda line: 0 if b"none" in line else 70 // 6 + 1)

    outlet.written_bytes = 6 * 12
    delivered._chunks[0] = (72, delivered._chunks[0][1])
    assert arrived(72) == {}
    assert arrived(71) == {("typing", "tw"): Stand(5)}
    assert arrived(59) == {("typing", "tw"): Stand(4, told=False)}
    assert arrived(24)["events", "w1"] == Stand(6, told=False)
    assert arrived(12)["events", "w1"] == Stand(6, told=False)
    assert arrived(11)["events", "w1"] == Stand(4, told=False)
    delivered.close()


def test_what_has_arrived_is_not_kept() -> None:
    outlet = make_outlet(StringTransport(), lambda: None)
    delivered = Delivered(outlet, None)
    for _ in range(2_000):
        outlet.write(b"x" * 10)
        delivered.note(b"RDATA events w1 5 [5]\n")
    assert len(delivered._chunks) <= 256


def test_where_no_descriptor_is_left_what_was_written_has_arrived(
    tcp: tuple[SocketOutlet, Delivered, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(descriptor: int) -> int:
        raise OSError(24, "too many")

    monkeypatch.setattr("os.dup", none_left)
    outlet, _, _ = tcp
    delivered = Delivered(outlet, outlet._transport)
    write(outlet, delivered, ROWS, 10)
    assert delivered.under_way(lambda _: 10) == {}
    delivered.close()


def test_only_a_unix_socket_tells_the_process(
    tcp: tuple[SocketOutlet, Delivered, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    outlet, _, _ = tcp
    assert process_of(outlet._transport) == process_of(StringTransport()) == 0
    one, other = socket.socketpair()
    with one, other:
        transport: Any = Connection(one, Sink(), MemoryReactorClock())
        assert process_of(transport) > 0
        monkeypatch.delattr(socket, "SO_PEERCRED")
        assert process_of(transport) == 0
