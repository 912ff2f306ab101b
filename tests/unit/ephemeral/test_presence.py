"""Presence over time: clients, processes, remote servers, the log, lost timers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from tcprepl import metrics
from tcprepl.background import TURN_BUDGET_S
from tcprepl.ephemeral import presence
from tcprepl.ephemeral.presence import PresenceWriter
from tcprepl.ephemeral.presence_states import BUSY, OFFLINE, ONLINE, UNAVAILABLE
from tcprepl.ephemeral.wheel_timer import WheelTimer
from tcprepl.errors import LogUnavailable, TokenTooOld
from tcprepl.streams.rows import PresenceRow
from tests.ephemeral_world import (
    ALICE,
    BOB,
    CARL,
    ELSE,
    SERVER,
    Publications,
    WorkingClock,
    advance_to,
)

#: The tests begin here, not at 0: somebody never heard of is long silent.
START = 10_000_000_000
MINUTE = 60_000


class World:
    """A writer with its ports, and a clock that shows times relative to `START`."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.clock.rightNow = START / 1000
        self.published = Publications()
        self.sent: list[tuple[str, str, list[str]]] = []
        options.setdefault("hosts_of_user", lambda _: [SERVER, ELSE])
        self.writer = PresenceWriter(
            self.clock, self.published, SERVER, send_presence=self.send, **options
        )
        self.writer.start()

    def send(self, row: PresenceRow, destinations: Any, /) -> None:
        self.sent.append((row.user_id, row.state, list(destinations)))

    def at(self, ms: int) -> World:
        advance_to(self.clock, START + ms)
        return self

    def state(self, user_id: str = ALICE) -> str:
        row = self.writer.get_state(user_id)
        return "unknown" if row is None else row.state

    def history(self, user_id: str = ALICE) -> list[str]:
        """The states of a user's rows, as published."""
        return [row.state for row in self.published.presence(user_id)]

    def sync(self, syncing: bool, user_id: str = ALICE, process: str = "p", **more: Any) -> None:
        now = round(self.clock.seconds() * 1000)
        self.writer.user_syncing(process, user_id, syncing, more.pop("when", now), **more)

    def push(self, **fields: Any) -> int:
        push = {"user_id": CARL, "presence": ONLINE, **fields}
        return self.writer.received_edu(ELSE, {"push": [push]})


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(autouse=True)
def stop_worlds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stop every writer that a test started: none leaves a timer or a metric behind."""
    writers: list[tuple[Clock, PresenceWriter]] = []
    start = PresenceWriter.start

    def remember(self: PresenceWriter) -> None:
        writers.append((self._clock, self))
        start(self)

    monkeypatch.setattr(PresenceWriter, "start", remember)
    yield
    for clock, writer in writers:
        assert writer.stop().called
        assert writer.stop().called
        assert clock.getDelayedCalls() == []
    assert metrics.PRESENCE_USERS.samples() == {}


# -- Clients --------------------------------------------------------------------------------


def test_client_sets_state_and_message(world: World) -> None:
    world.writer.set_state(ALICE, ONLINE, "here")
    (row,) = world.published.presence(ALICE)
    assert row == PresenceRow(ALICE, ONLINE, START, START, START, "here", True)
    world.writer.set_state(ALICE, BUSY)
    row = world.published.presence(ALICE)[1]
    assert (row.state, row.status_msg, row.currently_active) == (BUSY, None, False)
    assert world.writer.states() == {ALICE: row}
    assert world.writer.get_state(BOB) is None


def test_who_says_so_goes_offline_at_once(world: World) -> None:
    world.writer.set_state(ALICE, ONLINE)
    world.writer.set_state(ALICE, OFFLINE)
    assert world.history() == [ONLINE, OFFLINE]
    assert world.writer.states() == {}


def test_saying_the_same_again_is_no_news(world: World) -> None:
    world.writer.set_state(ALICE, ONLINE)
    world.at(1_000).writer.set_state(ALICE, ONLINE)
    assert world.history() == [ONLINE]


@pytest.mark.parametrize(
    ("user_id", "state", "status_msg", "complaint"),
    [
        (CARL, ONLINE, None, "expected a user of here"),
        (ALICE, "asleep", None, "expected one of"),
        (ALICE, ONLINE, "x" * 4_097, "at most 4096"),
    ],
)
def test_bad_state_is_refused(
    world: World, user_id: str, state: str, status_msg: str | None, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        world.writer.set_state(user_id, state, status_msg)
    assert world.published.rows == []


@pytest.mark.parametrize("state", [ONLINE, UNAVAILABLE])
def test_without_a_sync_silence_means_offline(world: World, state: str) -> None:
    world.writer.set_state(ALICE, state)
    world.at(34_999)
    assert world.state() == state
    world.at(35_000)
    assert world.history() == [state, OFFLINE]


def test_busy_lasts_an_hour(world: World) -> None:
    world.writer.set_state(ALICE, BUSY)
    assert world.at(60 * MINUTE).state() == BUSY
    assert world.at(60 * MINUTE + 5_000).state() == OFFLINE


def test_activity_brings_back_from_idling(world: World) -> None:
    world.sync(True)
    world.at(MINUTE).writer.process_alive("p")
    world.at(5 * MINUTE + 5_000)
    assert world.state() == UNAVAILABLE
    world.writer.user_active(ALICE)
    assert world.state() == ONLINE
    assert world.history() == [ONLINE, ONLINE, UNAVAILABLE, ONLINE]
    active = [row.currently_active for row in world.published.presence(ALICE)]
    assert active == [True, False, False, True]


def test_activity_of_who_is_active_is_not_published_but_flushed(world: World) -> None:
    world.writer.set_state(ALICE, ONLINE)
    world.at(20_000).writer.user_active(ALICE)
    world.at(20_001).writer.user_active(ALICE)
    assert len(world.published.rows) == 1
    world.sync(True)
    world.at(MINUTE)
    assert [row.last_active_ts - START for row in world.published.presence(ALICE)] == [0, 20_001]


def test_activity_does_not_bring_online(world: World) -> None:
    world.writer.user_active(ALICE)
    assert world.history() == [OFFLINE]
    assert world.state() == OFFLINE


# -- Processes ------------------------------------------------------------------------------


def test_sync_brings_online_and_keeps_online(world: World) -> None:
    world.sync(True)
    assert world.history() == [ONLINE]
    world.at(4 * MINUTE)
    assert world.state() == ONLINE
    world.sync(False)
    world.at(4 * MINUTE + 34_999)
    assert world.state() == ONLINE
    world.at(4 * MINUTE + 35_000)
    assert world.state() == OFFLINE


def test_end_of_an_unknown_sync_is_nothing(world: World) -> None:
    world.sync(False)
    assert world.published.rows == []
    assert world.state() == "unknown"
    assert not world.writer._syncs.processes()


def test_sync_in_the_future_is_taken_for_now(world: World) -> None:
    world.sync(True, when=START + 10**9)
    world.sync(False, when=START + 10**9)
    world.at(35_000)
    assert world.state() == OFFLINE


def test_late_report_does_not_turn_time_back(world: World) -> None:
    world.writer.set_state(ALICE, ONLINE)
    world.sync(True, when=START - 10**6)
    row = world.writer.get_state(ALICE)
    assert row is not None
    assert row.last_user_sync_ts == START


def test_end_of_a_sync_has_the_time_at_which_it_came(world: World) -> None:
    world.sync(True)
    world.at(20_000)
    world.sync(False, when=START + 9_000)
    world.at(39_999)
    assert world.state() == ONLINE
    world.at(40_000)
    assert world.state() == OFFLINE


def test_where_devices_are_told_apart_a_sync_only_keeps(world: World) -> None:
    world.sync(True, device_id="PHONE")
    assert world.state() == "unknown"
    world.writer.set_state(ALICE, ONLINE)
    assert world.at(2 * MINUTE).state() == ONLINE
    world.sync(False, device_id="PHONE")
    assert world.at(3 * MINUTE).state() == OFFLINE


def test_cleared_process_ends_its_syncs_now(world: World) -> None:
    world.sync(True)
    world.sync(True, BOB)
    world.sync(True, BOB, process="q")
    world.at(2 * MINUTE).writer.clear_process("p")
    world.writer.clear_process("p")
    world.at(2 * MINUTE + 34_999)
    assert (world.state(), world.state(BOB)) == (ONLINE, ONLINE)
    world.at(2 * MINUTE + 35_000)
    assert (world.state(), world.state(BOB)) == (OFFLINE, ONLINE)


def test_silent_process_is_forgotten_and_its_users_with_it(world: World) -> None:
    world.sync(True)
    world.at(5 * MINUTE)
    assert world.state() == ONLINE
    world.at(5 * MINUTE + 5_000)
    assert world.state() == OFFLINE


@pytest.mark.parametrize("how", ["report", "keep-alive"])
def test_process_that_is_heard_of_lives(world: World, how: str) -> None:
    world.sync(True)
    for minute in range(4, 21, 4):
        world.at(minute * MINUTE)
        if how == "report":
            world.sync(True)
        else:
            world.writer.process_alive("p")
    assert world.at(24 * MINUTE).state() == UNAVAILABLE
    assert world.at(30 * MINUTE).state() == OFFLINE


@pytest.mark.parametrize(
    ("process", "user_id"),
    [("p", CARL), ("p", "alice"), ("p" * 256, ALICE), ("p", f"@{'a' * 256}:{SERVER}")],
)
def test_process_speaks_of_our_users_only(world: World, process: str, user_id: str) -> None:
    world.sync(True, user_id, process=process)
    world.writer.user_active(CARL)
    assert world.published.rows == []
    assert len(world.writer._syncs) == 0


@pytest.mark.parametrize("bound", ["MAX_USERS", "MAX_PROCESSES", "MAX_SYNCS"])
def test_processes_cannot_fill_the_memory(
    world: World, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(presence, bound, 1)
    world.sync(True)
    world.sync(True, BOB, process="q")
    assert world.state() == ONLINE
    assert world.state(BOB) == "unknown"
    world.sync(False)
    assert len(world.writer._syncs) == 0


def test_keep_alive_of_an_unknown_process_is_nothing(world: World) -> None:
    world.writer.process_alive("who")
    assert not world.writer._syncs.processes()


# -- Federation -----------------------------------------------------------------------------


def test_remote_servers_hear_of_news_and_of_presence_that_lasts(world: World) -> None:
    world.sync(True)
    assert world.sent == [(ALICE, ONLINE, [ELSE])]
    world.at(6 * MINUTE)
    assert [state for _, state, _ in world.sent] == [ONLINE, ONLINE, OFFLINE]


def test_pings_go_out_every_25_minutes(world: World) -> None:
    world.writer.set_state(ALICE, BUSY)
    world.sync(True)
    world.sent.clear()
    for minute in range(1, 60):
        world.at(minute * MINUTE).writer.process_alive("p")
    assert world.sent == [(ALICE, BUSY, [ELSE])] * 2
    asked = [row for stream, _, row in world.published.rows if stream == "presence_federation"]
    assert [(row.destination, row.user_id) for row in asked] == [(ELSE, ALICE)] * 2


def test_ping_of_many_is_one_batch() -> None:
    world = World(hosts_of_user=lambda _: [ELSE, "third.example"])
    for user_id in (ALICE, BOB):
        world.writer.set_state(user_id, BUSY)
    world.at(26 * MINUTE)
    asked = [(t, row) for stream, t, row in world.published.rows if stream != "presence"]
    assert len(asked) == 4
    assert len({token for token, _ in asked}) == 1


def test_users_whom_nobody_shares_a_room_with_are_not_sent() -> None:
    world = World(hosts_of_user=lambda _: [SERVER])
    world.writer.set_state(ALICE, BUSY)
    world.at(26 * MINUTE)
    assert world.sent == []
    assert all(stream == "presence" for stream, _, _ in world.published.rows)


def test_remote_user_is_what_its_server_says(world: World) -> None:
    assert world.push(last_active_ago=5_000, status_msg="far", currently_active=True) == 1
    (row,) = world.published.presence(CARL)
    assert row == PresenceRow(CARL, ONLINE, START - 5_000, START, 0, "far", True)
    world.push(presence=UNAVAILABLE, currently_active=True)
    row = world.published.presence(CARL)[1]
    assert (row.status_msg, row.currently_active) == (None, False)
    assert world.sent == []


@pytest.mark.parametrize(("ms", "state"), [(1_804_999, ONLINE), (1_805_000, OFFLINE)])
def test_remote_user_lasts_half_an_hour(world: World, ms: int, state: str) -> None:
    world.push()
    world.at(ms)
    assert world.state(CARL) == state


def test_remote_ping_keeps_a_remote_user(world: World) -> None:
    world.push()
    world.at(25 * MINUTE)
    world.push()
    assert world.at(50 * MINUTE).state(CARL) == ONLINE


@pytest.mark.parametrize(
    "fields",
    [
        {"user_id": ALICE},
        {"user_id": "@eve:third.example"},
        {"user_id": 5},
        {"user_id": f"@{'x' * 300}:{ELSE}"},
        {"presence": None},
        {"presence": "asleep"},
        {"presence": ["online"]},
    ],
)
def test_bad_push_is_left_out(world: World, fields: dict[str, Any]) -> None:
    pushes: list[object] = [
        {"user_id": CARL, "presence": ONLINE, **fields},
        "nonsense",
        {"user_id": CARL, "presence": UNAVAILABLE},
    ]
    assert world.writer.received_edu(ELSE, {"push": pushes}) == 1
    assert world.history(CARL) == [UNAVAILABLE]


@pytest.mark.parametrize("odd", [{"last_active_ago": -5}, {"last_active_ago": "x"}])
def test_odd_times_are_passed_over(world: World, odd: dict[str, Any]) -> None:
    assert world.push(**odd) == 1
    assert world.published.presence(CARL)[0].last_active_ts == 0
    world.push(last_active_ago=10**15, status_msg="x" * 5_000)
    row = world.writer.get_state(CARL)
    assert row is not None
    assert (row.last_active_ts, row.status_msg) == (0, None)


def test_edu_without_a_list_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="push: NoneType; expected a list"):
        world.writer.received_edu(ELSE, {})


def test_nobody_speaks_for_us(world: World) -> None:
    push = {"user_id": ALICE, "presence": ONLINE}
    assert world.writer.received_edu(SERVER, {"push": [push]}) == 0


def test_remote_servers_cannot_fill_the_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "MAX_USERS", 1)
    assert world.push() == 1
    assert world.push(user_id="@dora:elsewhere.example") == 0
    assert world.push(presence=UNAVAILABLE) == 1


# -- The log, memory, lost timers -----------------------------------------------------------


def test_updates_have_the_tokens_of_the_log(world: World) -> None:
    world.writer.set_state(ALICE, ONLINE)
    world.published.somebody_else_publishes(3)
    world.writer.set_state(BOB, ONLINE)
    assert [entry.token for entry in world.writer.updates(0).entries] == [1, 5]
    assert [entry.key for entry in world.writer.updates(1).entries] == [BOB]
    assert world.writer.newest == 5
    with pytest.raises(TokenTooOld):
        world.writer.updates(-1)


def test_row_that_the_log_refuses_is_published_later(world: World) -> None:
    world.published.refusing = True
    with structlog.testing.capture_logs() as logs:
        world.writer.set_state(ALICE, ONLINE)
        world.at(5_000)
    assert [entry["event"] for entry in logs] == ["background.failed"] * 2
    world.published.refusing = False
    world.at(15_000)
    assert world.history() == [ONLINE]


@pytest.mark.parametrize("error", [LogUnavailable("full"), ZeroDivisionError("a bug")])
def test_what_the_disk_refuses_to_queue_for_others_is_queued_later(
    world: World, error: Exception
) -> None:
    """As it is then; a bug would be met again."""
    refusals = [error, error]

    def send(row: PresenceRow, destinations: Any, /) -> Deferred[None]:
        if refusals:
            return fail(refusals.pop())
        world.send(row, destinations)
        return succeed(None)

    world.writer._send_presence = send
    with structlog.testing.capture_logs() as logs:
        world.writer.set_state(ALICE, ONLINE, "here")
        world.at(5_000)
    retried = isinstance(error, LogUnavailable)
    assert [entry["event"] for entry in logs] == ["background.failed"] * (1 + retried)
    refusals.clear()
    for ms in (15_000, 25_000):
        world.at(ms)
        assert world.sent == [(ALICE, ONLINE, [ELSE])] * retried


def test_what_is_told_others_in_the_meantime_is_not_told_again(world: World) -> None:
    world.writer._send_presence = lambda *_: fail(LogUnavailable("full"))
    with structlog.testing.capture_logs():
        world.writer.set_state(ALICE, ONLINE)
    world.writer._send_presence = world.send
    world.writer.set_state(ALICE, OFFLINE)
    world.at(15_000)
    assert world.sent == [(ALICE, OFFLINE, [ELSE])]


class ForgetfulWheel(WheelTimer[str]):
    """A wheel that loses everything."""

    def insert(self, obj: str, then_ms: int) -> None:
        """Lose it."""


def test_without_timers_the_sweep_takes_off() -> None:
    world = World(wheel=ForgetfulWheel())
    world.writer.set_state(ALICE, ONLINE)
    with structlog.testing.capture_logs() as logs:
        world.at(MINUTE)
    assert world.state() == OFFLINE
    assert logs[0]["event"] == "presence.timers.lost"


def test_timers_do_not_pile_up(world: World) -> None:
    for second in range(0, 3_600, 10):
        world.at(second * 1_000)
        world.sync(True)
        world.writer.user_active(ALICE)
    assert len(world.writer._wheel) <= 3


def test_who_was_offline_for_a_day_is_forgotten(world: World) -> None:
    world.writer.set_state(ALICE, ONLINE)
    world.at(86_400_000)
    assert world.state() == OFFLINE
    world.at(86_400_000 + 3 * MINUTE)
    assert world.state() == "unknown"
    assert metrics.PRESENCE_USERS.samples()[(OFFLINE,)] == 0


def test_metrics_follow_the_writer(world: World) -> None:
    world.writer.set_state(ALICE, ONLINE)
    world.writer.set_state(BOB, ONLINE)
    world.writer.set_state(BOB, BUSY)
    text = metrics.render().decode()
    assert 'tcprepl_presence_users{state="online"} 1.0' in text
    assert 'tcprepl_presence_users{state="busy"} 1.0' in text
    assert 'tcprepl_timers_pending{kind="presence"}' in text


class TestManyAtOnce:
    """What is due for many users in one moment is done over several turns of the reactor."""

    USERS = 30_000

    def world(self) -> tuple[WorkingClock, PresenceWriter]:
        clock = WorkingClock()
        clock.rightNow = START / 1000
        return clock, PresenceWriter(clock, Publications(), SERVER)

    def test_a_process_ends_with_the_syncs_of_many(self) -> None:
        clock, writer = self.world()
        for number in range(self.USERS):
            writer.user_syncing("p", f"@u{number}:{SERVER}", True, 0)
        writer.clear_process("p")
        # Meanwhile the process is back, and holds one of those syncs again.
        again = f"@u{self.USERS - 1}:{SERVER}"
        writer.user_syncing("p", again, True, 0)
        clock.advance(0)
        assert clock.calls_done > 3
        assert clock.longest_s < 2 * TURN_BUDGET_S
        assert [user for user in writer.states() if writer._syncs.is_syncing(user)] == [again]
        assert len(writer._syncs) == 1

    def test_many_timers_come_due(self) -> None:
        clock, writer = self.world()
        for number in range(self.USERS):
            writer.set_state(f"@u{number}:{SERVER}", "online")
        writer.start()
        clock.advance(3_600)
        assert not writer.states()
        assert clock.calls_done > 3
        assert clock.longest_s < 2 * TURN_BUDGET_S
        writer.stop()


def test_a_list_is_gone_through_with_each_user_once_and_what_comes_late_again() -> None:
    """Who comes again from something that changes meanwhile has to be looked at again."""
    users = [f"@u{number % 120}:{SERVER}" for number in range(1_000)]
    steps = list(presence.in_steps(users))
    assert [user for step in steps for user in step] == users[:120]
    assert max(map(len, steps)) <= presence.USERS_A_STEP
    assert [user for step in presence.in_steps(iter(users)) for user in step] == users
