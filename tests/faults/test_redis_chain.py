"""Three relays in a row with a thousand readers, and kill -9 of the middle one."""

from __future__ import annotations

import select
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.benchmarks.measure import raise_open_files
from tests.harness import pause
from tests.interop.processes import wait_until
from tests.interop.relaying import Relay, StubbornRedis
from tests.interop.serving import Serve

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

READERS = 1_000
ROWS = 400
KILLS = 3


class Crowd:
    """Many plain readers of one stream, served by one thread; each keeps its RDATA lines."""

    def __init__(self, port: int, count: int) -> None:
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._texts: dict[int, bytearray] = {}
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", port))
            one.sendall(b"REPLICATE receipts master 0\n")
            one.setblocking(False)
            self._sockets[one.fileno()] = one
            self._texts[one.fileno()] = bytearray()
            self._poll.register(one.fileno(), select.EPOLLIN)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sockets.values():
            one.close()
        self._poll.close()

    def read_until(self, last: bytes, timeout_s: float = 120.0) -> list[list[bytes]]:
        """Read until every reader has a line that starts with *last*; return their rows."""
        missing = set(self._sockets)
        deadline = time.monotonic() + timeout_s
        while missing:
            assert time.monotonic() < deadline, f"{len(missing)} readers have not had {last!r}"
            for number, _ in self._poll.poll(1.0):
                got = self._sockets[number].recv(262_144)
                assert got, "the relay closed a reader's connection"
                text = self._texts[number]
                seen = len(text)
                text += got
                if text.find(b"\n" + last, max(0, seen - len(last) - 1)) >= 0:
                    missing.discard(number)
        return [
            [line for line in bytes(text).split(b"\n")[:-1] if line.startswith(b"RDATA ")]
            for text in self._texts.values()
        ]


def test_every_reader_gets_every_row_once_and_in_order(tmp_path: Path) -> None:
    raise_open_files()
    with ExitStack() as stack:
        redis = stack.enter_context(StubbornRedis(tmp_path))
        url = f"redis://127.0.0.1:{redis.port}"
        serve = stack.enter_context(Serve("example.com", tmp_path, "--redis", url))
        fetch = ["--instance", f"*=http://127.0.0.1:{serve.http_port}"]
        first = stack.enter_context(Relay("example.com", tmp_path, url, *fetch, name="first"))
        first.wait_up()
        middle = stack.enter_context(
            Relay("example.com", tmp_path, f"127.0.0.1:{first.port}", name="middle")
        )
        last = stack.enter_context(
            Relay("example.com", tmp_path, f"127.0.0.1:{middle.port}", name="last")
        )
        serve.publish("receipts", row(0))
        wait_until(
            "the last relay knows the stream", lambda: ("receipts", "master") in last.positions()
        )
        crowd = stack.enter_context(Crowd(last.port, READERS))
        for number in range(1, ROWS + 1):
            serve.publish("receipts", row(number))
            if number % (ROWS // (KILLS + 1)) == 0 and number < ROWS:
                middle.kill()
                pause(0.05)
                middle.start()
        end = serve.publish("receipts", row(ROWS + 1))
        everybody = crowd.read_until(b"RDATA receipts master %d " % end)
        expected = everybody[0]
        tokens = [int(line.split(b" ", 4)[3]) for line in expected]
        assert tokens[0] <= 2
        assert tokens == list(range(tokens[0], end + 1))
        assert all(lines == expected for lines in everybody)
        assert first.link()["gaps"] == middle.link()["gaps"] == last.link()["gaps"] == 0


def row(number: int) -> object:
    """Return a receipt that carries *number*."""
    return ["!r:example.com", "m.read", "@a:example.com", f"${number}", {"ts": number}]
