"""A server that goes back to a copy of its past: who is ahead of it is told, and misses nothing.

The copies are made by `tcprepl backup` while the server works; what was written after them is lost
with the directory, and its tokens are given out again.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trustme

from tests.faults.test_serve_kill import SteadyPublisher
from tests.federation_servers import Homeserver, rows_of
from tests.harness import FULL, Running, Server, tcprepl, wait_until

pytestmark = pytest.mark.timeout(180)

STREAM = "device_lists"


def backup(data: Path, target: Path) -> None:
    """Back *data* up."""
    done = tcprepl("backup", "--data", str(data), str(target))
    assert done.returncode == 0, done.stderr


def restore(copy: Path, data: Path) -> None:
    """Put *copy* in the place of *data*."""
    shutil.rmtree(data)
    done = tcprepl("restore", str(copy), str(data))
    assert done.returncode == 0, done.stderr


def users(*numbers: int, word: str = "u") -> list[list[str]]:
    """Return rows."""
    return [[f"@{word}{number}:x"] for number in numbers]


class Worker:
    """A reader with its positions and its rows in one database; it can be killed."""

    def __init__(self, server: Server, where: Path) -> None:
        self.database = where / "worker.db"
        self._argv = [sys.executable, "-m", "tests.faults.worker", "twisted", server.address]
        self._argv += [str(self.database), STREAM]
        self._where = where
        self.running: Running
        self.start()

    def start(self) -> None:
        """Start it."""
        self.running = Running(self._argv, self._where, "worker")

    def seen(self) -> list[tuple[int, str]]:
        """Return what it has committed, in order."""
        if not self.database.exists():
            return []
        with closing(sqlite3.connect(self.database)) as connection:
            try:
                found = connection.execute("SELECT token, row FROM seen ORDER BY number")
            except sqlite3.OperationalError:
                return []
            return [(token, json.loads(row)[0]) for token, row in found]

    def wait_for(self, row: str) -> list[tuple[int, str]]:
        """Wait until it has *row*, and return all it has."""
        wait_until(lambda: any(row == seen for _, seen in self.seen()), f"the worker has {row}")
        return self.seen()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Run a server."""
    with Server(tmp_path / "server") as made:
        yield made


@pytest.mark.parametrize(
    ("killed", "restarted"),
    [(True, False), (False, True), *([(False, False), (True, True)] if FULL else [])],
)
def test_a_reader_ahead_of_the_copy_gets_every_new_row(
    server: Server, tmp_path: Path, restarted: bool, killed: bool
) -> None:
    """*restarted*: after the copy was made, so that the copy does not know the newest incarnation.

    *killed*: the reader is away while the server writes, so that its token exists again.
    """
    worker = Worker(server, tmp_path)
    data, copy = tmp_path / "server" / "data", tmp_path / "copy"
    server.publish(STREAM, *users(*range(1, 51)))
    worker.wait_for("@u50:x")
    backup(data, copy)
    if restarted:
        server.process.kill()
        server.start()
    server.publish(STREAM, *users(*range(51, 101)))
    worker.wait_for("@u100:x")
    if killed:
        worker.running.kill()
    server.process.kill()
    restore(copy, data)
    server.start()
    server.publish(STREAM, *users(*range(51, 151), word="new"))
    if killed:
        worker.start()
    seen = worker.wait_for("@new150:x")
    assert seen[:100] == [(n, f"@u{n}:x") for n in range(1, 101)]
    assert seen[100:] == [(n, f"@new{n}:x") for n in range(51, 151)]
    assert "replication.client.reset" in worker.running.stderr
    assert "known=100" in worker.running.stderr
    assert "token=50" in worker.running.stderr
    worker.running.kill()


def test_a_reader_of_a_directory_that_was_moved_away_begins_anew(
    server: Server, tmp_path: Path
) -> None:
    worker = Worker(server, tmp_path)
    server.publish(STREAM, *users(*range(1, 11)))
    worker.wait_for("@u10:x")
    worker.running.kill()
    server.process.kill()
    shutil.move(tmp_path / "server" / "data", tmp_path / "away")
    server.start()
    server.publish(STREAM, *users(*range(1, 21), word="new"))
    worker.start()
    seen = worker.wait_for("@new20:x")
    assert seen[10:] == [(n, f"@new{n}:x") for n in range(1, 21)]
    assert "replication.client.reset" in worker.running.stderr
    worker.running.kill()


def test_a_copy_made_under_load_is_whole(server: Server, tmp_path: Path) -> None:
    """Every copy holds all that was acknowledged before it was begun; the server goes on."""
    data = tmp_path / "server" / "data"
    publisher = SteadyPublisher(server.url, 1)
    publisher.start()
    known: list[int] = []
    for number in range(4 if FULL else 2):
        wait_until(
            lambda: len(publisher.acknowledged[STREAM]) > 40 * len(known) + 10, "it publishes"
        )
        known.append(len(publisher.acknowledged[STREAM]))
        backup(data, tmp_path / f"copy{number}")
    publisher.stop()
    rows = publisher.acknowledged[STREAM]
    server.process.kill()
    for number, least in enumerate(known):
        copy = tmp_path / f"copy{number}"
        assert {oct(path.stat().st_mode & 0o777) for path in copy.iterdir()} == {"0o600"}
        assert oct(copy.stat().st_mode & 0o777) == "0o700"
        assert (copy / "signing.key").read_bytes() == (data / "signing.key").read_bytes()
        place = tmp_path / f"restored{number}"
        done = tcprepl("restore", str(copy), str(place / "data"))
        assert done.returncode == 0, done.stderr
        with Server(place) as restored:
            done = tcprepl(
                *("tail", STREAM, "--since", "start", "--until-head", "--json"),
                *("--from", restored.address),
            )
        held = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(held) >= least
        assert [(row["token"], json.dumps(row["row"], separators=(",", ":"))) for row in held] == [
            *rows[: len(held)]
        ]


def test_what_cannot_be_copied_or_restored_is_said(server: Server, tmp_path: Path) -> None:
    data, copy = tmp_path / "server" / "data", tmp_path / "copy"
    backup(data, copy)
    for words, told in [
        (("backup", "--data", str(data), str(copy)), "exists: name a directory that does not"),
        (("backup", "--data", str(tmp_path), str(tmp_path / "x")), "no data directory of tcprepl"),
        (("restore", str(copy), str(data)), "is in use by process"),
        (("restore", str(data), str(tmp_path / "y")), "is no backup"),
        (("restore", str(copy), str(copy)), "is not empty"),
    ]:
        done = tcprepl(*words)
        assert done.returncode == 1
        assert told in done.stderr, done.stderr
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()


# -- EDUs ----------------------------------------------------------------------------------------


def message(number: int, word: str) -> dict[str, object]:
    """Return the arguments of a to-device EDU."""
    content = {
        "sender": "@alice:a.example",
        "type": "m.test",
        "message_id": f"{word}{number}",
        "messages": {"@bob:b.example": {"DEVICE": {"n": f"{word}{number}"}}},
    }
    return {
        "destination": "b.example",
        "edu_type": "m.direct_to_device",
        "content": content,
        "transaction_id": f"{word}{number}",
    }


@pytest.mark.parametrize("away", [False, True] if FULL else [True])
def test_a_sender_takes_every_edu_of_the_new_history(tmp_path: Path, away: bool) -> None:
    """*away*: the sender is, while the restored writer passes the position that it holds."""
    authority = trustme.CA()
    a = Homeserver(tmp_path, "a.example", authority)
    b = Homeserver(tmp_path, "b.example", authority)
    a.senders = ("fed1",)
    a.place(b)
    b.place(a)
    try:
        a.start()
        b.start_writer()
        tail = b.tail("to_device_messages")

        def arrived(count: int) -> set[str]:
            def look() -> set[str] | None:
                found = {row["content"]["n"] for row in rows_of(tail)}
                return found if len(found) >= count else None

            return wait_until(look, f"{count} EDUs") or set()

        for number in range(10):
            a.send_edu(**message(number, "old"))
        arrived(10)
        backup(a.data, tmp_path / "copy")
        for number in range(20):
            a.send_edu(**message(number, "lost"))
        arrived(30)
        assert a.writer is not None
        assert a.sender is not None
        if away:
            a.sender.kill()
        a.writer.kill()
        restore(tmp_path / "copy", a.data)
        a.start_writer()
        for number in range(30):
            a.send_edu(**message(number, "new"))
        if away:
            a.start_sender()
        found = arrived(60)
        assert {f"new{number}" for number in range(30)} <= found
    finally:
        a.stop()
        b.stop()
