"""The outbox's file: opened once, migrated, and written by one commit after the other.

One SQLite database (WAL, synchronous=FULL) in the sender's data directory. All work is done in
order by one thread; what is asked for until it begins a commit goes into that one, what is asked
for while it commits goes into the next.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from tcprepl.errors import FederationError, LogError
from tcprepl.storage.sqlite import Schema, explaining, open_database, private_directory

T = TypeVar("T")
#: Runs a function elsewhere, one at a time, and answers with its result.
Runner: TypeAlias = Callable[[Callable[[], Any]], "Deferred[Any]"]
_Asked: TypeAlias = tuple[Callable[[sqlite3.Cursor], Any], "Deferred[Any]"]

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
_SCHEMA = Schema(
    _TABLES + _PUT_OFF + _LINEAGES + _JOURNAL,
    version=3,
    upgrades={1: _REFUSALS + _PUT_OFF + _LINEAGES, 2: _LINEAGES + _JOURNAL},
    if_damaged="move it away to start with an empty outbox (the EDUs in it are then not sent)",
)


class OutboxError(FederationError):
    """The outbox cannot be used; the text says why and what to do."""


class OutboxUnavailable(OutboxError):
    """The disk refused; nothing of what was asked for happened, a later try may succeed."""


class OutboxFile:
    """A database in which one thread does all the work, in order.

    Every call is answered by a Deferred, which fires in the order of the calls, after the
    commit. Failures of the disk are `OutboxUnavailable`.
    """

    def __init__(self, path: str | os.PathLike[str], run: Runner) -> None:
        """Open or create the outbox at *path*.

        Args:
            path: The database; its directory is made if need be.
            run: Runs the work; it may do so in another thread, but one call at a time.

        Raises:
            OutboxError: Another process has it, or it is not a usable outbox.
        """
        self.path = Path(path)
        self._run = run
        #: Appended to here, and taken from by the thread as it begins.
        self._pending: deque[_Asked] = deque()
        self._taken: list[_Asked] = []
        self._running = False
        self._pumping = False
        self._closing: Deferred[None] | None = None
        #: Whether memory may not be what is on disk: nothing was read yet, or a commit failed.
        self._outdated = True
        try:
            private_directory(self.path.parent)
            self._lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except (LogError, OSError) as error:
            raise OutboxError(f"{self.path}: {error}") from error
        try:
            self._claim()
            self._connection = open_database(self.path, _SCHEMA)
            try:
                with explaining(self.path, _SCHEMA):
                    self._in_one([self._prepare])
            except LogError:
                self._connection.close()
                raise
        except (LogError, OutboxError) as error:
            os.close(self._lock)
            raise OutboxError(str(error)) from error

    def _claim(self) -> None:
        """Take the lock that keeps a second process out."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutboxError(
                f"{self.path} is in use by another process: stop that one, "
                "or choose another data directory"
            ) from error

    def _prepare(self, cursor: sqlite3.Cursor) -> None:
        """Do what has to be done before the file is used; in a commit of its own."""

    def _recall(self, cursor: sqlite3.Cursor) -> None:
        """Read what has to be known of the file: at the start, and after a commit that failed."""

    def _conclude(self, cursor: sqlite3.Cursor) -> None:
        """Do what is left to do of a commit."""

    def flush(self) -> Deferred[None]:
        """Fire once everything asked for so far is done."""
        return self.submit(lambda cursor: None)

    def close(self) -> Deferred[None]:
        """Finish what was asked for, and close the file."""
        if self._closing is None:
            self._closing = self.flush().addBoth(lambda _: self._shut())
        return self._closing

    def _shut(self) -> None:
        self._connection.close()
        os.close(self._lock)

    def submit(self, op: Callable[[sqlite3.Cursor], T]) -> Deferred[T]:
        """Do *op* in one of the next commits; answers with what it returns."""
        done: Deferred[T] = Deferred()
        self._pending.append((op, done))
        self._pump()
        return done

    def _pump(self) -> None:
        """Run what is pending, in one commit after the other."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._pending and not self._running:
                self._running = True
                _ = self._run(self._commit_pending).addBoth(self._committed)
        finally:
            self._pumping = False

    def _commit_pending(self) -> list[Any]:
        """Commit what is pending by now; in the thread."""
        pending, taken = self._pending, self._taken
        while pending:
            taken.append(pending.popleft())
        return self._commit([op for op, _ in taken])

    def _committed(self, results: list[Any] | Failure) -> None:
        self._running = False
        if not self._taken:  # it was not even begun
            self._taken.extend(self._pending)
            self._pending.clear()
        batch, self._taken = self._taken, []
        if isinstance(results, Failure):
            results = [results] * len(batch)
        for (_, done), result in zip(batch, results, strict=True):
            if isinstance(result, Failure):
                done.errback(result)
            else:
                done.callback(result)
        self._pump()

    def _commit(self, ops: Sequence[Callable[[sqlite3.Cursor], Any]]) -> list[Any]:
        """Do *ops* in one commit; if that fails, each in its own."""
        try:
            return self._in_one(ops)
        except sqlite3.Error as error:
            if len(ops) == 1:
                return [self._unavailable(error)]
        results: list[Any] = []
        for op in ops:
            try:
                results += self._in_one([op])
            except sqlite3.Error as error:
                results.append(self._unavailable(error))
        return results

    def _unavailable(self, error: sqlite3.Error) -> Failure:
        failure: Failure = Failure(OutboxUnavailable(f"{self.path}: {error}"))
        return failure

    def _in_one(self, ops: Sequence[Callable[[sqlite3.Cursor], Any]]) -> list[Any]:
        cursor = self._connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        try:
            if self._outdated:
                self._recall(cursor)
                self._outdated = False
            results = [op(cursor) for op in ops]
            self._conclude(cursor)
            cursor.execute("COMMIT")
        except BaseException:
            self._outdated = True
            if self._connection.in_transaction:
                cursor.execute("ROLLBACK")
            raise
        return results


def run_inline(work: Callable[[], T]) -> Deferred[T]:
    """Run *work* here and now: a `Runner` for tests and for tools without a reactor."""
    return succeed(work())
