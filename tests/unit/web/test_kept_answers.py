"""Answers that are kept: found in the same state only, and bounded in bytes."""

from __future__ import annotations

from tcprepl.web.encoding import Fragment
from tcprepl.web.kept_answers import _OVERHEAD, Answers


def answer(size: int) -> Fragment:
    return Fragment(1, b"x" * size, urgent=True)


def test_an_answer_is_found_in_its_state() -> None:
    answers = Answers()
    first = answer(1)
    assert answers.find("typing", 1, "k") is None
    answers.keep("typing", 1, "k", first)
    assert answers.find("typing", 1, "k") is first
    assert answers.find("typing", 1, "other") is None
    assert answers.find("typing", 2, "k") is None
    assert answers.find("receipts", 1, "k") is None


def test_another_state_takes_the_place_of_the_one_before() -> None:
    answers = Answers()
    answers.keep("receipts", 1, "k", answer(5))
    for state in range(100):
        answers.keep("typing", state, "k", answer(1_000))
        answers.keep("typing", state, "l", answer(1_000))
        assert answers.size_bytes == 5 + 2 * 1_000 + 3 * _OVERHEAD
    assert answers.find("typing", 98, "k") is None
    assert answers.find("receipts", 1, "k") is not None


def test_two_that_read_at_once_count_once() -> None:
    answers = Answers()
    first = answer(1)
    answers.keep("typing", 1, "k", first)
    answers.keep("typing", 1, "k", answer(1))
    assert answers.size_bytes == 1 + _OVERHEAD
    assert answers.find("typing", 1, "k") is first


def test_what_is_kept_is_bounded() -> None:
    """All go when one more would be too much; one that is too large by itself is not kept."""
    answers = Answers(limit=3_000 + 3 * _OVERHEAD)
    for key in "abc":
        answers.keep("typing", 1, key, answer(1_000))
    assert answers.find("typing", 1, "a") is not None
    answers.keep("typing", 1, "d", answer(1))
    assert [answers.find("typing", 1, key) is None for key in "abcd"] == [True] * 3 + [False]
    answers.keep("typing", 1, "e", answer(100_000))
    assert answers.size_bytes == 0
