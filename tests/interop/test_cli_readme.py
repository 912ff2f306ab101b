"""The programs of the documentation, and the quick start of README.md, run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from tests import postgres_world
from tests.harness import ROOT, Lines, Running, Server, environment, wait_until
from tests.pages import blocks, section
from tests.ports import free_port


def program(where: Path, text: str) -> Running:
    """Start a Python program."""
    where.mkdir(exist_ok=True)
    path = where / "program.py"
    path.write_text(text, encoding="utf-8")
    return Running([sys.executable, str(path)], where)


def counted(path: Path, token: int) -> bool:
    """Tell whether a worker's positions are at *token*."""
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT token FROM tcprepl_positions").fetchall() == [(token,)]


def test_writer_program(tmp_path: Path) -> None:
    """Ten lines make a server that publishes; it can be read at once."""
    text = blocks("python", "python")[0]
    port = free_port()
    settings = (
        f'{{"server_name": "example.com", "replication": {{"listen": "127.0.0.1:{port}"}}, '
        '"http": {"listen": "127.0.0.1:0"}}'
    )
    assert '{"server_name": "example.com"}' in text
    text = text.replace('{"server_name": "example.com"}', settings)
    with program(tmp_path / "writer", text) as writer:
        writer.wait_for_output("^typing is at 1$|typing is at 1\n")
        with Lines(port) as reader:
            reader.send("REPLICATE typing * 0\n")
            line = reader.expect("RDATA typing")
            assert line.endswith('["!room:example.com",["@alice:example.com"]]')


def test_worker_program(tmp_path: Path) -> None:
    """Ten lines make a worker that gets what was there, and resumes after its death."""
    text = blocks("python", "python")[1]
    with Server(tmp_path / "server") as server:
        assert "tcp:127.0.0.1:9092" in text
        text = text.replace("tcp:127.0.0.1:9092", f"tcp:{server.address}")
        server.publish("typing", ["!room:example.com", ["@alice:example.com"]])
        for token in (1, 2):
            with program(tmp_path / "worker", text) as worker:
                assert worker.wait_for_lines(1) == [
                    f"typing {token} !room:example.com ['@alice:example.com']"
                ]
                # what is printed counts a moment later, and a row that did not comes again
                wait_until(partial(counted, tmp_path / "worker" / "worker.db", token), "it counts")
            server.publish("typing", ["!room:example.com", ["@alice:example.com"]])


@pytest.mark.parametrize("number", [2, 4], ids=["twisted", "asyncio"])
def test_publishing_program(tmp_path: Path, number: int) -> None:
    """It finds out how much was taken before, and goes on."""
    with Server(tmp_path / "server") as server:
        text = blocks("python", "python")[number]
        assert "ReplicationWriter" in text
        text = text.replace("127.0.0.1:9092", server.address)
        for before in (0, 1):
            with program(tmp_path / "writer", text) as writer:
                assert writer.wait() == 0
                assert writer.stdout == f"{before} taken before; typing is at {before + 1}\n"


@pytest.mark.parametrize("number", [3, 5], ids=["asyncio", "script"])
def test_following_program(tmp_path: Path, number: int) -> None:
    """It gets what was there, and what comes; the one with positions resumes."""
    with Server(tmp_path / "server") as server:
        text = blocks("python", "python")[number]
        assert "follow(" in text
        text = text.replace("127.0.0.1:9092", server.address)
        server.publish("typing", ["!room:example.com", ["@alice:example.com"]])
        with program(tmp_path / "worker", text) as worker:
            assert worker.wait_for_lines(1) == ["typing 1 !room:example.com"]
            server.publish("typing", ["!room:example.com", []])
            assert worker.wait_for_lines(2)[1] == "typing 2 !room:example.com"
            server.publish("typing", ["!room:example.com", []])
            worker.wait_for_lines(3)
        if "positions" in text:
            server.publish("typing", ["!room:example.com", ["@alice:example.com"]])
            with program(tmp_path / "worker", text) as worker:
                # the last one may not have counted when its worker was killed
                assert worker.wait_for_lines(1)[0] in (
                    "typing 3 !room:example.com",
                    "typing 4 !room:example.com",
                )


@pytest.mark.interop
def test_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command of the tutorial, one after the other, prints what stands below it."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    (text,) = blocks("tutorial", "python")
    (tmp_path / "worker.py").write_text(text, encoding="utf-8")
    server: Running | None = None
    try:
        for typed in re.findall(
            r"^\$ (.*)\n((?:[^$].*\n)*)", "".join(blocks("tutorial", "console")), re.MULTILINE
        ):
            command, wanted = typed
            if command.endswith(" &"):
                server = Running(["sh", "-c", f"exec {command.removesuffix(' &')}"], tmp_path)
                server.wait_for_output("Ctrl-C stops it")
            elif command == "kill -9 $!":
                assert server is not None
                server.kill()
            elif "worker.py" in command:
                # killed as soon as all is counted, however long a machine takes for that
                total = int(wanted.split()[-2])
                with Running([sys.executable, "worker.py"], tmp_path, "worker") as worker:
                    worker.wait_for_output(f"{re.escape(wanted)}$")
                    wait_until(partial(has_counted, tmp_path / "worker.db", total), "the table")
            else:
                shown = re.escape(wanted).replace(r"\.\.\.", ".*")
                done = subprocess.run(
                    ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60
                )
                assert re.fullmatch(shown, done.stdout), (command, done)
    finally:
        if server is not None:
            server.kill()


def has_counted(path: Path, total: int) -> bool:
    """Return whether the worker of the tutorial has committed that many rows."""
    with closing(sqlite3.connect(path)) as table:
        return table.execute("SELECT SUM(number) FROM changes").fetchone() == (total,)


@pytest.mark.interop
@pytest.mark.timeout(300)
def test_quick_start_from_a_fresh_copy(tmp_path: Path) -> None:
    """``make run`` on a copy of the tracked files, then nc, publish and tail as README has them."""
    run, netcat, publish, tail = blocks("README", "sh")[:4]
    copy = tmp_path / "tcprepl"
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    for name in filter(None, tracked.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    assert run == "make run\n"
    server = Running(["sh", "-c", f"cd {shlex.quote(str(copy))} && exec make run"], tmp_path)
    with server:
        try:
            server.wait_for_output("Ctrl-C stops it", timeout_s=110)
            assert netcat == "nc 127.0.0.1 9092\n"
            with Lines(9092) as person:
                person.send("REPLICATE\n")
                person.expect("POSITION typing master 0 0")
                done = subprocess.run(
                    ["sh", "-c", publish], cwd=copy, capture_output=True, text=True, timeout=30
                )
                assert (done.returncode, done.stdout) == (0, "typing master 1\n"), done.stderr
                line = person.expect("RDATA typing")
            with Running(
                ["sh", "-c", f"cd {shlex.quote(str(copy))} && exec {tail}"], tmp_path, "tail"
            ) as tailing:
                assert tailing.wait_for_lines(1) == [line]
                assert publish.strip() in server.stdout
                assert netcat.strip() in server.stdout
                assert tailing.stop() == 0
            for name in ("typing", "presence"):
                shown_with_its_watch(copy, name)
        finally:
            for pid in children(server.pid):
                subprocess.run(["kill", "-INT", str(pid)], check=False)
        server.wait()
    assert (copy / "tcprepl-data").is_dir()


@pytest.mark.postgresql
def test_moving_to_postgresql_and_back(tmp_path: Path) -> None:
    """The commands go through as they stand, and say what they are shown to say."""
    with Server(tmp_path / "server") as server:
        server.publish("typing", ["!room:example.com", ["@alice:example.com"]])
        server.publish("push_rules", ["@alice:example.com"])
    places = {
        "postgresql://tcprepl@db/tcprepl": postgres_world.fresh_url(),
        "./data-again": str(tmp_path / "back"),
        "tcprepl-data": str(tmp_path / "server" / "data"),
    }
    (text,) = re.findall(
        r"^```console\n(.*?)^```$", section("postgresql", "Moving there, and back"), re.M | re.S
    )
    for place, here in places.items():
        text = text.replace(place, here)
    commands = [line[2:] for line in text.splitlines()]

    def form(text: str) -> str:
        """Return what is said of the copy, without numbers, and as of several."""
        found = re.search(r": (.* transaction ids?), compared with ", text)
        assert found, text
        one_or_more = "(row|incarnation|producer|transaction id)s?\\b"
        told = re.sub(rf"\d[\d,]* {one_or_more}", r"N \1s", found[1])
        return re.sub(r"\d+ (streams? and instances?)", "N streams and instances", told)

    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(command)],
            capture_output=True,
            text=True,
            check=False,
            env=environment(),
        )
        assert done.returncode == 0, done.stderr
        assert form(done.stdout) == form(section("commands", "tcprepl migrate"))
    with Server(tmp_path / "again", "--data", str(tmp_path / "back")) as server:
        server.publish("push_rules", ["@alice:example.com"])
        with Lines(int(server.address.rpartition(":")[2])) as reader:
            reader.send("REPLICATE push_rules * 0\n")
            assert reader.expect("RDATA push_rules").split()[3] == "1"
            assert reader.expect("RDATA push_rules").split()[3] == "2"


def shown_with_its_watch(copy: Path, name: str) -> None:
    """Run the example of a command as it is shown, beside the watch that shows what it does."""
    (text,) = re.findall(
        r"^```console\n(.*?)^```$", section("commands", f"tcprepl {name}"), re.M | re.S
    )
    commands: list[str] = []
    shown: list[str] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            commands.append(f".venv/bin/{line[2:]}")
        else:
            shown.append(line)
    watch, *commands = commands
    assert watch.endswith(" &")
    place = f"cd {shlex.quote(str(copy))} && exec "
    with Running(["sh", "-c", place + watch.removesuffix(" &")], copy, name) as watching:
        for number, command in enumerate(commands):
            done = subprocess.run(
                ["sh", "-c", command], cwd=copy, capture_output=True, text=True, timeout=30
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), command
            assert watching.wait_for_lines(number + 1) == shown[: number + 1]
        assert watching.stop() == 0


def children(pid: int) -> list[int]:
    """Return the direct children of a process."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    ).stdout
    return [int(word) for word in listed.split()]
