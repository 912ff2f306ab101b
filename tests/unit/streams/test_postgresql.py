"""The log in PostgreSQL, beyond what every log promises: gates, the lease, a database away."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any
from unittest import mock

import psycopg
import pytest
from twisted.internet.task import Clock

from tcprepl.errors import LogFenced, LogUnavailable, TokenOrder, WrittenElsewhere
from tcprepl.metrics import REGISTRY
from tcprepl.storage.worker import InlineWorker
from tcprepl.streams import postgresql as module
from tcprepl.streams.cursor import AT_HEAD, Restart
from tcprepl.streams.engine import KnownTransactions
from tcprepl.streams.pages import Reading
from tcprepl.streams.retention import Bounds, Retention
from tests import postgres_world
from tests.log_kit import DURABLE, EPHEMERAL, PostgresStore, add, read_all, result, row
from tests.unit.streams.test_stored import SlowWorker

pytestmark = pytest.mark.postgresql


class DrainedWorker(SlowWorker):
    """One that does what is left when it is stopped, as a thread does."""

    def stop(self) -> None:
        """Do what is left."""
        self.run()
        self.submit = lambda *_: None  # type: ignore[method-assign]


class World:
    """A log whose threads do their work when the test lets them."""

    def __init__(self, **kwargs: Any) -> None:
        self.writing, self.reading, self.looking = DrainedWorker(), DrainedWorker(), DrainedWorker()
        self.clock = Clock()
        self.store = PostgresStore(
            postgres_world.url_of(postgres_world.server(), "postgres"),
            postgres_world.fresh_schema(),
            clock=self.clock,
            worker=self.writing,
            reading_worker=self.reading,
            looking_worker=self.looking,
            **kwargs,
        )
        self.log = self.store.log
        self.database = self.log._database
        self.work()

    def work(self) -> None:
        """Let everything happen."""
        for _ in range(6):
            self.clock.advance(0.005)
            self.writing.run()
            self.reading.run()
            self.looking.run()

    def away(self) -> Any:
        """Let the database be away."""
        self.database._writing.close()
        return mock.patch.object(
            self.database._writing, "_connect", side_effect=psycopg.OperationalError("no route")
        )

    def overtake(self) -> PostgresStore:
        """Let another process take the instance, once the lease is over."""
        postgres_world.lapse(self.store.url, self.store.schema)
        return PostgresStore(self.store.url, self.store.schema)

    def close(self) -> None:
        """Close the log."""
        closed = self.log.close()
        self.work()
        result(closed)


@pytest.fixture
def world() -> Iterator[World]:
    """Return one."""
    it = World(retention=Retention(reserved_tokens=10, durable=Bounds(max_rows=3)))
    yield it
    it.close()


# --- commits that other servers come before ----------------------------------------------------


def test_an_id_that_another_server_takes_meanwhile_is_answered(world: World) -> None:
    waiting = [
        world.log.append(DURABLE, "w", [row("a")]),
        world.log.append(DURABLE, "w", [row("b")], transaction_id="b"),
        world.log.append(DURABLE, "w", [row("c")], transaction_id="c"),
    ]
    world.reading.run()
    world.log.trim(DURABLE, "w", 0)
    other = PostgresStore(world.store.url, world.store.schema, writer="other")
    theirs = add(other, DURABLE, row("b"), instance="v", transaction_id="b")
    world.work()
    assert [result(each) for each in waiting[1:2]] == [theirs]
    assert [result(waiting[0]).first, result(waiting[2]).first] == [1, 3]
    assert [token for token, _ in read_all(world.log, DURABLE, 0)] == [1, 3]
    other.close()


def test_what_was_to_be_written_with_it_is_written_next(world: World) -> None:
    for _ in "ab":
        world.log.append(DURABLE, "w", [row("x")])
        world.work()
    waiting = world.log.append(DURABLE, "w", [row("a")])
    world.work()
    assert result(waiting).first == 3
    world.log.trim(DURABLE, "w", 1)
    refusal = KnownTransactions({})
    whole = world.database.write
    with mock.patch.object(world.database, "write", side_effect=[refusal]):
        world.clock.advance(0.005)
        world.writing.run()
    assert world.log._trims == {}
    with mock.patch.object(world.database, "write", wraps=whole) as write:
        world.work()
    assert any(call.args[0].trims for call in write.call_args_list)


def second(world: World, writer: str = "other") -> PostgresStore:
    """Return another server of the same database."""
    return PostgresStore(world.store.url, world.store.schema, writer=writer)


def test_rows_of_others_are_served_and_are_theirs(world: World) -> None:
    heard: list[Any] = []
    world.log.add_listener(lambda block: heard.append((block.instance, list(block.tokens))))
    world.log.add_position_listener(lambda *moved: heard.append(moved))
    other = second(world)
    add(other, DURABLE, row("a"), row("b"), instance="v")
    add(other, EPHEMERAL, row("e"), instance="v")
    result(other.log.advance(DURABLE, "v", 5))
    world.log.look()
    world.log.look()
    world.work()
    assert heard == [("v", [1, 2]), (DURABLE, "v", 2, 5)]
    assert read_all(world.log, DURABLE, 0, instance="v") == [(1, row("a")), (2, row("b"))]
    assert world.log.position(EPHEMERAL, "v") == 0
    third = second(world, "third")
    assert third.log.pairs() == [(DURABLE, "v")]
    third.close()
    for late in (
        lambda: world.log.append(DURABLE, "v", [row("mine")]),
        lambda: world.log.advance(DURABLE, "v", 9),
        lambda: world.log.ensure(DURABLE, "v"),
    ):
        with pytest.raises(WrittenElsewhere, match="is written by other, another server"):
            late()
    world.log.trim(DURABLE, "v", 1)
    assert world.log.floor(DURABLE, "v") == 0
    other.log.trim(DURABLE, "v", 1)
    world.log.look()
    world.work()
    assert world.log.floor(DURABLE, "v") == 1
    other.close()


def test_what_another_has_in_memory_is_its_own(world: World) -> None:
    """It was taken for a pair that nobody has, and the claim of its tokens failed."""
    other = second(world)
    add(other, EPHEMERAL, row("a"), instance="x")
    assert world.log.elsewhere((EPHEMERAL, "x")) is None
    for _ in range(2):
        world.log.look()
        world.work()
        assert world.log.elsewhere((EPHEMERAL, "x")) == "other"
        with pytest.raises(WrittenElsewhere, match="is written by other"):
            world.log.append(EPHEMERAL, "x", [row("b")])
    assert world.log.database.elsewhere == [f"{EPHEMERAL} of x"]
    assert (EPHEMERAL, "x") not in world.log.pairs()
    third = second(world, "third")
    assert third.log.elsewhere((EPHEMERAL, "x")) == "other"
    third.close()
    other.close()


def test_what_went_before_it_was_read_is_a_gap(world: World) -> None:
    other = second(world)
    add(other, DURABLE, row("a"), instance="v")
    world.log.look()
    world.work()
    heard: list[Any] = []
    world.log.add_position_listener(lambda *moved: heard.append(moved[2:]))
    world.log.add_listener(lambda block: heard.append(list(block.tokens)))
    for name in "bcd":
        add(other, DURABLE, row(name), instance="v")
    other.log.trim(DURABLE, "v", 3)
    world.log.look()
    world.work()
    assert heard == [(1, 3), [4]]
    other.close()


def test_a_damaged_block_of_another_is_a_gap(world: World) -> None:
    other = second(world)
    for name in "abc":
        add(other, DURABLE, row(name), instance="v")
    where = world.store.url, world.store.schema
    postgres_world.sql(*where, "UPDATE blocks SET crc = crc + 1 WHERE last = 2")
    heard: list[Any] = []
    world.log.add_position_listener(lambda *moved: heard.append(moved[2:]))
    world.log.add_listener(lambda block: heard.append(list(block.tokens)))
    world.log.look()
    world.work()
    assert heard == [[1], (1, 2), [3]]
    assert [gap.cause.value for _, gap in world.log.gaps] == ["damage"]
    other.close()


def test_a_block_of_another_that_was_deleted_is_a_gap(world: World) -> None:
    other = second(world)
    for name in "abc":
        add(other, DURABLE, row(name), instance="v")
    postgres_world.sql(
        world.store.url, world.store.schema, "DELETE FROM blocks WHERE last IN (1, 2)"
    )
    world.log.look()
    world.work()
    assert [(gap.after, gap.upto, gap.cause.value) for _, gap in world.log.gaps] == [
        (0, 2, "damage")
    ]
    assert read_all(world.log, DURABLE, 2, instance="v") == [(3, row("c"))]
    other.close()


def test_a_reader_who_comes_from_another_server_is_waited_for(world: World) -> None:
    other = second(world)
    add(other, DURABLE, row("a"), instance="v")
    places = ((1, other.log.history.current),)
    cursor = world.log.cursor((DURABLE, "v"), 1, places)
    reading = cursor.next()
    assert isinstance(reading, Reading)
    assert cursor.next() is reading
    world.work()
    assert reading.done
    assert cursor.next() is AT_HEAD
    nowhere = world.log.cursor((DURABLE, "v"), 99, places)
    assert isinstance(nowhere.next(), Reading)
    world.work()
    answer = nowhere.next()
    assert isinstance(answer, Restart)
    other.close()


def test_a_reader_that_was_at_a_server_not_heard_of_forgets_nothing(world: World) -> None:
    """What it got there is looked for before anything that it has is called void."""
    world.log.append(DURABLE, "w", [row("a"), row("b")])
    world.work()
    other = PostgresStore(world.store.url, world.store.schema, writer="other")
    places = ((2, other.log.history.current), (1, world.log.history.current))
    cursor = world.log.cursor((DURABLE, "w"), 2, places)
    assert isinstance(cursor.next(), Reading)
    world.work()
    assert cursor.next() is AT_HEAD
    other.close()


def test_who_cannot_look_does_not_send_readers_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(module.logger, "error", lambda event, **_: said.append(event))
    cursor = world.log.cursor((DURABLE, "v"), 99)
    for error in (LogUnavailable("away"), ZeroDivisionError()):
        assert isinstance(cursor.next(), Reading)
        with mock.patch.object(world.log._news, "read", side_effect=error):
            world.work()
        with pytest.raises(LogUnavailable, match="database is away"):
            cursor.next()
    assert said == ["postgresql.look_failed"]
    assert isinstance(cursor.next(), Reading)
    world.work()
    assert isinstance(cursor.next(), Restart)


def test_news_that_cannot_be_taken_in_end_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that were read and not published would be missing for readers, without a word."""
    world = World()
    other = second(world)
    add(other, DURABLE, row("a"), instance="v")
    heard: list[int] = []
    world.log.add_listener(lambda block: heard.append(block.last))
    monkeypatch.setattr(world.log, "_follow", mock.Mock(side_effect=MemoryError))
    reading = world.log.look()
    world.work()
    assert reading.done
    with pytest.raises(LogFenced, match="could not be taken in"):
        result(world.log.failed)
    monkeypatch.undo()
    add(other, DURABLE, row("b"), instance="v")
    world.log.look()
    world.work()
    assert heard == []
    other.close()
    world.close()


@pytest.mark.parametrize("how", ["pairs", "beginnings"])
def test_a_database_that_was_put_back_ends_the_process(how: str) -> None:
    world = World()
    other = second(world)
    add(other, DURABLE, row("a"), instance="v")
    kept = postgres_world.dump(world.store.url, world.store.schema)
    add(other, DURABLE, row("b"), instance="v")
    world.log.look()
    world.work()
    other.close()
    postgres_world.restore(world.store.url, world.store.schema, kept)
    if how == "beginnings":
        world.database.renew()  # it is still there
        other = second(world, "third")  # notes where all pairs are
        other.close()
        again = second(world)
        add(again, DURABLE, row("c"), row("d"), instance="v")
        again.close()
    world.log.look()
    world.work()
    with pytest.raises(LogFenced, match=r"lost rows|found it gone"):
        result(world.log.failed)
    world.log.look()
    world.close()


def test_who_was_found_gone_by_another_server_ends(world: World) -> None:
    postgres_world.lapse(world.store.url, world.store.schema)
    other = second(world)
    world.log.look()
    world.work()
    with pytest.raises(LogFenced, match="another process found it gone"):
        result(world.log.failed)
    world.log._end(LogFenced("master", "again"))
    assert "found it gone" in str(world.log.trouble)
    other.close()


def test_a_listener_looks_when_others_have_written() -> None:
    world = World()
    calls: SimpleQueue[Any] = SimpleQueue()
    world.log.listen(calls.put)
    other = second(world)
    add(other, DURABLE, row("a"), instance="v")
    while world.log.position(DURABLE, "v") < 1:
        calls.get(timeout=30)()
        world.work()
    other.close()
    listener = world.log._listener
    assert listener is not None
    world.close()
    listener.join()


# --- published in SQL -----------------------------------------------------------------------------


def stage(world: World, stream: str, rows: str, **more: Any) -> None:
    """Publish in SQL."""
    postgres_world.sql(
        world.store.url,
        world.store.schema,
        "SELECT tcprepl_publish(%s, %s::jsonb, batch => %s)",
        (stream, rows, more.get("batch", False)),
    )


def left(world: World, table: str) -> int:
    """Return how many rows a table has."""
    where = world.store.url, world.store.schema
    return int(postgres_world.sql(*where, f"SELECT count(*) FROM {table}")[0][0])


def test_what_was_published_in_sql_is_taken_with_its_commit(world: World) -> None:
    stage(world, DURABLE, '[["@a:x"], ["@b:x"]]', batch=True)
    stage(world, DURABLE, '[["@c:x"]]')
    world.log.look()
    world.looking.run()
    world.log.look()  # what is being taken is not taken again
    world.looking.run()
    assert left(world, "staged") == 2
    world.work()
    assert left(world, "staged") == 0
    assert [t for t, _ in read_all(world.log, DURABLE, 0, instance="master")] == [1, 1, 2]


def test_what_nobody_could_read_is_put_aside(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(module.logger, "error", lambda event, **_: said.append(event))
    stage(world, DURABLE, "[[1]]")
    stage(world, EPHEMERAL, "[1]")
    stage(world, "nothing", "[1]")
    stage(world, DURABLE, '[["@a:x"]]')
    world.log.look()
    world.looking.run()
    with mock.patch.object(world.database, "write", side_effect=LogUnavailable("full")):
        world.clock.advance(0.005)
        world.writing.run()
    assert left(world, "staged") == 4
    world.log.look()
    world.work()
    assert (left(world, "staged"), left(world, "refused")) == (0, 3)
    assert [t for t, _ in read_all(world.log, DURABLE, 0, instance="master")] == [2]
    assert said.count("postgresql.refused") == 6
    stage(world, DURABLE, '[["@b:x"]]')
    world.log.look()
    closed = world.log.close()
    world.work()
    result(closed)
    assert left(world, "staged") == 1


# --- the lease --------------------------------------------------------------------------------


def test_the_lease_is_kept_while_nothing_happens(world: World) -> None:
    left = "SELECT held_until > clock_timestamp() FROM writers"
    postgres_world.lapse(world.store.url, world.store.schema)
    assert postgres_world.sql(world.store.url, world.store.schema, left) == [(False,)]
    world.clock.advance(2.5)
    world.work()
    assert postgres_world.sql(world.store.url, world.store.schema, left) == [(True,)]


def test_who_was_overtaken_stops_and_says_so(world: World) -> None:
    other = world.overtake()
    theirs = add(other, DURABLE, row("theirs"))
    ours = world.log.append(DURABLE, "w", [row("ours")])
    world.work()
    with pytest.raises(LogFenced, match="nothing more is written here, and this process ends"):
        result(ours)
    for late in (
        world.log.append(DURABLE, "w", [row("late")]),
        world.log.append(EPHEMERAL, "w", [row("late")]),
        world.log.advance(DURABLE, "w", 9),
    ):
        with pytest.raises(LogFenced):
            result(late)
    with pytest.raises(LogFenced):
        result(world.log.failed)
    assert read_all(other.log, DURABLE, 0) == [(theirs.first, row("theirs"))]
    other.close()


@pytest.mark.parametrize("by", ["beat", "claim"])
def test_who_writes_nothing_notices_too(by: str) -> None:
    world = World()
    other = world.overtake()
    if by == "beat":
        world.clock.advance(2.5)
    else:
        refused = world.log.append(EPHEMERAL, "w", [row("a")])
    world.work()
    if by == "claim":
        with pytest.raises(LogFenced):
            result(refused)
    with pytest.raises(LogFenced):
        result(world.log.failed)
    assert len(world.clock.getDelayedCalls()) == 1  # old rows are looked for, no lease is kept
    other.close()
    world.close()


def test_a_fault_of_ours_in_a_renewal_is_logged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(module.logger, "error", lambda event, **_: said.append(event))
    with mock.patch.object(world.database, "renew", side_effect=ZeroDivisionError):
        world.clock.advance(2.5)
        world.writing.run()
    assert said == ["postgresql.renew_failed"]
    with mock.patch.object(world.database, "renew", side_effect=LogUnavailable("x")):
        world.clock.advance(2.5)
        world.writing.run()
    assert said == ["postgresql.renew_failed"]


def test_everybody_who_looks_meanwhile_is_told(world: World) -> None:
    """A look that begins while another is under way does not take the place of those in it."""
    looks = [world.log.look() for _ in range(3)]
    world.work()
    assert all(look.done for look in looks)


def test_without_a_reactor_who_looks_is_told_at_once(world: World) -> None:
    other = PostgresStore(
        world.store.url, world.store.schema, writer="other", looking_worker=InlineWorker()
    )
    assert other.log.look().done
    other.close()


@pytest.mark.parametrize("how", ["fenced", "fenced meanwhile", "closed"])
def test_who_looks_when_it_has_ended_is_told(world: World, how: str) -> None:
    """A reader would wait for ever."""
    looks = [world.log.look(), world.log.look()] if how == "fenced meanwhile" else []
    if how == "closed":
        closed = world.log.close()
        world.work()
        result(closed)
    else:
        other = world.overtake()
        refused = world.log.append(DURABLE, "w", [row("ours")])
        world.work()
        with pytest.raises(LogFenced):
            result(refused)
        world.log.failed.addErrback(lambda failure: failure.trap(LogFenced))
        other.close()
    looks.append(world.log.look())
    assert all(look.done for look in looks)
    assert isinstance(looks[-1].error, LogUnavailable)


def test_a_fault_of_ours_in_a_look_is_logged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(module.logger, "error", lambda event, **_: said.append(event))
    for error in (ZeroDivisionError(), LogUnavailable("x")):
        with mock.patch.object(world.log._news, "read", side_effect=error):
            world.log.look()
            world.work()
        assert said == ["postgresql.look_failed"]


# --- a database that is away ------------------------------------------------------------------


def test_while_the_database_is_away_appends_fail_with_the_reason(world: World) -> None:
    world.log.ensure(EPHEMERAL, "w")
    world.work()
    with world.away():
        world.clock.advance(2.5)
        world.work()
        refused = world.log.append(DURABLE, "w", [row("a")])
        with pytest.raises(LogUnavailable, match=r"the database is away: .*no route"):
            result(refused)
        assert result(world.log.append(EPHEMERAL, "w", [row("a")])).first == 1
        assert "the database is away" in str(world.log.trouble)
        assert world.log._away_s()[0][1] > 0
    world.clock.advance(2.5)
    world.work()
    taken = world.log.append(DURABLE, "w", [row("a")])
    world.work()
    assert result(taken).first == 1
    assert world.log.trouble is None
    assert world.log._away_s() == [((), 0.0)]


def test_it_is_told_who_holds_which_instance(world: World) -> None:
    other = second(world)
    world.log._news._held_at = float("-inf")
    world.log.look()
    world.work()
    status = world.log.database
    assert (status.instance, status.away_seconds) == (world.database.writer, None)
    assert [one.instance for one in status.holders] == sorted(["other", world.database.writer])
    assert all(one.epoch == 1 and 0 < one.left_seconds <= 10 for one in status.holders)
    (mine,) = (one for one in status.holders if one.instance == status.instance)
    assert mine.holder == world.database.holder
    labels = {"instance": "other"}
    assert REGISTRY.get_sample_value("tcprepl_instance_lease_seconds", labels) > 0  # type: ignore[operator]
    labels["holder"] = mine.holder
    assert REGISTRY.get_sample_value("tcprepl_instance_epoch", labels) == 1
    before = REGISTRY.get_sample_value("tcprepl_commit_seconds_count")
    _ = world.log.append(DURABLE, "w", [row("a")])
    world.work()
    assert REGISTRY.get_sample_value("tcprepl_commit_seconds_count") > before  # type: ignore[operator]
    world.log.look()
    world.work()
    assert world.log.database.holders  # those of a moment ago, as old as they are
    other.close()


def test_who_waits_behind_a_commit_in_doubt_is_refused(world: World) -> None:
    under_way = world.log.append(DURABLE, "w", [row("a")])
    world.clock.advance(0.005)
    behind = world.log.append(DURABLE, "w", [row("b")])
    world.clock.advance(2.5)
    assert not behind.called
    world.database.away = "no route"
    world.clock.advance(2.5)
    with pytest.raises(LogUnavailable, match="no route"):
        result(behind)
    assert not under_way.called
    world.work()
    assert result(under_way).first == 1


def test_a_move_in_doubt_bounds_what_may_be_named(world: World) -> None:
    moving = world.log.advance(DURABLE, "w", 5)
    world.clock.advance(0.005)
    behind = world.log.append(DURABLE, "w", [row("b")], tokens=[9])
    world.database.away = "no route"
    world.clock.advance(5)
    with pytest.raises(LogUnavailable, match="no route"):
        result(behind)
    world.database.away = None
    with pytest.raises(TokenOrder):
        world.log.append(DURABLE, "w", [row("b")], tokens=[5])
    again = world.log.append(DURABLE, "w", [row("b")], tokens=[6])
    world.work()
    assert result(moving) is None
    assert result(again).last == 6


def test_an_id_that_was_refused_behind_a_commit_in_doubt_may_come_again(world: World) -> None:
    """It was taken for one under way, whose answer never came."""
    _ = world.log.append(DURABLE, "w", [row("a")])
    world.clock.advance(0.005)
    behind = world.log.append(DURABLE, "w", [row("b")], transaction_id="b")
    world.reading.run()
    world.database.away = "no route"
    world.clock.advance(5)
    with pytest.raises(LogUnavailable, match="no route"):
        result(behind)
    world.database.away = None
    world.work()
    again = world.log.append(DURABLE, "w", [row("b")], transaction_id="b")
    world.work()
    assert result(again).first == 3
    assert [text for _, text in read_all(world.log, DURABLE, 0)] == [row("a"), row("b")]


# --- retention, the end -------------------------------------------------------------------------


def test_the_reactor_does_not_look_for_what_is_old(world: World) -> None:
    for index in range(6):
        waiting = world.log.append(DURABLE, "w", [row(str(index))])
        world.clock.advance(0.005)
        world.writing.run()
        assert result(waiting).first == index + 1
    assert world.log.floor(DURABLE, "w") == 0
    world.work()
    assert world.log.floor(DURABLE, "w") == 3
    world.log.expire()
    with mock.patch.object(world.database, "oldest", side_effect=LogUnavailable("x")):
        world.log.append(DURABLE, "w", [row("a")])
        world.work()
    assert world.log.floor(DURABLE, "w") == 3


def test_what_is_within_retention_goes_to_disk_no_second_time(world: World) -> None:
    for index in range(2):
        with mock.patch.object(world.database, "write", wraps=world.database.write) as write:
            waiting = world.log.append(DURABLE, "w", [row(str(index))])
            world.work()
        assert result(waiting).first == index + 1
        assert [call.args[0].trims for call in write.call_args_list] == [{}]


def test_a_log_that_ends_without_its_database_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(module.logger, "warning", lambda event, **_: said.append(event))
    world = World()
    with world.away():
        world.close()
    assert said == ["streams.close.failed"]
    world.log._expire_pairs(())
    store = PostgresStore(world.store.url, world.store.schema, worker=InlineWorker())
    store.close()
