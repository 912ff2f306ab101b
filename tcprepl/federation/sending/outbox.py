"""The outbox: every EDU that a sender has acknowledged and no remote has accepted yet.

What the sender appends and the position it read up to are committed together, so a restart
neither loses a row nor reads one twice. `tcprepl.federation.sending.outbox_file` has the file,
`tcprepl.federation.sending.journal` what has not got its rows in the tables yet.

A keyed EDU takes the place of the waiting one with the same destination, type and key. EDUs that
are in a transaction in flight are never replaced: the transaction is sent again just as it was.

It is one list of operations, a few statements each, that rely on what the others leave in the
tables: so it may be longer than other modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import msgpack
from twisted.internet.defer import Deferred

from tcprepl.federation.sending.backoff import Backoff
from tcprepl.federation.sending.commit_queue import CommitQueue, Cursor
from tcprepl.federation.sending.journal import Journal
from tcprepl.federation.sending.lanes import Entry
from tcprepl.federation.sending.outbox_file import OutboxFile
from tcprepl.federation.sending.stored import (
    QUARANTINED,
    SET_ASIDE,
    Refusal,
    StoredDestination,
    StoredTransaction,
    Waiting,
    end_transaction,
    forget_plain,
    forget_replaced,
    free,
    free_orphans,
    insert,
    insert_transaction,
    supersedes_key,
    unpack_entry,
)
from tcprepl.federation.sending.summary import (
    all_destinations,
    all_quarantined,
    by_destination,
    by_lane,
    in_quarantine,
    newest_ms,
)
from tcprepl.ids import Pair, ServerName, Token
from tcprepl.storage.sqlite import checked
from tcprepl.streams.lineage import Lineage

T = TypeVar("T")


class StoredOutbox(CommitQueue):
    """The EDUs of one sender in a database.

    Every method but the ones that say otherwise answers by a Deferred, which fires in the order of
    the calls, after the commit. Failures of the database are `OutboxUnavailable`.
    """

    def _recall(self, cursor: Cursor) -> None:
        self._journal = Journal(cursor)

    def _conclude(self, cursor: Cursor) -> None:
        self._journal.write(cursor)

    def _prepare(self, cursor: Cursor) -> None:
        self._journal.settle(cursor)
        free_orphans(cursor)
        self._last_id: int = cursor.execute("SELECT max(id) FROM edus").fetchone()[0] or 0
        #: Up to where rows are on disk.
        self._positions: dict[Pair, Token] = {
            (stream, instance): token
            for stream, instance, token in checked(
                cursor.execute("SELECT stream, instance, token FROM positions").fetchall(),
                [str, str, int],
                "positions",
            )
        }
        #: Whether an EDU may be aside, so that a newer one of its key has to take its place.
        self._any_aside = bool(
            cursor.execute(
                "SELECT EXISTS (SELECT 1 FROM edus WHERE transaction_id = ?)", (QUARANTINED,)
            ).fetchone()[0]
        )

    def _settled(self, destination: ServerName | None, op: Callable[[Cursor], T]) -> Deferred[T]:
        """Do *op* when everything of *destination*, or of all, is in the tables."""

        def settled(cursor: Cursor) -> T:
            self._journal.settle(cursor, destination)
            return op(cursor)

        return self.submit(settled)

    # -- reading at the start (synchronous) ---------------------------------------------------

    def destinations(self) -> dict[ServerName, StoredDestination]:
        """Return every destination with something on disk; synchronous, for the start."""
        return self._read(all_destinations)

    def newest_ms(self) -> int:
        """Return the newest stamp of what waits; 0 if nothing does. Synchronous, for the start."""
        return self._read(newest_ms)

    def positions(self) -> dict[Pair, Token]:
        """Return the positions up to which rows are on disk; synchronous."""
        return dict(self._positions)

    def lineages(self) -> dict[Pair, Lineage]:
        """Return in which incarnations the rows were got; synchronous, for the start."""
        return self._read(_lineages)

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

        def op(cursor: Cursor) -> None:
            if settled := self._journal.add(entries, queued_ms):
                insert(cursor, ((entry, queued_ms) for entry in settled))
                if self._any_aside:
                    cursor.executemany(
                        "DELETE FROM edus WHERE destination=? AND transaction_id IN (?,?)"
                        " AND supersedes=?",
                        [
                            (entry[2].destination, QUARANTINED, SET_ASIDE, supersedes_key(entry[2]))
                            for entry in settled
                            if entry[2].key is not None
                        ],
                    )
            for (stream, instance), token in positions.items():
                cursor.execute(
                    "INSERT INTO positions VALUES (?,?,?)"
                    " ON CONFLICT (stream, instance) DO UPDATE SET token=excluded.token",
                    (stream, instance, token),
                )
            for pair, lineage in lineages.items():
                cursor.execute(
                    "INSERT INTO lineages VALUES (?,?,?)"
                    " ON CONFLICT (stream, instance) DO UPDATE SET lineage=excluded.lineage",
                    (*pair, lineage),
                )

        return self.submit(op).addCallback(lambda _: self._positions.update(positions))

    def load(
        self, destination: ServerName, after: int, limit: int, *, any_put_off: bool = False
    ) -> Deferred[list[Entry]]:
        """Return what waits for *destination* with ids above *after*, oldest first.

        Args:
            destination: Who it is for.
            after: Exclusive lower bound of the ids.
            limit: Most EDUs to return.
            any_put_off: Whether a transaction is put off: then an EDU waits for an older one of
                its key that is in there, or the older one would arrive last.
        """
        sql = (
            "SELECT id, expires_ms, edu FROM edus"
            " WHERE destination=? AND transaction_id IS NULL AND id>?"
        )
        values: tuple[Any, ...] = (destination, after)
        if any_put_off:
            sql += (
                " AND (supersedes IS NULL OR supersedes NOT IN"
                " (SELECT older.supersedes FROM put_off JOIN edus AS older"
                " USING (destination, transaction_id)"
                " WHERE put_off.destination=? AND older.supersedes IS NOT NULL))"
            )
            values = (*values, destination)

        def op(cursor: Cursor) -> list[Entry]:
            rows = cursor.execute(f"{sql} ORDER BY id LIMIT ?", (*values, limit))
            return [unpack_entry(row[0], destination, row[1], row[2]) for row in rows]

        return self._settled(destination, op)

    def remove(self, destination: ServerName, ids: Iterable[int]) -> Deferred[None]:
        """Forget EDUs for *destination* that are not worth sending any more."""
        gone = [(edu_id,) for edu_id in ids]

        def op(cursor: Cursor) -> None:
            cursor.executemany("DELETE FROM edus WHERE id=? AND transaction_id IS NULL", gone)

        return self._settled(destination, op)

    def expire(self, now_ms: int, limit: int = 10_000) -> Deferred[int]:
        """Forget up to *limit* waiting EDUs whose time is over; answers how many.

        Those in quarantine go too, and are not counted.
        """

        def op(cursor: Cursor) -> int:
            if self._any_aside:
                cursor.execute(
                    "DELETE FROM edus WHERE expires_ms > 0 AND expires_ms <= ?"
                    " AND transaction_id = ?",
                    (now_ms, QUARANTINED),
                )
            cursor.execute(
                "DELETE FROM edus WHERE id IN (SELECT id FROM edus"
                " WHERE expires_ms > 0 AND expires_ms <= ? AND transaction_id IS NULL LIMIT ?)",
                (now_ms, limit),
            )
            return cursor.rowcount

        return self._settled(None, op)

    # -- transactions -------------------------------------------------------------------------

    def begin(self, begun: Sequence[tuple[ServerName, StoredTransaction]]) -> Deferred[None]:
        """Store that transactions are about to be sent: all of them, or none.

        It fails, as if the disk had refused, as long as the end of the one before to the same
        destination is not on disk: after a crash nobody would know that its EDUs had left under
        its id.

        Args:
            begun: Destination and transaction of each, one for a destination.
        """

        def op(cursor: Cursor) -> None:
            for destination, transaction in begun:
                if not self._journal.begin(destination, transaction):
                    self._begin_in_tables(cursor, destination, transaction)

        return self.submit(op)

    def _begin_in_tables(
        self, cursor: Cursor, destination: ServerName, transaction: StoredTransaction
    ) -> None:
        self._journal.settle(cursor, destination)
        insert_transaction(cursor, destination, transaction)
        transaction_id = transaction.transaction_id
        cursor.executemany(
            "UPDATE edus SET transaction_id=? WHERE id=?",
            [(transaction_id, entry[0]) for entry in transaction.entries],
        )
        if cursor.rowcount == len(transaction.entries):
            return
        # A newer EDU took the place of one of these after they were taken. They go
        # nevertheless, as a retry has to be equal.
        found = cursor.execute(
            "SELECT id FROM edus WHERE destination=? AND transaction_id=?",
            (destination, transaction_id),
        )
        there = {edu_id for (edu_id,) in found}
        others = [entry for entry in transaction.entries if entry[0] not in there]
        queued_ms = transaction.origin_server_ts
        insert(cursor, ((entry, queued_ms) for entry in others), transaction_id)

    def load_transaction(self, destination: ServerName) -> Deferred[StoredTransaction | None]:
        """Return the transaction to *destination* that was begun and not ended, if any."""

        def op(cursor: Cursor) -> StoredTransaction | None:
            row = cursor.execute(
                "SELECT transaction_id, origin_server_ts, ids FROM transactions"
                " WHERE destination=?",
                (destination,),
            ).fetchone()
            if row is None:
                return None
            found = {
                edu_id: unpack_entry(edu_id, destination, expires_ms, packed)
                for edu_id, expires_ms, packed in cursor.execute(
                    "SELECT id, expires_ms, edu FROM edus WHERE destination=? AND transaction_id=?",
                    (destination, row[0]),
                )
            }
            entries = [found[edu_id] for edu_id in msgpack.unpackb(row[2]) if edu_id in found]
            return StoredTransaction(row[0], row[1], entries, uncertain=True)

        return self._settled(destination, op)

    def finish(self, ended: Sequence[tuple[ServerName, str]]) -> Deferred[None]:
        """Forget transactions and their EDUs: the remotes have accepted them.

        Args:
            ended: Destination and transaction id of each.
        """

        def op(cursor: Cursor) -> None:
            for destination, transaction_id in ended:
                if self._journal.finish(destination, transaction_id):
                    continue
                cursor.execute(
                    "DELETE FROM edus WHERE destination=? AND transaction_id=?",
                    (destination, transaction_id),
                )
                end_transaction(cursor, destination, transaction_id)
                self._journal.left(cursor, destination)

        return self.submit(op)

    def dissolve(self, destination: ServerName, transaction_id: str) -> Deferred[None]:
        """Let the EDUs of a transaction wait again: the remote has not accepted them.

        Those that a newer one with the same key has replaced meanwhile are forgotten.
        """

        def op(cursor: Cursor) -> None:
            free(cursor, destination, transaction_id)
            end_transaction(cursor, destination, transaction_id)

        return self._settled(destination, op)

    def set_aside(
        self, destination: ServerName, transaction_id: str, mark: str, refusal: Refusal
    ) -> Deferred[None]:
        """Keep the EDUs of a transaction without sending them, until `release`.

        Those that a newer one with the same key has replaced meanwhile are forgotten.

        Args:
            destination: Who refused them.
            transaction_id: The transaction.
            mark: `QUARANTINED`, or `SET_ASIDE`, which does not outlive a restart.
            refusal: Why.
        """
        self._any_aside = True

        def op(cursor: Cursor) -> None:
            forget_replaced(cursor, destination, transaction_id)
            cursor.execute(
                "UPDATE edus SET transaction_id=?, refused_ms=?, refusal=?"
                " WHERE destination=? AND transaction_id=?",
                (mark, refusal.refused_ms, refusal.reason, destination, transaction_id),
            )
            end_transaction(cursor, destination, transaction_id)

        return self._settled(destination, op)

    def set_aside_again(self, destination: ServerName) -> Deferred[int]:
        """Set aside what waits and was refused alone before; answers how many EDUs that are."""
        self._any_aside = True

        def op(cursor: Cursor) -> int:
            cursor.execute(
                "UPDATE edus SET transaction_id=?"
                " WHERE destination=? AND transaction_id IS NULL AND refused_ms IS NOT NULL",
                (SET_ASIDE, destination),
            )
            return cursor.rowcount

        return self._settled(destination, op)

    def release(self, destination: ServerName, *marks: str) -> Deferred[int]:
        """Let what has one of *marks* wait again; answers how many EDUs that are."""

        def op(cursor: Cursor) -> int:
            return sum(free(cursor, destination, mark) for mark in marks)

        return self._settled(destination, op)

    def drop_quarantined(self, destination: ServerName) -> Deferred[int]:
        """Forget the EDUs of *destination* that are in quarantine; answers how many."""

        def op(cursor: Cursor) -> int:
            cursor.execute(
                "DELETE FROM edus WHERE destination=? AND transaction_id=?",
                (destination, QUARANTINED),
            )
            return cursor.rowcount

        return self._settled(destination, op)

    def put_off(self, destination: ServerName, transaction_id: str) -> Deferred[None]:
        """Keep a transaction as it is, and let another one begin meanwhile."""

        def op(cursor: Cursor) -> None:
            cursor.execute(
                "INSERT INTO put_off SELECT * FROM transactions"
                " WHERE destination=? AND transaction_id=?",
                (destination, transaction_id),
            )
            end_transaction(cursor, destination, transaction_id)

        return self._settled(destination, op)

    def take_back(self, destination: ServerName) -> Deferred[tuple[bool, int]]:
        """Let the transaction that was put off first be the one in flight again.

        Nothing changes while another one is in flight. Answers whether one was taken back, and
        how many are still put off.
        """

        def op(cursor: Cursor) -> tuple[bool, int]:
            cursor.execute(
                "INSERT INTO transactions SELECT * FROM put_off WHERE destination=?"
                " ORDER BY origin_server_ts, transaction_id LIMIT 1 ON CONFLICT DO NOTHING",
                (destination,),
            )
            cursor.execute(
                "DELETE FROM put_off WHERE destination=? AND transaction_id IN"
                " (SELECT transaction_id FROM transactions WHERE destination=?)",
                (destination, destination),
            )
            taken = cursor.rowcount > 0
            (left,) = cursor.execute(
                "SELECT count(*) FROM put_off WHERE destination=?", (destination,)
            ).fetchone()
            return taken, left

        return self._settled(destination, op)

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
                    backoff.refusing,
                )
            )
            if backoff.failures
            else None
        )

        def op(cursor: Cursor) -> None:
            cursor.execute(
                "INSERT INTO destinations (destination, backoff) VALUES (?,?)"
                " ON CONFLICT (destination) DO UPDATE SET backoff=excluded.backoff",
                (destination, packed),
            )
            forget_plain(cursor, destination)

        return self.submit(op)

    def set_paused(self, destination: ServerName, paused: bool) -> Deferred[None]:
        """Store whether *destination* is paused."""

        def op(cursor: Cursor) -> None:
            cursor.execute(
                "INSERT INTO destinations (destination, paused) VALUES (?,?)"
                " ON CONFLICT (destination) DO UPDATE SET paused=excluded.paused",
                (destination, int(paused)),
            )
            forget_plain(cursor, destination)

        return self.submit(op)

    def purge(self, destination: ServerName) -> Deferred[int]:
        """Forget every EDU for *destination*; answers how many."""

        def op(cursor: Cursor) -> int:
            cursor.execute("DELETE FROM edus WHERE destination=?", (destination,))
            gone = cursor.rowcount
            cursor.execute("DELETE FROM transactions WHERE destination=?", (destination,))
            cursor.execute("DELETE FROM put_off WHERE destination=?", (destination,))
            self._journal.left(cursor, destination)
            return gone

        return self._settled(destination, op)

    # -- for people and metrics ---------------------------------------------------------------

    def summary(
        self, destination: ServerName | None = None
    ) -> Deferred[dict[ServerName, dict[str, Waiting]]]:
        """Return what is on disk by destination and lane, quarantine as one more lane."""
        return self._settled(destination, lambda cursor: by_destination(cursor, destination))

    def quarantined(self, destination: ServerName) -> Deferred[list[dict[str, Any]]]:
        """Return what is known of the EDUs in quarantine, the newest, without their contents."""
        return self._settled(destination, lambda cursor: in_quarantine(cursor, destination))

    def all_quarantined(self) -> Deferred[dict[ServerName, int]]:
        """Return how many EDUs of each destination are in quarantine, where there are any."""
        return self._settled(None, all_quarantined)

    def totals(self) -> Deferred[dict[str, Waiting]]:
        """Return what is on disk by lane."""
        return self._settled(None, by_lane)


class Outbox(StoredOutbox, OutboxFile):
    """The EDUs of one sender in a file."""


def _lineages(cursor: Cursor) -> dict[Pair, Lineage]:
    rows = cursor.execute("SELECT stream, instance, lineage FROM lineages").fetchall()
    found = checked(rows, [str, str, bytes], "lineages")
    return {(stream, instance): Lineage(kept) for stream, instance, kept in found}
