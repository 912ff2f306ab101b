"""What of the lines that were written to a connection has arrived at the other side.

A connection that is lost takes with it what was under way. The kernel knows how much that
was: what the other side has not acknowledged yet. So the lines that were written last are
kept, which costs little as all connections share them, until they have been acknowledged.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Any, Final, NamedTuple

from tcprepl.ids import Pair, Token
from tcprepl.replication.transport import Outlet, SocketOutlet

#: Chunks that are kept before the kernel is asked which of them have arrived.
_KEPT: Final = 256
_INT: Final = struct.Struct("i")


class Stand(NamedTuple):
    """Up to where a process has a pair.

    Attributes:
        token: It has every row up to there, and no row above.
        told: Whether it was told that very token; otherwise the last it was told of is that of
            the last row up to there.
    """

    token: Token
    told: bool = True


class Delivered:
    """Keeps the lines written last to one connection, until they have arrived.

    The kernel is asked by a second descriptor of the socket, since the first is closed before
    anybody hears that the connection is lost: call `close` when it is. Where the kernel
    cannot be asked (TLS), everything that has left the process has arrived.

    Args:
        outlet: The connection's.
        transport: Twisted's transport of it.
    """

    def __init__(self, outlet: Outlet, transport: Any) -> None:
        self._outlet = outlet
        self._chunks: deque[tuple[int, bytes]] = deque()
        self._descriptor: int | None = None
        if isinstance(outlet, SocketOutlet):
            with suppress(OSError):  # none is left
                self._descriptor = os.dup(transport.getHandle().fileno())

    def close(self) -> None:
        """Let go of the socket; nothing may be called afterwards."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def note(self, chunk: bytes) -> None:
        """Note that *chunk*, lines that end with LF, has just been written as messages."""
        self._chunks.append((self._outlet.written_bytes, chunk))
        if len(self._chunks) > _KEPT:
            arrived = self._arrived_bytes()
            while self._chunks and self._chunks[0][0] <= arrived:
                self._chunks.popleft()

    def _arrived_bytes(self) -> int:
        outlet = self._outlet
        waiting = outlet.buffered_bytes
        if self._descriptor is not None:
            with suppress(OSError):
                answer = ioctl(self._descriptor, TIOCOUTQ, _INT.pack(0))
                waiting += _INT.unpack(answer)[0]
        return outlet.written_bytes - waiting

    def under_way(self, size_of: Callable[[bytes], int]) -> dict[Pair, Stand]:
        """Return up to where each pair has arrived of which something has not.

        Args:
            size_of: Returns how many bytes a line was when it was written as a message.
        """
        arrived = self._arrived_bytes()
        found: dict[Pair, Stand] = {}
        for end, chunk in self._chunks:
            if end > arrived:
                lines = chunk.split(b"\n")[:-1]
                sizes = [size_of(line) for line in lines]
                _first_missing(lines, sizes, arrived - (end - sum(sizes)), found)
        return found


def _first_missing(
    lines: Iterable[bytes], sizes: Iterable[int], arrived: int, found: dict[Pair, Stand]
) -> None:
    """Note in *found* where each pair stood before the first of its lines after *arrived*."""
    for line, size in zip(lines, sizes, strict=True):
        arrived -= size
        if arrived >= 0 or not size:
            continue
        word, stream, instance, token, _ = line.split(b" ", 4)
        pair = (stream.decode(), instance.decode())
        if pair in found or token == b"batch":
            continue
        if word == b"POSITION":
            found[pair] = Stand(int(token))
        else:
            found[pair] = Stand(int(token) - 1, told=False)
