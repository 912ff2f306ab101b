"""Producers in the database of a log: their state, and what they were answered.

What one commit answers to a producer is one row, so that many small appends cost one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgpack

from tcprepl.ids import ProducerName
from tcprepl.storage.sqlite import checked
from tcprepl.streams.log import Appended
from tcprepl.streams.producers import ANSWERS_KEPT, Answer, ProducerState

#: One row of ``answers`` holds what one commit answered to a producer.
CREATE_PRODUCERS = """
CREATE TABLE producers (
    name TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    used_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE answers (
    producer TEXT NOT NULL,
    last INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (producer, last)
) WITHOUT ROWID;
"""
#: A claim of a newer epoch may be on disk before an append of the one before it.
_UPSERT_PRODUCER = (
    "INSERT INTO producers (name, epoch, sequence, used_ms) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (name) DO UPDATE SET epoch = max(epoch, excluded.epoch),"
    " sequence = max(sequence, excluded.sequence), used_ms = max(used_ms, excluded.used_ms)"
)


def encode_answers(answers: Sequence[Answer]) -> bytes:
    """Return *answers*, whose numbers follow one another, as they are stored.

    Nearly all of them follow one another in one stream, too, and have as many tokens each.
    """
    runs: list[list[Any]] = []
    for _, appended, count in answers:
        stream, instance, first = appended.stream, appended.instance, appended.first
        width = (appended.last - first + 1) // count - 1
        if runs and runs[-1][:3] == [stream, instance, width]:
            run = runs[-1]
            if first == run[3] + run[4] * (width + 1):
                run[4] += count
                continue
        runs.append([stream, instance, width, first, count])
    body: bytes = msgpack.packb((answers[0].sequence, runs))
    return body


def decode_answers(body: bytes) -> Iterator[Answer]:
    """Yield the answers that *body* was made of, as few as they can be.

    Raises:
        TypeError, ValueError, msgpack.UnpackException: it is none of what `encode_answers` makes.
    """
    sequence, runs = msgpack.unpackb(body)
    for stream, instance, width, first, count in runs:
        if not (isinstance(stream, str) and isinstance(instance, str)):
            raise TypeError("a stream and an instance have names")
        last = first + count * (width + 1) - 1
        yield Answer(sequence, Appended(stream, instance, first, last), count)
        sequence += count


def read_producers(
    connection: sqlite3.Connection,
) -> Iterator[tuple[ProducerName, ProducerState, Iterator[Answer]]]:
    """Yield each producer with its answers, the one that was used last coming last."""
    found = connection.execute(
        "SELECT name, epoch, sequence, used_ms FROM producers ORDER BY used_ms"
    ).fetchall()
    for name, *state in checked(found, [str, int, int, int], "producers"):
        if min(state) < 0:
            raise sqlite3.DatabaseError(f"a row of producers cannot be: {(name, *state)}")
        bodies = connection.execute(
            "SELECT body FROM answers WHERE producer = ? ORDER BY last", (name,)
        ).fetchall()
        yield name, ProducerState(*state), _answers_in(bodies)


def _answers_in(bodies: Iterable[tuple[bytes]]) -> Iterator[Answer]:
    # All at once: what is wrong is the database's to say, and not for who goes through them.
    try:
        return iter([answer for (body,) in bodies for answer in decode_answers(body)])
    except (TypeError, ValueError, msgpack.UnpackException):
        raise sqlite3.DatabaseError("a row of answers is none") from None


def write_producers(
    connection: sqlite3.Connection,
    states: Mapping[ProducerName, ProducerState],
    answers: Mapping[ProducerName, Sequence[Answer]],
    forgotten: Iterable[ProducerName],
) -> None:
    """Forget, then write, within the transaction of the caller."""
    for name in forgotten:
        connection.execute("DELETE FROM answers WHERE producer = ?", (name,))
        connection.execute("DELETE FROM producers WHERE name = ?", (name,))
    connection.executemany(_UPSERT_PRODUCER, [(name, *state) for name, state in states.items()])
    for name, given in answers.items():
        last = given[-1].last
        connection.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (name, last, encode_answers(given))
        )
        connection.execute(
            "DELETE FROM answers WHERE producer = ? AND last <= ?", (name, last - ANSWERS_KEPT)
        )
