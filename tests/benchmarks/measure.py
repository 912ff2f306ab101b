"""What every benchmark shares: results, medians, CPU time of a process, machine facts."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


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
    """

    bench: str
    case: str
    system: str
    value: float | None
    unit: str
    best: float | None = None
    worst: float | None = None
    note: str = ""

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


def summarise(
    bench: str, case: str, system: str, unit: str, values: list[float], note: str = ""
) -> Result:
    """Return the result of several repetitions."""
    return Result(
        bench, case, system, statistics.median(values), unit, min(values), max(values), note
    )


def absent(bench: str, case: str, system: str, unit: str, why: object) -> Result:
    """Return the result of a system that is not installed."""
    return Result(bench, case, system, None, unit, note=f"absent: {str(why).splitlines()[0]}")


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
