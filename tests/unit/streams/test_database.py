"""The SQLite file: what is in it, and what is said when it is not what it should be."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from unittest import mock

import msgpack
import pytest

from tcprepl.errors import LogCorrupt, LogError, LogTooNew, LogUnavailable
from tcprepl.streams import history as history_module
from tcprepl.streams.blocks import render
from tcprepl.streams.database import (
    DATABASE_NAME,
    SCHEMA_VERSION,
    Commit,
    Database,
    StoredPair,
    decode_block,
    encode_block,
)
from tcprepl.streams.history import History
from tcprepl.streams.log import Appended, Block


def block(*tokens: int) -> Block:
    """Return a block with these tokens."""
    rows = [b'["%d"]' % token for token in tokens]
    return render("s", "i", list(tokens), rows, 1_234)


def stored(**changes: int) -> StoredPair:
    """Return a row of ``pairs``."""
    pair = StoredPair(1, "s", "i", 3, 0, 3, 30)
    for name, value in changes.items():
        setattr(pair, name, value)
    return pair


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """Return a database with a block of three rows."""
    made = Database(tmp_path)
    made.write(Commit(pairs=[stored()], blocks=[(1, block(1, 2, 3))]))
    return made


@pytest.mark.parametrize("tokens", [[1, 2, 2, 9], range(5, 8)])
def test_a_block_is_stored_whole(tokens: Sequence[int]) -> None:
    made = render("s", "i", tokens, [b"[1]"] * len(tokens), 0)
    back = decode_block("s", "i", encode_block(made), 77)
    assert list(back.tokens) == list(tokens)
    assert type(back.tokens) is type(tokens)
    assert back.lines == made.lines
    assert back.ends == made.ends
    assert back.written_ms == 77


def test_a_block_of_before_the_first_release_is_read() -> None:
    """They said where lines end, too."""
    lines = b"RDATA s i 5 1\nRDATA s i 6 2\n"
    body = msgpack.packb(((5, 2), True, 13, b"\x0e\0\0\0\x1c\0\0\0", lines))
    back = decode_block("s", "i", body, 77)
    assert (back.tokens, back.lines) == (range(5, 7), lines)


def test_what_is_written_is_there_the_next_time(database: Database, tmp_path: Path) -> None:
    answer = Appended("s", "i", 1, 3)
    database.write(Commit(transactions=[("s", "t", answer, 50)]))
    database.close()
    again = Database(tmp_path)
    assert again.pairs() == [stored()]
    assert [list(found.tokens) for found in again.blocks(stored(), 0)] == [[1, 2, 3]]
    assert list(again.blocks(stored(), 3)) == []
    assert again.transaction("s", "t", 50) == answer
    assert again.transaction("s", "t", 51) is None
    assert again.transaction("s", "u", 0) is None
    assert list(again.oldest(stored(), 0)) == [(3, 3, len(block(1, 2, 3).lines), 1_234)]
    again.close()


def test_trims_and_expiry(database: Database) -> None:
    size = len(block(1, 2, 3).lines)
    database.write(
        Commit(pairs=[stored(position=5, rows=2, size_bytes=20)], blocks=[(1, block(5))])
    )
    assert database.write(Commit(trims={1: 4})) == [(1, 3, size)]
    assert [list(found.tokens) for found in database.blocks(stored(), 0)] == [[5]]
    (pair,) = database.pairs()
    assert (pair.position, pair.floor, pair.rows) == (5, 4, 2)
    database.write(Commit(transactions=[("s", "t", Appended("s", "i", 1, 1), 50)]))
    database.write(Commit(expire_before_ms=51))
    assert database.transaction("s", "t", 0) is None
    assert not Commit()
    assert Commit(expire_before_ms=0)
    database.close()


def begin(database: Database, position: int, name: str) -> History:
    """Begin an incarnation in the file, and return the history as the process knows it."""
    known = database.history()
    begun = known.begin({("s", "i"): position}, 5, name)
    database.write(Commit(begun=begun, oldest_incarnation=known.incarnations[0].number))
    return known


def test_incarnations_are_noted(database: Database) -> None:
    assert database.history().incarnations == []
    begin(database, 3, "x")
    begin(database, 3, "y")
    begin(database, 7, "z")
    noted = database.history()
    assert noted.incarnations == [(1, "x", 5), (2, "y", 5), (3, "z", 5)]
    assert [noted.shared(("s", "i"), 9, name) for name in "xyz"] == [3, 7, 9]
    database.close()


def test_forgotten_incarnations_are_deleted_and_where_the_oldest_began_stays(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "MAX_INCARNATIONS", 2)
    for position, name in [(1, "v"), (2, "w"), (2, "x"), (2, "y"), (4, "z")]:
        known = begin(database, position, name)
        noted = database.history()
        assert noted.incarnations == known.incarnations
        assert noted._began == known._began
    assert known._began == {("s", "i"): ([2, 5], [2, 4])}
    database.close()


def test_a_commit_is_all_or_nothing(database: Database) -> None:
    with pytest.raises(LogError):
        database.write(Commit(pairs=[stored(position=9)], blocks=[(1, block(9)), (1, block(3))]))
    assert database.pairs() == [stored()]
    database.write(Commit(blocks=[(1, block(9))]))
    database.close()


def test_a_database_that_another_program_holds_is_refused(database: Database) -> None:
    assert database._writer is not None
    database._writer.execute("PRAGMA busy_timeout=0")
    with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LogUnavailable, match="another program holds"):
            database.write(Commit(blocks=[(1, block(9))]))
    database.write(Commit(blocks=[(1, block(9))]))
    database.close()


def test_after_a_roll_back_that_fails_there_is_a_new_connection(database: Database) -> None:
    real = database._writer
    assert real is not None

    class Broken:
        in_transaction = True

        def execute(self, *_: object) -> object:
            raise sqlite3.OperationalError("disk I/O error")

        close = execute

    database._writer = Broken()  # type: ignore[assignment]
    with pytest.raises(LogUnavailable, match="check the disk of"):
        database.write(Commit(blocks=[(1, block(9))]))
    assert database._writer is None
    real.close()
    with (
        mock.patch.object(database, "_connect", side_effect=sqlite3.OperationalError("no")),
        pytest.raises(LogUnavailable),
    ):
        database.write(Commit(blocks=[(1, block(9))]))
    database.write(Commit(blocks=[(1, block(9))]))
    assert [found.last for found in database.blocks(stored(), 0)] == [3, 9]
    database.close()


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("database or disk is full", "free space in"),
        ("attempt to write a readonly database", "make .* writable"),
        ("unable to open database file", "make .* writable"),
        ("database is locked", "another program holds"),
        ("disk I/O error", "check the disk"),
    ],
)
def test_every_refusal_says_what_to_do(database: Database, text: str, advice: str) -> None:
    error = database.explained(sqlite3.OperationalError(text))
    assert isinstance(error, LogUnavailable)
    with pytest.raises(LogUnavailable, match=f"{text}; {advice}"):
        raise error
    damage = database.explained(sqlite3.DatabaseError("malformed"))
    assert isinstance(damage, LogCorrupt)
    assert "recover" in str(damage)
    database.close()


def test_a_newer_schema_is_refused(database: Database, tmp_path: Path) -> None:
    database.close()
    with closing(sqlite3.connect(tmp_path / DATABASE_NAME)) as connection:
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    with pytest.raises(LogTooNew, match=r"version 3 .* reads up to 2: run the newer tcprepl") as e:
        Database(tmp_path)
    assert (e.value.version, e.value.supported) == (3, 2)


def test_the_database_of_another_program_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / DATABASE_NAME)) as connection:
        connection.execute("CREATE TABLE other (x)")
    with pytest.raises(LogCorrupt, match="another program"):
        Database(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / DATABASE_NAME).write_bytes(b"not a database at all, just text\n" * 1_000)
    with pytest.raises(LogCorrupt, match=r"log\.sqlite3.*keep a copy of the directory"):
        Database(tmp_path)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LogUnavailable, match="nowhere"):
        Database(tmp_path / "nowhere")


def _spoil(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path / DATABASE_NAME)) as connection:
        connection.execute(statement)
        connection.commit()


def test_a_block_that_was_altered_is_named(database: Database, tmp_path: Path) -> None:
    _spoil(tmp_path, "UPDATE blocks SET body = zeroblob(100)")
    with pytest.raises(LogCorrupt, match="checksum does not match; put a good copy") as caught:
        list(database.blocks(stored(), 0))
    error = caught.value
    assert (error.table, error.stream, error.instance, error.token) == ("blocks", "s", "i", 3)
    database.close()


def test_reads_that_fail_are_explained(database: Database, tmp_path: Path) -> None:
    _spoil(tmp_path, "ALTER TABLE blocks RENAME TO gone")
    _spoil(tmp_path, "ALTER TABLE pairs RENAME TO gone2")
    _spoil(tmp_path, "ALTER TABLE transactions RENAME TO gone3")
    _spoil(tmp_path, "ALTER TABLE incarnations RENAME TO gone4")
    for call in (
        lambda: list(database.blocks(stored(), 0)),
        lambda: list(database.oldest(stored(), 0)),
        database.pairs,
        database.history,
        lambda: database.transaction("s", "t", 0),
    ):
        with pytest.raises(LogUnavailable, match="no such table"):
            call()
    database.close()


def test_pages_that_cannot_be_read_are_named_by_stream_and_token(database: Database) -> None:
    class Cursor:
        def execute(self, *_: object) -> None:
            raise sqlite3.DatabaseError("database disk image is malformed")

        def close(self) -> None:
            pass

    reader = mock.Mock()
    reader.cursor.return_value = Cursor()
    real, database._reader = database._reader, reader
    with pytest.raises(LogCorrupt, match="after token 2: database disk image") as caught:
        list(database.blocks(stored(), 2))
    assert caught.value.token == 2
    database._reader = real
    database.close()


def test_a_closed_database_says_so(database: Database) -> None:
    database.close()
    database.close()
    with pytest.raises(LogUnavailable, match="closed"):
        database.pairs()
