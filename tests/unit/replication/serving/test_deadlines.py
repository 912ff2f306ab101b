"""Who is looked at when."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from tcprepl.limits import PING_INTERVAL_S
from tcprepl.replication.serving.deadlines import STEP_S, Deadlines


class One:
    """Has a deadline so many seconds after each look, and then none."""

    def __init__(self, *waits: float) -> None:
        self.step = 0
        self.waits = list(waits)
        self.due = PING_INTERVAL_S
        self.seen: list[float] = []
        self.ended = False

    def sweep(self, now: float) -> float | None:
        self.seen.append(now)
        assert now >= self.due - 1e-6
        assert now <= self.due + STEP_S + 1e-6
        if not self.waits:
            return None
        self.due = now + self.waits.pop(0)
        return self.due

    def failed(self) -> None:
        self.ended = True


def make() -> tuple[Any, Deadlines[One]]:
    clock: Any = Clock()
    return clock, Deadlines(clock)


def go(clock: Any, deadlines: Deadlines[One], seconds: float) -> int:
    """Let time pass in steps; return how many were looked at."""
    looks = 0
    for _ in range(round(seconds / STEP_S)):
        clock.advance(STEP_S)
        looks += len(list(deadlines.work()))
    return looks


@given(st.lists(st.lists(st.floats(5.0, 30.0), max_size=5), max_size=10))
def test_everybody_is_looked_at_in_time_and_hardly_more_often(waits: list[list[float]]) -> None:
    clock, deadlines = make()
    watched = [One(*each) for each in waits]
    for one in watched:
        deadlines.watch(one)
    looks = go(clock, deadlines, 200.0)
    assert looks == sum(len(each) + 1 for each in waits)
    assert deadlines._steps == {}


def test_who_is_gone_is_not_looked_at() -> None:
    clock, deadlines = make()
    gone, stays, late = One(), One(), One()
    for one in (gone, stays, late):
        deadlines.watch(one)
    deadlines.forget(gone)
    go(clock, deadlines, PING_INTERVAL_S - STEP_S)
    clock.advance(STEP_S)
    for _ in deadlines.work():
        deadlines.forget(stays if late.seen else late)  # while they are gone through
    assert gone.seen == []
    assert len(stays.seen) + len(late.seen) == 1
    deadlines.forget(gone)  # twice is no harm


def test_a_deadline_that_is_over_comes_in_the_next_step() -> None:
    """Never in the same one again, whatever is answered."""
    clock, deadlines = make()

    class Stubborn(One):
        def sweep(self, now: float) -> float | None:
            self.seen.append(now)
            return now - 10.0

    one = Stubborn()
    deadlines.watch(one)
    assert go(clock, deadlines, PING_INTERVAL_S + 1.0 - STEP_S) == 1.0 / STEP_S
    assert len(set(one.seen)) == len(one.seen)


def test_who_raises_ends_and_is_watched_until_it_is_gone() -> None:
    """The others are looked at in the same step."""
    clock, deadlines = make()
    watched = [One(PING_INTERVAL_S, PING_INTERVAL_S) for _ in range(3)]
    for one in watched:
        deadlines.watch(one)
    bad = watched[1]
    sweep = bad.sweep

    def broken(now: float) -> float | None:
        bad.sweep = sweep  # type: ignore[method-assign]
        bad.due = now + PING_INTERVAL_S
        raise ZeroDivisionError

    bad.sweep = broken  # type: ignore[method-assign]
    assert go(clock, deadlines, PING_INTERVAL_S + 1.0) == 3
    assert [one.ended for one in watched] == [False, True, False]
    go(clock, deadlines, 4 * PING_INTERVAL_S)
    assert [len(one.seen) for one in watched] == [3, 3, 3]
    assert deadlines._steps == {}
