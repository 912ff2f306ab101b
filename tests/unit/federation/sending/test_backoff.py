"""Back-off: quick tries first, then doubling, spread and bounded."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tcprepl.federation.sending.backoff import DAY_MS, MINUTE_MS, Backoff, BackoffPolicy


def middle(low: float, high: float) -> float:
    """Stand for chance: always 1, which is within the bounds of jitter."""
    return 1.0


def test_the_default_schedule() -> None:
    policy = BackoffPolicy()
    waits = [policy.wait_ms(n, middle) for n in range(1, 40)]
    assert waits[:3] == [4_000, 16_000, MINUTE_MS]
    assert waits[9:13] == [MINUTE_MS, 10 * MINUTE_MS, 20 * MINUTE_MS, 40 * MINUTE_MS]
    assert waits[-1] == 7 * DAY_MS
    assert policy.wait_ms(10_000, middle) == 7 * DAY_MS


@given(
    first_ms=st.integers(1, 10 * DAY_MS),
    factor=st.one_of(st.floats(1, 1.1), st.floats(1, allow_infinity=False)),
    cap_ms=st.integers(1, 10 * DAY_MS),
    failures=st.integers(1, 10**9),
)
@example(first_ms=600_000, factor=1.01, cap_ms=7 * DAY_MS, failures=66)
@example(first_ms=1, factor=1 + 2**-52, cap_ms=DAY_MS, failures=10**18)
@example(first_ms=1, factor=1e300, cap_ms=DAY_MS, failures=10**18)
def test_each_wait_is_a_factor_longer_up_to_the_cap(
    first_ms: int, factor: float, cap_ms: int, failures: int
) -> None:
    """Whatever the factor is: only one of 1 lets the waits stay below the cap for ever."""
    policy = BackoffPolicy(quick_ms=(), first_ms=first_ms, factor=factor, cap_ms=cap_ms)
    wait, longer = policy.wait_ms(failures, middle), policy.wait_ms(failures + 1, middle)
    assert 1 <= wait <= longer <= cap_ms
    if longer < cap_ms:
        assert longer == pytest.approx(wait * factor, rel=1e-6, abs=1 + factor)
    last = cap_ms if factor > 1 else min(first_ms, cap_ms)
    assert policy.wait_ms(10**30, middle) == last


@pytest.mark.parametrize("factor", [0.5, 0.0, -2.0, math.nan, math.inf])
def test_a_factor_that_makes_no_wait_longer_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="factor of at least 1"):
        BackoffPolicy(factor=factor)


def test_failures_are_counted_and_cleared() -> None:
    backoff = Backoff()
    assert backoff.next_ms == 0
    assert not backoff.cleared()
    backoff.failed(1_000, BackoffPolicy(), middle, "first")
    backoff.failed(9_000, BackoffPolicy(), middle, "second", refusing=True)
    assert backoff.refusing
    assert (backoff.failures, backoff.failure_ms, backoff.last_ms) == (2, 1_000, 9_000)
    assert backoff.next_ms == 25_000
    assert backoff.reason == "second"
    backoff.due_now()
    assert backoff.next_ms == 0
    assert backoff.failures == 2
    assert backoff.cleared()
    assert backoff == Backoff()


def test_what_the_remote_asks_for_is_honoured_within_the_cap() -> None:
    policy = BackoffPolicy()
    chance = random.Random(1)
    for asked in (0, 500, 30_000, 10**15):
        backoff = Backoff()
        backoff.failed(0, policy, chance.uniform, "429", asked)
        assert min(asked, policy.cap_ms) <= backoff.interval_ms <= policy.cap_ms
        assert backoff.interval_ms >= 100


def test_a_wait_that_was_asked_for_is_spread_above_it() -> None:
    backoff = Backoff()
    for asked, least, waits in ((30_000, 30_000, 36_000), (0, 1_000, 1_200)):
        for uniform, expected in ((min, least), (max, waits)):
            backoff.failed(0, BackoffPolicy(), uniform, "429", asked)
            assert backoff.interval_ms == expected


@pytest.mark.parametrize(
    ("refusing", "interval_ms", "new_ms"),
    [
        (False, 800_000, 801_000),
        (True, 800_000, 31_000),
        (True, 80_000, 11_000),
        (True, 8_000, 3_000),
        (True, 500, 1_500),
        (True, 0, 0),
        (False, 0, 0),
    ],
)
def test_what_is_new_waits_an_eighth_where_the_remote_answers(
    refusing: bool, interval_ms: int, new_ms: int
) -> None:
    """Within bounds, and never longer than what was refused."""
    backoff = Backoff(1, 1_000, 1_000, interval_ms, "no", refusing)
    assert backoff.next_new_ms == new_ms
    assert backoff.next_ms == (interval_ms and 1_000 + interval_ms)


def test_what_is_no_fault_of_the_remote_is_no_failure() -> None:
    backoff = Backoff(3, 1_000, 2_000, 60_000, "no answer", refusing=True)
    backoff.kept_waiting(5_000, 100, "the disk is full")
    assert (backoff.failures, backoff.failure_ms, backoff.next_ms) == (3, 1_000, 5_100)
    assert backoff.reason == "the disk is full"
    assert backoff.cleared()
    backoff.kept_waiting(5_000, 100, "the disk is full")
    assert not backoff.cleared()
    assert backoff == Backoff()


def test_the_shortest_policy_there_can_be_waits_a_millisecond() -> None:
    policy = BackoffPolicy(quick_ms=(0,), first_ms=1, factor=1, cap_ms=1)
    assert [policy.wait_ms(failures, middle) for failures in (1, 2, 99)] == [1, 1, 1]


@pytest.mark.parametrize("wrong", [{"first_ms": 0}, {"cap_ms": 0}, {"factor": 0.5}])
def test_a_policy_that_does_not_wait_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        BackoffPolicy(**wrong)  # type: ignore[arg-type]
