"""The outbox: what is committed, what supersedes, transactions, faults of the disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from twisted.internet.defer import Deferred

from tcprepl.federation.sending.backoff import Backoff
from tcprepl.federation.sending.lanes import Entry
from tcprepl.federation.sending.outbox import (
    Outbox,
    OutboxError,
    OutboxUnavailable,
    StoredTransaction,
    run_inline,
)
from tcprepl.federation.wire.edu import build_edu

T = TypeVar("T")


def now(done: Deferred[T]) -> T:
    """Return the result of a Deferred that has fired."""
    found: list[Any] = []
    done.addBoth(found.append)
    if hasattr(found[0], "raiseException"):
        found[0].raiseException()
    result: T = found[0]
    return result


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    made = Outbox(tmp_path / "data" / "outbox.sqlite", run_inline)
    yield made
    made.close()


def put(
    outbox: Outbox, destination: str, number: int, key: str | None = None, *, expires: int = 0
) -> Entry:
    content = {"n": number}
    edu = build_edu("x", destination, "m.test", content, None if key is None else (key,))
    entry = (outbox.take_ids(1)[0], expires, edu)
    now(outbox.add([entry], 1_000 + number, {("federation", "master"): number}))
    return entry


def numbers(entries: list[Entry]) -> list[int]:
    return [entry[2].decode_content()["n"] for entry in entries]


def test_what_is_added_is_there_in_order_with_its_position(outbox: Outbox) -> None:
    for number in range(5):
        put(outbox, "y", number)
    assert numbers(now(outbox.load("y", 0, 3))) == [0, 1, 2]
    assert numbers(now(outbox.load("y", 3, 9))) == [3, 4]
    assert outbox.positions() == {("federation", "master"): 4}
    assert list(outbox.destinations()) == ["y"]


def test_it_survives_a_restart_whole(outbox: Outbox, tmp_path: Path) -> None:
    entry = put(outbox, "y", 1, "key")
    now(outbox.set_paused("z", True))
    now(outbox.set_backoff("z", Backoff(2, 5, 6, 7, "why")))
    now(outbox.close())
    again = Outbox(tmp_path / "data" / "outbox.sqlite", run_inline)
    (found,) = now(again.load("y", 0, 9))
    assert found[0] == entry[0]
    assert found[2].key == ("key",)
    assert found[2].content_bytes == entry[2].content_bytes
    assert found[2].origin == "x"
    assert again.take_ids(1)[0] == entry[0] + 1
    stored = again.destinations()["z"]
    assert stored.paused
    assert stored.backoff == Backoff(2, 5, 6, 7, "why")
    now(again.close())


def test_the_newest_of_a_key_takes_the_place_of_the_older(outbox: Outbox) -> None:
    put(outbox, "y", 1, "a")
    put(outbox, "y", 2, "b")
    put(outbox, "y", 3, "a")
    put(outbox, "z", 4, "a")
    assert numbers(now(outbox.load("y", 0, 9))) == [2, 3]
    assert numbers(now(outbox.load("z", 0, 9))) == [4]


def test_a_transaction_is_kept_just_as_it_was(outbox: Outbox) -> None:
    first, second = put(outbox, "y", 1, "a"), put(outbox, "y", 2)
    now(outbox.begin("y", StoredTransaction("t1", 77, [second, first])))
    put(outbox, "y", 3, "a")
    assert numbers(now(outbox.load("y", 0, 9))) == [3]
    found = now(outbox.load_transaction("y"))
    assert found is not None
    assert (found.transaction_id, found.origin_server_ts, found.uncertain) == ("t1", 77, True)
    assert numbers(found.entries) == [2, 1]
    assert outbox.destinations()["y"].in_flight
    now(outbox.finish("y", "t1"))
    assert now(outbox.load_transaction("y")) is None
    assert numbers(now(outbox.load("y", 0, 9))) == [3]


def test_an_edu_that_was_replaced_while_it_was_taken_goes_nevertheless(outbox: Outbox) -> None:
    old = put(outbox, "y", 1, "a")
    put(outbox, "y", 2, "a")
    now(outbox.begin("y", StoredTransaction("t1", 77, [old])))
    found = now(outbox.load_transaction("y"))
    assert found is not None
    assert numbers(found.entries) == [1]


def test_a_dissolved_transaction_waits_again_without_what_was_replaced(outbox: Outbox) -> None:
    entries = [put(outbox, "y", 1, "a"), put(outbox, "y", 2), put(outbox, "y", 3, "b")]
    now(outbox.begin("y", StoredTransaction("t1", 77, entries)))
    put(outbox, "y", 4, "a")
    now(outbox.dissolve("y", "t1"))
    assert numbers(now(outbox.load("y", 0, 9))) == [2, 3, 4]
    assert now(outbox.load_transaction("y")) is None


def test_postponed_edus_wait_behind_all_others(outbox: Outbox) -> None:
    first = put(outbox, "y", 1)
    put(outbox, "y", 2)
    now(outbox.begin("y", StoredTransaction("t1", 77, [first])))
    now(outbox.postpone("y", "t1"))
    assert numbers(now(outbox.load("y", 0, 9))) == [2, 1]


def test_what_is_set_aside_is_kept_and_can_be_taken_up_again(outbox: Outbox) -> None:
    first = put(outbox, "y", 1)
    now(outbox.begin("y", StoredTransaction("t1", 77, [first])))
    now(outbox.park("y", "t1"))
    assert now(outbox.load("y", 0, 9)) == []
    assert now(outbox.summary("y"))["y"]["parked"].edus == 1
    assert now(outbox.unpark("y")) == 1
    assert numbers(now(outbox.load("y", 0, 9))) == [1]


def test_what_has_expired_is_removed_unless_it_is_in_flight(outbox: Outbox) -> None:
    put(outbox, "y", 1, expires=500)
    flying = put(outbox, "y", 2, expires=500)
    put(outbox, "y", 3, expires=5_000)
    put(outbox, "y", 4)
    now(outbox.begin("y", StoredTransaction("t1", 77, [flying])))
    assert now(outbox.expire(1_000)) == 1
    assert numbers(now(outbox.load("y", 0, 9))) == [3, 4]
    now(outbox.remove([3]))
    assert numbers(now(outbox.load("y", 0, 9))) == [4]


def test_purge_and_summaries(outbox: Outbox) -> None:
    put(outbox, "y", 1)
    flying = put(outbox, "y", 2)
    put(outbox, "z", 3)
    now(outbox.begin("y", StoredTransaction("t1", 77, [flying])))
    summary = now(outbox.summary())
    assert summary["y"]["other"].edus == 2
    assert summary["y"]["other"].oldest_ms == 1_001
    assert now(outbox.totals())["other"].edus == 3
    assert now(outbox.purge("y")) == 2
    assert now(outbox.load_transaction("y")) is None
    assert list(now(outbox.summary())) == ["z"]


def test_a_destination_that_is_plain_again_is_forgotten(outbox: Outbox) -> None:
    now(outbox.set_paused("y", True))
    now(outbox.set_backoff("y", Backoff(1, 1, 1, 1, "")))
    now(outbox.set_backoff("y", Backoff()))
    assert outbox.destinations()["y"].paused
    now(outbox.set_paused("y", False))
    assert outbox.destinations() == {}


def test_a_second_process_is_kept_out(outbox: Outbox) -> None:
    with pytest.raises(OutboxError, match="in use"):
        Outbox(outbox.path, run_inline)


def test_a_file_that_is_no_outbox_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    path.write_bytes(b"this is no database at all, and long enough to be one" * 100)
    with pytest.raises(OutboxError, match="move it away"):
        Outbox(path, run_inline)


def test_an_outbox_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(OutboxError, match="newer"):
        Outbox(path, run_inline)


def test_a_disk_that_refuses_fails_what_was_asked_and_nothing_else(outbox: Outbox) -> None:
    put(outbox, "y", 1)
    real = outbox._in_one
    calls: list[int] = []

    def refusing(ops: Any) -> Any:
        calls.append(len(ops))
        raise sqlite3.OperationalError("database or disk is full")

    outbox._in_one = refusing  # type: ignore[method-assign]
    with pytest.raises(OutboxUnavailable, match="full"):
        put(outbox, "y", 2)
    outbox._in_one = real  # type: ignore[method-assign]
    assert numbers(now(outbox.load("y", 0, 9))) == [1]
    assert outbox.positions() == {("federation", "master"): 1}


def test_what_is_asked_while_the_disk_works_goes_into_one_commit(tmp_path: Path) -> None:
    waiting: list[tuple[Any, Deferred[Any]]] = []

    def run(work: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        waiting.append((work, done))
        return done

    outbox = Outbox(tmp_path / "outbox.sqlite", run)
    done: list[object] = []
    outbox.flush().addCallback(done.append)
    for _ in range(5):
        outbox.flush().addCallback(done.append)
    assert len(waiting) == 1
    work, fired = waiting.pop()
    fired.callback(work())
    assert len(waiting) == 1
    work, fired = waiting.pop()
    fired.callback(work())
    assert done == [None] * 6
    outbox.close()
    work, fired = waiting.pop()
    fired.callback(work())


def test_one_failing_operation_does_not_fail_its_neighbours(tmp_path: Path) -> None:
    waiting: list[tuple[Any, Deferred[Any]]] = []

    def run(work: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        waiting.append((work, done))
        return done

    outbox = Outbox(tmp_path / "outbox.sqlite", run)
    results: list[Any] = []
    outbox.flush()
    outbox._submit(lambda cursor: cursor.execute("nonsense")).addBoth(results.append)
    outbox._submit(lambda cursor: 5).addBoth(results.append)
    for _ in range(2):
        work, fired = waiting.pop()
        fired.callback(work())
    assert isinstance(results[0].value, OutboxUnavailable)
    assert results[1] == 5
    outbox.close()
    work, fired = waiting.pop()
    fired.callback(work())


def test_a_transaction_whose_end_was_not_noted_waits_again_after_a_restart(
    tmp_path: Path,
) -> None:
    outbox = Outbox(tmp_path / "outbox.sqlite", run_inline)
    first = put(outbox, "y", 1)
    now(outbox.begin("y", StoredTransaction("t1", 77, [first])))
    second = put(outbox, "y", 2)
    now(outbox.begin("y", StoredTransaction("t2", 78, [second])))
    now(outbox.close())
    again = Outbox(tmp_path / "outbox.sqlite", run_inline)
    assert numbers(now(again.load("y", 0, 9))) == [1]
    found = now(again.load_transaction("y"))
    assert found is not None
    assert found.transaction_id == "t2"
    now(again.close())
    assert now(again.close()) is None
