"""Which log a process gets: on disk if it has a directory, in memory otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tcprepl.clocks import Reactor, steady_ms
from tcprepl.storage.worker import ThreadWorker
from tcprepl.streams.gaps import Gaps
from tcprepl.streams.log import Log
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.registry import Registry
from tcprepl.streams.retention import Retention
from tcprepl.streams.sqlite import SqliteLog


def open_log(
    directory: Path | str | None,
    registry: Registry,
    reactor: Reactor,
    retention: Retention | None = None,
    clock_ms: Callable[[], int] = steady_ms,
    gaps: Gaps | None = None,
) -> Log:
    """Open the log of a process.

    Args:
        directory: The data directory; None keeps everything in memory.
        registry: What streams there are.
        reactor: The reactor, with its time and its threads.
        retention: What to keep.
        clock_ms: Gives the time in ms since 1970, by a clock that never jumps.
        gaps: Where rows are known to be missing, if anywhere: those of a relay.

    Raises:
        LogLocked: another process has the directory open.
        LogCorrupt: the database is damaged, or is not one.
        LogTooNew: a newer version of tcprepl wrote it.
        LogUnavailable: the directory cannot be used, or the disk refuses.
    """
    if directory is None:
        return MemoryLog(registry, clock_ms, retention, reactor, gaps)
    writing = ThreadWorker(reactor.callFromThread, "tcprepl-log")
    reading = ThreadWorker(reactor.callFromThread, "tcprepl-read")
    return SqliteLog(directory, registry, clock_ms, writing, retention, reactor, gaps, reading)
