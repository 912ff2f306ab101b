"""The bus beside those in whose place it is: CPU of a message and of a PUBLISH, latency.

Friendly: 100 lines of one stream in a pipeline, eight pipelines in flight. Unfriendly, which is
what the processes of a homeserver do: ten lines of streams that take turns, and the next ten when
everybody has them. The latency is that of 500 rows a second to ten subscribers, one at a time and
ten at once. A PUBLISH without subscribers is what every one costs before it goes to anybody.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.benchmarks.bench_relay import CHANNEL, OverRedis
from tests.benchmarks.driver import cpu_per_row_us, latencies_ms, percentile
from tests.benchmarks.measure import (
    FRIENDLY,
    UNFRIENDLY,
    Line,
    Result,
    Target,
    cpu_ns,
    paired,
    raise_open_files,
)
from tests.interop.environments import REPOSITORY, SetupError
from tests.interop.processes import Child, accepts
from tests.interop.servers import Redis, Server, Valkey
from tests.ports import free_port

BENCH = "bus"
SUBSCRIBERS = (5, 20, 50)
#: Messages in all that one repetition delivers.
MESSAGES = 400_000
REPETITIONS = 5
#: Rows a second of the latency, and for how many seconds.
RATE, SECONDS = 500, 2.0
#: PUBLISHes of one repetition.
PUBLISHED = 20_000
DISK = "tcprepl (sqlite)"
VALKEY = "valkey"
#: Lines in a pipeline, pipelines in flight, which rows; and how it is told.
WORKLOADS = {
    FRIENDLY: (100, 8, "batch", "8 times 100 lines of one stream"),
    UNFRIENDLY: (10, 1, "each", "10 lines, streams take turns"),
}
PARTS = {"latency p50": 0.5, "latency p99": 0.99}
PUBLISH = "PUBLISH to nobody"


def case(subscribers: int) -> str:
    """Return the name of the case with that many subscribers."""
    return f"CPU a message, {subscribers} subscribers"


TARGETS = tuple(
    Target(BENCH, case(count), VALKEY, 1.0, workload=kind, ours=ours)
    for count in (20, 50)
    for kind in WORKLOADS
    for ours in ("tcprepl", DISK)
)


class BusServer(Server):
    """A bus with its log in memory, or on disk."""

    @classmethod
    def start(cls, *, disk: bool) -> BusServer:
        """Start one and wait until it answers."""
        directory = Path(tempfile.mkdtemp(prefix="tcprepl-bench-bus-"))
        ports = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        command: list[str | Path] = [sys.executable, "-m", "tcprepl", "bus", "--server-name"]
        command += [CHANNEL.decode(), "--data", directory / "data" if disk else "none"]
        command += ["--listen-redis", ports[0], "--listen", ports[1], "--http", ports[2]]
        child = Child(command, directory / "log", cwd=REPOSITORY)
        port = int(ports[0].rpartition(":")[2])
        child.wait_ready("the bus listens", lambda: accepts(port) or None)
        return cls(directory, port, child)


SYSTEMS: tuple[tuple[str, Callable[[], Server]], ...] = (
    ("tcprepl", lambda: BusServer.start(disk=False)),
    (DISK, lambda: BusServer.start(disk=True)),
    (VALKEY, Valkey.start),
    ("redis", Redis.start),
)


def run(
    subscribers: tuple[int, ...] = SUBSCRIBERS,
    messages: int = MESSAGES,
    repetitions: int = REPETITIONS,
    seconds: float = SECONDS,
    published: int = PUBLISHED,
) -> Iterator[Result]:
    """Measure every system; the repetitions take turns, so that all see the same machine."""
    raise_open_files()
    running: dict[str, OverRedis] = {}
    try:
        for name, start in SYSTEMS:
            try:
                running[name] = OverRedis(start())
            except SetupError as error:
                yield from (
                    Line(BENCH, case(count), "us").absent(name, error) for count in subscribers
                )
        for count in subscribers:
            for workload, (size, turns, kind, words) in WORKLOADS.items():
                cpu = partial(
                    cpu_per_row_us, count=count, rows_in_all=messages, size=size, turns=turns,
                    kind=kind,
                )  # fmt: skip
                yield from _results(running, case(count), "us", workload, words, repetitions, cpu)
        for workload, (size, _, kind, _) in WORKLOADS.items():
            words = f"{size} in flight"
            cpu = partial(publish_us, count=published, size=size, kind=kind)
            yield from _results(running, PUBLISH, "us", workload, words, repetitions, cpu)
        for workload, burst in {FRIENDLY: 1, UNFRIENDLY: 10}.items():
            took = {
                name: partial(latencies_ms, one, 10, rate=RATE, seconds=seconds, burst=burst)
                for name, one in running.items()
            }
            for name, runs in paired(repetitions, took).items():
                for part, share in PARTS.items():
                    figures = [percentile(one, share) for one in runs]
                    words = f"{burst} at once, {RATE} a second to 10"
                    yield Line(BENCH, part, "ms").result(name, workload, figures, words)
    finally:
        for system in running.values():
            system.stop()


def _results(
    running: dict[str, OverRedis],
    name: str,
    unit: str,
    workload: str,
    words: str,
    repetitions: int,
    measure: Callable[[OverRedis], float],
) -> Iterator[Result]:
    measurements = {system: partial(measure, one) for system, one in running.items()}
    for system, taken in paired(repetitions, measurements).items():
        yield Line(BENCH, name, unit).result(system, workload, taken, words)


def publish_us(system: OverRedis, *, count: int, size: int, kind: str) -> float:
    """Return the CPU time in us of a PUBLISH that nobody hears, *size* of them in flight."""
    before = cpu_ns(system.pid)
    for _ in range(count // size):
        system.ask(size, kind)
    return (cpu_ns(system.pid) - before) / 1_000 / count
