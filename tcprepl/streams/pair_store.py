"""The pairs in the database of a log, which is believed nothing that cannot be.

A flipped bit may say anything. A position that is too low would give tokens out twice, and a name
that is none would be told to readers who cannot read it: a log with such a row is damaged. So is
one with a position that nobody can have reached: few tokens would be left for what is published,
or none. One that is too high by less is believed: it may have been moved there, and costs no row.
"""

from __future__ import annotations

import sqlite3

from tcprepl.ids import Token
from tcprepl.limits import MAX_TOKEN
from tcprepl.storage.sqlite import checked
from tcprepl.streams.engine import StoredPair

#: For who has read that the position is damaged.
_PUT_RIGHT = "UPDATE pairs SET position = {} WHERE id = {}"
#: By how much a position is never above its newest block: where a relay takes its upstream to be
#: (`MAX_FIRST_TOKEN`, and `MAX_AHEAD_TOKENS` each twelve days) stays far below.
_MAX_MOVED = 2**62
_TYPES = [int, str, str, int, int, int, int]
_SELECT = "SELECT id, stream, instance, position, floor, rows, bytes, newest FROM pairs ORDER BY id"


def read_pairs(connection: sqlite3.Connection) -> list[StoredPair]:
    """Return every row of ``pairs``.

    Raises:
        sqlite3.DatabaseError: one cannot be.
    """
    found = connection.execute(_SELECT).fetchall()
    pairs = [StoredPair(*row) for row in checked([row[:-1] for row in found], _TYPES, "pairs")]
    for pair, row in zip(pairs, found, strict=True):
        newest = token_of(row[-1:])
        named = all(name and " " not in name for name in (pair.stream, pair.instance))
        placed = 0 <= pair.floor <= pair.position <= MAX_TOKEN and newest <= pair.position
        if not (named and placed):
            raise sqlite3.DatabaseError(f"a row of pairs cannot be: {row[1:]}")
        if newest and pair.position - newest >= _MAX_MOVED:
            raise sqlite3.DatabaseError(
                f"a row of pairs cannot be: {row[1:]}: nobody gets to {pair.position} from the "
                f"newest block, which ends at {newest}; while the process is stopped, "
                f"`{_PUT_RIGHT.format(newest, pair.id)}` puts that right"
            )
    return pairs


def token_of(row: tuple[object, ...] | None) -> Token:
    """Return the token in *row*; 0 if it has none, or what is no token."""
    return row[0] if row and isinstance(row[0], int) else 0
