"""Processes that are started again whatever happens to them, and what is known of their ends."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.harness import Running, pause
from tests.torture.shim import Shim

#: What whoever starts a process allows it to end in.
ALLOWED_S = 10.0
#: Logs lines of a stack, up to the exception.
TRACEBACK = re.compile(
    r"^(?P<indent>[ \t|]*)Traceback \(most recent call last\):\n(?:(?P=indent)[ \t].*\n)*"
    r"(?P=indent)(?P<error>\S.*)$",
    re.MULTILINE,
)
#: The same as a value of a structured log: in one line, with its ends of lines escaped.
EXCEPTION = re.compile(r'exception="(?P<stack>Traceback (?:[^"\\]|\\.)*)"')
#: Without descriptors a program cannot read its own modules, and one that only starts, and says so
#: in no structured log or from within the start of Twisted's reactor, cannot wait for anything.
UNREADABLE = r"Too many open files: '.*\.(py|pyc|so)'|\.so: cannot open shared object file"
STARTING = "_reallyStartRunning"
STARVED = r"\[Errno 24\] Too many open files"
#: What must not be in any log, whatever happened.
NEVER = re.compile(
    "Unhandled [Ee]rror|never retrieved|was never awaited|ResourceWarning|Segmentation|"
    "Exception ignored in"
)


class Actor:
    """A process of the world; it may be killed, stopped, and misled by its disk at any time.

    Args:
        name: What it is called, in logs and reports.
        argv: How to start it.
        where: Where its output goes.
        tally: Where what is done to it is counted.
        shim: Its disk and clock, if they may misbehave.
        explained: Exceptions that its log may show a stack of.
        exits: Exit codes with which it may end by itself.

    Attributes:
        wanted: Whether it is to run.
        frozen: Whether it is stopped by SIGSTOP.
        wrong: What it did that nothing explains.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        where: Path,
        tally: Counter[str],
        *,
        shim: Shim | None = None,
        explained: Sequence[str] = (),
        exits: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.argv = [str(word) for word in argv]
        self.shim = shim
        self.wanted = False
        self.frozen = False
        self.wrong: list[str] = []
        self.descriptors: int | None = None
        self._where = where
        self._tally = tally
        self._explained = re.compile("|".join((UNREADABLE, *explained)))
        self._exits = exits
        self._starved = False
        #: Whether it is known why it does not run.
        self._noted = True
        self._outputs: list[Path] = []
        self.running: Running | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs, frozen or not."""
        return self.running is not None and self.running.process.poll() is None

    @property
    def pid(self) -> int:
        """Id of the process."""
        assert self.running is not None
        return self.running.pid

    def start(self) -> None:
        """Start it; it need not be ready when this returns."""
        self.wanted = True
        self.frozen = self._starved = self._noted = False
        if self.shim is not None:
            self._tally["met a bad disk"] += self.shim.bad_disk
            self.shim.forget()
        extra = {} if self.shim is None else self.shim.environment
        self.running = Running(self.argv, self._where, self.name, extra=extra)
        self._outputs += [self.running.stdout_path, self.running.stderr_path]
        self._tally["starts"] += 1

    def tend(self) -> None:
        """Start it if it is to run and does not; note an end that nothing explains."""
        if not self.wanted or self.alive:
            return
        self.ended()
        self.start()

    def ended(self) -> None:
        """Note why it has ended by itself."""
        if self._noted or self.running is None or self.alive:
            return
        self._noted = True
        code = self.running.process.wait()
        if self.shim is not None and self.shim.killed:
            self.shim.spare()
            self._tally["kills"] += 1
            self._tally[f"killed in {self.shim.killed}"] += 1
        elif code in self._exits or self._starved or (self.shim is not None and self.shim.bad_disk):
            self._tally["gave up"] += 1
        else:
            said = self.running.stderr[-600:]
            self.wrong.append(f"{self.name} ended by itself with {code}: {said}")

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        self.wanted = False
        if self.alive:
            assert self.running is not None
            self.running.kill()
            self._noted = True
            self._tally["kills"] += 1
        else:
            self.ended()

    def freeze(self) -> None:
        """SIGSTOP."""
        if self.alive and not self.frozen:
            self.frozen = True
            os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        if self.frozen:
            self.frozen = False
            if self.alive:
                os.kill(self.pid, signal.SIGCONT)

    def starve(self, spare: int) -> None:
        """Let it open *spare* files more than it has, and then no more: EMFILE."""
        if self.alive:
            self._starved = True
            self._limit(self.open_files() + spare)

    def feed(self) -> None:
        """Let it open files again."""
        if self.alive:
            self._limit(resource.getrlimit(resource.RLIMIT_NOFILE)[1])

    def open_files(self) -> int:
        """Return how many descriptors it has."""
        try:
            return len(os.listdir(f"/proc/{self.pid}/fd"))
        except FileNotFoundError:
            return 0

    def heal(self) -> None:
        """End every fault, and see that it runs."""
        if self.shim is not None:
            self.shim.heal()
        self.thaw()
        self.feed()
        self.tend()

    def end(self) -> None:
        """SIGTERM; it has to end in time."""
        self.wanted = False
        if not self.alive:
            self.ended()
            return
        assert self.running is not None
        began = time.monotonic()
        self.thaw()
        self.running.send_signal(signal.SIGTERM)
        while self.alive and time.monotonic() - began < ALLOWED_S:
            pause(0.02)
        self._tally["ends"] += 1
        if self.alive:
            self.wrong.append(f"{self.name} runs {ALLOWED_S:g} s after SIGTERM")
            self.running.kill()
            self._noted = True
            return
        code = self.running.process.wait()
        # Before it listens to the signal it ends as every process does.
        if code in (0, -signal.SIGTERM):
            self._noted = True
        self.ended()

    def logged(self, words: str) -> int:
        """Return in how many lines its logs say *words*."""
        texts = (path.read_text(encoding="utf-8", errors="replace") for path in self._outputs)
        return sum(words in line for text in texts for line in text.splitlines())

    def log_faults(self) -> list[str]:
        """Return what its logs show and nothing explains."""
        wrong = []
        for path in self._outputs:
            text = path.read_text(encoding="utf-8", errors="replace")
            plain = (match["error"] for match in TRACEBACK.finditer(text))
            errors = [error for error in plain if not re.search(STARVED, error)]
            errors += [
                last_line(match["stack"])
                for match in EXCEPTION.finditer(text)
                if not (STARTING in match["stack"] and re.search(STARVED, match["stack"]))
            ]
            wrong += [
                f"{path.name}: Traceback ... {error}"
                for error in errors
                if not self._explained.search(error)
            ]
            for found in NEVER.finditer(text):
                line = text[text.rfind("\n", 0, found.start()) + 1 :].split("\n", 1)[0]
                wrong.append(f"{path.name}: {line[:300]}")
        return wrong

    def _limit(self, files: int) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (min(files, hard), hard))


def last_line(stack: str) -> str:
    """Return the exception of a stack whose ends of lines are escaped."""
    return stack.rpartition("\\n")[2] or stack
