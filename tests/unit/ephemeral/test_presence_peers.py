"""USER_SYNC at both ends: what workers report, and what the server makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.task import Clock

from tcprepl.ephemeral import presence_peers
from tcprepl.ephemeral.presence import PresenceWriter
from tcprepl.ephemeral.presence_peers import SyncListener, SyncReporter, SyncsBelow
from tcprepl.ephemeral.presence_states import OFFLINE, ONLINE, UNAVAILABLE
from tcprepl.protocol.commands import ClearUserSyncCommand, Command, UserSyncCommand
from tests.ephemeral_world import ALICE, BOB, SERVER, Publications, advance_to

MINUTE = 60_000


class Peer:
    """What a handler of commands gets to know of a connection."""

    def __init__(self, conn_id: int) -> None:
        self.conn_id = conn_id


class Server:
    """Passes commands to those who registered for them."""

    def __init__(self) -> None:
        self.handlers: dict[type[Command], Callable[[Any, Any], object]] = {}
        self.lost: Callable[[Any], object] = print

    def on(self, command: type[Command], handler: Callable[[Any, Any], object]) -> None:
        self.handlers[command] = handler

    def on_peer_lost(self, handler: Callable[[Any], object]) -> None:
        self.lost = handler

    def receive(self, command: Command, peer: Peer) -> None:
        self.handlers[type(command)](command, peer)


class World:
    """A presence writer that hears of syncs through a server."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1_000_000.0
        self.writer = PresenceWriter(self.clock, Publications(), SERVER)
        self.writer.start()
        self.server = Server()
        self.listener = SyncListener(self.clock, self.server, self.writer)
        self.listener.start()

    def at(self, ms: int) -> World:
        advance_to(self.clock, 1_000_000_000 + ms)
        return self

    @property
    def now(self) -> int:
        return round(self.clock.seconds() * 1000)

    def sync(
        self, syncing: bool, peer: Peer, process: str | None = "p", device: str | None = None
    ) -> None:
        self.server.receive(UserSyncCommand(process, ALICE, device, syncing, self.now), peer)

    def state(self) -> str:
        row = self.writer.get_state(ALICE)
        return "unknown" if row is None else row.state


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    assert made.listener.stop().called
    assert made.listener.stop().called
    assert made.writer.stop().called
    assert made.clock.getDelayedCalls() == []


def test_named_process_survives_its_connection(world: World) -> None:
    world.sync(True, Peer(1))
    world.server.lost(Peer(1))
    assert world.at(4 * MINUTE).state() == ONLINE
    world.sync(True, Peer(2))
    assert world.at(8 * MINUTE).state() == UNAVAILABLE


def test_connection_of_2017_is_the_process(world: World) -> None:
    world.sync(True, Peer(1), None)
    world.at(4 * MINUTE).server.lost(Peer(1))
    world.server.lost(Peer(2))
    assert world.at(4 * MINUTE + 30_000).state() == ONLINE
    assert world.at(4 * MINUTE + 35_000).state() == OFFLINE


def test_connected_worker_that_reports_nothing_is_not_forgotten(world: World) -> None:
    world.sync(True, Peer(1))
    assert world.at(60 * MINUTE).state() == UNAVAILABLE
    world.server.lost(Peer(1))
    assert world.at(66 * MINUTE).state() == OFFLINE


def test_connection_keeps_a_bounded_number_of_processes_alive(world: World) -> None:
    for number in range(1_000):
        world.sync(True, Peer(1), f"p{number}")
    assert len(world.listener._processes[1]) == 100
    world.at(6 * MINUTE)
    assert len(world.writer._syncs) == 100


def test_cleared_process_is_not_kept_alive(world: World) -> None:
    world.sync(True, Peer(1))
    world.server.receive(ClearUserSyncCommand("p"), Peer(1))
    world.server.receive(ClearUserSyncCommand("q"), Peer(3))
    assert world.at(MINUTE).state() == OFFLINE


def test_worker_behind_redis_that_reports_nothing_is_forgotten(world: World) -> None:
    """Redis is there, whoever behind it is not."""
    world.sync(True, Peer(0))
    assert world.at(4 * MINUTE).state() == ONLINE
    assert world.at(12 * MINUTE).state() == OFFLINE


def test_workers_below_a_relay_are_missed(world: World) -> None:
    """Its connection alone would keep them alive for ever; those of 2017 get a name from it."""
    relay, upward = Peer(1), Server()
    below = SyncsBelow(world.clock, upward, lambda command: world.server.receive(command, relay))
    below.start()
    upward.receive(UserSyncCommand("w1", ALICE, None, True, world.now), Peer(7))
    upward.receive(UserSyncCommand(None, BOB, None, True, world.now), Peer(8))
    assert world.at(20 * MINUTE).writer.states().keys() == {ALICE, BOB}
    upward.lost(Peer(7))
    assert world.at(24 * MINUTE).writer.states().keys() == {ALICE, BOB}
    assert world.at(32 * MINUTE).writer.states().keys() == {BOB}
    upward.lost(Peer(8))
    assert world.at(33 * MINUTE).writer.states().keys() == set()
    assert below.stop().called


def test_a_relay_misses_a_bounded_number(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond is passed on all the same, and cleared when it is said."""
    monkeypatch.setattr(presence_peers, "MAX_PROCESSES_BELOW", 1)
    upward, sent = Server(), []
    below = SyncsBelow(world.clock, upward, sent.append)
    for name in ("w1", "w2"):
        upward.receive(UserSyncCommand(name, ALICE, None, True, 1), Peer(7))
    below.process_alive("w2")
    assert list(below._heard) == ["w1"]
    for name in ("w1", "w2"):
        upward.receive(ClearUserSyncCommand(name), Peer(7))
    assert len(sent) == 4
    assert below._heard == {}
    assert below.stop().called


def test_device_is_passed_on(world: World) -> None:
    world.sync(True, Peer(1), device="PHONE")
    assert world.state() == "unknown"
    assert world.writer._syncs.is_open("p", ALICE, "PHONE")


# -- The worker -----------------------------------------------------------------------------


class Worker:
    """A reporter, and what it said: (user, syncing, when)."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.said: list[object] = []
        self.reporter = SyncReporter(self.clock, self.send, "me")
        self.reporter.start()

    def send(self, command: Command) -> None:
        if isinstance(command, UserSyncCommand):
            assert command.instance_id == "me"
            self.said.append((command.user_id, command.syncing, command.last_sync_ms))
        else:
            self.said.append(command)

    def take(self) -> list[object]:
        said, self.said = self.said, []
        return said

    def at(self, ms: int) -> Worker:
        advance_to(self.clock, ms)
        return self


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    assert made.reporter.stop().called
    assert made.reporter.stop().called
    assert made.said[-1] == ClearUserSyncCommand("me")
    assert made.clock.getDelayedCalls() == []


def test_first_sync_is_reported_and_the_last_end(worker: Worker) -> None:
    worker.reporter.sync_began(ALICE)
    worker.reporter.sync_began(ALICE)
    assert worker.take() == [(ALICE, True, 0)]
    worker.at(1_000).reporter.sync_ended(ALICE)
    worker.at(2_000).reporter.sync_ended(ALICE)
    worker.reporter.sync_ended(ALICE)
    assert worker.at(14_999).take() == []
    assert worker.at(15_000).take() == [(ALICE, False, 2_000)]


@pytest.mark.parametrize(("ended_ms", "reported_ms"), [(4_999, 15_000), (5_000, 20_000)])
def test_end_is_reported_when_it_has_lasted_ten_seconds(
    worker: Worker, ended_ms: int, reported_ms: int
) -> None:
    worker.reporter.sync_began(ALICE)
    worker.at(ended_ms).reporter.sync_ended(ALICE)
    worker.take()
    assert worker.at(reported_ms - 1).take() == []
    assert worker.at(reported_ms).take() == [(ALICE, False, ended_ms)]


def test_sync_that_begins_again_in_time_is_not_mentioned(worker: Worker) -> None:
    worker.reporter.sync_began(ALICE)
    worker.at(1_000).reporter.sync_ended(ALICE)
    worker.at(9_000).reporter.sync_began(ALICE)
    assert worker.at(59_999).take() == [(ALICE, True, 0)]


def test_open_syncs_are_said_again_on_connecting_and_every_minute(worker: Worker) -> None:
    worker.reporter.sync_began(ALICE)
    worker.reporter.sync_began(BOB)
    worker.at(50_000).reporter.sync_ended(BOB)
    worker.take()
    worker.reporter.connected()
    assert worker.take() == [(ALICE, True, 50_000), (BOB, True, 50_000)]
    worker.at(119_999).take()
    assert worker.at(120_000).take() == [(ALICE, True, 120_000)]
