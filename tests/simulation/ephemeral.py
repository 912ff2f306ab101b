"""Two homeservers in memory: typing and presence for days, on a fake clock, by a seed.

A `World` has two nodes that talk to each other with EDUs, some of which get lost. Each node
has a log that may refuse, a writer of typing and one of presence that may be killed, wheels
that may lose timers, processes that hold syncs open and vanish, and followers behind wires
that are cut. `World.step` does something at random; a `Model` beside each node knows from the
rules alone what may be true, and is asked after every step.

Everything comes from ``random.Random(seed)``: a seed is a whole history.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from tcprepl.ephemeral.follower import Follower
from tcprepl.ephemeral.ports import milliseconds
from tcprepl.ephemeral.presence import PresenceWriter
from tcprepl.ephemeral.presence_follower import PresenceFollower
from tcprepl.ephemeral.presence_states import BUSY, OFFLINE, ONLINE, UNAVAILABLE, PresenceTimers
from tcprepl.ephemeral.typing_notifications import (
    FEDERATION_TIMEOUT_MS,
    MAX_TIMEOUT_MS,
    TypingFollower,
    TypingWriter,
)
from tcprepl.ephemeral.wheel_timer import WheelTimer
from tcprepl.errors import LogUnavailable, TokenFromFuture, TokenTooOld
from tcprepl.streams.log import Appended
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry
from tcprepl.streams.retention import Bounds, Retention

SERVERS = ("here.example", "there.example")
ROOMS = tuple(f"!r{number}:here.example" for number in range(4))
STREAMS = ("typing", "presence", "presence_federation")
REGISTRY = Registry()
TIMERS = PresenceTimers()
#: Rows held before the log lets go: so few that a cut of a minute is often too long.
RETENTION = Retention(ephemeral=Bounds(max_rows=12), durable=Bounds(max_rows=12))

#: How late a timer may be: its bucket, and the loop that looks.
LATE_MS = 10_000
#: How much later when timers get lost: the sweep comes once a minute, and has to be sure.
LOST_MS = 70_000


def users_of(server: str) -> list[str]:
    """Return the users of a server."""
    return [f"@u{number}:{server}" for number in range(4)]


class LossyWheel(WheelTimer[Any]):
    """A wheel that loses some of what it is given."""

    def __init__(self, chance: random.Random, loss: float) -> None:
        super().__init__()
        self._chance = chance
        self._loss = loss

    def insert(self, obj: Any, then_ms: int) -> None:
        if self._chance.random() >= self._loss:
            super().insert(obj, then_ms)


class Model:
    """What the rules allow on one node, from what it was told: no timers, no loops.

    Attributes:
        late_ms: How late the node may be.
        typing: (room, user) -> until when it may type.
        heard: User of the node -> when it was last heard of.
        state: User of the node -> the last state that it or a sync asked for.
        syncs: Process -> (when it was last heard of, users).
        remote: User of the other node -> when its server last spoke of it.
    """

    def __init__(self, late_ms: int) -> None:
        self.late_ms = late_ms
        self.forget()

    def forget(self) -> None:
        """The writers were killed."""
        self.typing: dict[tuple[str, str], int] = {}
        self.heard: dict[str, int] = {}
        self.state: dict[str, str] = {}
        self.syncs: dict[str, tuple[int, set[str]]] = {}
        self.remote: dict[str, int] = {}

    def check_typing(self, typing: Mapping[str, Sequence[str]], now: int) -> None:
        """Nobody types too long, and nobody is taken off too early."""
        there = {(room, user) for room, users in typing.items() for user in users}
        for pair in there:
            assert pair in self.typing, f"{pair} types and never started"
            assert now <= self.typing[pair] + self.late_ms, f"{pair} types too long"
        for pair, until in self.typing.items():
            assert pair in there or until <= now, f"{pair} was taken off early"

    def latest_ms(self, user: str) -> int:
        """Return until when a user of the node may be other than offline."""
        latest = self.heard.get(user, -1)
        if self.state.get(user) == BUSY:
            latest += TIMERS.busy_offline_timeout_ms
        else:
            latest += TIMERS.sync_online_timeout_ms
        for heard, users in self.syncs.values():
            if user in users:
                latest = max(latest, heard + TIMERS.process_expiry_ms)
        return latest

    def check_presence(self, states: Mapping[str, Any], now: int, server: str) -> None:
        """Nobody is there without a reason."""
        for user, row in states.items():
            if user.endswith(f":{server}"):
                latest = self.latest_ms(user)
            else:
                latest = self.remote.get(user, -1) + TIMERS.federation_timeout_ms
            assert now <= latest + self.late_ms, f"{user} is {row.state} without a reason"


class Cursor:
    """A worker: followers fed from the log by a wire that can be cut.

    It reads as a subscriber is served: on from where it is, or anew when the log says that
    this cannot be.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.cut = False
        self.typing = TypingFollower()
        self.presence = PresenceFollower()
        self._places: dict[str, tuple[int, bool]] = {"typing": (0, True), "presence": (0, True)}

    def pump(self) -> None:
        """Read everything there is, unless the wire is cut."""
        if not self.cut:
            self._follow("typing", self.typing)
            self._follow("presence", self.presence)

    def _follow(self, stream: str, follower: Follower[Any]) -> None:
        log = self.node.log
        while True:
            at, compacted = self._places[stream]
            position = log.position(stream, "master")
            try:
                page = log.read(stream, "master", at, position, limit_rows=3, compacted=compacted)
            except (TokenTooOld, TokenFromFuture):
                follower.on_reset(stream, "master", at, 0)
                self._places[stream] = (0, True)
                continue
            for token, row in page.rows():
                follower.handle_rows(stream, "master", token, REGISTRY.rows(stream, [row]))
            self._places[stream] = (page.upto, compacted and page.limited)
            if not page.limited:
                return


class Node:
    """A homeserver."""

    def __init__(self, world: World, server: str, loss: float) -> None:
        self.world = world
        self.server = server
        self.loss = loss
        self.refusing = False
        self.model = Model(LATE_MS + (LOST_MS if loss else 0))
        self.log = self._make_log()
        self._make_writers()
        self.workers = [Cursor(self) for _ in range(2)]
        self.processes = 0

    def _make_log(self) -> MemoryLog:
        return MemoryLog(REGISTRY, self.world.now, RETENTION)

    def _make_writers(self) -> None:
        clock, chance = self.world.clock, self.world.chance
        publisher = Publisher(self.log, REGISTRY, "master")

        def publish(
            stream: str, rows: Sequence[object], *, batch: bool = False
        ) -> Deferred[Appended]:
            if self.refusing:
                return fail(LogUnavailable("the disk is full"))
            return publisher.publish(stream, rows, batch=batch)

        self.typing = TypingWriter(
            clock,
            publish,
            self.server,
            hosts_in_room=lambda _: SERVERS,
            send_edu=self.send_edu,
            position=self.log.position("typing", "master"),
            wheel=LossyWheel(chance, self.loss),
        )
        self.presence = PresenceWriter(
            clock,
            publish,
            self.server,
            hosts_of_user=lambda _: SERVERS,
            send_presence=self.send_presence,
            position=self.log.position("presence", "master"),
            wheel=LossyWheel(chance, self.loss),
        )
        self.typing.start()
        self.presence.start()

    def stop(self) -> None:
        """Stop the writers."""
        assert self.typing.stop().called
        assert self.presence.stop().called

    def kill(self) -> None:
        """Kill the process and start it again: memory is gone, tokens go on further up."""
        self.stop()
        before = self.log
        self.log = self._make_log()
        for stream in STREAMS:
            start = before.position(stream, "master") + self.world.chance.randint(1, 100)
            assert self.log.advance(stream, "master", start).called
            self.log.trim(stream, "master", start)
        self.model.forget()
        self._make_writers()

    # -- federation ------------------------------------------------------------------------

    @property
    def other(self) -> Node:
        """The other homeserver."""
        return next(node for node in self.world.nodes if node is not self)

    def send_edu(
        self,
        destinations: Collection[str],
        edu_type: str,
        content: Mapping[str, Any],
        key: Sequence[str],
    ) -> None:
        """Send typing; the network may lose it."""
        assert list(destinations) == [self.other.server]
        self._send(self.other.received_typing, dict(content))

    def send_presence(self, row: Any, destinations: Collection[str], /) -> None:
        """Send presence; the network may lose it."""
        assert list(destinations) == [self.other.server]
        push = {
            "user_id": row.user_id,
            "presence": row.state,
            "last_active_ago": max(self.world.now() - row.last_active_ts, 0),
            "currently_active": bool(row.currently_active),
        }
        self._send(self.other.received_presence, push)

    def _send(self, receive: Callable[[dict[str, Any]], None], content: dict[str, Any]) -> None:
        chance = self.world.chance
        if chance.random() > 0.1:
            self.world.clock.callLater(chance.randint(0, 2_000) / 1000, receive, content)

    def received_typing(self, content: dict[str, Any]) -> None:
        """Take an EDU."""
        assert self.typing.received_edu(self.other.server, content)
        pair = (content["room_id"], content["user_id"])
        if content["typing"]:
            self.model.typing[pair] = self.world.now() + FEDERATION_TIMEOUT_MS
        else:
            self.model.typing.pop(pair, None)

    def received_presence(self, push: dict[str, Any]) -> None:
        """Take an EDU."""
        assert self.presence.received_edu(self.other.server, {"push": [push]}) == 1
        self.model.remote[push["user_id"]] = self.world.now()

    # -- what users and workers do ------------------------------------------------------------

    def start_typing(self, room: str, user: str, timeout_ms: int) -> None:
        """A client says so."""
        self.typing.started_typing(room, user, timeout_ms)
        self.model.typing[room, user] = self.world.now() + min(timeout_ms, MAX_TIMEOUT_MS)

    def stop_typing(self, room: str, user: str, *, leave: bool) -> None:
        """A client says so, or the user leaves the room."""
        if leave:
            self.typing.user_left_room(user, room)
        else:
            self.typing.stopped_typing(room, user)
        self.model.typing.pop((room, user), None)

    def set_state(self, user: str, state: str) -> None:
        """A client says so."""
        self.presence.set_state(user, state)
        self.model.heard[user] = self.world.now()
        self.model.state[user] = state

    def active(self, user: str) -> None:
        """A user does something."""
        self.presence.user_active(user)
        self.model.heard[user] = self.world.now()

    def sync(self, process: str, user: str, syncing: bool, ago_ms: int) -> None:
        """A process reports a sync."""
        now = self.world.now()
        self.presence.user_syncing(process, user, syncing, now - ago_ms)
        users = self.model.syncs.get(process, (0, set()))[1]
        known = user in users
        (users.add if syncing else users.discard)(user)
        self.model.syncs[process] = (now, users)
        if syncing or known:
            self.model.heard[user] = max(self.model.heard.get(user, 0), now - ago_ms)
            if syncing and not known and self.model.state.get(user, OFFLINE) == OFFLINE:
                self.model.state[user] = ONLINE

    def clear(self, process: str) -> None:
        """A process ends in order."""
        self.presence.clear_process(process)
        for user in self.model.syncs.pop(process, (0, set()))[1]:
            self.model.heard[user] = self.world.now()

    def alive(self, process: str) -> None:
        """A process is heard of."""
        self.presence.process_alive(process)
        if process in self.model.syncs:
            self.model.syncs[process] = (self.world.now(), self.model.syncs[process][1])

    def check(self) -> None:
        """Compare with the model, and the connected followers with the rules."""
        now = self.world.now()
        self.model.check_typing(self.typing.typing(), now)
        self.model.check_presence(self.presence.states(), now, self.server)
        for worker in self.workers:
            worker.pump()
            if not worker.cut:
                self.compare(worker)

    def compare(self, worker: Cursor) -> None:
        """Compare a connected worker with the writers, but for what the log refused."""
        if not self.typing._unpublished:
            followed = {room: list(users) for room, users in worker.typing.typing().items()}
            assert followed == self.typing.typing()
        if not self.presence._refused:
            followed = {user: row.state for user, row in worker.presence.states().items()}
            assert followed == {user: row.state for user, row in self.presence.states().items()}


class World:
    """Two nodes on one clock."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.clock = Clock()
        self.clock.rightNow = 10_000_000.0
        loss = self.chance.choice([0.0, 0.0, 0.3, 1.0])
        self.nodes: list[Node] = []
        for server in SERVERS:
            self.nodes.append(Node(self, server, loss))

    def now(self) -> int:
        """Return the time in ms."""
        return milliseconds(self.clock)

    def step(self) -> None:
        """Let something happen, then time pass."""
        chance = self.chance
        node = chance.choice(self.nodes)
        user = chance.choice(users_of(node.server))
        room = chance.choice(ROOMS)
        process = f"p{chance.randint(0, 2)}"
        what = chance.choices(
            (
                lambda: node.start_typing(
                    room, user, chance.choice([0, 1_000, 30_000, 120_000, 999_999])
                ),
                lambda: node.stop_typing(room, user, leave=chance.random() < 0.3),
                lambda: node.set_state(user, chance.choice([ONLINE, UNAVAILABLE, BUSY, OFFLINE])),
                lambda: node.active(user),
                lambda: node.sync(process, user, True, chance.choice([0, 0, 1_000, -5_000])),
                lambda: node.sync(process, user, False, chance.choice([0, 10_000])),
                lambda: node.clear(process),
                lambda: node.alive(process),
                node.kill,
                lambda: self.toggle_refusal(node),
                lambda: self.toggle_wire(node),
                lambda: self.replace_worker(node),
            ),
            weights=(30, 12, 12, 8, 12, 8, 3, 8, 1, 2, 6, 2),
        )[0]
        what()
        self.pass_time(
            chance.choices(
                (
                    lambda: 0,
                    lambda: chance.randint(1, 2_000),
                    lambda: chance.randint(2_000, 60_000),
                    lambda: chance.randint(60_000, 900_000),
                    lambda: chance.randint(900_000, 30_000_000),
                ),
                weights=(20, 30, 40, 9, 0.3),
            )[0]()
        )

    def toggle_refusal(self, node: Node) -> None:
        """The disk fills up, or has room again."""
        node.refusing = not node.refusing

    def toggle_wire(self, node: Node) -> None:
        """Cut or heal a worker's wire."""
        worker = self.chance.choice(node.workers)
        worker.cut = not worker.cut

    def replace_worker(self, node: Node) -> None:
        """Kill a worker and start another, which knows nothing."""
        node.workers[self.chance.randrange(len(node.workers))] = Cursor(node)

    def pass_time(self, ms: int) -> None:
        """Let time pass, each call at its own time, checking as it goes."""
        end = round(self.clock.rightNow + ms / 1000, 3)
        while True:
            due = min(call.getTime() for call in self.clock.getDelayedCalls())
            if due > end:
                break
            self.clock.rightNow = max(due, self.clock.rightNow)
            self.clock.advance(0)
        self.clock.rightNow = max(end, self.clock.rightNow)
        self.check()

    def check(self) -> None:
        """Compare everything with the rules."""
        for node in self.nodes:
            node.check()

    def settle(self) -> None:
        """Heal everything, let it come to rest, and compare followers with their writers."""
        for node in self.nodes:
            node.refusing = False
            for worker in node.workers:
                worker.cut = False
        # The flush of presence comes once a minute, that of refused rows every five seconds.
        self.pass_time(125_000)
        for node in self.nodes:
            assert not node.typing._unpublished
            assert not node.presence._refused
            if not node.presence._quiet:
                for worker in node.workers:
                    assert worker.presence.states() == node.presence.states()
        # Presence moves by itself while somebody is there. Once nobody is, all are equal.
        for node in self.nodes:
            for process in list(node.model.syncs):
                node.clear(process)
        self.pass_time(100 * 60_000)
        for node in self.nodes:
            assert node.typing.typing() == {}
            assert node.presence.states() == {}
            assert len(node.typing._board) == 0
            for worker in node.workers:
                worker.pump()
                assert worker.typing.typing() == {}
                assert worker.presence.states() == {}

    def close(self) -> None:
        """Stop everything; nothing may be left on the clock but EDUs on their way."""
        for node in self.nodes:
            node.stop()
