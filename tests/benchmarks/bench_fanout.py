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
from tests.benchmarks.measure import Result, Target, absent, summarise
from tests.interop.environments import SetupError

BENCH = "fan-out CPU"
UNIT = "us/row"
SUBSCRIBERS = (1, 10, 50, 200)
#: Rows in all that one repetition delivers: about as much time for each system.
DELIVERED = {"synapse": 150_000, "tcprepl": 1_000_000}
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
    """Measure every system, one after the other."""
    for name, start in SYSTEMS:
        delivered = DELIVERED["synapse" if name.startswith("synapse") else "tcprepl"]
        try:
            system = start()
        except SetupError as error:
            yield from (absent(BENCH, case(count), name, UNIT, error) for count in SUBSCRIBERS)
            continue
        with system:
            for count in SUBSCRIBERS:
                figures = cpu_per_row_us(system, count, rows_in_all=delivered, size=100, turns=8)
                yield summarise(BENCH, case(count), name, UNIT, figures)
            figures = cpu_per_row_us(system, 10, rows_in_all=delivered // 10, size=1, turns=100)
            yield summarise(BENCH, ONE_ROW, name, UNIT, figures)
