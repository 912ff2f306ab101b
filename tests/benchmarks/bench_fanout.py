"""Fan-out: the server's CPU time for each row delivered to each subscriber.

Friendly: a turn of the reactor publishes 100 rows of one stream in one call. Unfriendly: it
publishes 100 rows of five streams, interleaved, each in a call of its own. Beside them the same
interleaved rows with a call for each stream, and turns of a single row.

Two bounds are measured beside the servers: a bare loop that checks, encodes, renders and sends the
same rows and does nothing else, and a raw one that sends lines which are ready.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from tests.benchmarks.driver import (
    NatsPubSub,
    RedisPubSub,
    System,
    ValkeyPubSub,
    bare_server,
    cpu_per_row_us,
    raw_server,
    synapse_server,
    tcprepl_server,
)
from tests.benchmarks.measure import (
    FRIENDLY,
    UNFRIENDLY,
    Line,
    Result,
    Target,
    paired,
    raise_open_files,
)
from tests.interop.environments import SetupError

BENCH = "fan-out CPU"
UNIT = "us/row"
SUBSCRIBERS = (1, 10, 50, 200)
#: Rows in all that one repetition delivers; less for Synapse, which takes longer.
ROWS = 1_000_000
SYNAPSE_ROWS = 150_000
REPETITIONS = 5
SYNAPSE = "synapse-1.66.0"
DISK = "tcprepl (sqlite)"
BY_STREAM = "1 subscriber, a call a stream"
ONE_ROW = "1 row a turn, 10 subscribers"
WORKLOADS = {
    FRIENDLY: ("batch", "100 rows of one stream a turn, one call"),
    UNFRIENDLY: ("each", "100 rows a turn, streams interleaved, a call each"),
}


def case(subscribers: int) -> str:
    """Return the name of the case with that many subscribers."""
    return f"{subscribers} subscriber" + ("s" if subscribers > 1 else "")


SYSTEMS: tuple[tuple[str, Callable[[], System]], ...] = (
    ("tcprepl", tcprepl_server),
    (DISK, lambda: tcprepl_server("sqlite")),
    (SYNAPSE, synapse_server),
    ("redis", RedisPubSub),
    ("valkey", ValkeyPubSub),
    ("nats", NatsPubSub),
    ("bare loop", bare_server),
    ("raw loop", raw_server),
)

TARGETS = (
    Target(BENCH, case(1), SYNAPSE, 6.0, workload=UNFRIENDLY),
    Target(BENCH, BY_STREAM, SYNAPSE, 7.5, workload=UNFRIENDLY),
    *(
        Target(BENCH, case(count), SYNAPSE, factor, workload=kind)
        for count, factor in ((10, 45.0), (50, 60.0), (200, 60.0))
        for kind in WORKLOADS
    ),
    *(Target(BENCH, case(n), "valkey", 1.0, workload=UNFRIENDLY) for n in (10, 50, 200)),
    *(Target(BENCH, case(n), "nats", 1.0, workload=UNFRIENDLY) for n in (50, 200)),
    # Rows on disk cost at most 1.6 times what they cost in memory.
    *(
        Target(BENCH, case(n), "tcprepl", 1 / 1.6, workload=UNFRIENDLY, ours=DISK)
        for n in (10, 50, 200)
    ),
    Target(BENCH, ONE_ROW, SYNAPSE, 4.0, workload=UNFRIENDLY),
)


def run(
    subscribers: tuple[int, ...] = SUBSCRIBERS, rows: int = ROWS, repetitions: int = REPETITIONS
) -> Iterator[Result]:
    """Measure every system; the repetitions take turns, so that all see the same machine."""
    raise_open_files()
    running: dict[str, System] = {}
    try:
        for name, start in SYSTEMS:
            try:
                running[name] = start()
            except SetupError as error:
                yield from (
                    Line(BENCH, case(count), UNIT).absent(name, error) for count in subscribers
                )
        for count in subscribers:
            # What a window holds for all subscribers together has to fit their sockets.
            turns = 32 if count <= 10 else 8
            for workload, (kind, words) in WORKLOADS.items():
                yield from _measure(
                    running, case(count), workload, words, repetitions,
                    partial(_cpu, count, rows=rows, size=100, turns=turns, kind=kind),
                )  # fmt: skip
        yield from _measure(
            running, BY_STREAM, UNFRIENDLY, "100 rows a turn, interleaved, 5 calls", repetitions,
            partial(_cpu, 1, rows=rows, size=100, turns=32, kind="calls"),
        )  # fmt: skip
        yield from _measure(
            running, ONE_ROW, UNFRIENDLY, "streams take turns", repetitions,
            partial(_cpu, 10, rows=rows // 10, size=1, turns=100, kind="each"),
        )  # fmt: skip
    finally:
        for system in running.values():
            system.stop()


def _cpu(
    count: int, name: str, system: System, *, rows: int, size: int, turns: int, kind: str
) -> float:
    if name == SYNAPSE:
        rows = rows * SYNAPSE_ROWS // ROWS
    return cpu_per_row_us(system, count, rows_in_all=rows, size=size, turns=turns, kind=kind)


def _measure(
    running: dict[str, System],
    name: str,
    workload: str,
    words: str,
    repetitions: int,
    cpu: Callable[[str, System], float],
) -> Iterator[Result]:
    measurements = {name: partial(cpu, name, system) for name, system in running.items()}
    for system_name, taken in paired(repetitions, measurements).items():
        yield Line(BENCH, name, UNIT).result(system_name, workload, taken, words)
