"""How far something long is, for a person at a terminal: done, rate, left. Nothing into a pipe."""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import suppress
from typing import Final, TextIO

from tcprepl.web.amounts import duration, size

#: How often the line is written.
EVERY_S: Final = 0.25
#: Over how long the rate is measured.
RATE_S: Final = 5.0
#: Back to the start of the line, and away with what is there.
_CLEAR: Final = "\r\x1b[K"


class Progress:
    """One line on stderr that says how far it is, while there is a terminal.

    Use it as a context manager: the line is gone in the end, whatever happens.

    Args:
        what: What is counted, in the plural; ``bytes`` are shown as sizes.
        total: How many there are in all; None if nobody knows.
        out: Where it is shown; stderr by default.
        beside_rows: Whether rows are printed meanwhile: it is not shown where they are.

    Attributes:
        doing: What is done, in a word; empty where that needs none.
        done: How many have been done.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        out: TextIO | None = None,
        *,
        beside_rows: bool = False,
    ) -> None:
        self.doing = ""
        self.done = 0
        self.total = total
        self._what = what
        self._out = sys.stderr if out is None else out
        self._shown = self._out.isatty() and not (beside_rows and sys.stdout.isatty())
        self._looks = [(time.monotonic(), 0)]
        self._told_s = self._looks[0][0]

    def begin(self, doing: str, total: int, done: int = 0) -> None:
        """Begin with the next part, of which so much was done before."""
        self.doing, self.total, self.done = doing, total, done
        self._looks = [(time.monotonic(), done)]

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._write(_CLEAR)

    def add(self, count: int = 1) -> None:
        """Note that *count* more have been done."""
        self.at(self.done + count)

    def of(self, done: int, total: int) -> None:
        """Note that *done* of *total* have been done."""
        self.total = total
        self.at(done)

    def at(self, done: int) -> None:
        """Note that *done* have been done in all."""
        self.done = done
        if not self._shown:
            return
        now = time.monotonic()
        if now - self._told_s < EVERY_S:
            return
        self._told_s = now
        self._looks.append((now, done))
        while len(self._looks) > 2 and now - self._looks[1][0] >= RATE_S:
            del self._looks[0]
        text = self.words(now).replace("\u202f", " ")
        # The cursor waits at the start, so that a line of the log overwrites this one.
        self._write(f"{_CLEAR}{text[: shutil.get_terminal_size().columns - 1]}\r")

    def words(self, now: float) -> str:
        """Return how far it is."""
        began, before = self._looks[0]
        rate = (self.done - before) / max(now - began, 1e-6)
        text = f"{self.doing}: " if self.doing else ""
        text += self._count(self.done)
        if self.total is not None:
            text += f" of {self._count(self.total)}"
        text = f"{text} {self._what}".removesuffix(" bytes")
        if self.total is None:
            return f"{text}, {self._count(rate)}/s"
        percent = min(100.0, 100.0 * self.done / max(self.total, 1))
        text += f", {percent:.0f} %, {self._count(rate)}/s"
        if rate > 0 and self.done < self.total:
            text += f", {duration((self.total - self.done) / rate)} left"
        return text

    def _count(self, count: float) -> str:
        if self._what == "bytes":
            return size(count)
        return f"{count:,.0f}"

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self._out.write(text)
            self._out.flush()
