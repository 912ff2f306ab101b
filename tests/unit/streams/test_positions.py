"""What news mean for what is held."""

from __future__ import annotations

import pytest

from tcprepl.streams.positions import PositionTracker, Verdict


@pytest.mark.parametrize(
    ("known", "prev", "token", "verdict"),
    [
        (None, 5, 5, Verdict.UNKNOWN),
        (5, 5, 5, Verdict.CURRENT),
        (5, 3, 5, Verdict.CURRENT),
        (5, 3, 8, Verdict.CURRENT),
        (5, 5, 8, Verdict.CURRENT),
        (5, 6, 8, Verdict.GAP),
        (5, 0, 4, Verdict.RESET),
        (5, 9, 4, Verdict.RESET),
        (0, 0, 0, Verdict.CURRENT),
        (5, None, 5, Verdict.CURRENT),
        (5, None, 6, Verdict.GAP),
        (5, None, 4, Verdict.RESET),
    ],
)
def test_positions(known: int | None, prev: int | None, token: int, verdict: Verdict) -> None:
    tracker = PositionTracker({} if known is None else {("s", "i"): known})
    assert tracker.judge_position("s", "i", prev, token) is verdict
    assert tracker.get("s", "i") == known


@pytest.mark.parametrize(
    ("known", "token", "verdict"),
    [
        (None, 5, Verdict.UNKNOWN),
        (5, 4, Verdict.STALE),
        (5, 5, Verdict.STALE),
        (5, 6, Verdict.CURRENT),
        (5, 60, Verdict.CURRENT),
    ],
)
def test_rows(known: int | None, token: int, verdict: Verdict) -> None:
    tracker = PositionTracker(None if known is None else {("s", "i"): known})
    assert tracker.judge_rows("s", "i", token) is verdict


def test_instances_are_never_compared() -> None:
    tracker = PositionTracker({("s", "one"): 50})
    assert tracker.judge_position("s", "two", 3, 3) is Verdict.UNKNOWN
    tracker.advance("s", "two", 3)
    assert tracker.judge_rows("s", "two", 4) is Verdict.CURRENT
    assert tracker.judge_rows("s", "one", 4) is Verdict.STALE
    assert tracker.all() == {("s", "one"): 50, ("s", "two"): 3}
    assert list(tracker) == [("s", "one"), ("s", "two")]


def test_a_position_may_go_back_after_a_reset_and_be_forgotten() -> None:
    tracker = PositionTracker({("s", "i"): 50})
    tracker.advance("s", "i", 2)
    assert tracker.get("s", "i") == 2
    tracker.forget("s", "i")
    tracker.forget("s", "i")
    assert len(tracker) == 0
