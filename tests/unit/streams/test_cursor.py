"""A cursor: five answers, each of which moves it, over every store."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from structlog.testing import capture_logs
from twisted.internet.defer import CancelledError, Deferred

from tcprepl.errors import LogCorrupt, LogUnavailable
from tcprepl.ids import Pair
from tcprepl.replication.relaying.intake import relay_registry
from tcprepl.storage.worker import ThreadWorker
from tcprepl.streams.cursor import AT_HEAD, Cursor, Limits, Restart, Void
from tcprepl.streams.gaps import Cause, Gap
from tcprepl.streams.log import Page
from tcprepl.streams.memory import RESTARTED, MemoryLog
from tcprepl.streams.pages import Reading
from tcprepl.streams.retention import Bounds, Retention
from tests.damage import place_of
from tests.log_kit import (
    DURABLE,
    STATES,
    LateWorker,
    MemoryStore,
    SqliteStore,
    Store,
    add,
    result,
    row,
    rows_in,
    typing,
)

PAIR = (DURABLE, "w")
SMALL = Retention(durable=Bounds(max_rows=3), ephemeral=Bounds(max_rows=3), recent_bytes=60)

Make = Callable[..., Any]


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Make a store of one kind."""
    made: list[SqliteStore] = []

    def make_it(retention: Retention | None = None) -> Any:
        if request.param == "memory":
            return MemoryStore(retention)
        made.append(SqliteStore(tmp_path / str(len(made)), retention))
        return made[-1]

    yield make_it
    for store in made:
        store.close()


def tokens(answer: object) -> list[int]:
    """Return the tokens of a page."""
    assert isinstance(answer, Page)
    return [token for token, _ in rows_in(answer)]


def rest(cursor: Cursor) -> list[int]:
    """Return the tokens of the pages up to the head: of the disk, then of memory."""
    found: list[int] = []
    while (answer := cursor.next()) is not AT_HEAD:
        found += tokens(answer)
    return found


def publish(store: Store, count: int, stream: str = DURABLE) -> None:
    """Append rows, each by itself."""
    for index in range(count):
        add(store, stream, typing(f"!{index}", "@a"))


def test_rows_then_the_head(make: Make) -> None:
    store = make()
    cursor = store.log.cursor(PAIR, 0)
    assert cursor.next() is AT_HEAD
    publish(store, 5)
    assert tokens(cursor.next(Limits(rows=2))) == [1, 2]
    assert tokens(cursor.next(Limits(upto=4))) == [3, 4]
    assert cursor.next(Limits(upto=4)) is AT_HEAD
    assert tokens(cursor.next()) == [5]
    assert cursor.token == 5
    assert cursor.next() is AT_HEAD


def test_a_pair_that_is_not_known(make: Make) -> None:
    store = make()
    assert store.log.cursor(("pushers", "w"), 0).next() is AT_HEAD
    cursor = store.log.cursor(("pushers", "w"), 7)
    assert cursor.next() == Restart(7, 0, Void.AHEAD, 0, "", compacted=False)
    assert cursor.next() is AT_HEAD


def test_bytes_that_lie_ahead_are_a_share_of_all_that_are_held(make: Make) -> None:
    store = make()
    assert store.log.cursor(PAIR, 0).bytes_to(9) == 0
    publish(store, 8)
    size = len(store.log.read(*PAIR, 0, 8).lines)
    assert store.log.cursor(PAIR, 0).bytes_to(8) == size
    assert store.log.cursor(PAIR, 0).bytes_to(99) == size
    assert store.log.cursor(PAIR, 4).bytes_to(8) == size // 2
    assert store.log.cursor(PAIR, 4).bytes_to(6) == size // 4
    assert store.log.cursor(PAIR, 8).bytes_to(8) == 0
    store.log.trim(*PAIR, 4)
    store.log.flush()
    assert store.log.cursor(PAIR, 0).bytes_to(8) == size // 2


def test_a_position_that_moved_without_rows_is_an_empty_page(make: Make) -> None:
    store = make()
    result(store.log.advance(*PAIR, 9))
    cursor = store.log.cursor(PAIR, 0)
    assert cursor.next() == Page((), b"", 9, limited=False)
    assert cursor.next() is AT_HEAD


def test_what_is_past_retention_is_a_gap_with_the_setting(make: Make) -> None:
    store = make(SMALL)
    publish(store, 6)
    cursor = store.log.cursor(PAIR, 1)
    assert cursor.next() == Gap(1, 3, Cause.RETENTION, "retention.rows=3")
    assert rest(cursor) == [4, 5, 6]
    # who asks for less than that is told of what was asked for
    cursor = store.log.cursor(PAIR, 1)
    assert cursor.next(Limits(upto=2)) == Gap(1, 2, Cause.RETENTION, "retention.rows=3")
    assert cursor.next(Limits(upto=2)) is AT_HEAD
    assert cursor.next() == Gap(2, 3, Cause.RETENTION, "retention.rows=3")


def test_a_token_from_the_future_begins_anew(make: Make) -> None:
    store = make(SMALL)
    publish(store, 6)
    cursor = store.log.cursor(PAIR, 9)
    assert cursor.next() == Restart(9, 3, Void.AHEAD, 6, "retention.rows=3", compacted=False)
    assert rest(cursor) == [4, 5, 6]


def test_a_reader_of_states_begins_anew_with_the_newest_of_each_key(make: Make) -> None:
    store = make(SMALL)
    for room in "abaac":
        add(store, STATES, typing(f"!{room}", "@a"))
    pair = (STATES, "w")
    cursor = store.log.cursor(pair, 1)
    assert cursor.next() == Restart(1, 0, Void.STATES, 2, "retention.rows=3", compacted=True)
    assert tokens(cursor.next(Limits(rows=1))) == [1]
    assert tokens(cursor.next(Limits(rows=1))) == [2]
    assert tokens(cursor.next()) == [3, 4, 5]
    # 0 is where it would begin anew: no state is void
    assert isinstance(store.log.cursor(pair, 0).next(), Restart)
    assert tokens(store.log.cursor(pair, 0, compacted=True).next()) == [1, 2, 3, 4, 5]
    assert tokens(store.log.cursor(pair, 1, compacted=True).next()) == [2, 3, 4, 5]


def test_gaps_are_passed_one_by_one(make: Make) -> None:
    store = make()
    log = store.log
    publish(store, 2)
    first, second = Gap(2, 5, Cause.UPSTREAM), Gap(5, 6, Cause.ANEW)
    cursor = log.cursor(PAIR, 0)
    log.gaps.add(PAIR, first)
    assert tokens(cursor.next()) == [1, 2]
    # noted, but the position has not moved over it yet
    assert cursor.next() is AT_HEAD
    result(log.advance(*PAIR, 5))
    log.gaps.add(PAIR, second)
    assert cursor.next() == first
    assert cursor.next() is AT_HEAD
    result(log.advance(*PAIR, 6))
    publish(store, 2)
    assert cursor.next() == second
    assert tokens(cursor.next()) == [7, 8]
    # within the gap, and as far as was asked
    cursor = log.cursor(PAIR, 3)
    assert cursor.next(Limits(upto=4)) == Gap(3, 4, Cause.UPSTREAM)
    assert cursor.next() == Gap(4, 5, Cause.UPSTREAM)
    # what is below the floor is past retention first
    log.trim(*PAIR, 4)
    store.settle()
    cursor = log.cursor(PAIR, 1)
    assert cursor.next() == Gap(1, 4, Cause.RETENTION, "acknowledged")
    assert cursor.next() == Gap(4, 5, Cause.UPSTREAM)


def test_a_page_ends_where_a_gap_begins_that_is_not_noted_at_the_reader(make: Make) -> None:
    store = make()
    publish(store, 4)
    result(store.log.advance(*PAIR, 9))
    store.log.gaps.add(PAIR, Gap(4, 9, Cause.UPSTREAM))
    cursor = store.log.cursor(PAIR, 1)
    page = cursor.next(Limits(rows=2))
    assert (tokens(page), cursor.token) == ([2, 3], 3)
    assert tokens(cursor.next()) == [4]
    assert cursor.next() == Gap(4, 9, Cause.UPSTREAM)
    assert cursor.next() is AT_HEAD


# --- histories ----------------------------------------------------------------------------


def test_a_reader_of_a_known_incarnation_goes_on(make: Make) -> None:
    store = make()
    publish(store, 3)
    places = ((2, store.log.history.current),)
    assert tokens(store.log.cursor(PAIR, 2, places).next()) == [3]


def test_states_are_read_again_whole_though_a_row_of_them_is_shared() -> None:
    """By a relay's readers, too, whose log keeps them as it keeps everything."""
    log = MemoryLog(relay_registry(), lambda: 0)
    pair = ("typing", "w")
    before = log.history.current
    for room in (b"a", b"b"):
        log.append(*pair, [b'["!%b:x",["@a:x"]]' % room])
    log.history.begin({pair: 1}, 0)
    cursor = log.cursor(pair, 2, ((2, before),))
    assert cursor.next() == Restart(2, 0, Void.FORKED, 1, RESTARTED, compacted=False)
    assert rest(cursor) == [1, 2]


def test_a_reader_of_another_log_shares_nothing_with_this_one(make: Make) -> None:
    store = make(SMALL)
    publish(store, 6)
    cursor = store.log.cursor(PAIR, 5, ((5, "elsewhere"),))
    assert cursor.next() == Restart(5, 0, Void.FORKED, 0, "retention.rows=3", compacted=False)
    assert cursor.next() == Gap(0, 3, Cause.RETENTION, "retention.rows=3")
    assert rest(cursor) == [4, 5, 6]
    # who has nothing has nothing that could be wrong
    assert isinstance(store.log.cursor(PAIR, 0, ((0, "elsewhere"),)).next(), Gap)
    assert isinstance(store.log.cursor(("pushers", "w"), 5, ((5, "x"),)).next(), Restart)


@pytest.mark.parametrize("trimmed", [0, 2])
def test_a_reader_of_a_lost_future_goes_back_to_what_both_have(
    tmp_path: Path, trimmed: int
) -> None:
    store = SqliteStore(tmp_path)
    publish(store, 3)
    first = store.log.history.current
    store.reopen()
    publish(store, 9)
    store.log.trim(*PAIR, trimmed)
    for places in ([(8, first)], [(8, "lost"), (6, first)]):
        cursor = store.log.cursor(PAIR, 8, tuple(places))
        answer = cursor.next()
        assert isinstance(answer, Restart)
        assert answer[:4] == (8, 3, Void.FORKED, 3)
        assert not answer.compacted
        assert tokens(cursor.next())[0] == 4
    store.close()


def test_a_lost_future_of_states_is_void_altogether(tmp_path: Path) -> None:
    """A state cannot be undone row by row."""
    store = SqliteStore(tmp_path)
    publish(store, 3, STATES)
    first = store.log.history.current
    store.reopen()
    publish(store, 9, STATES)
    floor = store.log.floor(STATES, "w")
    cursor = store.log.cursor((STATES, "w"), 9, ((9, first),))
    answer = cursor.next()
    assert isinstance(answer, Restart)
    assert (answer.start, answer.why, answer.held) == (0, Void.FORKED, floor)
    assert answer.compacted
    assert len(tokens(cursor.next())) == 9
    store.close()


# --- what other servers of the log wrote --------------------------------------------------


class Looks:
    """A log of which other servers write, too; the test says what a look finds, and when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
        self.store = MemoryStore()
        publish(self.store, rows)
        self.begun: list[Reading] = []
        monkeypatch.setattr(type(self.store.log), "look", lambda _: self._look())

    def _look(self) -> Reading:
        self.begun.append(Reading(lambda: None))
        return self.begun[-1]

    def cursor(self, after: int, *places: tuple[int, str], pair: Pair = PAIR) -> Cursor:
        """Return a cursor that has not been asked yet."""
        return self.store.log.cursor(pair, after, places)

    def end(self, error: LogUnavailable | None = None) -> None:
        """End the newest look."""
        self.begun[-1].end(None if error else mock.Mock(), error)


@pytest.mark.parametrize("known", [0, 1, 2])
def test_a_reader_who_is_ahead_is_looked_for_once(
    monkeypatch: pytest.MonkeyPatch, known: int
) -> None:
    looks = Looks(monkeypatch, known)
    cursor = looks.cursor(known + 1)
    assert cursor.next() is looks.begun[0]
    assert cursor.next() is looks.begun[0]
    publish(looks.store, 1)
    looks.end()
    assert cursor.next() is AT_HEAD
    publish(looks.store, 1)
    assert tokens(cursor.next()) == [known + 2]
    assert len(looks.begun) == 1


def test_a_pair_that_nobody_knows_after_a_look_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch, 0)
    cursor = looks.cursor(1)
    assert cursor.next() is looks.begun[0]
    looks.end()
    assert cursor.next() == Restart(1, 0, Void.AHEAD, 0, "", compacted=False)


def test_a_reader_of_a_history_not_heard_of_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if it has no more than there is: another server may have written that."""
    looks = Looks(monkeypatch, 3)
    for after in (2, 3):
        cursor = looks.cursor(after, (after, "elsewhere"))
        assert cursor.next() is looks.begun[-1]
        looks.end()
        answer = cursor.next()
        assert isinstance(answer, Restart)
        assert answer.why is Void.FORKED
        assert isinstance(cursor.next(), Page)
    assert len(looks.begun) == 2


def test_a_reader_who_is_not_ahead_needs_no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch, 3)
    here = looks.store.log.history.current
    for after in (0, 2, 3):
        for places in ((), ((after, here),)):
            looks.cursor(after, *places).next()
    assert looks.cursor(0, pair=("pushers", "w")).next() is AT_HEAD
    assert looks.begun == []


def test_a_look_that_fails_leaves_the_reader_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = Looks(monkeypatch, 1)
    cursor = looks.cursor(2)
    for tried in (1, 2):
        assert cursor.next() is looks.begun[-1]
        looks.end(LogUnavailable("away"))
        with pytest.raises(LogUnavailable, match="away"):
            cursor.next()
        assert (cursor.token, len(looks.begun)) == (2, tried)
    assert cursor.next() is looks.begun[-1]
    looks.end()
    assert cursor.next() == Restart(2, 0, Void.AHEAD, 1, mock.ANY, compacted=False)


# --- the disk -----------------------------------------------------------------------------


def cold(tmp_path: Path, blocks: int) -> tuple[SqliteStore, LateWorker]:
    """Return a store of blocks of a hundred rows, with none of them in memory."""
    store = SqliteStore(tmp_path)
    for _ in range(blocks):
        add(store, DURABLE, *[row(str(index)) for index in range(100)])
    store.close()
    worker = LateWorker()
    store.reading_worker = worker
    store.open()
    return store, worker


def test_a_page_of_the_disk_is_not_there_yet(tmp_path: Path) -> None:
    store, worker = cold(tmp_path, 2)
    cursors = [store.log.cursor(PAIR, after) for after in (0, 0, 50)]
    told: list[Cursor] = []
    for cursor in cursors:
        answer = cursor.next(Limits(rows=150))
        assert isinstance(answer, Reading)
        answer.tell(lambda cursor=cursor: told.append(cursor))
        assert cursor.next() is answer
    assert len(worker.jobs) == 2
    worker.run()
    assert told == cursors
    with mock.patch.object(store.log._database, "page", side_effect=AssertionError):
        pages = [cursor.next(Limits(rows=150)) for cursor in cursors]
        assert [len(tokens(page)) for page in pages] == [150, 150, 150]
        assert [cursor.token for cursor in cursors] == [150, 150, 200]
        assert len(tokens(cursors[0].next())) == 50
    assert [cursor.next() for cursor in cursors[::2]] == [AT_HEAD, AT_HEAD]
    # who may wait does
    assert list(store.log.read(*PAIR, 120, 140).tokens) == list(range(121, 141))
    store.reopen()
    assert list(store.log.read(*PAIR, 120, 140).tokens) == list(range(121, 141))
    store.close()


def test_who_can_wait_gets_the_page_once_it_is_there_and_may_leave(tmp_path: Path) -> None:
    """Whoever leaves takes nothing from the others."""
    store, worker = cold(tmp_path, 2)
    waiting = [
        Deferred.fromCoroutine(store.log.cursor(PAIR, 0).arrived(Limits(rows=150)))
        for _ in range(3)
    ]
    assert not any(one.called for one in waiting)
    left = waiting.pop()
    left.cancel()
    with pytest.raises(CancelledError):
        result(left)
    worker.run()
    assert [len(tokens(result(one))) for one in waiting] == [150, 150]
    memory = Deferred.fromCoroutine(store.log.cursor(PAIR, 200).arrived())
    assert result(memory) is AT_HEAD
    store.close()


def test_a_page_of_the_disk_is_sent_as_it_lies_there(tmp_path: Path) -> None:
    """Whoever shares it shares its bytes."""
    store, worker = cold(tmp_path, 3)
    cursors = [store.log.cursor(PAIR, 0) for _ in range(2)]
    for cursor in cursors:
        cursor.next()
    worker.run()
    first, second = (cursor.next() for cursor in cursors)
    assert isinstance(first, Page)
    assert isinstance(second, Page)
    assert first.lines is second.lines
    assert first.tokens == range(1, 301)
    store.close()


def test_a_disk_that_refuses_leaves_the_cursor_where_it_is(tmp_path: Path) -> None:
    store, worker = cold(tmp_path, 1)
    cursor = store.log.cursor(PAIR, 0)
    with mock.patch.object(store.log._database, "page", side_effect=LogUnavailable("away")):
        assert isinstance(cursor.next(), Reading)
        worker.run()
        with pytest.raises(LogUnavailable, match="away"):
            cursor.next()
    assert isinstance(cursor.next(), Reading)
    worker.run()
    assert len(tokens(cursor.next())) == 100
    store.close()


def test_what_is_trimmed_while_it_is_read_is_a_gap(tmp_path: Path) -> None:
    store, worker = cold(tmp_path, 2)
    cursor = store.log.cursor(PAIR, 0)
    assert isinstance(cursor.next(), Reading)
    store.log.trim(*PAIR, 100)
    worker.run()
    assert cursor.next() == Gap(0, 100, Cause.RETENTION, "acknowledged")
    assert tokens(cursor.next()) == list(range(101, 201))
    store.close()


HOW = pytest.mark.parametrize("how", ["changed", "removed"])


def damage(store: SqliteStore, token: int, how: str = "changed") -> None:
    """Change a byte of the block that ends with *token*, in the file; or remove the block."""
    store.close()
    path = store.log._database.path
    if how == "removed":
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("DELETE FROM blocks WHERE last = ?", (token,))
        store.open()
        return
    content = bytearray(path.read_bytes())
    content[place_of(path, token)] ^= 1
    path.write_bytes(bytes(content))
    store.open()


@HOW
def test_damage_that_is_trimmed_before_it_is_found_is_none(tmp_path: Path, how: str) -> None:
    store, worker = cold(tmp_path, 2)
    damage(store, 100, how)
    cursor = store.log.cursor(PAIR, 0)
    assert isinstance(cursor.next(), Reading)
    store.log.trim(*PAIR, 100)
    worker.run()
    assert cursor.next() == Gap(0, 100, Cause.RETENTION, "acknowledged")
    assert store.log.gaps.of(Cause.DAMAGE) == []
    store.close()


@HOW
def test_a_thread_that_reads_is_waited_for_before_damage_too(tmp_path: Path, how: str) -> None:
    store, _ = cold(tmp_path, 2)
    store.reading_worker = ThreadWorker(lambda done, *answer: done(*answer), "reading")
    damage(store, 100, how)
    with pytest.raises(LogCorrupt, match=r"rows in \(0, 100\] cannot be read"):
        store.log.read(*PAIR, 20, 150)
    assert list(store.log.read(*PAIR, 100, 102).tokens) == [101, 102]
    store.close()


@HOW
def test_a_reader_that_may_wait_is_told_of_damage_too(tmp_path: Path, how: str) -> None:
    store, _ = cold(tmp_path, 2)
    store.reading_worker = None
    damage(store, 100, how)
    assert store.log.cursor(PAIR, 20).next() == Gap(20, 100, Cause.DAMAGE, mock.ANY)
    with pytest.raises(LogCorrupt, match=r"rows in \(0, 100\] cannot be read") as caught:
        store.log.read(*PAIR, 20, 150)
    error = caught.value
    assert (error.table, error.stream, error.instance, error.token) == ("blocks", *PAIR, 100)
    assert list(store.log.read(*PAIR, 100, 102).tokens) == [101, 102]
    store.close()


@HOW
def test_a_damaged_block_of_thirty_is_a_gap_of_its_hundred_rows(tmp_path: Path, how: str) -> None:
    store, worker = cold(tmp_path, 30)
    damage(store, 200, how)
    read: list[int] = []
    gaps: list[Gap] = []
    for start in (0, 150, 0):
        cursor = store.log.cursor(PAIR, start)
        while (answer := cursor.next()) is not AT_HEAD:
            if isinstance(answer, Reading):
                worker.run()
            elif isinstance(answer, Gap):
                gaps.append(answer)
            elif not start:
                read += tokens(answer)
    assert read == [*range(1, 101), *range(201, 3_001)] * 2
    assert [(gap.after, gap.upto, gap.cause) for gap in gaps] == [
        (100, 200, Cause.DAMAGE),
        (150, 200, Cause.DAMAGE),
        (100, 200, Cause.DAMAGE),
    ]
    ((pair, noted),) = store.log.gaps.of(Cause.DAMAGE)
    assert pair == PAIR
    assert noted.words().startswith("rows in (100, 200] cannot be read: ")
    assert "put a good copy of the directory in its place" in noted.detail
    store.log.trim(*PAIR, 250)
    assert store.log.gaps.of(Cause.DAMAGE) == []
    store.close()


def read_on(store: SqliteStore, worker: LateWorker, after: int) -> list[object]:
    """Return the tokens and the gaps that a cursor gives from *after* on, up to the head."""
    cursor = store.log.cursor(PAIR, after)
    answers: list[object] = []
    while (answer := cursor.next()) is not AT_HEAD:
        if isinstance(answer, Reading):
            worker.run()
        elif isinstance(answer, Gap):
            # Its reason is that of the block at its end.
            assert f"token {answer.upto}" in answer.detail
            answers.append((answer.after, answer.upto, answer.cause))
        else:
            answers += tokens(answer)
    assert cursor.token == store.log.position(*PAIR)
    return answers


def test_damaged_blocks_that_adjoin_are_told_as_they_are_found_and_kept_as_one(
    tmp_path: Path,
) -> None:
    """Whoever finds them is told of each; whoever comes later has them in one go."""
    store, worker = cold(tmp_path, 12)
    for token in range(200, 1_001, 100):
        damage(store, token)

    read = partial(read_on, store, worker)
    before, behind = range(1, 101), range(1_001, 1_201)
    with capture_logs() as logs:
        found = read(0)
        gaps = [(upto - 100, upto, Cause.DAMAGE) for upto in range(200, 1_001, 100)]
        assert found == [*before, *gaps, *behind]
        assert read(0) == [*before, (100, 1_000, Cause.DAMAGE), *behind]
        assert read(450) == [(450, 1_000, Cause.DAMAGE), *behind]
    told = [entry["upto"] for entry in logs if entry["event"] == "streams.block.damaged"]
    assert told == [200, 300, 400, 700]
    (words,) = store.log.gaps.damage()
    assert "rows in (100, 1000] cannot be read: several blocks, the last: " in words
    store.log.trim(*PAIR, 600)
    assert [gap.after for _, gap in store.log.gaps] == [600]
    store.close()


def test_blocks_at_the_end_that_are_not_there_are_missed(tmp_path: Path) -> None:
    """Also when others come behind them; a position that moved without rows is no gap."""
    store, worker = cold(tmp_path, 4)
    result(store.log.advance(*PAIR, 450))
    damage(store, 300, "removed")
    damage(store, 400, "removed")

    read = partial(read_on, store, worker)
    gap = (200, 400, Cause.DAMAGE)
    assert read(0) == [*range(1, 201), gap]
    assert read(350) == [(350, 400, Cause.DAMAGE)]
    assert read(400) == read(420) == []
    add(store, DURABLE, row("new"))
    store.reopen()
    assert read(150) == [*range(151, 201), gap, 451]
    store.close()


@pytest.mark.parametrize("start", [0, 100, 130])
def test_damage_of_the_first_block_is_found_wherever_one_begins(tmp_path: Path, start: int) -> None:
    store, worker = cold(tmp_path, 3)
    damage(store, 100)
    damage(store, 200)
    store.log.trim(*PAIR, start)
    cursor = store.log.cursor(PAIR, start)
    answers = []
    while (answer := cursor.next()) is not AT_HEAD:
        if isinstance(answer, Reading):
            worker.run()
        else:
            answers.append(answer)
    *gaps, page = answers
    assert tokens(page) == list(range(201, 301))
    assert [(gap.after, gap.upto) for gap in gaps] == (
        [(0, 100), (100, 200)] if not start else [(start, 200)]
    )
    store.close()
