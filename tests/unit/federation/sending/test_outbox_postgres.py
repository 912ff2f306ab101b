"""The outbox in PostgreSQL: what the one in a file does, and who may use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from tcprepl.errors import ConfigError, LogFenced, LogUnavailable
from tcprepl.federation.sending.backoff import Backoff
from tcprepl.federation.sending.commit_queue import OutboxUnavailable, run_inline
from tcprepl.federation.sending.outbox_postgres import (
    PostgresCursor,
    PostgresOutbox,
    outbox_database,
    schema_of,
)
from tcprepl.federation.sending.stored import QUARANTINED, Refusal, StoredTransaction
from tests import postgres_world
from tests.unit.federation.sending import test_outbox
from tests.unit.federation.sending.test_outbox import REFUSAL, now, numbers, put, set_aside

pytestmark = pytest.mark.postgresql


class Place:
    """A database, and those who have an outbox there."""

    def __init__(self) -> None:
        self.url = postgres_world.fresh_url()
        self.made: list[PostgresOutbox] = []
        self.failed: list[Any] = []
        now(self.outbox().close())

    def outbox(self, *, lapsed: bool = False) -> PostgresOutbox:
        """Open the outbox of the sender; who has it may have been gone for long."""
        if lapsed:
            self.sql("UPDATE writers SET held_until = clock_timestamp()")
        database = outbox_database(self.url, "fed1")
        database.take()
        self.made.append(made := PostgresOutbox(database, self.url, run_inline))
        made.failed.addErrback(self.failed.append)
        return made

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement."""
        return postgres_world.sql(self.url, schema_of("fed1"), statement)


@pytest.fixture(scope="module")
def shared() -> Iterator[Place]:
    """Return a place for all tests."""
    it = Place()
    yield it
    for outbox in it.made:
        now(outbox.close())


@pytest.fixture
def place(shared: Place) -> Place:
    """Return it with nothing in it."""
    shared.outbox(lapsed=True)
    names = "edus, transactions, put_off, destinations, positions, lineages, journal"
    shared.sql(f"TRUNCATE {names}")
    return shared


@pytest.fixture
def outbox(place: Place) -> PostgresOutbox:
    """Return an outbox."""
    return place.outbox(lapsed=True)


#: What the one in a file is tested with, where a file is not the point.
ALIKE = [
    test_outbox.test_what_is_added_is_there_in_order_with_its_position,
    test_outbox.test_the_newest_of_a_key_takes_the_place_of_the_older,
    test_outbox.test_a_transaction_is_kept_just_as_it_was,
    test_outbox.test_an_edu_that_was_replaced_while_it_was_taken_goes_nevertheless,
    test_outbox.test_what_was_replaced_goes_also_where_the_rest_is_in_the_tables,
    test_outbox.test_a_dissolved_transaction_waits_again_without_what_was_replaced,
    test_outbox.test_what_is_in_quarantine_can_be_dropped_or_expires,
    test_outbox.test_a_newer_edu_takes_the_place_of_the_one_of_its_key_that_was_refused,
    test_outbox.test_no_transaction_begins_before_the_end_of_the_one_before_is_on_disk,
    test_outbox.test_of_what_fails_nothing_is_left_and_its_neighbours_are_done,
    test_outbox.test_what_has_expired_is_removed_unless_it_is_in_flight,
    test_outbox.test_purge_and_summaries,
    test_outbox.test_a_destination_that_is_plain_again_is_forgotten,
]


@pytest.mark.parametrize("check", ALIKE, ids=lambda check: check.__name__)
def test_it_does_what_the_one_in_a_file_does(check: Any, outbox: PostgresOutbox) -> None:
    check(outbox)


def test_it_is_whole_for_the_next(place: Place) -> None:
    outbox = place.outbox(lapsed=True)
    entry = put(outbox, "y", 1, "key")
    flying = put(outbox, "v", 2)
    now(outbox.begin([("v", StoredTransaction("t1", 77, [flying]))]))
    now(outbox.set_paused("z", True))
    now(outbox.set_backoff("z", Backoff(2, 5, 6, 7, "why")))
    set_aside(outbox, [put(outbox, "y", 3)], QUARANTINED)
    again = place.outbox(lapsed=True)
    (found,) = now(again.load("y", 0, 9))
    assert (found[0], found[2].key) == (entry[0], ("key",))
    stored = again.destinations()
    assert stored["z"].paused
    assert stored["z"].backoff == Backoff(2, 5, 6, 7, "why")
    assert (stored["v"].in_flight, stored["y"].quarantined) == (True, 1)
    transaction = now(again.load_transaction("v"))
    assert transaction is not None
    assert (transaction.transaction_id, numbers(transaction.entries)) == ("t1", [2])
    assert again.newest_ms() >= 1_001
    assert again.lineages() == {}
    assert again.positions() == {("federation", "master"): 3}
    assert again.take_ids(1)[0] == 4
    now(again.put_off("v", "t1"))
    assert again.destinations()["v"].put_off == 1
    assert now(again.take_back("v")) == (True, 0)
    now(again.begin([("u", StoredTransaction("t2", 78, [put(again, "u", 5)]))]))
    now(again.finish([("u", "t2")]))
    assert now(again.quarantined("y"))[0]["reason"] == REFUSAL.reason


def test_who_was_overtaken_begins_nothing_and_says_so_once(place: Place) -> None:
    first = place.outbox(lapsed=True)
    entry = put(first, "y", 1)
    place.failed.clear()
    second = place.outbox(lapsed=True)
    for _ in range(2):
        with pytest.raises(OutboxUnavailable, match="had not been heard of for 10 s"):
            now(first.begin([("y", StoredTransaction("t1", 77, [entry]))]))
    assert [failure.type for failure in place.failed] == [LogFenced]
    assert now(second.load_transaction("y")) is None
    assert numbers(now(second.load("y", 0, 9))) == [1]


def test_what_was_committed_and_not_answered_is_known(place: Place) -> None:
    """The connection breaks as it commits; what memory holds is what is there."""
    outbox = place.outbox(lapsed=True)
    entry = put(outbox, "y", 1)
    whole = outbox._database.fence

    def breaking(connection: Any, number: int) -> None:
        whole(connection, number)
        execute = connection.execute

        def commit(statement: Any, *args: Any) -> Any:
            answer = execute(statement, *args)
            if statement == "COMMIT":
                raise postgres_world.psycopg.OperationalError("the network is gone")
            return answer

        connection.execute = commit

    with mock.patch.object(outbox._database, "fence", breaking):
        now(outbox.begin([("y", StoredTransaction("t1", 77, [entry]))]))
    now(outbox.finish([("y", "t1")]))
    assert now(outbox.summary()) == {}


def test_while_the_database_is_away_all_is_refused_at_once(place: Place) -> None:
    outbox = place.outbox(lapsed=True)
    waiting: list[Any] = []
    outbox._database.away = "on purpose"
    refusing = mock.patch.object(outbox, "_in_one", side_effect=LogUnavailable("gone"))
    outbox._pumping = True
    for _ in range(3):
        outbox.flush().addErrback(waiting.append)
    outbox._pumping = False
    with refusing as calls:
        outbox._pump()
    assert calls.call_count == 1
    assert len(waiting) == 3
    outbox._database.away = None
    assert now(outbox.flush()) is None


def test_what_a_remote_says_fits_a_text(place: Place) -> None:
    outbox = place.outbox(lapsed=True)
    now(outbox.begin([("y", StoredTransaction("t1", 77, [put(outbox, "y", 1)]))]))
    now(outbox.set_aside("y", "t1", QUARANTINED, Refusal(5, "no\0thing")))
    assert now(outbox.quarantined("y"))[0]["reason"] == "no\ufffdthing"


def test_a_database_that_refuses_at_the_start_is_let_go(place: Place) -> None:
    database = outbox_database(place.url, "fed1")
    place.sql("UPDATE writers SET held_until = clock_timestamp()")
    database.take()
    place.outbox(lapsed=True)
    with pytest.raises(LogFenced):
        PostgresOutbox(database, place.url, run_inline)


def test_a_name_that_is_too_long_is_refused() -> None:
    assert schema_of("x" * 48) == "tcprepl_sender_" + "x" * 48
    with pytest.raises(ConfigError, match="at most 48 bytes"):
        schema_of("x" * 49)


def test_a_cursor_counts_as_that_of_a_file_does() -> None:
    """Of several values all that were changed; of none, none."""
    inner = mock.Mock(rowcount=7)
    cursor = PostgresCursor(mock.Mock(cursor=lambda: inner))
    assert cursor.rowcount == 0
    assert cursor.execute("SELECT ?", ("a\0b",)) is cursor
    inner.execute.assert_called_once_with(b"SELECT %s", ["a\ufffdb"])
    assert cursor.rowcount == 7
    assert cursor.executemany("DELETE ?", iter([])) is cursor
    assert cursor.rowcount == 0
    inner.executemany.assert_not_called()
    cursor.executemany("DELETE ?", iter([(1,), (2,)]))
    inner.executemany.assert_called_once_with(b"DELETE %s", [[1], [2]])
    assert cursor.rowcount == 7


def test_an_end_does_not_wait_for_a_database_that_is_away(place: Place) -> None:
    outbox = place.outbox(lapsed=True)
    with mock.patch.object(outbox._database, "stop", wraps=outbox._database.stop) as stop:
        assert now(outbox.close()) is None
    stop.assert_called_once_with()
