"""The processes of a simulated world: code of ours, each on a machine with a disk of its own.

Each kind says how it is started, what it does and what it is doing now (`Machine.state`, for the
report of which fault met what). What must be true of it is in `tests.invariants`; what it keeps
for that is beside it, not in it.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.defer import Deferred, gatherResults

from tcprepl.ephemeral.presence import PresenceWriter
from tcprepl.ephemeral.presence_follower import PresenceFollower
from tcprepl.ephemeral.presence_peers import SyncListener, SyncReporter
from tcprepl.ephemeral.typing_notifications import TypingFollower, TypingWriter
from tcprepl.errors import LogCorrupt, LogError, TcpreplError
from tcprepl.federation.writing.send_queue import SendQueue
from tcprepl.ids import Pair
from tcprepl.protocol.commands import FederationAckCommand
from tcprepl.replication.bus.redis_writer import RedisWriter
from tcprepl.replication.following.client import ReplicationClient
from tcprepl.replication.following.writer import ReplicationWriter
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.gaps import Gaps
from tcprepl.streams.log import Block, row_of
from tcprepl.streams.notifier import Notifier
from tcprepl.streams.position_store import SqlitePositionStore
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.streams.retention import Bounds, Retention
from tcprepl.streams.sqlite import SqliteLog
from tcprepl.streams.sqlite_schema import DATABASE_NAME
from tcprepl.web.services import PublisherPort, WebServices
from tcprepl.web.site import build_site
from tests import invariants
from tests.invariants import Diary, History, Row, Told
from tests.simulation.disk import Thread, crash_image
from tests.simulation.universe import Process

if TYPE_CHECKING:
    from tests.simulation.world import World

SERVER = "here.example"
#: Streams of rows that are published often, and one that has its first row late.
OFTEN = ("alpha", "push_rules")
SELDOM = "to_device"
ROWS = (*OFTEN, SELDOM)
STATES = ("typing", "presence")
SENDERS = ("fed1", "fed2")
ROOMS = tuple(f"!r{number}:{SERVER}" for number in range(3))
USERS = tuple(f"@u{number}:{SERVER}" for number in range(4))
#: How soon what has ended is started again, and how often that is tried.
RESTART_S = 5.0


class Broken(AssertionError):
    """A promise was not kept.

    Attributes:
        promise: Which, in a word or two.
    """

    def __init__(self, where: str, faults: Sequence[str]) -> None:
        super().__init__(f"{where}: {'; '.join(faults)}")
        self.promise = faults[0].partition(":")[0]


def kept(where: object, faults: Sequence[str]) -> None:
    """Raise `Broken` if *faults* has any."""
    if faults:
        raise Broken(str(where), faults)


def registry_of_rows() -> Registry:
    """Return the streams of the world."""
    return Registry([StreamDef("alpha")])


def retention(durable: Bounds, *, states: bool = False) -> Retention:
    """Return what logs keep: little, but for EDUs, which wait for their senders.

    *states* is for a relay, which has them on disk, among all that changed: they have to be kept
    longer than they last, as who comes anew hears of none that is gone.
    """
    whole = ("federation", "typing", "presence") if states else ("federation",)
    return Retention(
        durable=durable,
        ephemeral=Bounds(max_rows=12),
        streams=dict.fromkeys(whole, Bounds()),
        recent_bytes=1_500,
        reserved_tokens=20,
    )


def row_for(number: int) -> bytes:
    """Return the row that stands for *number*, as long as that asks for."""
    return b'["%d-%s"]' % (number, b"x" * (number * 7919 % 300))


def number_in(row: bytes) -> int:
    """Return the number that *row* stands for; -1 if nobody has said that, to the last bit."""
    digits = row[2:].partition(b"-")[0]
    number = int(digits) if digits.isdigit() else -1
    return number if row == row_for(number) else -1


class Machine:
    """A machine with one process of ours.

    Attributes:
        process: What runs, or ran last.
        up: Whether it is started.
    """

    kind = "machine"
    #: Whether it is started again by itself.
    supervised = True

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.disk = world.disks.disk(name)
        self.lives = 0
        self.up = False
        self.process = Process(world.universe, name)
        self.threads: list[Thread] = []

    # -- life --------------------------------------------------------------------------

    def boot(self) -> None:
        """Start it; if that fails, it is tried again later, as by systemd."""
        if self.up:
            return
        self.process = self.world.make_process(self.name)
        self.threads = []
        self.lives += 1
        try:
            self.begin()
        except LogCorrupt as error:
            self.end_process()
            self.corrupt(error)
        except (TcpreplError, sqlite3.Error) as error:
            self.world.saw("boot refused", type(error).__name__)
            self.end_process()
            self.boot_later()
        else:
            self.up = True

    def boot_later(self) -> None:
        """Start it again in a while."""
        self.world.universe.later(RESTART_S, self._boot_if_wanted)

    def _boot_if_wanted(self) -> None:
        if not self.up and self.supervised and not self.world.over:
            self.boot()

    def begin(self) -> None:
        """Do what the program does when it starts."""
        raise NotImplementedError

    def corrupt(self, error: LogCorrupt) -> None:
        """Do what somebody does who reads that a file is damaged, and start it again."""
        raise Broken(self.name, [f"damaged: {error}"])

    def kill(self, *, silent: bool = False, restart_s: float | None = RESTART_S) -> None:
        """Kill it at this very moment.

        Args:
            silent: Whether the machine goes with it, so that nobody's kernel says so.
            restart_s: When it is started again; None for not by itself.
        """
        if not self.up:
            return
        busy = next((thread for thread in self.threads if thread.jobs), None)
        self.process.die()
        image, when = crash_image(self.world.disks, self.disk, busy)
        self.world.saw(f"kill {self.kind}", when)
        self.end_process(silent=silent)
        self.disk.become(image)
        if restart_s is not None:
            self.world.universe.later(restart_s, self._boot_if_wanted)

    def end_process(self, *, silent: bool = False) -> None:
        """Take everything from the process that the system takes from one that has ended."""
        self.up = False
        self.process.die()
        self.process.frozen = False
        self.world.disks.close(self.disk)
        self.world.network.killed(self.process, silent=silent)
        self.world.graves.append(self.__dict__.copy())

    def stop(self) -> Deferred[Any]:
        """Stop it in order."""
        raise NotImplementedError

    def state(self) -> str:
        """Return in a word or two what it is doing."""
        return "up" if self.up else "down"

    # -- time --------------------------------------------------------------------------

    def ms(self) -> int:
        """Return the time by its own clock."""
        return self.process.milliseconds()

    def thread(self) -> Thread:
        """Return a thread for its disk."""
        made = Thread(self.process, self.disk)
        self.threads.append(made)
        return made

    def endpoint(self, address: str) -> Any:
        """Return *address*, as its process uses it."""
        return self.world.network.endpoint(self.process, address)


class Backup(NamedTuple):
    """A copy of a log.

    Attributes:
        where: Its directory.
        positions: Where its pairs are, heard of or not.
        truth: What the log had had, as far as anybody had heard.
        damaged: What was damaged in the log when the copy was made.
        cuts: How often the log had gone back by then.
    """

    where: Any
    positions: dict[Pair, int]
    truth: dict[Pair, list[tuple[int, int]]]
    damaged: dict[Pair, set[int]]
    cuts: int


class LogMachine(Machine):
    """A machine with a log that it serves.

    Attributes:
        truth: For each pair of the streams of rows what its log has had since the last copy
            that was put back, trimmed rows too.
        reasons: Why rows may be gone.
        states: The newest token of each pair of the streams of states, as above.
        wrong: Tokens of theirs that did not grow.
        moved_s: When anything was published last.
    """

    retention = retention(Bounds(max_rows=300))

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.truth: dict[Pair, list[tuple[int, int]]] = {}
        self.damaged: dict[Pair, set[int]] = {}
        self.reasons: set[str] = set()
        self.states: dict[Pair, int] = {}
        self.wrong: list[str] = []
        self.moved_s = 0.0
        self.forks = 0
        self.backups: list[Backup] = []
        #: Each time that it went back: the last tokens that were the same before and after.
        self.cuts: list[dict[Pair, int]] = []
        #: Whether it went back to rows that it had left before: those are rows once more.
        self.returned = False
        self.log: Any = None
        self.notifier = Notifier()
        self.floors: dict[Pair, int] = {}

    def open_log(self, registry: Registry, gaps: Gaps | None = None) -> None:
        """Open the log, and compare what is in it with what has to be."""
        self.log = SqliteLog(
            self.disk.directory,
            registry,
            self.ms,
            self.thread(),
            self.retention,
            self.process,  # type: ignore[arg-type]
            gaps,
            self.thread(),
        )
        self._take_stock()
        self.log.add_listener(self._published)

    def serve_http(
        self, registry: Registry, publisher: PublisherPort, replication: ReplicationServer
    ) -> None:
        """Let the log be read over HTTP."""
        process: Any = self.process
        self.notifier = Notifier()
        self.notifier.attach(self.log)
        self.site = build_site(
            WebServices(
                reactor=process,
                log=self.log,
                registry=registry,
                publisher=publisher,
                notifier=self.notifier,
                server_name=SERVER,
                instance=replication.instance,
                replication_server=replication,
                ready=lambda: self.log.trouble,
                wall_ms=self.ms,
            )
        )
        assert self.endpoint(f"{self.name}-http").listen(self.site).called

    def end_process(self, *, silent: bool = False) -> None:
        if self.log is not None:
            self.floors.update({pair: self.log.floor(*pair) for pair in self.log.pairs()})
            self.log._lock.release()
            for waiter in (*self.notifier._any, *self.notifier._wanted):
                waiter.pause()  # nobody waits any more: he has been killed
        super().end_process(silent=silent)

    def _published(self, block: Block) -> None:
        self.moved_s = self.world.universe.now
        if block.stream in ROWS:
            rows = [number_in(row_of(line)) for line in block.lines.split(b"\n")[:-1]]
            held = self.truth.setdefault((block.stream, block.instance), [])
            held += zip(block.tokens, rows, strict=True)
        elif block.stream in STATES:
            pair = (block.stream, block.instance)
            tokens = [self.states.get(pair, 0), *dict.fromkeys(block.tokens)]
            self.wrong += [f"{pair}: {fault}" for fault in invariants.growing_faults(tokens)]
            self.states[pair] = tokens[-1]

    def held(self, pair: Pair) -> list[tuple[int, int]]:
        """Return what can be read in the log; what is damaged is left out."""
        after, rows = self.log.floor(*pair), []
        while after < self.log.position(*pair):
            try:
                page = self.log.read(*pair, after, 1 << 62)
            except LogCorrupt:
                damage = sorted(t for t in self.damaged.get(pair, ()) if t > after)
                if not damage:
                    raise
                after = damage[0]
                continue
            rows += [(token, number_in(row)) for token, row in page.rows()]
            after = page.upto
        return rows

    def _take_stock(self) -> None:
        """The log has everything that it had before, and perhaps what nobody heard of yet."""
        for pair in self.log.pairs():
            if pair[0] not in ROWS:
                continue
            known = self.truth.setdefault(pair, [])
            position, floor = self.log.position(*pair), self.log.floor(*pair)
            rows = self.held(pair)
            there = set(rows)
            gone = [
                row
                for row in known
                if row[0] > floor and row not in there and not self.is_damaged(pair, row[0])
            ]
            if gone or (known and position < known[-1][0]):
                raise Broken(
                    f"{self.name} {pair}", [f"lost at its start: {gone[:5]}, at {position}"]
                )
            newest = known[-1][0] if known else 0
            other = there.difference(known)
            if altered := [row for row in rows if row in other and row[0] <= newest]:
                raise Broken(f"{self.name} {pair}", [f"altered on disk: {altered[:5]}"])
            known += [row for row in rows if row[0] > newest]
            self.world.saw("start", "with rows that nobody heard of" if newest < position else "")

    def is_damaged(self, pair: Pair, token: int) -> bool:
        """Return whether the row of *token* may be within a damaged block."""
        return bool(self.damaged.get(pair))

    def history(self, pair: Pair) -> History:
        """Return what the log has had of *pair*."""
        return History([Row(token, str(number)) for token, number in self.truth.get(pair, ())])

    @property
    def may_repeat(self) -> bool:
        """Whether rows that are void for it may have become true again."""
        return False

    def check_log(self) -> None:
        """What is true of a log by itself."""
        answers, said = self.world.answered(self), self.world.said
        kept(self.name, self.wrong)
        for pair, rows in self.truth.items():
            where = f"{self.name} {pair}"
            history = self.history(pair)
            kept(where, invariants.unsaid_faults(history, self.world.said_rows))
            if self.may_repeat:
                numbered = [Row(token, str(at)) for at, (token, _) in enumerate(rows)]
                kept(where, invariants.writer_faults({}, History(numbered)))
            else:
                kept(where, invariants.writer_faults(answers.get(pair, {}), history))
                writers: dict[str, list[int]] = {}
                for _, number in rows:
                    writers.setdefault(said[number], []).append(number)
                for numbers in writers.values():
                    kept(where, invariants.producer_faults({pair[0]: numbers}, without_hole=False))
            if rows and rows[-1][0] > self.log.position(*pair):
                raise Broken(where, [f"back: {rows[-1]} above {self.log.position(*pair)}"])
            if self.log.floor(*pair):
                self.reasons.add("retention")

    # -- what operators do ---------------------------------------------------------------

    def back_up(self) -> None:
        """Copy the directory while the process goes on."""
        from tcprepl.storage.backup import make_backup

        target = self.world.where / f"{self.name}-backup-{len(self.backups)}"
        try:
            make_backup(self.disk.directory, target, "test")
        except (LogError, OSError) as error:
            self.world.saw("back up", type(error).__name__)
            return
        # what is on disk, heard of or not
        with closing(sqlite3.connect(target / DATABASE_NAME)) as connection:
            found = connection.execute("SELECT stream, instance, position FROM pairs").fetchall()
        damaged = {pair: set(tokens) for pair, tokens in self.damaged.items()}
        positions = {(s, i): token for s, i, token in found}
        truth = {pair: list(rows) for pair, rows in self.truth.items()}
        self.backups.append(Backup(target, positions, truth, damaged, len(self.cuts)))
        self.world.saw("back up", "done")

    def restore(self, which: int) -> None:
        """Put an older copy in the place of the directory."""
        from tcprepl.storage.backup import restore_backup

        if not self.backups:
            self.wipe()
            return
        copy = self.backups[which % len(self.backups)]
        self.kill(restart_s=None)
        self.world.goes_back(self)
        aside = self.world.where / f"{self.name}-aside-{self.lives}-{self.world.universe.steps}"
        self.disk.directory.rename(aside)
        restore_backup(copy.where, self.disk.directory)
        since = self.cuts[copy.cuts :]
        self.returned |= bool(since)
        same = {
            pair: min([token, *(cut.get(pair, 0) for cut in since)])
            for pair, token in copy.positions.items()
        }
        self._goes_back(same, copy.truth)
        self.damaged = {pair: set(tokens) for pair, tokens in copy.damaged.items()}
        self.world.universe.later(1.0, self._boot_if_wanted)

    def wipe(self) -> None:
        """Begin with an empty directory."""
        self.kill(restart_s=None)
        self.world.goes_back(self)
        self.boot_later()
        for path in self.disk.directory.iterdir():
            path.unlink()
        self._goes_back({}, {})

    def _goes_back(
        self, same: dict[Pair, int], truth: Mapping[Pair, list[tuple[int, int]]]
    ) -> None:
        """Note that the log is another: up to *same* the one of before, and what *truth* says."""
        self.forks += 1
        self.reasons.add("restored")
        self.damaged.clear()
        self.cuts.append(same)
        self.world.voided(self, same)
        for pair in self.truth:
            self.truth[pair] = list(truth.get(pair, ()))
        self.states.clear()
        self.floors.clear()

    def corrupt(self, error: LogCorrupt) -> None:
        """A damaged database is replaced by the newest copy; one that is damaged as well goes."""
        self.world.saw("restore", "after damage")
        self.restore(-1)
        del self.backups[-1:]


class Server(LogMachine):
    """``tcprepl serve``, as far as replication goes."""

    kind = "server"
    address = "server"

    def begin(self) -> None:
        registry = registry_of_rows()
        self.open_log(registry)
        process: Any = self.process
        log = self.log
        for stream in (*ROWS, *STATES):
            log.ensure(stream, "master")
        self.publisher = Publisher(log, registry, "master", process)
        self.typing = TypingWriter(
            process, self.publisher.publish, SERVER, position=log.position("typing", "master")
        )
        self.presence = PresenceWriter(
            process, self.publisher.publish, SERVER, position=log.position("presence", "master")
        )
        self.replication = ReplicationServer(
            process, log, registry, SERVER, "master", publisher=self.publisher
        )
        self.redis = RedisWriter(
            process,
            self.endpoint("redis"),
            "redis",
            self.replication,
            server_name=SERVER,
            instance="master",
        )
        self.redis.start()
        self.send_queue = SendQueue(
            self.publisher.publish_json,
            log,
            SERVER,
            "master",
            self.world.sender_names,
            seconds=process.seconds,
        )
        self.replication.on(
            FederationAckCommand,
            lambda command, peer: self.send_queue.acknowledge(
                command.instance or peer.name, command.token
            ),
        )
        self.syncs = SyncListener(process, self.replication, self.presence)
        for part in (self.typing, self.presence, self.syncs):
            part.start()
        listening = Deferred.fromCoroutine(self.replication.listen(self.endpoint(self.address)))
        assert listening.called
        self.serve_http(registry, self.publisher, self.replication)

    def stop(self) -> Deferred[Any]:
        self.site.drain()
        parts = [part.stop() for part in (self.typing, self.presence, self.syncs)]
        parts += [Deferred.fromCoroutine(part.stop()) for part in (self.redis, self.replication)]
        stopped: Deferred[Any] = gatherResults(parts)
        return stopped.addCallback(lambda _: self.log.close())

    def state(self) -> str:
        if not self.up:
            return "down"
        if self.process.frozen:
            return "frozen"
        if self.log.trouble or self.disk.mood != "ok":
            return f"disk {self.disk.mood}"
        return "committing" if self.threads[0].busy else "serving"


class Writer(Machine):
    """A process that publishes numbered rows, one append after the other."""

    kind = "writer"

    def __init__(self, world: World, name: str, address: str = "server") -> None:
        super().__init__(world, name)
        self.address = address
        #: Every append that was ever asked for: (stream, numbers, batch).
        self.plan: list[tuple[str, list[int], bool]] = []
        self.first = 0
        self.forks = 0
        self.names = 0
        self.waiting: Counter[int] = Counter()

    def begin(self) -> None:
        server = self.world.server
        if self.forks != server.forks:
            # the server forgot: what was not answered is not known, and not said again
            self.forks = server.forks
            self.names += 1
            self.first = len(self.plan)
        self.writer = ReplicationWriter(
            self.process,
            self.endpoint(self.address),
            producer=f"{self.name}-{self.names}",
        )
        self.sent = len(self.plan)
        self.writer.startService()
        self.claimed = False
        _ = self.writer.claimed.addCallback(self._claimed, self.lives, self.first)

    def _claimed(self, taken: int, life: int, first: int) -> None:
        if life != self.lives:
            return
        self.claimed = True
        if self.forks != (forks := self.world.server.forks):
            # it was put back while we asked: as in `begin`, under the name that is claimed
            self.forks, self.first = forks, len(self.plan) - taken
            first = self.first
        for index in range(first + taken, len(self.plan)):
            self._say(index)

    def publish(self, stream: str, numbers: list[int], batch: bool) -> None:
        """Publish rows that are *numbers*."""
        self.plan.append((stream, numbers, batch))
        for number in numbers:
            self.world.said[number] = self.name
            self.world.said_rows.add(str(number))
        if self.up and self.claimed:
            self._say(len(self.plan) - 1)

    def _say(self, index: int) -> None:
        stream, numbers, batch = self.plan[index]
        rows = [row_for(number) for number in numbers]
        forks = self.world.server.forks
        answered = self.writer.publish(stream, rows, batch=batch)
        _ = answered.addCallbacks(
            partial(self._answered, numbers, batch, forks), lambda failure: None
        )

    def _answered(self, numbers: list[int], batch: bool, forks: int, answer: Any) -> None:
        tokens = [answer.first] * len(numbers) if batch else range(answer.first, answer.last + 1)
        pair = (answer.stream, answer.instance)
        self.world.note_answer(pair, list(zip(tokens, numbers, strict=True)))

    def stop(self) -> Deferred[Any]:
        return self.writer.stopService()

    def state(self) -> str:
        if not self.up:
            return "down"
        if self.writer.held:
            return "waiting for answers" if self.writer._ready else "away, with rows"
        return "idle"


class Worker(Machine):
    """A worker that keeps rows and positions in one database, and states in memory.

    Its handler raises, waits or dies when `moods` says so.
    """

    kind = "worker"

    def __init__(
        self,
        world: World,
        name: str,
        source: LogMachine,
        address: str,
        streams: Sequence[str] = (*ROWS, *STATES),
    ) -> None:
        super().__init__(world, name)
        self.source = source
        self.rows = [stream for stream in streams if stream in ROWS]
        self.follows_states = STATES[0] in streams
        self.address = address
        self.moods: list[str] = []
        self.handling = False
        self.syncing: list[str] = []

    def begin(self) -> None:
        self.handling = False
        self.database = self.world.disks.connect(self.disk.directory / "worker.db")
        self.database.executescript(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;"
            "CREATE TABLE IF NOT EXISTS journal"
            " (id INTEGER PRIMARY KEY, stream, instance, known, token, number);"
        )
        endpoint = self.endpoint(self.address)
        self.client = ReplicationClient(
            self.process,
            endpoint,
            self.rows,
            self.handle,
            positions=SqlitePositionStore(self.database),
            name=self.name,
            since="start",
            registry=registry_of_rows(),
            on_reset=self.reset,
            on_position=self.position,
        )
        self.client.startService()
        self.typing, self.presence = TypingFollower(), PresenceFollower()
        self.states = ReplicationClient(
            self.process,
            endpoint,
            list(STATES),
            self.take_states,
            name=f"{self.name}-states",
            since="start",
            on_reset=self.reset_states,
            on_connected=lambda _: self.reporter.connected(),
        )
        self.syncing = []
        self.reporter = SyncReporter(self.process, self.states.send, f"{self.name}-{self.lives}")
        self.reporter.start()
        self.states.startService()

    # -- rows --------------------------------------------------------------------------

    def handle(self, stream: str, instance: str, token: int, rows: Any) -> Any:
        """Keep the rows, or fail at it."""
        statements = [(stream, instance, None, token, number_in(raw)) for raw in rows.raw]
        return self._write(statements)

    def reset(self, stream: str, instance: str, known: int | None, token: int) -> Any:
        """Note what cannot be had."""
        return self._write([(stream, instance, -1 if known is None else known, token, None)])

    def position(self, stream: str, instance: str, token: int) -> Any:
        """Note where a stream begins."""
        return self._write([(stream, instance, None, token, None)])

    def _write(self, statements: list[Any]) -> Any:
        mood = self.moods.pop(0) if self.moods else "well"
        if mood == "waits":
            return self._write_slowly(statements)
        self._write_now(statements, mood)
        return None

    def _write_now(self, statements: list[Any], mood: str) -> None:
        if mood == "raises first":
            raise RuntimeError(mood)
        for count, values in enumerate(statements, 1):
            self.database.execute(
                "INSERT INTO journal (stream, instance, known, token, number)"
                " VALUES (?, ?, ?, ?, ?)",
                values,
            )
            if mood == "raises half-way" and count * 2 >= len(statements):
                raise RuntimeError(mood)
            if mood == "dies":
                self.world.saw("handler dies", self.kind)
                self.kill()
                raise RuntimeError(mood)
        if mood == "raises":
            raise RuntimeError(mood)

    async def _write_slowly(self, statements: list[Any]) -> None:
        self.handling = True
        later: Deferred[None] = Deferred()
        self.process.callLater(self.world.universe.chance.random() * 20, later.callback, None)
        await later
        self.handling = False
        self._write_now(statements, self.moods.pop(0) if self.moods else "well")

    def diaries(self) -> dict[Pair, Diary]:
        """Return what it has seen of each pair, by what is on its disk."""
        diaries: dict[Pair, list[Row | Told]] = {}
        with closing(sqlite3.connect(self.disk.directory / "worker.db")) as reader:
            for stream, instance, known, token, number in reader.execute(
                "SELECT stream, instance, known, token, number FROM journal ORDER BY id"
            ):
                diary = diaries.setdefault((stream, instance), [])
                if number is not None:
                    diary.append(Row(token, str(number)))
                elif known is not None:
                    diary.append(Told(None if known < 0 else known, token))
                elif not diary:
                    diary.append(Told(None, token))  # what was there before is past retention
        return dict(diaries)

    def check_rows(self, *, at_rest: bool) -> None:
        """It has what its source has."""
        known = self.client.positions()
        for pair, diary in self.diaries().items():
            where = f"{self.name} {pair}"
            kept(where, invariants.unfounded_faults(diary, self.source.reasons))
            if at_rest:
                kept(where, invariants.reader_faults(diary, self.source.history(pair)))
                kept(where, invariants.level_fault(known[pair], self.source.log.position(*pair)))

    # -- states ------------------------------------------------------------------------

    def take_states(self, stream: str, instance: str, token: int, rows: Any) -> None:
        """Pass rows to the follower of their stream."""
        follower: Any = self.typing if stream == "typing" else self.presence
        follower.handle_rows(stream, instance, token, rows)

    def reset_states(self, stream: str, instance: str, known: int | None, token: int) -> None:
        """Pass a reset to the follower of its stream."""
        follower: Any = self.typing if stream == "typing" else self.presence
        follower.on_reset(stream, instance, known, token)

    def sync(self, user: str) -> None:
        """A client of *user* opens or closes a sync here."""
        if user in self.syncing:
            self.syncing.remove(user)
            self.reporter.sync_ended(user)
        else:
            self.syncing.append(user)
            self.reporter.sync_began(user)

    def check_states(self, server: Server) -> None:
        """It follows what the writers have."""
        if not self.follows_states:
            return
        typing = {room: list(users) for room, users in self.typing.typing().items()}
        kept(f"{self.name} typing", invariants.state_faults(typing, server.typing.typing()))
        followed = {user: row.state for user, row in self.presence.states().items()}
        written = {user: row.state for user, row in server.presence.states().items()}
        kept(f"{self.name} presence", invariants.state_faults(followed, written))

    def stop(self) -> Deferred[Any]:
        self.moods = []
        parts = [self.reporter.stop(), self.client.stopService(), self.states.stopService()]
        stopped: Deferred[Any] = gatherResults(parts)
        return stopped

    def state(self) -> str:
        if not self.up:
            return "down"
        if self.process.frozen:
            return "frozen"
        if self.handling:
            return "in a handler"
        if not self.client.connected:
            return "away"
        known = self.client.positions()
        if self.source.up and any(
            known.get(pair) != self.source.log.position(*pair)
            for pair in self.source.truth
            if pair[0] in self.rows
        ):
            return "behind"
        return "at the head"


def every(machines: list[Any], kind: type[Any]) -> Iterator[Any]:
    """Yield the machines of a kind."""
    return (machine for machine in machines if isinstance(machine, kind))
