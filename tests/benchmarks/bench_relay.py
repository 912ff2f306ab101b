"""Relay: from Redis through a relay to 50 readers, beside 50 plain subscribers of Redis.

Rows are published with growing tokens, as a writer does: a relay takes a token once. Its
log is on disk, with an fsync for each group. What is told is the CPU time of the process
that fans out (the relay's beside Redis's own), for each delivered row, and how many published
rows a second come out at the end; Redis itself has one subscriber with the relay.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks import rows
from tests.benchmarks.driver import Subscribers, System
from tests.benchmarks.measure import Result, absent, cpu_ns, raise_open_files, summarise
from tests.interop.environments import REPOSITORY, SetupError
from tests.interop.processes import Child, accepts
from tests.interop.servers import Redis, Server
from tests.ports import free_port

BENCH = "relay"
CASE = "50 readers"
READERS = 50
#: Rows published in one repetition.
ROWS = 20_000
#: Rows of a window; the next begins when every reader has the last.
WINDOW = 1_000
REPETITIONS = 3
CHANNEL = b"bench"


class OverRedis(System):
    """Plain subscribers of Redis, or of what stands in its place.

    Args:
        redis: The server.
    """

    name = "redis"
    welcome = b"subscribe"
    hello = b"*2\r\n$9\r\nSUBSCRIBE\r\n$5\r\nbench\r\n"

    def __init__(self, redis: Server | None = None) -> None:
        self.redis = redis or Redis.start()
        self.port = self.redis.port
        self._publisher = socket.create_connection(("127.0.0.1", self.redis.port))
        self._publisher.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lines = {
            kind: itertools.cycle(line.split(b" ", 4) for line in rows.lines(2_000, run=run))
            for kind, run in (("batch", 100), ("each", 1))
        }
        self._tokens = dict.fromkeys((stream.encode() for stream in rows.STREAMS), 0)

    @property
    def pid(self) -> int:
        """The process whose CPU time counts."""
        return self.redis.pid

    def publish(self, turns: int, size: int, kind: str = "batch") -> None:
        """Publish, and drop the answers to what was published before."""
        with contextlib.suppress(BlockingIOError):
            while self._publisher.recv(65_536, socket.MSG_DONTWAIT):
                pass
        for _ in range(turns):
            self._say([self._line(kind) for _ in range(size)])

    def ask(self, size: int, kind: str) -> None:
        """Publish *size* rows to nobody, and wait until all are answered."""
        self._say([self._line(kind) for _ in range(size)])
        answered = b""
        while answered.count(b"\r\n") < size:
            answered += self._publisher.recv(65_536)

    def publish_stamped(self, size: int = 1) -> None:
        """Publish rows at once, of which every other one carries the time."""
        self._say([self._typing() if n % 2 else self._stamped() for n in range(size)])

    def _stamped(self) -> bytes:
        return self._of("receipts", [*rows.row("receipts", 7)[:4], {"ts": time.perf_counter_ns()}])

    def _typing(self) -> bytes:
        return self._of("typing", rows.row("typing", 7))

    def _of(self, stream: str, row: list[Any]) -> bytes:
        self._tokens[stream.encode()] += 1
        text = json.dumps(row, separators=(",", ":"))
        return f"RDATA {stream} master {self._tokens[stream.encode()]} {text}".encode()

    def stop(self) -> None:
        """Stop the server."""
        self._publisher.close()
        self.redis.stop()

    def _line(self, kind: str) -> bytes:
        word, stream, instance, _, row = next(self._lines[kind])
        self._tokens[stream] += 1
        return b"%b %b %b %d %b" % (word, stream, instance, self._tokens[stream], row[:-1])

    def _say(self, lines: list[bytes]) -> None:
        head = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$" % (len(CHANNEL), CHANNEL)
        self._publisher.sendall(b"".join(b"%b%d\r\n%b\r\n" % (head, len(x), x) for x in lines))


class OverRelay(OverRedis):
    """Readers of a relay."""

    name = "tcprepl"
    welcome = b"POSITION events "
    hello = b"NAME bench\nREPLICATE\n"

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory(prefix="tcprepl-bench-")
        where = Path(self._directory.name)
        self.port = free_port()
        http_port = free_port()
        command: list[str | Path] = [sys.executable, "-m", "tcprepl", "relay", "--server-name"]
        command += [CHANNEL.decode(), "--upstream", f"redis://127.0.0.1:{self.redis.port}"]
        command += ["--listen", f"127.0.0.1:{self.port}", "--http", f"127.0.0.1:{http_port}"]
        self._child = Child([*command, "--data", where / "data"], where / "log", cwd=REPOSITORY)
        self._child.wait_ready("redis.up", lambda: "redis.up" in self._child.output())
        self._child.wait_ready("it listens", lambda: accepts(self.port) or None)
        self._say([b"POSITION %b master 0 0" % stream for stream in self._tokens])

    @property
    def pid(self) -> int:
        """The process whose CPU time counts."""
        return self._child.pid

    def stop(self) -> None:
        """Stop the relay, then Redis."""
        self._child.stop()
        self._directory.cleanup()
        super().stop()


def measure(system: System) -> tuple[float, float]:
    """Return us of CPU for each delivered row, and published rows a second."""
    with Subscribers(system, READERS) as subscribers:
        system.publish(10, 10)
        seen = 100
        subscribers.wait_each(seen)
        before, started = cpu_ns(system.pid), time.perf_counter()
        for _ in range(ROWS // WINDOW):
            system.publish(WINDOW // 100, 100)
            seen += WINDOW
            subscribers.wait_each(seen)
        seconds = time.perf_counter() - started
        used = cpu_ns(system.pid) - before
    return used / 1_000 / ROWS / READERS, ROWS / seconds


def run() -> Iterator[Result]:
    """Measure both; the repetitions take turns, so that both see the same machine."""
    raise_open_files()
    try:
        with OverRelay() as relay, OverRedis() as redis:
            figures: dict[str, list[tuple[float, float]]] = {relay.name: [], redis.name: []}
            for _ in range(REPETITIONS):
                for system in (relay, redis):
                    figures[system.name].append(measure(system))
    except SetupError as error:
        yield absent(BENCH, CASE, "redis", "us/row", error)
        return
    for name, taken in figures.items():
        yield summarise(BENCH, CASE, name, "us/row", [cpu for cpu, _ in taken])
    for name, taken in figures.items():
        yield summarise(BENCH, CASE, name, "rows/s", [rate for _, rate in taken])
