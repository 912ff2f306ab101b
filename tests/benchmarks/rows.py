"""The rows that the benchmarks send: five streams in turn, lines of 120 to 400 bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

#: Streams in the order in which batches take their turn.
STREAMS = ("typing", "receipts", "presence", "federation", "events")

_HOST = "matrix.example.com"
_TIME_MS = 1_790_000_000_000


def row(stream: str, number: int) -> list[Any]:
    """Return row *number* of *stream*; the same number always gives the same row."""
    user = f"@user{number % 5_000}:{_HOST}"
    room = f"!AbCdEfGhIjKlMnOp{number % 700:03}:{_HOST}"
    event_id = f"$Zm9yIHRoZSBsb3ZlIG9mIGNhdHMgYW5kIGRvZ3M{number:07}"
    if stream == "typing":
        return [room, [f"@user{(number + i) % 5_000}:{_HOST}" for i in range(2 + number % 5)]]
    if stream == "receipts":
        return [room, "m.read", user, event_id, {"ts": _TIME_MS + number}]
    if stream == "presence":
        active = _TIME_MS + number
        return [user, "online", active, active - 7, active - 23, f"at desk {number % 97}", True]
    if stream == "federation":
        content = {"room_id": room, "user_id": user, "typing": number % 2 == 0}
        edu = {
            "edu_type": "m.typing",
            "content": content,
            "origin": _HOST,
            "destination": f"remote{number % 300}.example.org",
        }
        return ["k", {"key": [room, user], "edu": edu}]
    return ["ev", [event_id, room, "m.room.message", None, None, None, None, False, False]]


def batches(size: int) -> Iterator[tuple[str, list[list[Any]]]]:
    """Yield endlessly (stream, *size* rows), the streams taking turns."""
    number = 0
    while True:
        for stream in STREAMS:
            yield stream, [row(stream, number + i) for i in range(size)]
            number += size


def turns(kind: str, size: int, count: int) -> list[list[tuple[str, list[list[Any]]]]]:
    """Return *count* turns of a writer, each a list of (stream, rows) that it publishes.

    Args:
        kind: ``batch``: a turn brings *size* rows of one stream, in one call. ``each``: it
            brings *size* rows of all streams interleaved, each in a call of its own. ``calls``:
            it brings the same rows, those of a stream in one call.
        size: Rows in a turn.
        count: How many turns.
    """
    if kind == "batch":
        source = batches(size)
        return [[next(source)] for _ in range(count)]
    singles = batches(1)
    made = [[next(singles) for _ in range(size)] for _ in range(count)]
    if kind == "each":
        return made
    grouped: list[list[tuple[str, list[list[Any]]]]] = []
    for turn in made:
        calls: dict[str, list[list[Any]]] = {}
        for stream, (one,) in turn:
            calls.setdefault(stream, []).append(one)
        grouped.append(list(calls.items()))
    return grouped


def lines(count: int, *, instance: str = "master", run: int = 100) -> list[bytes]:
    """Return *count* ready RDATA lines of the newest dialect, each ended by LF.

    Args:
        count: How many.
        instance: Who writes them.
        run: Rows of one stream that follow one another; 1 interleaves the streams.
    """
    made: list[bytes] = []
    tokens = dict.fromkeys(STREAMS, 0)
    for stream, some in batches(run):
        for one in some:
            tokens[stream] += 1
            text = json.dumps(one, separators=(",", ":"))
            made.append(f"RDATA {stream} {instance} {tokens[stream]} {text}\n".encode())
        if len(made) >= count:
            return made[:count]
    raise AssertionError("batches never ends")
