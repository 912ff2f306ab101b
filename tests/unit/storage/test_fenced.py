"""A name that one process at a time writes under; what is written is in the tests of its users."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import psycopg
import pytest

from tcprepl.errors import LogFenced, LogHeld, LogUnavailable
from tcprepl.storage.fenced import (
    CREATE_FENCE,
    CREATE_MIGRATION,
    CREATE_WRITERS,
    GATE,
    FencedDatabase,
)
from tcprepl.storage.postgresql import Connection, PostgresSchema
from tests import postgres_world
from tests.harness import wait_until

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


def test_a_commit_that_was_not_done_never_will_be(place: Place) -> None:
    """What was sent of it waits at the gate, and nobody knows that its client has left."""
    first = place.taken()
    assert write(first, "a") == "a"

    def within(connection: Connection, number: int) -> str:
        pid = connection.info.backend_pid
        with connection.pipeline() as pipeline:
            connection.execute("BEGIN")
            first.fence(connection, number)
            connection.execute("INSERT INTO words VALUES ('late', %s)", (number,))
            connection.execute("COMMIT")
            connection.pgconn.pipeline_sync()
            while connection.pgconn.flush():
                pass
            wait_until(lambda: waiting(place) == [pid], "it waits at the gate")
            with socket.socket(fileno=os.dup(connection.fileno())) as gone:
                gone.shutdown(socket.SHUT_RDWR)
            pipeline.sync()
        return "late"

    with psycopg.connect(place.url) as gate:
        gate.execute(f"SET LOCAL search_path TO {place.schema}")
        gate.execute(f"SELECT pg_advisory_xact_lock({GATE})")
        with pytest.raises(LogUnavailable, match="not written"):
            first.commit(within, lambda _: "late")
        (pid,) = waiting(place)
    wait_until(lambda: not alive(place, pid), "the end of what was sent")
    assert write(first, "b") == "b"
    assert words(place) == [("a", 1), ("b", 2)]


def waiting(place: Place) -> list[int]:
    """Return the processes of the server that wait for a lock of any kind."""
    with psycopg.connect(place.url) as connection:
        found = connection.execute("SELECT pid FROM pg_locks WHERE NOT granted")
        return [pid for (pid,) in found]


def alive(place: Place, pid: int) -> bool:
    """Return whether a process of the server is there."""
    with psycopg.connect(place.url) as connection:
        found = connection.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,))
        return found.fetchone() is not None
