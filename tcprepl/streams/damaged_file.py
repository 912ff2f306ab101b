"""Ways past what cannot be read in the SQLite file of a log."""

from __future__ import annotations

import sqlite3
from typing import TypeGuard

from tcprepl.ids import Token
from tcprepl.streams.sqlite_schema import SELECT_NEXT


def is_between(after: Token, last: object, upto: Token) -> TypeGuard[Token]:
    """Return whether *last* is a token in ``(after, upto]``."""
    return isinstance(last, int) and after < last <= upto


def end_of_damage(connection: sqlite3.Connection, pair: int, after: Token, upto: Token) -> Token:
    """Return where that which cannot be read after *after* ends, *upto* at the latest.

    If the file still tells where the next block ends, that is it. Otherwise a page of the file is
    broken with all its blocks, and the first place behind them is found by halves.
    """
    found = _next_last(connection, pair, after, upto)
    if found is not None:
        return found
    low, high = after, upto
    while high - low > 1:
        middle = (low + high) // 2
        if _next_last(connection, pair, middle, upto) is None:
            low = middle
        else:
            high = middle
    return high


def _next_last(
    connection: sqlite3.Connection, pair: int, after: Token, upto: Token
) -> Token | None:
    """Return the last token of the block after *after*; None if the file does not tell."""
    try:
        found = connection.execute(SELECT_NEXT, (pair, after, upto)).fetchone()
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        return None
    if found is None:
        return upto
    return found[0] if is_between(after, found[0], upto) else None
