"""The grammar module: the patterns and the texts that describe them."""

from __future__ import annotations

import re

import pytest

from tcprepl.limits import MAX_NAME_CHARS, MAX_TOKEN
from tcprepl.protocol.commands import COMMANDS
from tcprepl.protocol.grammar import ABNF, LABEL_SHAPE, NAME_SHAPE, PATTERNS, TOKEN_RANGE


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ("token", ["0", "007", str(MAX_TOKEN)], ["", "-1", "+1", "1_0", " 1", "1" * 20, "²"]),
        ("time", ["0", "-5", "1661000000000"], ["", "--1", "1.5", "1e3"]),
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


def test_every_command_has_its_rule() -> None:
    assert set(re.findall(r'"([A-Z_]+)"', ABNF)) >= set(COMMANDS)


def test_the_descriptions_name_the_limits() -> None:
    assert str(MAX_TOKEN) in TOKEN_RANGE
    assert str(MAX_NAME_CHARS) in NAME_SHAPE
    assert str(MAX_NAME_CHARS) in LABEL_SHAPE
