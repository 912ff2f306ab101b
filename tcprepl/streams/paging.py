"""A page put together of the blocks that a database has, for as long as they are what was written.

Each block says which one came before it, and ``pairs`` says which is the newest: so one that is
gone is missed, as one that is damaged is found by its checksum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeAlias
from zlib import crc32

from tcprepl import limits
from tcprepl.ids import Token
from tcprepl.streams.blocks import merge
from tcprepl.streams.bodies import decode_block
from tcprepl.streams.engine import StoredPair
from tcprepl.streams.gaps import Cause, Gap
from tcprepl.streams.log import Block
from tcprepl.streams.pages import DiskPage

#: Of a block: its last token, when it was written, its checksum, its body.
StoredBlock: TypeAlias = tuple[Token, object, int, bytes]


def opened(
    pair: StoredPair, last: Token, written_ms: object, crc: int, body: bytes
) -> tuple[Block, Token | None]:
    """Return a block that is stored, and the last token of the one before it.

    Raises:
        ValueError: It is not what was written; says why.
    """
    if crc32(body) != crc:
        raise ValueError(f"the checksum of its block, at token {last}, does not match")
    if not isinstance(written_ms, int):
        raise ValueError(f"its block, at token {last}, has no time")
    try:
        block, before = decode_block(pair.stream, pair.instance, body, written_ms)
    except ValueError as error:
        raise ValueError(f"its block, at token {last}, is none: {error}") from error
    if block.last != last:
        raise ValueError(f"its block, at token {last}, ends at {block.last}")
    return block, before


class PageBuilder:
    """The page of a pair after a token; blocks are put in in their order.

    Attributes:
        blocks: What is in it.
        reached: Up to where it goes.
    """

    __slots__ = ("_after", "_before", "_pair", "_rows", "_size", "_words", "blocks", "reached")

    def __init__(
        self,
        pair: StoredPair,
        after: Token,
        before: Callable[[], Token],
        words: Callable[[str], str],
    ) -> None:
        """Begin with nothing.

        Args:
            pair: The pair.
            after: Where the page begins.
            before: Returns the last token of a block up to there; asked if the first is damaged.
            words: Returns what is said of damage, with what to do, given what it is.
        """
        self.blocks: list[Block] = []
        self.reached = after
        self._pair = pair
        self._after = after
        self._before = before
        self._words = words
        self._rows = self._size = 0

    def put(self, last: Token, written_ms: object, crc: int, body: bytes) -> DiskPage | None:
        """Put a block in; return the page if that ends before it, as it is full or by damage."""
        pair = self._pair
        try:
            block, before = opened(pair, last, written_ms, crc, body)
        except ValueError as error:
            return self.damaged(last, str(error))
        if before is not None and before > max(self.reached, pair.floor):
            return self._without_block(before)
        self._rows += len(block.tokens)
        self._size += len(block.lines)
        if self.blocks and (self._rows > limits.PAGE_ROWS or self._size > limits.PAGE_BYTES):
            return self.so_far()
        self.blocks.append(block)
        self.reached = last
        return None

    def so_far(self) -> DiskPage:
        """Return the page up to the last block of it."""
        return DiskPage(self._after, self.reached, merge(self.blocks))

    def ended(
        self, upto: Token, newest: Token, behind: Callable[[], Iterable[StoredBlock]]
    ) -> DiskPage:
        """Return the page up to *upto*: no block is left of what is in it.

        Args:
            upto: Up to where it goes, unless what comes behind says that rows are missing.
            newest: The last token of the newest block.
            behind: Returns the first block behind *upto*, if there is one.
        """
        if newest > upto:
            newest = 0
            for last, _, crc, body in behind():
                with suppress(ValueError):
                    _, before = opened(self._pair, last, 0, crc, body)
                    newest = min(before or 0, upto)
        if newest > max(self.reached, self._pair.floor):
            return self._without_block(newest)
        return DiskPage(self._after, upto, merge(self.blocks))

    def _without_block(self, upto: Token) -> DiskPage:
        return self.damaged(upto, f"no block has the rows up to token {upto}")

    def damaged(self, upto: Token, what: str) -> DiskPage:
        """Return the page before damage that ends with *upto*."""
        reached = self.blocks[-1].last if self.blocks else self._before()
        damage = Gap(reached, upto, Cause.DAMAGE, self._words(what))
        return DiskPage(self._after, max(self._after, reached), merge(self.blocks), damage)
