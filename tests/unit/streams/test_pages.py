"""Pages of the disk: read once, shared, found by any token in them, bounded."""

from __future__ import annotations

import gc

import pytest

from tcprepl import limits
from tcprepl.errors import LogUnavailable
from tcprepl.storage.worker import InlineWorker
from tcprepl.streams import pages as module
from tcprepl.streams.blocks import render
from tcprepl.streams.gaps import Cause, Gap
from tcprepl.streams.pages import DiskPage, PageCache, Reading
from tests.log_kit import LateWorker


class StoppedWorker(LateWorker):
    """One that notes its end."""

    stopped = False

    def stop(self) -> None:
        """Note it."""
        self.stopped = True


class Rows:
    """A pair with a row for each token up to 100, in pages of ten."""

    def __init__(self) -> None:
        self.reads: list[int] = []
        self.damage: list[Gap] = []
        self.error: Exception | None = None
        self.damaged_after = 1_000

    def read_page(self, after: int, upto: int) -> DiskPage:
        """Return ten rows."""
        self.reads.append(after)
        if self.error is not None:
            raise self.error
        if after == self.damaged_after:
            return DiskPage(after, after, None, Gap(after, after + 10, Cause.DAMAGE, "broken"))
        tokens = range(after + 1, after + 11)
        return DiskPage(after, after + 10, render("s", "i", tokens, [b"[]"] * 10, 0))

    def note_damage(self, gap: Gap) -> None:
        """Note it."""
        self.damage.append(gap)


@pytest.fixture
def worker() -> StoppedWorker:
    """Return a worker that waits."""
    return StoppedWorker()


def reading(found: DiskPage | Reading) -> Reading:
    """Return *found*, which is under way."""
    assert isinstance(found, Reading)
    assert not found.done
    return found


def test_who_asks_for_the_same_page_meanwhile_shares_it(worker: StoppedWorker) -> None:
    cache, rows, told = PageCache(worker), Rows(), []
    first = reading(cache.get(rows, 0, 100))
    assert cache.get(rows, 0, 100) is first
    assert cache.get(rows, 5, 100) is not first
    first.tell(lambda: told.append("one"))
    first.tell(lambda: told.append("two"))
    assert told == []
    worker.run()
    assert told == ["one", "two"]
    first.tell(lambda: told.append("late"))
    assert told[-1] == "late"
    assert rows.reads == [0, 5]
    assert cache.get(rows, 0, 100) == cache.get(rows, 3, 100) == first.page
    assert rows.reads == [0, 5]


def test_a_page_is_kept_for_who_comes_by_at_any_token_of_it() -> None:
    cache, rows, other = PageCache(InlineWorker()), Rows(), Rows()
    for after in (0, 10, 30):
        cache.get(rows, after, 100)
    for after, begin in ((0, 0), (9, 0), (10, 10), (19, 10), (30, 30), (39, 30)):
        page = cache.get(rows, after, 100)
        assert isinstance(page, DiskPage)
        assert page.after == begin
    assert rows.reads == [0, 10, 30]
    cache.get(rows, 20, 100)
    cache.get(other, 0, 100)
    assert (rows.reads, other.reads) == ([0, 10, 30, 20], [0])


def test_the_page_behind_is_read_while_nobody_waits(worker: StoppedWorker) -> None:
    cache, rows, other = PageCache(worker, ahead=True), Rows(), Rows()
    first = reading(cache.get(rows, 0, 30))
    worker.run()
    assert isinstance(cache.get(rows, 0, 30, first), DiskPage)
    worker.run()
    assert rows.reads == [0, 10]
    assert isinstance(cache.get(rows, 10, 30), DiskPage)
    assert isinstance(cache.get(rows, 10, 30), DiskPage)  # the next is on its way already
    reading(cache.get(other, 0, 10))
    assert isinstance(cache.get(rows, 0, 30), DiskPage)
    worker.run()
    assert (rows.reads, other.reads) == ([0, 10, 20], [0])
    assert isinstance(cache.get(rows, 20, 30), DiskPage)  # there is nothing behind it
    rows.error = LogUnavailable("away")
    inline = PageCache(InlineWorker(), ahead=True)
    with pytest.raises(LogUnavailable):
        inline.get(rows, 0, 30)
    rows.error = None
    inline.get(rows, 0, 30)
    rows.error = LogUnavailable("away")
    assert isinstance(inline.get(rows, 0, 30), DiskPage)  # whoever asks for the next is told
    cache.close()
    assert isinstance(cache.get(rows, 0, 30), DiskPage)


def test_the_pages_used_longest_ago_go(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, rows = PageCache(InlineWorker()), Rows()
    cache.get(rows, 0, 100)
    monkeypatch.setattr(limits, "PAGE_CACHE_BYTES", cache.size_bytes * 2 + 50)
    cache.get(rows, 10, 100)
    cache.get(rows, 0, 100)
    cache.get(rows, 20, 100)
    assert rows.reads == [0, 10, 20]
    cache.get(rows, 0, 100)
    assert rows.reads == [0, 10, 20]
    cache.get(rows, 10, 100)
    assert rows.reads == [0, 10, 20, 10]
    assert cache.size_bytes <= limits.PAGE_CACHE_BYTES
    monkeypatch.setattr(limits, "PAGE_CACHE_BYTES", 0)
    page = cache.get(rows, 40, 100)
    assert isinstance(page, DiskPage)
    assert (cache.size_bytes, cache._pages, cache._begins) == (0, {}, {})


def test_who_waited_for_a_page_gets_it_even_if_it_is_not_kept(
    worker: StoppedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a thousand readers at a thousand places could ask for ever."""
    monkeypatch.setattr(limits, "PAGE_CACHE_BYTES", 0)
    cache, rows = PageCache(worker), Rows()
    waited = reading(cache.get(rows, 0, 100))
    worker.run()
    assert cache.get(rows, 0, 100, waited) == waited.page
    assert cache.get(rows, 4, 100, waited) == waited.page
    # it has gone on meanwhile
    reading(cache.get(rows, 10, 100, waited))
    assert rows.reads == [0]


def test_a_page_that_is_read_again_replaces_the_one_before(worker: StoppedWorker) -> None:
    cache, rows = PageCache(worker), Rows()
    waited = reading(cache.get(rows, 0, 100))
    waited.wait()
    assert rows.reads == [0]
    assert waited.page is not None
    size = cache.size_bytes
    worker.run()  # the job that was given before somebody waited
    waited.wait()
    assert (rows.reads, cache.size_bytes) == ([0, 0], size)
    cache._keep(rows, DiskPage(0, 10))
    assert (cache.size_bytes, len(cache._pages)) == (512, 1)


def test_a_disk_that_refuses_is_told_to_who_waited_and_asked_again(worker: StoppedWorker) -> None:
    cache, rows, told = PageCache(worker), Rows(), []
    for error, says in ((LogUnavailable("away"), "away"), (ValueError("odd"), "odd")):
        rows.error = error
        waited = reading(cache.get(rows, 0, 100))
        waited.tell(lambda: told.append(1))
        worker.run()
        with pytest.raises(LogUnavailable, match=says):
            cache.get(rows, 0, 100, waited)
    waited = reading(cache.get(rows, 0, 100))
    rows.error = LogUnavailable("away")
    waited.wait()
    assert waited.error is rows.error
    rows.error = None
    page = PageCache(InlineWorker()).get(rows, 0, 100)
    assert isinstance(page, DiskPage)
    rows.error = LogUnavailable("away")
    with pytest.raises(LogUnavailable):
        PageCache(InlineWorker()).get(rows, 0, 100)
    assert told == [1, 1]


def test_damage_is_noted_before_anybody_asks_again(worker: StoppedWorker) -> None:
    cache, rows = PageCache(worker), Rows()
    rows.damaged_after = 10
    waited = reading(cache.get(rows, 10, 100))
    waited.tell(lambda: told.append(len(rows.damage)))
    told: list[int] = []
    worker.run()
    assert told == [1]
    assert rows.damage == [Gap(10, 20, Cause.DAMAGE, "broken")]
    assert cache.size_bytes == 0
    reading(cache.get(rows, 10, 100, waited))


def test_a_closed_cache_reads_no_more(worker: StoppedWorker) -> None:
    cache, rows = PageCache(worker), Rows()
    cache.close()
    assert worker.stopped
    with pytest.raises(LogUnavailable, match="closed"):
        cache.get(rows, 0, 100)


@pytest.mark.parametrize("late", [False, True])
def test_a_page_that_was_read_goes_without_a_collector_of_garbage(late: bool) -> None:
    """It looks seldom, and a page is large."""

    def how_many() -> int:
        return sum(type(found) is Reading for found in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = how_many()
        worker = StoppedWorker() if late else InlineWorker()
        pages = PageCache(worker)
        for after in range(0, 100, 10):
            pages.get(Rows(), after, 100)
            if isinstance(worker, LateWorker):
                worker.run()
        assert how_many() == before
    finally:
        gc.enable()


def test_a_page_takes_what_its_rows_take_and_a_little_more() -> None:
    block = render("s", "i", range(1, 3), [b"[]"] * 2, 0)
    empty, full = DiskPage(0, 2, None), DiskPage(0, 2, block)
    assert module._size(empty) > 0
    assert module._size(full) == module._size(empty) + len(block.lines)
