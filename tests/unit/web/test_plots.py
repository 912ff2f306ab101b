"""Plots and sparklines."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.web.amounts import duration, number
from tcprepl.web.elements import html
from tcprepl.web.plots import PLOT_SIZE, plot, scale, spark, time_scale
from tcprepl.web.trends import SPANS
from tests.unit.web.test_elements import Balanced, text


@pytest.mark.parametrize("values", [[], [3.0]])
def test_a_line_needs_two_points(values: list[float]) -> None:
    """Until then it is empty, and takes its room."""
    for made in (
        spark(values, "a <label>", "3"),
        plot("a <label>", values, SPANS[0], number, scale),
    ):
        drawn = html(made)
        assert "<polyline" not in drawn
        assert 'aria-label="a &lt;label&gt;' in drawn


@given(st.lists(st.floats(0, 1e12), max_size=120), st.sampled_from(SPANS))
def test_a_plot_stays_within_its_field(values: list[float], span: object) -> None:
    """Whatever is drawn, each value can be read, and the newest is at the right edge."""
    assert isinstance(span, type(SPANS[0]))
    drawn = html(plot("rows", values, span, number, scale))
    parser = Balanced()
    parser.feed(drawn)
    assert parser.open == []
    found = re.search(r'data-said="([^"]*)"', drawn)
    assert found is not None
    assert found[1] == "|".join(map(number, values))
    for points in re.findall(r' points="([^"]*)"', drawn):
        pairs = [tuple(map(float, pair.split(","))) for pair in points.split()]
        assert all(-0.1 <= x <= PLOT_SIZE[0] and 0 <= y <= PLOT_SIZE[1] for x, y in pairs)
        assert max(x for x, _ in pairs) == PLOT_SIZE[0]


def test_a_plot_says_its_scale() -> None:
    told = text(html(plot("Rows", [1.0, 12_000.0, 3.0], SPANS[1], number, scale)))
    assert told == "Rows at most 12 000 20 000 10 000 0 1 hour ago now"


@pytest.mark.parametrize(
    ("most", "expected"), [(0.0, 1.0), (1.0, 1.0), (1.1, 2.0), (3.0, 5.0), (5.1, 10.0)]
)
def test_the_scale_ends_at_a_round_number(most: float, expected: float) -> None:
    assert scale(most) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("most", "told"),
    [
        (0.0, "1.0 s 500 ms 0 s"),
        (3.0, "5.0 s 2.5 s 0 s"),
        (55.0, "1 min 30 s 0 s"),
        (61.0, "2 min 1 min 0 s"),
        (700.0, "20 min 10 min 0 s"),
        (3_300.0, "1 h 30 min 0 s"),
        (3_700.0, "2 h 1 h 0 s"),
        (50_000.0, "1 d 12 h 0 s"),
        (100_000.0, "2 d 1 d 0 s"),
    ],
)
def test_times_have_a_scale_that_people_count_by(most: float, told: str) -> None:
    """An hour of lag ends at an hour, not at 1 h 23 min."""
    shown = text(html(plot("Lag", [0.0, most], SPANS[1], duration, time_scale)))
    assert shown.partition(f"at most {duration(most)} ".replace("\u202f", " "))[2].startswith(told)
