"""Batches for who asks: what counts, what is undone, what comes again."""

from __future__ import annotations

import itertools
import sqlite3
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater

from tcprepl import metrics
from tcprepl.protocol.commands import PositionCommand
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.events import MixedReceived, RowsReceived, RunReceived
from tcprepl.replication.following.delivery import Delivery
from tcprepl.replication.following.pulling import Hand, Judged, Puller
from tcprepl.streams.position_store import MemoryPositionStore, SqlitePositionStore
from tcprepl.streams.registry import Registry, StreamDef

PAIR = ("alpha", "master")


class Numbered(msgspec.Struct, array_like=True):
    """A row with a number."""

    number: int


class Disk(sqlite3.Connection):
    """A connection whose commits fail when told to."""

    refusals = 0

    def commit(self) -> None:
        """Commit, or not."""
        if self.refusals:
            self.refusals -= 1
            raise sqlite3.OperationalError("database or disk is full")
        super().commit()


class Stage:
    """A delivery, who pulls from it, and a client that only notes what it is asked for."""

    def __init__(self, store: Any = None, **options: Any) -> None:
        self.clock = Clock()
        self.told = 0
        self.paused = False
        self.failures: list[Any] = []
        self.store = store or MemoryPositionStore()
        self.puller = Puller(self.tell)
        everything: dict[str, Any] = dict.fromkeys(
            ("on_reset", "on_position", "on_command", "catch_up", "max_attempts")
        )
        self.delivery = Delivery(
            self,  # type: ignore[arg-type]
            self.puller,
            self.store,
            Registry([StreamDef("alpha", Numbered)]),
            streams=options.pop("streams", None),
            since="start",
            **everything | options,
        )
        self.delivery.start()
        self.delivery.begin(DIALECTS["tcprepl"])

    def tell(self) -> None:
        self.told += 1

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def fail(self, text: str) -> None:
        """Note it."""
        self.broken.append(text)

    def give_up(self, failure: Any) -> None:
        self.failures.append(failure.value)

    async def wait(self, seconds: float) -> None:
        await deferLater(self.clock, seconds)

    def run(self, *tokens: int) -> None:
        """Let batches of one row come."""
        rows = [b"[%d]" % token for token in tokens]
        self.delivery.take([RunReceived(*PAIR, list(tokens), rows)])

    def tokens(self) -> list[int]:
        """Take all that there is."""
        return [batch.token for batch in self.puller.batches()]

    @property
    def known(self) -> int | None:
        return self.delivery.known.get(PAIR)


def test_a_batch_counts_when_the_next_is_asked_for() -> None:
    stage, *_ = worker()
    stage.run(1, 2, 3)
    assert (stage.told, stage.paused) == (1, True)
    assert stage.puller.holds
    batches = stage.puller.batches()
    first = next(batches)
    assert (first.stream, first.instance, first.token) == (*PAIR, 1)
    assert [row.number for row in first.rows] == [1]
    assert stage.known is None
    assert next(batches).token == 2
    assert stage.known == 1
    assert [batch.token for batch in batches] == [3]
    assert stage.known == 3
    stage.puller.settle()
    assert not stage.puller.holds
    assert not stage.paused
    assert stage.store.load() == {PAIR: 3}


def test_batches_of_many_rows_and_what_comes_meanwhile() -> None:
    stage = Stage()
    stage.delivery.take(
        [RowsReceived(*PAIR, 1, [b"[1]", b"[2]"]), RunReceived(*PAIR, [2], [b"[3]"])]
    )
    stage.run(2, 3)
    assert [len(batch.rows) for batch in stage.puller.batches()] == [2, 1]
    stage.puller.settle()
    assert stage.tokens() == [3]
    stage.puller.settle()
    assert not stage.paused
    stage.run(1, 2)  # all are known
    assert stage.tokens() == []
    stage.puller.settle()
    assert not stage.puller.holds


def test_where_nothing_is_committed_positions_are_noted_for_each_read() -> None:
    """And when the loop is left."""
    stage = Stage()
    stage.run(1, 2, 3)
    batches = stage.puller.batches()
    next(batches)
    next(batches)
    assert stage.known is None
    stage.delivery.stop()
    stage.puller.abandon()
    assert Deferred.fromCoroutine(stage.delivery.end()).called
    assert stage.store.load() == {PAIR: 1}


def test_hands_are_kept_while_one_is_taken() -> None:
    stage = Stage()
    position = PositionCommand("beta", "master", 7, 7)
    later = RunReceived(*PAIR, [2, 3], [b"[2]", b"[3]"])
    stage.delivery.take([RunReceived(*PAIR, [1], [b"[1]"]), position, later])
    stage.run(4)
    assert stage.delivery.waiting == 3
    found = stage.tokens()
    stage.puller.settle()
    assert stage.delivery.known["beta", "master"] == 7
    while stage.puller.holds:
        found += stage.tokens()
        stage.puller.settle()
    assert found == [1, 2, 3, 4]
    assert repr(Hand()) == ""
    mixed = MixedReceived([PAIR, ("beta", "master")], [5, 5], [b"secret", b"secret"])
    assert repr(Hand([mixed])) == "<from alpha master on>"
    assert repr(Hand([Judged("alpha", "master", 5, [b"secret"], None)])) == (
        "<from alpha master on>"
    )


def test_a_loop_that_was_left_is_taken_up_behind_its_batch() -> None:
    stage = Stage()
    stage.run(1, 2, 3)
    assert next(stage.puller.batches()).token == 1
    assert next(stage.puller.batches()).token == 2
    assert stage.known == 1
    assert stage.tokens() == [3]


@pytest.mark.parametrize("join", [False, True])
def test_rows_of_several_pairs_come_in_their_order(join: bool) -> None:
    """Those of streams that nobody asked for are not among them."""
    stage = Stage(join_batches=join, streams=["alpha"])
    pairs = [PAIR, ("beta", "master"), PAIR, ("alpha", "other"), PAIR, PAIR]
    raw = [b"[1]", b"[2]", b"[0]", b"[3]", b"[4]", b"[5]"]
    mixed = MixedReceived(pairs, [1, 1, 2, 7, 3, 3], raw)
    stage.delivery.take([mixed, MixedReceived(pairs[1:2], [3], [b"[3]"])])
    seen = []
    while stage.puller.holds:
        seen += [
            (batch.instance, batch.token, [row.number for row in batch.rows])
            for batch in stage.puller.batches()
        ]
        stage.puller.settle()
    assert seen == [("master", 1, [1]), ("master", 2, [0]), ("other", 7, [3]), ("master", 3, [4])]
    assert stage.delivery.known == {PAIR: 3, ("alpha", "other"): 7}
    assert stage.delivery.received_rows == {"alpha": 4 if join else 5}


def test_a_loop_that_was_left_goes_on_with_the_pair_of_its_row() -> None:
    stage = Stage()
    stage.delivery.take([MixedReceived([PAIR, ("alpha", "other")], [1, 7], [b"[1]", b"[3]"])])
    assert [batch.token for batch in itertools.islice(stage.puller.batches(), 1)] == [1]
    assert [(batch.instance, batch.token) for batch in stage.puller.batches()] == [("other", 7)]
    stage.puller.settle()
    assert stage.delivery.known == {PAIR: 1, ("alpha", "other"): 7}


def test_joined_batches() -> None:
    stage = Stage(join_batches=True)
    stage.run(1, 2, 3)
    (batch,) = stage.puller.batches()
    assert (batch.token, len(batch.rows)) == (3, 3)
    stage.puller.settle()
    assert stage.known == 3


@pytest.mark.parametrize("alone", [False, True])
def test_rows_that_do_not_fit_are_left_out(alone: bool) -> None:
    stage = Stage()
    if alone:
        stage.delivery.take([RowsReceived(*PAIR, 1, [b"[1]", b'["x"]'])])
        stage.delivery.take([RowsReceived(*PAIR, 2, [b'["x"]'] * 2)])
        (batch,) = stage.puller.batches()
        assert [row.number for row in batch.rows] == [1]
        stage.puller.settle()
        assert stage.tokens() == []
        stage.puller.settle()
        assert stage.delivery.quarantined_rows == 3
    else:
        stage.delivery.take([RunReceived(*PAIR, [1, 2], [b"[1]", b'["x"]'])])
        assert stage.tokens() == [1]
        stage.puller.settle()
        assert stage.delivery.quarantined_rows == 1
    assert stage.known == 2


def worker() -> tuple[Any, Any, Any]:
    """Return a stage on a database, its connection, and a way to see what is committed."""
    connection = sqlite3.connect(":memory:", factory=Disk)
    connection.execute("CREATE TABLE seen (number INTEGER)")

    def committed() -> list[int]:
        assert not connection.in_transaction
        return [number for (number,) in connection.execute("SELECT number FROM seen")]

    return Stage(SqlitePositionStore(connection)), connection, committed


@pytest.mark.parametrize("whole", [False, True], ids=["run", "batch"])
def test_what_was_not_saved_is_undone_and_comes_again(whole: bool) -> None:
    stage, connection, committed = worker()
    if whole:
        for token in (1, 2):
            stage.delivery.take([RowsReceived(*PAIR, token, [b"[%d]" % token] * 2)])
    else:
        stage.run(1, 2)
    connection.refusals = 1
    for _ in range(20):
        for batch in stage.puller.batches():
            connection.executemany("INSERT INTO seen VALUES (?)", [(r.number,) for r in batch.rows])
        stage.puller.settle()
        stage.clock.advance(10.0)
    assert committed() == ([1, 1, 2, 2] if whole else [1, 2])
    assert stage.known == 2
    assert stage.failures == []


def test_what_is_in_hand_counts_when_the_caller_says_so() -> None:
    for counts in (True, False):
        stage, connection, committed = worker()
        stage.run(1, 2)
        next(stage.puller.batches())
        connection.execute("INSERT INTO seen VALUES (1)")
        if counts:
            stage.puller.finish()
        stage.delivery.stop()
        stage.puller.abandon()
        assert Deferred.fromCoroutine(stage.delivery.end()).called
        assert committed() == ([1] if counts else [])
        assert stage.store.load() == ({PAIR: 1} if counts else {})
        assert stage.failures == []
        connection.close()


def test_what_cannot_be_saved_at_the_end_is_said() -> None:
    stage, connection, committed = worker()
    stage.run(1)
    next(stage.puller.batches())
    connection.execute("INSERT INTO seen VALUES (1)")
    connection.refusals = 1
    with pytest.raises(Exception, match="disk is full"):
        stage.puller.finish()
    stage.delivery.stop()
    stage.puller.abandon()
    assert committed() == []
    assert stage.store.load() == {}
    connection.close()


def test_nothing_more_comes_of_a_delivery_that_stops() -> None:
    stage = Stage()
    stage.run(1, 2, 3)
    batches = stage.puller.batches()
    next(batches)
    stage.delivery.stop()
    assert list(batches) == []
    assert stage.known == 1
    stage.puller.settle()
    stage.puller.finish()
    stage.puller.abandon()
    stage.puller.abandon()


def test_positions_pass_by() -> None:
    stage = Stage()
    stage.delivery.take([PositionCommand(*PAIR, 5, 5)])
    assert stage.known == 5
    stage.run(6)
    assert stage.tokens() == [6]


def test_a_loop_that_is_begun_anew_gets_nothing_of_a_delivery_that_stops() -> None:
    stage = Stage()
    stage.run(1, 2, 3)
    next(stage.puller.batches())
    stage.delivery.stop()
    assert stage.tokens() == []
    assert stage.tokens() == []
    assert stage.known == 1


def test_what_comes_after_a_stop_is_not_mixed_with_what_was_in_hand_before() -> None:
    stage = Stage()
    stage.run(1, 2, 3)
    next(stage.puller.batches())
    stage.delivery.stop()
    assert stage.tokens() == []
    stage.puller.settle()
    assert Deferred.fromCoroutine(stage.delivery.end()).called
    stage.delivery.start()
    stage.delivery.begin(DIALECTS["tcprepl"])
    stage.run(9)
    assert stage.tokens() == [9]


def test_a_batch_that_could_not_be_saved_is_not_passed_over() -> None:
    """Not even by who asks for the next one without waiting."""
    stage, connection, _ = worker()
    stage.run(1, 2)
    batches = stage.puller.batches()
    assert next(batches).token == 1
    connection.refusals = 1
    assert list(batches) == []
    assert next(stage.puller.batches()).token == 1
    stage.puller.abandon()
    connection.close()


def test_what_was_abandoned_does_not_count_afterwards() -> None:
    stage, connection, committed = worker()
    stage.run(1)
    next(stage.puller.batches())
    stage.delivery.stop()
    stage.puller.abandon()
    stage.puller.finish()
    assert stage.store.load() == {}
    assert committed() == []
    connection.close()


def test_before_anything_came_there_is_nothing() -> None:
    stage = Stage()
    assert stage.tokens() == []
    assert not stage.puller.holds
    stage.puller.settle()


def test_rows_that_are_known_are_counted_as_such() -> None:
    stage = Stage()
    known = metrics.DROPPED.labels("row", "already_known")
    before = known._value.get()
    for tokens in ((1, 2), (1, 2, 3)):
        stage.run(*tokens)
        stage.tokens()
        stage.puller.settle()
    assert known._value.get() == before + 2


def test_what_was_judged_is_handed_over_whatever_its_token() -> None:
    stage = Stage()
    stage.run(5)
    assert stage.tokens() == [5]
    stage.puller.settle()
    stage.puller.take(Hand([RowsReceived(*PAIR, 4, [b"[4]"])]))
    assert stage.tokens() == []
    stage.puller.settle()
    stage.puller.take(Hand([Judged(*PAIR, 3, [b"[3]"], None)]))
    assert stage.tokens() == [3]
