"""Child processes of the interop tests and benchmarks: start, wait until ready, stop by pid."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tests import warm

T = TypeVar("T")

#: How long a process may take to become ready, to stop, or to do what is waited for.
PATIENCE_S = 60.0


class ProcessError(Exception):
    """A child process ended or stayed silent; the text carries the end of its output."""


def wait_until(
    what: str,
    poll: Callable[[], T | None],
    *,
    timeout_s: float = PATIENCE_S,
    interval_s: float = 0.05,
) -> T:
    """Ask *poll* until its answer is neither None nor False, and return that answer.

    Raises:
        TimeoutError: It did not happen in time; the text says *what* was waited for.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer = poll()
        if answer is not None and answer is not False:
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {timeout_s:g} s")
        time.sleep(interval_s)


def accepts(port: int) -> bool:
    """Return whether something on loopback accepts connections on *port*."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


class Child:
    """One child process whose output goes to a file; stopped by its own pid and no other.

    Args:
        command: What to run.
        log_path: Where its output goes.
        starts_warm: Whether it may be forked (`tests.warm`): not where memory or CPU is measured.
        cwd: Its directory.
        env: What its environment has besides ours.
        user: Whose it is.
        stop_signal: What asks it to end.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        log_path: Path,
        *,
        starts_warm: bool = False,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.command = [str(part) for part in command]
        self.log_path = log_path
        self._stop_signal = stop_signal
        whole = {**os.environ, **(env or {})}
        with log_path.open("ab") as log:
            forked = None
            if starts_warm:
                forked = warm.start(self.command, cwd or Path.cwd(), whole, log, log)
            self._popen: subprocess.Popen[bytes] | warm.Forked = forked or subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=whole,
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether the process still runs."""
        return self._popen.poll() is None

    def output(self) -> str:
        """Return everything that the process wrote so far."""
        return self.log_path.read_text(errors="replace")

    def wait_ready(self, what: str, poll: Callable[[], T | None]) -> T:
        """Wait for *poll*, giving up at once when the process ends.

        Raises:
            ProcessError: The process ended or *poll* was never content.
        """

        def ask() -> T | None:
            if not self.running:
                raise ProcessError(
                    f"{self.command[0]} ended with {self._popen.returncode} before {what}:\n"
                    f"{self.output()[-3000:]}"
                )
            return poll()

        try:
            return wait_until(what, ask)
        except TimeoutError as error:
            raise ProcessError(f"{error}:\n{self.output()[-3000:]}") from error

    def stop(self) -> int:
        """Ask the process to end, insist after a while, and return its exit code."""
        if self.running:
            self._popen.send_signal(self._stop_signal)
            try:
                self._popen.wait(PATIENCE_S / 2)
            except subprocess.TimeoutExpired:
                self._popen.kill()
        return self._popen.wait()

    def kill(self) -> None:
        """End the process without a warning."""
        self._popen.kill()
        self._popen.wait()


class Restartable:
    """One child at a time, started, stopped and killed any number of times.

    A subclass says in `start` what runs, and puts it into ``_child``.
    """

    def __init__(self, log_path: Path) -> None:
        self.log_path = log_path
        self._child: Child | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def child(self) -> Child:
        """The running process."""
        assert self._child is not None, "not started"
        return self._child

    @property
    def pid(self) -> int:
        """The process id."""
        return self.child.pid

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        raise NotImplementedError

    def stop(self) -> int | None:
        """Stop the process, if it runs; return its exit code."""
        child, self._child = self._child, None
        return None if child is None else child.stop()

    def kill(self) -> None:
        """End the process without a warning."""
        self.child.kill()
        self._child = None

    def close(self) -> None:
        """Stop for good."""
        self.stop()

    def log(self) -> str:
        """Return what the process logged so far, over all its starts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def wait_for_log(self, text: str) -> None:
        """Wait until the log holds *text*."""
        self.child.wait_ready(f"{text!r} in the log", lambda: text in self.log())


def cpu_seconds(pid: int) -> float:
    """Return the CPU time (user and system, all threads) that process *pid* has used."""
    # The second field may hold blanks and brackets: count from the last bracket.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Return how much memory process *pid* holds in RAM."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
