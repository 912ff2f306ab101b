"""The least that a server of our rows does: a bare epoll loop that checks, encodes, renders, sends.

``python bare_peer.py server PORT CONTROL``. Each call checks its row and encodes it, as ours does;
each turn renders the rows of a stream in one piece and sends one piece to each socket. There is no
log, no backlog, nobody who is answered, no Twisted: what a server costs beyond this is its own.
"""

from __future__ import annotations

import importlib.util
import select
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from msgspec import convert

from tcprepl.streams.blocks import render
from tcprepl.streams.codec import encode
from tcprepl.streams.json_rows import JsonRows
from tcprepl.streams.log import Block
from tcprepl.streams.registry import Registry

HERE = Path(__file__).resolve().parent
#: Blocks that are kept, so that memory is used as a log would use it.
_KEPT = 2_000


def load(path: Path) -> ModuleType:
    """Import a module of the benchmarks by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Loop:
    """Everything there is."""

    def __init__(self, port: int, control_port: int) -> None:
        rows = load(HERE.parent / "rows.py")
        registry = Registry()
        self._shapes = {name: registry.get(name).codec.common_row for name in rows.STREAMS}
        self._waiting: dict[str, list[bytes]] = {name: [] for name in rows.STREAMS}
        self._tokens = dict.fromkeys(rows.STREAMS, 0)
        self._kept: deque[Block] = deque(maxlen=_KEPT)
        self._due: deque[Callable[[], None]] = deque()
        control = load(HERE / "control.py").Publisher
        self._orders = control(
            lambda _, call: self._due.append(call), self._publish, rows, self._turn_done
        )
        self._listener, self._control = _listen(port), _listen(control_port)
        self._readers: dict[int, socket.socket] = {}
        self._controls: dict[int, socket.socket] = {}

    def _publish(self, stream: str, batch: Sequence[Any]) -> None:
        shape = self._shapes[stream]
        assert shape is not None
        if len(batch) == 1:
            convert(batch, shape)
            self._waiting[stream].append(encode(batch[0]))
            return
        for row in batch:
            convert((row,), shape)
            self._waiting[stream].append(encode(row))

    def _turn_done(self) -> None:
        parts: list[bytes] = []
        for stream, lines in self._waiting.items():
            if not lines:
                continue
            last = self._tokens[stream] + len(lines)
            tokens = range(self._tokens[stream] + 1, last + 1)
            rows = JsonRows(b"\n".join((*lines, b"")), len(lines))
            block = render(stream, "master", tokens, rows, 0)
            self._tokens[stream] = last
            lines.clear()
            self._kept.append(block)
            parts.append(block.lines)
        chunk = b"".join(parts)
        for reader in self._readers.values():
            reader.sendall(chunk)

    def run(self) -> None:
        """Serve until the control connection ends."""
        poll = select.epoll()
        poll.register(self._listener, select.EPOLLIN)
        poll.register(self._control, select.EPOLLIN)
        print("READY", flush=True)
        while True:
            for fd, _ in poll.poll(0 if self._due else None):
                if fd == self._listener.fileno():
                    reader, _ = self._listener.accept()
                    reader.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    reader.sendall(b"POSITION events master 0 0\n")
                    self._readers[reader.fileno()] = reader
                    poll.register(reader, select.EPOLLIN)
                elif fd == self._control.fileno():
                    connection, _ = self._control.accept()
                    self._controls[connection.fileno()] = connection
                    poll.register(connection, select.EPOLLIN)
                elif fd in self._controls:
                    data = self._controls[fd].recv(65_536)
                    if not data:
                        return
                    self._orders.received(data)
                elif not self._readers[fd].recv(65_536):
                    poll.unregister(fd)
                    self._readers.pop(fd).close()
            for _ in range(len(self._due)):
                self._due.popleft()()


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(1024)
    return listener


if __name__ == "__main__":
    Loop(int(sys.argv[2]), int(sys.argv[3])).run()
