"""Blocked long polls: memory for each, CPU for a row, and the time to the last answer.

A row of a stream that none of them asked for has to cost what it costs without them.
"""

from __future__ import annotations

import contextlib
import select
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.measure import Result, cpu_ns, raise_open_files, summarise
from tests.harness import Server, wait_until

POLLS = 5_000
CASE = f"{POLLS:,} blocked polls"
#: Rows of another stream that are published while they wait.
OTHER_ROWS = 200
REPETITIONS = 3
REQUEST = b"GET /_synapse/replication?typing=%d&timeout=600000 HTTP/1.1\r\nHost: localhost\r\n\r\n"
RECEIPT = ["!room:example.com", "m.read", "@a:example.com", "$event", {"ts": 1}]
ROW = ["!room:example.com", ["@alice:example.com"]]
SYSTEM = "tcprepl"


class Pollers:
    """Many connections, each with one long poll on ``typing`` at a time."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._sockets: dict[int, socket.socket] = {}
        self._epoll = select.epoll()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Pollers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._epoll.close()

    def connect(self) -> None:
        """Open the connections."""
        for _ in range(POLLS):
            connection = socket.create_connection(("127.0.0.1", self._server.http_port))
            self._stack.enter_context(connection)
            self._sockets[connection.fileno()] = connection
            self._epoll.register(connection, select.EPOLLIN)

    def ask(self, position: int) -> None:
        """Send every request, and wait until the server holds them all."""
        for connection in self._sockets.values():
            connection.sendall(REQUEST % position)
        wanted = f"tcprepl_http_polls_waiting {float(POLLS)}"
        wait_until(lambda: wanted in self._server.request("GET", "/metrics"), wanted)

    def answered(self, timeout_s: float = 0.0) -> int:
        """Return how many answers have come, waiting for all of them at most *timeout_s*."""
        done: set[int] = set()
        deadline = time.monotonic() + timeout_s
        while len(done) < POLLS:
            left = deadline - time.monotonic()
            ready = self._epoll.poll(max(0.0, left), POLLS)
            for descriptor, _ in ready:
                answer = self._sockets[descriptor].recv(65_536)
                assert answer.startswith(b"HTTP/1.1 200"), answer
                done.add(descriptor)
            if not ready and left <= 0:
                break
        return len(done)


def run() -> Iterator[Result]:
    """Measure one server with all of them."""
    raise_open_files(2 * POLLS + 1_000)
    with tempfile.TemporaryDirectory() as where, Server(Path(where)) as server:
        process = server.process
        server.publish("typing", ROW)
        server.publish("receipts", RECEIPT)
        wait_until(lambda: "receipts" in server.request("GET", "/"), "the page was shown")
        yield _others(server, "no polls")
        with Pollers(server) as pollers:
            before = process.rss_bytes()
            pollers.connect()
            pollers.ask(1)
            held = (process.rss_bytes() - before) / POLLS
            yield summarise("long poll memory", CASE, SYSTEM, "bytes each", [held])
            yield _others(server, CASE)
            woken = pollers.answered()
            assert woken == 0, f"{woken} were answered for a stream they had not asked for"
            yield from _wake(server, pollers)


def _others(server: Server, case: str) -> Result:
    figures = []
    for _ in range(REPETITIONS):
        begun = cpu_ns(server.process.pid)
        for _ in range(OTHER_ROWS):
            server.publish("receipts", RECEIPT)
        figures.append((cpu_ns(server.process.pid) - begun) / OTHER_ROWS / 1000)
    return summarise("long poll, another stream", case, SYSTEM, "us CPU a POST", figures)


def _wake(server: Server, pollers: Pollers) -> Iterator[Result]:
    costs, spans = [], []
    for position in range(2, 2 + REPETITIONS):
        begun, cpu = time.monotonic(), cpu_ns(server.process.pid)
        server.publish("typing", ROW)
        assert pollers.answered(60.0) == POLLS
        spans.append((time.monotonic() - begun) * 1000)
        costs.append((cpu_ns(server.process.pid) - cpu) / POLLS / 1000)
        pollers.ask(position)
    yield summarise("long poll, its own stream", CASE, SYSTEM, "us CPU a poll", costs)
    yield summarise(
        "long poll, last answer",
        CASE,
        SYSTEM,
        "ms",
        spans,
        f"median {statistics.median(spans):.0f}",
    )
