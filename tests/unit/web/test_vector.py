"""Positions of one writer or several, as text."""

from __future__ import annotations

import pytest

from tcprepl.web.vector import format_vector, parse_vector


@pytest.mark.parametrize(
    ("vector", "text"),
    [
        ({}, 0),
        ({"master": 7}, 7),
        ({"master": 7, "w1": 0}, 7),
        ({"w1": 3}, "w1~3"),
        ({"w1": 3, "master": 7}, "master~7,w1~3"),
        ({"a~b,c=d": 1}, "a=7Eb=2Cc=3Dd~1"),
    ],
)
def test_format_names_writers_only_when_there_are_others(
    vector: dict[str, int], text: int | str
) -> None:
    """What our own instance alone wrote is a number; everything reads back."""
    assert format_vector(vector, "master") == text
    written = {instance: token for instance, token in vector.items() if token}
    read = parse_vector(str(text), "master")
    assert read is not None
    assert {instance: token for instance, token in read.items() if token} == written


def test_start_is_no_vector() -> None:
    """-1 is from as far back as the log goes."""
    assert parse_vector("-1", "master") is None


@pytest.mark.parametrize(
    "text",
    ["", "x", "-2", "01", "1.5", "9223372036854775808", "~5", "w1~", "w1~x", "w1~1,w1~2", "w1~1,"],
)
def test_rubbish_is_refused(text: str) -> None:
    """What is neither a token nor a list of pairs raises `ValueError`."""
    with pytest.raises(ValueError, match=r"."):
        parse_vector(text, "master")
