"""Heads remember when rows came, and where they were at the moments that somebody remembers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl import limits
from tcprepl.replication.serving.heads import Head, Heads, Mark

PAIR = ("typing", "master")


def test_age_is_that_of_the_oldest_row_after_a_token() -> None:
    head = Head(PAIR, 0)
    for token in range(1, 11):
        head.token = token
        head.sample(float(token))
    assert head.age_of(10, 20.0) == 0.0
    assert head.age_of(9, 20.0) == pytest.approx(10.0)
    assert head.age_of(0, 20.0) == pytest.approx(19.0)


def test_age_of_what_was_never_sampled_is_nothing() -> None:
    head = Head(PAIR, 5)
    assert head.age_of(3, 9.0) == 0.0


def test_samples_stay_few_and_the_far_past_grows_coarse() -> None:
    head = Head(PAIR, 0)
    for token in range(1, 5_000):
        head.token = token
        head.sample(float(token))
    assert len(head._tokens) <= limits.MAX_HEAD_SAMPLES + 1
    assert head.age_of(4_998, 5_000.0) == pytest.approx(1.0)
    assert head.age_of(1, 5_000.0) >= 4_000.0


def test_samples_close_together_are_one() -> None:
    head = Head(PAIR, 0)
    head.token = 1
    head.sample(1.0)
    head.token = 2
    head.sample(1.01)
    assert len(head._tokens) == 1


def test_who_remembers_nothing_costs_nothing() -> None:
    heads = Heads()
    head = heads.add(PAIR, 0)
    for token in range(1, 100):
        heads.begin()
        heads.move(head, token, 1, 10)
    assert head.marks == []
    assert (head.token, head.rows, head.size_bytes, head.moved) == (99, 99, 990, 99)
    heads.remember(heads.moment)
    heads.begin()
    heads.move(head, 100)
    assert head.marks == [Mark(99, 99, 990, 99)]
    heads.forget(99)
    heads.begin()
    heads.move(head, 101)
    assert head.marks == []


def test_marks_that_nobody_needs_go() -> None:
    """One who stands still while others come and go does not make the heads remember them."""
    heads = Heads()
    head = heads.add(PAIR, 0)
    heads.remember(0)
    for token in range(1, 1_000):
        heads.begin()
        heads.move(head, token)
        heads.remember(heads.moment)
        heads.forget(heads.moment)
        assert len(head.marks) <= 2 * 1 + 9
    assert heads.at(head, 0).token == 0


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("move"), st.lists(st.integers(0, 4), min_size=1, max_size=3)),
            st.tuples(st.just("remember"), st.just([])),
            st.tuples(st.just("forget"), st.lists(st.integers(0, 9), min_size=1, max_size=1)),
        ),
        max_size=60,
    )
)
def test_what_was_at_a_remembered_moment_is_told(steps: list[tuple[str, list[int]]]) -> None:
    """As if somebody had copied every head then; and those that moved since are found."""
    heads = Heads()
    for number in range(3):
        heads.add((str(number), "i"), 0)
    remembered: list[tuple[int, dict[str, int]]] = []
    for what, numbers in steps:
        if what == "move":
            heads.begin()
            for number in numbers:
                pair = (str(number), "i")
                head = heads.by_pair.get(pair) or heads.add(pair, 0)
                heads.move(head, head.token + 1, 1, 10)
        elif what == "remember":
            heads.remember(heads.moment)
            now = {pair[0]: head.token for pair, head in heads.by_pair.items()}
            remembered.append((heads.moment, now))
        elif remembered:
            heads.forget(remembered.pop(numbers[0] % len(remembered))[0])
        for moment, then in remembered:
            moved = list(heads.moved_since(moment))
            assert [head.moved for head in moved] == sorted(
                (head.moved for head in moved), reverse=True
            )
            for pair, head in heads.by_pair.items():
                was = heads.at(head, moment)
                assert was[:3] == (then.get(pair[0], 0), was.token, was.token * 10)
                assert (head in moved) == (head.token != was.token)
                assert (head.born > moment) == (pair[0] not in then)
