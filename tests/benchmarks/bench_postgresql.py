"""The log in PostgreSQL beside PostgreSQL itself, and two servers over it beside one.

All is of one run: what COPY (or INSERT, the better one) gets alone, with a commit for each batch
of 100 and as many connections as batches are on their way; a server-side cursor; rows from the
database to a socket of a server that has none of them in memory; how long a row takes to a reader
at the server that wrote it, and to one at another server; and what readers at the head wait while
others catch up.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg

from tests.benchmarks import bench_catchup_fairness as fairness
from tests.benchmarks.bench_storage import IN_FLIGHT, beside_postgres
from tests.benchmarks.driver import Subscribers, percentile, tcprepl_server
from tests.benchmarks.measure import FRIENDLY, UNFRIENDLY, Line, Result, Target, paired
from tests.interop.environments import SetupError, python_of
from tests.interop.servers import Postgres

BENCH = "postgresql"
INGEST = Line(BENCH, "durable ingest", "rows/s")
SOCKET = Line(BENCH, "catch-up, database to socket", "rows/s")
DELAY = Line(BENCH, "delay, p50", "ms")
ROWS = 200_000
REPETITIONS = 3
SECONDS = 3.0
ALONE = "postgresql"
OURS = "tcprepl (postgresql)"
OTHER = "tcprepl (postgresql), at another server"

TARGETS = (
    Target(BENCH, INGEST.case, ALONE, 0.8, higher_is_better=True, ours=OURS),
    Target(BENCH, SOCKET.case, ALONE, 1.0, higher_is_better=True, ours=OURS),
)

_numbers = count(1)


def run(
    rows: int = ROWS, repetitions: int = REPETITIONS, seconds: float = SECONDS
) -> Iterator[Result]:
    """Measure ours and PostgreSQL in turn."""
    with contextlib.ExitStack() as stack:
        try:
            python = str(python_of("1.66.0"))  # it has psycopg2
            server = stack.enter_context(Postgres.start(fsync=True))
        except SetupError as error:
            yield from (line.absent(ALONE, error) for line in (INGEST, SOCKET, DELAY))
            return
        server.make_database("bench")
        measurements: Mapping[str, Callable[[], dict[str, Any]]] = {
            OURS: partial(_ours, server, rows),
            ALONE: partial(beside_postgres, python, server.port, rows),
        }
        for name, runs in paired(repetitions, measurements).items():
            for workload, flying in IN_FLIGHT.items():
                figures = [one["ingest"][workload] for one in runs]
                words = f"batches of 100, {flying} on their way"
                yield INGEST.result(name, workload, figures, words)
            figures = [one["read"][FRIENDLY] for one in runs]
            note = "server-side cursor" if name == ALONE else ""
            yield SOCKET.result(name, FRIENDLY, figures, "written in batches", note)
        yield from _delays(server, repetitions, seconds)
        yield from _heads(server, rows, seconds)


def fresh_url(server: Postgres) -> str:
    """Return the URL of an empty database."""
    name = f"log{next(_numbers)}"
    url = f"postgresql://{server.user}@127.0.0.1:{server.port}/"
    with psycopg.connect(f"{url}postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
    return url + name


def _ours(server: Postgres, rows: int) -> dict[str, dict[str, float]]:
    ingests: dict[str, float] = {}
    read = 0.0
    for workload, flying in IN_FLIGHT.items():
        url = fresh_url(server)
        wanted = rows if flying > 1 else rows // 10
        words = ["ingest", url, str(wanted), str(flying)]
        command = [sys.executable, "-m", "tests.benchmarks.bench_log", *words]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        ingests[workload] = json.loads(shown.stdout)["rows_per_s"]
        if workload == FRIENDLY:
            read = max(_to_socket(url, wanted) for _ in range(3))
    return {"ingest": ingests, "read": {FRIENDLY: read}}


def _to_socket(url: str, rows: int) -> float:
    """Return the rows a second that a server reads that has none of them in memory."""
    with tcprepl_server(url, "reader") as server:
        server.hello = b"NAME catchup\nREPLICATE receipts master 0\n"
        server.welcome = b"RDATA receipts "
        started = time.perf_counter()
        with Subscribers(server, 1) as reader:
            reader.wait_each(rows)
        return rows / (time.perf_counter() - started)


def _delays(server: Postgres, repetitions: int, seconds: float) -> Iterator[Result]:
    """Measure how long a row takes to a reader here, and to one at the server beside."""
    url = fresh_url(server)
    with tempfile.TemporaryDirectory(prefix="tcprepl-bench-") as name:
        places = [Path(name) / each for each in ("writer", "other")]
        for place in places:
            place.mkdir()
        writer = fairness.Server(places[0], url)
        beside = fairness.Server(places[1], url, "other")
        through: Any = SimpleNamespace(port=beside.port, control=writer.control)
        try:
            measurements = {
                OURS: partial(fairness.latencies_ms, writer, seconds),
                OTHER: partial(fairness.latencies_ms, through, seconds),
            }
            found = paired(repetitions, measurements)
        finally:
            beside.stop()
            writer.stop()
    for name, runs in found.items():
        for case, part in (("delay, p50", 0.5), ("delay, p99", 0.99)):
            figures = [percentile(took, part) for took in runs]
            words = f"{fairness.RATE} rows/s, one at a time"
            yield Line(BENCH, case, "ms").result(name, UNFRIENDLY, figures, words)


def _heads(server: Postgres, rows: int, seconds: float) -> Iterator[Result]:
    """Measure what readers at the head wait while others catch up from the database."""
    readers, rows = fairness.READERS, 5 * rows
    found = fairness.measure(seconds, rows, readers, fresh_url(server))
    words = f"{readers} readers of {rows:,} rows, {fairness.RATE} rows/s at the head"
    for case in ("alone p50", "beside p50", "alone p99", "beside p99"):
        line = Line(BENCH, f"head, {case}", "ms")
        yield line.result(OURS, FRIENDLY, [found[case]], words)
    words = f"one row each, beside {readers} readers of {rows:,} rows"
    for case in ("commit p50", "commit p99"):
        yield Line(BENCH, f"head, {case}", "ms").result(ALONE, FRIENDLY, [found[case]], words)
