"""README.md and the pages of ``tcprepl/docs``, as the tests that execute them see them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: Where each is; README.md is the page ``README``.
PATHS = {
    path.stem: path
    for path in (ROOT / "README.md", *sorted((ROOT / "tcprepl" / "docs").glob("*.md")))
}
PAGES = {name: path.read_text(encoding="utf-8") for name, path in PATHS.items()}
#: All of them.
TEXT = "\n".join(PAGES.values())


def blocks(page: str, kind: str) -> list[str]:
    """Return the fenced blocks of one kind of a page."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


def section(page: str, title: str) -> str:
    """Return the text under a heading of a page, up to the next heading."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", PAGES[page], re.M | re.S)
    assert found, f"{PATHS[page]} has no section {title!r}"
    return found[1]


def anchors(page: str) -> set[str]:
    """Return what a link can lead to on a page."""
    titles = re.findall(r"^#+ (.+)$", PAGES[page], re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
