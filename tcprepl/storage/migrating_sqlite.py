"""SQLite's sides of a migration: a data directory that nobody uses, and one that nobody can yet."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tcprepl.errors import LogError, LogUnavailable
from tcprepl.storage.lock import DirectoryLock
from tcprepl.storage.migration import BATCH_BYTES, BATCH_ROWS, Kind, Progress, Row, Table
from tcprepl.storage.sqlite import (
    UNFINISHED,
    Schema,
    explaining,
    open_database,
    private_directory,
    transaction,
)

_CREATE_MIGRATION: Final = """
CREATE TABLE migration (source TEXT NOT NULL, other TEXT NOT NULL, progress BLOB NOT NULL);
"""


class _SqliteSide:
    """A database in a directory, which is locked meanwhile."""

    def __init__(self, directory: Path, kind: Kind) -> None:
        self.where = str(directory)
        self._kind = kind
        self._lock = DirectoryLock(directory, kind.lock)
        self._schema: Schema = kind.sqlite
        self._path = directory / kind.file
        self._connection: sqlite3.Connection

    def count(self, table: Table) -> int:
        """Return how many rows there are."""
        with explaining(self._path, self._schema):
            found = self._connection.execute(f"SELECT {table.weighed} FROM {table.name}")  # noqa: S608
            return int(found.fetchone()[0])

    def read(self, table: Table, after: tuple[Any, ...] | None) -> list[Row]:
        """Return the next rows behind a key, in the order of keys; none at the end."""
        columns = ", ".join(table.sqlite.get(name, name) for name in table.columns)
        keys = ", ".join(table.keys)
        behind = "" if after is None else f"WHERE ({keys}) > ({', '.join('?' * table.key)})"
        statement = (
            f"SELECT {columns}, {table.size or 0} FROM {table.name} {behind}"  # noqa: S608
            f" ORDER BY {keys} LIMIT {BATCH_ROWS}"
        )
        rows: list[Row] = []
        left = BATCH_BYTES
        with explaining(self._path, self._schema):
            for *row, size in self._connection.execute(statement, after or ()):
                rows.append(tuple(row))
                left -= size
                if left <= 0:
                    break
        return rows

    def close(self) -> None:
        """Close the file and let others use it."""
        self._connection.close()
        self._lock.release()


class SqliteSource(_SqliteSide):
    """The database of a directory; it stays as it is."""

    def __init__(self, directory: Path, kind: Kind) -> None:
        """Open it.

        Raises:
            LogLocked: A process has it.
            LogUnavailable: There is none.
            LogError: It is none of ours, or damaged.
        """
        if not (directory / kind.file).exists():
            raise LogUnavailable(f"{directory}: there is no {kind.what}: no {kind.file} is in it")
        super().__init__(directory, kind)
        try:
            self._connection = open_database(self._path, self._schema)
        except LogError:
            self._lock.release()
            raise

    def release(self) -> None:
        """Do nothing: the lock has kept others out."""


class SqliteTarget(_SqliteSide):
    """A new database in a directory, under a name that nobody serves until it is complete."""

    first_id = 1

    def __init__(self, directory: Path, kind: Kind) -> None:
        """Open what an earlier attempt has left, or begin.

        Raises:
            LogLocked: A process has the directory.
            LogUnavailable: There is such a database already, or the disk refuses.
        """
        private_directory(directory)
        super().__init__(directory, kind)
        try:
            self._final = self._path
            if self._final.exists():
                raise LogUnavailable(
                    f"{self._final} is there already: move it away, or name another directory"
                )
            self._path = directory / f"{kind.file}{UNFINISHED}"
            self._schema = replace(kind.sqlite, besides=_CREATE_MIGRATION)
            self._connection = open_database(self._path, self._schema)
        except LogError:
            self._lock.release()
            raise

    def begin(self, identity: str, source: str) -> Progress | None:
        """Begin, or go on.

        Returns:
            How far it is; None if it is complete and only has to be compared.

        Raises:
            LogUnavailable: It is a part of another source.
        """
        with explaining(self._path, self._schema):
            marked = self._connection.execute(
                "SELECT 1 FROM sqlite_schema WHERE name = 'migration'"
            ).fetchone()
            if marked is None:
                return None
            found = self._connection.execute("SELECT * FROM migration").fetchone()
            if found is None:
                self._connection.execute(
                    "INSERT INTO migration VALUES (?, ?, ?)",
                    (identity, source, Progress().packed()),
                )
                return Progress()
        known, other, progress = found
        if known != identity:
            raise LogUnavailable(
                f"{self._path} is a part of {other}, which was another one, or has been served "
                "since: remove that file to begin anew"
            )
        return Progress.unpacked(progress)

    def write(self, table: Table, rows: Sequence[Row], progress: Progress) -> None:
        """Write rows and how far that is, all or nothing."""
        columns, places = ", ".join(table.columns), ", ".join("?" * len(table.columns))
        with explaining(self._path, self._schema), transaction(self._connection) as cursor:
            cursor.executemany(
                f"INSERT INTO {table.name} ({columns}) VALUES ({places})",  # noqa: S608
                rows,
            )
            cursor.execute("UPDATE migration SET progress = ?", (progress.packed(),))

    def finish(self) -> None:
        """Give it its name, once all of it is on disk in one file."""
        with explaining(self._path, self._schema):
            self._connection.execute("DROP TABLE IF EXISTS migration")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.execute("PRAGMA journal_mode=DELETE")
            self._connection.close()
        try:
            os.rename(self._path, self._final)
            directory = os.open(self._final.parent, os.O_RDONLY)
            try:
                with suppress(OSError):  # not every file system has it for directories
                    os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise LogUnavailable(f"cannot name {self._final}: {error.strerror}") from error
