"""Which log a process gets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tcprepl.errors import LogLocked
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.opening import open_log
from tcprepl.streams.registry import Registry
from tcprepl.streams.sqlite import SqliteLog


class ThreadedClock(Clock):
    """A clock that also takes calls from threads."""

    def __init__(self) -> None:
        super().__init__()
        self.from_threads: SimpleQueue[Callable[[], object]] = SimpleQueue()

    def callFromThread(self, f: Callable[..., object], *args: object) -> None:
        """Make the call with the next turn."""
        self.from_threads.put(partial(f, *args))

    def turn_until(self, deferred: Deferred[Any]) -> None:
        """Turn until *deferred* has fired."""
        self.advance(0)
        while not deferred.called:
            self.from_threads.get(timeout=30)()
            self.advance(0)


def test_without_a_directory_everything_is_in_memory() -> None:
    clock = Clock()
    log = open_log(None, Registry(), clock)
    assert isinstance(log, MemoryLog)
    assert len(clock.getDelayedCalls()) == 1
    log.close()
    assert clock.getDelayedCalls() == []


def test_with_a_directory_it_is_on_disk_and_written_by_a_thread(tmp_path: Path) -> None:
    clock = ThreadedClock()
    log = open_log(tmp_path / "new" / "data", Registry(), clock)
    assert isinstance(log, SqliteLog)
    waiting = log.append("push_rules", "w", [b'["@a:x"]'])
    clock.turn_until(waiting)
    with pytest.raises(LogLocked):
        open_log(tmp_path / "new" / "data", Registry(), clock)
    clock.turn_until(log.close())
    assert clock.getDelayedCalls() == []
