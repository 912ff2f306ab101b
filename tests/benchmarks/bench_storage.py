"""Durable ingest, and catch-up from the log to a socket, beside PostgreSQL."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import time
from collections.abc import Iterator

from tests.benchmarks import bench_log
from tests.benchmarks.driver import PEERS, Subscribers, cpu_ns, tcprepl_server
from tests.benchmarks.measure import Result, Target, absent, summarise
from tests.interop.environments import SetupError, python_of
from tests.interop.servers import Postgres

INGEST = "durable ingest"
IN_FLIGHT = f"batches of 100, {bench_log.IN_FLIGHT} in flight"
ONE_BY_ONE = "batches of 100, one by one"
CATCH_UP = "catch-up"
LOG = "log to ready lines"
SOCKET = "log to socket"
UNIT = "rows/s"
ROWS = 300_000
REPETITIONS = 3

TARGETS = (
    Target(INGEST, IN_FLIGHT, "postgresql", 2.5, higher_is_better=True),
    Target(CATCH_UP, SOCKET, "postgresql", 2.0, higher_is_better=True),
)


def run() -> Iterator[Result]:
    """Measure our log through the Python API and through a socket, then PostgreSQL."""
    runs = []
    for _ in range(REPETITIONS):
        with contextlib.redirect_stdout(io.StringIO()):
            runs.append(bench_log.run(ROWS))
    ours = "tcprepl (sqlite)"
    concurrent = [figures["ingest"]["rows_per_s"] for figures in runs]
    sequential = [figures["sequential"]["rows_per_s"] for figures in runs]
    lines = [figures["read"]["rows_per_s"] for figures in runs]
    yield summarise(INGEST, IN_FLIGHT, ours, UNIT, concurrent, "synchronous=FULL")
    yield summarise(INGEST, ONE_BY_ONE, ours, UNIT, sequential, "synchronous=FULL")
    yield summarise(CATCH_UP, LOG, ours, UNIT, lines)
    wall, cpu = _catch_up()
    yield summarise(CATCH_UP, SOCKET, ours, UNIT, wall)
    yield summarise(CATCH_UP, "server CPU, log to socket", ours, "us/row", cpu)
    yield from _postgres()


def _catch_up() -> tuple[list[float], list[float]]:
    """Return rows a second and CPU us a row of a reader that begins at the start."""
    rates, costs = [], []
    with tcprepl_server("sqlite") as server:
        with Subscribers(server, 1) as feed:
            turns = 200
            for seen in range(turns * 100, ROWS + 1, turns * 100):
                server.publish(turns, 100)
                feed.wait_each(seen)
        server.hello = b"NAME catchup\nREPLICATE receipts * 0\n"
        server.welcome = b"POSITION receipts "
        for _ in range(REPETITIONS):
            before = cpu_ns(server.pid)
            started = time.perf_counter()
            with Subscribers(server, 1) as reader:
                reader.wait_each(ROWS // 5)  # receipts are one of five streams
            rates.append(ROWS / 5 / (time.perf_counter() - started))
            costs.append((cpu_ns(server.pid) - before) / 1_000 / (ROWS / 5))
    return rates, costs


def _postgres() -> Iterator[Result]:
    try:
        python = python_of("1.66.0")  # it has psycopg2
        server = Postgres.start(fsync=True)
    except SetupError as error:
        yield absent(INGEST, IN_FLIGHT, "postgresql", UNIT, error)
        yield absent(CATCH_UP, SOCKET, "postgresql", UNIT, error)
        return
    ingests, reads = [], []
    with server:
        server.make_database("bench")
        command = [python, PEERS / "postgres_peer.py", str(server.port), "bench"]
        for _ in range(REPETITIONS):
            shown = subprocess.run(
                [*command, str(ROWS), "100"], capture_output=True, text=True, check=True
            )
            figures = json.loads(shown.stdout)
            ingests.append(max(figures["ingest"].values()))
            reads.append(figures["read"])
    note = "a commit for each batch, fsync on, the better of INSERT and COPY"
    for case in (IN_FLIGHT, ONE_BY_ONE):
        yield summarise(INGEST, case, "postgresql", UNIT, ingests, note)
    for case in (SOCKET, LOG):
        yield summarise(CATCH_UP, case, "postgresql", UNIT, reads, "server-side cursor")
