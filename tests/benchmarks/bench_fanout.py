"""Fan-out: the server's CPU time for each row delivered to each subscriber."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.benchmarks.driver import (
    NatsPubSub,
    RedisPubSub,
    System,
    cpu_per_row_us,
    raw_server,
    synapse_server,
    tcprepl_server,
)
from tests.benchmarks.measure import Result, Target, absent, raise_open_files, summarise
from tests.interop.environments import SetupError

BENCH = "fan-out CPU"
UNIT = "us/row"
SUBSCRIBERS = (1, 10, 50, 200)
#: Rows in all that one repetition delivers; less for Synapse, which takes longer.
ROWS = 1_000_000
SYNAPSE_ROWS = 150_000
REPETITIONS = 5
ONE_ROW = "1 row a turn, 10 subscribers"


def case(subscribers: int) -> str:
    """Return the name of the case with that many subscribers."""
    return f"{subscribers} subscriber" + ("s" if subscribers > 1 else "")


SYSTEMS: tuple[tuple[str, Callable[[], System]], ...] = (
    ("tcprepl", tcprepl_server),
    ("tcprepl (sqlite)", lambda: tcprepl_server("sqlite")),
    ("synapse-1.66.0", synapse_server),
    ("redis", RedisPubSub),
    ("nats", NatsPubSub),
    ("raw loop", raw_server),
)

TARGETS = (
    Target(BENCH, case(1), "synapse-1.66.0", 8.0),
    Target(BENCH, case(10), "synapse-1.66.0", 35.0),
    Target(BENCH, case(50), "synapse-1.66.0", 60.0),
    Target(BENCH, case(50), "redis", 1.0),
    Target(BENCH, case(200), "synapse-1.66.0", 60.0),
    Target(BENCH, case(200), "redis", 1.0),
    Target(BENCH, ONE_ROW, "synapse-1.66.0", 4.0),
)


def run() -> Iterator[Result]:
    """Measure every system; the repetitions take turns, so that all see the same machine."""
    raise_open_files()
    running: list[tuple[str, System]] = []
    try:
        for name, start in SYSTEMS:
            try:
                running.append((name, start()))
            except SetupError as error:
                yield from (absent(BENCH, case(count), name, UNIT, error) for count in SUBSCRIBERS)
        for count in SUBSCRIBERS:
            # What a window holds for all subscribers together has to fit their sockets.
            turns = 32 if count <= 10 else 8
            yield from _measure(running, case(count), count, size=100, turns=turns)
        yield from _measure(running, ONE_ROW, 10, size=1, turns=100)
    finally:
        for _, system in running:
            system.stop()


def _measure(
    running: list[tuple[str, System]], name: str, count: int, *, size: int, turns: int
) -> Iterator[Result]:
    figures: dict[str, list[float]] = {system_name: [] for system_name, _ in running}
    for _ in range(REPETITIONS):
        for system_name, system in running:
            rows = SYNAPSE_ROWS if system_name.startswith("synapse") else ROWS
            rows //= 10 if size == 1 else 1
            figure = cpu_per_row_us(system, count, rows_in_all=rows, size=size, turns=turns)
            figures[system_name].append(figure)
    for system_name, taken in figures.items():
        yield summarise(BENCH, name, system_name, UNIT, taken)
