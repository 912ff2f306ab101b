"""The examples do what they say, through kills of everybody in the middle."""

from __future__ import annotations

import collections
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import (
    ROOT,
    Running,
    Server,
    environment,
    program,
    tcprepl,
    wait_until,
)

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

EXAMPLES = ROOT / "tests" / "examples"
USERS = 97


def in_table(path: Path) -> dict[str, int]:
    """Return how often each user is counted in a worker's table."""
    connection = sqlite3.connect(path)
    try:
        return dict(connection.execute("SELECT user_id, count FROM changes"))
    except sqlite3.OperationalError:
        return {}  # it has just been started
    finally:
        connection.close()


def in_journal(path: Path) -> list[list[str]]:
    """Return the rows of the journal that reader.js keeps."""
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.exists() else ""
    return [row for line in whole.splitlines() for row in json.loads(line)["rows"]]


def in_shell_journal(path: Path) -> list[list[str]]:
    """Return the rows of the journal that reader.sh keeps."""
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line.partition(" ")[2]) for line in whole.splitlines()]


class Reading:
    """A reader: its command, and what it has."""

    def __init__(self, words: list[str], found: Callable[[Path], object]) -> None:
        self.words = words
        self.found = found

    def command(self, server: Server, path: Path) -> list[str]:
        """Return its command line."""
        if self.words[0] == "bash":
            return [*self.words, "127.0.0.1", str(server.port), "device_lists", str(path)]
        streams = ["device_lists"] if self.words[0].endswith("node") else []
        return [*self.words, server.address, str(path), *streams]

    def count(self, path: Path) -> int:
        """Return how many rows it has."""
        found = self.found(path)
        return sum(found.values()) if isinstance(found, dict) else len(found)  # type: ignore[arg-type]

    def holds(self, path: Path, rows: list[list[str]]) -> bool:
        """Whether it has *rows*, each once."""
        found = self.found(path)
        if isinstance(found, dict):
            return found == collections.Counter(user for (user,) in rows)
        return [row[:1] for row in found] == rows  # type: ignore[attr-defined]


def python(name: str) -> list[str]:
    """Return the command of an example in Python."""
    return [sys.executable, str(EXAMPLES / name)]


READERS = {
    "twisted": (python("worker_twisted.py"), in_table),
    "asyncio": (python("worker_asyncio.py"), in_table),
    "javascript": (["node", str(EXAMPLES / "javascript" / "reader.js")], in_journal),
    "shell": (["bash", str(EXAMPLES / "shell" / "reader.sh")], in_shell_journal),
}
WRITERS = {
    "asyncio": python("writer.py"),
    "javascript": ["node", str(EXAMPLES / "javascript" / "writer.js")],
    "shell": ["bash", str(EXAMPLES / "shell" / "writer.sh")],
}


def writing(kind: str, server: Server, path: Path, where: Path) -> Running:
    """Start a writer of the rows in *path*."""
    words = WRITERS[kind]
    if kind != "shell":
        return Running([*words, server.address, "device_lists", "importer", str(path)], where, kind)
    told = f"exec {' '.join(words)} 127.0.0.1 {server.port} device_lists importer < {path}"
    return Running(["bash", "-c", told], where, kind)


def end(process: Running) -> None:
    """Kill a process, and those that it has started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.kill()


@pytest.mark.parametrize(
    ("reader", "writer", "many"),
    [
        ("twisted", "asyncio", 4_000),
        ("asyncio", "javascript", 4_000),
        ("javascript", "asyncio", 4_000),
        ("shell", "shell", 400),
    ],
)
def test_every_row_once_through_kills(reader: str, writer: str, many: int, tmp_path: Path) -> None:
    """The server, the writer and the reader are killed while rows are under way."""
    program("node")
    rows = [[f"@user{number % USERS}:example.com"] for number in range(many)]
    source, kept = tmp_path / "rows.jsonl", tmp_path / "kept"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    reading = Reading(*READERS[reader])
    with Server(tmp_path / "server") as server:

        def read() -> Running:
            return Running(reading.command(server, kept), tmp_path, "reader")

        def write() -> Running:
            return writing(writer, server, source, tmp_path)

        readers, writers = [read()], [write()]
        try:
            for part, victims in ((20, "server"), (10, "writer"), (5, "reader"), (3, "all")):
                wanted = many // part
                wait_until(lambda n=wanted: reading.count(kept) >= n, f"{wanted} rows", 60)  # type: ignore[misc]
                if victims in ("writer", "all"):
                    end(writers[-1])
                    writers.append(write())
                if victims in ("reader", "all"):
                    end(readers[-1])
                    readers.append(read())
                if victims in ("server", "all"):
                    server.process.kill()
                    server.start()
            assert writers[-1].wait() == 0, writers[-1].stderr
            wait_until(lambda: reading.count(kept) >= many, "every row", 60)
        finally:
            for process in (*readers, *writers):
                if process.process.poll() is None:
                    end(process)
    assert reading.holds(kept, rows)
    assert f"{many} rows" in writers[-1].stdout


def test_a_row_that_is_refused_ends_the_writers(tmp_path: Path) -> None:
    """With the server's words."""
    source = tmp_path / "rows.jsonl"
    source.write_text('["@a:x"]\n[5]\n["@b:x"]\n', encoding="utf-8")
    with Server(tmp_path / "server") as server:
        for kind in WRITERS:
            done = writing(kind, server, source, tmp_path)
            assert done.wait() != 0
            assert "row" in done.stderr
            assert "5" in done.stderr


@pytest.fixture
def twist(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts ``twist tcprepl``."""
    started: list[Running] = []

    def start(*words: str) -> Running:
        argv = [sys.executable, "-m", "twisted", "tcprepl", *words]
        started.append(Running(argv, tmp_path, "twist"))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def test_twist_runs_a_server(tmp_path: Path, twist: Callable[..., Running]) -> None:
    """With the options of ``tcprepl serve``; SIGTERM writes everything out."""
    server = Server(tmp_path / "server", server_name="twisted.example")
    data = str(tmp_path / "data")
    words = ["--server-name", "twisted.example", "--listen", server.address, "--data", data]
    process = twist(*words, "--http", f"127.0.0.1:{server.http_port}")
    process.wait_for_output("replication.listening")
    wait_until(lambda: tcprepl("positions", "--from", server.address).returncode == 0, "it answers")
    assert server.publish("device_lists", ["@a:x"]) == [1]
    assert process.stop() == -signal.SIGTERM  # as every program on a Twisted reactor
    again = twist(*words, "--http", f"127.0.0.1:{server.http_port}")
    again.wait_for_output("replication.listening")
    shown = tcprepl("positions", "device_lists", "--from", server.address)
    assert shown.stdout == "device_lists master 1\n"
    # A second one on the same directory ends by itself, and says why.
    other = twist(*words)
    other.wait()
    assert "is in use by process" in other.stdout + other.stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--listen", "nonsense"], "nonsense"),
        (["--config", "no-such-file.yaml"], "no-such-file.yaml"),
        (["--dialect", "0.3"], "0.3"),
    ],
)
def test_twist_says_what_is_wrong_with_an_option(
    words: list[str], complaint: str, twist: Callable[..., Running]
) -> None:
    process = twist(*words)
    assert process.wait() != 0
    assert complaint in process.stdout + process.stderr


@pytest.mark.parametrize("kind", ["twisted", "javascript"])
def test_clients_conform(kind: str, tmp_path: Path) -> None:
    """Tcprepl's own in every dialect, the one in JavaScript in the native one."""
    words = ["conformance", "--listen", "127.0.0.1:0", "--longest-wait", "0"]
    if kind == "twisted":
        command = [*words, "--http", "--", *python("conformance_twisted.py")]
    else:
        skipped = ["1.22", "writer restarted", "1.13", "2017"]
        command = [*words, *(word for name in skipped for word in ("--skip", name))]
        command += ["--", program("node"), str(EXAMPLES / "javascript" / "conformance.js")]
    done = tcprepl(*command)
    assert done.returncode == 0, done.stdout
    assert f": {10 if kind == 'twisted' else 6} passed, 0 failed, 1 not played" in done.stdout


def test_the_server_conforms(tmp_path: Path) -> None:
    """All that can be seen from outside, a restart included."""
    with Server(tmp_path / "server") as server:
        done = tcprepl("conformance", server.address, "--longest-wait", "0", "--json")
        assert done.returncode == 0, done.stdout
        told = json.loads(done.stdout)
        assert told["counts"]["failed"] == 0
        assert told["counts"]["passed"] >= 28
        restart = tmp_path / "restart.sh"
        restart.write_text(f"kill -9 {server.process.pid}\n", encoding="utf-8")
        words = ["--write", "--only", "The server restarts", "--restart", f"bash {restart}"]
        again = subprocess.Popen(
            [sys.executable, "-m", "tcprepl", "conformance", server.address, *words],
            stdout=subprocess.PIPE, text=True, env=environment(), cwd=tmp_path,
        )  # fmt: skip
        wait_until(lambda: server.process.process.poll() is not None, "it is killed")
        server.start()
        out, _ = again.communicate(timeout=60)
        assert again.returncode == 0, out
        assert "1 passed" in out
