"""A durable stream of one instance: on disk, with its newest blocks in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice

from tcprepl.ids import Token
from tcprepl.streams.blocks import cut_page
from tcprepl.streams.engine import Engine, StoredPair
from tcprepl.streams.gaps import Gap
from tcprepl.streams.log import Block, Page
from tcprepl.streams.pages import DiskPage, PageCache, Reading
from tcprepl.streams.retention import Bounds
from tcprepl.streams.ring import Ring

#: Blocks that are looked at in one go to find out what is beyond retention.
_EXPIRE_BLOCKS = 1_000


class DurableStream:
    """One (stream, instance) on disk, with its newest blocks in memory.

    Attributes:
        stored: What the database has of it; *position* and *floor* are what readers see.
        assigned: The newest token given out, in commits under way and refused too.
        least: The token above which a caller may name those of its own: the newest that is
            published or under way.
        bound: What made the rows up to the floor go.
        trimming: Whether blocks are on their way out, so that counts are not right.
    """

    __slots__ = (
        "_database",
        "_oldest",
        "_on_damage",
        "_pages",
        "_recent",
        "assigned",
        "bound",
        "bounds",
        "least",
        "stored",
        "trimming",
    )

    def __init__(
        self,
        stored: StoredPair,
        bounds: Bounds,
        database: Engine,
        pages: PageCache,
        on_damage: Callable[[StoredPair, Gap], object],
    ) -> None:
        self.stored = stored
        self.assigned = self.least = stored.position
        self.bound = "let go before the last start"
        self.bounds = bounds
        self.trimming = False
        #: A floor, and when the oldest block above it was written.
        self._oldest: tuple[Token, int] | None = None
        self._database = database
        self._pages = pages
        self._on_damage = on_damage
        self._recent = Ring()

    def take(self, token: Token) -> None:
        """Note that *token*, of a caller's or the next one, is given out."""
        self.assigned = max(self.assigned, token)
        self.least = token

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

    @property
    def size_bytes(self) -> int:
        """Bytes of the lines that are held; more while blocks are on their way out."""
        return self.stored.size_bytes

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

    def compactable(self, after: Token) -> bool:
        """Return False: rows that are gone are gone."""
        return False

    def page(
        self, after: Token, upto: Token, rows: int, size_bytes: int, reading: Reading | None = None
    ) -> Page | Reading:
        """Return a page, as `Source.page` says: at once if it is in memory."""
        recent = self._recent
        if len(recent) and after + 1 >= recent.oldest.first:
            return cut_page(recent.after(after), after, upto, rows, size_bytes)
        # what is in memory need not be read, and is not missed if the disk has lost it
        held = recent.oldest.first - 1 if len(recent) else self.position
        found = self._pages.get(self, after, held, reading)
        if isinstance(found, Reading):
            return found
        end = min(upto, found.upto)
        blocks = () if found.block is None else (found.block,)
        page = cut_page(blocks, after, end, rows, size_bytes)
        return page if page.limited or end == upto else replace(page, limited=True)

    def read_page(self, after: Token, upto: Token) -> DiskPage:
        """Return the page after *after*, from the disk (in the reading thread)."""
        return self._database.page(self.stored, after, upto)

    def note_damage(self, gap: Gap) -> None:
        """Take note that the rows of *gap* cannot be read."""
        self._on_damage(self.stored, replace(gap, after=max(gap.after, self.floor)))

    def may_exceed(self, now_ms: int) -> bool:
        """Return whether anything may be beyond the bounds, as far as is known without a look."""
        stored = self.stored
        if not stored.rows or self.trimming:
            return False
        floor, oldest_ms = self._oldest or (-1, 0)
        # Asked after every commit: most of the time what was found then is enough.
        return floor != stored.floor or bool(
            self.bounds.excess(oldest_ms, stored.size_bytes, stored.rows, now_ms)
        )

    def beyond_retention(self, now_ms: int) -> Token:
        """Return the floor that the bounds ask for; the present one if they ask for nothing.

        May be called in another thread than all else.
        """
        stored = self.stored
        floor = stored.floor
        if not self.may_exceed(now_ms):
            return floor
        rows, size = stored.rows, stored.size_bytes
        with closing(self._database.oldest(stored, floor)) as blocks:
            for last, block_rows, block_bytes, written_ms in islice(blocks, _EXPIRE_BLOCKS):
                bound = self.bounds.excess(written_ms, size, rows, now_ms)
                if bound is None:
                    self._oldest = floor, written_ms
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
