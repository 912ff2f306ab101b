"""What is measured of a whole process: how late its turns are, and the disk under its data."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from tcprepl import metrics
from tcprepl.background import looping_background_process
from tcprepl.metrics import Source

#: How often it is looked how late a turn is, and for how long the latest is told.
LOOK_S = 1.0
TOLD_FOR_LOOKS = 60


class ProcessMeasures:
    """Feeds `metrics` with what belongs to no part of a process, from now until `stop`.

    Args:
        reactor: Time.
        directory: Where the process keeps its data; None for nowhere.
    """

    def __init__(self, reactor: IReactorTime, directory: Path | None) -> None:
        self._reactor = reactor
        self._directory = directory
        self._late_s: deque[float] = deque(maxlen=TOLD_FOR_LOOKS)
        self._due = reactor.seconds() + LOOK_S
        self._looping = looping_background_process(reactor, "lateness", LOOK_S, self._look)
        self._sources: list[tuple[metrics.Live, Source]] = [
            (metrics.REACTOR_LATENESS, metrics.REACTOR_LATENESS.add_source(self._lateness)),
            (metrics.DATA_BYTES, metrics.DATA_BYTES.add_source(self._used)),
            (metrics.DATA_FREE_BYTES, metrics.DATA_FREE_BYTES.add_source(self._free)),
        ]

    def stop(self) -> Deferred[None]:
        """Measure no more."""
        for metric, source in self._sources:
            metric.remove_source(source)
        return self._looping.stop()

    def _look(self) -> None:
        now = self._reactor.seconds()
        self._late_s.append(max(0.0, now - self._due))
        self._due = now + LOOK_S

    def _lateness(self) -> Iterable[tuple[tuple[()], float]]:
        yield (), max(self._late_s, default=0.0)

    def _used(self) -> Iterable[tuple[tuple[()], float]]:
        if self._directory is not None:
            yield (), float(sum(sizes(self._directory)))

    def _free(self) -> Iterable[tuple[tuple[()], float]]:
        if self._directory is not None:
            found = os.statvfs(self._directory)
            yield (), float(found.f_bavail * found.f_frsize)


def sizes(directory: Path) -> Iterator[int]:
    """Yield the bytes of each file in *directory*; files that go meanwhile are left out."""
    for where, _, names in os.walk(directory):
        for name in names:
            try:
                yield os.stat(os.path.join(where, name), follow_symlinks=False).st_size
            except FileNotFoundError:
                continue
