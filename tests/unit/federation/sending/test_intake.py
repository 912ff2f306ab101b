"""The intake: rows into the outbox, positions with them, acknowledgements after."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import structlog
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tcprepl.federation.sending import intake as module
from tcprepl.federation.sending.commit_queue import run_inline
from tcprepl.federation.sending.intake import EduIntake
from tcprepl.federation.sending.lanes import Entry
from tcprepl.federation.sending.outbox import Outbox
from tcprepl.federation.sending.sharding import Shard
from tcprepl.federation.wire.edu import build_edu, edu_row
from tests.federation_world import RawRows


class World:
    """An intake on a real outbox."""

    def __init__(self, path: Path, shard: Shard | None = None) -> None:
        self.clock = Clock()
        self.outbox = Outbox(path, run_inline)
        self.delivered: list[Entry] = []
        self.acked: list[tuple[str, int]] = []
        self.intake = EduIntake(
            self.clock,
            self.outbox,
            "x.example",
            shard or Shard("fed1", ()),
            self.delivered.extend,
            lambda instance, token: self.acked.append((instance, token)),
            now_ms=lambda: 1_000,
        )

    def row(self, token: int, destination: str = "y.example", kind: str = "m.test") -> Any:
        row = edu_row(build_edu("x.example", destination, kind, {"n": token}))
        return self.intake.handle_rows("federation", "master", token, RawRows(row))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "outbox.sqlite")
    yield made
    made.outbox.close()


def test_what_one_turn_brings_goes_into_one_commit_and_one_acknowledgement(world: World) -> None:
    for token in range(1, 6):
        assert world.row(token) is None
    assert world.acked == []
    world.clock.advance(0)
    assert world.acked == [("master", 5)]
    assert [entry[2].decode_content()["n"] for entry in world.delivered] == [1, 2, 3, 4, 5]
    assert world.intake.load() == {("federation", "master"): 5}


def test_the_client_does_not_write_positions(world: World) -> None:
    world.intake.save({("federation", "master"): 99})
    world.intake.rollback()
    world.intake.close()
    assert world.intake.load() == {}
    assert world.intake.atomic is False


def test_edus_to_ourselves_and_of_other_shards_are_passed_over(tmp_path: Path) -> None:
    world = World(tmp_path / "outbox.sqlite", Shard("a", ("a", "b")))
    for token in range(1, 41):
        world.row(token, f"s{token}.example")
    world.row(41, "x.example")
    world.clock.advance(0)
    names = {entry[2].destination for entry in world.delivered}
    assert 0 < len(names) < 40
    assert all(Shard("a", ("a", "b")).owns(name) for name in names)
    assert "x.example" not in names
    assert world.acked == [("master", 41)]
    world.outbox.close()


def test_edus_get_the_lifetime_of_their_type(world: World) -> None:
    world.row(1, kind="m.typing")
    world.row(2, kind="m.direct_to_device")
    world.clock.advance(0)
    assert [entry[1] for entry in world.delivered] == [61_000, 0]


def test_a_position_is_acknowledged_like_rows(world: World) -> None:
    world.intake.handle_position("federation", "master", 7)
    world.intake.handle_position("typing", "master", 9)
    world.clock.advance(0)
    assert world.acked == [("master", 7)]


def test_what_was_taken_before_a_connection_or_a_reset_is_not_acknowledged(world: World) -> None:
    """The writer may have been restored meanwhile, and have other rows under these tokens."""
    world.row(7)
    world.intake.connected("x")
    world.clock.advance(0)
    assert len(world.delivered) == 1
    assert world.acked == []
    world.row(9)
    world.intake.handle_reset("federation", "master", 7, 5)
    world.row(6)
    world.clock.advance(0)
    assert world.acked == [("master", 6)]
    assert world.intake.load() == {("federation", "master"): 6}


def test_the_incarnation_is_kept_with_the_position(world: World) -> None:
    pair = ("federation", "master")
    assert world.intake.places(pair, 0) == ()
    for incarnation, token in [("x", 7), ("y", 9)]:
        world.intake.connected(incarnation)
        world.row(token)
        world.clock.advance(0)
        world.intake.save({pair: token}, incarnation)
    assert world.intake.places(pair, 9) == ((9, "y"), (7, "x"))
    assert world.outbox.lineages()[pair].places(9) == ((9, "y"), (7, "x"))


def test_what_waits_for_the_disk_is_kept_in_the_incarnation_in_which_it_came(
    world: World,
) -> None:
    pair = ("federation", "master")
    world.intake.connected("x")
    world.row(7)
    world.intake.connected("y")
    world.clock.advance(0)
    assert world.intake.places(pair, 7) == ((7, "x"),)
    assert world.outbox.lineages()[pair].places(7) == ((7, "x"),)


def test_an_incarnation_counts_once_the_disk_has_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = ("federation", "master")
    commit = world.outbox._in_one

    def refuse(ops: Any) -> Any:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(world.outbox, "_in_one", refuse)
    world.intake.connected("x")
    world.row(7)
    with structlog.testing.capture_logs():
        world.clock.advance(0)
    assert world.intake.places(pair, 7) == ()
    monkeypatch.setattr(world.outbox, "_in_one", commit)
    world.clock.advance(1)
    assert world.intake.places(pair, 7) == ((7, "x"),)
    assert world.outbox.lineages()[pair].places(7) == ((7, "x"),)


def test_a_reset_moves_the_position_and_a_gap_is_told(world: World) -> None:
    with structlog.testing.capture_logs() as logs:
        world.intake.handle_reset("federation", "master", 5, 9)
        world.intake.handle_reset("federation", "master", 9, 2)
        world.intake.handle_reset("typing", "master", 9, 2)
    assert [log["event"] for log in logs] == ["federation.rows.lost", "federation.stream.reset"]
    world.clock.advance(0)
    assert world.intake.load() == {("federation", "master"): 2}


@pytest.mark.parametrize(("bound", "value"), [("ROWS", 0), ("BYTES", 2)])
def test_reading_waits_while_too_much_waits_for_the_disk(
    world: World, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    row = edu_row(build_edu("x.example", "y.example", "m.test", {"n": 1}))
    monkeypatch.setattr(module, f"MAX_UNSTORED_{bound}", (value and value * len(row)) or 2)
    for start in (1, 4, 7):
        assert world.row(start) is None
        assert world.row(start + 1) is None
        waiting = world.row(start + 2)
        assert waiting is not None
        assert not waiting.called
        world.clock.advance(0)
        assert waiting.called
    for token in range(10, 20):
        assert world.row(token) is None
        world.clock.advance(0)
    waiting = [world.row(token) for token in (20, 21, 22)][-1]
    world.intake.stop()
    assert waiting.called


def test_a_disk_that_refuses_is_asked_again_and_nothing_is_acknowledged(world: World) -> None:
    real = world.outbox._in_one

    def refusing(ops: Any) -> Any:
        raise sqlite3.OperationalError("database or disk is full")

    world.outbox._in_one = refusing  # type: ignore[method-assign]
    world.row(1)
    world.clock.advance(0)
    world.row(2)
    world.clock.advance(0.5)
    assert world.acked == []
    world.outbox._in_one = real  # type: ignore[method-assign]
    world.clock.advance(1)
    world.clock.advance(0)
    assert world.acked == [("master", 1), ("master", 2)]
    assert len(world.delivered) == 2


def test_after_the_end_nothing_more_is_taken(world: World) -> None:
    world.row(1)
    world.intake.stop()
    world.clock.advance(0)
    world.row(2)
    world.clock.advance(60)
    assert world.acked == []
    assert world.intake.load() == {}


def test_a_disk_that_refuses_is_asked_less_and_less_often(world: World) -> None:
    """Until it has taken something."""
    asked: list[float] = []
    full = [True]
    real = world.outbox._in_one

    def refusing(ops: Any) -> Any:
        asked.append(world.clock.seconds())
        if full[0]:
            raise sqlite3.OperationalError("database or disk is full")
        return real(ops)

    world.outbox._in_one = refusing  # type: ignore[method-assign]
    for token in (1, 2):
        asked.clear()
        full[0] = True
        begin = world.clock.seconds()
        world.row(token)
        world.clock.pump([0.5] * 200)
        waits = [after - before for before, after in pairwise([begin, *asked])]
        assert waits[:8] == [0.5, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 30.0]
        full[0] = False
        world.clock.pump([0.5] * 61)
        assert world.acked[-1] == ("master", token)


@pytest.mark.parametrize("what", ["connection", "reset", "reset of another stream"])
def test_what_is_being_stored_when_the_writer_changes_is_not_acknowledged_to_it(
    tmp_path: Path, what: str
) -> None:
    world = World(tmp_path / "outbox.sqlite")
    waiting: list[tuple[Any, Deferred[Any]]] = []

    def later(work: Any) -> Deferred[Any]:
        waiting.append((work, Deferred()))
        return waiting[-1][1]

    world.outbox._run = later
    world.row(9)
    world.clock.advance(0)
    if what == "connection":
        world.intake.connected("x")
    else:
        stream = "federation" if what == "reset" else "typing"
        world.intake.handle_reset(stream, "master", 9, 5)
    work, done = waiting.pop()
    done.callback(work())
    assert len(world.delivered) == 1
    assert world.acked == ([("master", 9)] if "another" in what else [])
    world.outbox._run = run_inline
    world.outbox.close()


def test_rows_are_made_canonical_unless_the_writer_promises_that_they_are(world: World) -> None:
    """Their contents are signed as they are."""
    row = edu_row(build_edu("x.example", "y.example", "m.test", {"a": 1, "b": 2}))
    turned = row.replace(b'{"a":1,"b":2}', b'{"b":2, "a":1}')
    assert turned != row
    for token, canonical in ((1, False), (2, True)):
        assert token == 2 or world.intake.canonical is canonical
        world.intake.canonical = canonical
        world.intake.handle_rows("federation", "master", token, RawRows(turned))
        world.clock.advance(0)
    contents = [entry[2].content_bytes for entry in world.delivered]
    assert contents == [b'{"a":1,"b":2}', b'{"b":2, "a":1}']


@pytest.mark.parametrize("stops", [False, True])
def test_rows_that_an_error_of_ours_kept_from_being_read_are_read_later(
    world: World, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    """Nothing passes them, and nothing of them is lost."""
    read = module.parse_rows
    failing = [True]

    def broken(*arguments: Any, **options: Any) -> Any:
        if failing:
            failing.clear()
            raise MemoryError
        return read(*arguments, **options)

    monkeypatch.setattr(module, "parse_rows", broken)
    with structlog.testing.capture_logs() as logs:
        world.row(1)
        world.clock.advance(0)
    assert [line["event"] for line in logs] == ["federation.rows.not_read"]
    assert world.acked == []
    world.row(2)
    if stops:
        world.intake.stop()
    world.clock.advance(5)
    assert [entry[2].decode_content()["n"] for entry in world.delivered] == (
        [] if stops else [1, 2]
    )
    assert world.acked == ([] if stops else [("master", 2)])
    assert not world.clock.getDelayedCalls()
