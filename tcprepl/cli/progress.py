"""How far something long is, for a person at a terminal: done, rate, left. Nothing into a pipe."""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Final, TextIO

from tcprepl.web.elements import duration, size

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

    Attributes:
        done: How many have been done.
    """

    def __init__(self, what: str, total: int | None = None, out: TextIO | None = None) -> None:
        self.done = 0
        self.total = total
        self._what = what
        self._out = sys.stderr if out is None else out
        self._shown = self._out.isatty()
        self._looks = [(time.monotonic(), 0)]
        self._told_s = self._looks[0][0]

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown:
            self._write(_CLEAR)

    def add(self, count: int = 1) -> None:
        """Note that *count* more have been done."""
        self.at(self.done + count)

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
        text = f"{self._count(self.done)} {self._what}".removesuffix(" bytes")
        if self.total is None:
            return f"{text}, {self._count(rate)}/s"
        percent = min(100.0, 100.0 * self.done / max(self.total, 1))
        text = f"{text} of {self._count(self.total)}, {percent:.0f} %, {self._count(rate)}/s"
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
