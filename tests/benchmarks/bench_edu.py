"""EDUs: CPU time from RDATA bytes to finished transaction bodies, and the whole way by HTTPS.

Friendly: they are for five destinations, whose transactions they fill. Unfriendly: for 300. Rows
are canonical JSON, as our own writer sends them, or as Synapse writes them. Those are in memory
on both sides: protocol, rows, queues, bodies; no disk, no network, no signature (see the peers).
With the outbox on disk, and with signatures and TLS to a sink on loopback in another process,
it is ours that has more to do: Synapse forgets EDUs when it ends.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.benchmarks.edu_lines import DESTINATIONS, MANY_DESTINATIONS
from tests.benchmarks.measure import (
    FRIENDLY,
    UNFRIENDLY,
    Line,
    Result,
    Target,
    paired,
    summarise,
)
from tests.interop.environments import SetupError, python_of

BENCH = "EDU CPU"
UNIT = "us/EDU"
CANONICAL = Line(BENCH, "canonical rows", UNIT)
PLAIN = Line(BENCH, "rows as Synapse writes them", UNIT)
DISK = Line(BENCH, "canonical rows, outbox on disk", UNIT)
END_TO_END = "EDUs end to end"
HTTPS = "outbox on disk, signed, HTTPS to a local sink"
SYNAPSE = "synapse-1.66.0"
REPETITIONS = 5
EDUS = 40_000
#: How long one run of a peer may take.
PATIENCE_S = 300.0
PEERS = Path(__file__).resolve().parent / "peers"
TO = {FRIENDLY: DESTINATIONS, UNFRIENDLY: MANY_DESTINATIONS}

TARGETS = (
    Target(BENCH, CANONICAL.case, SYNAPSE, 8.0),
    Target(BENCH, CANONICAL.case, SYNAPSE, 7.0, workload=UNFRIENDLY),
    Target(BENCH, PLAIN.case, SYNAPSE, 5.0, workload=UNFRIENDLY),
    Target(BENCH, DISK.case, SYNAPSE, 1.5, workload=UNFRIENDLY),
)


def run(edus: int = EDUS, repetitions: int = REPETITIONS, sent: int = 20_000) -> Iterator[Result]:
    """Measure our path and Synapse's in turn, so that both see the same machine."""
    try:
        python: Path | None = python_of("1.66.0")
    except SetupError as error:
        python = None
        yield from (line.absent(SYNAPSE, error) for line in (CANONICAL, PLAIN, DISK))
    measurements: dict[tuple[Line, str, str], Callable[[], float]] = {}
    for workload, destinations in TO.items():
        for line, kind in ((CANONICAL, "canonical"), (PLAIN, "synapse")):
            words = (str(destinations), kind)
            measurements[line, "tcprepl", workload] = partial(
                _measure, sys.executable, "edu_tcprepl_peer.py", edus, *words
            )
            if python is not None:
                measurements[line, SYNAPSE, workload] = partial(
                    _measure, python, "edu_synapse_peer.py", edus // 2, *words
                )
        measurements[DISK, "tcprepl", workload] = partial(
            _on_disk, edus // 2, str(destinations), "canonical"
        )
    found = paired(repetitions, measurements)
    for (line, name, workload), taken in found.items():
        words = f"{TO[workload]} destinations, 500 EDUs a request"
        yield line.result(name, workload, taken, words)
        if line is CANONICAL and name == SYNAPSE:
            yield DISK.result(name, workload, taken, words, "Synapse keeps nothing on disk")
    yield from _end_to_end(sent, min(3, repetitions))


def _measure(python: str | Path, script: str, count: int, *words: str) -> float:
    command = [str(python), str(PEERS / script), str(count), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    return float(done.stdout.split()[0])


def _on_disk(count: int, *words: str) -> float:
    with tempfile.TemporaryDirectory() as directory:
        return _measure(sys.executable, "edu_tcprepl_peer.py", count, *words, directory)


def _end_to_end(count: int, repetitions: int) -> Iterator[Result]:
    figures = []
    for _ in range(repetitions):
        command = [sys.executable, str(PEERS / "edu_https_peer.py"), str(count)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=PATIENCE_S
        )
        figures.append(json.loads(done.stdout))
    filled = statistics.median(figure["edus_per_transaction"] for figure in figures)
    note = f"{filled:.0f} EDUs a transaction"
    for name, unit in (("edus_per_s", "EDUs/s"), ("transactions_per_s", "transactions/s")):
        values = [figure[name] for figure in figures]
        yield summarise(END_TO_END, HTTPS, "tcprepl", unit, values, note)
