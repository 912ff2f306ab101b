"""Typing and presence through the real server, client and log, over a network in memory.

`tests.simulation.ephemeral` asks whether writers and followers are right whatever happens
around them. Here what happens around them is the real thing: sessions, cursors, resets,
reconnects, wires that fragment and are cut, a server that is killed. ``SEEDS`` and ``SEED``
work as in `tests.simulation.test_ephemeral`.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator

import pytest
import structlog
from twisted.internet.defer import Deferred

from tcprepl.ephemeral.ports import milliseconds
from tcprepl.ephemeral.presence import PresenceFollower, PresenceWriter
from tcprepl.ephemeral.presence_peers import SyncListener, SyncReporter
from tcprepl.ephemeral.presence_states import BUSY, OFFLINE, ONLINE, UNAVAILABLE
from tcprepl.ephemeral.typing_notifications import TypingFollower, TypingWriter
from tcprepl.replication.following.client import ReplicationClient
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry
from tcprepl.streams.retention import Bounds, Retention
from tests.wire import Network

SERVER = "here.example"
ROOMS = tuple(f"!r{number}:{SERVER}" for number in range(3))
USERS = tuple(f"@u{number}:{SERVER}" for number in range(4))
STREAMS = ("typing", "presence")
REGISTRY = Registry()
RETENTION = Retention(ephemeral=Bounds(max_rows=12))
STEPS = 80

only = os.environ.get("SEED")
SEEDS = [int(only)] if only else range(int(os.environ.get("SEEDS", "100")) // 5)


class Worker:
    """A worker process: a client, two followers, and clients of its own that sync."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.lives = 0
        self.begin()

    def begin(self) -> None:
        """Start, knowing nothing."""
        self.lives += 1
        network = self.world.network
        self.typing = TypingFollower()
        self.presence = PresenceFollower()
        self.client = ReplicationClient(
            network.clock,
            network.client_endpoint(self.name),
            STREAMS,
            self.handle,
            name=self.name,
            server_name=SERVER,
            since="start",
            on_reset=self.reset,
            on_connected=lambda _: self.reporter.connected(),
            registry=REGISTRY,
        )
        self.reporter = SyncReporter(network.clock, self.client.send, f"{self.name}-{self.lives}")
        self.reporter.start()
        self.syncing: list[str] = []
        self.client.startService()

    def handle(self, stream: str, instance: str, token: int, rows: object) -> None:
        """Pass rows to the follower of their stream."""
        follower = self.typing if stream == "typing" else self.presence
        follower.handle_rows(stream, instance, token, rows)  # type: ignore[arg-type]

    def reset(self, stream: str, instance: str, known: int | None, token: int) -> None:
        """Pass a reset to the follower of its stream."""
        follower = self.typing if stream == "typing" else self.presence
        follower.on_reset(stream, instance, known, token)

    def kill(self) -> None:
        """Die and start again: nobody is told, all memory is gone."""
        if (wire := self.world.network.wires.get(self.name)) is not None:
            wire.cut()
        self.stop(tell=False)
        self.begin()

    def stop(self, *, tell: bool) -> None:
        """Stop, in order or not."""
        if not tell:
            self.client.send = lambda command: False  # type: ignore[method-assign]
            self.reporter._send = self.client.send
        assert self.reporter.stop().called
        stopped = self.client.stopService()
        self.world.network.run(30)
        assert stopped.called

    def sync(self, user: str) -> None:
        """A client of a user opens or closes a sync here."""
        if user in self.syncing:
            self.syncing.remove(user)
            self.reporter.sync_ended(user)
        else:
            self.syncing.append(user)
            self.reporter.sync_began(user)


class World:
    """A server process and two workers."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.network = Network(window_bytes=400)
        self.network.clock.rightNow = 10_000_000.0
        self.log = self.make_log()
        self.asked_to_be_offline: set[str] = set()
        self.begin()
        self.workers = [Worker(self, name) for name in ("w0", "w1")]

    def make_log(self) -> MemoryLog:
        return MemoryLog(REGISTRY, lambda: milliseconds(self.network.clock), RETENTION)

    def begin(self) -> None:
        """Start the server process."""
        clock = self.network.clock
        publisher = Publisher(self.log, REGISTRY, "master")
        for stream in STREAMS:
            self.log.ensure(stream, "master")
        self.typing = TypingWriter(
            clock, publisher.publish, SERVER, position=self.log.position("typing", "master")
        )
        self.presence = PresenceWriter(
            clock, publisher.publish, SERVER, position=self.log.position("presence", "master")
        )
        self.server = ReplicationServer(clock, self.log, REGISTRY, SERVER, "master")
        self.syncs = SyncListener(clock, self.server, self.presence)
        for part in (self.typing, self.presence, self.syncs):
            part.start()
        assert Deferred.fromCoroutine(self.server.listen(self.network.server_endpoint())).called

    def stop_server(self) -> None:
        """Stop everything of the server process."""
        self.network.factory = None
        for wire in self.network.wires.values():
            wire.cut()
        for part in (self.typing, self.presence, self.syncs):
            assert part.stop().called
        stopping = self.server.stop()
        stopped = stopping if isinstance(stopping, Deferred) else Deferred.fromCoroutine(stopping)
        self.network.run(1)
        assert stopped.called

    def kill_server(self) -> None:
        """Kill the server process and start it again: tokens go on further up."""
        self.stop_server()
        before, self.log = self.log, self.make_log()
        for stream in STREAMS:
            start = before.position(stream, "master") + self.chance.randint(1, 100)
            assert self.log.advance(stream, "master", start).called
            self.log.trim(stream, "master", start)
        self.network.run(self.chance.choice([0, 5, 60]))
        self.begin()

    def cut(self) -> None:
        """Cut a wire; it may be made again at once."""
        wires = [wire for wire in self.network.wires.values() if wire.alive]
        if wires:
            self.chance.choice(wires).cut()

    def trickle(self) -> None:
        """Let only a few bytes arrive, here and there."""
        for _ in range(10):
            for wire in list(self.network.wires.values()):
                self.chance.choice(wire.ends).arrive(self.chance.randint(1, 30))
            self.network.clock.advance(0.01)

    def set_state(self, user: str, state: str) -> None:
        """A client says so."""
        self.presence.set_state(user, state)
        if state == OFFLINE:
            self.asked_to_be_offline.add(user)
        else:
            self.asked_to_be_offline.discard(user)

    def step(self) -> None:
        """Let something happen."""
        chance = self.chance
        room, user = chance.choice(ROOMS), chance.choice(USERS)
        worker = chance.choice(self.workers)
        state = chance.choice([ONLINE, UNAVAILABLE, BUSY, OFFLINE])
        timeout_ms = chance.choice([1_000, 30_000, 120_000])
        chance.choices(
            (
                lambda: self.typing.started_typing(room, user, timeout_ms),
                lambda: self.typing.stopped_typing(room, user),
                lambda: self.set_state(user, state),
                lambda: worker.sync(user),
                self.trickle,
                lambda: self.network.run(chance.choice([0.5, 3, 12])),
                self.cut,
                worker.kill,
                self.kill_server,
            ),
            weights=(30, 12, 10, 12, 12, 20, 4, 1, 1),
        )[0]()

    def check(self) -> None:
        """Heal, come to rest, and compare each worker with the writers."""
        self.network.run(125)
        for worker in self.workers:
            assert worker.client.connected
            followed = {room: list(users) for room, users in worker.typing.typing().items()}
            assert followed == self.typing.typing()
            states = {user: row.state for user, row in worker.presence.states().items()}
            assert states == {user: row.state for user, row in self.presence.states().items()}
        syncing = {user for worker in self.workers for user in worker.syncing}
        assert syncing - self.asked_to_be_offline <= self.presence.states().keys()

    def end(self) -> None:
        """Let the workers stop in order; then nobody is there, but for the busy ones."""
        for worker in self.workers:
            worker.stop(tell=True)
        # Those that were killed told nobody: they are missed after five minutes.
        self.network.run(360, step=1)
        assert self.typing.typing() == {}
        assert all(row.state == BUSY for row in self.presence.states().values())
        self.stop_server()
        self.network.run(30)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keep the log lines of all that goes wrong here to ourselves."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


def test_row_published_while_a_reader_resumes_at_the_head_comes_after_its_position() -> None:
    """The socket is full of rows of another stream when the row comes: no reset may follow."""
    world = World(0)
    worker, network = world.workers[0], world.network
    world.set_state(USERS[0], BUSY)
    network.run(1)
    resets: list[tuple[object, ...]] = []
    worker.client._delivery._on_reset = lambda *reset: resets.append(reset)
    before = network.wires["w0"]
    before.cut()
    for number in range(10):
        world.typing.started_typing(ROOMS[0], f"@typist{number}:{SERVER}", 120_000)
    while network.wires["w0"] is before:
        network.clock.advance(0.1)
    wire = network.wires["w0"]
    wire.client.arrive()
    while not wire.server.arrive():
        network.clock.advance(0)
    network.clock.advance(0)
    world.set_state(USERS[1], BUSY)
    network.run(10)
    assert worker.presence.states().keys() == {USERS[0], USERS[1]}
    assert resets == []
    world.end()


@pytest.mark.parametrize("seed", SEEDS)
def test_workers_end_equal_to_the_writer(seed: int) -> None:
    # The client's pauses before it connects again are random, too.
    random.seed(seed)
    world = World(seed)
    for _ in range(STEPS):
        world.step()
    world.check()
    world.end()
