"""The search against a remote that refuses what it refuses: found, bounded, nobody else held up."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.federation.sending.search import FIRST_DENIALS, LATER_DENIALS, REPEATED, Search


@given(st.integers(1, 60), st.data())
def test_all_that_is_refused_is_found_and_all_else_delivered(
    edus: int, data: st.DataObject
) -> None:
    """Whatever is refused, with requests bounded by 2 n log(m) + m."""
    poison = data.draw(st.sets(st.integers(0, edus - 1)))
    search = Search()
    waiting = list(range(edus))
    delivered: list[int] = []
    found: set[int] = set()
    requests = 0
    while waiting:
        count = len(waiting) if search.limit is None else min(search.limit, len(waiting))
        chunk = waiting[:count]
        requests += 1
        if not poison.intersection(chunk):
            search.accepted(chunk, edus)
            delivered += chunk
            waiting = waiting[count:]
        elif count == 1:
            search.found(chunk[0], edus)
            found.add(chunk[0])
            waiting = waiting[1:]
        else:
            search.halve(count)
    assert found == poison
    assert delivered == sorted(set(range(edus)) - poison)
    assert requests <= 2 * (len(poison) + 1) * (math.ceil(math.log2(edus + 1)) + 2)


def test_an_edu_is_to_blame_when_others_were_taken_and_it_is_refused_again() -> None:
    search = Search()
    assert search.denied([1, 2], 500, was_well=True)
    search.accepted([2], 100)
    assert search.suspect(1, 100) is False
    assert search.has_new_evidence
    again = [search.suspect(1, 100) for _ in range(REPEATED)]
    assert again == [*[False] * (REPEATED - 1), True]
    assert search.has_new_evidence
    search.found(1, 100)
    assert not search.suspects
    # It is taken from quarantine, and nothing is held against it.
    search.accepted([2], 100)
    assert search.suspect(1, 100) is False
    assert not search.has_new_evidence


def test_what_is_taken_after_all_was_not_to_blame() -> None:
    search = Search()
    search.suspect(1, 100)
    for _ in range(2):
        search.accepted([2], 100)
        assert not any(search.suspect(1, 100) for _ in range(REPEATED - 1))
        search.accepted([1], 100)
        search.suspect(1, 100)


def test_nothing_is_to_blame_while_nothing_is_taken() -> None:
    search = Search()
    for _ in range(5):
        assert search.suspect(1, 100) is False
    assert not search.has_new_evidence
    search.accepted([9], 100)
    assert search.has_new_evidence


def test_what_cannot_go_into_quarantine_is_no_new_evidence() -> None:
    search = Search()
    search.suspect(1, 100)
    search.accepted([9], 100)
    search.keep(1)
    assert search.suspects == {1}
    assert not search.has_new_evidence
    search.keep(2)  # which was never suspected
    assert search.suspects == {1, 2}


def test_a_remote_that_takes_nothing_is_left_alone_after_a_bounded_number() -> None:
    for was_well, most in ((True, FIRST_DENIALS), (False, LATER_DENIALS)):
        search = Search()
        went_on = [search.denied([n], 500, was_well=was_well) for n in range(most)]
        assert went_on == [True] * (most - 1) + [False]


def test_it_is_we_only_if_that_is_all_that_was_said() -> None:
    search = Search()
    search.denied([1], 401, was_well=True)
    assert search.only_us
    search.denied([1], 500, was_well=True)
    search.denied([1], 401, was_well=True)
    assert not search.only_us
    search.accepted([1], 100)
    assert search.only_us


def test_a_search_begins_with_nothing() -> None:
    search = Search()
    assert (search.limit, search.suspects, search.only_us) == (None, set(), True)
    assert (search.set_aside, search.rested, search.has_new_evidence) == (False, False, False)


def test_a_round_ends() -> None:
    search = Search()
    search.suspect(1, 100)
    assert search.denied([1], 500, was_well=False)
    search.set_aside = search.rested = True
    search.round_ended()
    assert (search.set_aside, search.rested, search.suspects) == (False, False, {1})
    went_on = [search.denied([1], 500, was_well=False) for _ in range(LATER_DENIALS)]
    assert went_on == [True] * (LATER_DENIALS - 1) + [False]


def test_what_was_taken_is_no_suspect_any_more() -> None:
    """Also if one of its number comes again: nothing is known of it."""
    search = Search()
    for edu_id in (1, 2):
        search.suspect(edu_id, 100)
    search.accepted([1], 100)
    assert search.suspects == {2}
    assert search.has_new_evidence
    search.accepted([2], 100)
    assert search.suspects == set()
    assert search.suspect(2, 100) is False
    assert not search.has_new_evidence


def test_what_is_taken_and_what_is_found_let_more_be_tried_at_once() -> None:
    search = Search()
    search.halve(9)
    limits = [search.limit]
    for step in range(3):
        if step == 0:
            search.accepted([1], 100)
        elif step == 1:
            search.found(2, 100)
        else:
            search.suspect(3, 100)
        limits.append(search.limit)
    assert limits == [4, 8, 16, 32]
    search.accepted([4], 64)
    assert search.limit is None


@pytest.mark.parametrize("was_well", [True, False])
def test_refusals_are_counted_anew_after_each_end_of_a_row(was_well: bool) -> None:
    search = Search()
    most = FIRST_DENIALS if was_well else LATER_DENIALS

    def refusals(count: int) -> list[bool]:
        return [search.denied([1], 500, was_well=was_well) for _ in range(count)]

    assert all(refusals(most - 1))
    search.accepted([2], 100)
    assert all(refusals(most - 1))
    search.found(1, 100)
    for _ in range(2):
        assert refusals(most) == [*[True] * (most - 1), False]
