"""Which log a process gets."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from unittest import mock

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from tcprepl.errors import ConfigError, LogHeld, LogLocked, LogUnavailable
from tcprepl.storage.worker import ThreadWorker
from tcprepl.streams.log import Log
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.opening import look_at_database, open_log, open_shared_log
from tcprepl.streams.postgres_database import PostgresDatabase
from tcprepl.streams.postgresql import PostgresLog
from tcprepl.streams.registry import Registry
from tcprepl.streams.sqlite import SqliteLog
from tests import postgres_world
from tests.log_kit import result


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


@pytest.mark.postgresql
def test_a_database_is_opened_and_written_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgres_world.fresh_url()
    clock = ThreadedClock()

    def opening(instance: str, **kwargs: Any) -> Deferred[Log]:
        return Deferred.fromCoroutine(open_shared_log(url, instance, Registry(), clock, **kwargs))

    assert look_at_database(url).holders == []
    first = opening("one")
    clock.turn_until(first)
    log = result(first)
    assert isinstance(log, PostgresLog)
    (holder,) = look_at_database(url).holders
    assert (holder.instance, holder.epoch) == ("one", 1)
    waiting = log.append("push_rules", "w", [b'["@a:x"]'], transaction_id="t")
    clock.turn_until(waiting)
    assert result(waiting).first == 1
    closed = mock.patch.object(PostgresDatabase, "close", autospec=True)
    closing = closed.start()
    standby = opening("one", standby=True)
    standby.cancel()
    with pytest.raises(CancelledError):
        result(standby)
    while closing.call_count < 1:
        clock.from_threads.get(timeout=30)()
    closed.stop()
    with mock.patch.object(PostgresDatabase, "take", side_effect=LogHeld("here", "one", "x")):
        refused = opening("one")
        clock.turn_until(refused)
    with pytest.raises(LogHeld):
        result(refused)
    clock.turn_until(log.close())
    again = opening("one")
    clock.turn_until(again)
    assert result(again).position("push_rules", "w") == 1
    clock.turn_until(result(again).close())
    monkeypatch.setitem(sys.modules, "tcprepl.streams.postgres_database", None)
    with pytest.raises(ConfigError, match=r"pip install 'tcprepl\[postgresql\]'"):
        result(opening("one"))


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tcprepl.storage.postgresql", None)
    with pytest.raises(ConfigError, match=r"and tcprepl\.storage\.postgresql is not there: pip"):
        look_at_database("postgresql://nowhere/")


@pytest.mark.postgresql
def test_who_looks_is_told_what_is_wrong_with_the_server() -> None:
    url = postgres_world.url_of(postgres_world.server(), "postgres")
    refused = mock.patch("tcprepl.storage.postgresql.OLDEST_SERVER", 10**9)
    with refused, pytest.raises(LogUnavailable, match="is too old"):
        look_at_database(url)


@pytest.mark.postgresql
def test_a_database_that_was_not_taken_leaves_no_thread() -> None:
    clock = ThreadedClock()
    url = postgres_world.url_of(postgres_world.server(), "postgres")
    stopped = mock.patch.object(ThreadWorker, "stop", autospec=True, side_effect=ThreadWorker.stop)
    taken = mock.patch.object(PostgresDatabase, "take", side_effect=LogHeld("here", "one", "x"))
    with taken, stopped as stop:
        refused = Deferred.fromCoroutine(open_shared_log(url, "one", Registry(), clock))
        clock.turn_until(refused)
    assert stop.call_count == 1
    with pytest.raises(LogHeld):
        result(refused)
