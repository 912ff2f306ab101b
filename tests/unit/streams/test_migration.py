"""A log that went to PostgreSQL, and back: whatever it holds."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tcprepl.errors import LogCorrupt, LogUnavailable
from tcprepl.federation.sending.migration import OUTBOX
from tcprepl.storage.migrating_postgres import PostgresSource, PostgresTarget
from tcprepl.storage.migrating_sqlite import SqliteSource, SqliteTarget
from tcprepl.storage.migration import Kind, Migrated, migrate
from tcprepl.storage.postgresql import Link, bring_up_to_date
from tcprepl.streams.log import Appended
from tcprepl.streams.migration import LOG
from tcprepl.streams.producers import Produced
from tcprepl.streams.sqlite_schema import DATABASE_NAME
from tests import postgres_world
from tests.log_kit import (
    DURABLE,
    EPHEMERAL,
    STATES,
    PostgresStore,
    SqliteStore,
    add,
    claim,
    read_all,
    result,
    row,
    typing,
)

pytestmark = pytest.mark.postgresql


class Place:
    """A schema to go to."""

    def __init__(self) -> None:
        self.url = postgres_world.url_of(postgres_world.server(), "postgres")
        self.schema = postgres_world.fresh_schema()

    def there(self, directory: Path, writer: str = "master") -> Migrated:
        """Copy the log of a directory."""
        with (
            closing(SqliteSource(directory, LOG)) as source,
            closing(PostgresTarget(self.url, self.schema, LOG, writer)) as target,
        ):
            return migrate(LOG, source, target, lambda _: None)

    def back(self, directory: Path) -> Migrated:
        """Copy it to a directory."""
        with closing(PostgresSource(self.url, self.schema, LOG)) as source:
            source.open(str(directory))
            with closing(SqliteTarget(directory, LOG)) as target:
                return migrate(LOG, source, target, lambda _: None)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement."""
        return postgres_world.sql(self.url, self.schema, statement)

    def store(self, writer: str = "master") -> PostgresStore:
        """Open the log."""
        return PostgresStore(self.url, self.schema, writer=writer)


@pytest.fixture
def place() -> Iterator[Place]:
    """Return a place of its own."""
    return Place()


TABLES = [table.name for table in LOG.tables]


def held(directory: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return all that a file holds."""
    with closing(sqlite3.connect(directory / DATABASE_NAME)) as connection:
        return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in TABLES}


def filled(directory: Path) -> SqliteStore:
    """Return a log with some of everything."""
    store = SqliteStore(directory)
    for number in range(3):
        add(store, DURABLE, row(f"a{number}"), row("b"), transaction_id=f"t{number}")
        add(store, DURABLE, row("c"), row("d"), batch=True, instance="v")
        add(store, EPHEMERAL, row("e"))
        add(store, STATES, typing("!r", "@x:y"))
        store.now_ms += 1_000
        store.reopen()
    claim(store)
    add(store, DURABLE, row("p"), produced=Produced("p", 1, 1))
    store.log.trim(DURABLE, "w", 2)
    store.settle()
    return store


def test_a_log_is_the_same_there_and_the_same_again_when_it_is_back(
    place: Place, tmp_path: Path
) -> None:
    store = filled(tmp_path / "a")
    now_ms, rows = store.now_ms, read_all(store.log, DURABLE, 2)
    states = store.log.position(STATES, "w") + 1
    history = store.log.history
    store.close()
    moved = place.there(tmp_path / "a")
    assert (moved.resumed, moved.counts["pairs"]) == (0, 4)
    back = place.back(tmp_path / "b")
    assert back.counts == moved.counts
    assert held(tmp_path / "b") == {
        **held(tmp_path / "a"),
        "incarnations": [
            (*one[:3], None if one[0] == 4 else one[0] + 1)
            for one in held(tmp_path / "a")["incarnations"]
        ],
    }
    for opened in (place.store(), SqliteStore(tmp_path / "b")):
        opened.now_ms = now_ms
        assert read_all(opened.log, DURABLE, 2) == rows
        assert opened.log.floor(DURABLE, "w") == 2
        assert opened.log.position(STATES, "w") == states
        assert opened.log.history.incarnations[:-1] == history.incarnations
        again = opened.log.append(DURABLE, "w", [row("z")], transaction_id="t2")
        assert result(again) == Appended(DURABLE, "w", 5, 6)
        assert add(opened, DURABLE, row("p"), produced=Produced("p", 1, 1)).last == 7
        assert add(opened, DURABLE, row("q"), produced=Produced("p", 1, 2)).last == 8
        opened.close()


def test_what_is_damaged_or_missing_is_told_there_too(place: Place, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "a")
    for number in range(6):
        add(store, DURABLE, row(f"{number}"))
    store.close()
    with closing(sqlite3.connect(tmp_path / "a" / DATABASE_NAME)) as connection:
        connection.execute("UPDATE blocks SET crc = crc + 1 WHERE last = 2")
        connection.execute("UPDATE blocks SET body = 'no blob' WHERE last = 3")
        connection.execute("DELETE FROM blocks WHERE last = 5")
        connection.commit()
    place.there(tmp_path / "a")
    place.back(tmp_path / "b")
    for opened in (place.store(), SqliteStore(tmp_path / "b")):
        with pytest.raises(LogCorrupt):
            read_all(opened.log, DURABLE, 0)
        for after in (1, 2, 4):
            with pytest.raises(LogCorrupt):
                read_all(opened.log, DURABLE, after)
        found = [(gap.after, gap.upto) for _, gap in opened.log.gaps]
        assert found == [(1, 3), (4, 5)]
        assert read_all(opened.log, DURABLE, 5) == [(6, row("5"))]
        opened.close()


def test_long_bodies_are_copied_from_where_they_stand(place: Place, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "a")
    rows = [row(f"{number:0200}") for number in range(40)]
    add(store, DURABLE, *rows)
    add(store, DURABLE, row("short"))
    store.close()
    place.there(tmp_path / "a")
    place.back(tmp_path / "b")
    for opened in (place.store(), SqliteStore(tmp_path / "b")):
        assert read_all(opened.log, DURABLE, 0) == list(enumerate([*rows, row("short")], 1))
        opened.close()


def test_servers_that_ran_at_once_ended_when_they_did(place: Place, tmp_path: Path) -> None:
    """A reader of one that went on while others began keeps what it has."""
    one = place.store("one")
    add(one, DURABLE, row("a"), instance="v")
    two = place.store("two")
    add(one, DURABLE, row("b"), instance="v")
    two.close()
    two = place.store("two")
    add(one, DURABLE, row("c"), instance="v")
    two.close()
    one.close()
    place.back(tmp_path / "b")
    back = SqliteStore(tmp_path / "b")
    assert back.log.history.shared((DURABLE, "v"), 3, one.log.history.current) == 3
    assert read_all(back.log, DURABLE, 0, instance="v") == [
        (1, row("a")),
        (2, row("b")),
        (3, row("c")),
    ]
    back.reopen()
    assert back.log.history.shared((DURABLE, "v"), 3, two.log.history.current) == 3
    back.close()


def test_what_one_log_cannot_hold_is_refused(place: Place, tmp_path: Path) -> None:
    for name in ("one", "two"):
        store = place.store(name)
        claim(store, "p")
        store.close()
    with pytest.raises(LogUnavailable, match="producer p has published through two servers"):
        place.back(tmp_path / "b")
    place.sql("DELETE FROM producers")
    place.sql("SELECT tcprepl_publish('push_rules', '[[1]]', 'two')")
    with pytest.raises(LogUnavailable, match=r"1 calls .* start the server of two"):
        place.back(tmp_path / "b")
    assert list((tmp_path).iterdir()) == []
    place.sql("DELETE FROM staged")
    place.back(tmp_path / "b")


#: What is in PostgreSQL for those who run, and not for those who read or write.
NOT_COPIED = {"meta", "migration", "writers", "staged", "refused"}
#: What of SQLite is copied as a part of the rows that refer to it.
WITHIN_OTHERS = {"bodies"}


@pytest.mark.parametrize("kind", [LOG, OUTBOX], ids=lambda kind: kind.what)
def test_no_table_and_no_column_is_forgotten(kind: Kind, place: Place) -> None:
    """One that is added has to be copied, too."""
    copied = {table.name: set(table.columns) for table in kind.tables}
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(kind.sqlite.create)
        names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        assert {
            name: {row[1] for row in connection.execute(f"PRAGMA table_info({name})")}
            for (name,) in names
            if name not in WITHIN_OTHERS
        } == copied
    link = Link(place.url, place.schema)
    bring_up_to_date(link, place.schema, kind.postgres)
    link.close()
    found: dict[str, set[str]] = {}
    for name, column in place.sql(
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = current_schema()"
    ):
        if name not in NOT_COPIED:
            found.setdefault(name, set()).add(column)
    with_writer = {table.name for table in kind.tables if table.writer}
    assert found == {
        name: columns | ({"writer"} if name in with_writer else set())
        for name, columns in copied.items()
    }
