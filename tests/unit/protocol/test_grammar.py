"""The grammar module: the patterns and the texts that describe them."""

from __future__ import annotations

import re

import pytest

from tcprepl.limits import MAX_NAME_CHARS, MAX_TOKEN
from tcprepl.protocol.grammar import (
    ABNF,
    LABEL_SHAPE,
    NAME_SHAPE,
    PATTERNS,
    TOKEN_RANGE,
    is_instance_name,
    is_name,
)
from tcprepl.protocol.specs import COMMANDS


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ("token", ["0", "007", str(MAX_TOKEN)], ["", "-1", "+1", "1_0", " 1", "1" * 20, "²"]),
        ("time", ["0", "-5", "1661000000000"], ["", "--1", "1.5", "1e3"]),
        ("secret", ["a", "!~", "x" * 1024], ["", "a b", "\u00e9", "\x7f", "x" * 1025]),
        ("name", ["a", "!r:x", "ü", "😀", "x" * MAX_NAME_CHARS], ["", "a b", "\t", "\x7f", "\x85"]),
        ("label", ["a b", "worker 1"], ["", "a\tb", "a\x1b[0m", "x" * (MAX_NAME_CHARS + 1)]),
        ("text", ["", "any \t thing\r"], ["two\nlines"]),
    ],
)
def test_patterns(rule: str, good: list[str], bad: list[str]) -> None:
    for text in good:
        assert PATTERNS[rule].fullmatch(text), text
    for text in bad:
        assert not PATTERNS[rule].fullmatch(text), text


@pytest.mark.parametrize("name", ["batch", "0", "42", "*", "", "a b", "a\u2003b", "a\x9b", "a\x7f"])
def test_what_no_instance_can_be_called(name: str) -> None:
    """A line could not tell it from a token, or from two words."""
    assert not is_instance_name(name)


@pytest.mark.parametrize("name", ["master", "w1", "1w", "\u0664", "Batch"])
def test_what_an_instance_can_be_called(name: str) -> None:
    """Digits of other scripts are letters to a line."""
    assert is_instance_name(name)
    assert is_name(name)


def test_every_command_has_its_rule() -> None:
    assert set(re.findall(r'"([A-Z_]+)"', ABNF)) >= set(COMMANDS)


def test_the_descriptions_name_the_limits() -> None:
    assert str(MAX_TOKEN) in TOKEN_RANGE
    assert str(MAX_NAME_CHARS) in NAME_SHAPE
    assert str(MAX_NAME_CHARS) in LABEL_SHAPE
