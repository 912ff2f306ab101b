"""The wheel timer: after its time, never at it, at most a bucket late."""

from __future__ import annotations

import pytest

from tcprepl.ephemeral.wheel_timer import WheelTimer


@pytest.mark.parametrize(
    ("then_ms", "first_ms"),
    [
        (9_999, 10_000),
        (10_000, 15_000),
        (10_001, 15_000),
        (14_999, 15_000),
        (15_000, 20_000),
        (0, 5_000),
    ],
)
def test_returned_by_the_first_fetch_of_the_next_bucket(then_ms: int, first_ms: int) -> None:
    wheel: WheelTimer[str] = WheelTimer()
    wheel.insert("x", then_ms)
    assert wheel.fetch(then_ms) == []
    assert wheel.fetch(first_ms - 1) == []
    assert wheel.fetch(first_ms) == ["x"]
    assert wheel.fetch(first_ms + 100_000) == []


def test_overdue_is_returned_by_the_next_fetch() -> None:
    wheel: WheelTimer[str] = WheelTimer()
    assert wheel.fetch(60_000) == []
    wheel.insert("past", 1)
    wheel.insert("just", 59_999)
    wheel.insert("now", 60_000)
    assert wheel.fetch(60_001) == ["past", "just"]
    assert wheel.fetch(65_000) == ["now"]


def test_before_the_first_fetch_nothing_is_overdue() -> None:
    wheel: WheelTimer[str] = WheelTimer()
    wheel.insert("old", 1)
    assert wheel.fetch(1_000_000) == ["old"]


def test_order_is_that_of_the_buckets() -> None:
    wheel: WheelTimer[str] = WheelTimer(bucket_ms=10)
    for name, then_ms in [("c", 35), ("a", 5), ("b", 15), ("b2", 11)]:
        wheel.insert(name, then_ms)
    assert wheel.fetch(1_000) == ["a", "b", "b2", "c"]


def test_pending_counts_duplicates() -> None:
    wheel: WheelTimer[str] = WheelTimer()
    wheel.insert("x", 1)
    wheel.insert("x", 1)
    wheel.insert("x", 90_000)
    assert len(wheel) == 3
    assert wheel.fetch(5_000) == ["x", "x"]
    assert len(wheel) == 1


def test_clock_that_goes_back_returns_nothing_twice() -> None:
    wheel: WheelTimer[str] = WheelTimer()
    wheel.insert("x", 20_000)
    assert wheel.fetch(25_000) == ["x"]
    assert wheel.fetch(10_000) == []
    wheel.insert("y", 12_000)
    assert wheel.fetch(12_000) == ["y"]


def test_bucket_must_have_a_width() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        WheelTimer(bucket_ms=0)
