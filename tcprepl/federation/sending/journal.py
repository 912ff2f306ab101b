"""The journal of an outbox: what has just come, and is about to go.

Most EDUs are accepted by their remote moments after they came. To give each of them a row with
its places in four indexes, only to change and to delete that row, is most of what an outbox
costs. So what comes for a destination of which the tables hold nothing goes into the journal:
one row for all that a commit brings, begins and ends. What stays longer, or is asked for in any
way but "begin" and "finish", is settled: it gets its rows in the tables, and is there from then
on until nothing of its destination is left.

Invariant, after each commit: of a destination everything is in the tables, or everything that
counts in the journal is what `Journal` holds in memory, and the tables hold nothing of it. So the
journal is read at the start, settled, and empty again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import msgpack
from msgspec import Raw

from tcprepl.federation.sending.commit_queue import Cursor
from tcprepl.federation.sending.lanes import Entry
from tcprepl.federation.sending.stored import (
    StoredTransaction,
    insert,
    insert_transaction,
    is_stored,
    stored_destinations,
)
from tcprepl.federation.wire.edu import Edu, EduKey
from tcprepl.ids import ServerName

#: Bytes of a journal from which on all of it is settled, so that a start is quick.
MAX_JOURNAL_BYTES = 4 * 1024 * 1024

#: Kinds of records: EDUs came, a transaction began, it ended, a destination was settled.
_ADDED: Final = "a"
_BEGUN: Final = "b"
_FINISHED: Final = "f"
_SETTLED: Final = "s"

#: An EDU, and when it came.
_Queued: TypeAlias = tuple[Entry, int]
_Packed: TypeAlias = "tuple[int, int, ServerName, str, ServerName, EduKey | None, bytes]"


class _Fresh:
    """What the journal holds for one destination.

    Attributes:
        waiting: What waits, by id, oldest first, and when it came.
        begun: The transaction that was begun and not ended.
        begun_edus: Its EDUs, as they are in *waiting*.
    """

    __slots__ = ("_newest", "_queued_ms", "begun", "begun_edus", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[int, _Queued] = {}
        self.begun: StoredTransaction | None = None
        self.begun_edus: list[_Queued] = []
        self._newest: dict[tuple[str, EduKey], int] = {}
        self._queued_ms = 0

    def add(self, entry: Entry, queued_ms: int) -> None:
        """Note an EDU, in the place of the one with its key that waits."""
        edu_id, _, edu = entry
        if edu.key is not None:
            ident = edu.edu_type, edu.key
            older = self._newest.get(ident)
            if older is not None:
                self.waiting.pop(older, None)
            self._newest[ident] = edu_id
        self.waiting[edu_id] = entry, queued_ms
        self._queued_ms = queued_ms

    def begin(self, transaction: StoredTransaction) -> list[Entry]:
        """Note a transaction; return those of its EDUs that did not wait any more.

        A newer one of their key took their place after they were taken. They go nevertheless,
        as a retry has to be equal.
        """
        others: list[Entry] = []
        edus: list[_Queued] = []
        for entry in transaction.entries:
            queued = self.waiting.pop(entry[0], None)
            if queued is None:
                others.append(entry)
                queued = entry, self._queued_ms or transaction.origin_server_ts
            edus.append(queued)
        self.begun, self.begun_edus = transaction, edus
        return others

    def finish(self) -> None:
        """Forget the transaction."""
        self.begun, self.begun_edus = None, []


class Journal:
    """What of an outbox is in its journal; used within a commit, by the thread of the outbox.

    After a commit that failed it has to be made anew: what it holds is what is on disk.
    """

    def __init__(self, cursor: Cursor) -> None:
        """Read what the journal and the tables hold."""
        self._fresh: dict[ServerName, _Fresh] = {}
        #: Destinations of which the tables hold something, or may.
        self._stored = stored_destinations(cursor)
        self._records: list[tuple[Any, ...]] = []
        self._size_bytes = 0
        for (row,) in cursor.execute("SELECT records FROM journal ORDER BY id"):
            self._size_bytes += len(row)
            for record in msgpack.unpackb(row, use_list=False):
                self._replay(*record)

    # -- what goes in --------------------------------------------------------------------------

    def add(self, entries: Sequence[Entry], queued_ms: int) -> list[Entry]:
        """Take EDUs, in order; return those that belong into the tables."""
        elsewhere: list[Entry] = []
        taken: list[Entry] = []
        for entry in entries:
            destination = entry[2].destination
            fresh = self._fresh.get(destination)
            if fresh is None:
                if destination in self._stored:
                    elsewhere.append(entry)
                    continue
                fresh = self._fresh[destination] = _Fresh()
            fresh.add(entry, queued_ms)
            taken.append(entry)
        if taken:
            self._records.append((_ADDED, queued_ms, list(map(_pack, taken))))
        return elsewhere

    def begin(self, destination: ServerName, transaction: StoredTransaction) -> bool:
        """Note that *transaction* begins; False if that belongs into the tables."""
        fresh = self._fresh.get(destination)
        if fresh is None:
            if destination in self._stored:
                return False
            fresh = self._fresh[destination] = _Fresh()
        if fresh.begun is not None:
            return False
        others = fresh.begin(transaction)
        ids = [entry[0] for entry in transaction.entries]
        head = transaction.transaction_id, transaction.origin_server_ts
        self._records.append((_BEGUN, destination, *head, ids, list(map(_pack, others))))
        return True

    def finish(self, destination: ServerName, transaction_id: str) -> bool:
        """Forget a transaction and its EDUs; False if it is not here."""
        fresh = self._fresh.get(destination)
        if fresh is None or fresh.begun is None or fresh.begun.transaction_id != transaction_id:
            return False
        self._finished(destination, fresh)
        self._records.append((_FINISHED, destination))
        return True

    def _finished(self, destination: ServerName, fresh: _Fresh) -> None:
        fresh.finish()
        if not fresh.waiting:
            del self._fresh[destination]

    # -- what goes out -------------------------------------------------------------------------

    def settle(self, cursor: Cursor, destination: ServerName | None = None) -> None:
        """Give what is here of *destination*, or of all, its rows in the tables."""
        for name in list(self._fresh) if destination is None else (destination,):
            fresh = self._fresh.pop(name, None)
            if fresh is None:
                continue
            insert(cursor, fresh.waiting.values())
            if fresh.begun is not None:
                insert_transaction(cursor, name, fresh.begun)
                insert(cursor, fresh.begun_edus, fresh.begun.transaction_id)
            self._stored.add(name)
            self._records.append((_SETTLED, name))

    def left(self, cursor: Cursor, destination: ServerName) -> None:
        """Note that something of *destination* has left the tables: perhaps it was the last."""
        if not is_stored(cursor, destination):
            self._stored.discard(destination)

    def write(self, cursor: Cursor) -> None:
        """Write what has happened here since the last commit, as the last part of this one."""
        if not self._records:
            return
        row: bytes = msgpack.packb(self._records) if self._fresh else b""
        if self._size_bytes + len(row) > MAX_JOURNAL_BYTES:
            self.settle(cursor)
        if self._fresh:
            cursor.execute("INSERT INTO journal (records) VALUES (?)", (row,))
            self._size_bytes += len(row)
        elif self._size_bytes:
            cursor.execute("DELETE FROM journal")
            self._size_bytes = 0
        self._records.clear()

    # -- reading it ----------------------------------------------------------------------------

    def _replay(self, kind: str, *said: Any) -> None:
        """Do again what a record says."""
        if kind == _ADDED:
            queued_ms, entries = said
            for packed in entries:
                entry = _unpack(packed)
                self._fresh.setdefault(entry[2].destination, _Fresh()).add(entry, queued_ms)
            return
        destination = said[0]
        if kind == _BEGUN:
            _, transaction_id, origin_server_ts, ids, others = said
            fresh = self._fresh.setdefault(destination, _Fresh())
            found = {packed[0]: _unpack(packed) for packed in others}
            entries = [found.get(edu_id) or fresh.waiting[edu_id][0] for edu_id in ids]
            fresh.begin(StoredTransaction(transaction_id, origin_server_ts, entries))
        elif kind == _FINISHED:
            self._finished(destination, self._fresh[destination])
        else:
            del self._fresh[destination]


def _pack(entry: Entry) -> _Packed:
    edu_id, expires_ms, edu = entry
    return (
        edu_id,
        expires_ms,
        edu.destination,
        edu.edu_type,
        edu.origin,
        edu.key,
        bytes(edu.content),
    )


def _unpack(packed: _Packed) -> Entry:
    edu_id, expires_ms, destination, edu_type, origin, key, content = packed
    return edu_id, expires_ms, Edu(Raw(content), destination, edu_type, origin, key)
