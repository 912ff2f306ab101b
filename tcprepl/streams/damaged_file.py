"""Ways past what cannot be read, or removed, in the SQLite file of a log."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator
from contextlib import closing
from typing import TypeAlias, TypeGuard

from tcprepl.ids import Token
from tcprepl.streams.sqlite_schema import SELECT_COUNTS, SELECT_NEXT

#: Of a block: its last token, rows, bytes of lines, and time in ms.
_Counts: TypeAlias = tuple[Token, int, int, int]


def is_between(after: Token, last: object, upto: Token) -> TypeGuard[Token]:
    """Return whether *last* is a token in ``(after, upto]``."""
    return isinstance(last, int) and after < last <= upto


def number_of(value: object) -> int:
    """Return a number of rows, bytes or ms; 0 for what a damaged file has in its place."""
    return value if isinstance(value, int) and value > 0 else 0


def oldest_blocks(
    connection: sqlite3.Connection, pair: int, after: Token, upto: Token
) -> Generator[_Counts]:
    """Yield (last token, rows, bytes, time in ms) of the blocks after *after*.

    What cannot be read before *upto* is a block of nothing that is older than all.
    """
    damaged = True
    while damaged and after < upto:
        after, damaged = yield from _counts(connection, pair, after, -1)
        if damaged:  # SQLite looks one ahead: what it has may be well alone
            reached, _ = yield from _counts(connection, pair, after, 1)
            if reached == after:
                reached = end_of_damage(connection, pair, after, upto)
                if reached < upto:
                    yield reached, 0, 0, 0
            after = reached


def _counts(
    connection: sqlite3.Connection, pair: int, after: Token, most: int
) -> Generator[_Counts, None, tuple[Token, bool]]:
    """Yield what *most* blocks say of themselves; return the last, and whether damage is behind."""
    with closing(connection.cursor()) as cursor:
        try:
            for last, *counts in cursor.execute(SELECT_COUNTS, (pair, after, most)):
                rows, size, written_ms = map(number_of, counts)
                yield last, rows, size, written_ms
                after = last
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            return after, True
    return after, False


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


def attempted(connection: sqlite3.Connection, work: Callable[[], object]) -> str:
    """Do *work* in a transaction of its own, all of it or nothing.

    After damage SQLite refuses all that a transaction goes on to write, also behind a savepoint.

    Returns:
        Which damage it met; "" if it is done.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        work()
        connection.execute("COMMIT")
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        connection.execute("ROLLBACK")
        return str(error)
    return ""
