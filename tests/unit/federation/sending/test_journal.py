"""The journal: what comes and goes gets no rows of its own; what stays, or is killed, is there."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from twisted.python.failure import Failure

from tcprepl.federation.sending import journal
from tcprepl.federation.sending.commit_queue import OutboxUnavailable, run_inline
from tcprepl.federation.sending.lanes import Entry
from tcprepl.federation.sending.outbox import Outbox
from tcprepl.federation.sending.stored import StoredTransaction
from tcprepl.federation.wire.edu import build_edu
from tests.unit.federation.sending.test_outbox import now, numbers, outbox, put

__all__ = ["outbox"]


def rows(outbox: Outbox, table: str) -> int:
    found: int = outbox._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    return found


def begin(outbox: Outbox, transaction_id: str, *entries: Entry) -> None:
    now(
        outbox.begin(
            [(entries[0][2].destination, StoredTransaction(transaction_id, 77, [*entries]))]
        )
    )


def after_a_kill(outbox: Outbox, tmp_path: Path) -> Outbox:
    """Open what would be found if the process were killed now."""
    where = tmp_path / "found"
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{outbox.path}{suffix}", where / f"outbox.sqlite{suffix}")
    return Outbox(where / "outbox.sqlite", run_inline)


def test_what_comes_and_goes_gets_no_rows_of_its_own(outbox: Outbox) -> None:
    for number in range(5):
        first, second = put(outbox, "y", number), put(outbox, "z", number, "key")
        begin(outbox, f"y{number}", first)
        begin(outbox, f"z{number}", second)
        assert rows(outbox, "edus") == rows(outbox, "transactions") == 0
        assert rows(outbox, "journal") == 4
        now(outbox.finish([("y", f"y{number}")]))
        now(outbox.finish([("z", f"z{number}")]))
        assert rows(outbox, "journal") == 0
    assert now(outbox.summary()) == {}


def test_after_a_kill_everything_waits_or_is_under_way(outbox: Outbox, tmp_path: Path) -> None:
    done, flying = put(outbox, "y", 1), put(outbox, "y", 2, "key")
    begin(outbox, "t1", done)
    now(outbox.finish([("y", "t1")]))
    begin(outbox, "t2", flying)
    for number in (3, 4):
        put(outbox, "y", number, "key")
    put(outbox, "z", 5)
    again = after_a_kill(outbox, tmp_path)
    assert rows(again, "journal") == 0
    found = now(again.load_transaction("y"))
    assert found is not None
    assert (found.transaction_id, found.origin_server_ts, found.uncertain) == ("t2", 77, True)
    assert numbers(found.entries) == [2]
    assert numbers(now(again.load("y", 0, 9))) == [4]
    assert numbers(now(again.load("z", 0, 9))) == [5]
    assert again.newest_ms() == 1_005
    assert again.take_ids(1)[0] > flying[0]
    now(again.close())


def test_what_was_replaced_while_it_was_taken_goes_nevertheless(
    outbox: Outbox, tmp_path: Path
) -> None:
    old = put(outbox, "y", 1, "key")
    put(outbox, "y", 2, "key")
    begin(outbox, "t1", old)
    again = after_a_kill(outbox, tmp_path)
    found = now(again.load_transaction("y"))
    assert found is not None
    assert numbers(found.entries) == [1]
    assert numbers(now(again.load("y", 0, 9))) == [2]
    now(again.close())


def test_what_was_asked_for_stays_in_the_tables_until_all_of_its_destination_is_gone(
    outbox: Outbox, tmp_path: Path
) -> None:
    put(outbox, "z", 3)
    first = put(outbox, "y", 1, "key")
    assert numbers(now(outbox.load("y", 0, 9))) == [1]
    second = put(outbox, "y", 2)
    assert (rows(outbox, "edus"), rows(outbox, "journal")) == (2, 3)
    again = after_a_kill(outbox, tmp_path)
    assert numbers(now(again.load("y", 0, 9))) == [1, 2]
    now(again.close())
    begin(outbox, "t1", first, second)
    newer = put(outbox, "y", 4, "key")
    now(outbox.finish([("y", "t1")]))
    assert rows(outbox, "edus") == 1
    begin(outbox, "t2", newer)
    now(outbox.finish([("y", "t2")]))
    put(outbox, "y", 5)
    assert rows(outbox, "edus") == 0


def test_a_journal_that_has_grown_is_settled(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MAX_JOURNAL_BYTES", 200)
    flying = put(outbox, "y", 0)
    begin(outbox, "t1", flying)
    with pytest.raises(OutboxUnavailable):
        begin(outbox, "t2", flying)
    for number in range(1, 20):
        put(outbox, "z", number)
        held: int = outbox._connection.execute(
            "SELECT coalesce(sum(length(records)), 0) FROM journal"
        ).fetchone()[0]
        assert held <= 200
    assert numbers(now(outbox.load("z", 0, 99))) == list(range(1, 20))
    found = now(outbox.load_transaction("y"))
    assert found is not None
    assert numbers(found.entries) == [0]


def test_a_commit_that_fails_leaves_memory_as_the_disk_is(outbox: Outbox) -> None:
    """Also what was forgotten, begun and given its rows in it."""
    first, second = put(outbox, "y", 1), put(outbox, "z", 2)
    begin(outbox, "t1", first)

    def settle_and_fail(cursor: sqlite3.Cursor) -> None:
        assert outbox._journal.finish("y", "t1")
        assert outbox._journal.begin("z", StoredTransaction("t2", 78, [second]))
        outbox._journal.settle(cursor)
        cursor.execute("nonsense")

    with pytest.raises(OutboxUnavailable):
        now(outbox.submit(settle_and_fail))
    found = now(outbox.load_transaction("y"))
    assert found is not None
    assert numbers(found.entries) == [1]
    assert now(outbox.load_transaction("z")) is None
    assert numbers(now(outbox.load("z", 0, 9))) == [2]


def test_a_disk_that_refuses_for_a_while_is_asked_again_and_nothing_is_lost(
    outbox: Outbox,
) -> None:
    put(outbox, "y", 1)
    real = outbox._recall
    refused: list[Failure] = []

    def refuse(cursor: sqlite3.Cursor) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    outbox._outdated = True
    outbox._recall = refuse  # type: ignore[method-assign]
    for _ in range(2):
        outbox.load("y", 0, 9).addErrback(refused.append)
    assert [failure.type for failure in refused] == [OutboxUnavailable] * 2
    outbox._recall = real  # type: ignore[method-assign]
    assert numbers(now(outbox.load("y", 0, 9))) == [1]


def test_the_newest_of_a_key_is_all_that_is_left_of_it(outbox: Outbox, tmp_path: Path) -> None:
    """Also when it has left: or the older one would arrive behind it."""
    put(outbox, "y", 1, "key")
    newest = put(outbox, "y", 2, "key")
    begin(outbox, "t1", newest)
    now(outbox.finish([("y", "t1")]))
    again = after_a_kill(outbox, tmp_path)
    assert now(again.load("y", 0, 9)) == []
    now(again.close())
    assert now(outbox.load("y", 0, 9)) == []


def test_after_a_kill_what_had_ended_has_ended(outbox: Outbox, tmp_path: Path) -> None:
    first, second = put(outbox, "y", 1), put(outbox, "y", 2)
    put(outbox, "z", 3)
    begin(outbox, "t1", first)
    now(outbox.finish([("y", "t1")]))
    again = after_a_kill(outbox, tmp_path)
    assert now(again.load_transaction("y")) is None
    assert numbers(now(again.load("y", 0, 9))) == [2]
    now(again.close())
    begin(outbox, "t2", second)
    now(outbox.finish([("y", "t2")]))
    again = after_a_kill(outbox, tmp_path)
    assert list(again.destinations()) == ["z"]
    now(again.close())


def test_a_journal_that_is_empty_again_begins_anew(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much has gone through it, what comes and goes gets no rows."""
    monkeypatch.setattr(journal, "MAX_JOURNAL_BYTES", 400)
    for number in range(20):
        begin(outbox, f"t{number}", put(outbox, "y", number))
        assert rows(outbox, "edus") == 0
        now(outbox.finish([("y", f"t{number}")]))


@pytest.mark.parametrize("came", [True, False])
def test_what_did_not_wait_any_more_is_as_old_as_the_newest_or_as_its_transaction(
    outbox: Outbox, came: bool
) -> None:
    old = put(outbox, "z", 1, "key")
    if came:
        old = put(outbox, "y", 3, "key")
        put(outbox, "y", 7, "key")
    edu = build_edu("x", "y", "m.test", {"n": 1}, ("key",))
    begin(outbox, "t1", (old[0], 0, edu))
    waiting = now(outbox.summary("y"))["y"]["other"]
    assert (waiting.edus, waiting.oldest_ms) == ((2, 1_007) if came else (1, 77))
