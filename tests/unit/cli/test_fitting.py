"""Text in so many columns: nothing is wider, and no figure is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.cli.fitting import columns_in, curve_in, facts_in, flowing, late_in, wrapped
from tcprepl.cli.screen import Line, cells


def texts(lines: list[Line]) -> list[str]:
    """Return lines without their styles."""
    return ["".join(span.text for span in line) for line in lines]


@given(st.lists(st.text("a名1.", min_size=1, max_size=30), max_size=9), st.integers(2, 40))
def test_what_flows_is_never_wider(pieces: list[str], width: int) -> None:
    """Each piece is there whole, or shortened, or left out if it is a figure."""
    lines = flowing(pieces, width)
    assert all(cells(line) <= width for line in lines)
    words = " ".join(lines).split()
    for piece in pieces:
        if cells(piece) <= width:
            assert piece in words
        elif piece[0] == "1":
            assert piece not in words
        else:
            assert any(word.endswith("…") for word in words)


def test_figures_keep_their_units() -> None:
    text = "behind by 98765.4 s in typing"
    assert wrapped(text, 40) == [text]
    assert wrapped(text, 12) == ["behind by", "98765.4 s in", "typing"]
    assert wrapped("1\u202f234\u202f567 rows", 9) == ["1 234 567", "rows"]
    assert wrapped("1\u202f234\u202f567 rows", 8) == ["rows"]


def test_facts_stand_beside_their_names_or_below() -> None:
    facts = [("position", "7"), ("state", "behind in typing, its socket"), ("nothing", "9" * 50)]
    assert texts(facts_in(45, facts)) == [
        "position     7",
        "state        behind in typing, its socket",
        "nothing      ",
    ]
    assert texts(facts_in(33, facts[1:2])) == [
        "state        behind in typing,",
        "             its socket",
    ]
    assert texts(facts_in(20, facts[:2])) == [
        "position",
        "7",
        "state",
        "behind in typing,",
        "its socket",
    ]


def test_how_late_somebody_is_stands_there() -> None:
    late = [("ann", "98765.4 s"), ("bob", "2.0 s")]
    assert texts(late_in(50, late)) == ["behind in it: ann by 98765.4 s, bob by 2.0 s"]
    assert texts(late_in(16, late)) == ["behind in it:", "a… by 98765.4 s,", "bob by 2.0 s"]
    assert texts(late_in(15, late)) == ["behind in it:", "98765.4 s,", "bob by 2.0 s"]
    assert texts(late_in(9, late)) == ["behind i…", "98765.4 s", "2.0 s"]


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (60, ["lag, at most 12.0  " + "▁" * 39 + "█"]),
        (30, ["lag, at most 12.0  " + "▁" * 10 + "█"]),
        (20, ["lag, at most 12.0", "▁" * 19 + "█"]),
        (8, ["lag, at", "most", "12.0", "▁" * 7 + "█"]),
    ],
)
def test_a_curve_ends_with_the_newest_value(width: int, expected: list[str]) -> None:
    assert texts(curve_in(width, "lag", [0.0] * 39 + [12.0])) == expected


def test_no_curve() -> None:
    assert texts(curve_in(50, "lag", [])) == ["lag: 0 in the last 0 looks"]
    assert texts(curve_in(12, "lag", [0.0] * 60)) == ["lag: 0 in", "the last 60", "looks"]


def test_columns_that_fit() -> None:
    head = ["PEER", "ADDRESS", "BEHIND"]

    def columns(width: int) -> dict[int, int]:
        return columns_in(width, head, [10, 12, 9], ["PAUSED", "ADDRESS"])

    assert columns(35) == {0: 10, 1: 12, 2: 9}
    assert columns(34) == {0: 10, 2: 9}
    assert columns(16) == {0: 5, 2: 9}
    assert columns(12) == columns(9) == {2: 9}
    assert columns_in(4, ["STREAM"], [10], []) == {0: 4}
