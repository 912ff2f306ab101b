"""A terminal as a whole: a picture that is drawn over the last one, keys, and all as it was after.

However the program ends, by a key, an exception, SIGTERM, a terminal that hangs up, what was on the
terminal before is there again, with its cursor, its echo and its lines.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import termios
import threading
import tty
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, Final, NamedTuple, NoReturn

#: The other screen, without a cursor, and lines that end where the terminal does.
_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"
_LEAVE: Final = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
#: A picture is shown when all of it is there, by terminals that know how.
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
#: Style -> how it is switched on. With NO_COLOR only what is no colour is.
_STYLES: Final = {
    "head": "1",
    "bar": "7",
    "dim": "2",
    "good": "32",
    "late": "33",
    "bad": "31",
    "selected": "7",
}
_PLAIN: Final = frozenset({"head", "bar", "dim", "selected"})
#: What keys send, after ESC.
_KEYS: Final = {
    "[A": "up",
    "OA": "up",
    "[B": "down",
    "OB": "down",
    "[C": "right",
    "OC": "right",
    "[D": "left",
    "OD": "left",
    "[5~": "page up",
    "[6~": "page down",
    "[H": "home",
    "OH": "home",
    "[1~": "home",
    "[F": "end",
    "OF": "end",
    "[4~": "end",
    "[Z": "back tab",
}
_CONTROLS: Final = {
    "\r": "enter",
    "\n": "enter",
    "\t": "tab",
    "\x7f": "backspace",
    "\b": "backspace",
}


class Span(NamedTuple):
    """A piece of a line in one style."""

    text: str
    style: str = ""


#: What is drawn: lines of spans.
Line = Sequence[Span]


def is_interactive() -> bool:
    """Return whether a person sits here, at a terminal that can be drawn on."""
    known = os.environ.get("TERM", "dumb") not in ("", "dumb")
    return known and sys.stdin.isatty() and sys.stdout.isatty()


def width_of(char: str) -> int:
    """Return how many cells a character takes."""
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cells(text: str) -> int:
    """Return how many cells a text takes."""
    return sum(map(width_of, text))


def shortened(text: str, width: int) -> str:
    """Return *text* in at most *width* cells, with a mark where something was cut off."""
    if cells(text) <= width:
        return text
    return f"{cut(text, width - 1).rstrip()}…" if width > 1 else ""


def cut(text: str, width: int) -> str:
    """Return *text* in exactly *width* cells: cut off, or filled with blanks."""
    used = 0
    for at, char in enumerate(text):
        cells = width_of(char)
        if used + cells > width:
            return text[:at] + " " * (width - used)
        used += cells
    return text + " " * (width - used)


def rendered(line: Line, width: int, *, colours: bool) -> str:
    """Return a line as the terminal takes it, exactly *width* cells wide."""
    parts: list[str] = []
    left = width
    for text, style in line:
        if left <= 0:
            break
        cells = min(left, sum(map(width_of, text)))
        left -= cells
        shown = cut(text, cells)
        code = _STYLES.get(style) if colours or style in _PLAIN else None
        parts.append(f"\x1b[{code}m{shown}\x1b[0m" if code else shown)
    return "".join(parts) + " " * left


def keys_in(text: str) -> tuple[list[str], str]:
    """Return the keys that were pressed, and what is the beginning of one.

    Letters are themselves; others have names. An ESC that nothing follows is the key.
    """
    found: list[str] = []
    while text:
        if text[0] != "\x1b":
            found.append(_CONTROLS.get(text[0], text[0]))
            text = text[1:]
            continue
        if text == "\x1b":
            return [*found, "escape"], ""
        if text[1] not in "[O":  # ESC, and something else after it
            found.append("escape")
            text = text[1:]
            continue
        end = next((at for at, char in enumerate(text[2:], 2) if "@" <= char <= "~"), None)
        if end is None:
            return found, text
        name = _KEYS.get(text[1 : end + 1])
        if name is not None:
            found.append(name)
        text = text[end + 1 :]
    return found, ""


class Screen:
    """The terminal, from entering to leaving; use it as a context manager.

    Raises:
        SystemExit: In the main thread, when the process is told to end; the terminal is as it was.
    """

    def __init__(self) -> None:
        self._in = sys.stdin.fileno()
        self._out = sys.stdout.fileno()
        self._colours = not os.environ.get("NO_COLOR")
        self._before: list[Any] = []
        self._handlers: dict[int, Any] = {}
        self._wake_read, self._wake_write = os.pipe()
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)
        self._waking = threading.Lock()
        self._begun = ""
        self._drawn: list[str] = []
        self._drawn_size = (0, 0)

    def __enter__(self) -> Screen:
        self._before = termios.tcgetattr(self._in)
        handlers: dict[int, Callable[[int, FrameType | None], object]] = {
            signal.SIGTERM: self._terminate,
            signal.SIGHUP: self._terminate,
            signal.SIGTSTP: self._suspend,
            signal.SIGWINCH: lambda *_: None,
        }
        self._handlers = {number: signal.signal(number, do) for number, do in handlers.items()}
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        self._give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        with self._waking:
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_write = -1

    def _take(self) -> None:
        tty.setcbreak(self._in)
        self._drawn_size = (0, 0)
        self._write(_ENTER)

    def _give_back(self) -> None:
        try:
            self._write(_LEAVE)
            termios.tcsetattr(self._in, termios.TCSADRAIN, self._before)
        except (OSError, termios.error):
            return  # it is gone

    def _terminate(self, number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    def _suspend(self, number: int, _: FrameType | None) -> None:
        """Stop as Ctrl-Z asks for, with the terminal as it was; go on when told to."""
        self._give_back()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._suspend)
        self._take()

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows, as they are now."""
        try:
            found = os.get_terminal_size(self._out)
        except OSError:
            found = shutil.get_terminal_size()
        return max(1, found.columns), max(1, found.lines)

    def wake(self) -> None:
        """Let `keys` return; may be called from any thread."""
        with self._waking, suppress(BlockingIOError):  # it is awake already
            if self._wake_write >= 0:
                os.write(self._wake_write, b"\0")

    def keys(self, timeout_s: float) -> list[str]:
        """Return the keys that are pressed within *timeout_s*, none if `wake` or a resize came.

        Raises:
            EOFError: The terminal is gone.
        """
        ready, _, _ = select.select([self._in, self._wake_read], [], [], timeout_s)
        if self._wake_read in ready:
            os.read(self._wake_read, 4_096)
        if self._in not in ready:
            return []
        try:
            piece = os.read(self._in, 4_096)
        except OSError:
            piece = b""
        if not piece:
            raise EOFError
        found, self._begun = keys_in(self._begun + piece.decode("utf-8", "ignore"))
        return found

    def draw(self, lines: Sequence[Line]) -> None:
        """Show *lines*; those that are as they were are left alone, so that nothing flickers."""
        width, height = size = self.size
        fresh = [rendered(line, width, colours=self._colours) for line in lines[:height]]
        out = ""
        if size != self._drawn_size:
            self._drawn_size, self._drawn = size, []
            out = "\x1b[2J"
        before = self._drawn
        for at, line in enumerate(fresh):
            if at >= len(before) or line != before[at]:
                out += f"\x1b[{at + 1}H{line}"
        if len(fresh) < len(before):
            out += f"\x1b[{len(fresh) + 1}H\x1b[J"
        self._drawn = fresh
        if out:
            self._write(f"{_BEGIN}{out}{_END}")

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "replace")
        while data:
            data = data[os.write(self._out, data) :]
