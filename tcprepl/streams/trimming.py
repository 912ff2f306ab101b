"""What goes from the SQLite file of a log: rows below the floors, old ids, pages without use.

It goes with what is written, in the same transaction, as long as the file is sound. One that is
damaged keeps what cannot be removed from it, and that alone: then it goes in transactions of its
own, so nobody is kept from writing, and other streams, and what stands behind the damage, go on.
What cannot be removed is passed over by this process, which tells so once; the next tries again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import Final

from tcprepl.ids import Token
from tcprepl.streams.block_store import delete_blocks
from tcprepl.streams.damaged_file import attempted, end_of_damage, number_of, oldest_blocks
from tcprepl.streams.engine import (
    EXPIRED_AT_ONCE,
    TRIMMED_BLOCKS,
    TRIMMED_BYTES,
    Commit,
    Freed,
)
from tcprepl.streams.sqlite_schema import DELETE_TRANSACTIONS

#: Pages that one commit gives back, and pages without use that a file may have.
_SHRUNK_PAGES: Final = 32
_SPARE_PAGES: Final = 256
#: What ``PRAGMA auto_vacuum`` says of a file that can shrink.
_INCREMENTAL: Final = 2
#: Below every token.
_BEFORE_ALL: Final = -1
_SELECT_OLDEST: Final = (
    "SELECT last, rows, bytes FROM blocks"
    " WHERE pair = ? AND last > ? AND last <= ? AND typeof(last) = 'integer' ORDER BY last LIMIT ?"
)


class Trimming:
    """Removes what has to go from one file; for the thread that writes."""

    def __init__(self) -> None:
        #: Up to where what is left of a pair cannot be removed.
        self._passed: dict[int, Token] = {}
        self._expires = True
        self._shrinks = True
        #: Pages given back of which the system has not seen the last.
        self._given = 0

    def clean(self, connection: sqlite3.Connection, commit: Commit) -> Freed:
        """Remove what *commit* says, as much as one should, within its transaction."""
        freed = Freed()
        self._expire(connection, commit)
        left = TRIMMED_BYTES
        for pair, floor in commit.trims.items():
            left -= self._trim(connection, pair, floor, left, freed)
        return freed

    def clean_around(self, connection: sqlite3.Connection, commit: Commit, freed: Freed) -> None:
        """Remove as much of what `clean` would as the damage of the file lets go.

        Each step is a transaction of its own, for the damage that it may meet, and in *freed* once
        it is done.
        """
        met = attempted(connection, lambda: self._expire(connection, commit))
        if met:
            self._expires = False
            freed.damaged.append((None, f"old transaction ids cannot be removed: {met}"))
        left = TRIMMED_BYTES
        for pair, floor in commit.trims.items():
            part = Freed()
            trim = partial(self._trim, connection, pair, floor, left, part)
            if attempted(connection, trim):
                part = Freed()
                self._trim_around(connection, pair, floor, part)
            freed.trimmed += part.trimmed
            freed.unfinished |= part.unfinished
            freed.damaged += part.damaged
            left -= sum(max(size, 0) for _, _, size in part.trimmed)
        shrunk = Freed()
        met = attempted(connection, lambda: self.shrink(connection, shrunk))
        if met:
            self._shrinks = False
            freed.damaged.append((None, f"pages of the file cannot be given back: {met}"))
        else:
            freed.spare, freed.shrunk = shrunk.spare, shrunk.shrunk

    def _expire(self, connection: sqlite3.Connection, commit: Commit) -> None:
        if commit.expire_before_ms is not None and self._expires:
            expired = (commit.expire_before_ms, EXPIRED_AT_ONCE)
            connection.execute(DELETE_TRANSACTIONS, expired)

    def _trim(
        self, connection: sqlite3.Connection, pair: int, floor: Token, left: int, freed: Freed
    ) -> int:
        """Remove blocks of *pair* with *left* bytes of lines or little more; return how many.

        Raises:
            sqlite3.DatabaseError: Some cannot be removed.
        """
        after = self._passed.get(pair, _BEFORE_ALL)
        found, met = _oldest(connection, pair, after, floor)
        if met:
            raise sqlite3.DatabaseError(met)
        lasts: list[Token] = []
        rows = size = 0
        sound = True
        for last, block_rows, block_bytes in found:
            if size >= left:
                break
            lasts.append(last)
            rows += number_of(block_rows)
            size += number_of(block_bytes)
            sound &= number_of(block_rows) > 0 < number_of(block_bytes)
        if lasts:
            delete_blocks(connection, pair, after, lasts[-1])
        had_rows, had_size = _counts(connection, pair)
        has = had_rows - rows, had_size - size
        if min(has) < 0 or not sound:  # what a block said of itself cannot be
            has = self._counted(connection, pair)
        _note(connection, pair, floor, has)
        freed.trimmed.append((pair, had_rows - has[0], had_size - has[1]))
        if len(lasts) < len(found) or len(found) == TRIMMED_BLOCKS:
            freed.unfinished[pair] = floor
        return size

    def _trim_around(
        self, connection: sqlite3.Connection, pair: int, floor: Token, freed: Freed
    ) -> None:
        """Remove the oldest blocks of *pair* that can be, up to damage that they begin with."""
        after = self._passed.get(pair, _BEFORE_ALL)
        found, met = _oldest(connection, pair, after, floor)
        if found:
            lasts = [last for last, *_ in found]
            reached = lasts[-1]
            met, kept = _delete(connection, pair, after, lasts)
        else:
            reached = kept = end_of_damage(connection, pair, after, floor)
        if met and pair not in self._passed:  # beside a broken page each trim may meet it again
            words = f"blocks cannot all be removed, the first of them up to token {kept}: {met}"
            freed.damaged.append((pair, words))
        if met:
            self._passed[pair] = kept
        if reached < floor:
            freed.unfinished[pair] = floor
        had = _counts(connection, pair)
        has = self._counted(connection, pair)
        attempted(connection, lambda: _note(connection, pair, floor, has))
        freed.trimmed.append((pair, had[0] - has[0], had[1] - has[1]))

    def _counted(self, connection: sqlite3.Connection, pair: int) -> tuple[int, int]:
        """Count the rows of *pair* and their bytes anew, without those that cannot be removed.

        Nobody could let go of those: if they counted, all that comes would go in their place.
        """
        rows = size = 0
        after = self._passed.get(pair, _BEFORE_ALL)
        found = connection.execute("SELECT position FROM pairs WHERE id = ?", (pair,)).fetchone()
        for _, block_rows, block_bytes, _ in oldest_blocks(
            connection, pair, after, number_of(found and found[0])
        ):
            rows += block_rows
            size += block_bytes
        return rows, size

    def shrink(self, connection: sqlite3.Connection, freed: Freed) -> None:
        """Give some pages back to the system, and note whether there are more.

        A part is kept: what is appended next needs pages, too.
        """
        (mode,) = connection.execute("PRAGMA auto_vacuum").fetchone()
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        spare = free - max(_SPARE_PAGES, (pages - free) // 4)
        if mode != _INCREMENTAL or not self._shrinks:
            return
        for _ in range(min(spare, _SHRUNK_PAGES)):
            # Asked for more it stops at each: Python takes what has no columns for the end.
            connection.execute("PRAGMA incremental_vacuum(1)")
            self._given += 1
        freed.spare = spare > _SHRUNK_PAGES
        freed.shrunk = not freed.spare and self._given >= _SPARE_PAGES
        if freed.shrunk:
            self._given = 0


def _counts(connection: sqlite3.Connection, pair: int) -> tuple[int, int]:
    """Return what ``pairs`` says of a pair's rows and their bytes."""
    held = connection.execute("SELECT rows, bytes FROM pairs WHERE id = ?", (pair,)).fetchone()
    rows, size = map(number_of, held or (0, 0))
    return rows, size


def _note(connection: sqlite3.Connection, pair: int, floor: Token, counts: tuple[int, int]) -> None:
    connection.execute(
        "UPDATE pairs SET floor = max(floor, ?), rows = ?, bytes = ? WHERE id = ?",
        (floor, *counts, pair),
    )


def _oldest(
    connection: sqlite3.Connection, pair: int, after: Token, floor: Token
) -> tuple[list[tuple[Token, object, object]], str]:
    """Return the oldest blocks that have to go, and the damage behind them, if there is any."""
    found: list[tuple[Token, object, object]] = []
    met = ""
    for most in (TRIMMED_BLOCKS, 1):  # SQLite looks one ahead: what it has may be well alone
        try:
            for last, *counts in connection.execute(_SELECT_OLDEST, (pair, after, floor, most)):
                found.append((last, *counts))
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            met = str(error)
        if found or not met:
            break
    return found, met


def _delete(
    connection: sqlite3.Connection, pair: int, after: Token, lasts: Sequence[Token]
) -> tuple[str, Token]:
    """Delete the blocks that end with *lasts*.

    Returns:
        Which damage kept some of them, "" if none did, and the last that it kept.
    """
    delete = partial(delete_blocks, connection, pair, after, lasts[-1])
    met = attempted(connection, delete)
    if not met:
        return "", after
    if len(lasts) == 1:
        # A body that cannot be removed keeps its own pages, and its block none.
        return attempted(connection, partial(delete, bodies=False)), lasts[-1]
    half = len(lasts) // 2
    first = _delete(connection, pair, after, lasts[:half])
    second = _delete(connection, pair, lasts[half - 1], lasts[half:])
    return second if second[0] else first
