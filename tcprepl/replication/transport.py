"""Writing to a connection without keeping a buffer for it (protocol.md section 10).

An `Outlet` stands between the hub and a Twisted transport. While the socket takes
everything, bytes go straight to it and nothing is kept; Twisted's own ``transport.write``
would copy and schedule, which costs more than the system call. When the socket is full the
outlet keeps only a view of what did not fit and says so; the hub then stops giving it rows
and is called back once the socket has drained.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from twisted.internet.interfaces import IPullProducer, IPushProducer
from twisted.internet.tcp import Connection
from zope.interface import implementer

from tcprepl.replication import lingering


@implementer(IPullProducer)
class SocketOutlet:
    """Writes straight to a plain TCP or Unix socket that Twisted owns.

    The transport never buffers for us: it tells us when the socket is writable by asking
    us, as its pull producer, for more.

    Invariant: ``_queue`` is None exactly when everything has been handed to the kernel.
    """

    __slots__ = (
        "_closing",
        "_on_drained",
        "_queue",
        "_resuming",
        "_send",
        "_transport",
        "buffered_bytes",
        "written_bytes",
    )

    def __init__(self, transport: Connection, on_drained: Callable[[], None]) -> None:
        self._transport: Any = transport
        self._send = transport.getHandle().send
        self._on_drained = on_drained
        self._queue: deque[memoryview | bytes] | None = None
        self._resuming = False
        self._closing = False
        self.buffered_bytes = 0
        self.written_bytes = 0

    @property
    def busy(self) -> bool:
        """Whether bytes wait for the socket."""
        return self._queue is not None

    def write(self, chunk: bytes) -> bool:
        """Write *chunk*, keeping what the socket does not take.

        Returns:
            True when all of it left at once; False when some of it waits, in which case
            the drained callback follows (unless the connection ends before).
        """
        self.written_bytes += len(chunk)
        if self._queue is not None:
            self._queue.append(chunk)
            self.buffered_bytes += len(chunk)
            return False
        try:
            sent = self._send(chunk)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            # The reading side of the transport learns the reason; we only stop writing.
            sent = 0
            self._transport.abortConnection()
        if sent == len(chunk):
            return True
        self._queue = deque((memoryview(chunk)[sent:],))
        self.buffered_bytes = len(chunk) - sent
        self._resuming = True
        self._transport.registerProducer(self, False)  # asks for more at once: not yet
        self._resuming = False
        self._transport.startWriting()
        return False

    def close(self) -> None:
        """Close the connection once everything has been written, so that all of it arrives.

        What still comes in is not handed to the protocol any more.
        """
        self._closing = True
        if self._queue is None:
            lingering.close(self._transport)
        else:
            lingering.hear_out(self._transport)

    def abort(self) -> None:
        """End the connection at once; what waits is lost."""
        self._transport.abortConnection()

    def resumeProducing(self) -> None:
        """Send what waits: the socket is writable (Twisted calls this)."""
        queue = self._queue
        if self._resuming or queue is None:
            return
        while queue:
            chunk = queue[0]
            try:
                sent = self._send(chunk)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self._transport.abortConnection()
                return
            self.buffered_bytes -= sent
            if sent < len(chunk):
                queue[0] = memoryview(chunk)[sent:]
                self._transport.startWriting()
                return
            queue.popleft()
        self._queue = None
        self._transport.unregisterProducer()
        if self._closing:
            lingering.close(self._transport)
        self._on_drained()

    def stopProducing(self) -> None:
        """Forget what waits: the connection is gone (Twisted calls this)."""
        self._queue = None
        self.buffered_bytes = 0


@implementer(IPushProducer)
class TransportOutlet:
    """Writes through any other transport: TLS, or a memory transport in a test.

    The transport buffers; it says when it has too much and when it has drained.
    """

    __slots__ = ("_on_drained", "_transport", "busy", "written_bytes")

    #: The transport does not tell how much it holds.
    buffered_bytes = 0

    def __init__(self, transport: Any, on_drained: Callable[[], None]) -> None:
        self._transport = transport
        self._on_drained = on_drained
        self.busy = False
        self.written_bytes = 0
        transport.registerProducer(self, True)

    def write(self, chunk: bytes) -> bool:
        """Write *chunk*; return whether the transport is ready for more."""
        self.written_bytes += len(chunk)
        self._transport.write(chunk)
        return not self.busy

    def close(self) -> None:
        """Close the connection once everything has been written.

        TLS says goodbye only when no producer may have more to say.
        """
        self._transport.unregisterProducer()
        self._transport.loseConnection()

    def abort(self) -> None:
        """End the connection at once; what waits is lost."""
        self._transport.abortConnection()

    def pauseProducing(self) -> None:
        """Note that the transport is full (Twisted calls this)."""
        self.busy = True

    def resumeProducing(self) -> None:
        """Note that the transport has drained (Twisted calls this)."""
        if self.busy:
            self.busy = False
            self._on_drained()

    def stopProducing(self) -> None:
        """Do nothing more: the connection is gone (Twisted calls this)."""
        self.busy = True


Outlet = SocketOutlet | TransportOutlet

#: Bytes that are read at a time where many follow one another; Twisted reads half of it.
READ_BYTES: Final = 131_072

#: What the kernel says of who connected to a Unix socket: process, user, group.
_CREDENTIALS = struct.Struct("3i")


def process_of(transport: object) -> int:
    """Return the number of the process at the other end, if the kernel says it; otherwise 0.

    It does on a Unix socket, of processes that can be seen from here.
    """
    handle = transport.getHandle() if isinstance(transport, Connection) else None
    if not isinstance(handle, socket.socket) or handle.family != socket.AF_UNIX:
        return 0
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return 0
    credentials = handle.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    process: int = _CREDENTIALS.unpack(credentials)[0]
    return process


def read_more(transport: object) -> None:
    """Read up to `READ_BYTES` at a time from now on: what a read costs is then paid less often."""
    if isinstance(transport, Connection):
        transport.bufferSize = READ_BYTES


def make_outlet(transport: object, on_drained: Callable[[], None]) -> Outlet:
    """Return the cheapest outlet that *transport* allows.

    Args:
        transport: A connected Twisted transport.
        on_drained: Called each time everything that waited has been written.
    """
    if isinstance(transport, Connection) and not transport.TLS:
        if transport.getHandle().family != socket.AF_UNIX:
            transport.setTcpNoDelay(True)
        return SocketOutlet(transport, on_drained)
    return TransportOutlet(cast("Any", transport), on_drained)
