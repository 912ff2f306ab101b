"""A name that one process at a time writes under; what is written is in the tests of its users."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tcprepl.errors import LogFenced, LogHeld, LogUnavailable
from tcprepl.storage.fenced import (
    CREATE_FENCE,
    CREATE_MIGRATION,
    CREATE_WRITERS,
    FencedDatabase,
)
from tcprepl.storage.postgresql import Connection, PostgresSchema
from tests import postgres_world

pytestmark = pytest.mark.postgresql

_SCHEMA = PostgresSchema(
    CREATE_WRITERS
    + CREATE_MIGRATION
    + CREATE_FENCE
    + "CREATE TABLE words (word text, number bigint);"
)


class Place:
    """A schema, and those who write there."""

    def __init__(self) -> None:
        self.url = postgres_world.url_of(postgres_world.server(), "postgres")
        self.schema = postgres_world.fresh_schema()
        self.made: list[FencedDatabase] = []

    def database(self, writer: str = "master", lease_s: float = 10.0) -> FencedDatabase:
        """Return one that has taken nothing."""
        made = FencedDatabase(self.url, writer, self.schema, _SCHEMA, lease_s)
        self.made.append(made)
        made.holder = f"host:{len(self.made)}"
        return made

    def taken(self, writer: str = "master", lease_s: float = 10.0) -> FencedDatabase:
        """Return one that has its name."""
        made = self.database(writer, lease_s)
        made.take()
        return made


@pytest.fixture
def place() -> Iterator[Place]:
    """Return a place of its own."""
    it = Place()
    yield it
    for database in it.made:
        database.release()


def write(database: FencedDatabase, word: str) -> str:
    """Write a word."""

    def within(connection: Connection, number: int) -> str:
        connection.execute("BEGIN")
        database.fence(connection, number)
        connection.execute("INSERT INTO words VALUES (%s, %s)", (word, number))
        connection.execute("COMMIT")
        return word

    return database.commit(within, lambda _: word)


def words(place: Place) -> list[tuple[str, int]]:
    """Return what was written."""
    found = postgres_world.sql(place.url, place.schema, "SELECT word, number FROM words")
    return [(word, number) for word, number in found]


def test_a_name_is_taken_by_one_who_keeps_it(place: Place) -> None:
    first = place.taken(lease_s=0.6)
    over = threading.Event()

    def keep() -> None:
        while not over.wait(0.1):
            write(first, "there")

    keeper = threading.Thread(target=keep)
    keeper.start()
    with pytest.raises(LogHeld, match=f"master is written by {first.holder}: stop that one"):
        place.database(lease_s=0.6).take()
    over.set()
    keeper.join()
    assert write(first, "last") == "last"


def test_a_name_of_somebody_who_is_gone_is_waited_for(place: Place) -> None:
    first = place.taken(lease_s=0.3)
    assert write(first, "a") == "a"
    second = place.taken()
    assert second.held.number == first.held.number
    assert second.held.epoch == first.held.epoch + 1
    for _ in range(2):
        with pytest.raises(LogFenced, match=f"taken over by {second.holder}, because"):
            write(first, "never")
    write(second, "b")
    assert words(place) == [("a", 1), ("b", 2)]


def test_a_name_that_was_given_back_is_taken_at_once(place: Place) -> None:
    place.taken().release()
    place.database().take()
    place.database("another").take()


def test_a_standby_waits_until_it_is_stopped(place: Place) -> None:
    first = place.taken(lease_s=30)
    second = place.database(lease_s=0.1)
    seen: list[str] = []

    def stop() -> None:
        seen.append(second.waits_for)
        second.stop()

    timer = threading.Timer(0.3, stop)
    timer.start()
    with pytest.raises(LogUnavailable, match=f"stopped while {first.holder} held"):
        second.take(standby=True)
    timer.join()
    assert (seen, second.waits_for) == ([first.holder], "")
    third = place.database(lease_s=0.1)
    timer = threading.Timer(0.2, postgres_world.lapse, (place.url, place.schema))
    timer.start()
    third.take(standby=True)
    assert third.held.epoch == 2


MARK = (
    "INSERT INTO migration (fills, other, holder, held_until, source)"
    " VALUES (%s, '/data', 'h:1', clock_timestamp() + make_interval(secs => %s), '')"
)


def test_what_is_copied_into_is_not_taken(place: Place) -> None:
    place.taken().release()
    where = place.url, place.schema
    postgres_world.sql(*where, MARK, (True, -1.0))
    with pytest.raises(LogUnavailable, match="a part of what is migrated from /data; finish"):
        place.database().take()


def test_what_is_copied_from_is_not_taken_until_that_is_over(place: Place) -> None:
    place.taken().release()
    where = place.url, place.schema
    postgres_world.sql(*where, MARK, (False, 60.0))
    with pytest.raises(LogUnavailable, match="h:1 migrates it to /data; wait"):
        place.database().take()
    postgres_world.sql(*where, "UPDATE migration SET held_until = clock_timestamp()")
    place.taken()
    assert postgres_world.sql(*where, "SELECT * FROM migration") == []
