"""Positions that outlive their reader."""

from __future__ import annotations

import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest

from tcprepl.errors import LogCorrupt, LogUnavailable
from tcprepl.streams.position_store import MemoryPositionStore, PositionStore, SqlitePositionStore

DATA = Path(__file__).parents[2] / "data"
A, B = ("typing", "master"), ("events", "w1")


@pytest.mark.parametrize("kind", ["memory", "sqlite", "shared"])
def test_what_is_saved_is_loaded(kind: str, tmp_path: Path) -> None:
    shared = sqlite3.connect(tmp_path / "shared.db")
    store: PositionStore
    if kind == "memory":
        store = MemoryPositionStore({A: 1})
    else:
        store = SqlitePositionStore(tmp_path / "p.db" if kind == "sqlite" else shared)
        store.save({A: 1})
    assert store.load() == {A: 1}
    store.save({B: 2**63 - 1, A: 5})
    store.save({A: 3})
    store.save({})
    store.rollback()
    assert store.load() == {A: 3, B: 2**63 - 1}
    store.close()
    shared.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_nothing_was_read_before_the_first_row(kind: str, tmp_path: Path) -> None:
    """0 is a position; what comes after it was read in the incarnation that it is said in."""
    store: PositionStore = (
        MemoryPositionStore() if kind == "memory" else SqlitePositionStore(tmp_path / "p.db")
    )
    store.save({A: 0})
    store.save({A: 5}, "x")
    assert store.places(A, 5) == ((5, "x"),)
    store.save({B: 3}, "x")
    store.save({B: 0}, "y")
    assert store.load() == {A: 5, B: 0}
    assert store.places(B, 0) == ((0, "y"),)
    store.close()


def test_positions_are_saved_all_or_none(tmp_path: Path) -> None:
    store = SqlitePositionStore(tmp_path / "p.db")
    store.save({A: 1})
    with closing(sqlite3.connect(tmp_path / "p.db")) as other:
        other.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON tcprepl_positions WHEN NEW.stream = 'events'"
            " BEGIN SELECT RAISE(FAIL, 'no'); END"
        )
    with pytest.raises(LogUnavailable, match="no"):
        store.save({A: 2, B: 3})
    assert store.load() == {A: 1}
    store.close()
    with closing(SqlitePositionStore(tmp_path / "p.db")) as again:
        assert again.load() == {A: 1}


def test_what_the_caller_began_does_not_hold_the_tables_back(tmp_path: Path) -> None:
    path = tmp_path / "worker.db"
    with closing(sqlite3.connect(path)) as connection, closing(sqlite3.connect(path)) as other:
        connection.execute("CREATE TABLE seen (user TEXT)")
        connection.execute("INSERT INTO seen VALUES ('@a:x')")
        SqlitePositionStore(connection)
        assert other.execute("SELECT count(*) FROM tcprepl_positions").fetchone() == (0,)


def test_a_saved_position_is_there_for_the_next_process(tmp_path: Path) -> None:
    SqlitePositionStore(tmp_path / "p.db").save({A: 7})  # not closed: as if killed
    with closing(SqlitePositionStore(str(tmp_path / "p.db"))) as store:
        assert store.load() == {A: 7}


def test_rows_and_position_become_true_together(tmp_path: Path) -> None:
    path = tmp_path / "worker.db"
    with closing(sqlite3.connect(path)) as connection, closing(sqlite3.connect(path)) as other:
        connection.execute("CREATE TABLE seen (user TEXT)")
        store = SqlitePositionStore(connection)
        connection.execute("INSERT INTO seen VALUES ('@a:x')")
        assert other.execute("SELECT count(*) FROM seen").fetchone() == (0,)
        store.save({A: 1})
        assert other.execute("SELECT count(*) FROM seen").fetchone() == (1,)
        connection.execute("INSERT INTO seen VALUES ('@b:x')")
        store.rollback()
        store.save({A: 2})
        assert other.execute("SELECT count(*) FROM seen").fetchone() == (1,)
        store.close()
        assert connection.execute("SELECT token FROM tcprepl_positions").fetchall() == [(2,)]


def test_a_connection_in_autocommit_mode_is_refused(tmp_path: Path) -> None:
    with (
        closing(sqlite3.connect(tmp_path / "p.db", isolation_level=None)) as connection,
        pytest.raises(ValueError, match="autocommit"),
    ):
        SqlitePositionStore(connection)


class Stubborn(sqlite3.Connection):
    """A connection that cannot undo anything, and keeps what Python 3.12 calls autocommit."""

    autocommit: object = True

    def rollback(self) -> None:
        """Refuse."""
        raise sqlite3.OperationalError("disk I/O error")


def test_a_connection_that_commits_by_itself_is_refused(tmp_path: Path) -> None:
    with (
        closing(sqlite3.connect(tmp_path / "p.db", factory=Stubborn)) as connection,
        pytest.raises(ValueError, match="autocommit"),
    ):
        SqlitePositionStore(connection)


def test_what_cannot_be_undone_is_an_error(tmp_path: Path) -> None:
    """Unless there is nothing to undo, or the connection is closed, which undoes it."""
    with closing(sqlite3.connect(tmp_path / "p.db", factory=Stubborn)) as connection:
        connection.autocommit = False
        store = SqlitePositionStore(connection)
        store.rollback()
        connection.execute("INSERT INTO tcprepl_positions VALUES ('alpha', 'master', 1)")
        with pytest.raises(LogUnavailable, match="disk I/O"):
            store.rollback()
        connection.close()
        store.rollback()


def test_a_constraint_of_the_caller_is_no_damage(tmp_path: Path) -> None:
    """It is checked at the commit: the handler's fault, for which nobody moves a file away."""
    with closing(sqlite3.connect(tmp_path / "p.db")) as connection:
        connection.executescript(
            "PRAGMA foreign_keys=ON; CREATE TABLE users (id TEXT PRIMARY KEY);"
            "CREATE TABLE seen (user TEXT REFERENCES users DEFERRABLE INITIALLY DEFERRED);"
        )
        store = SqlitePositionStore(connection)
        connection.execute("INSERT INTO seen VALUES ('@nobody:x')")
        with pytest.raises(LogUnavailable, match="FOREIGN KEY"):
            store.save({A: 1})
        assert connection.execute("SELECT count(*) FROM seen").fetchone() == (0,)
        assert store.load() == {}
        connection.execute("INSERT INTO seen VALUES ('@nobody:x')")
        with pytest.raises(LogUnavailable, match="FOREIGN KEY"):
            store.save({A: 1}, "x")
        assert store.places(A, 1) == (), "it was not read in there"


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    path.write_bytes(b"something else entirely " * 100)
    with pytest.raises(LogCorrupt, match=r"p\.db.*move the file away"):
        SqlitePositionStore(path)
    with pytest.raises(LogUnavailable, match="nowhere"):
        SqlitePositionStore(tmp_path / "nowhere" / "p.db")


def test_a_table_that_is_not_ours_is_named(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "p.db")) as connection:
        connection.execute("CREATE TABLE tcprepl_positions (other TEXT)")
        store = SqlitePositionStore(connection)
        with pytest.raises(LogUnavailable, match="the caller's database"):
            store.load()


def test_a_table_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "p.db")) as connection:
        connection.execute("PRAGMA query_only=ON")
        with pytest.raises(LogUnavailable, match="readonly"):
            SqlitePositionStore(connection)
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_save_that_the_disk_refuses_undoes_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "worker.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE seen (user TEXT)")
        store = SqlitePositionStore(connection)
        connection.execute("INSERT INTO seen VALUES ('@a:x')")
        connection.execute("DROP TABLE tcprepl_positions")
        with pytest.raises(LogUnavailable):
            store.save({A: 1})
        assert connection.execute("SELECT count(*) FROM seen").fetchone() == (0,)
        assert store.load() == {}


@pytest.mark.parametrize("kind", ["memory", "sqlite", "shared"])
def test_incarnations_are_kept_with_positions(kind: str, tmp_path: Path) -> None:
    shared = sqlite3.connect(tmp_path / "shared.db")
    where = tmp_path / "p.db" if kind == "sqlite" else shared
    store: PositionStore = MemoryPositionStore() if kind == "memory" else SqlitePositionStore(where)
    assert store.places(A, 0) == ()
    store.save({A: 5, B: 1})
    assert store.places(A, 5) == ()
    store.save({A: 7}, "x")
    store.save({A: 9}, "y")
    store.rollback()
    assert store.places(A, 9) == ((9, "y"), (7, "x"))
    assert store.places(B, 1) == ()
    if kind != "memory":
        again = SqlitePositionStore(where)
        assert again.places(A, 9) == ((9, "y"), (7, "x"))
        again.close()
    store.close()
    shared.close()


def test_a_store_of_the_release_before_incarnations_goes_on(tmp_path: Path) -> None:
    with tarfile.open(DATA / "directory-0.1.0.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    rules, typing = ("push_rules", "master"), ("typing", "master")
    store = SqlitePositionStore(tmp_path / "positions.sqlite3")
    assert store.load() == {rules: 7, typing: 1}
    assert store.places(rules, 7) == ()
    store.save({rules: 8}, "x")
    assert store.places(rules, 8) == ((8, "x"),)
    store.close()
    # and that release can read it again
    with closing(sqlite3.connect(tmp_path / "positions.sqlite3")) as connection:
        found = connection.execute("SELECT * FROM tcprepl_positions ORDER BY token").fetchall()
    assert found == [("typing", "master", 1), ("push_rules", "master", 8)]


def test_lineages_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "p.db")) as connection:
        store = SqlitePositionStore(connection)
        connection.execute("DROP TABLE tcprepl_lineages")
        for call in (store.load, lambda: store.places(A, 1)):
            with pytest.raises(LogUnavailable, match="no such table"):
                call()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE tcprepl_positions SET token = 'x'",
        "UPDATE tcprepl_positions SET token = -1",
        "UPDATE tcprepl_lineages SET lineage = x'c1'",
        "UPDATE tcprepl_lineages SET lineage = x'05'",
    ],
)
def test_what_is_no_position_is_named(tmp_path: Path, change: str) -> None:
    store = SqlitePositionStore(tmp_path / "p.db")
    store.save({A: 1}, "a" * 16)
    store.close()
    with closing(sqlite3.connect(tmp_path / "p.db")) as connection:
        connection.execute(change)
        connection.commit()
    store = SqlitePositionStore(tmp_path / "p.db")
    with pytest.raises(LogCorrupt, match="move the file away"):
        store.load()
    store.close()


def test_damage_that_shows_later_is_named(tmp_path: Path) -> None:
    """A page that cannot be read is found when it is read, not when the file is opened."""
    path = tmp_path / "p.db"
    store = SqlitePositionStore(path)
    store.save({A: 1})
    store.close()
    content = bytearray(path.read_bytes())
    content[4096 : 2 * 4096] = b"\xff" * 4096
    path.write_bytes(content)
    store = SqlitePositionStore(path)
    with pytest.raises(LogCorrupt, match=r"p\.db.*move the file away"):
        store.load()
    store.close()


def test_positions_survive_the_death_of_the_process(tmp_path: Path) -> None:
    """A power cut may bring an earlier one back: then rows come twice."""
    with closing(SqlitePositionStore(tmp_path / "p.db")) as store:
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (1,)  # NORMAL


def test_a_database_that_will_not_do_is_left_closed(
    tmp_path: Path,
) -> None:
    connect = sqlite3.connect(tmp_path / "p.db")
    with closing(connect) as connection, mock.patch.object(SqlitePositionStore, "close") as closed:
        connection.execute("PRAGMA query_only=ON")
        with pytest.raises(LogUnavailable, match="readonly"):
            SqlitePositionStore(connection)
    assert closed.call_count == 1
