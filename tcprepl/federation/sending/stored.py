"""What is stored in an outbox, and the statements that several of its operations need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgpack
from msgspec import Raw

from tcprepl.federation.sending.backoff import Backoff
from tcprepl.federation.sending.commit_queue import Cursor
from tcprepl.federation.sending.lanes import Entry, lane_of
from tcprepl.federation.wire.edu import Edu
from tcprepl.ids import ServerName

#: In the place of a transaction id: not sent any more, because the remote will not take it.
QUARANTINED = ""
#: In the place of a transaction id: not sent until the others were tried.
SET_ASIDE = "?"
_INSERT = (
    "INSERT INTO edus"
    " (id, destination, lane, supersedes, queued_ms, expires_ms, transaction_id, edu)"
    " VALUES (?,?,?,?,?,?,?,?)"
    " ON CONFLICT (destination, supersedes)"
    " WHERE supersedes IS NOT NULL AND transaction_id IS NULL"
    " DO UPDATE SET id=excluded.id, lane=excluded.lane, queued_ms=excluded.queued_ms,"
    " expires_ms=excluded.expires_ms, edu=excluded.edu, refused_ms=NULL, refusal=NULL"
)


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
    put_off: int = 0
    quarantined: int = 0
    paused: bool = False
    backoff: Backoff | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a remote would not take an EDU, and when it said so.

    Attributes:
        refused_ms: When, wall-clock time in ms.
        reason: Its answer, for people.
    """

    refused_ms: int
    reason: str


@dataclass(slots=True)
class Waiting:
    """What waits for a destination in one lane."""

    edus: int
    size_bytes: int
    oldest_ms: int


def pack(edu: Edu) -> bytes:
    """Return *edu* as it is stored."""
    packed: bytes = msgpack.packb((edu.edu_type, edu.origin, edu.key, bytes(edu.content)))
    return packed


def supersedes_key(edu: Edu) -> bytes | None:
    """Return what *edu* supersedes by as it is stored, None if it stands alone."""
    if edu.key is None:
        return None
    packed: bytes = msgpack.packb((edu.edu_type, edu.key))
    return packed


def unpack_entry(edu_id: int, destination: ServerName, expires_ms: int, packed: bytes) -> Entry:
    """Return the EDU that `pack` packed."""
    edu_type, origin, key, content = msgpack.unpackb(packed, use_list=False)
    return edu_id, expires_ms, Edu(Raw(content), destination, edu_type, origin, key)


def insert(
    cursor: Cursor, edus: Iterable[tuple[Entry, int]], transaction_id: str | None = None
) -> None:
    """Store EDUs that wait, or are of a transaction.

    Args:
        cursor: Of the commit.
        edus: The EDUs, oldest first, and when each came. One that waits takes the place of the
            one with its key that waits.
        transaction_id: The transaction.
    """
    cursor.executemany(
        _INSERT,
        [
            (
                edu_id,
                edu.destination,
                lane_of(edu.edu_type),
                supersedes_key(edu),
                queued_ms,
                expires_ms,
                transaction_id,
                pack(edu),
            )
            for (edu_id, expires_ms, edu), queued_ms in edus
        ],
    )


def insert_transaction(
    cursor: Cursor, destination: ServerName, transaction: StoredTransaction
) -> None:
    """Store that *transaction* began, without its EDUs."""
    cursor.execute(
        "INSERT INTO transactions VALUES (?,?,?,?)",
        (
            destination,
            transaction.transaction_id,
            transaction.origin_server_ts,
            msgpack.packb([entry[0] for entry in transaction.entries]),
        ),
    )


def waiting_destinations(cursor: Cursor) -> list[ServerName]:
    """Return for whom EDUs wait: one seek for each, however many EDUs there are."""
    found = cursor.execute(
        "WITH RECURSIVE names (name) AS ("
        " SELECT min(destination) FROM edus WHERE transaction_id IS NULL"
        " UNION ALL SELECT (SELECT min(destination) FROM edus"
        " WHERE transaction_id IS NULL AND destination > names.name)"
        " FROM names WHERE names.name IS NOT NULL)"
        " SELECT name FROM names WHERE name IS NOT NULL"
    )
    return [name for (name,) in found]


def stored_destinations(cursor: Cursor) -> set[ServerName]:
    """Return of whom there are EDUs or transactions."""
    others = cursor.execute(
        "SELECT destination FROM edus WHERE transaction_id IS NOT NULL"
        " UNION SELECT destination FROM transactions UNION SELECT destination FROM put_off"
    ).fetchall()
    return {name for (name,) in others}.union(waiting_destinations(cursor))


def is_stored(cursor: Cursor, destination: ServerName) -> bool:
    """Return whether there are EDUs or transactions of *destination*."""
    found = cursor.execute(
        "SELECT EXISTS (SELECT 1 FROM edus WHERE destination=? AND transaction_id IS NULL)"
        " OR EXISTS (SELECT 1 FROM edus WHERE destination=? AND transaction_id IS NOT NULL)"
        " OR EXISTS (SELECT 1 FROM transactions WHERE destination=?)"
        " OR EXISTS (SELECT 1 FROM put_off WHERE destination=?)",
        (destination,) * 4,
    )
    return bool(found.fetchone()[0])


def free(cursor: Cursor, destination: ServerName, transaction_id: str) -> int:
    """Let the EDUs of a transaction wait again, but for those that were replaced meanwhile.

    Returns how many wait again.
    """
    forget_replaced(cursor, destination, transaction_id)
    cursor.execute(
        "DELETE FROM edus WHERE destination=? AND transaction_id IS NULL AND supersedes IN"
        " (SELECT supersedes FROM edus WHERE destination=? AND transaction_id=?)",
        (destination, destination, transaction_id),
    )
    cursor.execute(
        "UPDATE edus SET transaction_id=NULL WHERE destination=? AND transaction_id=?",
        (destination, transaction_id),
    )
    return cursor.rowcount


def forget_replaced(cursor: Cursor, destination: ServerName, transaction_id: str) -> None:
    """Forget those EDUs of a transaction of which there is a newer one with the same key.

    One that is newer and under way counts, or the older would arrive after it.
    """
    cursor.execute(
        "DELETE FROM edus WHERE destination=? AND transaction_id=? AND supersedes IS NOT NULL"
        " AND EXISTS (SELECT 1 FROM edus AS newer WHERE newer.destination=?"
        " AND newer.supersedes=edus.supersedes AND newer.id > edus.id)",
        (destination, transaction_id, destination),
    )


def free_orphans(cursor: Cursor) -> None:
    """Let wait again what was sent when the disk refused to note its end, or was set aside."""
    orphans = cursor.execute(
        "SELECT DISTINCT destination, transaction_id FROM edus WHERE transaction_id <> ''"
        " AND (destination, transaction_id) NOT IN"
        " (SELECT destination, transaction_id FROM transactions"
        " UNION SELECT destination, transaction_id FROM put_off)"
    ).fetchall()
    for destination, transaction_id in orphans:
        free(cursor, destination, transaction_id)


def end_transaction(cursor: Cursor, destination: ServerName, transaction_id: str) -> None:
    """Forget that a transaction was begun."""
    cursor.execute(
        "DELETE FROM transactions WHERE destination=? AND transaction_id=?",
        (destination, transaction_id),
    )


def forget_plain(cursor: Cursor, destination: ServerName) -> None:
    """Forget a destination about which there is nothing to know."""
    cursor.execute(
        "DELETE FROM destinations WHERE destination=? AND backoff IS NULL AND paused=0",
        (destination,),
    )
