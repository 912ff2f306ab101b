"""Elements."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from tcprepl.web.elements import element, html


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
