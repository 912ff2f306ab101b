"""Latency: from the publication of a row to each of 10 subscribers, at 2,000 rows/s.

Friendly: rows come one at a time, with exponential gaps. Unfriendly: they come as they do when
somebody sends to a busy room, 50 in one turn, streams interleaved, each in a call of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from tests.benchmarks.driver import (
    NatsPubSub,
    RedisPubSub,
    System,
    ValkeyPubSub,
    latencies_ms,
    percentile,
    raw_server,
    synapse_server,
    tcprepl_server,
)
from tests.benchmarks.measure import FRIENDLY, UNFRIENDLY, Line, Result, Target, paired
from tests.interop.environments import SetupError

BENCH = "latency"
UNIT = "ms"
RATE = 2_000
SUBSCRIBERS = 10
SECONDS = 2.0
REPETITIONS = 5
SYNAPSE = "synapse-1.66.0"
#: Rows published at once.
BURSTS = {FRIENDLY: 1, UNFRIENDLY: 50}
PARTS = {"p50": 0.5, "p99": 0.99}

SYSTEMS: tuple[tuple[str, Callable[[], System]], ...] = (
    ("tcprepl", tcprepl_server),
    ("tcprepl (sqlite)", lambda: tcprepl_server("sqlite")),
    (SYNAPSE, synapse_server),
    ("redis", RedisPubSub),
    ("valkey", ValkeyPubSub),
    ("nats", NatsPubSub),
    ("raw loop", raw_server),
)

#: A tail of the bare loop above this, in ms, is the machine's: something else runs on it.
QUIET_MS = {"p50": 0.1, "p99": 0.5}

TARGETS = (
    Target(BENCH, "p50", SYNAPSE, 4.0, unless=("raw loop", QUIET_MS["p50"])),
    Target(BENCH, "p99", SYNAPSE, 10.0, unless=("raw loop", QUIET_MS["p99"])),
)


def run(seconds: float = SECONDS, repetitions: int = REPETITIONS) -> Iterator[Result]:
    """Measure every system; the repetitions take turns, so that all see the same machine."""
    running: dict[str, System] = {}
    try:
        for name, start in SYSTEMS:
            try:
                running[name] = start()
            except SetupError as error:
                yield Line(BENCH, "p50", UNIT).absent(name, error)
        for workload, burst in BURSTS.items():
            words = "one row at a time" if burst == 1 else f"{burst} rows at once, interleaved"
            measurements = {
                name: partial(
                    latencies_ms, system, SUBSCRIBERS, rate=RATE, seconds=seconds, burst=burst
                )
                for name, system in running.items()
            }
            for name, runs in paired(repetitions, measurements).items():
                note = "durable: with its group commit" if "sqlite" in name else ""
                for case, part in PARTS.items():
                    figures = [percentile(took, part) for took in runs]
                    line = Line(BENCH, case, UNIT)
                    yield line.result(name, workload, figures, words, note)
    finally:
        for system in running.values():
            system.stop()
