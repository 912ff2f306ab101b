"""A destination: what it holds, and what answers mean."""

from __future__ import annotations

from itertools import count
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.federation.sending import destination as module
from tcprepl.federation.sending.destination import Destination, Verdict
from tcprepl.federation.sending.lanes import Entry
from tcprepl.federation.sending.outbox import StoredTransaction
from tcprepl.federation.wire.edu import build_edu
from tcprepl.federation.wire.transaction import TransactionLimits

LIMITS = TransactionLimits()


def entry(number: int, key: str | None = None, pad: int = 0) -> Entry:
    content = {"n": number, "pad": "x" * pad}
    return number, 0, build_edu("x", "y", "m.test", content, None if key is None else (key,))


def make(entries: int = 1, *, uncertain: bool = False) -> Destination:
    made = Destination("y", LIMITS)
    made.in_flight = StoredTransaction("t", 0, [entry(n) for n in range(1, entries + 1)], uncertain)
    return made


def test_a_new_destination_is_plain() -> None:
    made = Destination("y", LIMITS)
    assert made.is_plain
    assert not made.has_work
    assert made.take(0, []) == []


def test_it_holds_what_is_new_while_it_holds_all() -> None:
    made = Destination("y", LIMITS)
    assert made.hold(entry(1, "a")) == 1
    assert made.hold(entry(2, "a")) == 0
    assert made.has_work
    assert made.complete
    assert made.held_upto == 2
    assert [found[0] for found in made.take(0, [])] == [2]


@pytest.mark.parametrize("why", ["no room", "failing", "incomplete", "too many", "too large"])
def test_what_it_cannot_hold_stays_on_disk(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Destination("y", LIMITS)
    made.hold(entry(1, "a", pad=100))
    if why == "failing":
        made.backoff.failures = 1
    elif why == "incomplete":
        made.complete = False
    elif why == "too many":
        monkeypatch.setattr(module, "MAX_HELD_EDUS", 1)
    elif why == "too large":
        monkeypatch.setattr(module, "MAX_HELD_BYTES", 1)
    assert made.hold(entry(2, "b"), why != "no room") == 0
    assert not made.complete
    # The older one of the key is not worth sending any more.
    assert made.hold(entry(3, "a"), why != "no room") == -1
    assert not made.queue


@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=5), max_size=5),
    st.integers(0, 8),
    st.integers(1, 8),
    st.integers(0, 9),
)
def test_many_at_once_are_held_as_one_by_one(
    groups: list[list[str | None]], room: int, most: int, fails_after: int
) -> None:
    """What is in memory and what is left on disk is the same, whatever runs out."""
    numbers = count(1)
    single, grouped = Destination("y", LIMITS), Destination("y", LIMITS)
    held_single = held_grouped = 0
    with mock.patch.object(module, "MAX_HELD_EDUS", most):
        for number, keys in enumerate(groups):
            if number == fails_after:
                single.backoff.failures = grouped.backoff.failures = 1
            group = [entry(next(numbers), key) for key in keys]
            for one in group:
                held_single += single.hold(one, held_single < room)
            held_grouped += grouped.hold_all(group, room - held_grouped)
            assert held_grouped == held_single
            assert grouped.complete == single.complete
            assert grouped.held_upto == single.held_upto
    assert [e[0] for e in grouped.take(0, [])] == [e[0] for e in single.take(0, [])]


def test_spilling_leaves_only_numbers() -> None:
    made = make()
    made.hold(entry(5))
    assert made.spill() == 1
    assert made.stored
    assert made.in_flight is None
    assert made.queue is None
    assert not made.complete
    assert made.has_work
    assert made.spill() == 0


@pytest.mark.parametrize(
    ("status", "entries", "verdict"),
    [
        (200, 1, Verdict.ACCEPTED),
        (204, 1, Verdict.ACCEPTED),
        (413, 2, Verdict.SPLIT),
        (413, 1, Verdict.PARK),
        (429, 2, Verdict.RETRY),
        (401, 2, Verdict.DISSOLVE),
        (404, 1, Verdict.DISSOLVE),
        (500, 2, Verdict.RETRY),
        (302, 2, Verdict.RETRY),
        (400, 2, Verdict.RETRY),
    ],
)
def test_what_an_answer_means(status: int, entries: int, verdict: Verdict) -> None:
    assert make(entries).judge(status) is verdict


def test_a_transaction_that_may_have_arrived_keeps_its_id() -> None:
    assert make(uncertain=True).judge(401) is Verdict.RETRY
    assert make(uncertain=True).judge_not_reached() is Verdict.RETRY
    assert make().judge_not_reached() is Verdict.DISSOLVE


def test_too_large_means_less_next_time_and_success_lets_it_grow_again() -> None:
    made = make(50)
    made.judge(413)
    assert made.max_edus == 25
    assert made.max_bytes < 50 * 100
    made.accepted(9, LIMITS)
    assert made.max_edus == 26
    assert made.last_success_ms == 9
    for _ in range(200):
        made.accepted(9, LIMITS)
    assert (made.max_edus, made.max_bytes) == (LIMITS.edus, LIMITS.max_bytes)


def test_what_is_refused_again_and_again_is_split() -> None:
    made = make(8)
    assert [made.judge(500) for _ in range(3)] == [
        Verdict.RETRY,
        Verdict.RETRY,
        Verdict.DISSOLVE,
    ]
    assert made.max_edus == 4


@pytest.mark.parametrize(("status", "last"), [(400, Verdict.PARK), (500, Verdict.POSTPONE)])
def test_one_edu_that_is_refused_again_and_again_lets_the_others_pass(
    status: int, last: Verdict
) -> None:
    made = make(1)
    verdicts = [made.judge(status) for _ in range(5)]
    assert verdicts == [Verdict.RETRY] * 4 + [last]
