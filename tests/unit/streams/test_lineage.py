"""In which incarnations a reader got what it has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tcprepl.limits import MAX_SAID_INCARNATIONS
from tcprepl.streams.lineage import Lineage


def test_a_reader_that_knows_nothing_says_nothing() -> None:
    lineage = Lineage()
    assert lineage.places(5) == ()
    assert lineage.entered(None, 0, 5) is lineage
    assert lineage.places(5) == ()


def test_each_incarnation_is_said_with_the_last_row_of_it() -> None:
    lineage = Lineage()
    before, lineage = lineage, lineage.entered("x", 0, 50)
    assert lineage is not before
    assert lineage.entered("x", 50, 100) is lineage
    before, lineage = lineage, lineage.entered("y", 100, 101)
    assert lineage is not before
    assert lineage.places(150) == ((150, "y"), (100, "x"))
    assert Lineage(lineage.stored()).places(150) == lineage.places(150)


def test_after_a_fork_what_was_got_above_it_is_void() -> None:
    lineage = Lineage()
    lineage = lineage.entered("x", 0, 100)
    lineage = lineage.entered("lost", 100, 150)
    lineage = lineage.entered("new", 150, 50)
    assert lineage.places(60) == ((60, "new"), (50, "x"))
    # a stream of states begins at 0 again: nothing of before counts
    before, lineage = lineage, lineage.entered("new", 60, 0)
    assert lineage is not before
    assert lineage.places(7) == ((7, "new"),)


def test_a_server_that_names_none_ends_what_is_known() -> None:
    lineage = Lineage()
    lineage = lineage.entered("x", 0, 100)
    lineage = lineage.entered(None, 100, 120)
    assert lineage.places(120) == ()
    lineage = lineage.entered("y", 120, 130)
    assert lineage.places(130) == ((130, "y"),)


def test_the_oldest_are_forgotten() -> None:
    lineage = Lineage()
    for number in range(20):
        lineage = lineage.entered(str(number), number * 10, number * 10 + 10)
    places = lineage.places(200)
    assert len(places) == MAX_SAID_INCARNATIONS
    assert places[0] == (200, "19")
    assert places[-1] == (130, "12")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20))))
def test_what_is_said_was_got_there(steps: list[tuple[str, int]]) -> None:
    """Against a list of who gave each row: every row that is claimed is of that incarnation."""
    lineage = Lineage()
    rows: list[str] = []
    for incarnation, token in steps:
        before = len(rows)
        lineage = lineage.entered(incarnation, before, token)
        rows[min(before, token) :] = [incarnation] * (token - min(before, token))
        places = lineage.places(len(rows))
        assert not places or places[0][0] == len(rows)
        for upto, name in places[:1]:
            assert not rows or rows[upto - 1] == name or upto == min(before, token)
        for upto, name in places[1:]:
            assert rows[upto - 1] == name
