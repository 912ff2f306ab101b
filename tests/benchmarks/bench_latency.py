"""Latency: from the publication of a row to each of 10 subscribers, at 2,000 rows/s."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.benchmarks.driver import (
    NatsPubSub,
    RedisPubSub,
    System,
    latencies_ms,
    percentile,
    raw_server,
    synapse_server,
    tcprepl_server,
)
from tests.benchmarks.measure import Result, Target, absent, summarise
from tests.interop.environments import SetupError

BENCH = "latency"
UNIT = "ms"
RATE = 2_000
SUBSCRIBERS = 10
SECONDS = 2.0
REPETITIONS = 5

SYSTEMS: tuple[tuple[str, Callable[[], System]], ...] = (
    ("tcprepl", tcprepl_server),
    ("tcprepl (sqlite)", lambda: tcprepl_server("sqlite")),
    ("synapse-1.66.0", synapse_server),
    ("redis", RedisPubSub),
    ("nats", NatsPubSub),
    ("raw loop", raw_server),
)

#: A tail of the bare loop above this, in ms, is the machine's: something else runs on it.
QUIET_MS = {"p50": 0.1, "p99": 0.5}

TARGETS = (
    Target(BENCH, "p50", "synapse-1.66.0", 4.0, unless=("raw loop", QUIET_MS["p50"])),
    Target(BENCH, "p99", "synapse-1.66.0", 10.0, unless=("raw loop", QUIET_MS["p99"])),
)


def run() -> Iterator[Result]:
    """Measure every system; the repetitions take turns, so that all see the same machine."""
    running: list[tuple[str, System]] = []
    try:
        for name, start in SYSTEMS:
            try:
                running.append((name, start()))
            except SetupError as error:
                yield absent(BENCH, "p50", name, UNIT, error)
        taken: dict[str, list[list[float]]] = {name: [] for name, _ in running}
        for _ in range(REPETITIONS):
            for name, system in running:
                taken[name].append(latencies_ms(system, SUBSCRIBERS, rate=RATE, seconds=SECONDS))
        for name, runs in taken.items():
            note = "durable: with its group commit" if "sqlite" in name else ""
            for case, part in (("p50", 0.5), ("p99", 0.99)):
                figures = [percentile(took, part) for took in runs]
                yield summarise(BENCH, case, name, UNIT, figures, note)
    finally:
        for _, system in running:
            system.stop()
