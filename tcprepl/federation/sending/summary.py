"""What is in an outbox, for people and metrics."""

from __future__ import annotations

from typing import Any

import msgpack

from tcprepl.federation.sending.commit_queue import Cursor
from tcprepl.federation.sending.lanes import Lane
from tcprepl.federation.sending.stored import QUARANTINED, Waiting
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
