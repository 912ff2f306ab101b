"""The log on disk, beyond what every log promises: restarts, refusals, groups."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from tcprepl.errors import LogCorrupt, LogUnavailable, TokenFromFuture, TokenOrder, TokenTooOld
from tcprepl.limits import MAX_TOKEN
from tcprepl.storage.worker import Done, InlineWorker
from tcprepl.streams.base import EXPIRE_INTERVAL_S
from tcprepl.streams.database import Database
from tcprepl.streams.durable import DurableStream
from tcprepl.streams.engine import Commit, Freed, StoredPair
from tcprepl.streams.group_commit import CLEANING_PAUSE_S
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.streams.retention import Bounds, Retention
from tcprepl.streams.sqlite import SqliteLog
from tests.log_kit import (
    DURABLE,
    EPHEMERAL,
    STATES,
    SqliteStore,
    add,
    make_registry,
    read_all,
    result,
    row,
    typing,
)

T = TypeVar("T")
DATA = Path(__file__).parents[2] / "data"


class SlowWorker(InlineWorker):
    """Jobs wait until the test lets them run."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def submit(self, job: Callable[[], T], done: Done[T]) -> None:
        """Keep the job."""
        self.jobs.append(lambda: InlineWorker.submit(self, job, done))

    def call(self, job: Callable[[], T]) -> T:
        """Run the jobs before it, then the job."""
        self.run()
        return job()

    def run(self) -> None:
        """Let the jobs run that were given so far."""
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job()


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    """Return a log whose commits happen at once."""
    return SqliteStore(tmp_path / "data")


def slow_log(tmp_path: Path, retention: Retention | None = None) -> tuple[SqliteLog, SlowWorker]:
    """Return a log whose commits wait."""
    worker = SlowWorker()
    return SqliteLog(tmp_path / "slow", make_registry(), lambda: 0, worker, retention), worker


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_close_is_done_to_the_end_whoever_waits_for_it(tmp_path: Path, cancelled: bool) -> None:
    """The next process, or the next start in this one, finds the directory free."""
    log, worker = slow_log(tmp_path)
    worker.run()
    appended = log.append(DURABLE, "w", [row("a")])
    waiting = [log.close(), log.close()]
    if cancelled:
        waiting[0].addErrback(lambda failure: failure.trap(CancelledError))
        waiting[0].cancel()
    assert [one.called for one in waiting] == [cancelled, False]
    worker.run()
    assert result(appended).last == 1
    assert all(one.called for one in (*waiting, log.close()))
    again = SqliteLog(tmp_path / "slow", make_registry(), lambda: 0, InlineWorker())
    assert again.position(DURABLE, "w") == 1
    result(again.close())


def crashed(store: SqliteStore, tmp_path: Path) -> SqliteStore:
    """Return the log as another process finds it after this one was killed."""
    count = len(list(tmp_path.iterdir()))
    shutil.copytree(store.directory, tmp_path / f"copy{count}")
    return SqliteStore(tmp_path / f"copy{count}", store.retention, now_ms=store.now_ms)


def test_who_moves_a_position_to_where_it_is_is_answered(store: SqliteStore) -> None:
    add(store, DURABLE, row("a"))
    assert result(store.log.advance(DURABLE, "w", 1)) is None
    assert store.log.position(DURABLE, "w") == 1


@pytest.mark.parametrize("killed", [False, True])
def test_a_new_process_finds_everything_that_was_acknowledged(
    store: SqliteStore, tmp_path: Path, killed: bool
) -> None:
    add(store, DURABLE, row("a"), row("b"), batch=True)
    add(store, DURABLE, row("c"), instance="two", transaction_id="t")
    result(store.log.advance(DURABLE, "w", 7))
    if killed:
        other = crashed(store, tmp_path)
    else:
        store.reopen()
        other = store
    assert other.log.pairs() == [(DURABLE, "w"), (DURABLE, "two")]
    assert other.log.position(DURABLE, "w") == 7
    assert read_all(other.log, DURABLE, 0) == [(1, row("a")), (1, row("b"))]
    assert add(other, DURABLE, row("c"), instance="two", transaction_id="t").last == 1
    assert add(other, DURABLE, row("d")).first == 8


@pytest.mark.parametrize("killed", [False, True])
def test_tokens_of_ephemeral_streams_never_go_back(
    store: SqliteStore, tmp_path: Path, killed: bool
) -> None:
    highest = {EPHEMERAL: 0, STATES: 0}
    for _ in range(4):
        for stream in highest:
            answer = add(store, stream, typing("!a", "@1"), typing("!b", "@1"))
            assert answer.first > highest[stream]
            highest[stream] = answer.last
        if killed:
            store = crashed(store, tmp_path)
        else:
            store.reopen()
        for stream, before in highest.items():
            position = store.log.position(stream, "w")
            assert position >= before
            assert store.log.floor(stream, "w") == position
            assert position - before <= 10_000 + 1
            if killed or stream == STATES:
                # whoever holds states of the old process is told to begin anew
                with pytest.raises(TokenTooOld, match="restarted"):
                    store.log.read(stream, "w", before, position)
        assert store.log.restart_point(STATES, "w") == 0
        assert read_all(store.log, STATES, 0, compacted=True) == []
    store.close()


def test_each_start_begins_an_incarnation_where_the_pairs_are(
    store: SqliteStore, tmp_path: Path
) -> None:
    add(store, DURABLE, row("a"), row("b"))
    add(store, STATES, typing("!a", "@1"))
    first = store.log.history.current
    copied = crashed(store, tmp_path)
    add(store, DURABLE, row("c"))
    lost = store.log
    store.close()
    add(copied, DURABLE, row("d"), row("e"))
    history = copied.log.history
    assert [known.id for known in history.incarnations] == [first, history.current]
    assert history.incarnations[-1].began_ms == store.now_ms
    # whoever was at 3 had another row there
    assert history.shared((DURABLE, "w"), 3, first) == 2
    assert history.shared((DURABLE, "w"), 2, first) == 2
    assert history.shared((STATES, "w"), 1, first) == 1
    assert lost.history.shared((DURABLE, "w"), 3, history.current) is None
    copied.close()


def test_an_incarnation_is_noted_for_streams_that_the_configuration_dropped(
    store: SqliteStore,
) -> None:
    add(store, EPHEMERAL, row("a"))
    first = store.log.history.current
    store.close()
    known, store.registry = store.registry, Registry()
    store.open()
    assert (EPHEMERAL, "w") not in store.log.pairs()
    store.close()
    store.registry = known
    store.open()
    add(store, EPHEMERAL, row("b"))
    assert store.log.history.shared((EPHEMERAL, "w"), 2, first) == 1
    store.close()


def test_a_start_that_cannot_note_its_incarnation_is_none(store: SqliteStore) -> None:
    store.close()
    refused = LogUnavailable("the disk is full")
    with mock.patch.object(Database, "write", side_effect=refused), pytest.raises(LogUnavailable):
        store.open()
    store.open()
    assert len(store.log.history.incarnations) == 2
    store.close()


def test_a_directory_of_the_release_before_incarnations_goes_on(tmp_path: Path) -> None:
    """It was written by 0.1.0, which was killed: ten rows on disk, one in memory."""
    with tarfile.open(DATA / "directory-0.1.0.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    store = SqliteStore(tmp_path / "data")
    assert store.log.position(DURABLE, "master") == 10
    assert len(read_all(store.log, DURABLE, 0, instance="master")) == 10
    assert store.log.position(STATES, "master") == 10_001
    first = store.log.history
    assert [known.number for known in first.incarnations] == [1]
    add(store, DURABLE, row("k"), instance="master")
    store.reopen()
    second = store.log.history
    assert second.shared((DURABLE, "master"), 12, first.current) == 11
    assert read_all(store.log, DURABLE, 10, instance="master") == [(11, row("k"))]
    store.close()


def test_a_holder_of_the_highest_claimed_token_begins_anew(store: SqliteStore) -> None:
    add(store, STATES, typing("!a", "@1"))
    store.reopen()
    assert store.log.position(STATES, "w") == 2
    store.reopen()
    assert store.log.position(STATES, "w") == 3
    add(store, EPHEMERAL, row("a"))
    store.reopen()
    assert store.log.position(EPHEMERAL, "w") == 1
    store.close()


def test_claims_are_made_ahead_and_waited_for_only_when_used_up(tmp_path: Path) -> None:
    log, worker = slow_log(tmp_path, Retention(reserved_tokens=10))
    log.ensure(EPHEMERAL, "w")
    log.ensure(EPHEMERAL, "w")
    assert len(worker.jobs) == 1
    worker.run()
    for _ in range(5):
        log.append(EPHEMERAL, "w", [row("a")])
        assert worker.jobs == []
    log.append(EPHEMERAL, "w", [row("a")])
    log.append(EPHEMERAL, "w", [row("a")])
    assert len(worker.jobs) == 1
    with mock.patch.object(worker, "call", wraps=worker.call) as call:
        log.append(EPHEMERAL, "w", [row("a")] * 3)
        assert not call.called
        log.append(EPHEMERAL, "w", [row("a")] * 30)
        assert call.called
    assert log.position(EPHEMERAL, "w") == 40
    log.advance(EPHEMERAL, "w", 1_000)
    worker.run()
    assert Database(tmp_path / "slow").pairs()[0].position == 1_010
    result(log.close())


def test_claims_end_at_the_largest_token(store: SqliteStore) -> None:
    log = store.log
    assert result(log.advance(EPHEMERAL, "w", MAX_TOKEN - 3)) is None
    assert add(store, EPHEMERAL, row("a"), row("a"), row("a")).last == MAX_TOKEN
    store.reopen()
    assert store.log.position(EPHEMERAL, "w") == MAX_TOKEN
    store.close()


def refuse(store: SqliteStore, text: str = "database or disk is full") -> Any:
    """Make the disk refuse."""
    error = LogUnavailable(text)
    return mock.patch.object(store.log._database, "write", side_effect=error)


def test_tokens_that_were_named_and_refused_may_be_named_again(tmp_path: Path) -> None:
    """And nothing passes them: what was named behind them is refused as well."""
    log, worker = slow_log(tmp_path)
    first = log.append(DURABLE, "w", [row("a")], tokens=[5])
    behind = [
        log.append(DURABLE, "w", [row("b")], tokens=[6], transaction_id="b"),
        log.advance(DURABLE, "w", 8),
    ]
    other = log.append(DURABLE, "two", [row("z")], tokens=[3])
    refused = LogUnavailable("full")
    with mock.patch.object(log._database, "write", side_effect=refused):
        worker.run()
    for answer in (first, *behind):
        with pytest.raises(LogUnavailable, match="full"):
            result(answer)
    again = [
        log.append(DURABLE, "w", [row("a")], tokens=[5]),
        log.append(DURABLE, "w", [row("b")], tokens=[6], transaction_id="b"),
        log.advance(DURABLE, "w", 8),
    ]
    worker.run()
    worker.run()
    for answer in (*again, other):
        result(answer)
    assert read_all(log, DURABLE, 0) == [(5, row("a")), (6, row("b"))]
    assert log.position(DURABLE, "w") == 8
    # what another caller has put behind the refusal meanwhile keeps its token
    first = log.append(DURABLE, "w", [row("c")], tokens=[9])
    last = log.append(DURABLE, "w", [row("d")])
    with mock.patch.object(log._database, "write", side_effect=refused):
        worker.run()
    worker.run()
    with pytest.raises(LogUnavailable):
        result(first)
    assert result(last).first == 10
    with pytest.raises(TokenOrder):
        log.append(DURABLE, "w", [row("c")], tokens=[9])


def test_a_close_waits_for_the_commit_under_way(tmp_path: Path) -> None:
    log, worker = slow_log(tmp_path, Retention(durable=Bounds(max_rows=1)))
    waiting = [log.append(DURABLE, "w", [row("a")]) for _ in range(3)]
    closed = log.close()
    assert not closed.called
    worker.run()
    worker.run()
    assert result(closed) is None
    assert [result(each).last for each in waiting] == [1, 2, 3]
    again = SqliteStore(tmp_path / "slow", Retention(durable=Bounds(max_rows=1)))
    add(again, DURABLE, row("b"))
    assert again.log.floor(DURABLE, "w") == 3
    again.close()


def test_an_ephemeral_append_without_a_claim_is_refused(store: SqliteStore) -> None:
    with refuse(store):
        store.log.ensure(EPHEMERAL, "w")
        with pytest.raises(LogUnavailable):
            result(store.log.append(EPHEMERAL, "w", [row("a")]))
        with pytest.raises(LogUnavailable):
            result(store.log.advance(EPHEMERAL, "w", 9))
    assert add(store, EPHEMERAL, row("a")).first == 1
    with refuse(store):
        # there are tokens left, so nobody needs the disk yet
        assert add(store, EPHEMERAL, *[row("a")] * 6_000).last == 6_001
    store.close()


def test_a_fault_that_is_not_the_disk_s_reaches_the_caller_as_it_is(store: SqliteStore) -> None:
    with (
        mock.patch.object(store.log._database, "write", side_effect=ZeroDivisionError),
        pytest.raises(ZeroDivisionError),
    ):
        result(store.log.append(DURABLE, "w", [row("b")]))
    store.close()


def test_old_rows_and_transactions_go_now_and_then(tmp_path: Path) -> None:
    retention = Retention(
        durable=Bounds(max_age_s=10), ephemeral=Bounds(max_age_s=10), transaction_age_s=10
    )
    store = SqliteStore(tmp_path, retention, Clock())
    assert store.clock is not None
    add(store, DURABLE, row("a"), transaction_id="t")
    add(store, EPHEMERAL, row("a"), transaction_id="t")
    store.now_ms += 60_000
    store.clock.advance(EXPIRE_INTERVAL_S)
    store.settle()
    assert store.log.floor(DURABLE, "w") == store.log.floor(EPHEMERAL, "w") == 1
    assert store.log._database.transaction(DURABLE, "t", 0) is None
    store.close()
    assert store.clock.getDelayedCalls() == []


def test_what_many_pairs_hold_is_looked_for_a_few_at_a_time(tmp_path: Path) -> None:
    """Somebody else has a turn in between, and all of it goes in the end."""
    store = SqliteStore(tmp_path, Retention(durable=Bounds(max_rows=2)))
    names = [f"w{number}" for number in range(120)]
    for name in names:
        add(store, DURABLE, row("a"), row("b"), instance=name)
    looked: list[int] = []
    expire_pairs = store.log._expire_pairs

    def note(pairs: Iterable[DurableStream]) -> None:
        pairs = tuple(pairs)
        looked.append(len(pairs))
        expire_pairs(pairs)

    with mock.patch.object(store.log, "_expire_pairs", note):
        store.log.retain(Retention(durable=Bounds(max_rows=1)))
    store.settle()
    assert sum(looked) >= len(names)
    assert max(looked) <= 50
    assert {store.log.floor(DURABLE, name) for name in names} == {2}  # a block goes whole
    store.close()


def test_expiry_that_cannot_read_is_logged_and_survived(store: SqliteStore) -> None:
    add(store, DURABLE, row("a"))
    with mock.patch.object(DurableStream, "beyond_retention", side_effect=LogCorrupt("damaged")):
        store.log.expire()
        assert add(store, DURABLE, row("b")).first == 2
    store.close()


def test_what_cannot_be_written_at_the_end_is_only_logged(store: SqliteStore) -> None:
    add(store, EPHEMERAL, row("a"))
    with refuse(store):
        store.close()
    store.open()
    assert store.log.position(EPHEMERAL, "w") == 10_000 + 1
    store.close()


def test_streams_that_the_configuration_dropped_are_left_alone(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    add(store, EPHEMERAL, row("a"))
    add(store, DURABLE, row("a"))
    store.close()
    store.registry = Registry()
    store.open()
    assert store.log.pairs() == [(DURABLE, "w")]
    add(store, "pushers", row("a"))
    store.close()
    store.registry = make_registry()
    store.open()
    assert store.log.pairs() == [(EPHEMERAL, "w"), (DURABLE, "w"), ("pushers", "w")]
    store.close()


def test_what_another_server_writes_is_noted_and_not_taken_over(tmp_path: Path) -> None:
    """A log in a database that others write to says which pairs are its own."""

    class Shared(SqliteLog):
        def _owns(self, stored: StoredPair) -> bool:
            return stored.instance != "other"

        def _add_foreign(self, stored: StoredPair) -> DurableStream | None:
            noted.append((stored.stream, stored.instance, stored.position))
            return None

    noted: list[tuple[str, str, int]] = []
    store = SqliteStore(tmp_path)
    add(store, DURABLE, row("a"))
    add(store, DURABLE, row("a"), row("b"), instance="other")
    store.close()
    log = Shared(tmp_path, store.registry, lambda: store.now_ms, InlineWorker())
    assert noted == [(DURABLE, "other", 2)]
    assert log.pairs() == [(DURABLE, "w")]
    result(log.close())


def test_a_stream_may_change_its_kind(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    add(store, DURABLE, row("a"), row("b"))
    add(store, EPHEMERAL, row("a"))
    store.close()
    store.registry = Registry([StreamDef(DURABLE, durable=False), StreamDef(EPHEMERAL)])
    store.open()
    assert store.log.floor(DURABLE, "w") == store.log.position(DURABLE, "w") == 2
    assert add(store, DURABLE, row("c")).first == 3
    assert add(store, EPHEMERAL, row("b")).first == 2
    assert [token for token, _ in read_all(store.log, EPHEMERAL, 1)] == [2]
    store.close()


def test_a_start_that_fails_lets_go_of_everything(store: SqliteStore, tmp_path: Path) -> None:
    add(store, EPHEMERAL, row("a"))
    store.close()
    with (
        mock.patch.object(Database, "write", side_effect=LogUnavailable("full")),
        pytest.raises(LogUnavailable),
    ):
        store.open()
    database = store.directory / "log.sqlite3"
    kept = database.read_bytes()
    database.write_bytes(b"x" * len(kept))
    with pytest.raises(LogCorrupt):
        store.open()
    database.write_bytes(kept)
    store.open()
    store.close()


def test_a_closed_log_makes_no_claims_and_reads_no_disk(store: SqliteStore) -> None:
    store.close()
    store.log.ensure(EPHEMERAL, "w")
    assert store.log.read(EPHEMERAL, "w", 0, 0).tokens == ()
    with pytest.raises(TokenFromFuture):
        store.log.read("pushers", "w", 1, 2)


def test_a_start_with_a_wrong_clock_lets_go_of_nothing(tmp_path: Path) -> None:
    """A closed log grows a day older at most, and never younger."""
    week = Retention(durable=Bounds(max_age_s=7 * 86_400.0))
    store = SqliteStore(tmp_path / "data", week, now_ms=10**12)
    add(store, DURABLE, row("a"))
    for tokens, days in ((2, 30), (3, 60), (4, -1), (5, 0)):
        result(store.log.close())
        store = SqliteStore(tmp_path / "data", week, now_ms=10**12 + days * 86_400_000)
        add(store, DURABLE, row("b"))
        assert len(read_all(store.log, DURABLE, 0)) == tokens
    for _ in range(8):
        store.now_ms += 86_400_000
        add(store, DURABLE, row("c"))
    assert store.log.floor(DURABLE, "w") >= 5
    store.close()


class TestTrimmingInParts:
    """A trim of many rows is done in many commits, and goes on after a restart."""

    def fill(self, log: SqliteLog, count: int) -> None:
        text = b'["%s"]' % (b"x" * 20_000)
        for _ in range(count):
            result(log.append(DURABLE, "w", [text]))

    def test_appends_come_in_between(self, tmp_path: Path) -> None:
        worker, clock = SlowWorker(), Clock()
        log = SqliteLog(tmp_path, make_registry(), lambda: 0, InlineWorker())
        self.fill(log, 600)
        result(log.close())
        log = SqliteLog(tmp_path, make_registry(), lambda: 0, worker, reactor=clock)
        log.trim(DURABLE, "w", 590)
        assert log.floor(DURABLE, "w") == 590
        clock.advance(0)
        appended = log.append(DURABLE, "w", [b'["new"]'])
        worker.run()
        worker.run()
        assert result(appended).last == 601
        pair = log._by_id[next(iter(log._by_id))]
        assert pair.trimming
        assert pair.stored.rows > 11
        while worker.jobs or clock.getDelayedCalls()[0].getTime() <= clock.seconds() + 1:
            clock.advance(CLEANING_PAUSE_S)
            worker.run()
        assert not pair.trimming
        assert pair.stored.rows == 11
        # What is appended in the pause between two parts does not wait for its end.
        log.trim(DURABLE, "w", 595)
        clock.advance(0)
        worker.run()
        log._shrinking = True
        log._commit_soon(CLEANING_PAUSE_S)
        later = log.append(DURABLE, "w", [b'["later"]'])
        clock.advance(0)
        worker.run()
        assert result(later).last == 602
        closed = log.close()
        worker.run()
        result(closed)

    def test_a_commit_trims_a_hundred_pairs_and_no_more(self, tmp_path: Path) -> None:
        """Who publishes meanwhile does not wait for thousands; all have their turn."""
        worker, clock = SlowWorker(), Clock()
        log = SqliteLog(tmp_path, make_registry(), lambda: 0, InlineWorker())
        names = [f"w{number}" for number in range(250)]
        for name in names:
            result(log.append(DURABLE, name, [row("a")]))
            result(log.append(DURABLE, name, [row("b")]))
        result(log.close())
        log = SqliteLog(tmp_path, make_registry(), lambda: 0, worker, reactor=clock)
        trimmed: list[int] = []
        write = log._database.write

        def note(commit: Commit) -> Freed:
            trimmed.append(len(commit.trims))
            return write(commit)

        with mock.patch.object(log._database, "write", note):
            for name in names:
                log.trim(DURABLE, name, 1)
            for _ in range(10):
                clock.advance(CLEANING_PAUSE_S)
                worker.run()
        assert [count for count in trimmed if count] == [100, 100, 50]
        assert not any(pair.trimming for pair in log._by_id.values())
        closed = log.close()
        worker.run()
        result(closed)

    def test_a_restart_goes_on_with_it(self, tmp_path: Path) -> None:
        worker, clock = SlowWorker(), Clock()
        log = SqliteLog(tmp_path, make_registry(), lambda: 0, InlineWorker())
        self.fill(log, 600)
        log.trim(DURABLE, "w", 590)
        result(log.close())
        log = SqliteLog(tmp_path, make_registry(), lambda: 0, worker, reactor=clock)
        assert log.floor(DURABLE, "w") == 590
        pair = log._by_id[next(iter(log._by_id))]
        assert pair.trimming
        while worker.jobs or clock.getDelayedCalls()[0].getTime() <= clock.seconds() + 1:
            clock.advance(CLEANING_PAUSE_S)
            worker.run()
        assert pair.stored.rows == 10
        closed = log.close()
        worker.run()
        result(closed)


def test_rows_in_memory_are_trimmed_at_once(store: SqliteStore) -> None:
    for text in "abc":
        add(store, EPHEMERAL, row(text))
    store.log.trim(EPHEMERAL, "w", 2)
    assert store.log.floor(EPHEMERAL, "w") == 2
    assert read_all(store.log, EPHEMERAL, 2) == [(3, row("c"))]
    store.close()


def test_a_position_may_move_to_the_last_token_and_no_further(store: SqliteStore) -> None:
    result(store.log.advance(DURABLE, "w", MAX_TOKEN))
    assert store.log.position(DURABLE, "w") == MAX_TOKEN
    with pytest.raises(TokenOrder):
        store.log.advance(DURABLE, "w", MAX_TOKEN + 1)
    store.close()
