"""Who waits for rows is woken, once, for the streams that were asked for."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, Deferred

from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.notifier import Notifier
from tcprepl.streams.registry import Registry


def test_only_those_who_asked_for_the_stream_are_woken() -> None:
    notifier = Notifier()
    typing = notifier.wait(["typing", "presence"])
    events = notifier.wait(["events"])
    anything = notifier.wait()
    assert notifier.waiting == 3
    notifier.notify("typing")
    assert typing.called
    assert anything.called
    assert not events.called
    assert notifier.waiting == 1
    notifier.notify("presence")
    notifier.notify("events")
    assert events.called
    assert notifier.waiting == 0


def test_a_waiter_that_waits_again_waits_for_the_next_time() -> None:
    notifier = Notifier()
    again: list[Deferred[None]] = []
    notifier.wait(["typing"]).addCallback(lambda _: again.append(notifier.wait(["typing"])))
    notifier.notify("typing")
    assert not again[0].called
    notifier.notify("typing")
    assert again[0].called


def test_a_cancelled_wait_is_forgotten() -> None:
    notifier = Notifier()
    waiters = [notifier.wait(["typing"]), notifier.wait(["typing", "events"]), notifier.wait()]
    for waiter in waiters:
        failures: list[object] = []
        waiter.addErrback(failures.append)
        waiter.cancel()
        assert failures[0].check(CancelledError)  # type: ignore[attr-defined]
    assert notifier.waiting == 0
    notifier.notify("typing")


def test_a_waiter_that_cancels_another_as_both_are_woken() -> None:
    notifier = Notifier()
    second_failed: list[object] = []
    first = notifier.wait(["typing"])
    second = notifier.wait(["typing"])
    second.addErrback(second_failed.append)
    first.addCallback(lambda _: second.cancel())
    notifier.notify("typing")
    assert len(second_failed) == 1


def test_a_stream_named_twice_is_one() -> None:
    notifier = Notifier()
    waiter = notifier.wait(["typing", "typing"])
    notifier.notify("typing")
    assert waiter.called
    assert notifier.waiting == 0


def test_no_streams_is_a_wait_for_nothing() -> None:
    notifier = Notifier()
    waiter = notifier.wait([])
    notifier.notify("typing")
    assert not waiter.called


@pytest.mark.parametrize("move", ["rows", "position"])
def test_it_hears_of_what_a_log_publishes(move: str) -> None:
    notifier = Notifier()
    log = MemoryLog(Registry(), lambda: 0)
    notifier.attach(log)
    waiter = notifier.wait(["events"])
    if move == "rows":
        log.append("events", "w", [b"[]"])
    else:
        log.advance("events", "w", 5)
    assert waiter.called


def test_a_waiter_that_another_cancels_while_all_are_woken_is_left_alone() -> None:
    notifier = Notifier()
    first, second = notifier.wait(), notifier.wait()
    first.addCallback(lambda _: second.cancel())
    second.addErrback(lambda failure: failure.trap(CancelledError) and None)
    notifier.notify_all()
    assert first.called
    assert second.called
    assert notifier.waiting == 0


def test_nothing_is_left_of_those_who_wait_no_longer() -> None:
    """However many streams each asked for, and whoever else waits for the same."""
    notifier = Notifier()
    first, second = notifier.wait(["typing", "events"]), notifier.wait(["typing"])
    first.addErrback(lambda failure: failure.trap(CancelledError) and None)
    first.cancel()
    assert notifier._waiters == {"typing": {second: None}}
    notifier.notify("typing")
    assert second.called
    assert (notifier._waiters, notifier._wanted, notifier._any) == ({}, {}, {})
