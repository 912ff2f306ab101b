"""Pages of the disk: read in a thread, shared by everybody who is at the same place.

What a cursor wants from the disk is a `DiskPage`: one block, or as many small ones as fit. It
is read by the log's reading worker, once for all who ask for it meanwhile, and kept for those
who come by later, up to a number of bytes. A page is found by any token in it, so that readers
who began at different places soon walk from page to page together.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

from tcprepl import limits
from tcprepl.errors import LogError, LogUnavailable
from tcprepl.ids import Token
from tcprepl.logger import get_logger
from tcprepl.storage.worker import Worker
from tcprepl.streams.gaps import Gap
from tcprepl.streams.log import Block

logger = get_logger(__name__)


class DiskPage(NamedTuple):
    """What the disk has of a pair in ``(after, upto]``.

    Attributes:
        after: Where it begins.
        upto: Up to where it is complete.
        block: Its rows as one block; None if there are none.
        damage: The gap in which *upto* stands, if the next block is damaged.
    """

    after: Token
    upto: Token
    block: Block | None = None
    damage: Gap | None = None


class Reading:
    """A page that is being read: the answer *not yet* of a cursor.

    Attributes:
        page: The page, once it is there.
        error: Why it could not be read.
    """

    __slots__ = ("_read_now", "_waiting", "error", "page")

    def __init__(self, read_now: Callable[[], object]) -> None:
        """Begin; *read_now* calls `end` before it returns."""
        self._read_now: Callable[[], object] | None = read_now
        self.page: DiskPage | None = None
        self.error: LogError | None = None
        self._waiting: list[Callable[[], object]] = []

    @property
    def done(self) -> bool:
        """Whether to ask the cursor again."""
        return self.page is not None or self.error is not None

    @property
    def awaited(self) -> bool:
        """Whether somebody waits already."""
        return bool(self._waiting)

    def tell(self, waiter: Callable[[], object]) -> None:
        """Call *waiter*, which must not raise, once it is time to ask again; at once if it is."""
        if self.done:
            waiter()
        else:
            self._waiting.append(waiter)

    def wait(self) -> None:
        """Hold the thread up until the page is there: only for who has nothing else to do."""
        if self._read_now is not None:
            self._read_now()

    def end(self, page: DiskPage | None, error: LogError | None) -> None:
        """Tell everybody who waits; for whoever reads."""
        self.page, self.error = page, error
        # It refers back to this; a page must not wait for a collector of garbage to go.
        self._read_now = None
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter()


class PageSource(Protocol):
    """A pair on disk, as its pages are read; the methods are called in the reading thread."""

    def read_page(self, after: Token, upto: Token) -> DiskPage:
        """Return the page after *after*, from the disk, where what is wanted ends at *upto*.

        Raises:
            LogError: The disk refuses.
        """
        ...

    def note_damage(self, gap: Gap) -> None:
        """Take note, in the reactor's thread, that the rows of *gap* cannot be read."""
        ...


class PageCache:
    """The pages read last, up to `limits.PAGE_CACHE_BYTES`, and those under way.

    Args:
        worker: Reads, in the order of the calls.
        ahead: Whether to read the page behind one that is handed out, if nobody waits for another:
            for a database, to which each page is a way there and back.
    """

    def __init__(self, worker: Worker, *, ahead: bool = False) -> None:
        self._worker = worker
        self._ahead = ahead
        self._pages: dict[tuple[PageSource, Token], DiskPage] = {}
        self._begins: dict[PageSource, list[Token]] = {}
        self._readings: dict[tuple[PageSource, Token], Reading] = {}
        self.size_bytes = 0
        self._closed = False

    def get(
        self, source: PageSource, after: Token, upto: Token, reading: Reading | None = None
    ) -> DiskPage | Reading:
        """Return the page that goes on after *after*, or what tells when it is there.

        Args:
            source: The pair.
            after: The last token that the reader has.
            upto: Up to where the disk is to be read; what has been published ends there, or
                what is in memory begins.
            reading: What it was answered last, whose page it may be.

        Raises:
            LogError: *reading* has failed.
        """
        if reading is not None and reading.done:
            if reading.error is not None:
                raise reading.error
            page = reading.page
            if page is not None and page.after <= after < page.upto:
                self._read_ahead(source, page, upto)
                return page
        found = self._find(source, after)
        if found is not None:
            self._read_ahead(source, found, upto)
            return found
        if self._closed:
            raise LogUnavailable("the log is closed")
        under_way = self._readings.get((source, after))
        if under_way is not None:
            return under_way
        return self._read(source, after, upto)

    def _read_ahead(self, source: PageSource, page: DiskPage, upto: Token) -> None:
        idle = self._ahead and not self._readings and not self._closed
        if idle and page.upto < upto and self._find(source, page.upto) is None:
            with suppress(LogError):  # whoever asks for it is told
                self._read(source, page.upto, upto)

    def _find(self, source: PageSource, after: Token) -> DiskPage | None:
        begins = self._begins.get(source)
        index = bisect_right(begins, after) if begins else 0
        if not begins or not index:
            return None
        key = (source, begins[index - 1])
        page = self._pages[key]
        if after >= page.upto:
            return None
        self._pages[key] = self._pages.pop(key)
        return page

    def _read(self, source: PageSource, after: Token, upto: Token) -> DiskPage | Reading:
        def done(page: DiskPage | None, error: BaseException | None) -> None:
            if reading.done:
                return  # somebody has waited for it
            del self._readings[source, after]
            if error is not None and not isinstance(error, LogError):
                logger.error("streams.read.failed", after=after, exc_info=error)
                error = LogUnavailable(f"the page after {after} cannot be read: {error!r}")
            if page is not None:
                if page.damage is not None:
                    source.note_damage(page.damage)
                if page.upto > after:
                    self._keep(source, page)
            reading.end(page, error)

        def read() -> DiskPage:
            return source.read_page(after, upto)

        def read_now() -> None:
            try:
                done(self._worker.call(read), None)
            except LogError as error:
                done(None, error)

        reading = self._readings[source, after] = Reading(read_now)
        self._worker.submit(read, done)
        if reading.error is not None:
            raise reading.error
        return reading if reading.page is None else reading.page

    def _keep(self, source: PageSource, page: DiskPage) -> None:
        self._drop((source, page.after))
        self._pages[source, page.after] = page
        insort(self._begins.setdefault(source, []), page.after)
        self.size_bytes += _size(page)
        while self.size_bytes > limits.PAGE_CACHE_BYTES:
            self._drop(next(iter(self._pages)))

    def _drop(self, key: tuple[PageSource, Token]) -> None:
        page = self._pages.pop(key, None)
        if page is not None:
            source, after = key
            begins = self._begins[source]
            del begins[bisect_right(begins, after) - 1]
            if not begins:
                del self._begins[source]
            self.size_bytes -= _size(page)

    def close(self) -> None:
        """Read no more; wait for what is being read."""
        self._closed = True
        self._worker.stop()


def _size(page: DiskPage) -> int:
    """Return the bytes that *page* takes, at least what an empty one does."""
    return 512 if page.block is None else 512 + len(page.block.lines)
