"""Typing: every way to start and stop, every boundary at t-1, t, t+1, and lost timers."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tcprepl import metrics
from tcprepl.background import TURN_BUDGET_S
from tcprepl.ephemeral import typing_notifications as typing
from tcprepl.ephemeral.board import Entry
from tcprepl.ephemeral.typing_notifications import TypingFollower, TypingWriter
from tcprepl.ephemeral.wheel_timer import WheelTimer
from tcprepl.errors import TokenTooOld
from tcprepl.streams.rows import TypingRow
from tests.ephemeral_world import (
    ALICE,
    BOB,
    CARL,
    ELSE,
    ROOM,
    SERVER,
    Edus,
    Publications,
    WorkingClock,
    advance_to,
    both_hosts,
)

OTHER = "!other:here.example"


class World:
    """A writer with its ports and a clock at 0."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.published = Publications(options.pop("position", 0))
        self.edus = Edus()
        options.setdefault("hosts_in_room", both_hosts)
        self.writer = TypingWriter(
            self.clock,
            self.published,
            SERVER,
            send_edu=self.edus,
            position=self.published.position,
            **options,
        )
        self.writer.start()

    def at(self, ms: int) -> World:
        advance_to(self.clock, ms)
        return self

    def remote(self, typing: bool = True, **changes: Any) -> bool:
        content = {"room_id": ROOM, "user_id": CARL, "typing": typing, **changes}
        return self.writer.received_edu(ELSE, content)


@pytest.fixture
def world() -> World:
    return World()


def test_start_and_stop_publish_the_whole_list(world: World) -> None:
    world.writer.started_typing(ROOM, ALICE, 30_000)
    world.writer.started_typing(ROOM, BOB, 30_000)
    world.writer.stopped_typing(ROOM, ALICE)
    world.writer.stopped_typing(ROOM, BOB)
    assert world.published.typing(ROOM) == [
        (1, [ALICE]),
        (2, [ALICE, BOB]),
        (3, [BOB]),
        (4, []),
    ]
    assert world.writer.users_typing(ROOM) == []
    assert world.writer.newest == 4


def test_start_again_extends_without_a_row(world: World) -> None:
    world.writer.started_typing(ROOM, ALICE, 30_000)
    world.at(20_000).writer.started_typing(ROOM, ALICE, 30_000)
    world.at(49_999)
    assert world.writer.users_typing(ROOM) == [ALICE]
    world.at(60_000)
    assert world.published.typing(ROOM) == [(1, [ALICE]), (2, [])]


def test_start_again_may_shorten(world: World) -> None:
    world.writer.started_typing(ROOM, ALICE, 120_000)
    world.writer.started_typing(ROOM, ALICE, 1_000)
    world.at(10_000)
    assert world.writer.users_typing(ROOM) == []


@pytest.mark.parametrize("act", ["stop", "leave"])
def test_stop_of_who_does_not_type_is_no_news(world: World, act: str) -> None:
    if act == "stop":
        world.writer.stopped_typing(ROOM, ALICE)
    else:
        world.writer.user_left_room(ALICE, ROOM)
    world.writer.started_typing(ROOM, BOB)
    world.writer.stopped_typing(ROOM, ALICE)
    assert world.published.typing() == [(1, [BOB])]


def test_user_who_leaves_stops(world: World) -> None:
    world.writer.started_typing(ROOM, ALICE)
    world.remote()
    world.edus.sent.clear()
    world.writer.user_left_room(ALICE, ROOM)
    world.writer.user_left_room(CARL, ROOM)
    assert world.published.typing(ROOM)[-1] == (4, [])
    assert world.edus.take_typing() == [False]


@pytest.mark.parametrize(
    ("timeout_ms", "last_ms", "first_ms"),
    [
        (29_999, 29_999, 30_000),
        (30_000, 34_999, 35_000),
        (30_001, 34_999, 35_000),
        (0, 4_999, 5_000),
        (120_000, 124_999, 125_000),
        (120_001, 124_999, 125_000),
        (10**9, 124_999, 125_000),
    ],
)
def test_time_takes_off_in_the_next_bucket(
    world: World, timeout_ms: int, last_ms: int, first_ms: int
) -> None:
    world.writer.started_typing(ROOM, ALICE, timeout_ms)
    world.at(last_ms)
    assert world.writer.users_typing(ROOM) == [ALICE]
    world.at(first_ms)
    assert world.writer.users_typing(ROOM) == []
    assert world.published.typing(ROOM)[-1] == (2, [])


@pytest.mark.parametrize(("after_ms", "typing_then"), [(-1, True), (0, False), (1, False)])
def test_check_at_the_very_moment_takes_off(world: World, after_ms: int, typing_then: bool) -> None:
    """The comparison is ``until <= now``: a strict one would leave the user for ever."""
    world.writer.started_typing(ROOM, ALICE, 30_000)
    world.writer._check_typist(ROOM, ALICE, 30_000 + after_ms)
    assert (world.writer.users_typing(ROOM) == [ALICE]) == typing_then


def test_default_is_half_a_minute(world: World) -> None:
    world.writer.started_typing(ROOM, ALICE)
    assert world.at(30_000).writer.users_typing(ROOM) == [ALICE]
    assert world.at(35_000).writer.users_typing(ROOM) == []


def test_only_our_users_are_taken_from_clients(world: World) -> None:
    for call in (world.writer.started_typing, world.writer.stopped_typing):
        with pytest.raises(ValueError, match=r"expected a user of here\.example"):
            call(ROOM, CARL)
    with pytest.raises(ValueError, match="expected a user"):
        world.writer.started_typing(ROOM, "alice:here.example")
    with pytest.raises(ValueError, match="expected 0 or more"):
        world.writer.started_typing(ROOM, ALICE, -1)
    assert world.published.rows == []


# -- Federation -----------------------------------------------------------------------------


def test_remote_servers_hear_of_start_and_stop(world: World) -> None:
    world.writer.started_typing(ROOM, ALICE)
    world.writer.stopped_typing(ROOM, ALICE)
    content = {"room_id": ROOM, "user_id": ALICE}
    assert world.edus.sent == [
        ([ELSE], "m.typing", {**content, "typing": True}, (ROOM, ALICE)),
        ([ELSE], "m.typing", {**content, "typing": False}, (ROOM, ALICE)),
    ]


def test_room_of_our_own_sends_nothing() -> None:
    world = World(hosts_in_room=lambda _: [SERVER])
    world.writer.started_typing(ROOM, ALICE)
    assert world.edus.sent == []


@pytest.mark.parametrize(("after_ms", "pings"), [(-1, 0), (0, 1), (1, 1)])
def test_ping_is_due_at_forty_seconds(world: World, after_ms: int, pings: int) -> None:
    """The comparison is ``last poke + 40 s <= now``."""
    world.writer.started_typing(ROOM, ALICE, 120_000)
    world.edus.sent.clear()
    world.writer._check_typist(ROOM, ALICE, 40_000 + after_ms)
    assert world.edus.take_typing() == [True] * pings


def test_pings_go_on_for_as_long_as_somebody_types(world: World) -> None:
    world.writer.started_typing(ROOM, ALICE, 120_000)
    assert world.edus.take_typing() == [True]
    assert world.at(44_999).edus.take_typing() == []
    assert world.at(45_000).edus.take_typing() == [True]
    assert world.at(89_999).edus.take_typing() == []
    assert world.at(90_000).edus.take_typing() == [True]
    assert world.at(125_000).edus.take_typing() == [False]
    assert world.at(900_000).edus.take_typing() == []


def test_no_federation_no_pings() -> None:
    clock, published = Clock(), Publications()
    writer = TypingWriter(clock, published, SERVER)
    writer.start()
    writer.started_typing(ROOM, ALICE, 120_000)
    advance_to(clock, 60_000)
    assert published.typing() == [(1, [ALICE])]


def test_remote_user_types_for_a_minute(world: World) -> None:
    assert world.remote()
    assert world.published.typing(ROOM) == [(1, [CARL])]
    assert world.at(60_000).writer.users_typing(ROOM) == [CARL]
    world.at(65_000)
    assert world.published.typing(ROOM) == [(1, [CARL]), (2, [])]
    assert world.edus.sent == []


def test_remote_edu_always_makes_a_row(world: World) -> None:
    world.remote()
    world.remote()
    world.remote(False)
    world.remote(False)
    assert world.published.typing(ROOM) == [(1, [CARL]), (2, [CARL]), (3, []), (4, [])]


@pytest.mark.parametrize(
    ("hosts", "user_id", "counts"),
    [
        ([SERVER, ELSE], CARL, True),
        ([SERVER], CARL, False),
        ([ELSE], CARL, False),
        ([], CARL, False),
        ([SERVER, ELSE], ALICE, False),
        ([SERVER, ELSE], "@eve:third.example", False),
        ([SERVER, ELSE], "carl:elsewhere.example", False),
    ],
)
def test_remote_edu_counts_for_users_of_the_origin_in_common_rooms(
    hosts: list[str], user_id: str, counts: bool
) -> None:
    world = World(hosts_in_room=lambda _: hosts)
    assert world.remote(user_id=user_id) == counts
    assert bool(world.published.rows) == counts


@pytest.mark.parametrize(
    "change",
    [{"typing": 1}, {"typing": None}, {"room_id": 5}, {"room_id": ""}, {"user_id": "@" * 256}],
)
def test_bad_remote_edu_is_refused(world: World, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        world.remote(**change)
    assert world.published.rows == []


def test_remote_server_cannot_fill_a_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typing, "MAX_USERS_PER_ROOM", 2)
    users = [f"@u{number}:elsewhere.example" for number in range(3)]
    assert [world.remote(user_id=user_id) for user_id in users] == [True, True, False]
    assert world.remote(user_id=users[0])
    assert world.remote(False, user_id=users[0])
    assert world.remote(user_id=users[2])


def test_failing_port_costs_the_edu_only() -> None:
    def broken(_: str) -> list[str]:
        raise RuntimeError("no rooms today")

    world = World(hosts_in_room=broken)
    with structlog.testing.capture_logs() as logs:
        world.writer.started_typing(ROOM, ALICE)
    assert [entry["error"] for entry in logs] == ["no rooms today"]
    assert world.published.typing() == [(1, [ALICE])]


# -- Tokens and the log ---------------------------------------------------------------------


def test_changes_while_a_row_is_on_its_way_are_published_together(world: World) -> None:
    world.published.slow = True
    world.writer.started_typing(ROOM, ALICE)
    world.writer.started_typing(ROOM, BOB)
    world.writer.stopped_typing(ROOM, ALICE)
    world.writer.started_typing(OTHER, ALICE)
    assert world.writer.updates(0).entries == []
    world.published.answer_all()
    assert world.published.typing(ROOM) == [(1, [ALICE]), (3, [BOB])]
    assert world.published.typing(OTHER) == [(2, [ALICE])]
    assert [entry.token for entry in world.writer.updates(0).entries] == [2, 3]


def test_change_and_back_while_a_row_is_on_its_way_ends_right(world: World) -> None:
    world.published.slow = True
    world.writer.started_typing(ROOM, ALICE)
    world.writer.stopped_typing(ROOM, ALICE)
    world.writer.started_typing(ROOM, ALICE)
    world.writer.stopped_typing(ROOM, ALICE)
    world.published.answer_all()
    assert world.published.typing(ROOM) == [(1, [ALICE]), (2, [])]


def test_tokens_of_somebody_else_are_passed_over(world: World) -> None:
    world.writer.started_typing(ROOM, ALICE)
    world.published.somebody_else_publishes(5)
    world.writer.started_typing(OTHER, BOB)
    assert [entry.token for entry in world.writer.updates(0).entries] == [1, 7]
    assert world.writer.updates(4).entries == [Entry(7, OTHER, [BOB])]
    assert world.writer.newest == 7


def test_row_that_the_log_refuses_is_published_later(world: World) -> None:
    world.published.refusing = True
    with structlog.testing.capture_logs() as logs:
        world.writer.started_typing(ROOM, ALICE, 120_000)
        world.at(5_000)
    assert [entry["work"] for entry in logs] == ["TypingWriter._publish_room"] * 2
    assert world.writer.users_typing(ROOM) == [ALICE]
    world.published.refusing = False
    world.at(10_000)
    assert world.published.typing(ROOM) == [(1, [ALICE])]
    world.at(20_000)
    assert len(world.published.rows) == 1


def test_refused_row_is_made_up_for_by_the_next_change(world: World) -> None:
    world.published.refusing = True
    with structlog.testing.capture_logs():
        world.writer.started_typing(ROOM, ALICE, 120_000)
    world.published.refusing = False
    world.writer.started_typing(ROOM, BOB, 120_000)
    world.at(20_000)
    assert world.published.typing(ROOM) == [(1, [ALICE, BOB])]


def test_writer_goes_on_from_the_position_of_the_log() -> None:
    world = World(position=1_000)
    assert world.writer.updates(1_000).entries == []
    world.writer.started_typing(ROOM, ALICE)
    assert world.writer.updates(1_000).entries == [Entry(1_001, ROOM, [ALICE])]
    with pytest.raises(TokenTooOld):
        world.writer.updates(999)
    assert world.writer.updates(0, compacted=True).entries == [Entry(1_001, ROOM, [ALICE])]


# -- Timers that get lost -------------------------------------------------------------------


class ForgetfulWheel(WheelTimer[tuple[str, str]]):
    """A wheel that loses what it is told to lose, by the time at which it comes due."""

    def __init__(self, lose: Any) -> None:
        super().__init__()
        self.lose = lose

    def insert(self, obj: tuple[str, str], then_ms: int) -> None:
        if not self.lose(then_ms):
            super().insert(obj, then_ms)


def test_without_its_timer_the_paranoia_timer_takes_off() -> None:
    """Without federation, that is: otherwise the ping's timer would have done it before."""
    clock, published = Clock(), Publications()
    wheel = ForgetfulWheel(lambda then_ms: then_ms == 55_000)
    writer = TypingWriter(clock, published, SERVER, wheel=wheel)
    writer.start()
    writer.started_typing(ROOM, ALICE, 55_000)
    advance_to(clock, 64_999)
    assert writer.users_typing(ROOM) == [ALICE]
    advance_to(clock, 65_000)
    assert writer.users_typing(ROOM) == []


def test_without_any_timer_the_sweep_takes_off() -> None:
    world = World(wheel=ForgetfulWheel(lambda _: True))
    world.writer.started_typing(ROOM, ALICE, 30_000)
    world.remote()
    with structlog.testing.capture_logs() as logs:
        world.at(60_000)
        assert world.writer.users_typing(ROOM) == [CARL]
        world.at(120_000)
    assert world.writer.users_typing(ROOM) == []
    assert {entry["event"] for entry in logs} == {"typing.timer.lost"}


def test_paranoia_timers_do_not_pile_up(world: World) -> None:
    for second in range(0, 3_600, 4):
        world.at(second * 1_000).writer.started_typing(ROOM, ALICE, 30_000)
    assert len(world.writer._wheel) <= 4
    assert world.published.typing() == [(1, [ALICE])]
    world.at(3_700_000)
    assert len(world.writer._wheel) <= 1


def test_failing_check_does_not_stop_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = world.writer._check_typist

    def check_or_fail(room_id: str, user_id: str, now: int) -> None:
        if room_id == ROOM:
            raise RuntimeError("unlucky room")
        check(room_id, user_id, now)

    monkeypatch.setattr(world.writer, "_check_typist", check_or_fail)
    world.writer.started_typing(ROOM, ALICE, 1_000)
    world.writer.started_typing(OTHER, ALICE, 1_000)
    with structlog.testing.capture_logs() as logs:
        world.at(5_000)
    assert [entry["error"] for entry in logs] == ["unlucky room"]
    assert world.writer.typing() == {ROOM: [ALICE]}


# -- Memory, life, metrics ------------------------------------------------------------------


@pytest.mark.parametrize(("ms", "held"), [(659_999, 1), (660_000, 0)])
def test_quiet_room_is_forgotten_after_ten_minutes(world: World, ms: int, held: int) -> None:
    """Rooms are looked at once a minute: this one is seen quiet at 60 s."""
    world.writer.started_typing(ROOM, ALICE, 0)
    world.at(ms)
    assert metrics.TYPING_ROOMS.samples()[()] == held
    assert (world.writer.updates(1, compacted=True).entries == []) == (not held)


def test_reader_of_a_forgotten_room_has_to_begin_anew(world: World) -> None:
    world.writer.started_typing(ROOM, ALICE, 0)
    world.at(700_000)
    with pytest.raises(TokenTooOld):
        world.writer.updates(1)
    assert world.writer.updates(2).entries == []
    assert world.writer.updates(0, compacted=True).entries == []


def test_metrics_follow_the_writer(world: World) -> None:
    world.writer.started_typing(ROOM, ALICE)
    world.writer.started_typing(OTHER, ALICE)
    text = metrics.render().decode()
    assert "tcprepl_typing_users 2.0" in text
    assert "tcprepl_typing_rooms 2.0" in text
    assert 'tcprepl_timers_pending{kind="typing"} 6.0' in text
    before = metrics.EPHEMERAL_CHANGES.samples()[("typing",)]
    world.writer.stopped_typing(ROOM, ALICE)
    assert metrics.EPHEMERAL_CHANGES.samples()[("typing",)] == before + 1


@pytest.fixture(autouse=True)
def stop_worlds(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stop every writer that a test started: none leaves a timer or a metric behind."""
    writers: list[tuple[Clock, TypingWriter]] = []
    start = TypingWriter.start

    def remember(self: TypingWriter) -> None:
        writers.append((self._clock, self))
        start(self)

    monkeypatch.setattr(TypingWriter, "start", remember)
    yield
    for clock, writer in writers:
        assert writer.stop().called
        assert writer.stop().called
        assert clock.getDelayedCalls() == []
    assert metrics.TYPING_USERS.samples() == {}


def test_stop_waits_for_nothing_when_it_never_started() -> None:
    stopped = TypingWriter(Clock(), Publications(), SERVER).stop()
    assert isinstance(stopped, Deferred)
    assert stopped.called


# -- The follower ---------------------------------------------------------------------------


class Follower:
    """A follower fed from what a writer published."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, list[str]]] = []
        self.state = TypingFollower(lambda room, users: self.changes.append((room, list(users))))

    def rows(self, token: int, *rows: tuple[str, list[str]], instance: str = "master") -> None:
        made = [TypingRow(room_id, users) for room_id, users in rows]
        self.state.handle_rows("typing", instance, token, made)

    def reset(self, known: int, token: int, instance: str = "master") -> None:
        self.state.on_reset("typing", instance, known, token)


@pytest.fixture
def follower() -> Follower:
    return Follower()


def test_follower_has_what_the_rows_say(follower: Follower) -> None:
    assert follower.state.users_typing(ROOM) == ()
    follower.rows(1, (ROOM, [ALICE]))
    follower.rows(2, (OTHER, [BOB]), (ROOM, [ALICE, BOB]))
    follower.rows(3, (OTHER, []))
    assert follower.state.typing() == {ROOM: [ALICE, BOB]}
    assert follower.state.users_typing(OTHER) == []
    assert follower.changes == [
        (ROOM, [ALICE]),
        (OTHER, [BOB]),
        (ROOM, [ALICE, BOB]),
        (OTHER, []),
    ]


def test_row_that_changes_nothing_is_no_change(follower: Follower) -> None:
    follower.rows(1, (ROOM, [ALICE]))
    follower.rows(1, (ROOM, [ALICE]))
    follower.rows(2, (ROOM, [ALICE]), (OTHER, []))
    assert follower.changes == [(ROOM, [ALICE])]


def test_reset_forgets_and_rows_rebuild(follower: Follower) -> None:
    follower.rows(5, (ROOM, [ALICE]))
    follower.rows(9, (OTHER, [BOB]))
    follower.reset(known=9, token=0)
    assert follower.state.typing() == {}
    follower.rows(5, (ROOM, [ALICE]))
    follower.rows(7, ("!third:here.example", [BOB]))
    follower.rows(1_001, (OTHER, [ALICE]))
    assert follower.state.typing() == {
        ROOM: [ALICE],
        "!third:here.example": [BOB],
        OTHER: [ALICE],
    }
    assert follower.changes[2:4] == [(ROOM, []), (OTHER, [])]


def test_reader_of_a_follower_begins_anew_after_a_reset(follower: Follower) -> None:
    follower.rows(9, (ROOM, [ALICE]))
    follower.reset(known=9, token=0)
    follower.rows(1_001, (OTHER, [BOB]))
    board = follower.state.board("master")
    with pytest.raises(TokenTooOld):
        board.updates(9)
    assert board.updates(10).entries == [Entry(1_001, OTHER, [BOB])]
    assert board.updates(0, compacted=True).entries == [Entry(1_001, OTHER, [BOB])]


@pytest.mark.parametrize(("token", "kept"), [(4, False), (5, True), (6, True)])
def test_token_that_goes_back_means_a_new_writer(
    follower: Follower, token: int, kept: bool
) -> None:
    follower.rows(5, (ROOM, [ALICE]))
    follower.rows(token, (OTHER, [BOB]))
    assert (ROOM in follower.state.typing()) == kept
    assert follower.state.users_typing(OTHER) == [BOB]


def test_writer_that_restarts_at_one_is_followed(follower: Follower) -> None:
    follower.rows(500, (ROOM, [ALICE]))
    for token in range(1, 4):
        follower.rows(token, (OTHER, [f"@u{token}:x"]))
    assert follower.state.typing() == {OTHER: ["@u3:x"]}


def test_instances_are_kept_apart(follower: Follower) -> None:
    follower.rows(50, (ROOM, [ALICE]), instance="one")
    follower.rows(3, (ROOM, [BOB, ALICE]), (OTHER, [BOB]), instance="two")
    assert follower.state.users_typing(ROOM) == [ALICE, BOB]
    assert follower.state.users_typing("!none:x") == ()
    follower.reset(50, 0, instance="one")
    assert follower.state.typing() == {ROOM: [BOB, ALICE], OTHER: [BOB]}


def test_reset_of_an_unknown_instance_is_harmless(follower: Follower) -> None:
    follower.reset(0, 0)
    assert follower.changes == []
    TypingFollower().handle_rows("typing", "master", 1, [TypingRow(ROOM, [ALICE])])


def test_many_who_stop_at_once_are_dealt_with_over_several_turns() -> None:
    """And all of them are: nobody types any longer, and each room has said so."""
    clock = WorkingClock()
    published = Publications()
    writer = TypingWriter(clock, published, SERVER)
    count = 3_000
    for number in range(count):
        writer.started_typing(f"!r{number}:{SERVER}", f"@u{number}:{SERVER}", 10_000)
    writer.start()
    published.rows.clear()
    clock.advance(20.0)
    assert not writer.user_count
    assert len(published.rows) == count
    assert clock.calls_done > 5
    assert clock.longest_s < 2 * TURN_BUDGET_S
    writer.stop()
