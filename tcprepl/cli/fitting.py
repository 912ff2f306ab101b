"""Text in the columns of a terminal: names are shortened, lines go on below, no figure is cut.

Half of a number would be another number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from tcprepl.cli.screen import Line, Span, cells, shortened

#: What the names of facts take.
_NAMES: Final = 13
#: Less than this beside a name is no room: what is said of it stands below.
_LEAST: Final = 20
#: Fewer values make no curve.
_LEAST_VALUES: Final = 10
_BLOCKS: Final = "▁▂▃▄▅▆▇█"


def thin(text: str) -> str:
    """Return *text* with the blanks of a terminal."""
    return text.replace("\u202f", " ")


def flowing(pieces: Iterable[str], width: int) -> list[str]:
    """Return *pieces* one behind the other, in lines; one that fits into no line is shortened.

    If it is a figure it is left out.
    """
    lines: list[str] = []
    for piece in pieces:
        fits = cells(piece) <= width
        text = piece if fits else "" if piece[0].isdigit() else shortened(piece, width)
        if lines and cells(lines[-1]) + 1 + cells(text) <= width:
            lines[-1] += f" {text}"
        elif text:
            lines.append(text)
    return [thin(line) for line in lines]


def wrapped(text: str, width: int) -> list[str]:
    """Return *text* in lines; a figure and its unit stay together."""
    return flowing(re.sub(r"(?<=[0-9]) s\b", "\u202fs", text).split(" "), width)


def facts_in(width: int, facts: Iterable[tuple[str, str]]) -> list[Line]:
    """Return names, and what is said of them, beside or below them."""
    lines: list[Line] = []
    for name, text in facts:
        beside = width >= _NAMES + _LEAST
        below = wrapped(text, width - _NAMES if beside else width)
        if beside:
            first, *below = below or [""]
            lines.append([Span(f"{name:{_NAMES}}", "dim"), Span(first)])
        else:
            lines.append([Span(name, "dim")])
        lines += [[Span(" " * _NAMES * beside + line)] for line in below]
    return lines


def late_in(width: int, late: Sequence[tuple[str, str]]) -> list[Line]:
    """Return names, and how late each of them is."""
    pieces = ["behind in it:"]
    for at, (name, lag) in enumerate(late, 1):
        end = "," if at < len(late) else ""
        who = shortened(name, width - cells(f" by {lag}{end}"))
        text = f"{who} by {lag}{end}" if who else f"{lag}{end}"
        pieces.append(text if cells(text) <= width else lag)
    return [[Span(line, "late")] for line in flowing(pieces, width)]


def curve_in(width: int, what: str, values: Sequence[float]) -> list[Line]:
    """Return the newest values as blocks, with the largest."""
    top = max(values, default=0.0)
    if not top:
        text = f"{what}: 0 in the last {len(values)} looks"
        return [[Span(line, "dim")] for line in wrapped(text, width)]
    steps = len(_BLOCKS) - 1
    blocks = "".join(_BLOCKS[round(value / top * steps)] for value in values)
    text = f"{what}, at most {top:.1f}"
    room = width - cells(text) - 2
    if room >= min(len(blocks), _LEAST_VALUES):
        return [[Span(f"{text}  ", "dim"), Span(blocks[-room:])]]
    return [*([Span(line, "dim")] for line in wrapped(text, width)), [Span(blocks[-width:])]]


def columns_in(
    width: int, head: Sequence[str], widths: Sequence[int], spared: Sequence[str]
) -> dict[int, int]:
    """Return the columns of a table that fit, and their widths; the first one is shortened.

    Args:
        width: That of the terminal.
        head: The names of the columns.
        widths: What they take.
        spared: Those that are left out, if need be, the first one first.
    """
    found = dict(enumerate(widths))

    def excess() -> int:
        return sum(found.values()) + 2 * (len(found) - 1) - width

    for name in spared:
        if excess() <= 0:
            break
        if name in head:
            del found[head.index(name)]
    if excess() > 0:
        found[0] -= excess()
    if found[0] < 2 and len(found) > 1:
        del found[0]
    return found
