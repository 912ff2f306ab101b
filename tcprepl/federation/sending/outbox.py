"""The outbox: every EDU that a sender has acknowledged and no remote has accepted yet.

One SQLite database (WAL, synchronous=FULL) in the sender's data directory. What the sender
appends and the position it read up to are committed together, so a restart neither loses a row
nor reads one twice. All work is done in order by one thread; what is asked for while a commit
runs goes into the next one.

A keyed EDU takes the place of the waiting one with the same destination, type and key. EDUs that
are in a transaction in flight are never replaced: the transaction is sent again just as it was.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import msgpack
import structlog
from msgspec import Raw
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from tcprepl.errors import FederationError
from tcprepl.federation.sending.backoff import Backoff
from tcprepl.federation.sending.lanes import Entry, Lane, lane_of
from tcprepl.federation.wire.edu import Edu
from tcprepl.federation.wire.transaction import MAX_EDUS
from tcprepl.ids import Pair, ServerName, Token
from tcprepl.streams.lineage import Lineage

logger = structlog.get_logger()

T = TypeVar("T")
#: Runs a function elsewhere, one at a time, and answers with its result.
Runner: TypeAlias = Callable[[Callable[[], Any]], "Deferred[Any]"]

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE edus (
    id INTEGER PRIMARY KEY,
    destination TEXT NOT NULL,
    lane INTEGER NOT NULL,
    supersedes BLOB,
    queued_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    transaction_id TEXT,
    edu BLOB NOT NULL
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

#: Made in files of an earlier release, too, which take no notice of it.
_LINEAGES = """
CREATE TABLE IF NOT EXISTS lineages (
    stream TEXT NOT NULL,
    instance TEXT NOT NULL,
    lineage BLOB NOT NULL,
    PRIMARY KEY (stream, instance)
) WITHOUT ROWID;
"""

#: In the place of a transaction id: set aside, because the remote will not take it.
PARKED = ""


class OutboxError(FederationError):
    """The outbox cannot be used; the text says why and what to do."""


class OutboxUnavailable(OutboxError):
    """The disk refused; nothing of what was asked for happened, a later try may succeed."""


@dataclass(slots=True)
class StoredTransaction:
    """A transaction that was begun: what is needed to send it again just as it was.

    Attributes:
        transaction_id: Its id.
        origin_server_ts: When it was made, in ms.
        entries: Its EDUs.
        uncertain: Whether it was sent before, so that the remote may have it.
    """

    transaction_id: str
    origin_server_ts: int
    entries: list[Entry]
    uncertain: bool = False


@dataclass(slots=True)
class StoredDestination:
    """What the outbox knows of a destination when it is opened."""

    waiting: bool = False
    in_flight: bool = False
    paused: bool = False
    backoff: Backoff | None = None


@dataclass(slots=True)
class Waiting:
    """What waits for a destination in one lane."""

    edus: int
    size_bytes: int
    oldest_ms: int


def _pack(edu: Edu) -> bytes:
    packed: bytes = msgpack.packb((edu.edu_type, edu.origin, edu.key, bytes(edu.content)))
    return packed


def _supersedes(edu: Edu) -> bytes | None:
    if edu.key is None:
        return None
    packed: bytes = msgpack.packb((edu.edu_type, edu.key))
    return packed


def _entry(edu_id: int, destination: ServerName, expires_ms: int, packed: bytes) -> Entry:
    edu_type, origin, key, content = msgpack.unpackb(packed, use_list=False)
    return edu_id, expires_ms, Edu(Raw(content), destination, edu_type, origin, key)


class Outbox:
    """The EDUs of one sender on disk.

    Every method but `open` and the ones that say otherwise answers by a Deferred, which fires
    in the order of the calls, after the commit. Failures of the disk are `OutboxUnavailable`.
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
        self._pending: list[tuple[Callable[[sqlite3.Cursor], Any], Deferred[Any]]] = []
        self._running = False
        self._pumping = False
        self._closing: Deferred[None] | None = None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._claim()
            self._connection = self._connect()
            cursor = self._connection.cursor()
            last = cursor.execute("SELECT max(id) FROM edus").fetchone()[0]
        except sqlite3.Error as error:
            os.close(self._lock)
            raise OutboxError(
                f"{self.path}: {error}; move it away to start with an empty outbox "
                "(the EDUs in it are then not sent)"
            ) from error
        except OutboxError:
            os.close(self._lock)
            raise
        self._last_id: int = last or 0

    def _claim(self) -> None:
        """Take the lock that keeps a second process out."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutboxError(
                f"{self.path} is in use by another process: stop that one, "
                "or choose another data directory"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > _SCHEMA_VERSION:
                raise OutboxError(
                    f"{self.path} has schema version {version} and this program reads up to "
                    f"{_SCHEMA_VERSION}: run the newer tcprepl that wrote it"
                )
            if version == 0:
                connection.executescript(
                    f"BEGIN;{_SCHEMA}PRAGMA user_version={_SCHEMA_VERSION};COMMIT;"
                )
            connection.executescript(_LINEAGES)
            _free_orphans(connection.cursor())
        except BaseException:
            connection.close()
            raise
        return connection

    # -- reading at the start (synchronous) ---------------------------------------------------

    def destinations(self) -> dict[ServerName, StoredDestination]:
        """Return every destination with something on disk; synchronous, for the start."""
        found: dict[ServerName, StoredDestination] = {}
        execute = self._connection.execute
        rows: Iterable[Any] = execute("SELECT destination, paused, backoff FROM destinations")
        for destination, paused, backoff in rows:
            found[destination] = StoredDestination(
                paused=bool(paused),
                backoff=None if backoff is None else Backoff(*msgpack.unpackb(backoff)),
            )
        # One seek for each destination, however much waits for it.
        sql = "SELECT min(destination) FROM edus WHERE transaction_id IS NULL AND destination > ?"
        destination = execute(sql, ("",)).fetchone()[0]
        while destination is not None:
            found.setdefault(destination, StoredDestination()).waiting = True
            destination = execute(sql, (destination,)).fetchone()[0]
        for (destination,) in execute("SELECT destination FROM transactions"):
            found.setdefault(destination, StoredDestination()).in_flight = True
        return found

    def positions(self) -> dict[Pair, Token]:
        """Return the positions up to which rows are on disk; synchronous, for the start."""
        rows = self._connection.execute("SELECT stream, instance, token FROM positions")
        return {(stream, instance): token for stream, instance, token in rows}

    def lineages(self) -> dict[Pair, Lineage]:
        """Return in which incarnations the rows were got; synchronous, for the start."""
        rows = self._connection.execute("SELECT stream, instance, lineage FROM lineages")
        return {(stream, instance): Lineage(kept) for stream, instance, kept in rows}

    def take_ids(self, count: int) -> range:
        """Return *count* new ids, above all others."""
        first = self._last_id + 1
        self._last_id += count
        return range(first, first + count)

    # -- what waits ---------------------------------------------------------------------------

    def add(
        self,
        entries: Sequence[Entry],
        queued_ms: int,
        positions: Mapping[Pair, Token],
        lineages: Mapping[Pair, bytes] = MappingProxyType({}),
    ) -> Deferred[None]:
        """Store EDUs, and the positions up to which all rows are stored by that.

        Args:
            entries: The EDUs, with ids from `take_ids`, oldest first.
            queued_ms: When they came.
            positions: The positions.
            lineages: What `Lineage.stored` returned where it has changed.
        """

        def op(cursor: sqlite3.Cursor) -> None:
            if entries:
                cursor.executemany(
                    "INSERT OR REPLACE INTO edus VALUES (?,?,?,?,?,?,NULL,?)",
                    [
                        (
                            edu_id,
                            edu.destination,
                            lane_of(edu.edu_type),
                            _supersedes(edu),
                            queued_ms,
                            expires_ms,
                            _pack(edu),
                        )
                        for edu_id, expires_ms, edu in entries
                    ],
                )
            for (stream, instance), token in positions.items():
                cursor.execute(
                    "INSERT OR REPLACE INTO positions VALUES (?,?,?)", (stream, instance, token)
                )
            for pair, lineage in lineages.items():
                cursor.execute("INSERT OR REPLACE INTO lineages VALUES (?,?,?)", (*pair, lineage))

        return self._submit(op)

    def load(self, destination: ServerName, after: int, limit: int) -> Deferred[list[Entry]]:
        """Return what waits for *destination* with ids above *after*, oldest first."""

        def op(cursor: sqlite3.Cursor) -> list[Entry]:
            rows = cursor.execute(
                "SELECT id, expires_ms, edu FROM edus"
                " WHERE destination=? AND transaction_id IS NULL AND id>? ORDER BY id LIMIT ?",
                (destination, after, limit),
            )
            return [_entry(row[0], destination, row[1], row[2]) for row in rows]

        return self._submit(op)

    def remove(self, ids: Iterable[int]) -> Deferred[None]:
        """Forget EDUs that are not worth sending any more."""
        gone = [(edu_id,) for edu_id in ids]

        def op(cursor: sqlite3.Cursor) -> None:
            cursor.executemany("DELETE FROM edus WHERE id=? AND transaction_id IS NULL", gone)

        return self._submit(op)

    def expire(self, now_ms: int, limit: int = 10_000) -> Deferred[int]:
        """Forget up to *limit* waiting EDUs whose time is over; answers how many."""

        def op(cursor: sqlite3.Cursor) -> int:
            cursor.execute(
                "DELETE FROM edus WHERE id IN (SELECT id FROM edus"
                " WHERE expires_ms > 0 AND expires_ms <= ? AND transaction_id IS NULL LIMIT ?)",
                (now_ms, limit),
            )
            return cursor.rowcount

        return self._submit(op)

    # -- transactions -------------------------------------------------------------------------

    def begin(self, destination: ServerName, transaction: StoredTransaction) -> Deferred[None]:
        """Store that *transaction* is about to be sent."""
        ids = [entry[0] for entry in transaction.entries]
        packed = msgpack.packb(ids)

        def op(cursor: sqlite3.Cursor) -> None:
            transaction_id = transaction.transaction_id
            cursor.execute(
                "INSERT OR REPLACE INTO transactions VALUES (?,?,?,?)",
                (destination, transaction_id, transaction.origin_server_ts, packed),
            )
            cursor.executemany(
                "UPDATE edus SET transaction_id=? WHERE id=?",
                [(transaction_id, edu_id) for edu_id in ids],
            )
            if cursor.rowcount == len(ids):
                return
            # A newer EDU took the place of one of these after they were taken. They go
            # nevertheless, as a retry has to be equal.
            for edu_id, expires_ms, edu in transaction.entries:
                cursor.execute(
                    "INSERT OR IGNORE INTO edus VALUES (?,?,?,?,?,?,?,?)",
                    (
                        edu_id,
                        destination,
                        lane_of(edu.edu_type),
                        _supersedes(edu),
                        transaction.origin_server_ts,
                        expires_ms,
                        transaction_id,
                        _pack(edu),
                    ),
                )

        return self._submit(op)

    def load_transaction(self, destination: ServerName) -> Deferred[StoredTransaction | None]:
        """Return the transaction to *destination* that was begun and not ended, if any."""

        def op(cursor: sqlite3.Cursor) -> StoredTransaction | None:
            row = cursor.execute(
                "SELECT transaction_id, origin_server_ts, ids FROM transactions"
                " WHERE destination=?",
                (destination,),
            ).fetchone()
            if row is None:
                return None
            found = {
                edu_id: _entry(edu_id, destination, expires_ms, packed)
                for edu_id, expires_ms, packed in cursor.execute(
                    "SELECT id, expires_ms, edu FROM edus WHERE destination=? AND transaction_id=?",
                    (destination, row[0]),
                )
            }
            entries = [found[edu_id] for edu_id in msgpack.unpackb(row[2]) if edu_id in found]
            return StoredTransaction(row[0], row[1], entries, uncertain=True)

        return self._submit(op)

    def finish(self, destination: ServerName, transaction_id: str) -> Deferred[None]:
        """Forget a transaction and its EDUs: the remote has accepted them."""

        def op(cursor: sqlite3.Cursor) -> None:
            cursor.execute(
                "DELETE FROM edus WHERE destination=? AND transaction_id=?",
                (destination, transaction_id),
            )
            _end_transaction(cursor, destination, transaction_id)

        return self._submit(op)

    def dissolve(self, destination: ServerName, transaction_id: str) -> Deferred[None]:
        """Let the EDUs of a transaction wait again: the remote has not accepted them.

        Those that a newer one with the same key has replaced meanwhile are forgotten.
        """

        def op(cursor: sqlite3.Cursor) -> None:
            _free(cursor, destination, transaction_id)
            _end_transaction(cursor, destination, transaction_id)

        return self._submit(op)

    def park(self, destination: ServerName, transaction_id: str) -> Deferred[None]:
        """Set the EDUs of a transaction aside: kept, shown, but not sent until `unpark`."""

        def op(cursor: sqlite3.Cursor) -> None:
            cursor.execute(
                "UPDATE edus SET transaction_id=? WHERE destination=? AND transaction_id=?",
                (PARKED, destination, transaction_id),
            )
            _end_transaction(cursor, destination, transaction_id)

        return self._submit(op)

    def postpone(self, destination: ServerName, transaction_id: str) -> Deferred[None]:
        """Let the EDUs of a transaction wait again, behind all others."""
        new_ids = self.take_ids(MAX_EDUS)  # here, not in the thread that does the work

        def op(cursor: sqlite3.Cursor) -> None:
            ids = [
                edu_id
                for (edu_id,) in cursor.execute(
                    "SELECT id FROM edus WHERE destination=? AND transaction_id=? ORDER BY id",
                    (destination, transaction_id),
                )
            ]
            _free(cursor, destination, transaction_id)
            cursor.executemany(
                "UPDATE edus SET id=? WHERE id=?", list(zip(new_ids, ids, strict=False))
            )
            _end_transaction(cursor, destination, transaction_id)

        return self._submit(op)

    def unpark(self, destination: ServerName) -> Deferred[int]:
        """Let what was set aside wait again; answers how many EDUs that are."""
        return self._submit(lambda cursor: _free(cursor, destination, PARKED))

    # -- destinations -------------------------------------------------------------------------

    def set_backoff(self, destination: ServerName, backoff: Backoff) -> Deferred[None]:
        """Store the back-off of *destination*."""
        packed = (
            msgpack.packb(
                (
                    backoff.failures,
                    backoff.failure_ms,
                    backoff.last_ms,
                    backoff.interval_ms,
                    backoff.reason,
                )
            )
            if backoff.failures
            else None
        )

        def op(cursor: sqlite3.Cursor) -> None:
            cursor.execute(
                "INSERT INTO destinations (destination, backoff) VALUES (?,?)"
                " ON CONFLICT (destination) DO UPDATE SET backoff=excluded.backoff",
                (destination, packed),
            )
            _forget_plain(cursor, destination)

        return self._submit(op)

    def set_paused(self, destination: ServerName, paused: bool) -> Deferred[None]:
        """Store whether *destination* is paused."""

        def op(cursor: sqlite3.Cursor) -> None:
            cursor.execute(
                "INSERT INTO destinations (destination, paused) VALUES (?,?)"
                " ON CONFLICT (destination) DO UPDATE SET paused=excluded.paused",
                (destination, int(paused)),
            )
            _forget_plain(cursor, destination)

        return self._submit(op)

    def purge(self, destination: ServerName) -> Deferred[int]:
        """Forget every EDU for *destination*; answers how many."""

        def op(cursor: sqlite3.Cursor) -> int:
            cursor.execute("DELETE FROM edus WHERE destination=?", (destination,))
            gone = cursor.rowcount
            cursor.execute("DELETE FROM transactions WHERE destination=?", (destination,))
            return gone

        return self._submit(op)

    # -- for people and metrics ---------------------------------------------------------------

    def summary(
        self, destination: ServerName | None = None
    ) -> Deferred[dict[ServerName, dict[str, Waiting]]]:
        """Return what is on disk by destination and lane; set-aside EDUs as lane ``parked``."""

        def op(cursor: sqlite3.Cursor) -> dict[ServerName, dict[str, Waiting]]:
            found: dict[ServerName, dict[str, Waiting]] = {}
            for name, lane, parked, edus, size_bytes, oldest_ms in cursor.execute(
                "SELECT destination, lane, transaction_id IS '', count(*), sum(length(edu)),"
                " min(queued_ms) FROM edus WHERE ? IS NULL OR destination = ? GROUP BY 1, 2, 3",
                (destination, destination),
            ):
                lanes = found.setdefault(name, {})
                key = "parked" if parked else Lane(lane).name.lower()
                before = lanes.get(key, Waiting(0, 0, oldest_ms))
                lanes[key] = Waiting(
                    before.edus + edus,
                    before.size_bytes + size_bytes,
                    min(before.oldest_ms, oldest_ms),
                )
            return found

        return self._submit(op)

    def totals(self) -> Deferred[dict[str, Waiting]]:
        """Return what is on disk by lane."""

        def op(cursor: sqlite3.Cursor) -> dict[str, Waiting]:
            return {
                Lane(lane).name.lower(): Waiting(edus, size_bytes, oldest_ms)
                for lane, edus, size_bytes, oldest_ms in cursor.execute(
                    "SELECT lane, count(*), sum(length(edu)), min(queued_ms) FROM edus GROUP BY 1"
                )
            }

        return self._submit(op)

    # -- the work -----------------------------------------------------------------------------

    def flush(self) -> Deferred[None]:
        """Fire once everything asked for so far is done."""
        return self._submit(lambda cursor: None)

    def close(self) -> Deferred[None]:
        """Finish what was asked for, and close the file."""
        if self._closing is None:
            self._closing = self.flush().addBoth(lambda _: self._shut())
        return self._closing

    def _shut(self) -> None:
        self._connection.close()
        os.close(self._lock)

    def _submit(self, op: Callable[[sqlite3.Cursor], T]) -> Deferred[T]:
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
                batch, self._pending = self._pending, []
                self._running = True
                ops = [op for op, _ in batch]
                _ = self._run(partial(self._commit, ops)).addBoth(self._committed, batch)
        finally:
            self._pumping = False

    def _committed(
        self,
        results: list[Any] | Failure,
        batch: Sequence[tuple[object, Deferred[Any]]],
    ) -> None:
        self._running = False
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
            results = [op(cursor) for op in ops]
            cursor.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                cursor.execute("ROLLBACK")
            raise
        return results


def _free(cursor: sqlite3.Cursor, destination: ServerName, transaction_id: str) -> int:
    """Let the EDUs of a transaction wait again, but for those that were replaced meanwhile.

    Of several with one key, only the newest is left; one that is newer and under way counts,
    or the older would arrive after it. Returns how many wait again.
    """
    cursor.execute(
        "DELETE FROM edus WHERE destination=?1 AND transaction_id=?2 AND supersedes IS NOT NULL"
        " AND EXISTS (SELECT 1 FROM edus AS newer WHERE newer.destination=?1"
        " AND newer.supersedes=edus.supersedes AND newer.id > edus.id"
        " AND (newer.transaction_id IS NOT ?3 OR ?2 = ?3))",
        (destination, transaction_id, PARKED),
    )
    cursor.execute(
        "UPDATE OR REPLACE edus SET transaction_id=NULL WHERE destination=? AND transaction_id=?",
        (destination, transaction_id),
    )
    return cursor.rowcount


def _free_orphans(cursor: sqlite3.Cursor) -> None:
    """Let wait again what was sent when the disk refused to note its end."""
    orphans = cursor.execute(
        "SELECT DISTINCT destination, transaction_id FROM edus WHERE transaction_id <> ''"
        " AND (destination, transaction_id) NOT IN"
        " (SELECT destination, transaction_id FROM transactions)"
    ).fetchall()
    for destination, transaction_id in orphans:
        _free(cursor, destination, transaction_id)


def _end_transaction(cursor: sqlite3.Cursor, destination: ServerName, transaction_id: str) -> None:
    cursor.execute(
        "DELETE FROM transactions WHERE destination=? AND transaction_id=?",
        (destination, transaction_id),
    )


def _forget_plain(cursor: sqlite3.Cursor, destination: ServerName) -> None:
    """Forget a destination about which there is nothing to know."""
    cursor.execute(
        "DELETE FROM destinations WHERE destination=? AND backoff IS NULL AND NOT paused",
        (destination,),
    )


def run_inline(work: Callable[[], T]) -> Deferred[T]:
    """Run *work* here and now: a `Runner` for tests and for tools without a reactor."""
    return succeed(work())
