"""What every benchmark shares: results, medians, CPU time of a process, machine facts."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import statistics
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


#: The two workloads of a case. A friendly one is what a program would do that wants to look
#: good: full batches, a lot in flight. An unfriendly one is what a homeserver does.
FRIENDLY, UNFRIENDLY = "friendly", "unfriendly"


@dataclass(frozen=True)
class Result:
    """One measured figure.

    Attributes:
        bench: The benchmark, such as ``fan-out``.
        case: Its parameters in words, such as ``50 subscribers``.
        system: What was measured: ``tcprepl``, ``synapse-1.66.0``, ``redis``, ...
        value: The median over the repetitions; None when the system is absent.
        unit: Unit of *value*.
        best: The least of the repetitions.
        worst: The greatest of the repetitions.
        note: Why it is absent, or what a reader has to know.
        workload: `FRIENDLY` or `UNFRIENDLY`.
        in_flight: What the workload is, and how much of it is under way at once.
    """

    bench: str
    case: str
    system: str
    value: float | None
    unit: str
    best: float | None = None
    worst: float | None = None
    note: str = ""
    workload: str = FRIENDLY
    in_flight: str = ""

    def as_json(self) -> dict[str, object]:
        """Return the result as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Target:
    """A ratio that is to be reached in one run.

    Attributes:
        bench: The benchmark.
        case: The case of it.
        system: What tcprepl is compared with.
        factor: How many times better tcprepl has to be.
        workload: Of which workload.
        ours: Which of our systems is compared.
        higher_is_better: Whether a greater value is the better one.
        unless: A system and a value: when that system is above it, the machine is too busy
            for the figures to mean anything, and nothing is judged.
    """

    bench: str
    case: str
    system: str
    factor: float
    higher_is_better: bool = False
    unless: tuple[str, float] | None = None
    workload: str = FRIENDLY
    ours: str = "tcprepl"


@dataclass(frozen=True)
class Limit:
    """A figure of ours that may not be above a bound.

    Attributes:
        bench: The benchmark.
        case: The case of it.
        at_most: The bound, in the unit of the figure.
        workload: Of which workload.
        system: Which of our systems.
    """

    bench: str
    case: str
    at_most: float
    workload: str = UNFRIENDLY
    system: str = "tcprepl"


@dataclass(frozen=True)
class Line:
    """One line of the table, of which both workloads are measured.

    Attributes:
        bench: The benchmark.
        case: The case of it.
        unit: Unit of the figures.
    """

    bench: str
    case: str
    unit: str

    def result(
        self,
        system: str,
        workload: str,
        values: list[float],
        in_flight: str = "",
        note: str = "",
    ) -> Result:
        """Return the result of several repetitions of one workload."""
        return Result(
            self.bench,
            self.case,
            system,
            statistics.median(values),
            self.unit,
            min(values),
            max(values),
            note,
            workload,
            in_flight,
        )

    def absent(self, system: str, why: object) -> Result:
        """Return the result of a system that is not installed."""
        return absent(self.bench, self.case, system, self.unit, why)


def summarise(
    bench: str, case: str, system: str, unit: str, values: list[float], note: str = ""
) -> Result:
    """Return the result of several repetitions of a case that has one workload."""
    return Line(bench, case, unit).result(system, FRIENDLY, values, note=note)


def absent(bench: str, case: str, system: str, unit: str, why: object) -> Result:
    """Return the result of a system that is not installed."""
    return Result(bench, case, system, None, unit, note=f"absent: {str(why).splitlines()[0]}")


def paired(repetitions: int, measurements: Mapping[K, Callable[[], V]]) -> dict[K, list[V]]:
    """Return what each of *measurements* gave, all of them taking turns.

    So all see the same machine, whatever else runs on it.
    """
    taken: dict[K, list[V]] = {name: [] for name in measurements}
    for _ in range(repetitions):
        for name, measure in measurements.items():
            taken[name].append(measure())
    return taken


def cpu_ns(pid: int) -> int:
    """Return the CPU time in ns that the threads of process *pid* have used.

    The scheduler's own account is exact for a process that waits, which is when it is asked.
    """
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended
            total += int((task / "schedstat").read_text().split()[0])
    return total


def raise_open_files(wanted: int = 8_192) -> None:
    """Allow this process and its children that many open files, if the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def machine_facts() -> dict[str, object]:
    """Return what a reader needs to judge the figures by."""
    return {
        "processor": next(_cpu_names(), platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def _cpu_names() -> Iterator[str]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                yield line.partition(":")[2].strip()
