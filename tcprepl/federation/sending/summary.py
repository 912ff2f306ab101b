"""What is in an outbox: for people and metrics, and for a sender that starts."""

from __future__ import annotations

from typing import Any

import msgpack

from tcprepl.federation.sending.backoff import Backoff
from tcprepl.federation.sending.commit_queue import Cursor
from tcprepl.federation.sending.lanes import Lane
from tcprepl.federation.sending.stored import (
    QUARANTINED,
    StoredDestination,
    Waiting,
    waiting_destinations,
)
from tcprepl.ids import ServerName

#: EDUs in quarantine that are shown one by one.
SHOWN_QUARANTINED = 100


def by_destination(
    cursor: Cursor, destination: ServerName | None
) -> dict[ServerName, dict[str, Waiting]]:
    """Return what is there by destination and lane, quarantine as one more lane."""
    found: dict[ServerName, dict[str, Waiting]] = {}
    for name, lane, quarantined, edus, size_bytes, oldest_ms in cursor.execute(
        "SELECT destination, lane, coalesce(transaction_id = '', 1 = 0), count(*),"
        " sum(length(edu)), min(queued_ms) FROM edus"
        " WHERE CAST(? AS TEXT) IS NULL OR destination = ? GROUP BY 1, 2, 3",
        (destination, destination),
    ):
        lanes = found.setdefault(name, {})
        key = "quarantined" if quarantined else Lane(lane).name.lower()
        before = lanes.get(key, Waiting(0, 0, oldest_ms))
        lanes[key] = Waiting(
            before.edus + edus,
            before.size_bytes + size_bytes,
            min(before.oldest_ms, oldest_ms),
        )
    return found


def in_quarantine(cursor: Cursor, destination: ServerName) -> list[dict[str, Any]]:
    """Return what is known of the EDUs in quarantine, the newest, without their contents."""
    return [
        {
            "id": edu_id,
            "edu_type": msgpack.unpackb(packed)[0],
            "bytes": len(packed),
            "queued_ms": queued_ms,
            "refused_ms": refused_ms,
            "reason": refusal,
        }
        for edu_id, packed, queued_ms, refused_ms, refusal in cursor.execute(
            "SELECT id, edu, queued_ms, refused_ms, refusal FROM edus"
            " WHERE destination=? AND transaction_id=? ORDER BY id DESC LIMIT ?",
            (destination, QUARANTINED, SHOWN_QUARANTINED),
        )
    ]


def by_lane(cursor: Cursor) -> dict[str, Waiting]:
    """Return what is there by lane."""
    return {
        Lane(lane).name.lower(): Waiting(edus, size_bytes, oldest_ms)
        for lane, edus, size_bytes, oldest_ms in cursor.execute(
            "SELECT lane, count(*), sum(length(edu)), min(queued_ms) FROM edus GROUP BY 1"
        )
    }


def all_destinations(cursor: Cursor) -> dict[ServerName, StoredDestination]:
    """Return every destination with something on disk."""
    found: dict[ServerName, StoredDestination] = {}
    execute = cursor.execute
    for destination, paused, backoff in execute(
        "SELECT destination, paused, backoff FROM destinations"
    ).fetchall():
        found[destination] = StoredDestination(
            paused=bool(paused),
            backoff=None if backoff is None else Backoff(*msgpack.unpackb(backoff)),
        )
    for destination in waiting_destinations(cursor):
        found.setdefault(destination, StoredDestination()).waiting = True
    for (destination,) in execute("SELECT destination FROM transactions"):
        found.setdefault(destination, StoredDestination()).in_flight = True
    for destination, count in execute(
        "SELECT destination, count(*) FROM put_off GROUP BY destination"
    ):
        found.setdefault(destination, StoredDestination()).put_off = count
    for destination, count in all_quarantined(cursor).items():
        found.setdefault(destination, StoredDestination()).quarantined = count
    return found


def all_quarantined(cursor: Cursor) -> dict[ServerName, int]:
    """Return how many EDUs of each destination are in quarantine, where there are any."""
    return dict(
        cursor.execute(
            "SELECT destination, count(*) FROM edus WHERE transaction_id = ? GROUP BY destination",
            (QUARANTINED,),
        ).fetchall()
    )


def newest_ms(cursor: Cursor) -> int:
    """Return the newest stamp of what waits; 0 if nothing does."""
    found = cursor.execute("SELECT queued_ms FROM edus ORDER BY id DESC LIMIT 1")
    (newest,) = found.fetchone() or (0,)
    rows = cursor.execute("SELECT backoff FROM destinations WHERE backoff IS NOT NULL").fetchall()
    failed = (Backoff(*msgpack.unpackb(packed)).last_ms for (packed,) in rows)
    return max(int(newest), *failed, 0)
