"""A durable stream of one instance: on disk, with its newest blocks in memory."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from itertools import islice

from tcprepl.errors import TokenFromFuture, TokenTooOld
from tcprepl.ids import Token
from tcprepl.streams.blocks import cut_page, empty_page
from tcprepl.streams.database import Database, StoredPair
from tcprepl.streams.log import Block, Page
from tcprepl.streams.retention import Bounds
from tcprepl.streams.ring import Ring

#: Blocks that are looked at in one go to find out what is beyond retention.
_EXPIRE_BLOCKS = 1_000


class DurableStream:
    """One (stream, instance) on disk, with its newest blocks in memory.

    Attributes:
        stored: What the database has of it; *position* and *floor* are what readers see.
        assigned: The newest token given out, in commits under way too.
        bound: What made the rows up to the floor go.
        trimming: Whether blocks are on their way out, so that counts are not right.
    """

    __slots__ = (
        "_database",
        "_fetched",
        "_recent",
        "assigned",
        "bound",
        "bounds",
        "stored",
        "trimming",
    )

    def __init__(self, stored: StoredPair, bounds: Bounds, database: Database) -> None:
        self.stored = stored
        self.assigned = stored.position
        self.bound = "retention"
        self.bounds = bounds
        self.trimming = False
        self._database = database
        self._recent = Ring()
        # the block fetched last, and a token from which on it is the next one
        self._fetched: tuple[Token, Block] | None = None

    @property
    def position(self) -> Token:
        """The newest published token."""
        return self.stored.position

    @property
    def floor(self) -> Token:
        """The oldest token from which a read is complete."""
        return self.stored.floor

    @property
    def restart_point(self) -> Token:
        """Where a reader that cannot be resumed starts anew: at the floor."""
        return self.stored.floor

    def published(self, block: Block, recent_bytes: int) -> None:
        """Take in a block that is on disk."""
        stored = self.stored
        stored.position = block.last
        stored.rows += len(block.tokens)
        stored.size_bytes += len(block.lines)
        recent = self._recent
        recent.append(block)
        while recent.size_bytes > recent_bytes:
            recent.evict()

    def read(
        self, after: Token, upto: Token, limit_rows: int, limit_bytes: int, compacted: bool
    ) -> Page:
        """Return a page, as `Log.read` says."""
        stored = self.stored
        if after > stored.position:
            raise TokenFromFuture(stored.stream, stored.instance, after, stored.position)
        if after < stored.floor:
            raise TokenTooOld(stored.stream, stored.instance, after, stored.floor, self.bound)
        upto = min(upto, stored.position)
        if after >= upto:
            return empty_page(max(upto, after))
        recent = self._recent
        if len(recent) and after + 1 >= recent.oldest.first:
            return cut_page(recent.after(after), after, upto, limit_rows, limit_bytes)
        with closing(self._from_disk(after)) as blocks:
            return cut_page(blocks, after, upto, limit_rows, limit_bytes)

    def _from_disk(self, after: Token) -> Generator[Block]:
        """Yield blocks from the disk, beginning with the one fetched last, if that is next.

        A page often ends before the block that was fetched last, or within it.
        """
        if self._fetched is not None:
            before, block = self._fetched
            if before <= after < block.last:
                yield block
                after = block.last
        for block in self._database.blocks(self.stored, after):
            self._fetched = (after, block)
            after = block.last
            yield block

    def beyond_retention(self, now_ms: int) -> Token:
        """Return the floor that the bounds ask for; the present one if they ask for nothing."""
        stored = self.stored
        floor = stored.floor
        if not stored.rows or self.trimming:
            return floor
        rows, size = stored.rows, stored.size_bytes
        with closing(self._database.oldest(stored, floor)) as blocks:
            for last, block_rows, block_bytes, written_ms in islice(blocks, _EXPIRE_BLOCKS):
                bound = self.bounds.excess(written_ms, size, rows, now_ms)
                if bound is None:
                    break
                self.bound = bound
                floor = last
                rows -= block_rows
                size -= block_bytes
        return min(floor, stored.position)

    def raise_floor(self, floor: Token) -> None:
        """Let go of what is at most *floor* in memory; readers are told from now on."""
        self.stored.floor = floor
        recent = self._recent
        while len(recent) and recent.oldest.last <= floor:
            recent.evict()
        self._fetched = None
