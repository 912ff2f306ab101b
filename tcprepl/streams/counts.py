"""What the file of a log says of how much its blocks hold, beside what they do hold.

Retention goes by the rows and bytes that are noted of each block, and of all blocks of a pair: a
wrong number lets rows go too early, or keeps them for ever.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from tcprepl.ids import Token
from tcprepl.protocol.display import counted
from tcprepl.streams.engine import StoredPair
from tcprepl.streams.looking import LookedAt
from tcprepl.streams.pages import DiskPage

_PUT_RIGHT = (
    "while the process is stopped, `UPDATE {} SET rows = {}, bytes = {} WHERE {}` puts that right"
)


class Counts:
    """The counts of a pair, whose pages are given one after the other."""

    def __init__(self, database: LookedAt, pair: StoredPair) -> None:
        """Begin with the first block, also where that is below the floor."""
        self._pair = pair
        self._named = database.named
        self._stored = database.oldest(pair, -1)
        self._next: tuple[Token, int, int, int] | None = None
        self._rows = self._size = 0
        #: Whether some blocks cannot be read; the pair cannot be judged then.
        self._damaged = False
        self._step()

    def of(self, page: DiskPage) -> Iterator[str]:
        """Yield what is wrong with the counts of the blocks of *page*."""
        block = page.block
        self._damaged |= page.damage is not None
        start = offset = 0
        while self._next is not None and self._next[0] <= page.upto:
            last, rows, size, _ = self._next
            if block is not None and page.after < last <= block.last:
                end = bisect_right(block.tokens, last, start)
                held = end - start, (block.ends[end - 1] if end else 0) - offset
                start, offset = end, offset + held[1]
                if held != (rows, size):
                    where = f"pair = {self._pair.id} AND last = {last}"
                    put_right = _PUT_RIGHT.format("blocks", *held, where)
                    yield (
                        f"{self._named}: the block at token {last} has {_words(*held)}, "
                        f"and {_words(rows, size)} are said of it; {put_right}"
                    )
                    rows, size = held
            self._rows += rows
            self._size += size
            self._step()

    def ended(self) -> Iterator[str]:
        """Yield what is wrong with the counts of the pair: no page is left."""
        while self._next is not None:
            _, rows, size, _ = self._next
            self._rows += rows
            self._size += size
            self._step()
        pair = self._pair
        held = self._rows, self._size
        if held != (pair.rows, pair.size_bytes) and not self._damaged:
            put_right = _PUT_RIGHT.format("pairs", *held, f"id = {pair.id}")
            yield (
                f"{self._named}: its blocks have {_words(*held)}, "
                f"and {_words(pair.rows, pair.size_bytes)} are said of them; {put_right}"
            )

    def _step(self) -> None:
        self._next = next(self._stored, None)
        self._damaged |= self._next is not None and not any(self._next[1:])


def _words(rows: int, size: int) -> str:
    return f"{counted(rows, 'row')} and {counted(size, 'byte')}"
