"""Durable ingest, and catch-up from the log to a socket, beside PostgreSQL.

Friendly: 32 batches of 100 rows are on their way to the disk at once, and what is read back was
written that way. Unfriendly: one batch at a time, each waited for; and a log of rows that were
committed one by one. PostgreSQL has as many connections as batches are on their way. The bound of
ours is SQLite by itself, which is given blocks that are ready, one commit for all on their way.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

from tests.benchmarks import bench_log
from tests.benchmarks.driver import PEERS, Subscribers, cpu_ns, tcprepl_server
from tests.benchmarks.measure import FRIENDLY, UNFRIENDLY, Line, Result, Target, paired
from tests.interop.environments import SetupError, python_of
from tests.interop.servers import Postgres

UNIT = "rows/s"
INGEST = Line("durable ingest", "batches of 100", UNIT)
LOG = Line("catch-up", "log to ready lines", UNIT)
SOCKET = Line("catch-up", "log to socket", UNIT)
CPU = Line("catch-up", "server CPU, log to socket", "us/row")
ROWS = 300_000
REPETITIONS = 5
OURS = "tcprepl (sqlite)"
POSTGRES = "postgresql"
BARE = "sqlite, bare"
IN_FLIGHT = {FRIENDLY: bench_log.IN_FLIGHT, UNFRIENDLY: 1}

TARGETS = (
    Target(INGEST.bench, INGEST.case, POSTGRES, 4.0, higher_is_better=True),
    Target(INGEST.bench, INGEST.case, POSTGRES, 1.3, True, workload=UNFRIENDLY),
    Target(SOCKET.bench, SOCKET.case, POSTGRES, 2.0, higher_is_better=True),
)


def run(rows: int = ROWS, repetitions: int = REPETITIONS) -> Iterator[Result]:
    """Measure our log through the Python API and through a socket, and PostgreSQL, in turn."""
    measurements: dict[str, Callable[[], dict[str, dict[str, float]]]] = {
        OURS: partial(_ours, rows),
        BARE: partial(_bare, rows),
    }
    with contextlib.ExitStack() as stack:
        try:
            python = str(python_of("1.66.0"))  # it has psycopg2
            server = stack.enter_context(Postgres.start(fsync=True))
        except SetupError as error:
            yield from (line.absent(POSTGRES, error) for line in (INGEST, SOCKET, LOG))
        else:
            server.make_database("bench")
            measurements[POSTGRES] = partial(beside_postgres, python, server.port, rows)
        found = paired(repetitions, measurements)
    for name, runs in found.items():
        note = "a commit for each batch, fsync on, the better of INSERT and COPY"
        for workload, count in IN_FLIGHT.items():
            figures = [one["ingest"][workload] for one in runs]
            words = f"{count} on their way" if count > 1 else "1 on its way"
            note = "synchronous=FULL" if name != POSTGRES else note
            yield INGEST.result(name, workload, figures, words, note)
        if name == BARE:
            continue
        figures = [one["read"][FRIENDLY] for one in runs]
        if name == POSTGRES:
            yield SOCKET.result(name, FRIENDLY, figures, note="server-side cursor")
            yield LOG.result(name, FRIENDLY, figures, note="server-side cursor")
            continue
        yield LOG.result(name, FRIENDLY, figures, "blocks of 1,000 rows")
        singles = [one["read"][UNFRIENDLY] for one in runs]
        yield LOG.result(name, UNFRIENDLY, singles, "blocks of one row")
    yield from _catch_up(rows, repetitions)


def _ours(rows: int) -> dict[str, dict[str, float]]:
    with contextlib.redirect_stdout(io.StringIO()):
        figures = bench_log.run(rows)
    return {
        "ingest": {
            FRIENDLY: figures["ingest"]["rows_per_s"],
            UNFRIENDLY: figures["sequential"]["rows_per_s"],
        },
        "read": {
            FRIENDLY: figures["read"]["rows_per_s"],
            UNFRIENDLY: figures["read_single"]["rows_per_s"],
        },
    }


def _bare(rows: int) -> dict[str, dict[str, float]]:
    ingests: dict[str, float] = {}
    for workload, count in IN_FLIGHT.items():
        words = [str(rows if count > 1 else rows // 10), "100", str(count)]
        command = [sys.executable, "-m", "tests.benchmarks.peers.sqlite_peer", *words]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        ingests[workload] = json.loads(shown.stdout)["rows_per_s"]
    return {"ingest": ingests}


def beside_postgres(python: str, port: int, rows: int) -> dict[str, dict[str, float]]:
    ingests: dict[str, float] = {}
    read = 0.0
    for workload, count in IN_FLIGHT.items():
        words = [str(port), "bench", str(rows if count > 1 else rows // 10), "100", str(count)]
        command = [python, str(PEERS / "postgres_peer.py"), *words]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        figures = json.loads(shown.stdout)
        ingests[workload] = max(figures["ingest"].values())
        read = max(read, figures["read"])
    return {"ingest": ingests, "read": {FRIENDLY: read}}


def _catch_up(rows: int, repetitions: int) -> Iterator[Result]:
    """Measure a reader that begins at the start, by the clock and by the server's CPU."""
    for workload, kind, words in (
        (FRIENDLY, "batch", "written 100 rows of one stream at a time"),
        (UNFRIENDLY, "each", "written interleaved, a call for each row"),
    ):
        wanted = rows // 5  # receipts are one of five streams
        turns = 200
        rates, costs = [], []
        with tcprepl_server("sqlite") as server:
            with Subscribers(server, 1) as feed:
                for seen in range(turns * 100, rows + 1, turns * 100):
                    server.publish(turns, 100, kind)
                    feed.wait_each(seen)
            server.hello = b"NAME catchup\nREPLICATE receipts * 0\n"
            server.welcome = b"POSITION receipts "
            for _ in range(repetitions):
                before = cpu_ns(server.pid)
                started = time.perf_counter()
                with Subscribers(server, 1) as reader:
                    reader.wait_each(wanted)
                rates.append(wanted / (time.perf_counter() - started))
                costs.append((cpu_ns(server.pid) - before) / 1_000 / wanted)
        yield SOCKET.result(OURS, workload, rates, words)
        yield CPU.result(OURS, workload, costs, words)
