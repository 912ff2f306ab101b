"""Following Synapse over Redis: positions by pair, gaps, pages, commands, rubbish."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs
from twisted.internet.defer import Deferred

from tcprepl import metrics
from tcprepl.errors import CloseReason, ConnectionFailed
from tcprepl.protocol.commands import (
    FederationAckCommand,
    LockReleasedCommand,
    RemoteServerUpCommand,
    RemovePusherCommand,
    UserSyncCommand,
)
from tcprepl.replication.following.catchup import CatchUpPage
from tcprepl.replication.relaying import lines, redis_source
from tcprepl.replication.relaying.intake import RelayIntake, relay_registry
from tcprepl.replication.relaying.redis_source import RedisUpstream
from tcprepl.replication.relaying.state import RelayState
from tcprepl.streams.memory import MemoryLog
from tests.redis_world import FakeRedis
from tests.wire import run_until

RECEIPTS = ("receipts", "w1")


class Archive:
    """What the instances can still tell over HTTP."""

    def __init__(self) -> None:
        self.rows: dict[int, bytes] = {}
        self.asked: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.hold: Deferred[Any] | None = None
        self.floor = 0

    async def fetch(self, stream: str, instance: str, after: int, upto: int) -> CatchUpPage:
        """Return two rows at a time."""
        self.asked.append((stream, instance, after, upto))
        if self.hold is not None:
            await self.hold
        if self.error is not None:
            raise self.error
        missing = (after, self.floor) if after < self.floor else None
        after = max(after, self.floor)
        found = [(token, row) for token, row in sorted(self.rows.items()) if after < token <= upto]
        page = found[:2]
        return CatchUpPage(page, page[-1][0] if page else upto, len(found) > 2, missing)


class World:
    """A relay's first half over a fake Redis."""

    def __init__(self, *, archive: Archive | None = None, **options: Any) -> None:
        self.redis = FakeRedis()
        self.network = self.redis.network
        self.clock = self.network.clock
        self.registry = relay_registry()
        self.log = MemoryLog(self.registry, lambda: 0)
        self.state = RelayState(None)
        self.intake = RelayIntake(self.clock, self.log, self.registry, self.state)
        self.heard: list[Any] = []
        self.upstream = RedisUpstream(
            self.clock,
            self.redis.endpoint(),
            "redis://h:6379",
            self.intake,
            self.registry,
            server_name="example.com",
            catch_up=archive,
            on_command=self.heard.append,
            **options,
        )
        self.upstream.start()
        self.network.settle()

    def say(self, *lines: str | bytes) -> None:
        """Have others publish."""
        self.redis.say(*lines)

    def reconnect(self) -> None:
        """Lose Redis and find it again."""
        self.redis.cut()
        run_until(self.network, lambda: self.upstream.link.up)

    def rows(self, pair: tuple[str, str] = RECEIPTS) -> list[tuple[int, bytes]]:
        """Return what the log holds."""
        page = self.log.read(*pair, self.log.floor(*pair), self.log.position(*pair))
        return list(page.rows())


def test_rows_after_a_position_are_taken() -> None:
    world = World()
    assert world.redis.published == [b"REPLICATE "]
    world.say(
        "POSITION receipts w1 4 4",
        "RDATA receipts w1 batch [1]",
        "RDATA receipts w1 5 [2]",
        "RDATA receipts w1 6 [3]",
    )
    assert world.rows() == [(5, b"[1]"), (5, b"[2]"), (6, b"[3]")]
    assert world.upstream.status().rows == 3
    assert world.upstream.status().up
    assert world.upstream.status().idle_seconds is not None
    samples = metrics.INBOUND_RDATA.samples()
    assert samples["receipts",] >= 3
    done = Deferred.fromCoroutine(world.upstream.stop())
    world.network.settle()
    assert done.called


def test_rows_before_anything_was_heard_prove_only_a_position() -> None:
    world = World()
    # The rest of a batch whose beginning passed before we came.
    world.say("RDATA receipts w1 5 [2]", "RDATA receipts w1 6 [3]")
    assert world.rows() == [(6, b"[3]")]
    assert world.log.floor(*RECEIPTS) == 5
    # The same stream of another instance has to be heard of for itself.
    world.say("RDATA receipts w2 7 [4]", "RDATA receipts w2 8 [5]")
    assert world.rows(("receipts", "w2")) == [(8, b"[5]")]


def test_no_gap_when_positions_agree_after_a_reconnect() -> None:
    world = World()
    world.say("POSITION receipts w1 4 4", "RDATA receipts w1 5 [1]")
    world.reconnect()
    assert world.redis.published.count(b"REPLICATE ") == 2
    world.say("POSITION receipts w1 2 8", "RDATA receipts w1 9 [2]")
    assert world.rows() == [(5, b"[1]"), (9, b"[2]")]
    assert world.upstream.status().gaps == 0
    world.reconnect()
    world.say("RDATA receipts w1 9 [2]")  # repeated: it proves that we are there
    world.say("RDATA receipts w1 10 [3]")
    assert world.rows()[-1] == (10, b"[3]")
    assert world.upstream.status().gaps == 0


@pytest.mark.parametrize("first", ["POSITION receipts w1 8 8", "RDATA receipts w1 8 [8]"])
def test_what_was_missed_is_a_gap_without_http(first: str) -> None:
    world = World()
    world.say("POSITION receipts w1 4 4", "RDATA receipts w1 5 [1]")
    world.reconnect()
    world.say(first, "RDATA receipts w1 9 [2]")
    assert world.rows() == [(5, b"[1]"), (9, b"[2]")]
    status = world.upstream.status()
    assert status.gaps == 1
    assert status.newest_gaps == [
        "receipts of w1: rows in (5, 8] may be missing: the upstream could not tell them"
    ]


@pytest.mark.parametrize("first", ["POSITION receipts w1 8 8", "RDATA receipts w1 8 [8]"])
def test_what_was_missed_is_fetched_in_pages(first: str) -> None:
    archive = Archive()
    world = World(archive=archive)
    world.say("POSITION receipts w1 4 4", "RDATA receipts w1 5 [5]")
    assert archive.asked == []
    world.reconnect()
    archive.rows = {token: b"[%d]" % token for token in range(1, 10)}
    world.say(first, "RDATA receipts w1 9 [9]")
    assert [token for token, _ in world.rows()] == [5, 6, 7, 8, 9]
    assert archive.asked == [("receipts", "w1", 5, 8), ("receipts", "w1", 7, 8)]
    assert world.upstream.status().gaps == 0


def test_what_the_writer_no_longer_holds_is_a_gap_before_the_rows_after_it() -> None:
    archive = Archive()
    world = World(archive=archive)
    world.say("POSITION receipts w1 4 4")
    world.reconnect()
    archive.rows = {token: b"[%d]" % token for token in range(1, 10)}
    archive.floor = 7
    world.say("POSITION receipts w1 9 9")
    assert [token for token, _ in world.rows()] == [8, 9]
    assert world.upstream.status().newest_gaps == [
        "receipts of w1: rows in (4, 7] may be missing: the upstream could not tell them"
    ]


def test_a_page_that_takes_its_time_holds_up_no_other_pair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lines, "MAX_WAITING", 2)
    archive = Archive()
    world = World(archive=archive)
    world.say("POSITION receipts w1 4 4", "POSITION device_lists master 1 1")
    world.reconnect()
    archive.hold = Deferred()
    archive.rows = {5: b"[5]"}
    world.say("POSITION receipts w1 5 5", "POSITION device_lists master 1 1")
    world.say(
        "RDATA receipts w1 6 [6]", "RDATA device_lists master 2 [2]", "RDATA receipts w1 7 [7]"
    )
    assert world.rows(("device_lists", "master")) == [(2, b"[2]")]
    assert world.rows() == []
    world.say("RDATA receipts w1 8 [8]", "RDATA receipts w1 9 [9]")
    world.say("RDATA receipts w1 10 [10]")  # too much waits: it stays in the socket
    archive.hold.callback(None)
    world.network.settle()
    assert [token for token, _ in world.rows()] == [5, 6, 7, 8, 9, 10]


def test_pages_that_cannot_be_had_are_a_gap_in_the_end() -> None:
    archive = Archive()
    world = World(archive=archive)
    world.say("POSITION receipts w1 4 4")
    world.reconnect()
    archive.error = ConnectionFailed("away", reason=CloseReason.CONNECTION_LOST)
    world.say("POSITION receipts w1 8 8")
    assert world.upstream.status().gaps == 0
    world.network.run(60)
    assert world.upstream.status().gaps == 1
    world.say("RDATA receipts w1 9 [9]")
    assert world.rows() == [(9, b"[9]")]


def test_a_writer_that_restarts_leaves_no_gap() -> None:
    archive = Archive()
    world = World(archive=archive)
    world.say("POSITION receipts w1 4 4")
    world.reconnect()
    archive.error = ConnectionFailed("away", reason=CloseReason.CONNECTION_LOST)
    world.say("POSITION receipts w1 8 8")
    world.network.run(20)
    archive.error, archive.rows = None, {token: b"[%d]" % token for token in (5, 6, 7, 8)}
    world.network.run(6)
    assert world.upstream.status().gaps == 0
    assert [token for token, _ in world.rows()] == [5, 6, 7, 8]


def test_stopping_while_a_page_is_waited_for() -> None:
    archive = Archive()
    world = World(archive=archive)
    world.say("POSITION receipts w1 4 4")
    world.reconnect()
    archive.error = ConnectionFailed("away", reason=CloseReason.CONNECTION_LOST)
    world.say("POSITION receipts w1 8 8")
    done = Deferred.fromCoroutine(world.upstream.stop())
    world.network.settle()
    assert done.called


def test_streams_in_memory_begin_anew_and_ours_go_on() -> None:
    world = World()
    world.say(
        "POSITION typing master 0 0", "RDATA typing master 1 [1]", "RDATA typing master 2 [2]"
    )
    world.say("POSITION typing master 0 0", "RDATA typing master 1 [3]")
    assert world.rows(("typing", "master")) == [(1, b"[1]"), (2, b"[2]"), (4, b"[3]")]
    assert world.upstream.status().gaps == 0


def test_late_positions_of_other_streams_mean_nothing() -> None:
    world = World()
    world.say("POSITION receipts w1 4 4", "RDATA receipts w1 9 [1]", "POSITION receipts w1 4 7")
    world.say("POSITION receipts w1 7 8", "RDATA receipts w1 10 [2]")
    assert world.rows() == [(9, b"[1]"), (10, b"[2]")]


def test_rubbish_is_counted_and_left_out() -> None:
    world = World()
    with capture_logs() as logs:
        world.say(
            "POSITION receipts w1 4 4",
            "RDATA receipts w1 5 [1]",
            "RDATA receipts w1 x [1]",
            "RDATA receipts",
            b"RDATA receipts w1 6 [\xff]",
            "RDATA receipts w1 6 not json",
            "RDATA receipts w1 batch [7]",
            "RDATA receipts w1 7 {",
            "WHAT is this",
            "POSITION receipts w1",
            'RDATA receipts w1 8 ["\\ud800"]\r\n',
        )
    assert world.rows() == [(5, b"[1]"), (7, b"[7]"), (8, b'["\\ud800"]')]
    assert world.upstream.bad_lines == 7
    assert all(entry["event"] == "redis.line.unreadable" for entry in logs)


def test_more_streams_than_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.upstream._lines._assembler.max_pairs = 1
    world.say("POSITION receipts w1 4 4", "POSITION typing master 0 0")
    assert world.upstream.bad_lines == 1


def test_commands_pass_down() -> None:
    world = World()
    world.say(
        'LOCK_RELEASED ["w1","name","key"]',
        "NEW_ACTIVE_TASK abc",
        "CANCEL_TASK abc",
        "REMOTE_SERVER_UP far.example.com",
        "USER_SYNC w1 @a:x None start 1",
        "REPLICATE",
    )
    names = [command.NAME for command in world.heard]
    assert names == [
        "LOCK_RELEASED",
        "NEW_ACTIVE_TASK",
        "CANCEL_TASK",
        "REMOTE_SERVER_UP",
        "USER_SYNC",
    ]
    assert world.heard[0] == LockReleasedCommand("w1", "name", "key")


@pytest.mark.parametrize("asked", [False, True])
def test_access_tokens_go_nowhere(asked: bool) -> None:
    world = World(user_ip=asked)
    channels = [words[1] for words in world.redis.commands if words[0] == b"SUBSCRIBE"]
    assert (b"example.com/USER_IP" in channels) is asked
    before = metrics.USER_IP_CACHE._value.get()
    line = 'USER_IP @a:x ["syt_secret","1.2.3.4","agent",null,5]'
    with capture_logs() as logs:
        world.redis.say(line, channel=b"example.com/USER_IP")
        world.say(line, 'USER_IP @a:x ["syt_secret"]')
    assert metrics.USER_IP_CACHE._value.get() - before == (2 if asked else 0)
    assert world.heard == []
    assert "secret" not in str(logs)


def test_readers_are_heard_upstream_and_kept_while_it_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_source, "MAX_UNSENT", 1)
    world = World()
    for _ in range(2):
        assert world.upstream.send(RemoteServerUpCommand("far.example.com"))
    world.network.settle()
    assert world.redis.published[-2:] == [b"REMOTE_SERVER_UP far.example.com"] * 2
    assert world.heard == []  # our own echoes
    world.say("REMOTE_SERVER_UP far.example.com")
    assert world.heard == [RemoteServerUpCommand("far.example.com")]
    assert not world.upstream.send(RemovePusherCommand("app", "key", "@a:x"))
    world.redis.cut()
    world.network.turn()
    ack = FederationAckCommand("fed1", 7)
    assert world.upstream.send(ack)
    assert not world.upstream.send(ack)
    run_until(world.network, lambda: world.upstream.link.up)
    world.network.settle()
    assert world.redis.published[-2:] == [b"REPLICATE ", b"FEDERATION_ACK fed1 7"]


def test_passive_says_nothing() -> None:
    world = World(passive=True)
    world.say("POSITION receipts w1 4 4", "RDATA receipts w1 5 [1]")
    assert not world.upstream.send(UserSyncCommand("w1", "@a:x", None, True, 1))
    world.reconnect()
    assert world.redis.published == []
    assert world.rows() == [(5, b"[1]")]


def test_batch_cut_off_by_a_lost_connection_is_not_completed() -> None:
    world = World()
    world.say("POSITION receipts w1 4 4", "RDATA receipts w1 batch [1]")
    world.reconnect()
    world.say("POSITION receipts w1 5 5", "RDATA receipts w1 6 [2]")
    assert world.rows() == [(6, b"[2]")]
    assert world.upstream.status().gaps == 1


def test_a_delivery_that_gives_up_is_logged() -> None:
    world = World()
    world.say("POSITION receipts w1 4 4")
    follower = world.upstream._followers.of(RECEIPTS)
    with capture_logs() as logs:
        follower.give_up(type("F", (), {"getErrorMessage": lambda self: "why"})())
    assert logs[0]["error"] == "why"


def test_a_token_that_no_writer_can_have_costs_its_line_alone() -> None:
    world = World()
    world.say("POSITION receipts w1 4 4")
    with capture_logs() as logs:
        world.say(
            f"RDATA receipts w1 {2**63 - 1} [0]",
            f"POSITION receipts w1 {2**63 - 1} {2**63 - 1}",
            f"POSITION caches w1 {2**53 + 1} {2**53 + 1}",
            "RDATA receipts w1 5 [1]",
        )
    assert world.rows() == [(5, b"[1]")]
    assert world.upstream.bad_lines == 3
    assert [log["event"] for log in logs] == ["redis.line.unreadable"] * 3
    assert ("caches", "w1") not in world.log.pairs()


def test_instances_of_one_sequence_lose_nothing_by_what_others_wrote() -> None:
    world = World()
    world.say("POSITION caches w1 4 4", "POSITION caches w2 4 4", "RDATA caches w1 5 [1]")
    world.reconnect()
    world.say("POSITION caches w2 5 5")
    assert world.upstream.status().gaps == 0
    assert world.log.position("caches", "w2") == 5
    world.reconnect()
    world.say("POSITION caches w1 7 7", "POSITION caches w2 7 7")
    assert world.upstream.status().gaps == 2


def test_with_pages_the_rows_of_a_shared_sequence_are_asked_for_all_the_same() -> None:
    archive = Archive()
    world = World(archive=archive)
    world.say("POSITION caches w1 4 4", "POSITION caches w2 4 4", "RDATA caches w1 5 [1]")
    world.reconnect()
    world.say("POSITION caches w2 5 5")
    assert archive.asked == [("caches", "w2", 4, 5)]


def test_states_in_the_memory_of_a_writer_begin_anew_after_an_absence() -> None:
    """It may be another process by now that has passed the old counter."""
    archive = Archive()
    world = World(archive=archive)
    pair = ("typing", "master")
    world.say("POSITION typing master 0 0")
    world.say(*(f"RDATA typing master {n} [{n}]" for n in (1, 2, 3)))
    world.reconnect()
    archive.rows = {5: b"[5]"}
    world.say("POSITION typing master 5 5")
    assert archive.asked == [("typing", "master", 0, 5)]
    assert world.rows(pair) == [(1, b"[1]"), (2, b"[2]"), (3, b"[3]"), (9, b"[5]")]
    assert world.state.gaps.at(pair, 3) is not None
    assert world.upstream.status().gaps == 0


def test_rows_that_count_down_are_held_until_a_position_or_for_a_while() -> None:
    world = World()
    pair = ("backfill", "w1")
    world.say("POSITION backfill w1 1 1", *(f"RDATA backfill w1 {n} [{n}]" for n in (6, 5, 3)))
    assert world.rows(pair) == []
    world.say("POSITION backfill w1 3 6")
    assert [token for token, _ in world.rows(pair)] == [3, 5, 6]
    world.say("RDATA backfill w1 9 [9]")
    assert world.log.position(*pair) == 6
    world.clock.advance(1.0)
    world.network.settle()
    assert world.log.position(*pair) == 9


def test_rows_that_count_down_prove_nothing_before_their_position_after_an_absence() -> None:
    """Those above them may have passed while nobody listened."""
    world = World()
    pair = ("backfill", "w1")
    world.say("POSITION backfill w1 1 1")
    world.reconnect()
    world.say("RDATA backfill w1 3 [3]", "RDATA backfill w1 2 [2]")
    assert world.log.position(*pair) == 1
    world.say("POSITION backfill w1 2 6", "RDATA backfill w1 7 [7]")
    assert world.rows(pair) == [(7, b"[7]")]
    assert world.upstream.status().newest_gaps == [
        "backfill of w1: rows in (1, 6] may be missing: the upstream could not tell them"
    ]


def test_rows_that_count_down_and_stop_half_way_are_told_as_a_gap() -> None:
    world = World()
    pair = ("backfill", "w1")
    world.say("POSITION backfill w1 1 1", *(f"RDATA backfill w1 {n} [{n}]" for n in (6, 5)))
    world.clock.advance(1.0)
    world.network.settle()
    world.say("RDATA backfill w1 4 [4]", "POSITION backfill w1 2 6")
    assert world.rows(pair) == [(5, b"[5]"), (6, b"[6]")]
    assert world.upstream.status().newest_gaps == [
        "backfill of w1: rows in (1, 4] may be missing: the upstream could not tell them"
    ]


def test_rows_of_a_pair_that_was_first_written_while_nobody_listened_are_fetched() -> None:
    """A tcprepl server says nothing on Redis of a stream before its first row."""
    archive = Archive()
    world = World(archive=archive)
    world.reconnect()
    archive.rows = {n: b"[%d]" % n for n in (1, 2, 3)}
    world.say("POSITION receipts w1 3 3")
    assert [token for token, _ in world.rows()] == [1, 2, 3]
    # One more instance, of a stream that others have written, begins behind them.
    world.reconnect()
    world.say("POSITION receipts w2 9 9")
    assert archive.asked[-1] == ("receipts", "w2", 3, 9)
    world.reconnect()
    asked = len(archive.asked)
    world.say("POSITION receipts w3 5 5", "POSITION events w1 5000000 5000000")
    assert archive.asked[asked:] == []
    assert world.log.floor("events", "w1") == 5_000_000


def test_a_pair_that_was_first_written_while_nobody_listened_is_a_gap_without_http() -> None:
    world = World()
    world.reconnect()
    world.say("RDATA receipts w1 3 [3]", "RDATA receipts w1 4 [4]")
    assert world.rows() == [(4, b"[4]")]
    assert world.log.floor(*RECEIPTS) == 0
    assert world.upstream.status().newest_gaps == [
        "receipts of w1: rows in (0, 3] may be missing: the upstream could not tell them"
    ]


@pytest.mark.parametrize("pages", [False, True])
@pytest.mark.parametrize("ahead", [2, 5_000, 2**39])
@pytest.mark.parametrize(
    "false",
    [
        ["RDATA receipts w1 {0} [0]"],
        ["RDATA receipts w1 batch [0]", "RDATA receipts w1 {0} [0]"],
        ["POSITION receipts w1 5 {0}"],
        ["POSITION receipts w1 {0} {0}"],
        ["RDATA receipts w1 {0} [0]", "RDATA receipts w1 {1} [0]", "POSITION receipts w1 {1} {1}"],
    ],
)
def test_a_false_token_costs_no_row_behind_it(pages: bool, ahead: int, false: list[str]) -> None:
    """It may be what a writer could say; then its next row, which is below, says otherwise."""
    archive = Archive()
    world = World(archive=archive if pages else None)
    world.say("POSITION receipts w1 4 4", "RDATA receipts w1 5 [5]")
    archive.rows[5] = b"[5]"
    lines = [line.format(5 + ahead, 6 + 2 * ahead) for line in false]
    world.say(*lines, "RDATA receipts w1 6 [6]", "RDATA receipts w1 7 [7]")
    world.clock.advance(0)
    world.say("RDATA receipts w1 8 [8]", *lines)
    world.reconnect()
    world.say("POSITION receipts w1 8 8", "RDATA receipts w1 9 [9]")
    world.clock.advance(0)
    rows = world.rows()
    assert [row for _, row in rows if row != b"[0]"] == [b"[%d]" % n for n in range(5, 10)]
    assert sorted(rows, key=lambda row: row[0]) == rows
    assert world.intake.positions()[RECEIPTS] == 9


def test_a_row_that_was_said_before_is_not_taken_for_a_new_one() -> None:
    """A writer that was cut off says again what may not have arrived; holes are no matter."""
    world = World()
    world.say("POSITION receipts w1 4 4")
    said = [f"RDATA receipts w1 {token} [{token}]" for token in (5, 6, 9, 12, 13)]
    world.say(*said)
    world.say(*said, *said[2:], "POSITION receipts w1 7 7", "RDATA receipts w1 14 [14]")
    assert [token for token, _ in world.rows()] == [5, 6, 9, 12, 13, 14]
