"""The PostgreSQL database of a log: who may write, and what became of a commit in doubt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import psycopg
import pytest
from psycopg import errors

from tcprepl import limits
from tcprepl.errors import LogFenced, LogUnavailable
from tcprepl.storage import fenced
from tcprepl.streams import postgres_database as module
from tcprepl.streams.blocks import render
from tcprepl.streams.engine import Commit, KnownTransactions, StoredPair
from tcprepl.streams.gaps import Cause
from tcprepl.streams.log import Appended
from tcprepl.streams.postgres_database import PostgresDatabase
from tcprepl.streams.postgres_schema import CHANNEL
from tcprepl.streams.producers import Answer, ProducerState
from tests import postgres_world
from tests.postgres_world import sql

pytestmark = pytest.mark.postgresql


class Place:
    """A schema, and those who write there."""

    def __init__(self) -> None:
        self.url = postgres_world.url_of(postgres_world.server(), "postgres")
        self.schema = postgres_world.fresh_schema()
        self.made: list[PostgresDatabase] = []

    def database(self, writer: str = "master", **kwargs: Any) -> PostgresDatabase:
        """Return one that has taken nothing."""
        made = PostgresDatabase(self.url, writer, schema=self.schema, **kwargs)
        self.made.append(made)
        made.holder = f"host:{len(self.made)}"
        return made

    def begun(self, writer: str = "master", **kwargs: Any) -> PostgresDatabase:
        """Return one that has begun an incarnation."""
        made = self.database(writer, **kwargs)
        made.take()
        positions = {(p.stream, p.instance): p.position for p in made.pairs()}
        begun = made.history().begin(positions, 1, over=made.over)
        made.write(Commit(begun=begun, oldest_incarnation=1))
        return made

    def sql(self, statement: str, values: Any = ()) -> list[tuple[Any, ...]]:
        """Run a statement."""
        return sql(self.url, self.schema, statement, values)

    def lapse(self) -> None:
        """Let every lease be over."""
        postgres_world.lapse(self.url, self.schema)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Return a place of its own."""
    monkeypatch.setattr(fenced, "RETRY_S", 0.01)
    it = Place()
    yield it
    for database in it.made:
        database.close()


def commit(database: PostgresDatabase, first: int, last: int, **more: Any) -> Commit:
    """Return a commit of one block of the stream s."""
    tokens = range(first, last + 1)
    block = render("s", "i", tokens, [b"[1]"] * len(tokens), 1_000)
    pair = StoredPair(database.first_id, "s", "i", last, 0, len(tokens), len(block.lines))
    return Commit(pairs=[pair], blocks=[(database.first_id, block)], **more)


def position(place: Place) -> int:
    """Return where the stream s is."""
    found = place.sql("SELECT position FROM pairs WHERE stream = 's'")
    return found[0][0] if found else 0


def test_who_was_overtaken_while_it_began_begins_nothing(place: Place) -> None:
    first = place.database()
    first.take()
    place.lapse()
    place.database().take()
    with pytest.raises(LogUnavailable, match="epoch is over"):
        first.pairs()


def test_incarnations_of_those_who_are_there_go_on(place: Place) -> None:
    one, two = place.begun("one"), place.begun("two")
    three = place.database("three")
    three.take()
    three.pairs()
    history = three.history()
    assert three.over == []
    three.close()
    two.close()
    one.write(Commit())
    place.begun("four")
    found = place.sql("SELECT number, ended FROM incarnations ORDER BY number")
    assert found == [(1, None), (2, 3), (3, None)]
    assert [known.number for known in history.incarnations] == [1, 2]


def test_who_was_found_gone_writes_nothing_more(place: Place) -> None:
    """Readers count on it: with the incarnation that comes next, its own is over."""
    gone, alive = place.begun("gone"), place.begun("alive")
    gone.write(commit(gone, 1, 1))
    place.sql(
        "UPDATE writers SET held_until = clock_timestamp() WHERE number = %s", (gone.held.number,)
    )
    next_one = place.begun("next")
    with pytest.raises(LogFenced):
        gone.write(commit(gone, 2, 2))
    assert position(place) == 1
    for other in (alive, next_one):
        other.write(Commit())


def test_the_newest_stamp_is_that_of_whatever_came_last(place: Place) -> None:
    database = place.begun()
    (began_ms,) = (known.began_ms for known in database.history().incarnations)
    assert database.newest_ms() == began_ms
    place.sql(f"UPDATE incarnations SET began_ms = {began_ms + 5}")
    assert database.newest_ms() == began_ms + 5


# --- what is written --------------------------------------------------------------------------


def test_others_are_told_of_what_moves_and_of_nothing_else(place: Place) -> None:
    """A renewal four times in each lease would wake every server otherwise."""
    database = place.begun("one")
    (began,) = place.sql("SELECT number FROM writers WHERE name = 'one'")
    with psycopg.connect(place.url, autocommit=True) as connection:
        connection.execute(f"LISTEN {CHANNEL}".encode())

        def heard() -> list[str]:
            place.sql(f"NOTIFY {CHANNEL}, 'end'")
            notes = connection.notifies(timeout=30)
            return list(iter(lambda: next(notes).payload, "end"))

        mine = str(began[0])
        database.renew()
        database.write(Commit(expire_before_ms=1))
        assert heard() == []
        database.write(commit(database, 1, 1))
        assert heard() == [mine]
        database.write(Commit(pairs=[StoredPair(database.first_id, "s", "i", 2, 0, 0, 0)]))
        assert heard() == [mine]
        two = place.begun("two")
        assert heard() == [str(two.held.number)]


def test_the_server_finds_nothing_odd_in_a_commit(place: Place) -> None:
    """Each is one transaction, that of the beginning, too, or its log is filled with warnings."""
    said: list[str | None] = []
    database = place.database()
    database.take()
    with database._writing.using() as connection:
        connection.add_notice_handler(lambda notice: said.append(notice.message_primary))
    database.pairs()
    database.write(Commit(begun=database.history().begin({}, 1, over=database.over)))
    database.write(commit(database, 1, 1))
    database.write(commit(database, 2, 2, trims={database.first_id: 1}))
    database.renew()
    assert said == []


def test_what_is_trimmed_is_counted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIMMED_BLOCKS", 2)
    database = place.begun()
    for first in (1, 3, 5, 7):
        database.write(commit(database, first, first + 1))
    pair = database.first_id
    freed = database.write(Commit(trims={pair: 6}))
    assert freed.trimmed == [(pair, 4, 64)]
    assert freed.unfinished == {pair: 6}
    freed = database.write(Commit(trims={pair: 6}))
    assert (freed.trimmed, freed.unfinished) == ([(pair, 2, 32)], {})
    assert place.sql("SELECT rows, bytes, floor FROM pairs") == [(2, 32, 6)]
    monkeypatch.setattr(module, "TRIMMED_BYTES", 0)
    assert database.write(Commit(trims={pair: 8})).unfinished == {pair: 8}


def test_a_page_ends_before_damage(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAGE_BLOCKS", 2)
    database = place.begun()
    for token in range(1, 6):
        database.write(commit(database, token, token))
    place.sql("UPDATE blocks SET crc = crc + 1 WHERE last = 4")
    pair = StoredPair(database.first_id, "s", "i", 5, 0)
    page = database.page(pair, 0, 5)
    assert page.block is not None
    assert (list(page.block.tokens), page.upto) == ([1, 2, 3], 3)
    assert page.damage is not None
    assert (page.damage.after, page.damage.upto, page.damage.cause) == (3, 4, Cause.DAMAGE)
    page = database.page(pair, 3, 5)
    assert (page.block, page.upto) == (None, 3)
    place.sql("UPDATE blocks SET crc = crc + 1 WHERE last = 1")
    damage = database.page(pair, 0, 5).damage
    assert damage is not None
    assert (damage.after, damage.upto) == (0, 1)
    page = database.page(pair, 4, 5)
    assert (page.upto, page.damage) == (5, None)


def test_a_block_that_was_deleted_is_missed(place: Place) -> None:
    """What comes behind it names it: the next block, or the pair."""
    database = place.begun()
    for token in range(1, 6):
        database.write(commit(database, token, token))
    pair = StoredPair(database.first_id, "s", "i", 5, 0)

    def damage(after: int, upto: int) -> tuple[int, int]:
        found = database.page(pair, after, upto).damage
        assert found is not None
        return found.after, found.upto

    place.sql("DELETE FROM blocks WHERE last = 4")
    assert damage(0, 5) == damage(3, 5) == damage(0, 4) == (3, 4)
    place.sql("UPDATE blocks SET crc = crc + 1 WHERE last = 5")
    assert database.page(pair, 0, 4).damage is None  # its neighbour knows of it no more
    place.sql("DELETE FROM blocks WHERE last = 5")
    assert damage(0, 5) == (3, 5)
    assert damage(4, 5) == (3, 5)
    pair.floor = 5
    assert database.page(pair, 5, 5).damage is None


def test_a_database_of_before_misses_none(place: Place) -> None:
    """Its blocks say nothing of the one before them, and its pairs nothing of the newest."""
    database = place.begun()
    database.write(commit(database, 1, 1))
    database.close()
    place.sql(
        "UPDATE meta SET version = 1; ALTER TABLE pairs DROP newest; DROP TABLE migration;"
        " DELETE FROM blocks"
    )
    again = place.begun()
    pair = StoredPair(again.first_id, "s", "i", 1, 0)
    assert again.page(pair, 0, 1).damage is None
    again.write(commit(again, 2, 2))
    assert again.page(StoredPair(again.first_id, "s", "i", 2, 0), 0, 2).damage is None


def test_pages_are_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    database = place.begun()
    for first in (1, 3, 5):
        database.write(commit(database, first, first + 1))
    pair = StoredPair(database.first_id, "s", "i", 6, 0)
    with monkeypatch.context() as patched:
        patched.setattr(module.limits, "PAGE_ROWS", 3)
        page = database.page(pair, 0, 6)
    assert (page.after, page.upto) == (0, 2)
    ((size,), *_) = place.sql("SELECT bytes FROM blocks WHERE last = 2")
    for bound, upto in ((2 * size, 4), (size // 2, 2), (3 * size, 6)):
        monkeypatch.setattr(module.limits, "PAGE_BYTES", bound)
        page = database.page(pair, 0, 6)
        assert (page.after, page.upto) == (0, upto)


def test_what_has_come_with_a_page_is_the_next(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no more comes than some pages: up to 64 blocks came for each."""
    database = place.begun()
    for token in range(1, 13):
        database.write(commit(database, token, token))
    pair = StoredPair(database.first_id, "s", "i", 12, 0)
    ((size,), *_) = place.sql("SELECT bytes FROM blocks WHERE last = 2")
    monkeypatch.setattr(module.limits, "PAGE_BYTES", 2 * size)
    asked: list[Any] = []
    blocks_after = database._blocks_after

    def asking(*args: Any) -> Any:
        answer = blocks_after(*args)
        asked.append([row[0] for row in answer[0]])
        return answer

    monkeypatch.setattr(database, "_blocks_after", asking)
    reached = 0
    while reached < 12:
        page = database.page(pair, reached, 12)
        assert page.block is not None
        assert list(page.block.tokens) == list(range(reached + 1, page.upto + 1))
        reached = page.upto
    assert all(len(tokens) <= 8 for tokens in asked)
    assert not database._kept
    # another reader, one who wants less of it, and many of them
    database.page(pair, 0, 12)
    assert list(database._kept) == [(pair.id, 2)]
    assert database.page(pair, 2, 3).upto == 3
    assert not database._kept
    monkeypatch.setattr(module, "_KEPT", 2)
    for start in range(4):
        database.page(pair, start, 12)
    assert list(database._kept) == [(pair.id, 4), (pair.id, 5)]


def test_transaction_ids_are_for_all_servers(place: Place) -> None:
    one, two = place.begun("one"), place.begun("two")
    answer = Appended("s", "i", 1, 1)
    one.write(commit(one, 1, 1, transactions=[("s", "t", answer, 1_000)]))
    assert two.transaction("s", "t", 0) == answer
    assert two.transaction("s", "t", 1_001) is None
    mine = [("s", "t", Appended("s", "j", 1, 1), 1_000), ("s", "u", answer, 1_000)]
    with pytest.raises(KnownTransactions, match="1 transaction ids") as caught:
        two.write(Commit(transactions=mine))
    assert caught.value.answers == {("s", "t"): answer}
    two.write(Commit(transactions=mine[1:]))
    two.write(Commit(expire_before_ms=2_000))
    assert two.transactions([("s", "t"), ("s", "u")], 0) == {}


# --- in doubt ---------------------------------------------------------------------------------


def breaking(database: PostgresDatabase, *, after: bool, times: int = 1) -> Any:
    """Let the connection break before or after a commit goes through."""
    whole: Callable[..., Any] = database._write
    left = iter(range(times))

    def write(*args: Any, **kwargs: Any) -> Any:
        if next(left, None) is None:
            return whole(*args, **kwargs)
        if after:
            whole(*args, **kwargs)
        raise psycopg.OperationalError("the network is gone")

    return mock.patch.object(database, "_write", write)


def test_a_commit_that_went_through_is_known_to_have(place: Place) -> None:
    database = place.begun()
    database.write(commit(database, 1, 2))
    database.write(commit(database, 3, 4))
    pair = database.first_id
    with breaking(database, after=True):
        freed = database.write(commit(database, 5, 6, trims={pair: 2}))
    assert (freed.trimmed, freed.unfinished) == ([(pair, 2, 32)], {pair: 2})
    assert database.away is None
    with breaking(database, after=True):
        assert database.write(Commit(trims={pair: 4})).trimmed == [(pair, 2, 32)]
    assert position(place) == 6
    database.write(commit(database, 7, 7))
    assert database._sizes[pair] == (3, 48)


def test_a_commit_that_did_not_is_refused(place: Place) -> None:
    database = place.begun()
    with breaking(database, after=False), pytest.raises(LogUnavailable, match="not written: "):
        database.write(commit(database, 1, 1))
    assert database.away is not None
    database.write(commit(database, 1, 1))
    assert database.away is None
    assert position(place) == 1


def test_who_is_in_doubt_asks_until_it_knows(place: Place) -> None:
    database = place.begun()
    link, asked = database._writing, []
    whole = link._connect

    def connect() -> Any:
        asked.append(1)
        if len(asked) < 4:
            raise psycopg.OperationalError("still away")
        return whole()

    with breaking(database, after=True), mock.patch.object(link, "_connect", connect):
        database.write(commit(database, 1, 1))
    assert len(asked) == 4
    assert position(place) == 1
    with (
        breaking(database, after=True),
        mock.patch.object(link, "_connect", side_effect=psycopg.OperationalError("away")),
    ):
        database.stop()
        with pytest.raises(LogUnavailable, match="away"):
            database.write(commit(database, 2, 2))


def test_who_was_overtaken_in_doubt_is_fenced(place: Place) -> None:
    database = place.begun()
    place.lapse()

    def overtaken(*_: Any, **__: Any) -> Any:
        place.database().take()
        raise psycopg.OperationalError("gone")

    with mock.patch.object(database, "_write", overtaken), pytest.raises(LogFenced):
        database.write(commit(database, 1, 1))
    with mock.patch.object(database._writing, "_connect", side_effect=psycopg.OperationalError):
        database._writing.close()
        assert "taken over by another process" in str(database._fenced())


def test_a_database_that_has_lost_commits_gets_no_more(place: Place) -> None:
    database = place.begun()
    database.write(commit(database, 1, 1))
    place.sql("UPDATE writers SET commits = commits - 1")
    with breaking(database, after=False), pytest.raises(LogFenced, match="has lost rows"):
        database.write(commit(database, 2, 2))
    assert position(place) == 1


def test_a_beginning_that_breaks_off_is_none(place: Place) -> None:
    database = place.database()
    database.take()
    database.pairs()
    begun = database.history().begin({}, 1, over=database.over)
    with breaking(database, after=False), pytest.raises(LogUnavailable, match="connection broke"):
        database.write(Commit(begun=begun))
    assert place.sql("SELECT * FROM incarnations") == []


def test_a_database_that_is_away_says_so_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(fenced.logger, "error", lambda event, **_: said.append(event))
    monkeypatch.setattr(fenced.logger, "info", lambda event, **_: said.append(event))
    monkeypatch.setattr(fenced.logger, "warning", lambda event, **_: said.append(event))
    database = place.begun()
    database._writing.close()
    with mock.patch.object(database._writing, "_connect", side_effect=psycopg.OperationalError):
        for _ in range(2):
            with pytest.raises(LogUnavailable):
                database.renew()
    assert database.away_since is not None
    database.renew()
    assert database.away_since is None
    full = mock.patch.object(database, "_write", side_effect=errors.DiskFull("x"))
    with full, pytest.raises(LogUnavailable, match="x"):
        database.renew()
    assert said == ["postgresql.away", "postgresql.back"]
    with mock.patch.object(module.Connection, "execute", side_effect=errors.DiskFull("x")):
        database.close()
    assert said[-1] == "postgresql.release_failed"


def test_what_came_along_is_kept_for_some_readers_only(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many read at their own pace, and each reads on where it was."""
    monkeypatch.setattr(limits, "PAGE_ROWS", 1)
    database = place.begun()
    for token in range(1, 21):
        database.write(commit(database, token, token))
    (pair,) = database.pairs()
    for after in reversed(range(17)):
        page = database.page(pair, after, 20)
        assert (page.after, page.upto) == (after, after + 1)
    assert len(database._kept) == module._KEPT
    for after in range(17):
        assert database.page(pair, after, 20).upto == after + 1


def test_answers_are_kept_with_their_producer(place: Place) -> None:
    database = place.begun()
    answers = {name: [Answer(4, Appended("s", "i", 1, 1))] for name in ("a", "b")}
    state = ProducerState(2, 4, 1_000)
    database.write(Commit(producers=dict.fromkeys(answers, state), answers=answers))

    def held() -> dict[str, tuple[ProducerState, list[Answer]]]:
        return {name: (known, list(given)) for name, known, given in database.producers()}

    assert held() == {name: (state, given) for name, given in answers.items()}
    database.write(Commit(forgotten={"a"}))
    assert held() == {"b": (state, answers["b"])}
    assert place.sql("SELECT producer FROM answers") == [("b",)]
