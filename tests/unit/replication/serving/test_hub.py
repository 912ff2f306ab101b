"""The hub: one rendering, one write a turn, cursors instead of queues, honest gaps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs
from twisted.internet.task import Clock

from tcprepl import limits
from tcprepl.ids import Pair, Token
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.replication.serving.hub import Hub
from tcprepl.replication.serving.readers import ANY, Reader
from tcprepl.replication.serving.rendering import WireForm
from tcprepl.streams.gaps import Cause, Gap, Gaps
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.streams.retention import Bounds, Retention

NATIVE = WireForm.of(DIALECTS["tcprepl"])
NEWEST = WireForm.of(DIALECTS["1.22"])
OLD = WireForm.of(DIALECTS["2017"])
ALPHA = ("alpha", "master")


class Outlet:
    """Where a reader's bytes go; full when told so."""

    buffered_bytes = 0

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.busy = False
        self.full_after: int | None = None

    def write(self, chunk: bytes) -> bool:
        """Keep *chunk*."""
        self.writes.append(chunk)
        if self.full_after is not None and len(self.writes) >= self.full_after:
            self.busy = True
        return not self.busy

    def lines(self) -> list[str]:
        """Return what was written since the last call, as lines."""
        out = b"".join(self.writes).decode().splitlines()
        self.writes.clear()
        return out


class Owner:
    """Counts how often it hears that its reader cannot be served."""

    def __init__(self) -> None:
        self.failures = 0

    def failed(self) -> None:
        """Count it."""
        self.failures += 1


class World:
    """A hub over a log in memory, on a fake clock."""

    def __init__(self, **bounds: Any) -> None:
        self.clock = Clock()
        self.registry = Registry([StreamDef("alpha"), StreamDef("beta")])
        retention = Retention(durable=Bounds(**bounds), ephemeral=Bounds(**bounds))
        self.log = MemoryLog(self.registry, lambda: int(self.clock.seconds() * 1000), retention)
        self.log.ensure(*ALPHA)
        self.hub = Hub(self.clock, self.log, "master")
        self.publisher = Publisher(self.log, self.registry, "master")

    def publish(self, stream: str, *rows: Any, **options: Any) -> None:
        """Publish rows; nothing goes out before the next turn."""
        assert self.publisher.publish(stream, list(rows), **options).called

    def turn(self) -> None:
        """Let a turn of the reactor pass."""
        self.clock.advance(0)

    def reader(
        self,
        stream: str = ANY,
        instance: str = ANY,
        asked: int | None = None,
        form: WireForm = NATIVE,
    ) -> tuple[Reader, Any]:
        """Subscribe a reader and bring it to the head."""
        outlet: Any = Outlet()
        reader = Reader(outlet, stream)
        only = "master" if form is OLD else None
        self.hub.subscribe(reader, form, (stream, instance), asked, only_instance=only)
        self.hub.serve(reader)
        return reader, outlet


@pytest.fixture
def world() -> World:
    """A hub with everything retained."""
    return World()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A hub that reads and writes in small pieces."""
    monkeypatch.setattr(limits, "PAGE_ROWS", 2)
    monkeypatch.setattr(limits, "PAGE_BYTES", 100)
    monkeypatch.setattr(limits, "TURN_BYTES", 150)
    monkeypatch.setattr(limits, "SEGMENT_BYTES", 60)
    return World()


def test_the_first_goes_out_at_once_and_the_rest_of_the_turn_together(world: World) -> None:
    _, one = world.reader()
    _, two = world.reader()
    one.lines(), two.lines()
    for number in range(3):
        world.publish("alpha", [number])
    assert one.lines() == ["RDATA alpha master 1 [0]"]
    two.lines()
    world.turn()
    assert len(one.writes) == 1
    assert one.writes[0] is two.writes[0]
    assert one.lines() == ["RDATA alpha master 2 [1]", "RDATA alpha master 3 [2]"]


def test_a_burst_is_one_write_a_turn_until_it_ends(world: World) -> None:
    _, outlet = world.reader()
    world.publish("alpha", [1])
    world.publish("alpha", [2])
    world.turn()
    outlet.lines()
    world.publish("alpha", [3])
    world.publish("alpha", [4])
    assert not outlet.writes
    world.turn()
    assert len(outlet.writes) == 1
    world.publish("alpha", [5])
    assert len(outlet.writes) == 1
    world.turn()
    world.turn()
    world.publish("alpha", [6])
    world.turn()
    outlet.lines()
    world.publish("alpha", [7])
    assert outlet.lines() == ["RDATA alpha master 7 [7]"]


def test_a_reader_at_the_head_owns_no_cursor(world: World) -> None:
    reader, _ = world.reader()
    assert reader.backlog is None
    assert reader.group is not None


def test_a_single_block_goes_out_as_the_log_rendered_it(world: World) -> None:
    _, outlet = world.reader()
    outlet.lines()
    blocks: list[Any] = []
    world.log.add_listener(blocks.append)
    world.publish("alpha", [1])
    world.turn()
    assert outlet.writes[0] is blocks[0].lines


def test_subscribers_get_what_they_asked_for_only(world: World) -> None:
    _, outlet = world.reader("alpha", ANY)
    outlet.lines()
    world.publish("beta", [1])
    world.turn()
    assert outlet.lines() == []
    world.publish("beta", [2])
    world.publish("alpha", [3])
    world.turn()
    assert outlet.lines() == ["RDATA alpha master 1 [3]"]


def test_a_pair_that_appears_is_announced_first(world: World) -> None:
    _, outlet = world.reader()
    outlet.lines()
    world.publish("alpha", [1], instance="other")
    world.publish("alpha", [2], instance="other")
    world.turn()
    assert outlet.lines() == [
        "POSITION alpha other 0 0",
        "RDATA alpha other 1 [1]",
        "RDATA alpha other 2 [2]",
    ]


def test_a_position_that_moves_alone_is_told(world: World) -> None:
    _, outlet = world.reader()
    outlet.lines()
    assert world.log.advance("alpha", "master", 9).called
    assert world.log.advance("beta", "new", 4).called
    world.turn()
    assert outlet.lines() == [
        "POSITION alpha master 0 9",
        "POSITION beta new 0 0",
        "POSITION beta new 0 4",
    ]


def test_resume_sends_the_rows_after_the_token_then_says_caught_up(world: World) -> None:
    world.publish("alpha", [1], [2], [3])
    world.turn()
    _, outlet = world.reader("alpha", "master", 1)
    assert outlet.lines() == [
        "POSITION alpha master 1 1",
        "RDATA alpha master 2 [2]",
        "RDATA alpha master 3 [3]",
        "POSITION alpha master 3 3",
    ]


def test_resume_at_the_head_says_so_once(world: World) -> None:
    world.publish("alpha", [1])
    world.turn()
    _, outlet = world.reader("alpha", "master", 1)
    assert outlet.lines() == ["POSITION alpha master 1 1"]


def test_what_is_published_while_catching_up_comes_once(world: World) -> None:
    world.publish("alpha", [0])
    world.publish("alpha", [0])
    world.turn()
    world.publish("alpha", [2])
    _, outlet = world.reader("alpha", "master", 1)
    world.turn()
    assert outlet.lines() == [
        "POSITION alpha master 1 1",
        "RDATA alpha master 2 [0]",
        "POSITION alpha master 2 2",
        "RDATA alpha master 3 [2]",
    ]


def test_an_unknown_pair_can_be_asked_for_before_it_exists(world: World) -> None:
    _, outlet = world.reader("beta", "later", 0)
    assert outlet.lines() == ["POSITION beta later 0 0"]
    world.publish("beta", [1], instance="later")
    world.turn()
    assert outlet.lines() == ["POSITION beta later 0 0", "RDATA beta later 1 [1]"]


def test_asking_makes_nothing(world: World) -> None:
    before = list(world.log.pairs())
    reader, outlet = world.reader("beta", "invented", 7)
    assert outlet.lines() == [
        "ERROR cannot resume beta of invented after 7: its position is 0; forget its state and "
        "read on from 0",
        "POSITION beta invented 0 0",
    ]
    assert list(world.log.pairs()) == before
    assert ("beta", "invented") not in world.hub.heads
    assert reader.gaps == 1


def test_a_pair_that_one_asked_for_is_announced_to_all_before_its_first_row(world: World) -> None:
    """Whoever asked for all of them has not heard of it, though another asked by name."""
    _, everybody = world.reader()
    everybody.lines()
    world.reader("beta", "later", 0)
    world.publish("beta", [1], instance="later")
    world.turn()
    assert everybody.lines() == ["POSITION beta later 0 0", "RDATA beta later 1 [1]"]


def test_a_wildcard_leaves_alone_what_was_asked_for_by_name(world: World) -> None:
    world.publish("alpha", [1], [2])
    world.turn()
    reader, outlet = world.reader("alpha", "master", 1)
    outlet.lines()
    world.hub.subscribe(reader, NATIVE, ("alpha", ANY), 0)
    world.hub.serve(reader)
    assert outlet.lines() == ["POSITION alpha master 2 2"]


def test_past_retention_is_told_with_the_setting_and_the_connection_goes_on() -> None:
    world = World(max_rows=2)
    for number in range(6):
        world.publish("alpha", [number])
    world.turn()
    reader, outlet = world.reader("alpha", "master", 1)
    error, *rest = outlet.lines()
    assert error == (
        "ERROR rows of alpha of master after 1 up to 4 (3 tokens) are gone: retention.rows=2; "
        "service begins after 4"
    )
    assert rest == [
        "POSITION alpha master 4 4",
        "RDATA alpha master 5 [4]",
        "RDATA alpha master 6 [5]",
        "POSITION alpha master 6 6",
    ]
    assert reader.gaps == 1
    assert reader.group is not None


def test_from_the_start_is_from_what_is_held_without_complaint() -> None:
    world = World(max_rows=1)
    world.publish("alpha", [1])
    world.publish("alpha", [2])
    world.turn()
    _, outlet = world.reader("alpha", "master", 0)
    assert outlet.lines() == [
        "POSITION alpha master 1 1",
        "RDATA alpha master 2 [2]",
        "POSITION alpha master 2 2",
    ]


def test_a_token_from_the_future_restarts_the_reader(world: World) -> None:
    world.publish("alpha", [1])
    world.turn()
    _, outlet = world.reader("alpha", "master", 50)
    error, *rest = outlet.lines()
    assert error.startswith("ERROR cannot resume alpha of master after 50: its position is 1;")
    assert rest == [
        "POSITION alpha master 0 0",
        "RDATA alpha master 1 [1]",
        "POSITION alpha master 1 1",
    ]


def test_a_keyed_stream_restarts_with_the_newest_row_of_each_key() -> None:
    world = World(max_rows=1)
    world.publish("typing", ["!a:x", ["@u:x"]])
    world.publish("typing", ["!b:x", ["@u:x"]])
    world.publish("typing", ["!b:x", []])
    world.publish("typing", ["!c:x", ["@v:x"]])
    world.turn()
    _, outlet = world.reader("typing", "master", 1)
    error, *rest = outlet.lines()
    assert "forget its state" in error
    assert rest == [
        "POSITION typing master 0 0",
        'RDATA typing master 1 ["!a:x",["@u:x"]]',
        'RDATA typing master 4 ["!c:x",["@v:x"]]',
        "POSITION typing master 4 4",
    ]


def test_a_full_socket_costs_cursors_and_gets_everything_later(world: World) -> None:
    world.clock.advance(7.0)
    reader, outlet = world.reader()
    _, other = world.reader()
    outlet.lines()
    outlet.full_after = 1
    for number in range(5):
        world.publish("alpha", [number])
        world.turn()
    assert len(outlet.writes) == 1
    assert reader.backlog is not None
    assert len([line for line in other.lines() if line.startswith("RDATA")]) == 5
    world.clock.advance(2.0)
    lag = world.hub.lag(reader)
    assert (lag.rows, lag.stream) == (4, "alpha")
    assert lag.bytes == 4 * len("RDATA alpha master 2 [1]\n")
    assert lag.seconds == pytest.approx(2.0)
    outlet.busy, outlet.full_after = False, None
    world.hub.drained(reader)
    assert outlet.lines() == [f"RDATA alpha master {n + 1} [{n}]" for n in range(5)]
    assert reader.group is not None
    assert reader.paused_s == pytest.approx(2.0)
    assert world.hub.lag(reader).rows == 0


def test_a_gap_of_one_token_is_told_as_one() -> None:
    world = World(max_rows=2)
    for number in range(4):
        world.publish("alpha", [number])
    world.turn()
    _, outlet = world.reader("alpha", "master", 1)
    assert outlet.lines()[0] == (
        "ERROR rows of alpha of master after 1 up to 2 (1 token) are gone: retention.rows=2; "
        "service begins after 2"
    )


def test_falling_off_the_log_while_slow_is_told_and_survived() -> None:
    world = World(max_rows=2)
    reader, outlet = world.reader("alpha", "master")
    outlet.lines()
    outlet.full_after = 1
    for number in range(6):
        world.publish("alpha", [number])
        world.turn()
    outlet.busy, outlet.full_after = False, None
    world.hub.drained(reader)
    assert outlet.lines() == [
        "RDATA alpha master 1 [0]",
        "ERROR rows of alpha of master after 1 up to 4 (3 tokens) are gone: retention.rows=2; "
        "service begins after 4",
        "POSITION alpha master 4 4",
        "RDATA alpha master 5 [4]",
        "RDATA alpha master 6 [5]",
    ]


def test_large_turns_are_cut_so_that_a_slow_reader_holds_little(small: World) -> None:
    reader, outlet = small.reader()
    outlet.lines()
    outlet.full_after = 2
    for number in range(7):
        small.publish("alpha", [number])
    small.turn()
    assert len(outlet.writes) == 2
    assert reader.backlog is not None
    assert small.hub._heads.at(small.hub.heads[ALPHA], reader.backlog.since).token == 3


def test_serving_yields_to_others_and_goes_on(small: World) -> None:
    for number in range(20):
        small.publish("alpha", [number])
    small.turn()
    reader, outlet = small.reader("alpha", "master", 0)
    first = len(outlet.writes)
    assert reader.backlog is not None
    for _ in range(20):
        small.turn()
    assert first < len(outlet.writes)
    rows = [line for line in outlet.lines() if line.startswith("RDATA")]
    assert rows == [f"RDATA alpha master {n + 1} [{n}]" for n in range(20)]


def test_streams_take_turns(small: World) -> None:
    for number in range(9):
        small.publish("alpha", [number])
        small.publish("beta", [number])
    small.turn()
    _, outlet = small.reader(ANY, ANY, 0)
    for _ in range(20):
        small.turn()
    lines = [line for line in outlet.lines() if line.startswith("RDATA")]
    first_beta = next(index for index, line in enumerate(lines) if " beta " in line)
    last_alpha = max(index for index, line in enumerate(lines) if " alpha " in line)
    assert first_beta < last_alpha
    assert len(lines) == 18


def test_a_full_socket_at_the_farewell_is_no_loss(world: World) -> None:
    world.publish("alpha", [1])
    world.turn()
    outlet: Any = Outlet()
    outlet.full_after = 1
    reader = Reader(outlet, "r")
    world.hub.subscribe(reader, NATIVE, ("alpha", "master"), 0)
    world.hub.serve(reader)
    assert outlet.lines()[-1] == "POSITION alpha master 1 1"
    assert reader.backlog is not None
    world.publish("alpha", [2])
    world.turn()
    outlet.busy, outlet.full_after = False, None
    world.hub.drained(reader)
    assert outlet.lines() == ["RDATA alpha master 2 [2]"]


def test_rows_end_below_the_head_is_told_to_who_was_behind(world: World) -> None:
    reader, outlet = world.reader("alpha", "master")
    outlet.lines()
    outlet.full_after = 1
    world.publish("alpha", [1])
    world.turn()
    world.publish("alpha", [2])
    assert world.log.advance("alpha", "master", 9).called
    world.turn()
    outlet.busy, outlet.full_after = False, None
    world.hub.drained(reader)
    assert outlet.lines() == [
        "RDATA alpha master 1 [1]",
        "RDATA alpha master 2 [2]",
        "POSITION alpha master 2 9",
    ]


def test_a_pair_that_appears_while_behind_is_announced(world: World) -> None:
    reader, outlet = world.reader()
    outlet.lines()
    outlet.full_after = 1
    world.publish("alpha", [1])
    world.turn()
    world.publish("beta", [2], instance="new")
    world.turn()
    outlet.busy, outlet.full_after = False, None
    world.hub.drained(reader)
    assert outlet.lines() == [
        "RDATA alpha master 1 [1]",
        "POSITION beta new 0 0",
        "RDATA beta new 1 [2]",
    ]


def test_too_long_a_row_is_left_out_for_synapse_and_whole_for_us(world: World) -> None:
    reader, old = world.reader(form=NEWEST)
    _, ours = world.reader()
    old.lines(), ours.lines()
    world.publish("alpha", ["x" * 20_000])
    world.publish("alpha", [2])
    world.turn()
    assert old.lines() == ["POSITION alpha master 1 1", "RDATA alpha master 2 [2]"]
    assert len(ours.lines()[0]) > 20_000
    world.hub.subscribe(reader, NEWEST, ("alpha", "master"), 0)
    world.hub.serve(reader)
    assert old.lines() == [
        "POSITION alpha master 0 0",
        "POSITION alpha master 1 1",
        "RDATA alpha master 2 [2]",
        "POSITION alpha master 2 2",
    ]


def test_2017_readers_hear_of_one_instance_and_only_the_end_of_catch_up(world: World) -> None:
    world.publish("alpha", [1], [2])
    world.publish("alpha", [9], instance="other")
    world.turn()
    _, outlet = world.reader("alpha", "master", 1, OLD)
    assert outlet.lines() == ["RDATA alpha 2 [2]", "POSITION alpha 2"]
    world.publish("alpha", [8], instance="other")
    world.publish("alpha", [3])
    world.turn()
    assert outlet.lines() == ["RDATA alpha 3 [3]"]


def test_a_damaged_block_costs_its_rows_and_not_those_around(world: World) -> None:
    world.publish("alpha", [1], [2], [3], [4])
    world.turn()
    world.log.gaps.add(ALPHA, Gap(1, 3, Cause.DAMAGE, "its checksum does not match"))
    for asked, after in ((0, 1), (2, 2)):
        reader, outlet = world.reader("alpha", "master", asked)
        lines = outlet.lines()
        first = lines.index(
            f"ERROR cannot read alpha of master after {after}: rows in ({after}, 3] cannot be "
            f"read: its checksum does not match"
        )
        assert lines[first + 1 :] == [
            "POSITION alpha master 3 3",
            "RDATA alpha master 4 [4]",
            "POSITION alpha master 4 4",
        ]
        assert lines[0] == f"POSITION alpha master {asked} {asked}"
        assert reader.gaps == 1


def test_damaged_blocks_that_a_reader_meets_in_a_row_are_logged_a_few_times(world: World) -> None:
    """It is told of each, and each counts."""

    class Found(Gaps):
        """The blocks as they are found, each by who comes to it."""

        def next(self, pair: Pair, token: Token) -> Gap | None:
            return Gap(token, token + 1, Cause.DAMAGE, "bad") if token < 60 else None

    world.publish("alpha", *[[n] for n in range(61)])
    world.turn()
    world.log.gaps = Found()
    with capture_logs() as logs:
        reader, outlet = world.reader("alpha", "master", 0)
        for _ in range(200):
            world.turn()
    lines = outlet.lines()
    assert len([line for line in lines if line.startswith("ERROR cannot read alpha")]) == 60
    assert lines[-2:] == ["RDATA alpha master 61 [60]", "POSITION alpha master 61 61"]
    assert reader.gaps == 60
    told = [entry for entry in logs if entry["event"] == "replication.reader.gap"]
    assert [(entry["after"], entry["begins_after"]) for entry in told] == [
        (0, upto) for upto in (1, 2, 4, 8, 16, 32)
    ]


def test_a_reader_that_is_gone_gets_nothing(world: World) -> None:
    reader, outlet = world.reader()
    outlet.lines()
    world.hub.unsubscribe(reader)
    world.publish("alpha", [1])
    world.turn()
    world.hub.serve(reader)
    world.hub.drained(reader)
    assert outlet.lines() == []
    world.publish("alpha", [2])
    world.turn()


def test_closing_hands_out_what_is_pending(world: World) -> None:
    _, outlet = world.reader()
    outlet.lines()
    world.publish("alpha", [1])
    world.hub.close()
    assert outlet.lines() == ["RDATA alpha master 1 [1]"]
    world.publish("alpha", [2])
    world.turn()
    assert outlet.lines() == []
    assert not world.clock.getDelayedCalls()


def test_gaps_of_a_relay_are_told_live_and_to_those_who_come_later() -> None:
    """Whoever passes a gap is told by a POSITION whose *prev* is above what they hold."""
    clock = Clock()
    registry = Registry([StreamDef("alpha")])
    log = MemoryLog(registry, lambda: 0)
    log.ensure(*ALPHA)
    hub = Hub(clock, log, "master")
    live, late = Outlet(), Outlet()
    reader = Reader(live, "live")
    hub.subscribe(reader, NATIVE, (ANY, ANY), None)
    hub.serve(reader)
    live.lines()
    _ = log.append(*ALPHA, [b"[1]", b"[2]"], tokens=[1, 2])
    log.gaps.add(ALPHA, Gap(2, 9, Cause.UPSTREAM))
    _ = log.advance(*ALPHA, 9)
    _ = log.advance(*ALPHA, 11)
    _ = log.append(*ALPHA, [b"[12]"], tokens=[12])
    clock.advance(0)
    told = ["POSITION alpha master 9 9", "POSITION alpha master 9 11", "RDATA alpha master 12 [12]"]
    assert live.lines()[2:] == told
    for asked, first in ((0, 3), (1, 2), (2, 1), (5, 1)):
        behind = Reader(late, "late")
        hub.subscribe(behind, NATIVE, ALPHA, asked)
        hub.serve(behind)
        begin, *lines = late.lines()
        assert begin == f"POSITION alpha master {asked} {asked}"
        assert lines[first - 1 :] == [told[0], told[2], "POSITION alpha master 12 12"]
        assert behind.gaps == 1


def test_a_pair_that_the_log_has_met_is_announced_once() -> None:
    """A relay knows of a stream before it has rows, and so do its readers."""
    clock = Clock()
    log = MemoryLog(Registry([StreamDef("alpha")]), lambda: 0)
    hub = Hub(clock, log, "master")
    outlet = Outlet()
    reader = Reader(outlet, "live")
    hub.subscribe(reader, NATIVE, (ANY, ANY), None)
    hub.serve(reader)
    log.ensure(*ALPHA)
    hub.announce(*ALPHA)
    clock.advance(0)
    hub.announce(*ALPHA)
    clock.advance(0)
    assert outlet.lines() == ["POSITION alpha master 0 0"]
    _ = log.append(*ALPHA, [b"[1]"])
    clock.advance(0)
    assert outlet.lines() == ["RDATA alpha master 1 [1]"]


def forked(world: World, asked: int, *places: tuple[int, str]) -> tuple[list[str], Reader]:
    """Return what a reader gets that says where it got what it has."""
    world.turn()
    outlet: Any = Outlet()
    reader = Reader(outlet, "r")
    world.hub.subscribe(reader, NATIVE, ALPHA, asked, places=places)
    world.hub.serve(reader)
    return outlet.lines(), reader


def test_a_reader_of_this_incarnation_goes_on(world: World) -> None:
    world.publish("alpha", [1], [2])
    lines, reader = forked(world, 1, (1, world.hub.incarnation))
    assert lines == [
        "POSITION alpha master 1 1",
        "RDATA alpha master 2 [2]",
        "POSITION alpha master 2 2",
    ]
    assert not reader.gaps


def test_a_reader_of_a_lost_future_begins_at_the_last_common_token(world: World) -> None:
    lost = world.hub.incarnation
    world.publish("alpha", [1], [2])
    world.log.history.begin({ALPHA: 2}, 0)  # as if restored from a copy
    world.publish("alpha", [3], [4])
    told = (
        "ERROR cannot resume alpha of master after 4: this log shares the reader's rows up to 2 "
        "only; forget those above and read on from there"
    )
    rest = [
        "POSITION alpha master 2 2",
        "RDATA alpha master 3 [3]",
        "RDATA alpha master 4 [4]",
        "POSITION alpha master 4 4",
    ]
    lines, reader = forked(world, 4, (4, lost))
    assert lines == [told, *rest]
    assert reader.gaps == 1
    assert forked(world, 4, (4, "never heard of"), (3, lost))[0] == [told, *rest]
    assert forked(world, 2, (2, lost))[0] == rest


def test_a_reader_of_another_log_begins_anew(world: World) -> None:
    world.publish("alpha", [1])
    assert forked(world, 1, (1, "another"))[0][1:] == [
        "POSITION alpha master 0 0",
        "RDATA alpha master 1 [1]",
        "POSITION alpha master 1 1",
    ]


def test_a_fork_at_the_head_is_told_at_once(world: World) -> None:
    lost = world.hub.incarnation
    world.publish("alpha", [1])
    world.log.history.begin({ALPHA: 1}, 0)
    assert forked(world, 9, (9, lost))[0][1:] == [
        "POSITION alpha master 1 1",
        "POSITION alpha master 1 1",
    ]


def test_a_fork_below_what_is_held_is_told_with_what_is_gone(world: World) -> None:
    world.publish("alpha", [1], [2], [3])
    world.log.trim(*ALPHA, 2)
    lines, reader = forked(world, 2, (2, "another"))
    assert lines[0].startswith("ERROR cannot resume alpha of master after 2: this log shares")
    assert lines[1:] == [
        "POSITION alpha master 0 0",
        "POSITION alpha master 2 2",
        "RDATA alpha master 3 [3]",
        "POSITION alpha master 3 3",
    ]
    assert reader.gaps == 1


def test_states_are_read_again_whole_after_a_fork() -> None:
    world = World(max_rows=1)
    pair = ("typing", "master")
    world.publish("typing", ["!a:x", ["@1:x"]])
    world.publish("typing", ["!b:x", ["@1:x"]])
    world.turn()
    outlet: Any = Outlet()
    reader = Reader(outlet, "r")
    world.hub.subscribe(reader, NATIVE, pair, 2, places=((2, "another"),))
    world.hub.serve(reader)
    assert outlet.lines()[1:] == [
        "POSITION typing master 0 0",
        'RDATA typing master 1 ["!a:x",["@1:x"]]',
        'RDATA typing master 2 ["!b:x",["@1:x"]]',
        "POSITION typing master 2 2",
    ]


def test_a_reader_that_cannot_be_written_to_gets_nothing_behind_the_hole() -> None:
    """It comes back and asks; the others miss nothing."""
    world = World()
    good, bad = Outlet(), Outlet()
    bad_one = Owner()
    readers = [Reader(bad, "bad", bad_one), Reader(good, "good")]  # type: ignore[arg-type]
    for reader in readers:
        world.hub.subscribe(reader, NATIVE, (ANY, ANY), None)
        world.hub.serve(reader)
    good.lines(), bad.lines()
    write = bad.write

    def failing(chunk: bytes) -> bool:
        bad.write = write  # type: ignore[method-assign]
        raise MemoryError

    bad.write = failing  # type: ignore[method-assign]
    for number in range(3):
        world.publish("alpha", [number])
        world.turn()
    assert bad_one.failures == 1
    assert not readers[0].live
    assert bad.lines() == []
    assert good.lines() == [f"RDATA alpha master {number + 1} [{number}]" for number in range(3)]
    world.hub.unsubscribe(readers[0])  # as its connection ends
    assert world.hub.lag(readers[0]).rows == 0


def test_rows_that_cannot_be_rendered_end_those_who_wanted_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    owners = {name: Owner() for name in ("native", "newest", "beta")}
    outlets = {"native": Outlet(), "newest": Outlet(), "beta": Outlet()}
    forms = {"native": NATIVE, "newest": NEWEST, "beta": NATIVE}
    for name, outlet in outlets.items():
        reader = Reader(outlet, name, owners[name])  # type: ignore[arg-type]
        pattern = ("beta", "master") if name == "beta" else (ANY, ANY)
        world.hub.subscribe(reader, forms[name], pattern, None)
        world.hub.serve(reader)
        outlet.lines()
    render = world.hub._render

    def failing(form: WireForm, *arguments: Any) -> bytes:
        if form is NATIVE:
            raise MemoryError
        return render(form, *arguments)

    monkeypatch.setattr(world.hub, "_render", failing)
    world.publish("alpha", [1])
    world.turn()
    monkeypatch.undo()
    world.publish("alpha", [2])
    world.publish("beta", [3])
    world.turn()
    assert [owner.failures for owner in owners.values()] == [1, 0, 0]
    assert outlets["native"].lines() == []
    alpha = [f"RDATA alpha master {number} [{number}]" for number in (1, 2)]
    assert [line for line in outlets["newest"].lines() if "alpha" in line] == alpha
    assert [line for line in outlets["beta"].lines() if "RDATA" in line] == [
        "RDATA beta master 1 [3]"
    ]


def test_of_a_segment_the_pair_that_moved_last_is_the_newest(world: World) -> None:
    """So a reader that catches up is served in the order of what came last."""
    for _ in range(2):  # so that the next turn is one segment
        for stream in ("alpha", "beta"):
            world.publish(stream, [1])
        world.turn()
    heads = world.hub._heads
    before = heads.moment
    for stream in ("alpha", "beta", "alpha"):
        world.publish(stream, [1])
    world.turn()
    assert heads.moment == before + 1
    assert [head.pair[0] for head in heads.moved_since(before)] == ["alpha", "beta"]
