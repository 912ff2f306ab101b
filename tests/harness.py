"""Helpers for tests with real processes: start them, talk to them, wait for what they do.

Nothing here sleeps and hopes: every wait is for a condition and has a deadline, and its
failure shows what the process said. A process is ended by its own id, always.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests import warm
from tests.ports import free_port

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data"
CAPTURE = DATA / "synapse-1.66.0-main.txt"
#: The command, by the interpreter that runs the tests.
TCPREPL = (sys.executable, "-m", "tcprepl")
WAIT_S = 30.0
#: Whether every size is that which a promise names; else the tests are as quick as they can be.
FULL = bool(os.environ.get("TCPREPL_FULL"))

T = TypeVar("T")

_never = threading.Event()


def pause(seconds: float) -> None:
    """Let *seconds* pass between two looks at a condition, or to pace a load."""
    _never.wait(seconds)


def wait_until(condition: Callable[[], T], what: str, timeout_s: float = WAIT_S) -> T:
    """Return the first true answer of *condition*; fail with *what* after the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        pause(0.01)


def program(name: str) -> str:
    """Return the path of a program that a test needs; its absence is a failure, not a skip."""
    path = shutil.which(name)
    assert path, f"{name} is not installed; .ci/run says which packages the tests need"
    return path


def environment() -> dict[str, str]:
    """Return the environment of a child: ours, unbuffered, with the checkout importable."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}


class Running:
    """A child process with its output in files; usable as a context manager that kills it."""

    def __init__(
        self,
        argv: Sequence[str],
        where: Path,
        name: str = "process",
        *,
        stdin: bool = False,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        where.mkdir(parents=True, exist_ok=True)
        count = len(list(where.glob(f"{name}-*.out")))
        self.argv = list(argv)
        self.stdout_path = where / f"{name}-{count}.out"
        self.stderr_path = where / f"{name}-{count}.err"
        env = {**environment(), **(extra or {})}
        with self.stdout_path.open("wb") as out, self.stderr_path.open("wb") as err:
            forked = None if stdin else warm.start(self.argv, where, env, out, err)
            self.process: subprocess.Popen[bytes] | warm.Forked = forked or subprocess.Popen(
                self.argv,
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=where,
                env=env,
                start_new_session=True,
            )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self.process.pid

    @property
    def stdout(self) -> str:
        """Everything it has written to stdout."""
        return self.stdout_path.read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        """Everything it has written to stderr."""
        return self.stderr_path.read_text(encoding="utf-8", errors="replace")

    @property
    def lines(self) -> list[str]:
        """The whole lines of stdout."""
        return self.stdout.split("\n")[:-1]

    def wait_for_output(self, pattern: str, timeout_s: float = WAIT_S) -> re.Match[str]:
        """Wait until stdout or stderr matches *pattern*."""

        def look() -> re.Match[str] | None:
            found = re.search(pattern, self.stdout) or re.search(pattern, self.stderr)
            if not found and self.process.poll() is not None:
                found = re.search(pattern, self.stdout) or re.search(pattern, self.stderr)
                assert found, self._story(f"ended without {pattern!r}")
            return found

        try:
            return wait_until(look, pattern, timeout_s)
        except AssertionError as error:
            raise AssertionError(self._story(str(error))) from None

    def wait_for_lines(self, count: int, timeout_s: float = WAIT_S) -> list[str]:
        """Wait until stdout has at least *count* whole lines, and return them all."""
        try:
            return wait_until(
                lambda: self.lines if len(self.lines) >= count else None,
                f"{count} lines",
                timeout_s,
            )
        except AssertionError as error:
            raise AssertionError(self._story(str(error))) from None

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """Wait for the end and return the exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(self._story(f"still running after {timeout_s:g} s")) from None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = WAIT_S) -> int:
        """Ask it to end and return its exit code."""
        self.send_signal(number)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """End it without asking (SIGKILL) and reap it; a no-op when it has ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def rss_bytes(self) -> int:
        """Resident memory."""
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def _story(self, what: str) -> str:
        return (
            f"{what}\n$ {' '.join(self.argv)}\nexit code: {self.process.poll()}\n"
            f"--- stdout\n{self.stdout[-2000:]}\n--- stderr\n{self.stderr[-6000:]}"
        )


def tcprepl(
    *args: str, stdin: str | bytes | None = None, timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run ``tcprepl ARGS`` to its end."""
    text = stdin.decode() if isinstance(stdin, bytes) else stdin
    return subprocess.run(
        [*TCPREPL, *args],
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        encoding="utf-8",
        timeout=timeout_s,
        env=environment(),
        check=False,
    )


def start(where: Path, *args: str, name: str | None = None) -> Running:
    """Start ``tcprepl ARGS`` beside the test."""
    return Running([*TCPREPL, *args], where, name or args[0])


class Server:
    """A ``tcprepl serve`` on ports of its own, which it keeps over restarts."""

    def __init__(self, where: Path, *args: str, server_name: str = "example.com") -> None:
        self.where = where
        self.args = args
        self.server_name = server_name
        self.port = free_port()
        self.http_port = free_port()
        self.running: Running | None = None

    @property
    def address(self) -> str:
        """HOST:PORT of the replication listener."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """URL of the HTTP listener."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def process(self) -> Running:
        """The process, which has to run."""
        assert self.running is not None
        return self.running

    def start(self) -> Running:
        """Start it and wait until it says that it is ready."""
        self.running = start(
            self.where,
            "serve",
            "--server-name",
            self.server_name,
            "--listen",
            self.address,
            "--http",
            f"127.0.0.1:{self.http_port}",
            "--data",
            str(self.where / "data"),
            *self.args,
        )
        self.running.wait_for_output("serve.ready")
        return self.running

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.running is not None:
            self.running.kill()

    def publish(self, stream: str, *rows: Any, batch: bool = False) -> list[int]:
        """Publish rows over HTTP and return their tokens."""
        query = "?batch=1" if batch else ""
        answer = self.request("POST", f"/_tcprepl/v1/streams/{stream}/rows{query}", list(rows))
        first, last = answer["first"], answer["last"]
        return [first] * len(rows) if batch else list(range(first, last + 1))

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Make one HTTP request with JSON both ways."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=WAIT_S)
        with contextlib.closing(connection):
            connection.request(
                method,
                path,
                body=None if body is None else json.dumps(body, separators=(",", ":")),
                headers={"Content-Type": "application/json"},
            )
            response = connection.getresponse()
            text = response.read().decode()
            assert response.status == 200, f"{method} {path}: {response.status} {text}"
            if "json" in (response.getheader("Content-Type") or ""):
                return json.loads(text)
            return text


class Lines:
    """A plain socket that reads lines: what a program without our library sees."""

    def __init__(self, port: int, timeout_s: float = WAIT_S) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout_s)
        self._buffer = b""

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, text: str | bytes) -> None:
        """Send bytes as they are; the caller ends the line."""
        self.socket.sendall(text.encode() if isinstance(text, str) else text)

    def readline(self) -> str:
        """Return the next line without its LF; an empty string is the end of the stream."""
        while b"\n" not in self._buffer:
            piece = self.socket.recv(65_536)
            if not piece:
                return ""
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def expect(self, prefix: str) -> str:
        """Read on to the first line that begins with *prefix*."""
        seen = []
        while line := self.readline():
            if line.startswith(prefix):
                return line
            seen.append(line)
        raise AssertionError(f"closed without {prefix!r}; saw {seen[-20:]}")

    def until_closed(self) -> Iterator[str]:
        """Yield the lines up to the close."""
        with contextlib.suppress(ConnectionResetError):
            while line := self.readline():
                yield line


class Terminal:
    """A program on a pseudo-terminal, as a person has it: type, and read the screen."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.master, slave = pty.openpty()
        self.screen = b""
        self.process = subprocess.Popen(
            list(argv),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**environment(), "TERM": "dumb"},
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)

    def type(self, text: str) -> None:
        """Type *text* as it is; a line feed is the RETURN key."""
        os.write(self.master, text.encode())

    def _read(self, timeout_s: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], timeout_s)
        if not ready:
            return False
        try:
            piece = os.read(self.master, 65_536)
        except OSError:
            piece = b""
        self.screen += piece
        return bool(piece)

    def expect(self, pattern: str, timeout_s: float = WAIT_S) -> str:
        """Read until the screen matches *pattern*; forget what was before and return the match."""
        deadline = time.monotonic() + timeout_s
        while True:
            text = self.screen.decode(errors="replace").replace("\r", "")
            found = re.search(pattern, text, re.MULTILINE)
            if found:
                self.screen = text[found.end() :].encode()
                return found.group()
            alive = self._read(max(0.0, deadline - time.monotonic()))
            if not alive and (time.monotonic() >= deadline or self.process.poll() is not None):
                raise AssertionError(f"no {pattern!r} on the screen:\n{text}")

    def expect_end(self, timeout_s: float = WAIT_S) -> int:
        """Wait for the program to end and return its exit code."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read(0.05)
        assert self.process.poll() is not None, self.screen.decode(errors="replace")
        return self.process.returncode
