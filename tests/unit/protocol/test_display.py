"""What a terminal would obey is shown instead."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.limits import SNIPPET_BYTES
from tcprepl.protocol.display import counted, displayable, few, printable, snippet


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fed1", "fed1"),
        ("Zo\u00eb \u65e5\u672c \U0001f600 \u05e9", "Zo\u00eb \u65e5\u672c \U0001f600 \u05e9"),
        ("a\x1b[2Jb", "a\\u001b[2Jb"),
        ("a\x9b2Jb", "a\\u009b2Jb"),
        ("a\x7f\x00", "a\\u007f\\u0000"),
        ("evil\u202egnp.exe", "evil\\u202egnp.exe"),
        ("\u2066a\u2069\u200f\u061c", "\\u2066a\\u2069\\u200f\\u061c"),
        ("a\u200bb\ufeff", "a\\u200bb\\ufeff"),
        ("a\u2028b\r\n\tc", "a\\u2028b\\u000d\\u000a\\u0009c"),
        ("half \ud800", "half \\ud800"),
        ("\U000e0041", "\\udb40\\udc41"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_controls_are_shown_and_letters_stay(text: str, shown: str) -> None:
    """C0, C1, direction, invisible, halves; of all scripts the letters stay."""
    assert displayable(text) == shown


def test_a_traceback_keeps_its_lines() -> None:
    """And nothing else that moves the cursor."""
    assert displayable("a\n\tb\r\x1b", lines=True) == "a\n\tb\\u000d\\u001b"


@given(st.text(st.characters()))
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    """Whatever comes in; a second time changes nothing, and it can be printed."""
    shown = displayable(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in shown)
    assert not any(
        unicodedata.bidirectional(c)
        in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        for c in shown
    )
    assert displayable(shown) == shown
    shown.encode("utf-8")


@given(st.recursive(st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_json_stays_the_same_json(value: object) -> None:
    """A row that is shown can be taken back."""
    text = json.dumps(value, ensure_ascii=False)
    assert json.loads(displayable(text)) == value


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        ("plain", "plain"),
        ("a\nb\x00\u202e", "a\\nb\\x00\\u202e"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("ü" * 40, "ü" * 14 + "..."),
        ("x" * SNIPPET_BYTES, "x" * SNIPPET_BYTES),
        ("a" + " " * 2_000, "a" + " " * 28 + "..."),
        ("my syt_YWxp_abc is", "my <redacted> is"),
    ],
)
def test_snippets(part: str | bytes, shown: str) -> None:
    assert snippet(part) == shown


def test_printable_text_is_left_alone() -> None:
    assert printable("100 % ü") == "100 % ü"
    assert printable("a\tb") == "a\\tb"


def test_one_of_a_thing_is_not_many() -> None:
    assert [counted(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert counted(1_500, "row", "1,500") == "1,500 rows"


def test_of_many_the_first_few_are_said_and_how_many_more_there_are() -> None:
    assert few([]) == []
    assert few(range(20), say=hex)[18:] == ["0x12", "0x13"]
    assert few(range(21), say=hex)[18:] == ["0x12", "0x13", "and 1 more"]
    assert few("abcd", "letter", most=2) == ["a", "b", "and 2 more letters"]
