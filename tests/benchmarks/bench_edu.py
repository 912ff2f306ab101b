"""EDUs: CPU time from RDATA bytes to finished transaction bodies, and the whole way by HTTPS.

The first case is in memory on both sides: protocol, rows, queues, bodies; no disk, no network,
no signature (see the peers). The second is ours alone: a real outbox on disk, signatures, TLS to
a sink on loopback in another process.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.measure import Result, Target, absent, summarise
from tests.interop.environments import SetupError, python_of

BENCH = "EDU CPU"
CASE = "RDATA to bodies"
WITH_DISK = "RDATA to bodies, outbox on disk"
UNIT = "us/EDU"
END_TO_END = "EDUs end to end"
HTTPS = "outbox on disk, signed, HTTPS to a local sink"
REPETITIONS = 5
PEERS = Path(__file__).resolve().parent / "peers"

TARGETS = (Target(BENCH, CASE, "synapse-1.66.0", 8.0),)


def run() -> Iterator[Result]:
    """Measure our path and Synapse's in turn, so that both see the same machine."""
    ours: list[float] = []
    theirs: list[float] = []
    try:
        python: Path | None = python_of("1.66.0")
        why = ""
    except SetupError as error:
        python, why = None, str(error)
    for _ in range(REPETITIONS):
        ours.append(_measure(Path(sys.executable), "edu_tcprepl_peer.py", 40_000)[0])
        if python is not None:
            theirs.append(_measure(python, "edu_synapse_peer.py", 20_000)[0])
    yield summarise(BENCH, CASE, "tcprepl", UNIT, ours, "100 EDUs a transaction")
    if theirs:
        yield summarise(BENCH, CASE, "synapse-1.66.0", UNIT, theirs)
    else:
        yield absent(BENCH, CASE, "synapse-1.66.0", UNIT, why)
    disk: list[float] = []
    for _ in range(REPETITIONS):
        with tempfile.TemporaryDirectory() as directory:
            disk += _measure(Path(sys.executable), "edu_tcprepl_peer.py", 20_000, directory)[:1]
    yield summarise(BENCH, WITH_DISK, "tcprepl", UNIT, disk)
    yield from _end_to_end()


def _measure(python: Path, script: str, count: int, *more: str) -> list[float]:
    command = [str(python), str(PEERS / script), str(count), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def _end_to_end() -> Iterator[Result]:
    figures = []
    for _ in range(3):
        command = [sys.executable, str(PEERS / "edu_https_peer.py"), "20000"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures.append(json.loads(done.stdout))
    filled = statistics.median(figure["edus_per_transaction"] for figure in figures)
    note = f"{filled:.0f} EDUs a transaction"
    for name, unit in (("edus_per_s", "EDUs/s"), ("transactions_per_s", "transactions/s")):
        values = [figure[name] for figure in figures]
        yield summarise(END_TO_END, HTTPS, "tcprepl", unit, values, note)
