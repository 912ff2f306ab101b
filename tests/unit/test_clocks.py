"""A clock that never jumps, in reactors too, and the time of day."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.python import runtime

from tcprepl import clocks
from tcprepl.replication.following.asyncio_bridge import future_of


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A wall clock that can be set: a list of seconds to add."""
    ahead = [0.0]
    real = time.time

    def shown() -> float:
        return real() + sum(ahead)

    monkeypatch.setattr(time, "time", shown)
    monkeypatch.setattr(runtime, "seconds", shown)
    monkeypatch.setattr(SelectReactor, "seconds", staticmethod(shown))
    return ahead


def make() -> Any:
    """Return a reactor that is not installed and never runs by itself."""
    reactor: Any = SelectReactor()
    return reactor


def test_they_begin_together_and_only_one_can_be_set(wall: Any) -> None:
    assert abs(clocks.steady_ms() - clocks.wall_ms()) < 1_000
    before = clocks.steady_seconds()
    wall.append(-3_600.0)
    assert 0 <= clocks.steady_seconds() - before < 60
    assert before - clocks.wall_seconds() > 3_500


@pytest.mark.parametrize("jump_s", [-3_600.0, 30 * 86_400.0])
def test_what_is_due_stays_due_when_the_wall_clock_jumps(wall: Any, jump_s: float) -> None:
    """Also what was scheduled before the reactor was made steady."""
    reactor = make()
    called: list[str] = []
    late = reactor.callLater(1_000, called.append, "late")
    reset = reactor.callLater(1_000, called.append, "reset")
    clocks.make_steady(reactor)
    clocks.make_steady(reactor)
    wall.append(jump_s)
    reset.reset(0)
    reactor.callLater(0, called.append, "new")
    reactor.runUntilCurrent()
    assert sorted(called) == ["new", "reset"]
    assert late.getTime() - reactor.seconds() == pytest.approx(1_000, abs=60)
    assert clocks.epoch_s(reactor) == pytest.approx(jump_s, abs=60)


def test_a_clock_of_its_own_is_left_alone() -> None:
    clock = Clock()
    clocks.make_steady(clock)
    clock.advance(5)
    assert clock.seconds() == 5
    assert clocks.epoch_s(clock) == 0.0
    reactor = make()
    reactor.seconds = lambda: 7.0
    clocks.make_steady(reactor)
    assert reactor.seconds() == 7.0


DAY_MS = 86_400_000


@given(
    st.lists(st.tuples(st.integers(-(10**12), 10**12), st.integers(0, 10 * DAY_MS)), max_size=10)
)
def test_the_clock_of_a_store_never_goes_back_and_sleeps_at_most_a_day(
    runs: list[tuple[int, int]],
) -> None:
    """Whatever the wall clock shows at each start."""
    newest = 0
    for wall_ms, open_ms in runs:
        began = clocks.resumed_ms(wall_ms, newest)
        assert newest <= began <= newest + DAY_MS
        if newest <= wall_ms <= newest + DAY_MS:
            assert began == wall_ms
        newest = began + open_ms


def test_the_clock_of_a_loop() -> None:
    """As a reactor's: calls are made, put off, brought forward and cancelled."""
    called: list[Any] = []

    async def main() -> None:
        clock = clocks.LoopClock()
        loop = asyncio.get_running_loop()
        assert abs(clock.seconds() - loop.time()) < 60
        assert clocks.epoch_s(clock) + clock.seconds() == pytest.approx(time.time(), abs=60)
        done = Deferred[None]()
        clock.callLater(0.0, called.append, "now")
        late = clock.callLater(1_000, called.append, "brought forward")
        never = clock.callLater(0.0, called.append, "never")
        put_off = clock.callLater(0.0, lambda: done.callback(None))
        assert len(clock.getDelayedCalls()) == 4
        never.cancel()
        assert not never.active()
        late.reset(0.0)
        put_off.delay(0.01)
        await future_of(done)
        assert clock.getDelayedCalls() == []
        assert not late.active()

    asyncio.run(main())
    assert called == ["now", "brought forward"]
