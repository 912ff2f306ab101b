"""Plain sockets to a replication listener or a Redis channel: what a person sees, as lines."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.interop.processes import PATIENCE_S


class Wire:
    """A connection whose received lines are kept by a reader thread; safe to ask at any time."""

    def __init__(self, port: int, *, host: str = "127.0.0.1") -> None:
        self._socket = socket.create_connection((host, port), timeout=PATIENCE_S)
        self._socket.settimeout(None)
        self._lines: list[bytes] = []
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def lines(self) -> list[bytes]:
        """The complete lines received so far, without their LF."""
        with self._changed:
            return list(self._lines)

    @property
    def ended(self) -> bool:
        """Whether the other side has closed."""
        with self._changed:
            return self._ended

    def send(self, *lines: str) -> None:
        """Send lines, each ended by LF."""
        self._socket.sendall("".join(f"{line}\n" for line in lines).encode())

    def wait_for(self, start: str, *, after: int = 0, timeout_s: float = PATIENCE_S) -> bytes:
        """Wait for a line, from number *after* on, that begins with *start*, and return it.

        Raises:
            TimeoutError: No such line came; the text shows the last lines.
        """
        wanted = start.encode()
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                for line in self._lines[after:]:
                    if line.startswith(wanted):
                        return line
                after = len(self._lines)
                left = deadline - time.monotonic()
                if left <= 0 or self._ended:
                    raise TimeoutError(f"no line {start!r}; the last were {self._lines[-5:]}")
                self._changed.wait(left)

    def wait_end(self) -> list[bytes]:
        """Wait until the other side closes and return all lines.

        Raises:
            TimeoutError: It did not close.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended, PATIENCE_S):
                raise TimeoutError(f"still open; the last lines were {self._lines[-5:]}")
            return list(self._lines)

    def close(self) -> None:
        """Close the connection."""
        with suppress(OSError):  # the other side may have been quicker
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)
        self._socket.close()

    def _read(self) -> None:
        rest = b""
        while True:
            try:
                chunk = self._socket.recv(65536)
            except OSError:
                chunk = b""
            *lines, rest = (rest + chunk).split(b"\n")
            with self._changed:
                self._lines += lines
                self._ended = not chunk
                self._changed.notify_all()
            if not chunk:
                return


class RedisWire:
    """A subscription to one Redis channel, and a way to publish on it."""

    def __init__(self, port: int, channel: str) -> None:
        self._channel = channel
        self._publisher = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self._stream = self._socket.makefile("rb")
        self._payloads: list[bytes] = []
        self._changed = threading.Condition()
        self._socket.sendall(_resp(b"SUBSCRIBE", channel.encode()))
        self._message()  # the subscription is confirmed: nothing said from now on is missed
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def lines(self) -> list[bytes]:
        """The payloads received so far."""
        with self._changed:
            return list(self._payloads)

    def publish(self, text: str) -> None:
        """Publish *text* on the channel and wait until Redis took it."""
        self._publisher.sendall(_resp(b"PUBLISH", self._channel.encode(), text.encode()))
        self._publisher.recv(64)

    def wait_for(self, start: str, *, timeout_s: float = PATIENCE_S) -> bytes:
        """Wait for a payload that begins with *start*, and return it.

        Raises:
            TimeoutError: No such payload came.
        """
        wanted = start.encode()

        def found() -> bytes | None:
            return next((line for line in self._payloads if line.startswith(wanted)), None)

        with self._changed:
            line = self._changed.wait_for(found, timeout_s)
            if line is None:
                raise TimeoutError(f"no {start!r}; the last were {self._payloads[-5:]}")
            return line

    def close(self) -> None:
        """Close both connections."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)
        self._stream.close()
        self._socket.close()
        self._publisher.close()

    def _message(self) -> list[bytes]:
        count = int(self._stream.readline()[1:] or b"0")
        parts = []
        for _ in range(count):
            head = self._stream.readline()
            size = int(head[1:])
            parts.append(head if head[:1] == b":" else self._stream.read(size + 2)[:-2])
        return parts

    def _read(self) -> None:
        while message := self._message():
            with self._changed:
                self._payloads.append(message[2])
                self._changed.notify_all()


def _resp(*words: bytes) -> bytes:
    parts = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
    return b"*%d\r\n" % len(words) + parts


class Cutter:
    """A TCP proxy on loopback that can be cut: connections end, new ones are refused."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._far: set[socket.socket] = set()
        self._cut = False
        self._flows = threading.Event()
        self._flows.set()
        #: Connections forwarded so far.
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cut()
        self._listener.close()

    def cut(self) -> None:
        """End every connection without a word, and every new one until `mend`."""
        with self._lock:
            self._cut = True
            for one in self._open:
                _reset(one)
            self._open.clear()
        self._flows.set()

    def part(self) -> None:
        """End every connection; what the far ends have sent until they hear of it still arrives."""
        with self._lock:
            self._cut = True
            for far in self._far:
                with suppress(OSError):
                    far.shutdown(socket.SHUT_WR)

    def freeze(self) -> None:
        """Forward nothing, on connections that stay, until `mend`."""
        self._flows.clear()

    def mend(self) -> None:
        """Forward, and take new connections, again."""
        self._flows.set()
        with self._lock:
            self._cut = False

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return  # closed
            with self._lock:
                if self._cut:
                    _reset(near)
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self._target_port))
                except OSError:
                    _reset(near)
                    continue
                self._open |= {near, far}
                self._far.add(far)
                self.accepted += 1
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                self._flows.wait()
                sink.sendall(chunk)
        with self._lock:
            self._far -= {source, sink}
            for one in (source, sink):
                if one in self._open:
                    self._open.discard(one)
                    with suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)
                    one.close()


def _reset(connection: socket.socket) -> None:
    """Close *connection* with a reset, so that both ends notice at once."""
    with suppress(OSError):
        linger = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
