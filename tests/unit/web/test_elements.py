"""Elements, and numbers for people."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from tcprepl.web.elements import duration, element, html, number, size


def text(html: str) -> str:
    """Return what a person reads."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html.replace("\u202f", " "))).strip()


class Balanced(HTMLParser):
    """Checks that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """Note it, unless it has no end."""
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        """It is closed at once."""

    def handle_endtag(self, tag: str) -> None:
        """Close it."""
        assert self.open.pop() == tag


def test_what_is_text_stays_text() -> None:
    """In an element, in an attribute, in a list; what a terminal would obey is written out."""
    made = html(element("p", "<b>", ["&", element("i", "\x1b")], class_='" onload="x'), "<")
    assert made == ('<p class="&quot; onload=&quot;x">&lt;b&gt;&amp;<i>\\u001b</i></p>&lt;')


def test_what_cannot_be_drawn_is_raised() -> None:
    with pytest.raises(Exception, match="object"):
        html(object())  # type: ignore[arg-type]


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
