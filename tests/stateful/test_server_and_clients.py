"""A writer, a server and several clients over bad wires, beside a model that is two lists.

The model of a stream is the list of what was published. A client must see a run of it
without a hole or a repetition, whatever is cut, stalled, restarted or refused on the way;
once everything heals it has seen all of it.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from twisted.internet.defer import Deferred

from tcprepl import limits
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.position_store import MemoryPositionStore
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry, StreamDef
from tests.faces import ASYNC_FOR, ASYNCIO, TWISTED, Face, make_client, using
from tests.wire import Network, run_until

#: Bounds of the hub for these tests, small enough to be met all the time.
SMALL = {"SEGMENT_BYTES": 500, "PAGE_BYTES": 300, "PAGE_ROWS": 3, "TURN_BYTES": 900}
#: What a wire holds before the hub is told to stop.
WINDOW_BYTES = 400
#: Longest batch that the machine publishes, in bytes of lines.
BATCH_BYTES = 30 * 250
#: Durable streams with opaque rows, so that a row is a number.
STREAMS = ("alpha", "beta")
INSTANCES = ("master", "other")


class Worker:
    """A client with its positions, and everything that it saw."""

    def __init__(self, network: Network, name: str, registry: Registry, since: str) -> None:
        self.name = name
        self.since = since
        self.seen: dict[tuple[str, str], list[tuple[int, list[Any]]]] = {}
        self.fails_next = 0
        self.slow = False
        self.waiting: list[Deferred[None]] = []
        self._network = network
        self._registry = registry
        self._store = MemoryPositionStore()
        self.client = self._make()

    def _make(self) -> Any:
        client = make_client(
            self._network.clock,
            self._network.client_endpoint(self.name),
            STREAMS,
            self.handle,
            positions=self._store,
            name=self.name,
            server_name="example.com",
            since=self.since,
            registry=self._registry,
            on_reset=self.reset,
        )
        client.startService()
        return client

    def handle(self, stream: str, instance: str, token: int, rows: Any) -> Any:
        """Take a batch: at once, later, or not at all."""
        if self.fails_next:
            self.fails_next -= 1
            raise RuntimeError("the handler was told to fail")
        if self.slow:
            done: Deferred[None] = Deferred()
            done.addCallback(lambda _: self.take(stream, instance, token, list(rows)))
            self.waiting.append(done)
            return done
        self.take(stream, instance, token, list(rows))
        return None

    def take(self, stream: str, instance: str, token: int, rows: list[Any]) -> None:
        """Note a batch."""
        self.seen.setdefault((stream, instance), []).append((token, rows))

    def reset(self, *arguments: Any) -> None:
        """Nothing durable may ever need a reset here."""
        raise AssertionError(f"reset {arguments}")

    def finish_slow(self) -> None:
        """Let everything that is being handled end."""
        while self.waiting:
            self.waiting.pop(0).callback(None)

    def restart(self) -> None:
        """Stop the client in order and start another with its positions."""
        self.finish_slow()
        self.slow = False
        stopped = self.client.stopService()
        for _ in range(100):
            self._network.settle()
            self.finish_slow()
            if stopped.called:
                break
            self._network.clock.advance(0.5)
        assert stopped.called
        self.client = self._make()


class ReplicationMachine(RuleBasedStateMachine):
    """Rules are what may happen; the model says what must hold."""

    workers = Bundle("workers")
    face: Face = TWISTED

    @initialize()
    def begin(self) -> None:
        self.using = using(self.face)
        self.using.__enter__()
        self.before = {name: getattr(limits, name) for name in SMALL}
        for name, value in SMALL.items():
            setattr(limits, name, value)
        self.network = Network(self.face.clock(), window_bytes=WINDOW_BYTES)
        self.registry = Registry([StreamDef(name) for name in STREAMS])
        self.log = MemoryLog(self.registry, lambda: int(self.network.clock.seconds() * 1000))
        for stream in STREAMS:
            self.log.ensure(stream, "master")
        self.publisher = Publisher(self.log, self.registry, "master")
        self.model: dict[tuple[str, str], list[tuple[int, list[Any]]]] = {}
        self.all: list[Worker] = []
        self.number = 0
        self.server: ReplicationServer | None = None
        self.start_server()

    def start_server(self) -> None:
        self.server = ReplicationServer(
            self.network.clock, self.log, self.registry, "example.com", "master"
        )
        listening = Deferred.fromCoroutine(self.server.listen(self.network.server_endpoint()))
        assert listening.called

    @rule(
        stream=st.sampled_from(STREAMS),
        instance=st.sampled_from(INSTANCES),
        count=st.integers(1, 30),
        batch=st.booleans(),
        size=st.sampled_from([1, 10, 200]),
    )
    def publish(self, stream: str, instance: str, count: int, batch: bool, size: int) -> None:
        rows = []
        for _ in range(count):
            self.number += 1
            rows.append([self.number, "x" * size])
        appended: list[Any] = []
        self.publisher.publish(stream, rows, batch=batch, instance=instance).addCallback(
            appended.append
        )
        (done,) = appended
        seen = self.model.setdefault((stream, instance), [])
        if batch:
            seen.append((done.first, rows))
        else:
            seen.extend((done.first + index, [row]) for index, row in enumerate(rows))

    @rule(
        stream=st.sampled_from(STREAMS),
        ahead=st.integers(1, 50),
    )
    def advance_position(self, stream: str, ahead: int) -> None:
        token = self.log.position(stream, "master") + ahead
        assert self.log.advance(stream, "master", token).called

    @precondition(lambda self: len(self.all) < 4)
    @rule(target=workers, since=st.sampled_from(["now", "start"]))
    def new_worker(self, since: str) -> Worker:
        worker = Worker(self.network, f"w{len(self.all)}", self.registry, since)
        self.all.append(worker)
        return worker

    @rule(worker=workers, count=st.integers(1, 500), to_client=st.booleans())
    def some_bytes_arrive(self, worker: Worker, count: int, to_client: bool) -> None:
        wire = self.network.wires.get(worker.name)
        if wire is not None:
            (wire.client if to_client else wire.server).arrive(count)

    @rule()
    def a_turn_passes(self) -> None:
        self.network.turn()

    @rule(seconds=st.sampled_from([0.2, 1.0, 6.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.network.clock.advance(seconds)

    @rule()
    def everything_arrives(self) -> None:
        self.network.settle()

    @rule(worker=workers)
    def cut(self, worker: Worker) -> None:
        wire = self.network.wires.get(worker.name)
        if wire is not None:
            wire.cut()

    @rule(worker=workers, times=st.integers(1, 3))
    def handler_will_fail(self, worker: Worker, times: int) -> None:
        worker.fails_next = times

    @rule(worker=workers, slow=st.booleans())
    def handler_becomes_slow(self, worker: Worker, slow: bool) -> None:
        worker.slow = slow

    @rule(worker=workers)
    def slow_handlers_end(self, worker: Worker) -> None:
        worker.finish_slow()

    @rule(worker=workers)
    def restart_worker(self, worker: Worker) -> None:
        worker.restart()

    @rule()
    def restart_server(self) -> None:
        """The process dies: its connections are reset; the log survives."""
        assert self.server is not None
        self.network.factory = None
        for wire in self.network.wires.values():
            wire.cut()
        self.server.hub.close()
        self.start_server()

    @invariant()
    def every_worker_saw_a_run_of_the_model(self) -> None:
        for worker in getattr(self, "all", ()):
            for pair, seen in worker.seen.items():
                model = self.model[pair]
                tokens = [token for token, _ in model]
                start = tokens.index(seen[0][0])
                assert seen == model[start : start + len(seen)]
                if worker.since == "start":
                    assert start == 0

    @invariant()
    def nothing_is_buffered_for_a_slow_reader(self) -> None:
        """What waits for one reader is the window and one chunk, however much is published."""
        for wire in getattr(self, "network", Network()).wires.values():
            chunk = max(SMALL["SEGMENT_BYTES"], SMALL["PAGE_BYTES"]) + BATCH_BYTES
            assert len(wire.server.outgoing) <= WINDOW_BYTES + chunk

    def teardown(self) -> None:
        """Everything heals: every worker sees the end of every stream it has begun."""
        if not hasattr(self, "network"):
            return
        try:
            self.heal()
        finally:
            for name, value in self.before.items():
                setattr(limits, name, value)
            self.using.__exit__(None, None, None)

    def heal(self) -> None:
        for worker in self.all:
            worker.slow = False
            worker.fails_next = 0

        def caught_up() -> bool:
            for worker in self.all:
                worker.finish_slow()
            return all(
                worker.client.positions().get(pair) == self.log.position(*pair)
                for worker in self.all
                for pair in self.log.pairs()
            )

        run_until(self.network, caught_up)
        self.every_worker_saw_a_run_of_the_model()
        for worker in self.all:
            for pair, model in self.model.items():
                if worker.since == "start":
                    assert worker.seen.get(pair, []) == model
                elif worker.seen.get(pair):
                    assert worker.seen[pair][-1] == model[-1]
        for worker in self.all:
            stopped = worker.client.stopService()
            self.network.settle()
            assert stopped.called
        assert self.server is not None
        stopped = Deferred.fromCoroutine(self.server.stop())
        self.network.settle()
        assert stopped.called


class UnderAsyncio(ReplicationMachine):
    """With handlers, under asyncio."""

    face = ASYNCIO


class InAsyncFor(ReplicationMachine):
    """In loops that are begun again when they have failed."""

    face = ASYNC_FOR


TestReplication = ReplicationMachine.TestCase
TestReplicationUnderAsyncio = UnderAsyncio.TestCase
TestReplicationInAsyncFor = InAsyncFor.TestCase
for _case in (TestReplication, TestReplicationUnderAsyncio, TestReplicationInAsyncFor):
    _case.settings = settings(
        max_examples=settings().max_examples, stateful_step_count=40, deadline=None
    )
del _case
