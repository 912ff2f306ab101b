"""A directory that is copied from, or into."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest

from tcprepl.errors import LogCorrupt, LogLocked, LogUnavailable
from tcprepl.storage import migrating_sqlite as module
from tcprepl.storage.lock import DirectoryLock
from tcprepl.storage.migrating_sqlite import SqliteSource, SqliteTarget
from tcprepl.storage.migration import Kind, Progress, Table
from tcprepl.storage.postgresql import PostgresSchema
from tcprepl.storage.sqlite import Schema, open_database

WORDS = Table("words", ("word", "body"), size="length(body)")
CREATE = "CREATE TABLE words (word TEXT PRIMARY KEY, body BLOB) WITHOUT ROWID;"
KIND = Kind("list", "words.db", "lock", Schema(CREATE), PostgresSchema(""), (WORDS,), ())


def open_words(path: Path) -> None:
    """Open a list as its user does."""
    open_database(path, KIND.sqlite).close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Return a directory into which a half was copied."""
    with closing(SqliteTarget(tmp_path / "to", KIND)) as made:
        assert made.begin("id", "from") == Progress()
        made.write(WORDS, [("a", b"1")], Progress(0, ("a",), 1))
    return tmp_path / "to"


def test_a_half_is_not_opened_and_is_gone_on_from(target: Path) -> None:
    with pytest.raises(LogUnavailable, match=r"holds a part of what is migrated to .*finish that"):
        open_words(target / "words.db")
    with closing(SqliteTarget(target, KIND)) as again:
        assert again.begin("id", "from") == Progress(0, ("a",), 1)
        again.write(WORDS, [("b", b"2")], Progress(0, ("b",), 2))
        again.finish()
    assert sorted(path.name for path in target.iterdir()) == ["lock", "words.db"]
    open_words(target / "words.db")
    with closing(SqliteSource(target, KIND)) as source:
        assert source.read(WORDS, None) == [("a", b"1"), ("b", b"2")]
        assert source.read(WORDS, ("a",)) == [("b", b"2")]
        assert source.count(WORDS) == 2
        source.release()
    with pytest.raises(LogUnavailable, match=r"words\.db is there already: move it away"):
        SqliteTarget(target, KIND)


def test_what_was_killed_as_it_got_its_name_is_complete(target: Path) -> None:
    killed = mock.patch.object(module.os, "rename", side_effect=OSError(5, "killed"))
    with closing(SqliteTarget(target, KIND)) as again:
        again.begin("id", "from")
        with killed, pytest.raises(LogUnavailable, match=r"cannot name .*words\.db: killed"):
            again.finish()
    with closing(SqliteTarget(target, KIND)) as third:
        assert third.begin("id", "from") is None
        third.finish()
    open_words(target / "words.db")


def test_a_half_of_something_else_is_refused(target: Path) -> None:
    refused = pytest.raises(LogUnavailable, match=r"a part of from, .*remove that file")
    with closing(SqliteTarget(target, KIND)) as again, refused:
        again.begin("other", "elsewhere")


def test_a_directory_in_use_is_refused(target: Path) -> None:
    open_words(target.parent / "words.db")
    locks = [DirectoryLock(target), DirectoryLock(target.parent)]
    with pytest.raises(LogLocked):
        SqliteTarget(target, KIND)
    with pytest.raises(LogLocked):
        SqliteSource(target.parent, KIND)
    for lock in locks:
        lock.release()


def test_what_is_no_source_is_refused_and_let_go(tmp_path: Path) -> None:
    with pytest.raises(LogUnavailable, match=r"there is no list: no words\.db is in it"):
        SqliteSource(tmp_path, KIND)
    (tmp_path / "words.db").write_bytes(b"no database at all" * 100)
    for _ in range(2):
        with pytest.raises(LogCorrupt):
            SqliteSource(tmp_path, KIND)


def test_reads_are_bounded_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 10)
    open_words(tmp_path / "words.db")
    with closing(sqlite3.connect(tmp_path / "words.db")) as connection:
        connection.executemany("INSERT INTO words VALUES (?, ?)", [(c, b"1234") for c in "abcdef"])
        connection.commit()
    with closing(SqliteSource(tmp_path, KIND)) as source:
        assert [row[0] for row in source.read(WORDS, None)] == ["a", "b", "c"]
        assert [row[0] for row in source.read(WORDS, ("c",))] == ["d", "e", "f"]
        assert source.read(WORDS, ("f",)) == []


def test_what_is_migrated_survives_a_power_cut(tmp_path: Path) -> None:
    """What was copied is forgotten where it came from."""
    with closing(SqliteTarget(tmp_path, KIND)) as target:
        assert target._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
