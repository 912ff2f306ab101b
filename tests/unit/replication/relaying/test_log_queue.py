"""What a relay has taken goes into the log in order, whenever that takes it."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from tcprepl.errors import (
    LogCorrupt,
    LogFenced,
    LogUnavailable,
)
from tcprepl.replication.relaying import log_queue
from tcprepl.streams.memory import MemoryLog
from tests.unit.replication.relaying.test_intake import PAIR, World


class SlowLog(MemoryLog):
    """A log whose appends wait to be let through."""

    waiting: list[Deferred[Any]]

    def append(self, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """Append once it is let through."""
        answer: Deferred[Any] = Deferred()
        append = super().append
        self.waiting.append(answer)
        _ = answer.addCallback(lambda _: append(*args, **kwargs))
        return answer


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> World:
    """Return a world with a slow log and little room."""
    monkeypatch.setattr(log_queue, "MAX_WAITING_BYTES", 8)
    world = World()
    world.log = SlowLog(world.registry, lambda: 0)
    world.log.waiting = []
    world.intake = world.make()
    return world


def test_one_group_at_a_time_and_room_is_waited_for(slow: World) -> None:
    log: Any = slow.log
    assert slow.intake.take(PAIR, 1, [b"[111]"]) is None
    slow.clock.advance(0)
    full = [slow.intake.take(PAIR, token, [b"[222]"]) for token in (2, 3)]
    assert all(one is not None and not one.called for one in full)
    drained = Deferred.fromCoroutine(slow.intake.drained())
    slow.clock.advance(0)
    assert len(log.waiting) == 1
    log.waiting[0].callback(None)
    assert len(log.waiting) == 2  # the rest went as one
    log.waiting[1].callback(None)
    assert all(one is not None and one.called for one in full)
    assert drained.called
    assert Deferred.fromCoroutine(slow.intake.close()).called


def test_what_the_log_cannot_take_now_is_kept_and_tried_again(slow: World) -> None:
    """In order, with what comes meanwhile behind it, within bounds, and no call passes it."""
    log: Any = slow.log
    called: list[str] = []
    slow.intake.take(PAIR, 1, [b"[1]"])
    slow.intake.take(("receipts", "master"), 1, [b"[1]"])
    slow.intake.after(lambda: called.append("after"))
    slow.clock.advance(0)
    log.waiting[1].errback(LogUnavailable("no room"))  # one of two
    assert not called
    log.waiting[0].callback(None)
    assert slow.intake.trouble == "no room"
    blocked = slow.intake.take(PAIR, 2, [b"[a long row]"])
    drained = Deferred.fromCoroutine(slow.intake.drained())
    room: list[bool] = []
    assert slow.intake.full
    slow.intake.when_room(lambda: room.append(True))
    assert blocked is not None
    for _ in range(3):
        slow.clock.advance(log_queue.RETRY_S)
        log.waiting[-1].errback(LogUnavailable("still no room"))
    assert len(log.waiting) == 5
    assert slow.intake.trouble == "still no room"
    assert not any((called, room, blocked.called, drained.called, slow.intake.failed.called))
    slow.clock.advance(log_queue.RETRY_S)
    log.waiting[5].callback(None)
    assert called == ["after"]
    assert slow.intake.trouble is None
    log.waiting[6].callback(None)
    assert blocked.called
    assert drained.called
    assert room == [True]
    assert not slow.intake.full


def test_nothing_passes_what_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    append = world.log.append
    refusing = iter([True, False])

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if next(refusing, False):
            return fail(LogUnavailable("away"))
        return append(*args, **kwargs)

    monkeypatch.setattr(world.log, "append", refuse)
    world.intake.take(PAIR, 1, [b"[1]"])
    world.intake.position(*PAIR, 3)
    world.intake.take(PAIR, 4, [b"[4]"])
    world.clock.advance(0)
    assert world.log.position(*PAIR) == 0
    world.clock.advance(log_queue.RETRY_S)
    assert world.rows() == [(1, b"[1]"), (4, b"[4]")]


def test_who_ends_while_the_log_refuses_lets_go_of_what_waits(slow: World) -> None:
    log: Any = slow.log
    slow.intake.take(PAIR, 1, [b"[1]"])
    slow.clock.advance(0)
    log.waiting[0].errback(LogUnavailable("away"))
    blocked = slow.intake.take(PAIR, 2, [b"[a long row]"])
    closed = Deferred.fromCoroutine(slow.intake.close())
    log.waiting[1].errback(LogUnavailable("away"))  # tried once more, at once
    assert closed.called
    assert blocked is not None
    assert blocked.called
    assert not slow.intake.failed.called
    assert not slow.clock.getDelayedCalls()


@pytest.mark.parametrize("known", [3, None])
def test_what_was_let_go_is_not_passed_over_by_what_comes_after_it(
    slow: World, known: int | None
) -> None:
    """Neither an upstream that begins anew nor a token said twice: the next start asks for it."""
    log: Any = slow.log
    slow.intake.take(PAIR, 3, [b"[3]"])
    slow.clock.advance(0)
    log.waiting[0].callback(None)
    slow.intake.take(PAIR, 7, [b"[7]"])
    slow.clock.advance(0)
    if known is None:
        after = slow.intake.take(PAIR, 7, [b"[8]"])
    else:
        after = Deferred.fromCoroutine(slow.intake.reset(*PAIR, 7, known))
    assert after is not None
    closed = Deferred.fromCoroutine(slow.intake.close())
    log.waiting[1].errback(LogUnavailable("away"))
    assert closed.called
    assert isinstance(after.result, Failure)  # type: ignore[attr-defined]
    after.addErrback(lambda failure: failure.trap(LogUnavailable))
    assert slow.make().positions() == {PAIR: 3}
    assert not slow.state.gaps.next(PAIR, 3)


@pytest.mark.parametrize(
    "error", [LogFenced("relay", "overtaken"), LogCorrupt("damaged"), ValueError("a fault of ours")]
)
def test_when_the_log_takes_no_more_the_relay_stops(slow: World, error: Exception) -> None:
    log: Any = slow.log
    failures: list[Any] = []
    slow.intake.failed.addErrback(failures.append)
    slow.intake.take(PAIR, 1, [b"[1]"])
    slow.clock.advance(0)
    blocked = slow.intake.take(PAIR, 2, [b"[a long row]"])
    drained = Deferred.fromCoroutine(slow.intake.drained())
    log.waiting[0].errback(error)
    assert failures[0].value is error
    assert blocked is not None
    assert blocked.called
    assert isinstance(drained.result, Failure)  # type: ignore[attr-defined]
    drained.addErrback(lambda failure: failure.trap(LogUnavailable))
    assert slow.intake.take(PAIR, 3, [b"[another long row]"]) is None
    slow.clock.advance(1)
    assert len(log.waiting) == 1


def test_what_is_gathered_begins_at_the_end_and_as_one_group() -> None:
    world = World()
    world.take(1)
    groups: list[int] = []
    world.log.add_listener(lambda block: groups.append(len(block.tokens)))
    with world.intake.gathering():
        for token in (2, 3):
            assert world.intake.take(PAIR, token, [b"[]"]) is None
        assert groups == []
    assert groups == [2]
    assert world.log.position(*PAIR) == 3
    with world.intake.gathering():
        pass  # nothing came


def test_what_is_gathered_while_others_wait_goes_with_them() -> None:
    world = World()
    world.take(1)
    groups: list[int] = []
    world.log.add_listener(lambda block: groups.append(len(block.tokens)))
    world.intake.take(PAIR, 2, [b"[]"])
    with world.intake.gathering():
        world.intake.take(PAIR, 3, [b"[]"])
    assert groups == []
    world.clock.advance(0)
    assert groups == [2]


def test_several_that_are_refused_wait_in_order_for_the_first_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    pairs = [("typing", name) for name in ("a", "b", "c")]
    for pair in pairs:
        world.position(0, pair=pair)
    asked: list[tuple[str, Deferred[Any]]] = []

    def append(stream: str, instance: str, *args: Any, **kwargs: Any) -> Deferred[Any]:
        asked.append((instance, Deferred()))
        return asked[-1][1]

    monkeypatch.setattr(world.log, "append", append)
    for pair in pairs:
        world.intake.take(pair, 1, [b"[]"])
    world.clock.advance(0)
    assert [name for name, _ in asked] == ["a", "b", "c"]
    asked[2][1].errback(LogUnavailable("the second reason"))
    asked[0][1].errback(LogUnavailable("the first reason"))
    asked[1][1].callback(None)
    assert world.intake.trouble == "the first reason"
    world.clock.advance(log_queue.RETRY_S)
    assert [name for name, _ in asked[3:]] == ["a", "c"]
    for _, answered in asked[3:]:
        answered.callback(None)
    assert world.intake.trouble is None
