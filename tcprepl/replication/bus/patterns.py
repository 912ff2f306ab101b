"""Patterns of names as Redis has them: ``*``, ``?``, ``[a-z]``, ``[^x]``, a backslash to quote.

Matching takes at most the product of both lengths: there is only ever one star to go back to.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_STAR: Final = ord("*")
_ANY: Final = ord("?")
_SET: Final = ord("[")
_QUOTE: Final = ord("\\")


class _Set(NamedTuple):
    """What stands between brackets."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool


class Pattern:
    """A pattern, ready to be matched.

    Args:
        text: The pattern.
    """

    __slots__ = ("_parts", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        #: A byte, a set, or None for any byte; a star is True.
        self._parts: list[int | _Set | bool | None] = []
        position = 0
        while position < len(text):
            byte = text[position]
            position += 1
            if byte == _STAR:
                if not self._parts or self._parts[-1] is not True:
                    self._parts.append(True)
            elif byte == _ANY:
                self._parts.append(None)
            elif byte == _SET:
                found, position = _read_set(text, position)
                self._parts.append(found)
            else:
                if byte == _QUOTE and position < len(text):
                    byte = text[position]
                    position += 1
                self._parts.append(byte)

    def matches(self, name: bytes) -> bool:
        """Return whether *name* is of this pattern."""
        parts = self._parts
        at = part = 0
        star, resume = -1, 0
        while at < len(name):
            if part < len(parts) and parts[part] is True:
                star, resume = part, at
                part += 1
            elif part < len(parts) and _fits(parts[part], name[at]):
                part += 1
                at += 1
            elif star >= 0:
                part = star + 1
                resume += 1
                at = resume
            else:
                return False
        return all(rest is True for rest in parts[part:])


def _fits(part: int | _Set | bool | None, byte: int) -> bool:
    if isinstance(part, _Set):
        return any(low <= byte <= high for low, high in part.ranges) is not part.negated
    return part is None or part == byte


def _read_set(text: bytes, position: int) -> tuple[_Set, int]:
    """Return what stands between brackets, and where it ends; one that is open ends the text."""
    negated = text[position : position + 1] == b"^"
    position += negated
    ranges: list[tuple[int, int]] = []
    while position < len(text) and text[position] != ord("]"):
        if text[position] == _QUOTE and position + 1 < len(text):
            position += 1
            ranges.append((text[position], text[position]))
            position += 1
        elif text[position + 1 : position + 2] == b"-" and position + 2 < len(text):
            low, high = sorted((text[position], text[position + 2]))
            ranges.append((low, high))
            position += 3
        else:
            ranges.append((text[position], text[position]))
            position += 1
    return _Set(tuple(ranges), negated), position + 1
