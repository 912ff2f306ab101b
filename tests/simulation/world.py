"""One simulated world: every part of it is the real one, but time, chance, wires and disks.

A seed makes a `schedule`: a list of steps, each a moment, something that happens, and numbers
that say to whom. `play` lets a schedule happen and raises `Broken`, or whatever
code of ours raised where nobody catches it. All that is random beside the schedule comes from the
seed and the number of the step, so that a schedule with steps left out is a history, too: that is
how a failing one is made smaller (`shrunk`).
"""

from __future__ import annotations

import gc
import logging
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock
from zlib import crc32

import structlog
from twisted.internet.defer import Deferred, maybeDeferred

from tcprepl import metrics
from tcprepl.ephemeral.presence_states import BUSY, OFFLINE, ONLINE, UNAVAILABLE
from tcprepl.federation.wire.answer import Answer
from tcprepl.ids import Pair
from tcprepl.protocol.commands import FederationAckCommand, RemoteServerUpCommand
from tcprepl.streams import history
from tcprepl.streams.retention import Bounds
from tcprepl.streams.sqlite_schema import DATABASE_NAME
from tests import invariants
from tests.simulation.buses import STREAMS, WRITERS, Bus, Database, Synapse
from tests.simulation.disk import REFUSALS, SLOW, Disks, turn_a_bit
from tests.simulation.federation import MODES, Remotes, Sender
from tests.simulation.machines import (
    OFTEN,
    ROOMS,
    ROWS,
    SELDOM,
    SENDERS,
    USERS,
    Broken,
    LogMachine,
    Machine,
    Server,
    Worker,
    Writer,
    every,
    kept,
    retention,
)
from tests.simulation.operators import change_senders, copy_outbox, put_back_outbox
from tests.simulation.pollers import Poller
from tests.simulation.relays import Redis, Relay
from tests.simulation.universe import Connection, Network, Process, Universe

#: Steps between two moments at which all is healed and compared, and how many such rounds.
STEPS = 25
ROUNDS = 3
#: After that nobody is there any more whom nobody keeps there: a relay misses a process after five
#: minutes, and looks once a minute.
ALL_GONE_S = 420.0
#: Timers that a process may have when all is quiet.
MAX_CALLS = 60
#: How long it takes until all that was delayed, retried or missed has come.
QUIET_S = 150.0
#: How long nothing may have been published when all is compared.
SETTLED_S = 2.0


class Step(NamedTuple):
    """Something that happens.

    Attributes:
        number: Its place in the whole schedule, which seeds what is random in it; what happens
            besides is counted by itself.
        what: The name of a method of `World`, without ``do_``.
        who: Says to whom, and how.
        after_s: How much time passes then.
    """

    number: int
    what: str
    who: int
    after_s: float


#: What happens, and how often, relative to each other.
HAPPENINGS = {
    "publish": 34,
    "write": 12,
    "type": 8,
    "appear": 6,
    "sync": 4,
    "mood": 6,
    "kill": 5,
    "lose_machine": 2,
    "stop": 2,
    "freeze": 3,
    "cut": 4,
    "half_close": 2,
    "freeze_wire": 3,
    "part": 3,
    "slow": 2,
    "refuse": 4,
    "jump": 2,
    "back_up": 2,
    "restore": 1,
    "damage": 1,
    "put_back_a_worker": 1,
    "put_back_a_poller": 1,
    "retain": 1,
    "overflow": 2,
    "queue": 12,
    "trouble": 4,
    "operate": 2,
    "first_row": 2,
    "remote_up": 1,
    "strange_ack": 1,
    "quiet": 0,
}
#: What happens besides, by a chance of its own, so that all else stays what it was without.
BESIDES = {"change_senders": 3, "put_back_an_outbox": 4}
#: How many of those there are in a round.
MOST_BESIDES = 4
#: From which number on they are counted.
FIRST_BESIDES = 1_000


def schedule(
    seed: int, rounds: int = ROUNDS, steps: int = STEPS, only: Collection[str] = ()
) -> list[Step]:
    """Return the schedule of *seed*, of all that may happen or of a part of it."""
    chance = random.Random(seed)
    names = [name for name in HAPPENINGS if not only or name in only]
    weights = [HAPPENINGS[name] for name in names]
    made: list[Step] = []
    for _ in range(rounds):
        for what in chance.choices(names, weights, k=steps if names else 0):
            after_s = chance.choices(
                (0.0, chance.uniform(0, 1), chance.uniform(1, 30), chance.uniform(30, 900)),
                (30, 40, 25, 5),
            )[0]
            made.append(Step(len(made), what, chance.randrange(1 << 30), round(after_s, 3)))
        made.append(Step(len(made), "quiet", chance.randrange(1 << 30), 0.0))
    return _with_besides(seed, made, steps, only)


def _with_besides(seed: int, made: list[Step], steps: int, only: Collection[str]) -> list[Step]:
    """Return a schedule with what happens besides."""
    names = [name for name in BESIDES if not only or name in only]
    chance = random.Random(f"{seed}/besides")
    found: list[Step] = []
    left = 0
    for at, step in enumerate(made):
        if names and (at == 0 or made[at - 1].what == "quiet"):
            left = chance.randrange(MOST_BESIDES + 1)
            places = sorted(chance.randrange(steps) for _ in range(left))
            begun = at
        while names and left and places[-left] <= at - begun and step.what != "quiet":
            number = FIRST_BESIDES + sum(one.number >= FIRST_BESIDES for one in found)
            what = chance.choices(names, [BESIDES[name] for name in names])[0]
            found.append(Step(number, what, chance.randrange(1 << 30), chance.choice([0.0, 1.0])))
            left -= 1
        found.append(step)
    return found


class World:
    """Machines, the network between them, and what was said and answered.

    Attributes:
        said: Who said each number.
        said_rows: The same numbers as rows.
        answers: Token of each row that was answered.
        over: Whether nothing is started again any more.
        offline: Users who asked to be that.
        coverage: (what happened, to whom in which state) -> how often.
        sender_names: The senders that share the destinations, as all are told them.
    """

    def __init__(self, seed: int, where: Path) -> None:
        self.seed = seed
        self.where = where
        self.universe = Universe(random.Random(seed))
        self.network = Network(self.universe)
        self.disks = Disks(where, self.universe.chance)
        self.over = False
        self.coverage: Counter[tuple[str, str]] = Counter()
        self.said: dict[int, str] = {}
        self.said_rows: set[str] = set()
        self.answers: dict[Pair, dict[str, int]] = {}
        self.graves: list[Any] = []
        self.offline: set[str] = set()
        self.server = Server(self, "server")
        self.writers = [Writer(self, "p0"), Writer(self, "p1")]
        self.redis = Redis(self, "redis")
        self.relays = [Relay(self, "relay"), Relay(self, "relay-redis", over_redis=True)]
        self.database = Database()
        self.bus = Bus(self, "bus", self.database)
        self.synapses = [Synapse(self, name, self.database) for name in WRITERS]
        self.logs: list[LogMachine] = [self.server, *self.relays, self.bus]
        self.workers = [
            Worker(self, "w0", self.server, "server"),
            Worker(self, "w1", self.server, "server"),
            Worker(self, "w2", self.relays[0], "relay"),
            Worker(self, "w3", self.relays[1], "relay-redis", ["push_rules"]),
            Worker(self, "w4", self.bus, "bus", ["push_rules"]),
        ]
        self.pollers = [
            Poller(self, "h0", self.server),
            Poller(self, "h1", self.relays[0]),
        ]
        self.remotes = Remotes(self)
        self.sender_names: tuple[str, ...] = SENDERS
        self.senders = [Sender(self, name) for name in SENDERS]
        self.machines: list[Machine] = [
            self.server,
            self.redis,
            *self.relays,
            self.bus,
            *self.synapses,
            *self.writers,
            *self.senders,
            *self.workers,
            *self.pollers,
        ]

    def make_process(self, host: str) -> Process:
        """Return a new process on a machine."""
        return Process(self.universe, host)

    def saw(self, what: str, state: str) -> None:
        """Note for the report that something met something."""
        self.coverage[what, state] += 1

    # -- what writers were told ----------------------------------------------------------

    def note_answer(self, pair: Pair, rows: Sequence[tuple[int, int]]) -> None:
        """A writer was told that rows are safe."""
        self.answers.setdefault(pair, {}).update((str(number), token) for token, number in rows)

    def answered(self, machine: LogMachine) -> dict[Pair, dict[str, int]]:
        """Return what writers were told of the log of *machine*."""
        return self.answers if machine is self.server else {}

    def voided(self, machine: LogMachine, positions: dict[Pair, int]) -> None:
        """A copy was put back: what was answered after it is void, and everybody knows."""
        if machine is self.server:
            self.remotes.voided(positions.get(("federation", "master"), 0))
            for pair, rows in self.answers.items():
                upto = positions.get(pair, 0)
                self.answers[pair] = {row: token for row, token in rows.items() if token <= upto}

    def goes_back(self, machine: LogMachine) -> None:
        """Do what an operator has to do before an older copy is put back.

        Over Redis nobody can say in which incarnation he is, and whoever has gone back and on
        again looks as if he had gone on: a relay there begins with an empty directory.
        """
        if machine is self.server:
            for relay in self.relays:
                if relay.over_redis:
                    relay.wipe()

    # -- the course of things ------------------------------------------------------------

    def begin(self) -> None:
        """Start everything."""
        for machine in self.machines:
            machine.boot()
        self.universe.run(5)
        self._check_logs()

    def happen(self, step: Step) -> None:
        """Let a step happen, and the time after it pass."""
        self.universe.chance.seed(crc32(f"{self.seed}/{step.number}".encode()))
        self.universe.note(step.what)
        getattr(self, f"do_{step.what}")(random.Random(step.who))
        self.universe.run(step.after_s)
        self._check_logs()

    def _check_logs(self) -> None:
        for machine in self.logs:
            if machine.up:
                machine.check_log()

    def end(self) -> None:
        """Stop everything in order; without workers nobody is there but who said that he is."""
        self.over = True
        for machine in reversed(self.machines):
            if machine is self.relays[-1]:  # they have to miss who has ended below them
                self.universe.run(ALL_GONE_S)
                here = {u: row.state for u, row in self.server.presence.states().items()}
                stuck = {u: state for u, state in here.items() if state != BUSY}
                typing = self.server.typing.typing()
                faults = invariants.state_faults({**stuck, **typing}, {})
                kept("server, when all have gone,", faults)
            if machine.up:
                stopped = machine.stop()
                for _ in range(60):
                    if stopped.called:
                        break
                    self.universe.run(1)
                if not stopped.called:
                    raise Broken(machine.name, ["does not stop"])
                stopped.addErrback(lambda failure: failure.raiseException())
                machine.up = False

    def close(self) -> None:
        """Let go of everything, whatever state it is in."""
        self.over = True
        for machine in self.machines:
            if machine.up:
                machine.end_process()
        self.universe.forget()
        self.network.listeners.clear()
        self.network.connections.clear()
        vars(self).clear()

    # -- what happens --------------------------------------------------------------------

    def do_publish(self, chance: random.Random) -> None:
        """Writers publish."""
        for _ in range(chance.choice([1, 1, 3, 20])):
            writer = chance.choice(self.writers)
            count = chance.choice([1, 1, 1, 2, 7])
            numbers = list(range(len(self.said), len(self.said) + count))
            writer.publish(chance.choice(OFTEN), numbers, chance.random() < 0.3)

    def do_write(self, chance: random.Random) -> None:
        """Processes of a Synapse write."""
        for _ in range(chance.choice([1, 3, 20])):
            synapse = chance.choice(self.synapses)
            stream = chance.choice(STREAMS)
            if synapse.up and not synapse.process.frozen:
                number = len(self.said)
                self.said[number] = synapse.name
                self.said_rows.add(str(number))
                synapse.write(stream, number)

    def do_type(self, chance: random.Random) -> None:
        """Users type."""
        if self.server.up:
            room, user = chance.choice(ROOMS), chance.choice(USERS)
            if chance.random() < 0.7:
                self.server.typing.started_typing(room, user, chance.choice([1_000, 30_000]))
            else:
                self.server.typing.stopped_typing(room, user)

    def do_appear(self, chance: random.Random) -> None:
        """A user says how it is."""
        if self.server.up:
            user, state = chance.choice(USERS), chance.choice([ONLINE, UNAVAILABLE, BUSY, OFFLINE])
            self.server.presence.set_state(user, state)
            (self.offline.add if state == OFFLINE else self.offline.discard)(user)

    def do_sync(self, chance: random.Random) -> None:
        """A user syncs at a worker, or ends that; some workers then end without a word."""
        worker = chance.choice([one for one in self.workers if one.source is not self.bus])
        if worker.up:
            worker.sync(chance.choice(USERS))
            if chance.random() < 0.3:
                self.universe.run(1.0)  # it has come to the server
                self.saw("end with a sync open", worker.state())
                worker.kill()

    def do_mood(self, chance: random.Random) -> None:
        """A worker's handlers fail for a while."""
        worker = chance.choice(self.workers)
        moods = ["raises", "raises first", "raises half-way", "waits", "dies", "well"]
        worker.moods = chance.choices(moods, (4, 2, 4, 4, 1, 3), k=chance.randint(1, 6))
        for mood in worker.moods:
            self.saw(f"handler {mood}", worker.state())

    def _victim(self, chance: random.Random, what: str) -> Machine:
        machine = chance.choice(self.machines)
        if chance.random() < 0.3:
            machine = self.server
        if chance.random() < 0.5:
            self._occupy(machine, chance)
        self.saw(what, f"{machine.kind}, {machine.state()}")
        return machine

    def _occupy(self, victim: Machine, chance: random.Random) -> None:
        """Let somebody be met in the middle of something, who has nothing to do at most times."""
        if not victim.up or victim.process.frozen:
            return
        if isinstance(victim, Sender):
            self.do_queue(chance)
            self._until(lambda: not victim.up or bool(victim.sender._running))
        elif isinstance(victim, Worker):
            victim.moods.insert(0, "waits")
            (self.do_write if victim.source is self.bus else self.do_publish)(chance)
            self._until(lambda: not victim.up or victim.handling)
        elif isinstance(victim, Writer):
            victim.publish(chance.choice(OFTEN), [len(self.said)], batch=False)

    def _until(self, what: Callable[[], bool]) -> None:
        for _ in range(600):
            if what():
                break
            self.universe.run(0.005)

    def do_kill(self, chance: random.Random) -> None:
        """Somebody is killed."""
        self._kill(chance, "kill", silent=False)

    def do_lose_machine(self, chance: random.Random) -> None:
        """A machine goes, and nobody tells its peers."""
        self._kill(chance, "lose the machine of", silent=True)

    def _kill(self, chance: random.Random, what: str, *, silent: bool) -> None:
        victim = chance.choice(self.machines)
        if (toss := chance.random()) < 0.4:
            victim = self.server
        elif toss < 0.5:
            victim = chance.choice(self.senders)
        # between any two steps: something is under way more often than not
        if victim.threads and victim.up and chance.random() < 0.7:
            slow = victim.disk.mood == "ok" and chance.random() < 0.3
            if slow:
                victim.disk.mood = SLOW
            if isinstance(victim, Sender):
                self.do_queue(chance)
            else:
                (self.do_write if victim is self.bus else self.do_publish)(chance)
            for _ in range(2_000):
                if victim.threads and victim.threads[0].jobs:
                    break
                self.universe.run(0.001)
            if slow:  # long enough for others to hear what was said before it was on disk
                self.universe.run(chance.random() * 0.2)
                victim.disk.mood = "ok"
        elif not victim.threads and chance.random() < 0.5:
            self._occupy(victim, chance)
        self.saw(what, f"{victim.kind}, {victim.state()}")
        victim.kill(silent=silent, restart_s=chance.choice([0.0, 1.0, 30.0, 200.0]))

    def do_stop(self, chance: random.Random) -> None:
        """Somebody is stopped in order, and started again."""
        victim = self._victim(chance, "stop")
        if not victim.up or victim.process.frozen:
            return
        stopped = victim.stop()
        self.universe.run(10)
        if victim.up:  # it may have been killed meanwhile
            self.saw("stop", "in time" if stopped.called else "killed in the end")
            stopped.addErrback(lambda failure: None)
            victim.end_process()
        victim.boot_later()

    def do_freeze(self, chance: random.Random) -> None:
        """Somebody is stopped by SIGSTOP for a while."""
        victim = self._victim(chance, "freeze")
        if victim.up and not victim.process.frozen:
            process = victim.process
            process.freeze()
            self.universe.later(chance.choice([2.0, 20.0, 90.0]), self._thaw, process)

    @staticmethod
    def _thaw(process: Process) -> None:
        if process.alive and process.frozen:
            process.thaw()

    def _wire(self, chance: random.Random, what: str) -> Connection | None:
        wires = [wire for wire in self.network.connections if wire.alive]
        if not wires:
            return None
        if chance.random() < 0.3:
            self.do_publish(chance)
            self.universe.run(0.005)
        busy = [wire for wire in wires if any(side.outgoing for side in wire.sides)]
        wire = chance.choice(busy if busy and chance.random() < 0.5 else wires)
        self.saw(what, "bytes under way" if any(s.outgoing for s in wire.sides) else "silence")
        return wire

    def do_cut(self, chance: random.Random) -> None:
        """A connection is reset."""
        if (wire := self._wire(chance, "cut")) is not None:
            wire.cut()

    def do_half_close(self, chance: random.Random) -> None:
        """One end hears that the other has closed, which has not."""
        if (wire := self._wire(chance, "half close")) is not None:
            wire.half_close(chance.choice(wire.sides))

    def do_freeze_wire(self, chance: random.Random) -> None:
        """Nothing gets through a connection any more."""
        if (wire := self._wire(chance, "freeze a wire")) is not None:
            wire.frozen = True
            self.universe.later(chance.choice([1.0, 10.0, 60.0]), self._unfreeze, wire)

    @staticmethod
    def _unfreeze(wire: Connection) -> None:
        wire.frozen = False
        wire.move()

    def do_part(self, chance: random.Random) -> None:
        """Two machines do not hear each other for a while."""
        wall = frozenset(chance.sample([machine.name for machine in self.machines], 2))
        talk = {
            frozenset(side.process.host for side in wire.sides)
            for wire in self.network.connections
            if wire.alive
        }
        if talk and chance.random() < 0.7:  # most of them never have anything to do with each other
            wall = chance.choice(sorted(talk, key=sorted))
        self.saw("part", "who talk" if wall in talk else "who do not talk")
        self.network.walls.add(wall)
        self.universe.later(chance.choice([1.0, 10.0, 60.0]), self._rejoin, wall)

    def _rejoin(self, wall: frozenset[str]) -> None:
        self.network.walls.discard(wall)
        for connection in self.network.connections:
            connection.move()

    def do_slow(self, chance: random.Random) -> None:
        """The network gets slow, or carries a few bytes at a time."""
        self.saw("slow network", "")
        self.network.slow_s = chance.choice([0.001, 0.02, 0.5])
        self.network.split = chance.choice([0.0, 0.2, 0.95])

    def do_refuse(self, chance: random.Random) -> None:
        """A disk refuses for a while; at times while the server starts anew."""
        victim = chance.choice([self.server, *self.logs, *self.workers, *self.senders])
        mood = chance.choice([*REFUSALS, SLOW])
        self.saw(f"disk {mood}", f"{victim.kind}, {victim.state()}")
        victim.disk.mood = mood
        for_s = chance.choice([0.5, 5.0, 60.0])
        self.universe.later(for_s, self._consent, victim)
        if victim is not self.server and self.server.up and chance.random() < 0.2:
            self.saw("kill", f"{self.server.kind}, while others write in vain")
            self.server.kill(restart_s=0.0)
        if chance.random() < 0.3:
            self.universe.later(for_s + 30.0, self._start_anew, victim)

    @staticmethod
    def _consent(victim: Machine) -> None:
        victim.disk.mood = "ok"

    def _start_anew(self, victim: Machine) -> None:
        """Somebody does so to whom the disk has refused."""
        if victim.up:
            self.saw("kill", f"{victim.kind}, whose disk had refused")
            victim.kill(restart_s=1.0)

    def do_jump(self, chance: random.Random) -> None:
        """The wall clocks are set."""
        ahead_s = chance.choice([-3600.0, -5.0, 5.0, 3600.0, 30 * 86_400.0, -30 * 86_400.0])
        self.saw("wall clock jumps", "back" if ahead_s < 0 else "ahead")
        self.universe.wall_ahead_s += ahead_s

    def do_back_up(self, chance: random.Random) -> None:
        """An operator copies the directory of a server or a relay."""
        machine = chance.choice(self.logs)
        if machine.up:
            self.saw("back up", f"{machine.kind}, {machine.state()}")
            machine.back_up()

    def do_restore(self, chance: random.Random) -> None:
        """An operator puts back an older copy of the directory of a server or a relay."""
        able = [machine for machine in self.logs if machine.up and machine.backups]
        if able:
            machine = chance.choice(able)
            self.saw("restore", f"{machine.kind}, {machine.state()}")
            machine.restore(chance.randrange(len(machine.backups)))

    def do_damage(self, chance: random.Random) -> None:
        """A bit of a log turns while nothing runs."""
        server = chance.choice(self.logs)
        server.kill(restart_s=None)
        path = server.disk.directory / DATABASE_NAME
        where = turn_a_bit(path, ROWS, chance) if path.exists() else None
        if where is not None:
            stream, instance, token = where
            server.damaged.setdefault((stream, instance), set()).add(token)
            server.reasons.add("damage")
        self.saw("turn a bit", f"{server.kind}, {'in a block' if where else 'of nothing'}")
        self.universe.later(1.0, server._boot_if_wanted)

    def do_put_back_a_worker(self, chance: random.Random) -> None:
        """An older copy of a worker's database is put back: it gets the rest again."""
        worker = chance.choice(self.workers)
        self.saw("put back a worker", worker.state())
        worker.kill(restart_s=None)
        copy = self.where / f"{worker.name}-copy"
        if copy.exists():
            worker.disk.become(copy)
        else:
            shutil.copytree(worker.disk.directory, copy)
        self.universe.later(1.0, worker._boot_if_wanted)

    def do_put_back_a_poller(self, chance: random.Random) -> None:
        """An older copy of what a reader over HTTP has is put back."""
        poller = chance.choice(self.pollers)
        if poller.up and not poller.process.frozen:
            self.saw("put back a poller" if poller.copy else "copy a poller", poller.state())
            poller.put_back()

    def do_retain(self, chance: random.Random) -> None:
        """An operator changes the retention."""
        machine = chance.choice(self.logs)
        self.saw("retention", f"{machine.kind}, {machine.state()}")
        bounds = chance.choice([Bounds(max_rows=30), Bounds(max_rows=500), Bounds(max_age_s=60)])
        keep = retention(bounds, states=machine in self.relays)
        machine.retention = keep
        if machine.up:
            machine.log.retain(keep)

    def do_first_row(self, chance: random.Random) -> None:
        """A stream that seldom has rows gets one while a relay is away, which knows it as empty."""
        relay = chance.choice(self.relays)
        first = "not the first" if self.server.truth.get((SELDOM, "master")) else "the first"
        self.saw(f"a seldom row, {first}", relay.state())
        relay.kill()
        chance.choice(self.writers).publish(SELDOM, [len(self.said)], batch=False)

    def do_queue(self, chance: random.Random) -> None:
        """EDUs are queued for other servers."""
        if self.server.up:
            for _ in range(chance.choice([1, 3, 30])):
                self.remotes.queue(self.server, chance)

    def do_trouble(self, chance: random.Random) -> None:
        """A remote server begins to fail, or ceases to."""
        name = chance.choice(self.remotes.names)
        remote = self.remotes.by_name[name]
        remote.mode = chance.choice(MODES)
        remote.max_edus = chance.choice([1, 2, 5])
        if chance.random() < 0.3:
            number = len(self.remotes.said)
            remote.poison = set(range(number, number + chance.randrange(30)))
            remote.poison_answer = Answer(chance.choice([400, 403, 413, 500]), b"{}")

    def do_operate(self, chance: random.Random) -> None:
        """An operator pauses, resumes, retries or purges at a sender."""
        sender = chance.choice(self.senders)
        name = chance.choice(self.remotes.names)
        if not sender.up or sender.process.frozen or sender.disk.mood != "ok":
            return
        what = chance.choice(["pause", "pause", "resume", "retry", "purge"])
        if chance.random() < 0.5:
            self._occupy(sender, chance)
            if not sender.up:
                return
            name = min((one.name for one in sender.sender._running), default=name)
        self.saw(f"operator: {what}", sender.state())
        if what == "retry":
            done = Deferred.fromCoroutine(sender.sender.retry(name, quarantined=True))
        else:
            done = maybeDeferred(getattr(sender.sender, what), name)
        if what == "purge":  # what is there when it is done is gone, too
            self.remotes.purged(name)
            done.addCallback(lambda _: self.remotes.purged(name))
        _ = done.addErrback(lambda _: None)

    def do_remote_up(self, chance: random.Random) -> None:
        """The server has heard of another server."""
        if self.server.up:
            command = RemoteServerUpCommand(chance.choice(self.remotes.names))
            self.server.replication.broadcast(command)

    def do_strange_ack(self, chance: random.Random) -> None:
        """Somebody acknowledges EDUs who is no sender."""
        worker = chance.choice(self.workers)
        if worker.up and worker.client.connected:
            self.saw("stranger acknowledges", self.server.state())
            head = self.server.log.position("federation", "master") if self.server.up else 9
            worker.client.send(FederationAckCommand(chance.choice([worker.name, "evil"]), head))

    def do_change_senders(self, chance: random.Random) -> None:
        """An operator lets other senders share the destinations, at times with EDUs that wait."""
        if chance.random() < 0.5:
            for name in chance.sample(self.remotes.names, 2):
                self.remotes.by_name[name].mode = chance.choice(["dead", "500", "hang"])
        if chance.random() < 0.7:
            self.do_queue(chance)
        change_senders(self, chance)
        if chance.random() < 0.5:
            self.do_queue(chance)

    def do_put_back_an_outbox(self, chance: random.Random) -> None:
        """An operator copies the directory of a sender, or puts back an older copy."""
        if chance.random() < 0.5:
            self.do_queue(chance)
            self.universe.run(chance.choice([0.0, 0.1, 5.0]))
        able = [one for one in self.senders if one.up and one.name in self.sender_names]
        if able:
            sender = chance.choice(able)
            if sender.copies and chance.random() < 0.6:
                put_back_outbox(self, sender, chance.choice(sender.copies))
            else:
                copy_outbox(self, sender)

    def do_overflow(self, chance: random.Random) -> None:
        """Redis cuts off who does not read fast enough."""
        if self.redis.up:
            self.saw("redis cuts off", f"{len(self.redis.redis.connections)} connections")
            self.redis.lose(chance)

    def do_quiet(self, chance: random.Random) -> None:
        """Everything heals and comes to rest; then all is compared."""
        for machine in self.machines:
            machine.disk.mood = "ok"
            if machine.process.frozen:
                machine.process.thaw()
        for worker in self.workers:
            worker.moods = []
        self.network.heal()
        for machine in self.machines:
            machine.boot()
        self.remotes.heal()
        self.universe.run(QUIET_S)
        for _ in range(20):  # a remote that refused at random has got the innocent into quarantine
            for sender in self.senders:
                if sender.up:
                    sender.retry_everything()
            self.universe.run(60)
            if not any(sender.sender.pending() for sender in self.senders if sender.up):
                break
        for _ in range(20):  # a state that changes by itself at this moment is under way
            if self.universe.now - max(machine.moved_s for machine in self.logs) > SETTLED_S:
                break
            self.universe.run(SETTLED_S)
        self.check()

    def check(self) -> None:
        """Compare everything, now that all is quiet."""
        for machine in self.machines:
            if not machine.up:
                raise Broken(machine.name, ["does not come up"])
        for machine in every(self.machines, LogMachine):
            machine.check_log()
        for writer in self.writers:
            if writer.writer.held or not writer.claimed:
                raise Broken(writer.name, [f"waits: for {writer.writer.held} answers"])
        for machine in self.machines:
            calls = len(machine.process.getDelayedCalls())
            kept(machine.name, [] if calls < MAX_CALLS else [f"held: {calls} timers"])
        for sender in self.senders:
            left = sender.sender.pending()
            kept(sender.name, [] if not left else [f"never sent: {left} EDUs"])
        self.remotes.check(once=not self.server.forks)
        for relay in self.relays:
            relay.check_upstream(self.server)
        for worker in self.workers:
            worker.check_rows(at_rest=True)
            worker.check_states(self.server)
        self.bus.check_upstream(self.server)
        for synapse in self.synapses:
            synapse.check()
        for poller in self.pollers:
            poller.check_rows(at_rest=True)
        syncing = {user for worker in self.workers for user in worker.syncing}
        missed = syncing - set(self.server.presence.states()) - self.offline
        kept("server", [f"not there: {user}, who syncs" for user in sorted(missed)])


@contextmanager
def entered(world: World) -> Iterator[None]:
    """Let the world be the only one: its chance, its disks, no log lines, no metrics."""
    before = structlog.get_config()
    state = random.getstate()
    unraisable = sys.unraisablehook

    chance = world.universe.chance

    def incarnation() -> str:
        return f"{chance.getrandbits(64):016x}"

    with ExitStack() as stack:
        stack.callback(lambda: structlog.configure(**before))
        stack.callback(random.setstate, state)
        # what was killed in the middle of something is not to say so at some moment or other
        stack.callback(setattr, sys, "unraisablehook", unraisable)
        sys.unraisablehook = lambda _: None
        stack.callback(gc.enable)
        if not gc.get_freeze_count():  # else most was frozen before, and stays so
            stack.callback(gc.unfreeze)
        stack.callback(gc.collect)
        stack.callback(world.graves.clear)
        gc.collect()  # what is frozen is kept, also what a failure has left behind
        gc.disable()
        gc.freeze()
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        random.seed(world.seed)
        stack.enter_context(world.disks.entered())
        stack.enter_context(mock.patch.object(history, "new_incarnation_id", incarnation))
        # who is killed does not sign off: what it counted would be kept for ever
        stack.enter_context(mock.patch.object(metrics.Live, "add_source", lambda _, source: source))
        yield


class Played(NamedTuple):
    """What came of a schedule.

    Attributes:
        trace: A hash of everything that happened.
        simulated_s: How much time passed in the world.
        steps: How many calls the world made.
        coverage: As of `World`.
    """

    trace: int
    simulated_s: float
    steps: int
    coverage: Counter[tuple[str, str]]


class Failed(Exception):
    """A schedule showed something.

    Attributes:
        step: At which step; None for at the end.
        error: What was raised.
        kind: What the same fault has again.
    """

    def __init__(self, seed: int, step: Step | None, error: BaseException) -> None:
        where = "at the end" if step is None else f"at step {step.number} ({step.what})"
        super().__init__(f"seed {seed}, {where}: {type(error).__name__}: {error}")
        self.step = step
        self.error = error
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        self.kind: tuple[object, ...] = (type(error), frame and frame.tb_frame.f_code.co_name)
        if isinstance(error, Broken):
            self.kind = (Broken, error.promise)


def play(seed: int, steps: Sequence[Step] | None = None) -> Played:
    """Let a schedule happen.

    Raises:
        Failed: A promise was not kept.
    """
    where = Path(tempfile.mkdtemp(prefix="tcprepl-world-", dir=_memory()))
    world = World(seed, where)
    universe, coverage, began = world.universe, world.coverage, world.universe.now
    step: Step | None = None
    failed: Failed | None = None
    with entered(world):
        try:
            world.begin()
            for step in schedule(seed) if steps is None else steps:
                world.happen(step)
            step = None
            world.end()
        except Exception as error:  # noqa: BLE001 - handed to the caller
            failed = Failed(seed, step, error)
            traceback.clear_frames(error.__traceback__)
        finally:
            world.close()
            shutil.rmtree(where, ignore_errors=True)
    if failed is not None:
        raise failed from failed.error
    return Played(universe.trace, universe.now - began, universe.steps, coverage)


def shrunk(seed: int, steps: Sequence[Step], failed: Failed, most: int = 300) -> list[Step]:
    """Return as few of *steps* as still fail as *failed* did, leaving out ever smaller pieces.

    Args:
        seed: The seed.
        steps: What failed.
        failed: How.
        most: How often to try.
    """
    best = _upto(list(steps), failed)
    piece = max(1, len(best) // 2)
    while piece:
        at = 0
        while at < len(best) and most:
            shorter = best[:at] + best[at + piece :]
            most -= 1
            try:
                play(seed, shorter)
            except Failed as again:
                if again.kind == failed.kind:
                    best = _upto(shorter, again)
                    continue
            at += piece
        piece //= 2
    return best


def _upto(steps: list[Step], failed: Failed) -> list[Step]:
    """Return the steps up to the one at which it failed."""
    return steps if failed.step is None else steps[: steps.index(failed.step) + 1]


def _memory() -> str | None:
    """Return a directory in memory, if there is one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
