"""A worker whose rows and positions share a transaction, beside a model that is a list.

The invariant, seen by somebody else who reads the worker's database: at every moment the rows
in it are exactly those that were published up to the position in it. Whatever handlers and
callbacks do, whatever the disk refuses, whoever dies.
"""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from twisted.internet.defer import Deferred

from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.codec import Rows
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.position_store import SqlitePositionStore
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry, StreamDef
from tests.faces import ASYNC_FOR, ASYNCIO, TWISTED, Face, make_client, make_network, using
from tests.wire import Network, run_until

STREAMS = ("alpha", "beta")
OUTCOMES = (
    "done",
    "raises before it writes",
    "raises half-way",
    "raises after it wrote",
    "done later",
    "raises later",
    "leaves",
)
outcomes = st.sampled_from(OUTCOMES)


class Numbered(msgspec.Struct, array_like=True):
    """A row that fits; one with text in it does not."""

    number: int


class Disk(sqlite3.Connection):
    """A connection whose commits fail when told to."""

    refusals = 0

    def commit(self) -> None:
        """Commit, or not."""
        if self.refusals:
            self.refusals -= 1
            raise sqlite3.OperationalError("database or disk is full")
        super().commit()


class Worker:
    """A worker as somebody would write it; its handlers do what the machine says."""

    def __init__(self, path: Path, network: Network, join: bool, attempts: int | None) -> None:
        self.path = path
        self.network = network
        self.plan: list[str] = []
        self.later: list[Deferred[None]] = []
        self.registry = Registry([StreamDef(name, Numbered) for name in STREAMS])
        self.join = join
        self.attempts = attempts
        self.births = 0
        self.begin()

    def begin(self) -> None:
        """Begin as a new process."""
        self.births += 1
        self.later = []
        self.connection = sqlite3.connect(self.path, factory=Disk)
        self.client = make_client(
            self.network.clock,
            self.network.client_endpoint("worker"),
            STREAMS,
            self.handle,
            positions=SqlitePositionStore(self.connection),
            since="start",
            registry=self.registry,
            on_reset=self.reset,
            on_position=self.position,
            join_batches=self.join,
            max_attempts=self.attempts,
        )
        self.start()

    def start(self) -> None:
        """Start, or start again."""
        self.client.startService()
        self.client.failed.addErrback(lambda _: None)

    def handle(self, stream: str, instance: str, token: int, rows: Rows) -> Any:
        """Insert the rows one by one."""
        statements = [
            ("INSERT INTO seen VALUES (?, ?)", lambda index=index: (stream, rows[index].number))
            for index in range(len(rows))
        ]
        return self._act(statements)

    def reset(self, stream: str, instance: str, known: int | None, token: int) -> Any:
        """Forget what there is of the stream, in two steps."""
        return self._act(
            [
                ("DELETE FROM seen WHERE stream = ?", lambda: (stream,)),
                ("INSERT OR REPLACE INTO bases VALUES (?, ?)", lambda: (stream, token)),
            ]
        )

    def position(self, stream: str, instance: str, token: int) -> Any:
        """Note it."""
        return self._act([("INSERT OR REPLACE INTO heard VALUES (?, ?)", lambda: (stream, token))])

    def _act(self, statements: list[Any]) -> Any:
        outcome = self.plan.pop(0) if self.plan else "done"
        if outcome in ("done later", "raises later"):
            return self._later(statements, outcome)
        if outcome == "raises before it writes":
            raise RuntimeError(outcome)
        for number, (sql, arguments) in enumerate(statements):
            self.connection.execute(sql, arguments())
            if outcome == "raises half-way" and number == len(statements) // 2:
                raise RuntimeError(outcome)
        if outcome == "leaves":
            raise SystemExit(outcome)
        if outcome != "done":
            raise RuntimeError(outcome)
        return None

    async def _later(self, statements: list[Any], outcome: str) -> None:
        births = self.births
        for sql, arguments in statements:
            self.connection.execute(sql, arguments())
            waiting: Deferred[None] = Deferred()
            self.later.append(waiting)
            await waiting
            assert births == self.births
        if outcome != "done later":
            raise RuntimeError(outcome)

    def finish(self) -> None:
        """Let everything that takes its time go on."""
        later, self.later = self.later, []
        for waiting in later:
            waiting.callback(None)

    def stop(self) -> None:
        """Stop in order."""
        stopped = self.client.stopService()
        for _ in range(200):
            self.network.settle()
            self.finish()
            if stopped.called:
                break
            self.network.clock.advance(0.5)
        assert stopped.called

    def die(self) -> None:
        """Die: nobody commits or undoes anything any more."""
        self.connection.close()
        self.plan = []
        wire = self.network.wires.get("worker")
        if wire is not None:
            wire.cut()
        stopped = self.client.stopService()
        births, self.births = self.births, -1
        for waiting in self.later:
            waiting.errback(RuntimeError("dead"))
        self.network.run(1.0)
        assert stopped.called
        self.births = births
        self.begin()


class ExactlyOnceMachine(RuleBasedStateMachine):
    """Rules are what may happen; the model says what must hold."""

    face: Face = TWISTED

    @initialize(join=st.booleans(), attempts=st.sampled_from([None, None, 1, 2]))
    def start(self, join: bool, attempts: int | None) -> None:
        self.using = using(self.face)
        self.using.__enter__()
        self.directory = tempfile.TemporaryDirectory()
        path = Path(self.directory.name) / "worker.db"
        self.reader = sqlite3.connect(path)
        self.reader.executescript(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;"
            "CREATE TABLE seen (stream TEXT, number INTEGER);"
            "CREATE TABLE bases (stream TEXT PRIMARY KEY, token INTEGER);"
            "CREATE TABLE heard (stream TEXT PRIMARY KEY, token INTEGER);"
        )
        self.network = make_network()
        registry = Registry([StreamDef(name) for name in STREAMS])
        self.log = MemoryLog(registry, lambda: int(self.network.clock.seconds() * 1000))
        for stream in STREAMS:
            self.log.ensure(stream, "master")
        self.publisher = Publisher(self.log, registry, "master")
        self.model: dict[str, list[tuple[int, int]]] = {stream: [] for stream in STREAMS}
        self.number = 0
        self.server = ReplicationServer(self.network.clock, self.log, registry, "example.com")
        listening = Deferred.fromCoroutine(self.server.listen(self.network.server_endpoint()))
        assert listening.called
        self.logs = structlog.testing.capture_logs()
        self.logs.__enter__()
        self.worker = Worker(path, self.network, join, attempts)
        self.network.settle()  # so that there is a position to resume from

    @rule(
        stream=st.sampled_from(STREAMS),
        bad=st.lists(st.sampled_from([False, False, False, True]), min_size=1, max_size=5),
        batch=st.booleans(),
    )
    def publish(self, stream: str, bad: list[bool], batch: bool) -> None:
        rows: list[Any] = []
        for spoilt in bad:
            self.number += 1
            rows.append(["not a number"] if spoilt else [self.number])
        appended: list[Any] = []
        self.publisher.publish(stream, rows, batch=batch).addCallback(appended.append)
        (done,) = appended
        for index, (row, spoilt) in enumerate(zip(rows, bad, strict=True)):
            if not spoilt:
                token = done.first if batch else done.first + index
                self.model[stream].append((token, row[0]))

    @rule(stream=st.sampled_from(STREAMS), ahead=st.integers(1, 5))
    def advance(self, stream: str, ahead: int) -> None:
        token = self.log.position(stream, "master") + ahead
        assert self.log.advance(stream, "master", token).called

    @rule(stream=st.sampled_from(STREAMS))
    def trim(self, stream: str) -> None:
        """Who is behind gets a reset."""
        self.log.trim(stream, "master", self.log.position(stream, "master"))

    @rule(plan=st.lists(outcomes, min_size=1, max_size=6))
    def handlers_will(self, plan: list[str]) -> None:
        self.worker.plan = plan

    @rule(
        stream=st.sampled_from(STREAMS),
        bad=st.lists(st.sampled_from([False, False, True]), min_size=1, max_size=4),
        batch=st.booleans(),
        plan=st.lists(outcomes, min_size=1, max_size=4),
        refusals=st.sampled_from([0, 0, 0, 1, 2]),
    )
    def rows_meet_handlers_that(
        self, stream: str, bad: list[bool], batch: bool, plan: list[str], refusals: int
    ) -> None:
        """What goes wrong goes wrong for a row: by single steps that is rare."""
        self.network.settle()
        self.worker.plan = plan
        self.worker.connection.refusals = refusals
        self.publish(stream, bad, batch)
        self.network.settle()

    @rule(times=st.integers(1, 3))
    def the_disk_refuses(self, times: int) -> None:
        self.worker.connection.refusals = times

    @rule()
    def what_takes_its_time_goes_on(self) -> None:
        self.worker.finish()

    @rule()
    def everything_arrives(self) -> None:
        self.network.settle()

    @rule(seconds=st.sampled_from([0.2, 1.0, 6.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.network.clock.advance(seconds)

    @rule(count=st.integers(1, 100))
    def some_bytes_arrive(self, count: int) -> None:
        wire = self.network.wires.get("worker")
        if wire is not None:
            wire.client.arrive(count)

    @rule()
    def cut(self) -> None:
        wire = self.network.wires.get("worker")
        if wire is not None:
            wire.cut()

    @rule()
    def stop_and_start(self) -> None:
        self.worker.stop()
        self.every_row_up_to_the_position_and_no_other_is_there()
        self.worker.start()

    @rule()
    def die(self) -> None:
        self.worker.die()

    @invariant()
    def every_row_up_to_the_position_and_no_other_is_there(self) -> None:
        if not hasattr(self, "worker"):
            return
        positions = dict(self._select("stream, token FROM tcprepl_positions"))
        bases = dict(self._select("stream, token FROM bases"))
        for stream in STREAMS:
            position, base = positions.get(stream, 0), bases.get(stream, 0)
            seen = [
                number
                for (number,) in self._select(
                    "number FROM seen WHERE stream=? ORDER BY rowid", stream
                )
            ]
            model = self.model[stream]
            assert seen == [number for token, number in model if base < token <= position]
            assert base <= position
        for stream, token in self._select("stream, token FROM heard"):
            assert token <= positions[stream]

    def _select(self, what: str, *arguments: str) -> list[Any]:
        return self.reader.execute(f"SELECT {what}", arguments).fetchall()

    def teardown(self) -> None:
        """Everything heals: the worker has everything."""
        if not hasattr(self, "worker"):
            return
        worker = self.worker
        worker.plan = []
        worker.connection.refusals = 0

        def caught_up() -> bool:
            worker.finish()
            if not worker.client.running:
                worker.start()
            return all(
                worker.client.positions().get((stream, "master"))
                == self.log.position(stream, "master")
                for stream in STREAMS
            )

        run_until(self.network, caught_up)
        self.every_row_up_to_the_position_and_no_other_is_there()
        worker.stop()
        stopped = Deferred.fromCoroutine(self.server.stop())
        self.network.settle()
        assert stopped.called
        self.logs.__exit__(None, None, None)
        self.every_row_up_to_the_position_and_no_other_is_there()
        worker.connection.close()
        self.reader.close()
        self.directory.cleanup()
        self.using.__exit__(None, None, None)


class UnderAsyncio(ExactlyOnceMachine):
    """With a handler, under asyncio."""

    face = ASYNCIO


class InAsyncFor(ExactlyOnceMachine):
    """In a loop that is begun again when it has failed."""

    face = ASYNC_FOR


TestExactlyOnce = ExactlyOnceMachine.TestCase
TestExactlyOnceUnderAsyncio = UnderAsyncio.TestCase
TestExactlyOnceInAsyncFor = InAsyncFor.TestCase
for _case in (TestExactlyOnce, TestExactlyOnceUnderAsyncio, TestExactlyOnceInAsyncFor):
    _case.settings = settings(
        max_examples=settings().max_examples, stateful_step_count=40, deadline=None
    )
del _case
