"""Worker: CPU time from bytes on the socket to a handler called with rows that it can use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks import rows
from tests.benchmarks.driver import Worker
from tests.benchmarks.measure import Result, Target, absent, summarise
from tests.interop.environments import SetupError, python_of

BENCH = "worker CPU"
CASE = "decode and dispatch"
UNIT = "us/row"
REPETITIONS = 5

TARGETS = (Target(BENCH, CASE, "synapse-1.66.0", 40.0),)


def run() -> Iterator[Result]:
    """Measure our client library, then Synapse's protocol, handler, queue and row classes."""
    yield _measure("tcprepl", "tcprepl_peer.py", 300_000, Path(sys.executable))
    try:
        python = python_of("1.66.0")
    except SetupError as error:
        yield absent(BENCH, CASE, "synapse-1.66.0", UNIT, error)
        return
    yield _measure("synapse-1.66.0", "synapse_peer.py", 20_000, python)


def _measure(name: str, script: str, count: int, python: Path) -> Result:
    payload = b"".join(rows.lines(count))
    figures = []
    for _ in range(REPETITIONS):
        with Worker(name, script, count, python=python) as worker:
            figures.append(worker.cpu_us_for(payload) / count)
    return summarise(BENCH, CASE, name, UNIT, figures)
