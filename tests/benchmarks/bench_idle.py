"""Idle memory: how much RAM the server holds for each subscribed, silent connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.benchmarks.driver import (
    NatsPubSub,
    RedisPubSub,
    System,
    bytes_per_idle_connection,
    synapse_server,
    tcprepl_server,
)
from tests.benchmarks.measure import Result, absent, raise_open_files, summarise
from tests.interop.environments import SetupError

BENCH = "idle connection"
CASE = "1,000 connections"
UNIT = "bytes"
CONNECTIONS = 1_000
REPETITIONS = 3
#: The most that one of ours may cost.
LIMIT_BYTES = 4_096

SYSTEMS: tuple[tuple[str, Callable[[], System]], ...] = (
    ("tcprepl", tcprepl_server),
    ("synapse-1.66.0", synapse_server),
    ("redis", RedisPubSub),
    ("nats", NatsPubSub),
)


def run() -> Iterator[Result]:
    """Measure every system, each time in a fresh process."""
    raise_open_files()
    for name, start in SYSTEMS:
        figures = []
        try:
            for _ in range(REPETITIONS):
                with start() as system:
                    figures.append(bytes_per_idle_connection(system, CONNECTIONS))
        except SetupError as error:
            yield absent(BENCH, CASE, name, UNIT, error)
            continue
        note = f"at most {LIMIT_BYTES} wanted" if name == "tcprepl" else ""
        yield summarise(BENCH, CASE, name, UNIT, figures, note)
