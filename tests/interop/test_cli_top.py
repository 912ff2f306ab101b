"""``tcprepl top`` on a real pseudo-terminal, as a terminal emulator shows it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyte
import pytest

from tests.harness import TCPREPL, WAIT_S, Lines, Server, environment

COLUMNS, ROWS = 100, 24


class Screen:
    """A program on a terminal of its own.

    Attributes:
        raw: All that it has written.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.master, self._slave = pty.openpty()
        self._emulated = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._emulated)
        self.raw = b""
        self._resize(COLUMNS, ROWS)
        self.before = termios.tcgetattr(self._slave)
        self.process = subprocess.Popen(
            list(argv),
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
            # The terminal is its own, as that of a shell is: signals of the kernel reach it.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
            env={**environment(), "TERM": "xterm-256color"},
        )

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self._slave)

    def _resize(self, columns: int, rows: int) -> None:
        termios.tcsetwinsize(self._slave, (rows, columns))

    def resize(self, columns: int, rows: int) -> None:
        """Make the window another size; the kernel tells the program."""
        self._emulated.resize(rows, columns)
        self._emulated.reset()
        self._resize(columns, rows)

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.master, keys.encode())

    @property
    def lines(self) -> list[str]:
        """What is on the screen."""
        return [line.rstrip() for line in self._emulated.display]

    @property
    def modes(self) -> list[int]:
        """How the terminal takes what is typed."""
        return termios.tcgetattr(self._slave)[:4]

    def _read(self, timeout_s: float) -> None:
        ready, _, _ = select.select([self.master], [], [], timeout_s)
        if ready:
            piece = os.read(self.master, 65_536)
            self.raw += piece
            self._stream.feed(piece)

    def expect(self, text: str) -> None:
        """Read until *text* is on the screen."""
        self.until(lambda: any(text in line for line in self.lines))

    def until(self, condition: Callable[[], bool]) -> None:
        """Read until *condition* holds."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, "\n".join(self.lines)
            self._read(0.2)

    def end(self) -> int:
        """Wait for the end, and return the exit code."""
        deadline = time.monotonic() + WAIT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "\n".join(self.lines)
            self._read(0.05)
        self._read(0.0)
        return self.process.returncode


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two peers and some rows."""
    with (
        Server(tmp_path_factory.mktemp("top")) as running,
        Lines(running.port) as ann,
        Lines(running.port) as bob,
    ):
        for caller, name in ((ann, "ann"), (bob, "bob")):
            caller.send(f"NAME {name}\nREPLICATE\n")
            caller.expect("POSITION")
        running.publish("device_lists", ["@a:x"], ["@b:x"])
        yield running


def top(server: Server, *args: str) -> Screen:
    """Start the program."""
    return Screen([*TCPREPL, "top", "--to", server.url, "--interval", "0.2", *args])


def left(screen: Screen) -> bool:
    """Whether the terminal is as it was: its modes, its cursor, its screen."""
    leaving = b"\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
    return screen.modes == screen.before[:4] and leaving in screen.raw


def test_a_walk(server: Server) -> None:
    """Choose, look closer, back, sort, filter, help, resize, end."""
    with top(server, "--sort", "peer") as screen:
        screen.expect("device_lists")
        assert screen.lines[0].startswith("example.com master  up ")
        assert screen.lines[1].startswith("PEER")
        assert screen.lines[ROWS - 1].startswith(" q end")
        screen.type("j\r")
        screen.expect("has everything")
        screen.type("\x1b[D")
        screen.expect("PEER")
        screen.type("\t\r")
        screen.expect("since start  2 rows")
        screen.type("\x1b")
        screen.expect("PEER")
        screen.type("\t/bo")
        screen.expect("only with: bo_")
        screen.type("\r")
        screen.expect("/ only: bo")
        assert not any(line.startswith("ann ") for line in screen.lines)
        screen.type("?")
        screen.expect("pause: the picture stays as it is")
        screen.type("x")
        screen.resize(50, 12)
        screen.until(lambda: screen.lines[11].startswith(" q end"))
        assert max(map(len, screen.lines)) <= 50
        screen.type("q")
        assert screen.end() == 0
        assert left(screen)


@pytest.mark.parametrize(
    ("how", "code"), [("typed", 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_the_terminal_is_given_back(server: Server, how: signal.Signals | str, code: int) -> None:
    """Whatever ends it."""
    with top(server) as screen:
        screen.expect("ann")
        assert screen.modes != screen.before[:4]
        if isinstance(how, signal.Signals):
            screen.process.send_signal(how)
        else:
            screen.type("\x03")
        assert screen.end() == code
        assert left(screen)


def test_a_fault_is_shown_after_the_terminal_was_given_back(server: Server) -> None:
    """What went wrong stands on the screen that was there before."""
    program = (
        "import sys; from tcprepl.cli import main, topping\n"
        "def lines(*_): raise RuntimeError('a fault of ours')\n"
        "topping.Top.lines = lines; main()\n"
    )
    argv = [sys.executable, "-c", program, "top", "--to", server.url]
    with Screen(argv) as screen:
        assert screen.end() == 1
        assert left(screen)
        assert screen.raw.rindex(b"a fault of ours") > screen.raw.rindex(b"\x1b[?1049l")


def test_a_server_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    """What was seen stays, and why there is nothing newer is told."""
    with Server(tmp_path) as server, top(server) as screen:
        screen.expect("nobody is late")
        assert server.process.stop() == 0
        screen.expect("does not answer")
        server.start()
        screen.expect("nobody is late")
        screen.type("q")
        assert screen.end() == 0


def test_into_a_pipe_go_pictures_and_objects(server: Server) -> None:
    """Nothing that a terminal would obey."""
    for args in (("--once",), ("--once", "--json")):
        done = subprocess.run(
            [*TCPREPL, "top", "--to", server.url, *args],
            capture_output=True,
            env=environment(),
            timeout=60,
            check=True,
        )
        assert b"\x1b" not in done.stdout
        assert b"bob" in done.stdout
    assert json.loads(done.stdout)["server_name"] == "example.com"
