"""The door to SQLite: private files, stated durability, versions, errors that say what to do."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from tcprepl.errors import LogCorrupt, LogError, LogTooNew, LogUnavailable
from tcprepl.storage import sqlite as module
from tcprepl.storage.sqlite import (
    Durability,
    Schema,
    can_be_read_unchanged,
    checked,
    explained,
    explaining,
    left_beside,
    open_database,
    open_reader,
    open_unchanged,
    private_directory,
    transaction,
)

SCHEMA = Schema("CREATE TABLE t (x);", version=1, application_id=7)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def pragma(connection: sqlite3.Connection, name: str) -> object:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


@pytest.mark.parametrize(("durability", "number"), [*zip(Durability, (2, 1), strict=True)])
def test_what_survives_is_what_was_asked_for(
    tmp_path: Path, durability: Durability, number: int
) -> None:
    """``synchronous`` is FULL (2) where a commit has to survive a power cut, NORMAL (1) else."""
    with closing(open_database(tmp_path / "db", SCHEMA, durability)) as connection:
        assert pragma(connection, "synchronous") == number
        assert pragma(connection, "journal_mode") == "wal"
        assert pragma(connection, "trusted_schema") == 0


def test_by_default_a_commit_survives_a_power_cut(tmp_path: Path) -> None:
    with closing(open_database(tmp_path / "db", SCHEMA)) as connection:
        assert pragma(connection, "synchronous") == 2


def test_a_new_file_and_its_companions_are_for_their_owner_alone(tmp_path: Path) -> None:
    with closing(open_database(tmp_path / "db", SCHEMA)) as connection:
        connection.execute("INSERT INTO t VALUES (1)")
        assert {path.name: mode(path) for path in tmp_path.iterdir()} == {
            "db": 0o600,
            "db-wal": 0o600,
            "db-shm": 0o600,
        }


def test_an_old_file_that_others_can_read_becomes_private(tmp_path: Path) -> None:
    with closing(open_database(tmp_path / "db", SCHEMA)) as connection:
        connection.execute("INSERT INTO t VALUES (1)")
        for path in tmp_path.iterdir():
            path.chmod(0o644)
        with closing(open_database(tmp_path / "db", SCHEMA)):
            assert {mode(path) for path in tmp_path.iterdir()} == {0o600}


def test_a_directory_is_made_private_whether_or_not_it_was_there(tmp_path: Path) -> None:
    private_directory(tmp_path / "new" / "deep")
    assert mode(tmp_path / "new" / "deep") == 0o700
    old = tmp_path / "old"
    old.mkdir(mode=0o755)
    private_directory(old)
    assert mode(old) == 0o700


def test_a_shared_directory_is_left_as_it_is(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    private_directory(shared)
    assert shared.stat().st_mode & 0o7777 == 0o1777


def test_what_is_no_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogUnavailable, match="file"):
        private_directory(tmp_path / "file")


def test_a_new_file_has_its_schema_and_its_version(tmp_path: Path) -> None:
    schema = Schema("CREATE TABLE t (x);", version=3, application_id=7, page_size=8192)
    with closing(open_database(tmp_path / "db", schema)) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
        assert pragma(connection, "user_version") == 3
        assert pragma(connection, "application_id") == 7
        assert pragma(connection, "page_size") == 8192
    with closing(open_database(tmp_path / "db", schema)) as connection:
        assert pragma(connection, "user_version") == 3


def test_without_a_path_it_is_in_memory() -> None:
    with closing(open_database(None, SCHEMA)) as connection:
        connection.execute("INSERT INTO t VALUES (1)")


UPGRADED = Schema(
    "CREATE TABLE t (x, y, z);",
    version=3,
    upgrades={
        0: "ALTER TABLE t ADD COLUMN w;",
        1: "ALTER TABLE t ADD COLUMN y;",
        2: "ALTER TABLE t ADD COLUMN z;",
    },
    application_id=7,
)


def test_an_older_file_is_brought_up_to_date_step_by_step(tmp_path: Path) -> None:
    with closing(open_database(tmp_path / "db", SCHEMA)) as connection:
        connection.execute("INSERT INTO t VALUES (1)")
    with closing(open_database(tmp_path / "db", UPGRADED)) as connection:
        assert connection.execute("SELECT x, y, z FROM t").fetchall() == [(1, None, None)]
        assert pragma(connection, "user_version") == 3


def test_a_file_from_before_versions_is_brought_up_to_date(tmp_path: Path) -> None:
    schema = Schema(
        "CREATE TABLE IF NOT EXISTS t (x);", upgrades={0: "CREATE TABLE IF NOT EXISTS t (x);"}
    )
    with closing(sqlite3.connect(tmp_path / "db")) as connection:
        connection.execute("CREATE TABLE t (x)")
    with closing(open_database(tmp_path / "db", schema)) as connection:
        assert pragma(connection, "user_version") == 1


def test_an_upgrade_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    broken = Schema(
        "",
        version=2,
        upgrades={1: "ALTER TABLE t ADD COLUMN y; ALTER TABLE missing ADD COLUMN y;"},
        application_id=7,
    )
    open_database(tmp_path / "db", SCHEMA).close()
    with pytest.raises(LogCorrupt, match="no such table"):
        open_database(tmp_path / "db", broken)
    with closing(open_database(tmp_path / "db", SCHEMA)) as connection:
        assert [name for _, name, *_ in connection.execute("PRAGMA table_info(t)")] == ["x"]


def test_an_upgrade_that_does_not_fit_the_file_is_damage(tmp_path: Path) -> None:
    """It is not the disk that refuses: the file is not as a version of ours left it."""
    newer = replace(SCHEMA, version=2, upgrades={1: "CREATE TABLE u (x);"})
    with closing(open_database(tmp_path / "db", SCHEMA)) as connection:
        connection.execute("CREATE TABLE u (x)")
    with pytest.raises(LogCorrupt, match="table u already exists; put a good copy"):
        open_database(tmp_path / "db", newer)


WHOLE = Schema(
    "CREATE TABLE t (x UNIQUE, y); CREATE TABLE u (x); CREATE INDEX t_by_y ON t (y);",
    version=2,
    upgrades={1: ""},
    application_id=7,
)


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ("DROP TABLE t", "table t is not there"),
        ("DROP TABLE u", "table u is not there"),
        ("DROP INDEX t_by_y", "index t_by_y is not there"),
        ("DROP INDEX t_by_y; ALTER TABLE t DROP COLUMN y", "column y of table t is not there"),
        ("DROP TABLE t; CREATE TABLE t (x, y)", "index sqlite_autoindex_t_1 is not there"),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_what_is_not_there_of_the_schema_is_damage(
    tmp_path: Path, lost: str, told: str, version: int
) -> None:
    """It is said when the file is opened, not when somebody first needs it."""
    with closing(open_database(tmp_path / "db", WHOLE)) as connection:
        connection.executescript(f"{lost}; PRAGMA user_version={version}")
    with pytest.raises(LogCorrupt, match=rf"db: {told}; put a good copy"):
        open_database(tmp_path / "db", WHOLE)
    with closing(sqlite3.connect(tmp_path / "db")) as connection:
        assert pragma(connection, "user_version") == version
    if version == WHOLE.version:
        with pytest.raises(LogCorrupt, match=f"{told}; put a good copy"):
            can_be_read_unchanged(tmp_path / "db", WHOLE)


def test_what_is_there_beside_the_schema_is_let_be(tmp_path: Path) -> None:
    """As what ``ANALYZE`` leaves, and a column that an older version had."""
    with closing(open_database(tmp_path / "db", WHOLE)) as connection:
        connection.executescript("INSERT INTO u VALUES (1); ALTER TABLE u ADD y; ANALYZE")
    open_database(tmp_path / "db", WHOLE).close()


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    open_database(tmp_path / "db", UPGRADED).close()
    with pytest.raises(LogTooNew, match=r"version 3 .* reads up to 1: run the newer tcprepl"):
        open_database(tmp_path / "db", SCHEMA)


@pytest.mark.parametrize("version", [0, -5])
def test_a_version_that_nobody_wrote_is_damage(tmp_path: Path, version: int) -> None:
    with closing(open_database(tmp_path / "db", SCHEMA)) as connection:
        connection.execute(f"PRAGMA user_version={version}")
    with pytest.raises(LogCorrupt, match=rf"schema version {version}, .* put a good copy"):
        open_database(tmp_path / "db", SCHEMA)


def test_the_file_of_another_program_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "db")) as connection:
        connection.execute("CREATE TABLE other (x)")
    with pytest.raises(LogCorrupt, match="another program"):
        open_database(tmp_path / "db", SCHEMA)


def test_a_name_in_the_schema_that_is_no_text_is_damage(tmp_path: Path) -> None:
    """SQLite names it in its message, which Python cannot read."""
    open_database(tmp_path / "db", SCHEMA).close()
    content = (tmp_path / "db").read_bytes()
    (tmp_path / "db").write_bytes(content.replace(b"CREATE TABLE ", b"CREATE TABL\xff\xff"))
    with pytest.raises(LogCorrupt, match="put a good copy"):
        open_database(tmp_path / "db", SCHEMA)


def test_what_is_no_database_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"no database at all, just text\n" * 1_000)
    with pytest.raises(LogCorrupt, match="db: file is not a database; put a good copy"):
        open_database(tmp_path / "db", SCHEMA)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    for opened in (open_database, open_reader):
        with pytest.raises(LogUnavailable, match="nowhere"):
            opened(tmp_path / "nowhere" / "db", SCHEMA)


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    open_database(tmp_path / "db", SCHEMA).close()
    with closing(open_reader(tmp_path / "db", SCHEMA)) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
        with pytest.raises(sqlite3.OperationalError):
            connection.execute("INSERT INTO t VALUES (1)")


def test_what_is_read_unchanged_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a?b#c%20" / "db"
    path.parent.mkdir()
    open_database(path, SCHEMA).close()
    before = path.read_bytes()
    assert left_beside(path) == []
    assert can_be_read_unchanged(path, SCHEMA)
    with closing(open_unchanged(path, SCHEMA)) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
        with pytest.raises(sqlite3.OperationalError):
            connection.execute("INSERT INTO t VALUES (1)")
        assert [file.name for file in path.parent.iterdir()] == ["db"]
    assert path.read_bytes() == before
    with closing(open_database(path, SCHEMA)) as writer:
        writer.execute("INSERT INTO t VALUES (1)")
        assert [file.name for file in left_beside(path)] == ["db-wal"]
        with closing(open_unchanged(path, SCHEMA)) as connection:
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (1,)


def test_what_cannot_be_read_unchanged(tmp_path: Path) -> None:
    """What is of an older version is to be made into today's; the rest is refused with why."""
    path = tmp_path / "db"
    with pytest.raises(LogUnavailable, match=r"cannot read .*db: No such file"):
        can_be_read_unchanged(path, SCHEMA)
    open_database(path, SCHEMA).close()
    newer = replace(SCHEMA, version=SCHEMA.version + 1, upgrades={SCHEMA.version: ""})
    assert not can_be_read_unchanged(path, newer)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version={SCHEMA.version + 1}")
    with pytest.raises(LogTooNew):
        can_be_read_unchanged(path, SCHEMA)
    (tmp_path / "db.migrating").touch()
    with pytest.raises(LogUnavailable, match=r"holds a part of what is migrated"):
        can_be_read_unchanged(path, SCHEMA)
    (tmp_path / "db.migrating").unlink()
    path.write_bytes(b"no database at all, just text\n" * 1_000)
    with pytest.raises(LogCorrupt):
        can_be_read_unchanged(path, SCHEMA)


def test_a_connection_that_cannot_be_set_up_is_closed(tmp_path: Path) -> None:
    open_database(tmp_path / "db", SCHEMA).close()
    made = mock.Mock()
    made.execute.side_effect = sqlite3.OperationalError("disk I/O error")
    with mock.patch.object(module.sqlite3, "connect", return_value=made):
        for opened in (open_database, open_reader):
            with pytest.raises(LogUnavailable, match="check the disk of"):
                opened(tmp_path / "db", SCHEMA)
    assert made.close.call_count == 2


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
def test_every_refusal_says_what_to_do(tmp_path: Path, text: str, advice: str) -> None:
    with (
        pytest.raises(LogUnavailable, match=f"{text}; {advice}"),
        explaining(tmp_path / "db", SCHEMA),
    ):
        raise sqlite3.OperationalError(text)


def test_a_database_in_memory_has_a_name_too() -> None:
    error = explained(sqlite3.OperationalError("database or disk is full"), None, SCHEMA)
    assert isinstance(error, LogError)
    assert "in memory" in str(error)


def test_a_text_that_is_none_is_damage(tmp_path: Path) -> None:
    """SQLite calls it an error of the program; no text of ours is but UTF-8."""
    with (
        closing(sqlite3.connect(tmp_path / "db")) as connection,
        pytest.raises(LogCorrupt, match="Could not decode"),
        explaining(tmp_path / "db", SCHEMA),
    ):
        connection.execute("SELECT CAST(x'ff' AS TEXT)").fetchall()


@pytest.mark.parametrize("statement", ["SELECT 1 FROM missing", "SELECT missing"])
def test_a_table_that_is_gone_is_damage(tmp_path: Path, statement: str) -> None:
    with (
        closing(sqlite3.connect(tmp_path / "db")) as connection,
        pytest.raises(LogCorrupt, match=r"no such .*; put a good copy"),
        explaining(tmp_path / "db", SCHEMA),
    ):
        connection.execute(statement)


def test_rows_of_other_types_are_damage() -> None:
    assert list(checked([(1, "a"), (2, "b")], [int, str], "t")) == [(1, "a"), (2, "b")]
    for row in ((1, b"a"), (1,), (1, "a", 2), (1.0, "a"), (None, "a"), (True, "a")):
        with pytest.raises(sqlite3.DatabaseError, match="a row of t is none"):
            list(checked([row], [int, str], "t"))


def test_a_transaction_is_all_or_nothing() -> None:
    with closing(open_database(None, SCHEMA)) as connection:
        with transaction(connection) as cursor:
            cursor.execute("INSERT INTO t VALUES (1)")
        for statement in ("INSERT INTO t VALUES (2)", "ROLLBACK"):
            with suppress(KeyError), transaction(connection) as cursor:
                cursor.execute(statement)
                raise KeyError
        assert connection.execute("SELECT x FROM t").fetchall() == [(1,)]
