"""Catching up beside live rows: a hundred readers walk a million rows on the disk.

Meanwhile 500 rows/s are published. What a reader at the head waits for its rows, without and
with those hundred, is one figure; how many rows the hundred get together is the other. The
server has nothing of the million rows in memory when they come.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from tests.benchmarks.driver import PEERS, percentile
from tests.benchmarks.measure import FRIENDLY, Limit, Line, Result, raise_open_files
from tests.interop.processes import Child
from tests.ports import free_port

BENCH = "catch-up fairness"
ROWS = 1_000_000
READERS = 100
RATE = 500
SECONDS = 10.0
REPETITIONS = 3
_PARTS = {"p50": 0.5, "p99": 0.99}
_OURS = "tcprepl (sqlite)"
#: How many times the median of before, and what a row takes of all those behind together.
TIMES, EACH = "beside p50, of that alone", "a row behind"

TARGETS = (
    Limit(BENCH, "beside p50", 20.0, FRIENDLY, _OURS),
    Limit(BENCH, "beside p99", 60.0, FRIENDLY, _OURS),
    Limit(BENCH, TIMES, 10.0, FRIENDLY, _OURS),
    Limit(BENCH, EACH, 1.0, FRIENDLY, _OURS),
)
_STAMP = re.compile(rb'"ts":(\d{9,})\}')


class Server:
    """Our server in a process of its own, over a log of `ROWS` rows: on disk, or in a database."""

    def __init__(self, where: Path, log: str = "sqlite", *instance: str) -> None:
        self.port = free_port()
        control = free_port()
        command = [sys.executable, PEERS / "tcprepl_peer.py", "server", str(self.port)]
        self._child = Child([*command, str(control), log, *instance], where / "log", cwd=where)
        self._child.wait_ready("READY", lambda: "READY" in self._child.output())
        self.control = socket.create_connection(("127.0.0.1", control))
        self.control.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def stop(self) -> None:
        """End it."""
        self.control.close()
        self._child.stop()


def subscribe(port: int, where: str) -> socket.socket:
    """Return a connection that is subscribed to the stream with the million rows."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(f"NAME bench\nREPLICATE receipts master {where}\n".encode())
    return connection


def latencies_ms(server: Server, seconds: float) -> list[float]:
    """Publish at `RATE` for *seconds*; return, sorted, how long each row took to the head."""
    took: list[float] = []
    with contextlib.closing(subscribe(server.port, "NOW")) as head:
        while b"POSITION receipts" not in head.recv(65_536):
            pass
        rest = b""
        due = time.perf_counter()
        end = due + seconds
        wanted = int(seconds * RATE)
        sent = 0
        while len(took) < wanted and time.perf_counter() < end + 30:
            now = time.perf_counter()
            if sent < wanted and now >= due:
                server.control.sendall(b"1 1 stamped\n")
                sent += 1
                due += 1 / RATE
            pause = max(0.0, due - time.perf_counter()) if sent < wanted else 0.5
            if not select.select([head], [], [], pause)[0]:
                continue
            *lines, rest = (rest + head.recv(262_144)).split(b"\n")
            arrived = time.perf_counter_ns()
            stamps = [stamp for line in lines for stamp in _STAMP.findall(line)]
            took += [(arrived - int(stamp)) / 1e6 for stamp in stamps]
    return sorted(took)


def read_all(port: int, count: int, seconds: float) -> dict[str, float]:
    """Let *count* readers begin at 0 and read for *seconds*; return what they got."""
    raise_open_files()
    poll = select.epoll()
    connections = {}
    for _ in range(count):
        connection = subscribe(port, "0")
        connection.setblocking(False)
        connections[connection.fileno()] = connection
        poll.register(connection, select.EPOLLIN)
    rows = dict.fromkeys(connections, 0)
    buffer = bytearray(1_048_576)
    view = memoryview(buffer)
    started = time.perf_counter()
    while time.perf_counter() < started + seconds and min(rows.values()) < ROWS:
        for number, _ in poll.poll(0.1):
            size = connections[number].recv_into(buffer)
            rows[number] += bytes(view[:size]).count(b"\n")
    took = time.perf_counter() - started
    return {"rows_per_s": sum(rows.values()) / took, "least": min(rows.values()) / took * count}


def commits_ms(url: str, seconds: float) -> list[float]:
    """Commit one row after the other, at most `RATE` a second; return, sorted, how long each took.

    What a reader at the head waits for its rows has such a commit in it, or two: that of its
    own rows begins when the one before is over.
    """
    took: list[float] = []
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS beside (stamp bigint, row text)")
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            connection.execute("INSERT INTO beside VALUES (1, repeat('x', 150))")
            took.append((time.perf_counter() - began) * 1e3)
            time.sleep(max(0.0, began + 1 / RATE - time.perf_counter()))
    return sorted(took)


def _in_process(*arguments: object) -> subprocess.Popen[bytes]:
    module = ["-m", "tests.benchmarks.bench_catchup_fairness"]
    command = [sys.executable, *module, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def fill(where: Path | str, rows: int) -> None:
    """Put *rows* rows on the disk, or into a database."""
    arguments = ["ingest", str(where), str(rows), "32"]
    command = [sys.executable, "-m", "tests.benchmarks.bench_log", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def measure(
    seconds: float, rows: int = ROWS, readers: int = READERS, log: str = "sqlite"
) -> dict[str, Any]:
    """Return the figures of one run."""
    with tempfile.TemporaryDirectory(prefix="tcprepl-bench-") as name:
        where = Path(name)
        fill(where / "data" if log == "sqlite" else log, rows)
        server = Server(where, log)
        try:
            alone = latencies_ms(server, seconds / 2)
            process = _in_process("readers", server.port, readers, seconds + 1)
            time.sleep(0.5)
            beside = latencies_ms(server, seconds)
            output, _ = process.communicate(timeout=seconds + 60)
            commits: dict[str, float] = {}
            if log != "sqlite":  # what the database and the machine take of it
                process = _in_process("readers", server.port, readers, seconds + 1)
                time.sleep(0.5)
                took = commits_ms(log, seconds)
                process.communicate(timeout=seconds + 60)
                commits = {f"commit {p}": percentile(took, x) for p, x in _PARTS.items()}
        finally:
            server.stop()
    return {
        **commits,
        "alone p50": percentile(alone, 0.5),
        "alone p99": percentile(alone, 0.99),
        "beside p50": percentile(beside, 0.5),
        "beside p99": percentile(beside, 0.99),
        **json.loads(output),
    }


def run(seconds: float = SECONDS, repetitions: int = REPETITIONS) -> Iterator[Result]:
    """Measure, several times."""
    runs = [measure(seconds) for _ in range(repetitions)]
    words = f"{READERS} readers of {ROWS:,} rows on the disk, {RATE} rows/s at the head"
    cases = dict.fromkeys(("alone p50", "beside p50", "alone p99", "beside p99"), "ms")
    for figure in runs:
        figure[TIMES] = figure["beside p50"] / figure["alone p50"]
        figure[EACH] = 1e6 / figure["rows_per_s"]
        figure["together"] = figure["rows_per_s"]
    for case, unit in {**cases, TIMES: "times", "together": "rows/s", EACH: "us"}.items():
        yield Line(BENCH, case, unit).result(
            _OURS, FRIENDLY, [figure[case] for figure in runs], words
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["readers"]:
        port, count, seconds = sys.argv[2:]
        print(json.dumps(read_all(int(port), int(count), float(seconds))))
    else:
        print(json.dumps(measure(*(float(argument) for argument in sys.argv[1:2])), indent=1))
