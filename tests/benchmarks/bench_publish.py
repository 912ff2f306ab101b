"""Durable rows in over a socket, beside XADD of Redis and Valkey with ``appendfsync always``.

16 connections, each of which asks for more once it has half of its answers, so that what is in
flight stays between half of the depth and the depth. Friendly: 2,048 rows in flight on each.
Unfriendly: 32. Ours is measured with PRODUCER, too: each row is taken once. What is measured is the
CPU of the server process, all its threads, and rows by the clock; a row is safe on the disk before
it is answered, everywhere.
"""

from __future__ import annotations

import itertools
import json
import select
import socket
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.benchmarks import rows
from tests.benchmarks.driver import WINDOW_TIMEOUT_S
from tests.benchmarks.measure import (
    FRIENDLY,
    UNFRIENDLY,
    Limit,
    Line,
    Result,
    Target,
    cpu_ns,
    paired,
)
from tests.interop.environments import SetupError
from tests.interop.processes import Child, accepts
from tests.interop.servers import Redis, Valkey
from tests.ports import free_port

CPU = Line("durable publish", "server CPU, a row each", "us/row")
ONCE = Line("durable publish", "server CPU, a row each, PRODUCER", "us/row")
RATE = Line("durable publish", "a row each", "rows/s")
#: The reciprocal of the rate: 50 us are 20,000 rows/s.
GAP = Line("durable publish", "time between answers, a row each", "us/row")
BATCHES = Line("durable publish", "server CPU, batches of 100", "us/row")
CONNECTIONS = 16
ROWS = 200_000
REPETITIONS = 5
#: Numbers of the names that connections claim.
_PRODUCERS = itertools.count()
#: Rows in flight on each connection.
DEPTHS = {FRIENDLY: 2_048, UNFRIENDLY: 32}
BATCH_ROWS = 100
OURS = "tcprepl"

TARGETS = (
    Target(CPU.bench, CPU.case, "redis", 1.0),
    Target(CPU.bench, CPU.case, "valkey", 1.0),
    Limit(GAP.bench, GAP.case, 50.0, FRIENDLY),
    Limit(BATCHES.bench, BATCHES.case, 2.0, FRIENDLY),
    Limit(BATCHES.bench, BATCHES.case, 2.0, UNFRIENDLY),
)


class Taker(ABC):
    """A server that takes rows, in a process of its own.

    Attributes:
        port: Where it listens.
        greeting: What it says before it is asked.
        answer: What each answer holds exactly once.
    """

    port: int
    answer: bytes

    @property
    @abstractmethod
    def pid(self) -> int:
        """The process whose CPU counts."""

    @abstractmethod
    def append(self, number: int, row: bytes) -> bytes:
        """Return what asks for one row."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class TcpreplTaker(Taker):
    """``tcprepl serve``, with its log on disk."""

    answer = b"PUBLISHED "

    def __init__(self) -> None:
        self.port = free_port()
        self._directory = tempfile.TemporaryDirectory(prefix="tcprepl-bench-")
        where = Path(self._directory.name)
        config = where / "config.yaml"
        config.write_text(
            json.dumps(
                {
                    "server_name": "bench.example.com",
                    "data_directory": str(where / "data"),
                    "replication": {"listen": f"127.0.0.1:{self.port}"},
                    "http": {"listen": f"127.0.0.1:{free_port()}"},
                }
            )
        )
        command = [sys.executable, "-m", "tcprepl", "serve", "--config", config]
        self._child = Child(command, where / "log", cwd=Path.cwd())
        self._child.wait_ready("it listens", lambda: accepts(self.port) or None)

    @property
    def pid(self) -> int:
        """The process whose CPU counts."""
        return self._child.pid

    def append(self, number: int, row: bytes) -> bytes:
        """Return what asks for one row."""
        return b"PUBLISH receipts #%d %b\n" % (number, row)

    def batch(self, number: int, some: list[bytes]) -> bytes:
        """Return what asks for many rows."""
        return b"PUBLISH_ROWS receipts #%d [%b]\n" % (number, b",".join(some))

    def stop(self) -> None:
        """Stop it."""
        self._child.stop()
        self._directory.cleanup()


class RedisTaker(Taker):
    """XADD into a stream, with an fsync before each answer."""

    answer = b"$"
    kind: type[Redis] = Redis

    def __init__(self) -> None:
        self._server = self.kind.start(durable=True)
        self.port = self._server.port

    @property
    def pid(self) -> int:
        """The process whose CPU counts."""
        return self._server.pid

    def append(self, number: int, row: bytes) -> bytes:
        """Return what asks for one row."""
        return b"*5\r\n$4\r\nXADD\r\n$8\r\nreceipts\r\n$1\r\n*\r\n$1\r\nr\r\n$%d\r\n%b\r\n" % (
            len(row),
            row,
        )

    def stop(self) -> None:
        """Stop it."""
        self._server.stop()


class ValkeyTaker(RedisTaker):
    """The same of Valkey."""

    kind = Valkey


class Load:
    """Connections that ask, and count answers.

    Args:
        taker: Whom they ask.
        greeting: What it says first; empty when it waits to be asked.
        requests: What each connection asks for, in order.
        depth: How many of these are in flight on each, at most.
        produces: Whether each claims a name first.
    """

    def __init__(
        self, taker: Taker, requests: list[list[bytes]], depth: int, produces: bool = False
    ) -> None:
        self._answer = taker.answer
        self._step = max(1, depth // 2)
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._waiting: dict[int, Iterator[tuple[bytes, int]]] = {}
        self._owed: dict[int, int] = {}
        self._tails: dict[int, bytes] = {}
        self._depth = depth
        for mine in requests:
            connection = socket.create_connection(("127.0.0.1", taker.port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            fd = connection.fileno()
            self._sockets[fd] = connection
            if produces:
                connection.sendall(b"PRODUCER p%d\n" % next(_PRODUCERS))
            starts = range(0, len(mine), self._step)
            chunks = [mine[start : start + self._step] for start in starts]
            self._waiting[fd] = iter([(b"".join(chunk), len(chunk)) for chunk in chunks])
            self._owed[fd] = 0
            self._tails[fd] = b""
            self._poll.register(fd, select.EPOLLIN)

    def run(self) -> float:
        """Ask for everything, and return after how many seconds all was answered."""
        started = time.perf_counter()
        deadline = started + WINDOW_TIMEOUT_S
        open_ones = set(self._sockets)
        for fd in self._sockets:
            self._ask(fd)
        while open_ones:
            for fd, _ in self._poll.poll(1):
                data = self._sockets[fd].recv(262_144)
                if not data or b"REFUSED" in data or b"ERROR" in data:
                    raise ConnectionError(f"a connection was told {data[-200:]!r}")
                tail = self._tails[fd]
                seen = data.count(self._answer)
                if tail:
                    seen += (tail + data[: len(self._answer) - 1]).count(self._answer)
                self._tails[fd] = data[-(len(self._answer) - 1) :] if len(self._answer) > 1 else b""
                self._owed[fd] -= seen
                self._ask(fd)
                if not self._owed[fd]:
                    open_ones.discard(fd)
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{sum(self._owed.values())} answers did not come")
        return time.perf_counter() - started

    def _ask(self, fd: int) -> None:
        while self._owed[fd] <= self._depth - self._step:
            chunk, many = next(self._waiting[fd], (b"", 0))
            if not many:
                return
            self._owed[fd] += many
            self._sockets[fd].sendall(chunk)

    def close(self) -> None:
        """Close everything."""
        self._poll.close()
        for connection in self._sockets.values():
            connection.close()


def _rows(many: int) -> list[bytes]:
    return [
        json.dumps(rows.row("receipts", number), separators=(",", ":")).encode()
        for number in range(many)
    ]


def _measure(
    taker: Taker, requests: list[list[bytes]], depth: int, many: int, produces: bool = False
) -> dict[str, float]:
    load = Load(taker, requests, depth, produces)
    try:
        before = cpu_ns(taker.pid)
        seconds = load.run()
        used = cpu_ns(taker.pid) - before
    finally:
        load.close()
    return {"cpu": used / 1_000 / many, "rate": many / seconds}


def _single(taker: Taker, many: int, depth: int, produces: bool = False) -> dict[str, float]:
    each = many // CONNECTIONS
    some = _rows(each)
    requests = [[taker.append(number, row) for number, row in enumerate(some, 1)]] * CONNECTIONS
    return _measure(taker, requests, depth, each * CONNECTIONS, produces)


def _batches(taker: TcpreplTaker, many: int, depth: int) -> dict[str, float]:
    each = many // CONNECTIONS // BATCH_ROWS
    batches = batched(_rows(each * BATCH_ROWS), BATCH_ROWS)
    requests = [[taker.batch(n, batch) for n, batch in enumerate(batches, 1)]] * CONNECTIONS
    return _measure(taker, requests, depth, each * BATCH_ROWS * CONNECTIONS)


def batched(some: list[bytes], size: int) -> Iterator[list[bytes]]:
    """Yield lists of *size*."""
    for start in range(0, len(some), size):
        yield some[start : start + size]


def run(rows_in_all: int = ROWS, repetitions: int = REPETITIONS) -> Iterator[Result]:
    """Measure tcprepl, Redis and Valkey in turn."""
    kinds: dict[str, type[Taker]] = {OURS: TcpreplTaker, "redis": RedisTaker, "valkey": ValkeyTaker}
    measurements: dict[tuple[str, str, str], Callable[[], dict[str, float]]] = {}
    takers: dict[str, Taker] = {}
    try:
        for name, kind in kinds.items():
            try:
                takers[name] = kind()
            except SetupError as error:
                yield CPU.absent(name, error)
        for name, taker in takers.items():
            for workload, depth in DEPTHS.items():
                many = rows_in_all if workload == FRIENDLY else rows_in_all // 4
                measurements[name, "single", workload] = partial(_single, taker, many, depth)
                _single(taker, CONNECTIONS * 200, depth)  # whatever is made once is made now
        ours = takers[OURS]
        assert isinstance(ours, TcpreplTaker)
        for workload, depth in DEPTHS.items():
            many = rows_in_all if workload == FRIENDLY else rows_in_all // 4
            measurements[OURS, "once", workload] = partial(_single, ours, many, depth, True)
        for workload, depth in {FRIENDLY: 16, UNFRIENDLY: 1}.items():
            many = rows_in_all * 2 if workload == FRIENDLY else rows_in_all
            measurements[OURS, "batches", workload] = partial(_batches, ours, many, depth)
        found = paired(repetitions, measurements)
    finally:
        for taker in takers.values():
            taker.stop()
    for (name, what, workload), runs in found.items():
        costs, rates = [one["cpu"] for one in runs], [one["rate"] for one in runs]
        if what == "batches":
            words = "16 on their way" if workload == FRIENDLY else "1 on its way"
            yield BATCHES.result(name, workload, costs, f"{words} on each of {CONNECTIONS}")
            continue
        words = f"{DEPTHS[workload]} on each of {CONNECTIONS} connections"
        if what == "once":
            yield ONCE.result(name, workload, costs, words)
            continue
        note = "SQLite, synchronous=FULL" if name == OURS else "XADD, appendfsync always"
        yield CPU.result(name, workload, costs, words, note)
        yield GAP.result(name, workload, [1e6 / rate for rate in rates], words, note)
        yield RATE.result(name, workload, rates, words, note)
