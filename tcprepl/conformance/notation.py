"""The notation of conversations (protocol.md section 8)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from tcprepl.conformance.document import Block

_LINE = re.compile(r"([SC])(2?)>(?: (.*))?")
_HEX = re.compile(rb"<([0-9A-F]{2})>")
_MANY = re.compile(r"<([0-9]+) bytes>")


@dataclass(frozen=True)
class Step:
    """One line of a conversation.

    Attributes:
        kind: ``S``, ``C`` or ``(``.
        text: What follows the mark; of a direction what is between the brackets.
        number: Its line in the document.
        connection: Which connection it is about, from 1.
    """

    kind: str
    text: str
    number: int
    connection: int = 1

    def __str__(self) -> str:
        if self.kind == "(":
            return f"({self.text})"
        return f"{self.kind}{self.connection if self.connection > 1 else ''}> {self.text}"


class Unexpected(AssertionError):
    """Something else happened than is written."""


def require(true: bool, text: str) -> None:
    """Raise `Unexpected` with *text* unless *true*."""
    if not true:
        raise Unexpected(text)


class ConversationFailed(AssertionError):
    """A conversation did not go as written.

    Attributes:
        step: The line at which it went astray.
        got: What happened instead.
    """

    def __init__(self, step: Step, got: str) -> None:
        super().__init__(f"protocol.md:{step.number}: {step}\n{got}")
        self.step = step
        self.got = got


def parse(block: Block) -> list[Step]:
    """Return the steps of a conversation.

    Raises:
        ValueError: a line is not in the notation.
    """
    steps = []
    for number, line in enumerate(block.lines, block.number + 1):
        if found := _LINE.fullmatch(line):
            mark, second, text = found.groups()
            steps.append(Step(mark, text or "", number, 2 if second else 1))
        elif line.startswith("(") and line.endswith(")"):
            steps.append(Step("(", line[1:-1], number))
        else:
            raise ValueError(f"protocol.md:{number}: not in the notation: {line}")
    return steps


def written_bytes(text: str) -> bytes:
    """Return the bytes that a line of a conversation stands for."""
    many = _MANY.fullmatch(text)
    if many:
        return b"x" * int(many.group(1))
    out = text.replace("<CR>", "\r").encode()
    return _HEX.sub(lambda found: bytes([int(found[1], 16)]), out) + b"\n"


def matches(pattern: str, line: str) -> bool:
    """Return whether *line* is what *pattern* says, ``...`` standing for some text."""
    parts = map(re.escape, pattern.replace("<CR>", "\r").split("..."))
    return re.fullmatch(".+".join(parts), line) is not None


def json_values(text: str) -> list[str]:
    """Return the JSON values that stand one behind the other in *text*, as they are written."""
    decoder = json.JSONDecoder()
    found = []
    while text:
        _, end = decoder.raw_decode(text)
        found.append(text[:end])
        text = text[end:].lstrip()
    return found


class Talker(Protocol):
    """The end of a connection that the conversation speaks for: sends bytes, keeps what comes."""

    def __init__(self) -> None:
        self.received = b""
        self.read_to = 0
        self.sent = 0
        self.closed = False
        self.news: Callable[[], None] = lambda: None

    def dataReceived(self, data: bytes) -> None:
        """Keep *data* (Twisted calls this)."""
        self.received += data
        self.news()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Note the end (Twisted calls this)."""
        self.closed = True
        self.news()

    def take_line(self) -> str | None:
        """Return the next line that came, without LF; None while there is none."""
        end = self.received.find(b"\n", self.read_to)
        if end < 0:
            return None
        line = self.received[self.read_to : end]
        self.read_to = end + 1
        return line.decode(errors="replace")
