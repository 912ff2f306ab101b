"""The commits of a log: what goes into which, and what is left when the disk refuses one."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from structlog.testing import capture_logs
from twisted.internet.task import Clock

from tcprepl.errors import LogCorrupt, LogUnavailable
from tcprepl.streams import group_commit
from tcprepl.streams.commits import Batch, Item
from tcprepl.streams.database import Database
from tcprepl.streams.engine import Commit, Freed, KnownTransactions
from tcprepl.streams.group_commit import GroupCommit
from tcprepl.streams.log import Appended
from tcprepl.streams.producers import Produced
from tcprepl.streams.retention import Retention
from tests.log_kit import (
    DURABLE,
    EPHEMERAL,
    RELAYED,
    SqliteStore,
    add,
    read_all,
    result,
    row,
)
from tests.unit.streams.test_stored import refuse, slow_log, store

__all__ = ["store"]


def test_a_commit_that_is_refused_fails_its_appends_and_nothing_else(store: SqliteStore) -> None:
    heard: list[int] = []
    store.log.add_listener(lambda block: heard.append(block.last))
    add(store, DURABLE, row("a"))
    with refuse(store):
        waiting = [
            store.log.append(DURABLE, "w", [row("b")], transaction_id="t"),
            store.log.advance(DURABLE, "w", 5),
        ]
        for each in waiting:
            with pytest.raises(LogUnavailable, match="full"):
                result(each)
        assert read_all(store.log, DURABLE, 0) == [(1, row("a"))]
        assert store.log.position(DURABLE, "w") == 1
    # the tokens of what was refused are not used again; the retry is a new call
    assert add(store, DURABLE, row("b"), transaction_id="t").first == 6
    assert read_all(store.log, DURABLE, 0) == [(1, row("a")), (6, row("b"))]
    assert heard == [1, 6]
    store.close()


def test_an_advance_to_where_refused_appends_were_still_moves(store: SqliteStore) -> None:
    with refuse(store), pytest.raises(LogUnavailable):
        result(store.log.append(DURABLE, "w", [row("b")]))
    result(store.log.advance(DURABLE, "w", 1))
    assert store.log.position(DURABLE, "w") == 1
    store.close()


def test_a_flush_ends_although_the_disk_refuses(tmp_path: Path) -> None:
    log, worker = slow_log(tmp_path)
    first = log.append(DURABLE, "w", [row("a")])
    second = log.append(DURABLE, "w", [row("b")])
    flushed = log.flush()
    with mock.patch.object(log._database, "write", side_effect=LogUnavailable("full")):
        worker.run()
        worker.run()
    for each in (first, second):
        with pytest.raises(LogUnavailable):
            result(each)
    assert result(flushed) is None
    closed = log.close()
    assert result(closed) is None


def test_an_advance_behind_another_that_goes_nowhere(tmp_path: Path) -> None:
    log, worker = slow_log(tmp_path)
    heard: list[int] = []
    log.add_position_listener(lambda *moved: heard.append(moved[3]))
    waiting = [log.advance(DURABLE, "w", 5), log.advance(DURABLE, "w", 5)]
    worker.run()
    worker.run()
    assert [result(each) for each in waiting] == [None, None]
    assert heard == [5]
    result(log.close())


def test_appends_during_a_commit_go_into_the_next_one_together(tmp_path: Path) -> None:
    log, worker = slow_log(tmp_path)
    heard: list[list[int]] = []
    log.add_listener(lambda block: heard.append(list(block.tokens)))
    waiting = [log.append(DURABLE, "w", [row("a")]) for _ in range(5)]
    assert len(worker.jobs) == 1
    assert log.position(DURABLE, "w") == 0
    assert log.read(DURABLE, "w", 0, 9).tokens == ()
    worker.run()
    assert [each.called for each in waiting] == [True, False, False, False, False]
    assert heard == [[1]]
    flushed = log.flush()
    assert not flushed.called
    worker.run()
    assert [result(each).last for each in waiting] == [1, 2, 3, 4, 5]
    assert heard == [[1], [2, 3, 4, 5]]
    assert flushed.called
    assert [len(list(log._database.oldest(log._by_id[1].stored, 0)))] == [2]
    result(log.close())


def test_a_retry_that_meets_its_first_call_shares_the_answer(tmp_path: Path) -> None:
    log, worker = slow_log(tmp_path)
    first = log.append(DURABLE, "w", [row("a")], transaction_id="t")
    second = log.append(DURABLE, "w", [row("a")], transaction_id="t")
    worker.run()
    assert result(first) == result(second)
    assert log.position(DURABLE, "w") == 1
    with mock.patch.object(log._database, "transaction", side_effect=LogUnavailable("no")):
        failed = log.append(DURABLE, "w", [row("a")], transaction_id="t")
    with pytest.raises(LogUnavailable):
        result(failed)
    result(log.close())


def test_one_turn_of_the_reactor_is_one_commit(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path, clock=Clock())
    writes = mock.patch.object(
        store.log._database, "write", wraps=store.log._database.write
    ).start()
    waiting = [store.log.append(DURABLE, "w", [row("a")]) for _ in range(5)]
    assert not writes.called
    store.settle()
    assert writes.call_count == 1
    assert [result(each).last for each in waiting] == [1, 2, 3, 4, 5]
    mock.patch.stopall()
    store.close()


def test_a_trim_that_is_refused_is_tried_again(tmp_path: Path) -> None:
    log, worker = slow_log(tmp_path)
    log.append(DURABLE, "w", [row("a"), row("b")])
    worker.run()
    log.trim(DURABLE, "w", 2)
    with mock.patch.object(log._database, "write", side_effect=LogUnavailable("full")):
        worker.run()
    assert log.floor(DURABLE, "w") == 2
    assert log._by_id[1].stored.rows == 2
    log.append(DURABLE, "w", [row("c")])
    worker.run()
    assert log._by_id[1].stored.rows == 1
    assert log._by_id[1].trimming is False
    result(log.close())


def test_trims_during_a_commit_go_with_the_next_one(tmp_path: Path) -> None:
    log, worker = slow_log(tmp_path)
    log.append(DURABLE, "w", [row("a"), row("b")])
    worker.run()
    log.trim(DURABLE, "w", 1)
    log.append(DURABLE, "w", [row("c")])
    log.trim(DURABLE, "w", 2)
    worker.run()
    assert log._by_id[1].trimming is True
    worker.run()
    assert log._by_id[1].trimming is False
    assert [token for token, _ in read_all(log, DURABLE, 2)] == [3]
    log.trim(DURABLE, "w", 3)
    closed = log.close()
    worker.run()
    worker.run()
    result(closed)
    again = SqliteStore(tmp_path / "slow")
    assert again.log.floor(DURABLE, "w") == 3
    again.close()


def test_whose_log_it_is_says_what_is_beyond_retention() -> None:
    with pytest.raises(NotImplementedError):
        GroupCommit._expire_pairs(mock.Mock(), ())


def test_ids_of_transactions_are_kept_for_as_long_as_is_said(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path, Retention(transaction_age_s=100))
    first = add(store, DURABLE, row("a"), transaction_id="t")
    store.now_ms += 99_000
    store.log.expire()
    assert add(store, DURABLE, row("a"), transaction_id="t") == first
    store.now_ms += 2_000
    store.log.expire()
    assert add(store, DURABLE, row("a"), transaction_id="t") != first
    store.close()


def test_who_waits_is_held_up_by_cleaning_now_and_then_only(tmp_path: Path) -> None:
    """Whichever way the clock goes."""
    store = SqliteStore(tmp_path, clock=Clock())
    store.log._cleaned_ms = 1_000_000
    for now_ms, may in ((1_000_000, False), (1_000_249, False), (1_000_250, True), (999_750, True)):
        assert store.log._may_clean(now_ms, others_wait=True) is may
        assert store.log._may_clean(now_ms, others_wait=False)
    store.close()
    store = SqliteStore(tmp_path / "other")
    assert store.log._may_clean(0, others_wait=True), "there is no other time for it"
    store.close()


def test_what_meets_what_another_has_taken_is_written_before_what_comes_later(
    tmp_path: Path,
) -> None:
    log, worker = slow_log(tmp_path)
    claimed = log.claim("p")
    worker.run()
    assert result(claimed).epoch == 1
    log.append(EPHEMERAL, "w", [row("x")])
    worker.run()
    first = log.append(DURABLE, "w", [row("a")])
    log.append(EPHEMERAL, "w", [row("y")], produced=Produced("p", 1, 1))
    meets = log.append(DURABLE, "w", [row("b")], transaction_id="t")
    others = [log.append(DURABLE, "w", [row("c")])]
    worker.run()
    assert result(first).last == 1
    others.append(log.append(DURABLE, "w", [row("d")]))
    theirs = Appended(DURABLE, "v", 70, 70)
    known = KnownTransactions({(DURABLE, "t"): theirs})
    with mock.patch.object(log._database, "write", side_effect=known):
        worker.run()
    assert result(meets) == theirs
    worker.run()
    worker.run()
    assert [result(each).last for each in others] == [3, 4]
    assert [r for _, r in read_all(log, DURABLE, 0)] == [row("a"), row("c"), row("d")]
    result(log.close())
    again = SqliteStore(tmp_path / "slow")
    repeated = result(again.log.append(EPHEMERAL, "w", [row("y")], produced=Produced("p", 1, 1)))
    assert repeated.last == 2
    again.close()


def test_what_a_file_could_give_back_it_gives_back_with_the_next_commit(tmp_path: Path) -> None:
    log, worker = slow_log(tmp_path)
    commits = []
    for spare in (False, True, False, False):
        log.append(DURABLE, "w", [row("a")])
        freed = Freed(spare=spare)
        with mock.patch.object(log._database, "write", return_value=freed) as write:
            worker.run()
        commits.append(write.call_args.args[0].shrink)
    assert commits == [False, False, True, False]
    closed = log.close()
    for _ in range(3):
        worker.run()
    result(closed)


def test_old_ids_are_looked_for_once_for_each_time_that_it_is_said(tmp_path: Path) -> None:
    log, worker = slow_log(tmp_path)
    log.append(DURABLE, "w", [row("a")])
    worker.run()
    log.expire()
    asked = []
    for _ in range(3):
        log.append(DURABLE, "w", [row("b")])
        database = log._database
        with mock.patch.object(database, "write", wraps=database.write) as write:
            worker.run()
        asked.append([call.args[0].expire_before_ms is not None for call in write.call_args_list])
    assert sum(map(sum, asked)) == 1
    closed = log.close()
    for _ in range(3):
        worker.run()
    result(closed)


def test_what_was_trimmed_counts_no_more(store: SqliteStore) -> None:
    """In rows and in bytes, by which retention goes."""
    for _ in range(3):
        add(store, DURABLE, row("a"))
    stored = store.log._pairs[DURABLE, "w"].stored  # type: ignore[union-attr]
    size = stored.size_bytes // 3
    store.log.trim(DURABLE, "w", 2)
    add(store, DURABLE, row("a"))
    assert (stored.rows, stored.size_bytes) == (2, 2 * size)
    store.close()


def test_what_cannot_be_made_ready_is_refused_and_what_follows_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits hears of it; the log goes on."""
    log, worker = slow_log(tmp_path)
    first = log.append(DURABLE, "w", [row("a")])
    waiting = [log.append(DURABLE, "w", [row("b")]), log.append(DURABLE, "w", [row("c")])]
    gather = group_commit.gather

    def failing(items: list[Item], now_ms: int) -> Batch:
        monkeypatch.setattr(group_commit, "gather", gather)
        raise MemoryError("no room for the block")

    monkeypatch.setattr(group_commit, "gather", failing)
    worker.run()
    worker.run()
    assert result(first).last == 1
    for each in waiting:
        with pytest.raises(MemoryError):
            result(each)
    later = log.append(DURABLE, "w", [row("d")])
    worker.run()
    assert result(later).last == 4
    assert [line for _, line in read_all(log, DURABLE, 0)] == [row("a"), row("d")]
    closed = log.close()
    worker.run()
    assert result(closed) is None


def test_a_damaged_file_refuses_those_alone_who_ask_for_what_it_cannot_take(
    tmp_path: Path,
) -> None:
    """Whoever else is in the same commit is served, in order, and so is who comes later."""
    log, worker = slow_log(tmp_path)
    log.append(DURABLE, "w", [row("x")])
    log.append(RELAYED, "w", [row("x")])
    while worker.jobs:
        worker.run()
    whole = log._database.write
    broken = log._by_id[2].stored.id
    sizes: list[int] = []

    def write(commit: Commit) -> Freed:
        sizes.append(sum(len(block.tokens) for _, block in commit.blocks))
        if any(pair == broken for pair, _ in commit.blocks):
            raise LogCorrupt("a page is broken")
        return whole(commit)

    heard: list[int] = []
    log.add_listener(lambda block: heard.extend(block.tokens))
    first = log.append(DURABLE, "w", [row("0")])
    waiting = [log.append(RELAYED if n == 5 else DURABLE, "w", [row(f"{n}")]) for n in range(9)]
    flushed = log.flush()
    log.trim(DURABLE, "w", 1)
    with mock.patch.object(log._database, "write", side_effect=write):
        while worker.jobs:
            worker.run()
    for number, each in enumerate((first, *waiting)):
        if number == 6:
            with pytest.raises(LogCorrupt):
                result(each)
        else:
            assert result(each).stream == DURABLE
    assert result(flushed) is None
    assert heard == [*range(2, 11)]
    assert read_all(log, DURABLE, 1)[-1] == (10, row("8"))
    assert log.floor(DURABLE, "w") == 1
    assert next(log._database.oldest(log._by_id[1].stored, 0))[0] == 2
    # With 10 that wait (one for the flush) these are 10, 5, then what is left, by halves.
    assert len(sizes) < 12
    assert log._most is None
    log.append(RELAYED, "w", [row("y")])
    worker.run()
    assert [token for token, _ in read_all(log, RELAYED, 1)] == [3]
    result(log.close())


def test_what_goes_is_owed_until_it_has_gone(tmp_path: Path) -> None:
    log, worker = slow_log(tmp_path)
    commits: list[Commit] = []

    def write(commit: Commit) -> Freed:
        commits.append(commit)
        if len(commits) < 3:
            raise LogUnavailable("full")
        return Freed(spare=len(commits) == 3)

    log._shrinking = log._expire_transactions = True
    with mock.patch.object(log._database, "write", side_effect=write):
        for _ in range(5):
            log.append(DURABLE, "w", [row("b")]).addErrback(lambda _: None)
            worker.run()
        closed = log.close()
        while worker.jobs:
            worker.run()
    result(closed)
    assert [commit.shrink for commit in commits[:5]] == [True, True, True, True, False]
    kept = [commit.expire_before_ms is not None for commit in commits[:5]]
    assert kept == [True, True, True, False, False]


def test_a_start_gives_back_what_a_process_that_was_killed_has_left(tmp_path: Path) -> None:
    freed = [Freed(spare=True), Freed()]
    with mock.patch.object(Database, "write", side_effect=freed) as write, capture_logs() as said:
        log, worker = slow_log(tmp_path)
        worker.run()
    assert [call.args[0].shrink for call in write.call_args_list] == [True, True]
    assert said == []
    result(log.close())
    kept = Freed(damaged=[(None, "pages are kept")])
    with mock.patch.object(Database, "write", return_value=kept), capture_logs() as said:
        log, _ = slow_log(tmp_path)
    assert [line["event"] for line in said] == ["streams.trim.damaged"]
    result(log.close())


def test_what_damage_keeps_is_told(tmp_path: Path) -> None:
    log, worker = slow_log(tmp_path)
    log.append(DURABLE, "w", [row("a")])
    freed = Freed(damaged=[(1, "blocks are kept"), (None, "pages are kept")])
    with mock.patch.object(log._database, "write", return_value=freed), capture_logs() as said:
        worker.run()
    assert [{**line, "log_level": ""} for line in said] == [
        {
            "event": "streams.trim.damaged",
            "reason": "blocks are kept",
            "stream": DURABLE,
            "instance": "w",
            "log_level": "",
        },
        {"event": "streams.trim.damaged", "reason": "pages are kept", "log_level": ""},
    ]
    result(log.close())
