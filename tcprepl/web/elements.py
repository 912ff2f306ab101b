"""Elements of the pages, in which a text can be nothing but text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from twisted.python.failure import Failure
from twisted.web.template import Tag, flatten

from tcprepl.protocol.display import displayable

#: What is inside an element.
Node: TypeAlias = "str | Tag | list[Node]"
Nodes: TypeAlias = "Iterator[Node]"


def element(tag: str, /, *children: Node, **attributes: str) -> Tag:
    """Return an element; what is text in it is escaped, whoever it came from."""
    safe: Any = {key.rstrip("_"): displayable(value) for key, value in attributes.items()}
    return Tag(tag, safe)(*map(_safe, children))


def html(*nodes: Node) -> str:
    """Return *nodes* as HTML."""
    pieces: list[bytes] = []
    failures: list[Failure] = []
    # Nothing here is a Deferred, so that it is done when this returns.
    _ = flatten(None, list(map(_safe, nodes)), pieces.append).addErrback(failures.append)
    if failures:
        failures[0].raiseException()
    return b"".join(pieces).decode()


def _safe(node: Node) -> Node:
    if isinstance(node, str):
        return displayable(node)
    return list(map(_safe, node)) if isinstance(node, list) else node


def quiet(*children: Node) -> Tag:
    """Return what matters less."""
    return element("span", *children, class_="quiet")


def warning(*children: Node) -> Tag:
    """Return what ought to be looked at."""
    return element("span", *children, class_="warn")


def pill(kind: str, text: str) -> Tag:
    """Return a state: *kind* is ``good``, ``warn`` or ``bad``."""
    return element("span", text, class_=f"pill {kind}")


def paragraph(*children: Node) -> Tag:
    """Return a paragraph that matters less."""
    return element("p", *children, class_="quiet")


def table(
    titles: Sequence[str],
    rows: Iterable[Sequence[Node]],
    numeric: Sequence[int] = (),
    raw: Sequence[int] = (),
) -> Tag:
    """Return a table.

    Args:
        titles: Of the columns.
        rows: What is in them.
        numeric: Which columns hold numbers.
        raw: Which hold text that may be broken anywhere.
    """
    classes = {**dict.fromkeys(numeric, "n"), **dict.fromkeys(raw, "row")}
    kinds = [{"class_": classes[index]} if index in classes else {} for index in range(len(titles))]
    head = (element("th", title, **kind) for title, kind in zip(titles, kinds, strict=True))
    body = (
        element(
            "tr",
            *(
                element("td", cell, **kind, **{"data-label": title})
                for title, kind, cell in zip(titles, kinds, row, strict=True)
            ),
        )
        for row in rows
    )
    return element("table", element("thead", element("tr", *head)), element("tbody", *body))
