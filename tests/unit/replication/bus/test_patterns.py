"""Patterns as Redis has them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.replication.bus.patterns import Pattern


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("*", "", True),
        ("*", "anything", True),
        ("a*c", "abc", True),
        ("a*c", "abcd", False),
        ("a**c", "ac", True),
        ("h?llo", "hallo", True),
        ("h?llo", "hllo", False),
        ("h[ae]llo", "hello", True),
        ("h[ae]llo", "hillo", False),
        ("h[^e]llo", "hallo", True),
        ("h[^e]llo", "hello", False),
        ("h[a-c]llo", "hbllo", True),
        ("h[c-a]llo", "hbllo", True),
        (r"h[\]]llo", "h]llo", True),
        ("h[ab", "hb", True),
        (r"a\*", "a*", True),
        (r"a\*", "ab", False),
        ("a\\", "a\\", True),
        ("abc", "ab", False),
    ],
)
def test_matches(pattern: str, name: str, fits: bool) -> None:
    assert Pattern(pattern.encode()).matches(name.encode()) is fits


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_any_bytes_are_a_pattern_and_can_be_matched(pattern: bytes, name: bytes) -> None:
    Pattern(pattern).matches(name)
    assert Pattern(b"*" + b"".join(b"\\%c" % byte for byte in name) + b"*").matches(b"x" + name)


def test_many_stars_take_no_time_to_speak_of() -> None:
    assert not Pattern(b"a*" * 500 + b"b").matches(b"a" * 5_000)
