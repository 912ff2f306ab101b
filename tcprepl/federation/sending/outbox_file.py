"""The outbox's file: opened once, migrated, and written by one commit after the other.

One SQLite database (WAL, synchronous=FULL) in the sender's data directory.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgpack

from tcprepl.errors import LogCorrupt, LogError, LogLocked
from tcprepl.federation.sending.commit_queue import CommitQueue, Cursor, OutboxError, Runner
from tcprepl.storage.lock import DirectoryLock
from tcprepl.storage.sqlite import Schema, explaining, open_database, private_directory

T = TypeVar("T")

#: What comes of values that are not what was written: their types are in the file, too.
_DAMAGE: Final = (TypeError, ValueError, LookupError, msgpack.UnpackException)
#: The name of an outbox in its data directory.
OUTBOX_FILE: Final = "outbox.sqlite"

_PUT_OFF = """
CREATE TABLE put_off (
    destination TEXT NOT NULL,
    transaction_id TEXT NOT NULL,
    origin_server_ts INTEGER NOT NULL,
    ids BLOB NOT NULL,
    PRIMARY KEY (destination, transaction_id)
) WITHOUT ROWID;
"""
#: Made in files of an earlier release, too, which take no notice of it.
_LINEAGES = """
CREATE TABLE IF NOT EXISTS lineages (
    stream TEXT NOT NULL,
    instance TEXT NOT NULL,
    lineage BLOB NOT NULL,
    PRIMARY KEY (stream, instance)
) WITHOUT ROWID;
"""
_TABLES = """
CREATE TABLE edus (
    id INTEGER PRIMARY KEY,
    destination TEXT NOT NULL,
    lane INTEGER NOT NULL,
    supersedes BLOB,
    queued_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    transaction_id TEXT,
    edu BLOB NOT NULL,
    refused_ms INTEGER,
    refusal TEXT
);
CREATE INDEX edus_waiting ON edus (destination, id) WHERE transaction_id IS NULL;
CREATE UNIQUE INDEX edus_newest ON edus (destination, supersedes)
    WHERE supersedes IS NOT NULL AND transaction_id IS NULL;
CREATE INDEX edus_expiring ON edus (expires_ms) WHERE expires_ms > 0 AND transaction_id IS NULL;
CREATE INDEX edus_sent ON edus (destination, transaction_id) WHERE transaction_id IS NOT NULL;
CREATE TABLE transactions (
    destination TEXT PRIMARY KEY,
    transaction_id TEXT NOT NULL,
    origin_server_ts INTEGER NOT NULL,
    ids BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE destinations (
    destination TEXT PRIMARY KEY,
    paused INTEGER NOT NULL DEFAULT 0,
    backoff BLOB
) WITHOUT ROWID;
CREATE TABLE positions (
    stream TEXT NOT NULL,
    instance TEXT NOT NULL,
    token INTEGER NOT NULL,
    PRIMARY KEY (stream, instance)
) WITHOUT ROWID;
"""
_REFUSALS = """
ALTER TABLE edus ADD COLUMN refused_ms INTEGER;
ALTER TABLE edus ADD COLUMN refusal TEXT;
"""
_JOURNAL = """
CREATE TABLE journal (
    id INTEGER PRIMARY KEY,
    records BLOB NOT NULL
);
"""
SCHEMA = Schema(
    _TABLES + _PUT_OFF + _LINEAGES + _JOURNAL,
    version=3,
    upgrades={1: _REFUSALS + _PUT_OFF + _LINEAGES, 2: _LINEAGES + _JOURNAL},
    if_damaged="move it away to start with an empty outbox (the EDUs in it are then not sent)",
)


class OutboxFile(CommitQueue):
    """A file with one user at a time.

    Attributes:
        path: The file.
    """

    _failures = (sqlite3.Error,)

    def __init__(self, path: str | os.PathLike[str], run: Runner) -> None:
        """Open or create the outbox at *path*.

        Args:
            path: The database; its directory is made if need be.
            run: Runs the work; it may do so in another thread, but one call at a time.

        Raises:
            OutboxError: Another process has it, or it is not a usable outbox.
        """
        super().__init__(run)
        self.path = Path(path)
        self.where = str(self.path)
        try:
            private_directory(self.path.parent)
            self._lock = DirectoryLock(self.path.parent, f"{self.path.name}.lock")
        except LogLocked as error:
            raise OutboxError(
                f"{self.path} is in use by another process: stop that one, "
                "or choose another data directory"
            ) from error
        except (LogError, OSError) as error:
            raise OutboxError(f"{self.path}: {error}") from error
        try:
            self._connection = open_database(self.path, SCHEMA)
            try:
                with self._sound():
                    self._in_one([self._prepare])
            except LogError:
                self._connection.close()
                raise
        except LogError as error:
            self._lock.release()
            raise OutboxError(str(error)) from error

    def _shut(self) -> None:
        self._connection.close()
        self._lock.release()

    def _in_one(self, ops: Sequence[Callable[[Cursor], Any]]) -> list[Any]:
        cursor = self._connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        try:
            results = self._all(cursor, ops)
            cursor.execute("COMMIT")
        except BaseException:
            self._outdated = True
            if self._connection.in_transaction:
                cursor.execute("ROLLBACK")
            raise
        return results

    def _read(self, work: Callable[[Cursor], T]) -> T:
        try:
            with self._sound():
                return work(self._connection.cursor())
        except LogError as error:
            raise OutboxError(str(error)) from error

    @contextmanager
    def _sound(self) -> Iterator[None]:
        """Raise what is found within that no outbox holds as what it is: damage."""
        try:
            with explaining(self.path, SCHEMA):
                yield
        except _DAMAGE as error:
            raise LogCorrupt(
                f"{self.path}: a record in it is none of an outbox ({error}); {SCHEMA.if_damaged}"
            ) from error
