"""protocol.md as data: its sections, and the blocks and conversations in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

_HEADING = re.compile(r"(#{1,6}) (.+)")
_FENCE = re.compile(r"```(.*)")
_STREAMS = re.compile(r"\(streams: (.+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        info: What stands behind the opening fence.
        lines: Its lines.
        number: Line of the document on which it begins, from 1.
        caption: The bold words of the paragraph before it; empty without any.
    """

    info: str
    lines: tuple[str, ...]
    number: int
    caption: str

    @property
    def kind(self) -> str:
        """The first word of the info string."""
        return self.info.split()[0] if self.info else ""

    @property
    def options(self) -> dict[str, str]:
        """The other words of the info string: ``a`` or ``a=b``."""
        return dict(word.partition("=")[::2] for word in self.info.split()[1:])

    @property
    def text(self) -> str:
        """The lines, each ended by LF."""
        return "".join(f"{line}\n" for line in self.lines)

    @property
    def streams(self) -> list[str]:
        """The streams that the first line of a conversation names."""
        found = _STREAMS.fullmatch(self.lines[0])
        return found[1].split(", ") if found else []


@dataclass(frozen=True)
class Section:
    """What stands between one heading and the next."""

    number: str
    title: str
    lines: tuple[str, ...]
    first: int

    def blocks(self, kind: str | None = None) -> list[Block]:
        """Return the fenced blocks, or those of one kind.

        Raises:
            ValueError: one does not end.
        """
        found = []
        info: str | None = None
        body: list[str] = []
        start = 0
        caption = ""
        for offset, line in enumerate(self.lines):
            fence = _FENCE.fullmatch(line)
            if info is not None:
                if line == "```":
                    found.append(Block(info, tuple(body), start, caption))
                    info = None
                else:
                    body.append(line)
            elif fence:
                info, body, start = fence.group(1).strip(), [], self.first + offset
            elif bold := re.match(r"\*\*(.+?)\*\*", line):
                caption = bold.group(1).rstrip(".")
        if info is not None:
            raise ValueError(f"section {self.number}: a block does not end")
        return [block for block in found if kind in (None, block.kind)]


def sections(text: str) -> Iterator[Section]:
    """Yield the sections of a document with numbered headings."""
    number, title, first = "", "", 1
    body: list[str] = []
    fenced = False
    for count, line in enumerate(text.splitlines(), 1):
        fenced ^= line.startswith("```")
        heading = None if fenced else _HEADING.fullmatch(line)
        if heading is None:
            body.append(line)
            continue
        yield Section(number, title, tuple(body), first)
        words = heading.group(2)
        numbered = re.match(r"([0-9]+(?:\.[0-9]+)*)\.? (.+)", words)
        number, title = numbered.groups() if numbered else ("", words)
        body, first = [], count + 1
    yield Section(number, title, tuple(body), first)


def specification() -> str:
    """Return the text of protocol.md, which comes with the package."""
    return files("tcprepl.conformance").joinpath("protocol.md").read_text(encoding="utf-8")


def conversations(text: str) -> list[tuple[Section, Block]]:
    """Return the conversations of section 8, in order."""
    return [
        (section, block)
        for section in sections(text)
        if section.number.startswith("8.")
        for block in section.blocks("conversation")
    ]
