"""Calling a handler until it succeeds; what it wrote is saved with its position or undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import structlog
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock, deferLater

from tcprepl.errors import LogUnavailable
from tcprepl.replication.following.progress import Progress
from tcprepl.replication.following.retry import Caller, Stopped
from tcprepl.streams.codec import Rows
from tcprepl.streams.registry import Registry
from tests.unit.replication.following.test_progress import ALPHA, Store


class Stage:
    """A caller on a fake clock, with a store that notes what it is told."""

    def __init__(self, *, attempts: int | None = None, atomic: bool = True) -> None:
        self.clock = Clock()
        self.store = Store(atomic=atomic)
        self.progress = Progress(self.store)
        self.progress.load()
        self.caller = Caller(self.progress, self.wait, attempts)
        self.caller.running = True
        self.waits: list[float] = []

    async def wait(self, seconds: float) -> None:
        """Wait on the fake clock."""
        self.waits.append(seconds)
        await deferLater(self.clock, seconds)

    def call(self, function: Callable[..., object], *rows: bytes) -> Deferred[None] | None:
        """Call *function* with a batch of ``typing`` at token 4."""
        batch = Rows(Registry().codec("typing"), list(rows))
        return self.caller.call(function, (*ALPHA, 4, batch), ALPHA, 4, batch if rows else None)


GOOD, BAD = b'["!r:x",["@a:x"]]', b"[1]"


def outcome(deferred: Deferred[None] | None) -> Any:
    """Return how it ended: None, an exception, or "waits"."""
    assert deferred is not None
    found: list[Any] = ["waits"]

    def note(result: Any) -> None:
        found[0] = result and result.value

    deferred.addBoth(note)
    return found[0]


def test_success_at_once_is_saved_at_once() -> None:
    stage = Stage()
    assert stage.call(lambda *_: None, GOOD) is None
    assert stage.call(lambda *_: True, GOOD) is None
    assert stage.store.calls == [{ALPHA: 4}, {ALPHA: 4}]


class Promise:
    """Something else that can be awaited."""

    def __await__(self) -> Any:
        """Wait for a Deferred."""
        return (yield from succeed(None).__await__())


async def a_coroutine() -> None:
    """End at once."""


@pytest.mark.parametrize("make", [lambda: succeed(None), a_coroutine, Promise])
def test_whatever_can_be_awaited_is(make: Callable[[], object]) -> None:
    stage = Stage()
    assert outcome(stage.call(lambda *_: make(), GOOD)) is None
    assert stage.store.calls == [{ALPHA: 4}]


def test_a_failure_is_undone_before_it_is_called_again() -> None:
    stage = Stage()
    fails = [False, True, True]

    def handler(*_: object) -> None:
        stage.store.calls.append("handler")
        if fails.pop():
            raise RuntimeError("not yet")

    with structlog.testing.capture_logs() as logs:
        done = stage.call(handler, GOOD)
        stage.clock.pump([0.5, 1.0])
    assert outcome(done) is None
    assert stage.store.calls == ["handler", "rollback"] * 2 + ["handler", {ALPHA: 4}]
    assert [(entry["event"], entry["token"]) for entry in logs] == [
        ("replication.handler.failed", 4)
    ] * 2


def test_waits_double_and_are_capped() -> None:
    stage = Stage()

    def handler(*_: object) -> None:
        raise RuntimeError("never")

    with structlog.testing.capture_logs():
        done = stage.call(handler, GOOD)
        for _ in range(9):
            stage.clock.advance(60)
        assert stage.waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]
        stage.caller.running = False
        stage.clock.advance(60)
    assert isinstance(outcome(done), Stopped)
    assert stage.store.calls == ["rollback"] * 10


def test_a_refused_position_undoes_the_batch_and_calls_again() -> None:
    stage = Stage()
    calls: list[Any] = []

    def handler(*_: object) -> None:
        calls.append("handler")
        stage.store.error = OSError("disk full") if len(calls) == 1 else None

    def rollback() -> None:
        calls.append("rollback")

    stage.store.rollback = rollback  # type: ignore[method-assign]
    with structlog.testing.capture_logs():
        done = stage.call(handler, GOOD)
        stage.clock.advance(1)
    assert outcome(done) is None
    assert calls == ["handler", "rollback", "handler"]
    assert stage.progress.known == {ALPHA: 4}


def test_a_failure_while_stopping_is_undone_and_waits_for_nothing() -> None:
    stage = Stage()
    running: Deferred[None] = Deferred()
    done = stage.call(lambda *_: running, GOOD)
    stage.caller.running = False
    with structlog.testing.capture_logs():
        running.errback(RuntimeError("interrupted"))
    assert isinstance(outcome(done), Stopped)
    assert stage.waits == []
    assert stage.store.calls == ["rollback"]


def test_a_success_while_stopping_counts() -> None:
    stage = Stage()
    running: Deferred[None] = Deferred()
    done = stage.call(lambda *_: running, GOOD)
    stage.caller.running = False
    running.callback(None)
    assert outcome(done) is None
    assert stage.store.calls == [{ALPHA: 4}]


@pytest.mark.parametrize("later", [False, True])
def test_given_up_is_undone(later: bool) -> None:
    stage = Stage(attempts=2)

    def handler(*_: object) -> object:
        if later:
            return deferLater(stage.clock, 1, handler_fails)
        return handler_fails()

    def handler_fails() -> None:
        raise RuntimeError("never")

    with structlog.testing.capture_logs():
        done = stage.call(handler, GOOD)
        stage.clock.pump([1] * 5)
    assert str(outcome(done)) == "never"
    assert stage.store.calls == ["rollback", "rollback"]


@pytest.mark.parametrize("later", [False, True])
def test_an_exit_is_undone_and_not_called_again(later: bool) -> None:
    stage = Stage()

    async def leave_later() -> None:
        raise SystemExit("enough")

    def leave(*_: object) -> None:
        raise SystemExit("enough")

    done = stage.call((lambda *_: leave_later()) if later else leave, GOOD)
    assert isinstance(outcome(done), SystemExit)
    assert stage.store.calls == ["rollback"]


def test_what_cannot_be_undone_is_given_up() -> None:
    stage = Stage()
    stage.store.error = OSError("gone")

    def handler(*_: object) -> None:
        raise RuntimeError("not yet")

    with structlog.testing.capture_logs():
        done = stage.call(handler, GOOD)
    assert str(outcome(done)) == "gone"


@pytest.mark.parametrize("atomic", [False, True])
def test_rows_that_do_not_fit_are_left_out_and_what_was_written_for_them_is_undone(
    atomic: bool,
) -> None:
    stage = Stage(attempts=1, atomic=atomic)
    seen: list[Any] = []

    def handler(stream: str, instance: str, token: int, rows: Rows) -> None:
        seen.extend(rows[index].room_id for index in range(len(rows)))

    with structlog.testing.capture_logs() as logs:
        assert outcome(stage.call(handler, GOOD, BAD, GOOD, BAD)) is None
    assert seen == ["!r:x"] * 3  # once in vain
    stage.progress.save()
    assert stage.store.calls == (["rollback"] if atomic else []) + [{ALPHA: 4}]
    assert stage.caller.quarantined_rows == 2
    assert [entry["event"] for entry in logs] == ["replication.row.quarantined"] * 2
    assert {(entry["stream"], entry["instance"], entry["token"]) for entry in logs} == {(*ALPHA, 4)}


@pytest.mark.parametrize("atomic", [False, True])
def test_a_batch_of_bad_rows_only_moves_the_position(atomic: bool) -> None:
    """Otherwise they come again for ever; the handler gets no empty batch."""
    stage = Stage(atomic=atomic)
    calls: list[Any] = []

    def handler(stream: str, instance: str, token: int, rows: Rows) -> None:
        calls.append(len(rows))
        list(rows)

    with structlog.testing.capture_logs():
        assert outcome(stage.call(handler, BAD, BAD)) is None
    assert calls == [2]
    assert stage.progress.known == {ALPHA: 4}
    stage.progress.save()
    assert stage.store.calls[-1] == {ALPHA: 4}


def test_a_bad_row_from_elsewhere_is_a_failure_like_any() -> None:
    """The rows of this batch fit: whatever the handler decoded was not of it."""
    stage = Stage(attempts=1)

    def handler(*_: object) -> None:
        list(Rows(Registry().codec("typing"), [BAD]))

    with structlog.testing.capture_logs():
        done = stage.call(handler, GOOD)
    assert "typing" in str(outcome(done))
    assert stage.caller.quarantined_rows == 0


def test_a_callback_that_fails_is_named() -> None:
    stage = Stage()
    fails = [1]

    def on_reset(*_: object) -> None:
        if fails.pop():
            fails.append(0)
            raise RuntimeError("not yet")

    with structlog.testing.capture_logs() as logs:
        done = stage.call(on_reset)
        stage.clock.advance(1)
    assert outcome(done) is None
    (entry,) = logs
    assert entry["event"] == "replication.callback.failed"
    assert "on_reset" in entry["callback"]
    assert stage.store.calls == ["rollback", {ALPHA: 4}]


def test_a_log_that_refuses_says_it_in_words() -> None:
    """A full disk of a relay is no fault in anybody's code: no stack."""
    stage = Stage()
    refusal = LogUnavailable("log.sqlite3: the disk is full; free space in /data")

    def refuse(*_: object) -> None:
        raise refusal

    with structlog.testing.capture_logs() as logged:
        waiting = stage.call(refuse, GOOD)
    (entry,) = logged
    assert entry["event"] == "replication.handler.failed"
    assert entry["error"] == str(refusal)
    assert "exc_info" not in entry
    stage.caller.running = False
    stage.clock.advance(60)
    assert isinstance(outcome(waiting), Stopped)


def test_who_is_called_may_say_itself_that_the_client_stops() -> None:
    """It is undone like any failure, not logged, and not called again."""
    stage = Stage()
    calls: list[int] = []

    def handler(*_: object) -> None:
        calls.append(1)
        raise Stopped

    with structlog.testing.capture_logs() as logs:
        done = stage.call(handler, GOOD)
        stage.clock.advance(60)
    assert isinstance(outcome(done), Stopped)
    assert (calls, logs, stage.waits) == ([1], [], [])
    assert stage.store.calls == ["rollback"]


def test_a_failure_is_none_of_rows_that_do_not_fit() -> None:
    stage = Stage(attempts=1)

    def handler(*_: object) -> None:
        raise RuntimeError("a bug")

    assert str(outcome(stage.call(handler, GOOD, BAD))) == "a bug"
    assert stage.caller.quarantined_rows == 0

    def bad(*_: object) -> None:
        list(Rows(Registry().codec("typing"), [BAD]))

    assert "typing" in str(outcome(stage.call(bad)))


def test_before_the_client_starts_nothing_is_called_again() -> None:
    stage = Stage()
    stage.caller = Caller(stage.progress, stage.wait, None)

    def handler(*_: object) -> None:
        raise RuntimeError("a bug")

    assert isinstance(outcome(stage.call(handler, GOOD)), Stopped)
    assert stage.waits == []
