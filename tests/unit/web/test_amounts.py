"""Numbers for people."""

from __future__ import annotations

import pytest

from tcprepl.web.amounts import duration, number, size


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (0.04, "0.0"),
        (2.5, "2.5"),
        (5.0, "5"),
        (12.6, "13"),
        (1234567, "1\u202f234\u202f567"),
    ],
)
def test_numbers(value: float, expected: str) -> None:
    """Short, with thin spaces."""
    assert number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0 s"),
        (0.0004, "0 s"),
        (0.25, "250 ms"),
        (7.25, "7.2 s"),
        (59.4, "59 s"),
        (61, "1 min 1 s"),
        (7_320, "2 h 2 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations(value: float, expected: str) -> None:
    """The two largest units."""
    assert duration(value).replace("\u202f", " ") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e6, "2.5 MB"), (7e9, "7.0 GB")],
)
def test_sizes(value: float, expected: str) -> None:
    """Powers of a thousand."""
    assert size(value).replace("\u202f", " ") == expected
