"""Worker: CPU time from bytes on the socket to a handler called with rows that it can use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.benchmarks import rows
from tests.benchmarks.driver import Worker
from tests.benchmarks.measure import FRIENDLY, UNFRIENDLY, Line, Result, Target, paired
from tests.interop.environments import SetupError, python_of

LINE = Line("worker CPU", "decode and dispatch", "us/row")
SYNAPSE = "synapse-1.66.0"
REPETITIONS = 5
#: Rows that one repetition feeds; less for Synapse, which takes longer.
ROWS = 300_000
SYNAPSE_ROWS = 20_000
#: Rows of one stream that follow one another.
RUNS = {FRIENDLY: 100, UNFRIENDLY: 1}

#: Our own workers: how the tables call them, and their scripts.
OURS = {
    "tcprepl": "tcprepl_peer.py",
    "tcprepl.aio": "asyncio_peer.py handler",
    "tcprepl.aio.follow": "asyncio_peer.py for",
}
#: What the one under asyncio may cost, compared with the one under Twisted.
ASYNCIO_AT_MOST = 1.3

TARGETS = (
    *(
        Target(LINE.bench, LINE.case, "tcprepl", 1 / ASYNCIO_AT_MOST, workload=workload, ours=ours)
        for ours in ("tcprepl.aio", "tcprepl.aio.follow")
        for workload in RUNS
    ),
    Target(LINE.bench, LINE.case, SYNAPSE, 40.0),
    Target(LINE.bench, LINE.case, SYNAPSE, 35.0, workload=UNFRIENDLY),
)


def run(count: int = ROWS, repetitions: int = REPETITIONS) -> Iterator[Result]:
    """Measure our clients taking turns, and Synapse's protocol, handler, queue and row classes."""
    measurements: dict[tuple[str, str], Callable[[], float]] = {}
    for workload, length in RUNS.items():
        for name, script in OURS.items():
            measurements[name, workload] = partial(
                _measure, name, script, count, length, Path(sys.executable)
            )
    try:
        python = python_of("1.66.0")
    except SetupError as error:
        yield LINE.absent(SYNAPSE, error)
    else:
        fewer = count * SYNAPSE_ROWS // ROWS
        for workload, length in RUNS.items():
            measurements[SYNAPSE, workload] = partial(
                _measure, SYNAPSE, "synapse_peer.py", fewer, length, python
            )
    for (name, workload), taken in paired(repetitions, measurements).items():
        words = f"runs of {RUNS[workload]} of a stream"
        yield LINE.result(name, workload, taken, words)


def _measure(name: str, script: str, count: int, length: int, python: Path) -> float:
    payload = b"".join(rows.lines(count, run=length))
    with Worker(name, script, count, python=python) as worker:
        return worker.cpu_us_for(payload) / count
