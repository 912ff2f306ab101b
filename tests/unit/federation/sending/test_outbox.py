"""The outbox: what is committed, what supersedes, transactions, faults of the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from twisted.internet.defer import Deferred

from tcprepl.federation.sending.backoff import Backoff
from tcprepl.federation.sending.commit_queue import OutboxUnavailable, run_inline
from tcprepl.federation.sending.lanes import Entry
from tcprepl.federation.sending.outbox import Outbox
from tcprepl.federation.sending.stored import (
    QUARANTINED,
    SET_ASIDE,
    Refusal,
    StoredTransaction,
)
from tcprepl.federation.wire.edu import build_edu
from tcprepl.streams.lineage import Lineage

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


def test_a_start_is_told_who_waits_up_to_where_was_read_and_when(
    outbox: Outbox, tmp_path: Path
) -> None:
    """The newest stamp is that of an EDU or of a failure, whichever is later."""
    assert (outbox.newest_ms(), outbox.lineages(), outbox.positions()) == (0, {}, {})
    pair, lineage = ("federation", "master"), Lineage()
    for incarnation, token in (("a", 4), ("b", 6)):
        lineage = lineage.entered(incarnation, token - 1, token)
        entry = (outbox.take_ids(1)[0], 9_000, build_edu("x", "y", "m.test", {"n": token}))
        now(outbox.add([entry], 1_000 + token, {pair: token}, {pair: lineage.stored()}))
    now(outbox.begin([("z", StoredTransaction("t1", 77, [put(outbox, "z", 7)]))]))
    for last_ms, newest_ms in ((5, 1_007), (2_000, 2_000)):
        now(outbox.set_backoff("v", Backoff(2, 5, last_ms, 7, "why")))
        now(outbox.close())
        outbox = Outbox(tmp_path / "data" / "outbox.sqlite", run_inline)
        assert outbox.newest_ms() == newest_ms
    assert outbox.positions() == {pair: 7}
    assert outbox.lineages()[pair].places(6) == lineage.places(6)
    found = outbox.destinations()
    assert {name: (one.waiting, one.in_flight) for name, one in found.items()} == {
        "y": (True, False),
        "z": (False, True),
        "v": (False, False),
    }
    assert [entry[1] for entry in now(outbox.load("y", 0, 9))] == [9_000, 9_000]
    now(outbox.close())


def test_the_newest_of_a_key_takes_the_place_of_the_older(outbox: Outbox) -> None:
    put(outbox, "y", 1, "a")
    put(outbox, "y", 2, "b")
    put(outbox, "y", 3, "a")
    put(outbox, "z", 4, "a")
    assert numbers(now(outbox.load("y", 0, 9))) == [2, 3]
    assert numbers(now(outbox.load("z", 0, 9))) == [4]


def test_a_transaction_is_kept_just_as_it_was(outbox: Outbox) -> None:
    first, second = put(outbox, "y", 1, "a"), put(outbox, "y", 2)
    now(outbox.begin([("y", StoredTransaction("t1", 77, [second, first]))]))
    put(outbox, "y", 3, "a")
    assert numbers(now(outbox.load("y", 0, 9))) == [3]
    found = now(outbox.load_transaction("y"))
    assert found is not None
    assert (found.transaction_id, found.origin_server_ts, found.uncertain) == ("t1", 77, True)
    assert numbers(found.entries) == [2, 1]
    assert outbox.destinations()["y"].in_flight
    now(outbox.finish([("y", "t1")]))
    assert now(outbox.load_transaction("y")) is None
    assert numbers(now(outbox.load("y", 0, 9))) == [3]


def test_an_edu_that_was_replaced_while_it_was_taken_goes_nevertheless(outbox: Outbox) -> None:
    old = put(outbox, "y", 1, "a")
    put(outbox, "y", 2, "a")
    now(outbox.begin([("y", StoredTransaction("t1", 77, [old]))]))
    found = now(outbox.load_transaction("y"))
    assert found is not None
    assert numbers(found.entries) == [1]


def test_what_was_replaced_goes_also_where_the_rest_is_in_the_tables(outbox: Outbox) -> None:
    old, other = put(outbox, "y", 1, "a"), put(outbox, "y", 2)
    now(outbox.load("y", 0, 9))
    put(outbox, "y", 3, "a")
    now(outbox.begin([("y", StoredTransaction("t1", 77, [other, old]))]))
    found = now(outbox.load_transaction("y"))
    assert found is not None
    assert numbers(found.entries) == [2, 1]
    assert numbers(now(outbox.load("y", 0, 9))) == [3]
    now(outbox.finish([("y", "t1")]))
    assert now(outbox.totals())["other"].edus == 1


@pytest.mark.parametrize("how", ["finish", "purge"])
def test_once_all_of_a_destination_has_left_it_is_as_new(outbox: Outbox, how: str) -> None:
    """What comes for it then gets rows of its own only if it stays."""
    now(outbox.begin([("y", StoredTransaction("t1", 77, [put(outbox, "y", 1)]))]))
    now(outbox.load_transaction("y"))
    now(outbox.finish([("y", "t1")]) if how == "finish" else outbox.purge("y"))
    put(outbox, "y", 2)
    assert outbox._connection.execute("SELECT count(*) FROM edus").fetchone() == (0,)


def test_a_dissolved_transaction_waits_again_without_what_was_replaced(outbox: Outbox) -> None:
    entries = [put(outbox, "y", 1, "a"), put(outbox, "y", 2), put(outbox, "y", 3, "b")]
    now(outbox.begin([("y", StoredTransaction("t1", 77, entries))]))
    put(outbox, "y", 4, "a")
    now(outbox.dissolve("y", "t1"))
    assert numbers(now(outbox.load("y", 0, 9))) == [2, 3, 4]
    assert now(outbox.load_transaction("y")) is None


REFUSAL = Refusal(5_000, "HTTP 400 M_BAD_JSON")


def set_aside(outbox: Outbox, entries: list[Entry], mark: str, transaction_id: str = "t1") -> int:
    """Have *entries* refused; returns how many are in quarantine then."""
    now(outbox.begin([("y", StoredTransaction(transaction_id, 77, entries))]))
    now(outbox.set_aside("y", transaction_id, mark, REFUSAL))
    return now(outbox.all_quarantined()).get("y", 0)


def test_what_is_in_quarantine_is_kept_with_its_reason_and_can_be_released(
    outbox: Outbox, tmp_path: Path
) -> None:
    assert set_aside(outbox, [put(outbox, "y", 1)], QUARANTINED) == 1
    assert set_aside(outbox, [put(outbox, "y", 2)], QUARANTINED, "t2") == 2
    assert now(outbox.load("y", 0, 9)) == []
    assert now(outbox.summary("y"))["y"]["quarantined"].edus == 2
    now(outbox.close())
    again = Outbox(tmp_path / "data" / "outbox.sqlite", run_inline)
    assert again.destinations()["y"].quarantined == 2
    newest, oldest = now(again.quarantined("y"))
    assert (oldest["edu_type"], oldest["refused_ms"]) == ("m.test", 5_000)
    assert oldest["reason"] == newest["reason"] == REFUSAL.reason
    assert now(again.release("y", QUARANTINED)) == 2
    assert numbers(now(again.load("y", 0, 9))) == [1, 2]
    now(again.close())


def test_what_is_in_quarantine_can_be_dropped_or_expires(outbox: Outbox) -> None:
    set_aside(outbox, [put(outbox, "y", 1), put(outbox, "y", 2, expires=50)], QUARANTINED)
    now(outbox.expire(100))
    assert now(outbox.summary("y"))["y"]["quarantined"].edus == 1
    assert now(outbox.drop_quarantined("y")) == 1
    assert now(outbox.summary("y")) == {}


def test_a_newer_edu_takes_the_place_of_the_one_of_its_key_that_was_refused(
    outbox: Outbox,
) -> None:
    """Before it was refused, and after."""
    old = put(outbox, "y", 1, "a")
    now(outbox.begin([("y", StoredTransaction("t1", 77, [old]))]))
    put(outbox, "y", 2, "a")
    now(outbox.set_aside("y", "t1", QUARANTINED, REFUSAL))
    assert now(outbox.all_quarantined()) == {}
    (second,) = now(outbox.load("y", 0, 9))
    assert set_aside(outbox, [second], QUARANTINED, "t2") == 1
    put(outbox, "y", 3, "a")
    assert now(outbox.quarantined("y")) == []
    assert numbers(now(outbox.load("y", 0, 9))) == [3]


def test_what_was_set_aside_for_a_while_waits_again_after_a_restart(
    outbox: Outbox, tmp_path: Path
) -> None:
    set_aside(outbox, [put(outbox, "y", 1)], SET_ASIDE)
    assert now(outbox.load("y", 0, 9)) == []
    now(outbox.close())
    again = Outbox(tmp_path / "data" / "outbox.sqlite", run_inline)
    assert numbers(now(again.load("y", 0, 9))) == [1]
    put(again, "y", 2)
    assert now(again.set_aside_again("y")) == 1
    assert numbers(now(again.load("y", 0, 9))) == [2]
    now(again.close())


def test_what_was_refused_before_a_restart_is_replaced_as_ever(
    outbox: Outbox, tmp_path: Path
) -> None:
    """Or it would arrive after the newer one of its key."""
    set_aside(outbox, [put(outbox, "y", 1, "a")], SET_ASIDE)
    now(outbox.close())
    again = Outbox(tmp_path / "data" / "outbox.sqlite", run_inline)
    assert now(again.set_aside_again("y")) == 1
    newer = put(again, "y", 2, "a")
    now(again.begin([("y", StoredTransaction("t2", 78, [newer]))]))
    now(again.finish([("y", "t2")]))
    assert now(again.release("y", SET_ASIDE)) == 0
    assert now(again.totals()) == {}
    now(again.close())


def test_a_transaction_that_is_put_off_is_kept_as_it_is(outbox: Outbox, tmp_path: Path) -> None:
    first = put(outbox, "y", 1, "a")
    now(outbox.begin([("y", StoredTransaction("t1", 77, [first]))]))
    now(outbox.put_off("y", "t1"))
    assert outbox.destinations()["y"].put_off == 1
    assert now(outbox.load_transaction("y")) is None
    second = put(outbox, "y", 2)
    put(outbox, "y", 3, "a")
    now(outbox.begin([("y", StoredTransaction("t2", 78, [second]))]))
    assert now(outbox.take_back("y")) == (False, 1)
    now(outbox.close())
    again = Outbox(tmp_path / "data" / "outbox.sqlite", run_inline)
    assert again.destinations()["y"].put_off == 1
    now(again.finish([("y", "t2")]))
    # What has a key of the one that is put off waits for it.
    assert numbers(now(again.load("y", 0, 9, any_put_off=True))) == []
    assert now(again.take_back("y")) == (True, 0)
    found = now(again.load_transaction("y"))
    assert found is not None
    assert (found.transaction_id, numbers(found.entries)) == ("t1", [1])
    now(again.finish([("y", "t1")]))
    assert numbers(now(again.load("y", 0, 9, any_put_off=True))) == [3]
    now(again.begin([("y", StoredTransaction("t3", 79, now(again.load("y", 0, 9))))]))
    now(again.put_off("y", "t3"))
    assert now(again.purge("y")) == 1
    assert now(again.take_back("y")) == (False, 0)
    now(again.close())


def test_no_transaction_begins_before_the_end_of_the_one_before_is_on_disk(
    outbox: Outbox,
) -> None:
    """After a crash its EDUs would be taken for waiting, and leave under another id."""
    first, second = put(outbox, "y", 1), put(outbox, "y", 2)
    now(outbox.begin([("y", StoredTransaction("t1", 77, [first]))]))
    with pytest.raises(OutboxUnavailable):
        now(outbox.begin([("y", StoredTransaction("t2", 78, [second]))]))
    now(outbox.finish([("y", "t1")]))
    now(outbox.begin([("y", StoredTransaction("t2", 78, [second]))]))


def test_transactions_that_begin_together_begin_all_or_none(outbox: Outbox) -> None:
    entries = {name: put(outbox, name, number) for number, name in enumerate("xyz")}
    now(outbox.begin([("y", StoredTransaction("t1", 77, [entries["y"]]))]))
    together = [(name, StoredTransaction(f"t{name}", 78, [entries[name]])) for name in "xyz"]
    with pytest.raises(OutboxUnavailable):
        now(outbox.begin(together))
    assert now(outbox.load_transaction("x")) is None
    now(outbox.finish([("y", "t1")]))
    now(outbox.begin(together[::2]))
    for name in "xz":
        begun = now(outbox.load_transaction(name))
        assert (begun.transaction_id, begun.entries[0][0]) == (f"t{name}", entries[name][0])


def test_of_what_fails_nothing_is_left_and_its_neighbours_are_done(outbox: Outbox) -> None:
    """In one commit with it; memory is what is on disk then."""
    first = put(outbox, "y", 1)

    def fail(cursor: Any) -> None:
        outbox._journal.settle(cursor)
        cursor.execute("nonsense")

    found: list[Any] = []
    outbox._pumping = True
    outbox.begin([("y", StoredTransaction("t1", 77, [first]))]).addBoth(found.append)
    outbox.submit(fail).addBoth(found.append)
    outbox.take_back("y").addBoth(found.append)
    outbox._pumping = False
    outbox._pump()
    assert found[::2] == [None, (False, 0)]
    assert isinstance(found[1].value, OutboxUnavailable)
    now(outbox.finish([("y", "t1")]))
    assert now(outbox.totals()) == {}
    with pytest.raises(OutboxUnavailable):
        now(outbox.submit(fail))
    put(outbox, "y", 2)
    assert numbers(now(outbox.load("y", 0, 9))) == [2]


def test_what_has_expired_is_removed_unless_it_is_in_flight(outbox: Outbox) -> None:
    put(outbox, "y", 1, expires=500)
    flying = put(outbox, "y", 2, expires=500)
    put(outbox, "y", 3, expires=5_000)
    put(outbox, "y", 4)
    now(outbox.begin([("y", StoredTransaction("t1", 77, [flying]))]))
    assert now(outbox.expire(1_000)) == 1
    assert numbers(now(outbox.load("y", 0, 9))) == [3, 4]
    now(outbox.remove("y", [3]))
    assert numbers(now(outbox.load("y", 0, 9))) == [4]


def test_purge_and_summaries(outbox: Outbox) -> None:
    put(outbox, "y", 1)
    flying = put(outbox, "y", 2)
    put(outbox, "z", 3)
    now(outbox.begin([("y", StoredTransaction("t1", 77, [flying]))]))
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
    for backoff in (Backoff(1, 1, 1, 1, ""), Backoff()):
        now(outbox.set_backoff("y", backoff))
    assert outbox.destinations() == {}
