"""The terminal: cells, keys, and what is written; the rest is tried on a real one."""

from __future__ import annotations

import os
import signal
import termios
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.cli import screen
from tcprepl.cli.screen import Screen, Span, cells, cut, keys_in, rendered, shortened, width_of


def test_cells() -> None:
    assert [width_of(char) for char in "aé名\u0301"] == [1, 1, 2, 0]
    assert cut("abc", 2) == "ab"
    assert cut("abc", 5) == "abc  "
    assert cut("a名b", 2) == "a "
    assert cut("", 0) == ""


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["C"])), st.integers(0, 40))
def test_what_is_cut_has_the_width(text: str, width: int) -> None:
    assert sum(map(width_of, cut(text, width))) == cells(cut(text, width)) == width
    assert cells(shortened(text, width)) <= width
    assert (shortened(text, width) == text) is (cells(text) <= width)


def test_what_is_shortened_says_so() -> None:
    assert shortened("abc", 3) == "abc"
    assert shortened("a bc", 3) == "a…"
    assert shortened("名名", 3) == "名…"
    assert shortened("abc", 1) == shortened("abc", -2) == ""


def test_a_line_is_as_wide_as_the_terminal() -> None:
    line = [Span("bad", "bad"), Span(" and "), Span("chosen", "selected")]
    assert rendered(line, 12, colours=True) == "\x1b[31mbad\x1b[0m and \x1b[7mchos\x1b[0m"
    assert rendered(line, 3, colours=False) == "bad"
    assert rendered(line, 16, colours=False) == "bad and \x1b[7mchosen\x1b[0m  "
    assert rendered([], 3, colours=True) == "   "


@pytest.mark.parametrize(
    ("text", "keys", "begun"),
    [
        ("q", ["q"], ""),
        ("\x1b[A\x1bOB\x1b[6~x", ["up", "down", "page down", "x"], ""),
        ("\x1b", ["escape"], ""),
        ("a\x1b\x1b[B", ["a", "escape", "down"], ""),
        ("\x1b[", [], "\x1b["),
        ("\x1b[1;5", [], "\x1b[1;5"),
        ("\x1b[1;5A\x1b[99~", [], ""),
        ("\r\t\x7f\x08\n", ["enter", "tab", "backspace", "backspace", "enter"], ""),
        ("\x1b[Zé", ["back tab", "é"], ""),
    ],
)
def test_keys(text: str, keys: list[str], begun: str) -> None:
    assert keys_in(text) == (keys, begun)


@given(st.text(alphabet="\x1b[O1~Aqé;"))
def test_any_input_is_read(text: str) -> None:
    """Nothing loops, and what is left over is the beginning of a key."""
    keys, begun = keys_in(text)
    assert not begun or begun.startswith("\x1b")
    assert "" not in keys


@pytest.mark.parametrize(
    ("term", "on_screen", "interactive"),
    [("xterm", True, True), ("dumb", True, False), ("", True, False), ("xterm", False, False)],
)
def test_whether_a_person_sits_here(
    monkeypatch: pytest.MonkeyPatch, term: str, on_screen: bool, interactive: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    for stream in (screen.sys.stdin, screen.sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: on_screen, raising=False)
    assert screen.is_interactive() is interactive


class Pty:
    """A terminal of which both ends are here.

    Attributes:
        master: The end of who looks.
        slave: The end of the program.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.master, self.slave = os.openpty()
        os.set_blocking(self.master, False)
        termios.tcsetwinsize(self.slave, (5, 20))
        end = SimpleNamespace(fileno=lambda: self.slave)
        monkeypatch.setattr(screen, "sys", SimpleNamespace(stdin=end, stdout=end))

    def seen(self) -> bytes:
        """Return what was written since the last time."""
        found = b""
        with suppress(BlockingIOError):
            while True:
                found += os.read(self.master, 65_536)
        return found

    def close(self) -> None:
        """Close both ends."""
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def pty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pty]:
    """A terminal, with colours."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    made = Pty(monkeypatch)
    yield made
    made.close()


def test_only_what_has_changed_is_written(pty: Pty) -> None:
    """That is why nothing flickers."""
    with Screen() as terminal:
        terminal.draw([[Span("one")], [Span("two")]])
        assert b"one" in pty.seen()
        terminal.draw([[Span("one")], [Span("two")]])
        assert pty.seen() == b""
        terminal.draw([[Span("one")], [Span("three")]])
        assert pty.seen() == b"\x1b[?2026h\x1b[2Hthree" + b" " * 15 + b"\x1b[?2026l"
        terminal.draw([[Span("one")]])
        assert pty.seen() == b"\x1b[?2026h\x1b[2H\x1b[J\x1b[?2026l"
        termios.tcsetwinsize(pty.slave, (5, 10))
        terminal.draw([[Span("one")]])
        assert pty.seen() == b"\x1b[?2026h\x1b[2J\x1b[1Hone       \x1b[?2026l"


def test_keys_and_being_woken(pty: Pty) -> None:
    with Screen() as terminal:
        os.write(pty.master, b"q\x1b[A\x1b[")
        assert terminal.keys(9.0) == ["q", "up"]
        os.write(pty.master, b"B")
        assert terminal.keys(9.0) == ["down"]
        assert terminal.keys(0.0) == []
        terminal.wake()
        terminal.wake()
        assert terminal.keys(9.0) == []
        for _ in range(70_000):
            terminal.wake()  # as full as it can be
        assert terminal.keys(9.0) == []
    terminal.wake()  # nothing any more


def test_all_is_as_it_was_after(pty: Pty) -> None:
    """The modes of the terminal, and who hears of signals."""
    before = termios.tcgetattr(pty.slave)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGWINCH)]

    def told_to_end() -> None:
        with Screen() as terminal:
            assert termios.tcgetattr(pty.slave) != before
            assert terminal.size == (20, 5)
            os.kill(os.getpid(), signal.SIGTERM)
            terminal.keys(9.0)

    with pytest.raises(SystemExit, match="143"):
        told_to_end()
    assert termios.tcgetattr(pty.slave) == before
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGWINCH)] == handlers
    assert pty.seen().endswith(b"\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l")


def test_a_stopped_program_gives_the_terminal_back(
    pty: Pty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And takes it again when it goes on."""
    before = termios.tcgetattr(pty.slave)
    seen: list[bytes] = []

    def stop(_: int, number: int) -> None:
        assert number == signal.SIGTSTP
        assert termios.tcgetattr(pty.slave) == before
        seen.append(pty.seen())

    with Screen() as terminal:
        terminal.draw([[Span("one")]])
        pty.seen()
        monkeypatch.setattr(screen.os, "kill", stop)
        signal.raise_signal(signal.SIGTSTP)
        assert seen[0].endswith(b"\x1b[?1049l")
        assert pty.seen().startswith(b"\x1b[?1049h")
        terminal.draw([[Span("one")]])
        assert b"one" in pty.seen()


def test_a_terminal_that_is_gone(pty: Pty, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a key hears it, and leaving is no fault."""

    def hung_up() -> None:
        with Screen() as terminal:
            os.close(pty.master)
            terminal.keys(9.0)

    with pytest.raises(EOFError):
        hung_up()
    pty.master = os.open(os.devnull, os.O_RDONLY)


def test_a_size_that_cannot_be_told(pty: Pty, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> os.terminal_size:
        raise OSError

    monkeypatch.setattr(screen.os, "get_terminal_size", fail)
    monkeypatch.setenv("COLUMNS", "7")
    monkeypatch.setenv("LINES", "3")
    with Screen() as terminal:
        assert terminal.size[0] == 7
