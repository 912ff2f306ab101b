"""The outbox's file: who may open it, what older ones become, faults of the disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tcprepl.federation.sending import outbox_file
from tcprepl.federation.sending.backoff import Backoff
from tcprepl.federation.sending.commit_queue import OutboxError, OutboxUnavailable, run_inline
from tcprepl.federation.sending.outbox import Outbox
from tests.unit.federation.sending.test_outbox import now, numbers, put


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    made = Outbox(tmp_path / "data" / "outbox.sqlite", run_inline)
    yield made
    made.close()


def test_a_second_process_is_kept_out(outbox: Outbox) -> None:
    with pytest.raises(OutboxError, match="in use"):
        Outbox(outbox.path, run_inline)


def test_a_file_that_is_no_outbox_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    path.write_bytes(b"this is no database at all, and long enough to be one" * 100)
    with pytest.raises(OutboxError, match="move it away"):
        Outbox(path, run_inline)


def test_an_outbox_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(OutboxError, match="newer"):
        Outbox(path, run_inline)


def test_a_disk_that_refuses_fails_what_was_asked_and_nothing_else(outbox: Outbox) -> None:
    put(outbox, "y", 1)
    real = outbox._in_one
    calls: list[int] = []

    def refusing(ops: Any) -> Any:
        calls.append(len(ops))
        raise sqlite3.OperationalError("database or disk is full")

    outbox._in_one = refusing  # type: ignore[method-assign]
    with pytest.raises(OutboxUnavailable, match="full"):
        put(outbox, "y", 2)
    outbox._in_one = real  # type: ignore[method-assign]
    assert numbers(now(outbox.load("y", 0, 9))) == [1]
    assert outbox.positions() == {("federation", "master"): 1}
    assert calls == [1]


#: What the first release wrote, with an EDU that waits, one in flight and one set aside.
VERSION_1 = """
CREATE TABLE edus (id INTEGER PRIMARY KEY, destination TEXT NOT NULL, lane INTEGER NOT NULL,
    supersedes BLOB, queued_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL,
    transaction_id TEXT, edu BLOB NOT NULL);
CREATE INDEX edus_waiting ON edus (destination, id) WHERE transaction_id IS NULL;
CREATE UNIQUE INDEX edus_newest ON edus (destination, supersedes)
    WHERE supersedes IS NOT NULL AND transaction_id IS NULL;
CREATE INDEX edus_expiring ON edus (expires_ms) WHERE expires_ms > 0 AND transaction_id IS NULL;
CREATE INDEX edus_sent ON edus (destination, transaction_id) WHERE transaction_id IS NOT NULL;
CREATE TABLE transactions (destination TEXT PRIMARY KEY, transaction_id TEXT NOT NULL,
    origin_server_ts INTEGER NOT NULL, ids BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE destinations (destination TEXT PRIMARY KEY, paused INTEGER NOT NULL DEFAULT 0,
    backoff BLOB) WITHOUT ROWID;
CREATE TABLE positions (stream TEXT NOT NULL, instance TEXT NOT NULL, token INTEGER NOT NULL,
    PRIMARY KEY (stream, instance)) WITHOUT ROWID;
PRAGMA user_version=1;
"""


#: What made the second of it.
VERSION_2 = """
ALTER TABLE edus ADD COLUMN refused_ms INTEGER;
ALTER TABLE edus ADD COLUMN refusal TEXT;
CREATE TABLE put_off (destination TEXT NOT NULL, transaction_id TEXT NOT NULL,
    origin_server_ts INTEGER NOT NULL, ids BLOB NOT NULL,
    PRIMARY KEY (destination, transaction_id)) WITHOUT ROWID;
PRAGMA user_version=2;
"""


@pytest.mark.parametrize("tables", [VERSION_1, VERSION_1 + VERSION_2], ids=["1", "2"])
def test_a_file_of_an_earlier_release_goes_on(tmp_path: Path, tables: str) -> None:
    """What waited, was in flight and was set aside is so still; a back-off too."""
    path = tmp_path / "outbox.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(tables)
    for edu_id, transaction_id in ((1, None), (2, "t1"), (3, "")):
        packed = msgpack.packb(("m.test", "x", None, b'{"n":%d}' % edu_id))
        connection.execute(
            "INSERT INTO edus (id, destination, lane, queued_ms, expires_ms, transaction_id, edu)"
            " VALUES (?,'y',5,?,0,?,?)",
            (edu_id, 9, transaction_id, packed),
        )
    connection.execute("INSERT INTO transactions VALUES ('y','t1',77,?)", (msgpack.packb([2]),))
    connection.execute(
        "INSERT INTO destinations VALUES ('y',0,?)", (msgpack.packb((2, 5, 6, 7, "why")),)
    )
    connection.commit()
    connection.close()
    for _ in range(2):
        outbox = Outbox(path, run_inline)
        found = outbox.destinations()["y"]
        assert (found.waiting, found.in_flight, found.quarantined) == (True, True, 1)
        assert found.backoff == Backoff(2, 5, 6, 7, "why")
        assert numbers(now(outbox.load("y", 0, 9))) == [1]
        (refused,) = now(outbox.quarantined("y"))
        assert (refused["id"], refused["reason"]) == (3, None)
        now(outbox.close())


def test_a_file_is_closed_once(outbox: Outbox) -> None:
    assert now(outbox.close()) is None
    assert now(outbox.close()) is None


def test_nobody_else_may_read_what_waits(tmp_path: Path) -> None:
    path = tmp_path / "sender" / "outbox.sqlite"
    outbox = Outbox(path, run_inline)
    put(outbox, "y", 1)
    modes = {found.name: found.stat().st_mode & 0o777 for found in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}, modes
    assert path.parent.stat().st_mode & 0o777 == 0o700
    now(outbox.close())


def test_a_directory_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutboxError, match="cannot make"):
        Outbox(tmp_path / "file" / "outbox.sqlite", run_inline)


def test_a_file_that_holds_something_else_says_so_and_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    Outbox(path, run_inline).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE put_off")
        connection.commit()
    for _ in range(2):
        with pytest.raises(OutboxError, match="put_off"):
            Outbox(path, run_inline)


@pytest.mark.parametrize("error", [sqlite3.OperationalError("full"), ZeroDivisionError("a bug")])
def test_of_a_commit_that_fails_nothing_is_left(outbox: Outbox, error: Exception) -> None:
    """Neither in the file nor in memory; the next one is as any other."""
    put(outbox, "y", 1)

    def fail(cursor: Any) -> None:
        outbox._journal.settle(cursor)
        cursor.execute("DELETE FROM edus")
        raise error

    with pytest.raises((OutboxUnavailable, ZeroDivisionError)):
        now(outbox.submit(fail))
    put(outbox, "y", 2)
    assert numbers(now(outbox.load("y", 0, 9))) == [1, 2]


def test_what_is_closed_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the outbox could not be opened."""
    opened: list[sqlite3.Connection] = []
    real = outbox_file.open_database

    def noted(*given: Any) -> sqlite3.Connection:
        opened.append(real(*given))
        return opened[-1]

    monkeypatch.setattr(outbox_file, "open_database", noted)
    path = tmp_path / "outbox.sqlite"
    Outbox(path, run_inline).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO journal (records) VALUES (x'c1')")
        connection.commit()
    with pytest.raises(OutboxError):
        Outbox(path, run_inline)
    assert len(opened) == 2
    for connection in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")


def test_what_is_written_survives_a_power_cut(outbox: Outbox) -> None:
    """A remote is not sent twice what it took, nor never what was acknowledged upstream."""
    assert outbox._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


@pytest.mark.parametrize(
    "damage",
    [
        "INSERT INTO positions VALUES ('s', 'i', 'x')",
        "INSERT INTO journal (records) VALUES (5)",
        "INSERT INTO journal (records) VALUES (x'c1')",
        "INSERT INTO journal (records) VALUES (x'05')",
        "INSERT INTO journal (records) VALUES (x'9105')",
        "INSERT INTO lineages VALUES ('s', 'i', 5)",
        "INSERT INTO destinations VALUES ('y', 0, 5)",
        "INSERT INTO destinations VALUES ('y', 0, x'c1')",
        "UPDATE edus SET queued_ms = 'x'",
        "DROP TABLE put_off",
    ],
)
def test_what_no_outbox_holds_is_damage(tmp_path: Path, damage: str) -> None:
    """It is told at the start, with what to do, whatever a flipped bit has made of it."""
    path = tmp_path / "outbox.sqlite"
    outbox = Outbox(path, run_inline)
    put(outbox, "y", 1)
    outbox.close()
    Outbox(path, run_inline).close()  # out of the journal, into the tables
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(damage)
        connection.commit()
    with pytest.raises(OutboxError, match=r"outbox.sqlite: .*; move it away"):
        _started(path)


def _started(path: Path) -> None:
    outbox = Outbox(path, run_inline)
    try:
        outbox.destinations()
        outbox.newest_ms()
        outbox.lineages()
    finally:
        outbox.close()
