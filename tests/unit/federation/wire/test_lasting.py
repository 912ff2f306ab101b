"""What was found out outlasts passing failures, for a time of grace."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from tcprepl.federation.wire.lasting import RETRY_FIRST_S, RETRY_MAX_S, Lasting


def result(work: Any) -> Any:
    found: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(found.append)
    if hasattr(found[0], "raiseException"):
        found[0].raiseException()
    return found[0]


class Source:
    """Answers as told."""

    def __init__(self) -> None:
        self.answer: tuple[str | None, float] | None = ("a", 100.0)
        self.asked = 0

    async def __call__(self) -> tuple[str | None, float]:
        self.asked += 1
        if self.answer is None:
            raise OSError("no answer")
        return self.answer


def test_failures_are_retried_soon_and_each_a_little_later() -> None:
    clock, source = Clock(), Source()
    lasting: Lasting[str, str] = Lasting(clock.seconds, 9, 1_000_000.0)
    assert result(lasting.get("k", source)) == ("a", 100.0)
    clock.advance(100)
    source.answer = None
    waits = []
    for _ in range(12):
        value, wait_s = result(lasting.get("k", source))
        assert value == "a"
        waits.append(wait_s)
        clock.advance(wait_s)
    assert waits[:3] == [RETRY_FIRST_S, 2 * RETRY_FIRST_S, 4 * RETRY_FIRST_S]
    assert waits[-1] == RETRY_MAX_S
    source.answer = (None, 50.0)
    assert result(lasting.get("k", source)) == (None, 50.0)


@given(st.lists(st.tuples(st.sampled_from(["good", "none", "fails"]), st.floats(0, 400))))
def test_it_is_never_older_than_its_grace_allows(steps: list[tuple[str, float]]) -> None:
    """Absence is believed at once; a failure keeps what was known, within the grace."""
    clock, source = Clock(), Source()
    lasting: Lasting[str, str] = Lasting(clock.seconds, 9, 200.0)
    good_at: float | None = None
    for kind, passed_s in steps:
        source.answer = {"good": ("a", 100.0), "none": (None, 100.0), "fails": None}[kind]
        before = source.asked
        value, left_s = result(lasting.get("k", source))
        assert left_s > 0
        if source.asked > before and kind != "fails":
            good_at = clock.seconds() if kind == "good" else None
        if value is not None:
            assert good_at is not None
            assert clock.seconds() < good_at + 100.0 + 200.0 + RETRY_MAX_S
        elif kind == "good":
            assert source.asked == before
        clock.advance(passed_s)


def test_it_is_bounded_and_can_forget() -> None:
    clock, source = Clock(), Source()
    lasting: Lasting[int, str] = Lasting(clock.seconds, 3, 1.0)
    for number in range(9):
        result(lasting.get(number, source))
    assert len(lasting) == 3
    assert lasting.forget(8)
    assert not lasting.forget(8)


def test_who_is_cancelled_notes_no_failure() -> None:
    async def cancelled() -> tuple[str | None, float]:
        raise CancelledError

    lasting: Lasting[str, str] = Lasting(Clock().seconds, 3, 1.0)
    with pytest.raises(CancelledError):
        result(lasting.get("k", cancelled))
    assert len(lasting) == 0


@pytest.mark.parametrize("answer", [("a", 100.0), None])
def test_what_was_asked_before_it_was_forgotten_is_not_kept(
    answer: tuple[str, float] | None,
) -> None:
    lasting: Lasting[str, str] = Lasting(Clock().seconds, 9, 0.0)
    gate: Deferred[None] = Deferred()

    async def slow() -> tuple[str | None, float]:
        await gate
        if answer is None:
            raise OSError("no answer")
        return answer

    asked = Deferred.fromCoroutine(lasting.get("k", slow))
    lasting.forget("k")
    gate.callback(None)
    assert asked.called
    assert len(lasting) == 0
    assert result(lasting.get("k", Source())) == ("a", 100.0)
