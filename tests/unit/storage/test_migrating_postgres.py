"""A schema that is copied from, or into."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tcprepl.errors import LogHeld, LogUnavailable
from tcprepl.storage import migrating_postgres as module
from tcprepl.storage.fenced import (
    CREATE_FENCE,
    CREATE_MIGRATION,
    CREATE_WRITERS,
    FencedDatabase,
)
from tcprepl.storage.migrating_postgres import PostgresSource, PostgresTarget
from tcprepl.storage.migration import Kind, Progress, Table
from tcprepl.storage.postgresql import PostgresSchema
from tcprepl.storage.sqlite import Schema
from tests import postgres_world

pytestmark = pytest.mark.postgresql

WORDS = Table("words", ("word", "body"), size="length(body)", writer="number")
CREATE = 'CREATE TABLE words (word text COLLATE "C" PRIMARY KEY, body bytea, writer bigint);'
SCHEMA = PostgresSchema(CREATE_WRITERS + CREATE_MIGRATION + CREATE_FENCE + CREATE)
KIND = Kind(
    "list",
    "words.db",
    "lock",
    Schema(""),
    SCHEMA,
    (WORDS,),
    (),
    (("SELECT word FROM words WHERE word = 'bad'", "{0} is in the way"),),
)


class Place:
    """A schema."""

    def __init__(self) -> None:
        self.url = postgres_world.url_of(postgres_world.server(), "postgres")
        self.schema = postgres_world.fresh_schema()
        self.made: list[PostgresTarget | PostgresSource] = []

    def target(self, writer: str = "master") -> PostgresTarget:
        """Return it as one that is copied into."""
        self.made.append(made := PostgresTarget(self.url, self.schema, KIND, writer))
        return made

    def source(self, lease_s: float = 10.0) -> PostgresSource:
        """Return it as one that is copied from."""
        self.made.append(made := PostgresSource(self.url, self.schema, KIND, lease_s))
        return made

    def user(self, writer: str = "master", lease_s: float = 10.0) -> FencedDatabase:
        """Return who uses it."""
        return FencedDatabase(self.url, writer, self.schema, SCHEMA, lease_s)

    def sql(self, statement: str, values: Any = ()) -> list[tuple[Any, ...]]:
        """Run a statement."""
        return postgres_world.sql(self.url, self.schema, statement, values)

    def complete(self) -> None:
        """Let it hold something."""
        with closing(self.target()) as target:
            target.begin("id", "from")
            target.write(WORDS, [("a", b"1"), ("b", b"2")], Progress(0, ("b",), 2))
            target.finish()


@pytest.fixture
def place() -> Iterator[Place]:
    """Return a place of its own."""
    it = Place()
    yield it
    for side in it.made:
        side.close()


def test_a_half_is_not_served_and_is_gone_on_from(place: Place) -> None:
    with closing(place.target()) as target:
        assert target.begin("id", "from") == Progress()
        target.write(WORDS, [("a", b"1")], Progress(0, ("a",), 1))
    with pytest.raises(LogUnavailable, match="a part of what is migrated from from"):
        place.user().take()
    with pytest.raises(LogUnavailable, match="it holds only a part of from: finish"):
        place.source().open("elsewhere")
    with closing(place.target()) as again:
        assert again.begin("id", "from") == Progress(0, ("a",), 1)
        again.write(WORDS, [("b", b"")], Progress(0, ("b",), 2))
        assert again.count(WORDS) == 2
        assert again.read(WORDS, ("a",)) == [("b", b"")]
        again.finish()
        number = again.first_id >> 32
    assert place.sql("SELECT * FROM words") == [("a", b"1", number), ("b", b"", number)]
    user = place.user()
    user.take()
    assert user.held == (number, 2)
    user.release()


def test_what_is_not_empty_or_another_is_refused(place: Place) -> None:
    with closing(place.target()) as target:
        target.begin("id", "from")
        with pytest.raises(LogUnavailable, match=r"part of from, .*DROP SCHEMA"):
            place.target().begin("other", "elsewhere")
        with pytest.raises(LogUnavailable, match="begun with another name than b: give that one"):
            place.target("b").begin("id", "from")
        with closing(place.target()) as twin:
            twin.begin("id", "from")
            twin.write(WORDS, [("a", b"1")], Progress(0, ("a",), 1))
        with pytest.raises(LogUnavailable, match="another process is migrating into it, too"):
            target.write(WORDS, [("a", b"1")], Progress(0, ("a",), 1))
        target.finish()
    # perhaps a migration that ended: nobody is told to drop what may be the only copy by now
    with pytest.raises(
        LogUnavailable, match=r"not empty \(table writers\): .*name another database"
    ):
        place.target().begin("id", "from")
    user = place.user()
    user.take()
    with pytest.raises(LogHeld):
        place.target().begin("id", "from")
    user.release()


def test_nobody_takes_a_name_while_it_is_copied_from(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.complete()
    source = place.source()
    source.open("elsewhere")
    with pytest.raises(LogUnavailable, match="migrates it to elsewhere; wait for that"):
        place.user().take()
    monkeypatch.setattr(module.time, "sleep", lambda _: source._keep())
    with pytest.raises(LogUnavailable, match="migrates it; wait for that, or stop it"):
        place.source().open("a third place")
    monkeypatch.setattr(module.PostgresSource, "_wait_until_nobody_has_it", lambda _: None)
    with pytest.raises(LogUnavailable, match="migrates it; wait for that, or stop it"):
        place.source().open("a third place")  # one that began at the same moment
    assert source.read(WORDS, None) == [("a", b"1"), ("b", b"2")]
    source.release()
    source.close()
    user = place.user("other")
    user.take()
    user.release()
    place.source().close()


def test_who_serves_it_is_in_the_way_and_who_is_gone_is_waited_for(place: Place) -> None:
    place.complete()
    user = place.user(lease_s=0.6)
    user.take()
    over = threading.Event()

    def keep() -> None:
        while not over.wait(0.1):
            postgres_world.sql(
                place.url,
                place.schema,
                "UPDATE writers SET held_until = clock_timestamp() + interval '0.6 s'",
            )

    keeper = threading.Thread(target=keep)
    keeper.start()
    with pytest.raises(LogHeld, match="instance master is written by") as held:
        place.source().open("elsewhere")
    assert str(held.value).endswith(": stop it, then migrate")  # there is no --standby
    over.set()
    keeper.join()
    source = place.source()
    source.open("elsewhere")
    assert place.sql("SELECT epoch FROM writers") == [(user.held.epoch + 1,)]
    source.close()
    user.release()


def test_who_takes_it_at_the_same_moment_is_in_the_way(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.complete()
    user = place.user()
    user.take()
    monkeypatch.setattr(module.PostgresSource, "_wait_until_nobody_has_it", lambda _: None)
    with pytest.raises(LogHeld):
        place.source().open("elsewhere")
    user.release()


def test_who_slept_while_it_was_served_notices(place: Place) -> None:
    place.complete()
    source = place.source(lease_s=0.0)
    source.open("elsewhere")
    user = place.user()
    user.take()
    with pytest.raises(LogUnavailable, match="it was served meanwhile"):
        source.read(WORDS, None)
    with pytest.raises(LogUnavailable, match="it was served meanwhile"):
        source.release()
    source.close()
    user.release()


def test_what_went_wrong_is_said_although_the_database_is_away(place: Place) -> None:
    """Nothing is said of the mark that stays: its lease ends."""
    place.complete()
    source = place.source()
    source.open("elsewhere")
    place.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        " AND datname = current_database()"
    )
    source.close()
    assert place.sql("SELECT fills FROM migration") == [(False,)]


def test_what_is_no_source_is_refused(place: Place) -> None:
    with pytest.raises(LogUnavailable, match=f"there is no list: no schema {place.schema}"):
        place.source().open("elsewhere")
    place.complete()
    place.sql("INSERT INTO words VALUES ('bad', '')")
    with pytest.raises(LogUnavailable, match="bad is in the way"):
        place.source().open("elsewhere")
    assert place.sql("SELECT * FROM migration") == []


def test_reads_are_bounded_by_bytes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 10)
    place.complete()
    place.sql("UPDATE words SET body = '1234567'")
    place.sql("INSERT INTO words VALUES ('c', '1234567890'), ('d', '12345678901')")
    source = place.source()
    source.open("elsewhere")
    for after, found in ((None, ["a", "b"]), (("b",), ["c"]), (("c",), ["d"]), (("d",), [])):
        assert [row[0] for row in source.read(WORDS, after)] == found
    source.close()
