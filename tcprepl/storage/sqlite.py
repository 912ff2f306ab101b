"""The one door to SQLite: how a file of ours is opened, kept private, checked and explained.

Every database of the package comes through `open_database`, so that all of them have the same
promises: a file that only its owner can read, WAL, a stated durability, a schema with a version
(a newer one is refused, an older one brought up to date), and errors that say what to do.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

from tcprepl.errors import LogCorrupt, LogError, LogTooNew, LogUnavailable

#: How long another program that holds a file may hold a statement up.
BUSY_TIMEOUT_S: Final = 5.0
#: What only its owner may use.
PRIVATE_FILE: Final = 0o600
PRIVATE_DIRECTORY: Final = 0o700
#: Most bytes that a file may hold to be converted when it is opened (`Schema.shrinks`).
CONVERTED_BYTES: Final = 64 * 1024 * 1024
#: Most faults of one file that are named.
MOST_FAULTS: Final = 20
#: What a database is called, behind its name, until all that is migrated into it is there.
UNFINISHED: Final = ".migrating"
#: Files that SQLite keeps beside a database.
_COMPANIONS: Final = ("", "-wal", "-shm")
#: Of these, and of what it keeps besides, what holds a part of the database.
_WITH_CONTENT: Final = ("-wal", "-journal")


class Durability(Enum):
    """What of a committed transaction survives (the pragma ``synchronous``)."""

    POWER_CUT = "FULL"
    """Everything: each commit is an fsync."""
    PROCESS_DEATH = "NORMAL"
    """All but the last moments before a power cut; ``kill -9`` loses nothing."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What a database holds.

    Attributes:
        create: The statements that make it, for a file without tables.
        version: The version of the schema that they make, in ``user_version``.
        upgrades: From each older version, the statements that make the next one of it. Version 0
            with tables in it is a file from before there were versions.
        application_id: Marks the file as ours in ``application_id``; 0 does not.
        page_size: Bytes of a page, for a new file.
        besides: Statements that make what a new file has at first besides, and need not keep.
        shrinks: Whether a new file can give pages back that it does not need any more, step by
            step (``auto_vacuum=INCREMENTAL``).
        if_damaged: What whoever has a damaged file can do: the end of a sentence.
    """

    create: str
    version: int = 1
    upgrades: Mapping[int, str] = field(default_factory=dict)
    application_id: int = 0
    page_size: int = 4096
    besides: str = ""
    shrinks: bool = False
    if_damaged: str = "put a good copy in its place, or move it away to begin without it"


#: What SQLite or Python takes for a fault of the program, and is damage: our statements fit our
#: schema. The disk has numbers of its own.
_FAULT_OF_PROGRAM: Final = sqlite3.SQLITE_ERROR
_NO_TEXT: Final = "Could not decode"
#: What a schema has: a table or an index, its name, and of a table the name of a column.
_Part: TypeAlias = tuple[str, str, str | None]


def private_directory(path: Path) -> None:
    """Make *path* if need be, and let nobody else into it.

    A directory of somebody else's, or one that everybody shares (``/tmp``), is left as it is.

    Raises:
        LogUnavailable: it cannot be made, or is no directory.
    """
    try:
        path.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        found = path.stat()
        shared = found.st_uid != os.geteuid() or found.st_mode & stat.S_ISVTX
        if found.st_mode & 0o077 and not shared:
            path.chmod(PRIVATE_DIRECTORY)
    except OSError as error:
        raise LogUnavailable(f"cannot make {path}: {error.strerror}") from error


def _private_file(path: Path) -> None:
    """Make the file if need be, for its owner alone, before anything is written into it.

    What SQLite makes beside it gets the same mode.
    """
    with suppress(OSError):  # what cannot be opened SQLite says itself, and better
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE))
        for companion in _COMPANIONS:
            beside = path.with_name(path.name + companion)
            with suppress(FileNotFoundError):
                if beside.stat().st_mode & 0o077:
                    beside.chmod(PRIVATE_FILE)


def open_database(
    path: Path | None,
    schema: Schema,
    durability: Durability = Durability.POWER_CUT,
) -> sqlite3.Connection:
    """Return a connection in autocommit mode, which any one thread at a time may use.

    Args:
        path: The file, which is made if need be; None is a database in memory.
        schema: What it holds.
        durability: What survives of what is committed on this connection.

    Raises:
        LogCorrupt: the file is damaged, or another program's.
        LogTooNew: a newer version of tcprepl wrote it.
        LogUnavailable: it cannot be opened, the disk refuses, or a migration to there is not
            finished.
    """
    if path is not None:
        _refuse_unfinished(path)
        _private_file(path)
    with explaining(path, schema):
        connection = sqlite3.connect(
            ":memory:" if path is None else path,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            version = _checked_version(connection, path, schema)
            if version is None:
                connection.execute(f"PRAGMA page_size={schema.page_size}")
                if schema.shrinks:
                    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={durability.value}")
            connection.execute("PRAGMA journal_size_limit=67108864")
            connection.execute("PRAGMA trusted_schema=OFF")
            connection.execute("PRAGMA cell_size_check=ON")
            _bring_up_to_date(connection, version, path, schema)
            if schema.shrinks:
                _let_it_shrink(connection)
        except BaseException:
            connection.close()
            raise
    return connection


def _refuse_unfinished(path: Path) -> None:
    unfinished = path.with_name(path.name + UNFINISHED)
    if unfinished.exists():
        raise LogUnavailable(
            f"{unfinished} holds a part of what is migrated to {path.parent}: finish that with "
            f"tcprepl migrate URL {path.parent}, or remove the file"
        )


def _let_it_shrink(connection: sqlite3.Connection) -> None:
    """Convert a file from before files could shrink, if that takes but a moment.

    One that holds more stays as it is; README says how its owner converts it.
    """
    asked = ("auto_vacuum", "page_count", "freelist_count", "page_size")
    mode, pages, free, size = (connection.execute(f"PRAGMA {it}").fetchone()[0] for it in asked)
    if not mode and (pages - free) * size <= CONVERTED_BYTES:
        with suppress(sqlite3.OperationalError):  # no room on the disk for a second copy
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("VACUUM")


def open_reader(path: Path, schema: Schema) -> sqlite3.Connection:
    """Return a connection that cannot write to the database that `open_database` made.

    Raises:
        LogCorrupt: the file is damaged.
        LogUnavailable: it cannot be opened.
    """
    with explaining(path, schema):
        return _reading(path)


def open_unchanged(path: Path, schema: Schema) -> sqlite3.Connection:
    """Return a connection that reads a database which nobody writes to meanwhile.

    The file, and the directory that it is in, need not be writable, and stay as they are.

    Raises:
        LogCorrupt: the file is damaged.
        LogUnavailable: it cannot be read.
    """
    with explaining(path, schema):
        return _reading(uri_as_it_is(path), uri=True)


def can_be_read_unchanged(path: Path, schema: Schema) -> bool:
    """Return whether `open_unchanged` reads all of a database, without writing.

    It does not if an older version wrote it, or if what its last process left beside it is to be
    put into it first, in a directory that is not writable.

    Raises:
        LogCorrupt: the file is damaged, or another program's.
        LogTooNew: a newer version of tcprepl wrote it.
        LogUnavailable: it cannot be read, or a migration to there is not finished.
    """
    _refuse_unfinished(path)
    try:
        path.open("rb").close()
    except OSError as error:
        raise LogUnavailable(f"cannot read {path}: {error.strerror}") from error
    try:
        with explaining(path, schema), closing(open_unchanged(path, schema)) as connection:
            return _checked_version(connection, path, schema) == schema.version
    except LogUnavailable:
        return False


def left_beside(path: Path) -> list[Path]:
    """Return the files beside a database that hold a part of it: its last process was killed."""
    found = (path.with_name(path.name + companion) for companion in _WITH_CONTENT)
    return [beside for beside in found if beside.exists() and beside.stat().st_size]


def uri_as_it_is(path: Path) -> str:
    """Return the URI of a database to be read; SQLite takes no lock where it finds all in it."""
    return f"{path.absolute().as_uri()}?mode=ro{'' if left_beside(path) else '&immutable=1'}"


def faults_of(path: Path) -> list[str]:
    """Return what SQLite finds wrong with how a file is built, which nobody writes to meanwhile.

    That takes reading all of it. What its rows hold is not looked at.
    """
    try:
        with closing(sqlite3.connect(uri_as_it_is(path), uri=True)) as reader:
            found = reader.execute(f"PRAGMA quick_check({MOST_FAULTS})").fetchall()
    except sqlite3.Error as error:
        return [str(error)]
    lines = [line for (text,) in found for line in str(text).splitlines()]
    # A heading names the database of the connection, of which there is but one.
    return [line for line in lines if line != "ok" and not line.startswith("***")]


def _reading(where: Path | str, *, uri: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(
        where, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, uri=uri
    )
    try:
        connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA cell_size_check=ON")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _checked_version(
    connection: sqlite3.Connection, path: Path | None, schema: Schema
) -> int | None:
    """Return the version of what the file holds, None for nothing; nothing is written before that.

    Raises:
        LogCorrupt: it holds what another program wrote, or is damaged.
        LogTooNew: it holds what a newer version of tcprepl wrote.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if not version and not tables:
        return None
    if application != schema.application_id:
        raise LogCorrupt(
            f"{path} is a database of another program: choose another data directory, or move "
            f"the file away"
        )
    if version > schema.version:
        raise LogTooNew(str(path), version, schema.version)
    if version < schema.version and version not in schema.upgrades:
        raise LogCorrupt(
            f"{path} has schema version {version}, which tcprepl never wrote; {schema.if_damaged}"
        )
    if version == schema.version:
        _check_parts(connection, path, schema)
    return int(version)


def _check_parts(connection: sqlite3.Connection, path: Path | None, schema: Schema) -> None:
    """Look whether all tables, columns and indexes of today's schema are there.

    What is there besides is let be.

    Raises:
        LogCorrupt: One is not.
    """
    missing = _made_by(schema.create) - _parts(connection)
    for kind, name, column in sorted(missing, key=_largest_first):
        what = f"{kind} {name}" if column is None else f"column {column} of table {name}"
        raise LogCorrupt(f"{path}: {what} is not there; {schema.if_damaged}")


@cache
def _made_by(create: str) -> frozenset[_Part]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(create)
        return _parts(connection)


def _largest_first(part: _Part) -> tuple[bool, bool, str, str]:
    kind, name, column = part
    return kind == "index", column is not None, name, column or ""


def _parts(connection: sqlite3.Connection) -> frozenset[_Part]:
    named = connection.execute("SELECT type, name, NULL FROM sqlite_schema")
    columns = connection.execute(
        "SELECT whole.type, whole.name, part.name FROM sqlite_schema AS whole"
        " JOIN pragma_table_info(whole.name) AS part WHERE whole.type = 'table'"
    )
    return frozenset((*named, *columns))


def _bring_up_to_date(
    connection: sqlite3.Connection, version: int | None, path: Path | None, schema: Schema
) -> None:
    """Make the tables, or those of an older version into today's, all or nothing."""
    if version == schema.version:
        return
    if version is None:
        steps = [schema.create, schema.besides]
    else:
        steps = [schema.upgrades[number] for number in range(version, schema.version)]
    script = "\n".join(
        (
            "BEGIN IMMEDIATE;",
            *steps,
            f"PRAGMA application_id={schema.application_id};",
            f"PRAGMA user_version={schema.version};",
        )
    )
    connection.executescript(script)
    _check_parts(connection, path, schema)
    connection.execute("COMMIT")


def checked(rows: Iterable[Sequence[Any]], types: Sequence[type], table: str) -> Iterator[Any]:
    """Yield *rows* of *table*, whose values a damaged file may give back as others.

    The type of a value is a number in the file, as easily damaged as the value.

    Args:
        rows: The rows.
        types: The type of each value.
        table: For people.

    Raises:
        sqlite3.DatabaseError: a value has another type.
    """
    for row in rows:
        if list(map(type, row)) != list(types):
            raise sqlite3.DatabaseError(f"a row of {table} is none: {tuple(row)!s:.200}")
        yield row


@contextmanager
def explaining(path: Path | None, schema: Schema) -> Iterator[None]:
    """Raise what SQLite raises within as one of our errors.

    Raises:
        LogUnavailable: the disk refused, or another program holds the file: a later try may
            succeed.
        LogCorrupt: the file is not what was written.
    """
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise explained(error, path, schema) from error


def explained(
    error: sqlite3.Error | UnicodeDecodeError, path: Path | None, schema: Schema
) -> LogError:
    """Return *error* as one of ours: what is wrong, where, and what to do."""
    text = str(error)
    where = "the database in memory" if path is None else str(path)
    code = getattr(error, "sqlite_errorcode", None)
    damaged = code == _FAULT_OF_PROGRAM or text.startswith(_NO_TEXT)
    if isinstance(error, sqlite3.OperationalError) and not damaged:
        directory = "" if path is None else path.parent
        if "full" in text:
            todo = f"free space in {directory}"
        elif "readonly" in text or "unable to open" in text:
            todo = f"make {directory} writable for this user"
        elif "locked" in text:
            todo = f"another program holds {where}: end it"
        else:
            todo = f"check the disk of {directory}"
        return LogUnavailable(f"{where}: {text}; {todo}")
    return LogCorrupt(f"{where}: {text}; {schema.if_damaged}")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Cursor]:
    """Do what is done within in one transaction: all of it once it ends, nothing if it raises."""
    cursor = connection.cursor()
    cursor.execute("BEGIN IMMEDIATE")
    try:
        yield cursor
        cursor.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            cursor.execute("ROLLBACK")
        raise
    finally:
        cursor.close()
