"""The intake of a relay: tokens that only grow, gaps that are told, one group at a time."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from tcprepl.errors import (
    CloseReason,
    ConnectionFailed,
    LogError,
    TokenTooOld,
)
from tcprepl.replication.following.catchup import CatchUpPage
from tcprepl.replication.relaying import intake as relay_module
from tcprepl.replication.relaying.intake import (
    LogPositions,
    RelayCatchUp,
    RelayIntake,
    relay_registry,
)
from tcprepl.replication.relaying.state import Epoch, RelayState
from tcprepl.streams.gaps import Cause, Gap
from tcprepl.streams.log import Page
from tcprepl.streams.memory import MemoryLog

PAIR = ("typing", "master")


class World:
    """An intake over a log in memory."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.state = RelayState(None)
        self.registry = relay_registry(["met"])
        self.log = MemoryLog(self.registry, lambda: 0)
        self.intake = self.make()

    def make(self) -> RelayIntake:
        """Return an intake over the log as it is, as after a restart."""
        return RelayIntake(self.clock, self.log, self.registry, self.state)

    def take(self, *tokens: int, pair: tuple[str, str] = PAIR) -> None:
        """Have rows taken, each with its upstream token, and wait until they are logged."""
        for token in tokens:
            answer = self.intake.take(pair, token, [b"[%d]" % token])
            assert answer is None or answer.called
        self.clock.advance(0)

    def position(self, token: int, pair: tuple[str, str] = PAIR) -> None:
        """Have the upstream say a position."""
        self.intake.position(*pair, token)
        self.clock.advance(0)

    def reset(self, known: int | None, token: int, pair: tuple[str, str] = PAIR) -> None:
        """Have the upstream go on elsewhere."""
        done = Deferred.fromCoroutine(self.intake.reset(*pair, known, token))
        self.clock.advance(0)
        assert done.called
        self.clock.advance(0)

    def rows(self, pair: tuple[str, str] = PAIR) -> list[tuple[int, bytes]]:
        """Return what the log holds."""
        page: Page = self.log.read(*pair, self.log.floor(*pair), self.log.position(*pair))
        return list(page.rows())


@pytest.fixture
def world() -> World:
    """Return a fresh world."""
    return World()


def test_everything_is_durable_and_met_streams_are_opaque() -> None:
    registry = relay_registry(["odd"])
    assert all(registry.get(name).durable for name in registry.names())
    assert registry.get("odd").row_type is None
    assert registry.get("typing").keyed


def test_rows_keep_their_tokens_and_batches(world: World) -> None:
    world.position(4)
    world.intake.take(PAIR, 5, [b"[1]", b"[2]"])
    world.intake.take(PAIR, 7, [b"[3]"])
    world.intake.take(("odd", "w1"), 1, [b"[4]"])
    world.clock.advance(0)
    assert world.rows() == [(5, b"[1]"), (5, b"[2]"), (7, b"[3]")]
    assert world.rows(("odd", "w1")) == [(1, b"[4]")]
    assert world.state.streams() == ["odd"]
    assert world.intake.positions() == {PAIR: 7, ("odd", "w1"): 1}
    assert world.intake.rows_taken == 4


def test_how_long_ago_the_last_row_came(world: World) -> None:
    """A position is no row."""
    world.clock.advance(3)
    world.position(4)
    assert world.intake.idle_seconds() is None
    world.take(5)
    world.clock.advance(2.5)
    world.position(9)
    assert world.intake.idle_seconds() == 2.5
    world.take(10)
    assert world.intake.idle_seconds() == 0.0


def test_first_sight_begins_the_record_there(world: World) -> None:
    world.position(40)
    assert world.log.floor(*PAIR) == world.log.position(*PAIR) == 40
    assert world.state.gaps.next(PAIR, 0) == Gap(0, 40, Cause.RECORD)
    with pytest.raises(TokenTooOld, match="from before this relay listened"):
        world.log.read(*PAIR, 0, 40)
    assert world.intake.gap_status() == {"gaps": 0, "newest_gaps": []}
    world.position(0, ("receipts", "master"))
    assert ("receipts", "master") in world.log.pairs()
    assert world.intake.known(("receipts", "master")) == 0
    assert world.intake.known(("receipts", "w1")) is None


def test_positions_move_without_rows(world: World) -> None:
    world.position(1)
    world.take(2)
    world.position(9)
    world.position(3)  # an old one says nothing
    assert world.log.position(*PAIR) == 9
    assert world.state.gaps.next(PAIR, 2) is None


def test_a_gap_is_remembered_and_shown(world: World) -> None:
    world.position(1)
    world.take(2)
    world.reset(2, 10)
    world.position(10)
    world.take(11)
    assert world.state.gaps.next(PAIR, 2) == Gap(2, 10, Cause.UPSTREAM)
    assert [token for token, _ in world.rows()] == [2, 11]
    status = world.intake.gap_status()
    assert status["gaps"] == 1
    assert status["newest_gaps"] == [
        "typing of master: rows in (2, 10] may be missing: the upstream could not tell them"
    ]


def test_tokens_grow_when_the_stream_begins_anew(world: World) -> None:
    world.position(99)
    world.take(100)
    world.reset(100, 3)
    world.position(3)
    world.take(4, 5)
    assert [token for token, _ in world.rows()] == [100, 102, 103]
    assert world.state.epoch(PAIR) == Epoch(98, 101)
    assert world.state.gaps.next(PAIR, 100) == Gap(100, 101, Cause.ANEW)
    assert world.intake.positions() == {PAIR: 5}
    assert world.make().positions() == {PAIR: 5}


def test_killed_between_epoch_and_log(world: World) -> None:
    world.position(99)
    world.take(100)
    world.state.set_epoch(PAIR, Epoch(98, 101))
    world.intake = world.make()
    assert world.intake.positions() == {PAIR: 3}
    world.clock.advance(0)
    assert world.log.position(*PAIR) == 101


def test_a_gap_that_was_never_logged_is_forgotten(world: World) -> None:
    world.position(1)
    world.take(2)
    world.state.add_gap(PAIR, Gap(2, 9, Cause.UPSTREAM))
    world.make()
    assert world.state.gaps.next(PAIR, 2) is None


def test_repeated_tokens_of_2017_move_ours_ahead(world: World) -> None:
    world.position(3)
    world.take(4)
    answer = world.intake.take(PAIR, 4, [b"[other]"])
    world.clock.advance(0)
    assert answer is not None
    assert answer.called
    world.take(5)
    assert world.rows() == [(4, b"[4]"), (5, b"[other]"), (6, b"[5]")]
    assert world.make().positions() == {PAIR: 5}


def test_reset_of_what_was_never_seen_means_nothing(world: World) -> None:
    world.reset(None, 5)
    assert world.log.pairs() == []


def test_the_log_is_the_position_store(world: World) -> None:
    world.position(4)
    store = LogPositions(world.intake)
    assert store.load() == {PAIR: 4}
    store.save({PAIR: 9})
    store.rollback()
    store.close()
    assert store.load() == {PAIR: 4}
    assert not store.atomic


class Source:
    """Answers as told."""

    def __init__(self) -> None:
        self.answers: list[Any] = []

    def fetch(self, *_: object) -> Any:
        """Return the next answer."""
        answer = self.answers.pop(0)
        return fail(answer) if isinstance(answer, Exception) else succeed(answer)


def fetch(catch_up: RelayCatchUp, pair: tuple[str, str] = PAIR) -> Any:
    """Fetch a page and return it, or the error."""
    outcome: list[Any] = []
    Deferred.fromCoroutine(catch_up.fetch(*pair, 0, 9)).addBoth(outcome.append)
    return outcome[0]


def test_catch_up_gives_up_in_the_end(world: World) -> None:
    source = Source()
    catch_up = RelayCatchUp(world.intake, source)
    assert fetch(catch_up) == CatchUpPage([], 9, limited=False)  # never held: nothing missed
    world.position(4)
    page = CatchUpPage([(5, b"[5]")], 5, limited=True)
    away = ConnectionFailed("away", reason=CloseReason.CONNECTION_LOST)
    source.answers = [OSError("x"), page]
    assert fetch(catch_up).check(OSError)
    assert fetch(catch_up) is page
    source.answers = [away] * relay_module.CATCH_UP_ATTEMPTS
    for _ in range(relay_module.CATCH_UP_ATTEMPTS - 1):
        assert fetch(catch_up).value is away
    last = fetch(catch_up).value
    assert not last.transient
    assert "given up after" in str(last)
    source.answers = [ConnectionFailed("no", reason=CloseReason.CONNECTION_LOST, transient=False)]
    assert str(fetch(catch_up).value) == "no"


def test_the_upstreams_incarnation_is_noted_before_its_rows(world: World) -> None:
    store = LogPositions(world.intake)
    world.position(4)
    assert store.places(PAIR, 4) == ()
    world.intake.incarnation = "x"
    world.take(5)
    world.intake.incarnation = "y"
    world.position(6)
    assert store.places(PAIR, 6) == ((6, "y"), (5, "x"))
    world.intake.incarnation = "restored"
    world.reset(6, 3)
    world.take(4)
    assert world.make().places(PAIR, 4) == ((4, "restored"),)


@pytest.mark.parametrize("table", ["lineages", "gaps"])
def test_where_the_record_begins_is_told_though_the_disk_refused_at_first(
    world: World, table: str
) -> None:
    world.intake.incarnation = "x"
    world.state._connection.execute(
        f"CREATE TEMP TRIGGER refuses BEFORE INSERT ON {table}"
        " BEGIN SELECT RAISE(ABORT, 'the disk refuses'); END"
    )
    with pytest.raises(LogError, match="the disk refuses"):
        world.position(4)
    world.state._connection.execute("DROP TRIGGER refuses")
    world.position(4)
    assert [(gap.after, gap.upto, gap.cause) for _, gap in world.state.gaps] == [
        (0, 4, Cause.RECORD)
    ]
    assert world.log.floor(*PAIR) == 4


def test_what_was_passed_over_is_noted_once_however_often_the_disk_refuses(world: World) -> None:
    """Or the widest of all would keep the later ones out."""
    world.state._connection.execute(
        "CREATE TEMP TRIGGER refuses BEFORE INSERT ON gaps"
        " BEGIN SELECT RAISE(ABORT, 'the disk refuses'); END"
    )
    for _ in range(relay_module.MAX_HOLES):
        with pytest.raises(LogError, match="the disk refuses"):
            world.position(40)
    world.state._connection.execute("DROP TRIGGER refuses")
    world.position(40)
    world.take(50)
    assert world.intake.passed_over(PAIR, 45) == 40


def test_rows_that_came_after_a_refused_position_stay(world: World) -> None:
    """The connection may end before the position is said again."""
    world.intake.incarnation = "x"
    world.state._connection.execute(
        "CREATE TEMP TRIGGER refuses BEFORE INSERT ON gaps"
        " BEGIN SELECT RAISE(ABORT, 'the disk refuses'); END"
    )
    with pytest.raises(LogError, match="the disk refuses"):
        world.position(4)
    world.state._connection.execute("DROP TRIGGER refuses")
    world.intake.run(*PAIR, [5, 6], [b"[5]", b"[6]"])
    world.clock.advance(0)
    world.position(9)
    assert world.rows() == [(5, b"[5]"), (6, b"[6]")]
    assert list(world.state.gaps) == []


def test_a_pair_that_was_met_at_0_is_known_after_a_restart(world: World) -> None:
    world.position(0)
    world.log = MemoryLog(world.registry, lambda: 0)
    assert world.make().positions() == {PAIR: 0}
    assert world.log.pairs() == [PAIR]


def test_tokens_that_no_writer_can_have_are_left_out(world: World) -> None:
    poison = 2**63 - 1
    world.position(poison)
    assert world.log.pairs() == []
    world.position(4)
    world.take(poison)
    world.reset(4, poison)
    world.position(poison)
    world.reset(4, 0)
    world.take(1)
    world.position(poison)
    assert world.log.position(*PAIR) == 6
    assert world.intake.newest() == {"typing": 1}
    assert world.intake.gap_status()["gaps"] == 0


def test_nothing_pushes_tokens_to_the_end_of_their_range(world: World) -> None:
    """However often: what a writer may be ahead is used up, and comes back as it could write."""
    world.position(4)
    for _ in range(10_000):
        world.reset(None, 0)
        world.intake.take(PAIR, 2**40, [b"[0]"])
    world.clock.advance(0)
    assert world.log.position(*PAIR) < 2**42
    world.reset(None, 0)
    world.take(1)
    assert world.rows()[-1][1] == b"[1]"
    known = world.intake.positions()[PAIR]
    assert not world.intake.believes(PAIR, known + 2**30)
    assert world.intake.believes(PAIR, known + 2**20)
    world.clock.advance(2**10)
    assert world.intake.believes(PAIR, known + 2**30)
    world.clock.advance(2**30)
    assert not world.intake.believes(PAIR, known + 2**40 + 1)


def test_only_what_had_no_row_was_passed_over(world: World) -> None:
    world.position(4)
    world.take(5, 6, 20, 40)
    passed = {token: world.intake.passed_over(PAIR, token) for token in (3, 4, 5, 6, 7, 20, 21, 41)}
    assert passed == {3: 0, 4: None, 5: None, 6: None, 7: 6, 20: None, 21: 20, 41: 40}
    assert world.intake.passed_over(PAIR, 6, position=True) is None
    world.take(*range(42, 80, 2))
    assert world.intake.passed_over(PAIR, 7) == 6
    assert len(world.intake._holes[PAIR]) <= relay_module.MAX_HOLES
    world.reset(78, 6)
    assert world.intake.passed_over(PAIR, 5) is None
    assert world.intake.passed_over(PAIR, 7) == 6
    other = ("receipts", "w1")
    world.position(4, other)
    world.take(20, pair=other)
    assert world.intake.passed_over(other, 4, position=True) == 4
    assert world.intake.passed_over(other, 19, position=True) is None
    world.position(4, ("backfill", "w1"))
    world.take(9, pair=("backfill", "w1"))
    assert world.intake.passed_over(("backfill", "w1"), 6) is None


def test_a_run_is_taken_as_its_batches_one_by_one(world: World) -> None:
    world.position(4)
    assert world.intake.run(*PAIR, [5, 7], [b"[5]", b"[7]"]) is None
    world.clock.advance(0)
    assert world.rows() == [(5, b"[5]"), (7, b"[7]")]
    assert world.intake.passed_over(PAIR, 6) == 5
    assert world.intake.passed_over(PAIR, 5) is None
    world.reset(7, 2)  # it began anew: from here on ours are ahead
    assert world.intake.run(*PAIR, [3, 4], [b"[3]", b"[4]"]) is None
    world.clock.advance(0)
    assert world.rows()[-2:] == [(9, b"[3]"), (10, b"[4]")]
    assert world.intake.known(PAIR) == 4


def test_a_run_of_a_new_pair_or_with_repeated_tokens_is_taken_batch_by_batch(world: World) -> None:
    other = ("events", "w1")
    done = world.intake.run(*other, [5, 6], [b"[5]", b"[6]"])
    assert done is not None
    world.clock.advance(0)
    assert done.called
    assert world.rows(other) == [(5, b"[5]"), (6, b"[6]")]
    again = world.intake.run(*other, [6, 7], [b"[6]", b"[7]"])
    for _ in range(4):
        world.clock.advance(0)
    assert again is not None
    assert again.called
    assert [row for _, row in world.rows(other)] == [b"[5]", b"[6]", b"[6]", b"[7]"]
