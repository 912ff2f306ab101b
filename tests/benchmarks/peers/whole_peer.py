"""A whole server that does what its control connection says, and watches its own reactor.

``python whole_peer.py CONTROL CONFIG`` with the configuration as JSON. Each line on the control
connection is a JSON array of a name and arguments: the method `do_NAME` of `Orders` is called and
its answer sent back, as ``[ANSWER, null]`` or ``[null, FAILURE]``; one thing after the other.
"""

from __future__ import annotations

import gc
import importlib.util
import itertools
import json
import resource
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import structlog
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.protocols.basic import LineOnlyReceiver

from tcprepl.app.server import Server
from tcprepl.background import run_in_background
from tcprepl.config import build

reactor: Any = global_reactor
HERE = Path(__file__).resolve().parent
#: How often the reactor is asked whether it is still there.
BEAT_S = 0.002


def load(path: Path) -> ModuleType:
    """Import a module of the benchmarks by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Heart:
    """Beats in the reactor; between two beats something else has held it.

    Attributes:
        cpu_ms: The longest time between two beats in which this thread had the processor. On a
            machine that others use too, it says what the clock cannot: whose fault it was.
        wall_ms: The longest time between two beats by the clock.
    """

    def __init__(self) -> None:
        self._call: Any = None
        self._cpu = self._wall = 0.0
        self.cpu_ms = self.wall_ms = 0.0

    def start(self) -> None:
        """Begin, and forget what was."""
        self.cpu_ms = self.wall_ms = 0.0
        self._cpu, self._wall = time.thread_time(), time.monotonic()
        if self._call is None:
            self._beat()

    def stop(self) -> None:
        """End; what was last counts, too."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
            self._look()

    def _beat(self) -> None:
        self._look()
        self._call = reactor.callLater(BEAT_S, self._beat)

    def _look(self) -> None:
        cpu, wall = time.thread_time(), time.monotonic()
        self.cpu_ms = max(self.cpu_ms, (cpu - self._cpu) * 1e3)
        self.wall_ms = max(self.wall_ms, (wall - self._wall - BEAT_S) * 1e3)
        self._cpu, self._wall = cpu, wall


class Orders:
    """What the peer can be asked to do."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.heart = Heart()
        self.rows = load(HERE.parent / "rows.py")

    async def do_watch(self) -> None:
        """Begin to watch the reactor."""
        self.heart.start()

    async def do_watched(self) -> dict[str, float]:
        """Return the longest stalls since `do_watch`."""
        self.heart.stop()
        return {"cpu_ms": self.heart.cpu_ms, "wall_ms": self.heart.wall_ms}

    async def do_cpu(self) -> float:
        """Return the CPU time of the process in s."""
        return time.process_time()

    async def do_wait(self, seconds: float) -> float:
        """Let time pass; return the CPU time in s that went meanwhile."""
        before = time.process_time()
        await deferLater(reactor, seconds)
        return time.process_time() - before

    async def do_memory(self) -> int:
        """Return the greatest resident memory so far, in bytes."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    async def do_publish(self, turns: int, size: int, kind: str) -> float:
        """Publish as `rows.turns` says, each turn when the last is safe; return CPU in s."""
        before = time.process_time()
        for calls in self.rows.turns(kind, size, turns):
            publish = self.server.publisher.publish
            await DeferredList([publish(*call) for call in calls], fireOnOneErrback=True)
            await deferLater(reactor, 0)
        return time.process_time() - before

    async def do_rows(self, stream: str, instance: str, turns: int) -> float:
        """Publish one row a turn to a stream of an instance; return CPU in s."""
        before = time.process_time()
        row = self.rows.row(stream, 1)
        for _ in range(turns):
            await self.server.publisher.publish(stream, [row], instance=instance)
            await deferLater(reactor, 0)
        return time.process_time() - before

    async def do_fill(self, rows: int, size: int, in_flight: int) -> float:
        """Publish many receipts, *size* in a call, some calls at once; return seconds."""
        batches = itertools.cycle(load(HERE.parent / "receipt_rows.py").batches(size))
        left = rows // size

        async def one() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await self.server.publisher.publish("receipts", next(batches))

        began = time.monotonic()
        works = [Deferred.fromCoroutine(one()) for _ in range(in_flight)]
        await DeferredList(works, fireOnOneErrback=True)
        return time.monotonic() - began

    async def do_trim(self, stream: str) -> None:
        """Let go of all rows of our stream but the newest thousand."""
        instance = self.server.config.instance
        self.server.log.trim(stream, instance, self.server.log.position(stream, instance) - 1_000)

    async def do_latencies(self, stream: str, seconds: float, rate: float) -> list[float]:
        """Publish single rows for a while; return, sorted, how long each took in ms."""
        took: list[float] = []
        row = self.rows.row(stream, 1)
        until = time.monotonic() + seconds

        async def one() -> None:
            began = time.perf_counter()
            await self.server.publisher.publish(stream, [row])
            took.append((time.perf_counter() - began) * 1e3)

        works = []
        while time.monotonic() < until:
            works.append(Deferred.fromCoroutine(one()))
            await deferLater(reactor, 1 / rate)
        await DeferredList(works, fireOnOneErrback=True)
        return sorted(took)

    async def do_flush(self) -> None:
        """Wait until everything that was begun is on disk."""
        await self.server.log.flush()

    async def do_pairs(self, stream: str, count: int) -> None:
        """Have that many instances of a stream, each with a row."""
        row = self.rows.row(stream, 1)
        publish = self.server.publisher.publish
        for start in range(0, count, 500):
            some = range(start, min(start + 500, count))
            works = [publish(stream, [row], instance=f"w{number}") for number in some]
            await DeferredList(works, fireOnOneErrback=True)

    async def do_typing(self, users: int, timeout_ms: int) -> None:
        """Have that many users type, each ten in a room."""
        for number in range(users):
            room = f"!room{number // 10}:example.com"
            self.server.typing.started_typing(room, f"@user{number}:example.com", timeout_ms)
            if not number % 50:
                await deferLater(reactor, 0)

    async def do_typing_users(self) -> int:
        """Return how many users type."""
        return self.server.typing.user_count

    async def do_presence(self, users: int) -> None:
        """Have that many users come online."""
        for number in range(users):
            self.server.presence.set_state(f"@user{number}:example.com", "online")
            if not number % 50:
                await deferLater(reactor, 0)

    async def do_syncs(self, users: int) -> None:
        """Have one process hold a sync of that many users open."""
        now = time.time_ns() // 1_000_000
        for number in range(users):
            user_id = f"@user{number}:example.com"
            self.server.presence.user_syncing("worker1", user_id, True, now)
            if not number % 50:
                await deferLater(reactor, 0)

    async def do_syncs_end(self) -> None:
        """Have that process end."""
        self.server.presence.clear_process("worker1")

    async def do_position(self, stream: str) -> int:
        """Return the position of our stream."""
        return self.server.log.position(stream, self.server.config.instance)


class Control(LineOnlyReceiver):
    """The control connection."""

    delimiter = b"\n"
    MAX_LENGTH = 1_000_000

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._last: Deferred[None] = Deferred()
        self._last.callback(None)

    def lineReceived(self, line: bytes) -> None:
        """Do one thing after the one before."""
        what, arguments = json.loads(line)
        self._last.addCallback(lambda _: Deferred.fromCoroutine(self._do(what, arguments)))

    async def _do(self, what: str, arguments: dict[str, Any]) -> None:
        answer, failure = None, None
        try:
            answer = await getattr(self._orders, f"do_{what}")(**arguments)
        except Exception:  # noqa: BLE001 - it is told whoever asked
            failure = traceback.format_exc()
        self.sendLine(json.dumps([answer, failure]).encode())


async def main(control_port: int, config: dict[str, Any]) -> None:
    """Start everything."""
    server = Server(reactor, build(config, "the benchmark").config)
    await server.start()
    orders = Orders(server)
    factory: Any = Factory()
    factory.buildProtocol = lambda _: Control(orders)
    await TCP4ServerEndpoint(reactor, control_port, 5, "127.0.0.1").listen(factory)
    gc.set_threshold(20_000, *gc.get_threshold()[1:])  # as `tcprepl serve` does, and freezes
    gc.collect()
    gc.freeze()
    print("READY", flush=True)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    run_in_background(main, int(sys.argv[1]), json.loads(sys.argv[2]))
    reactor.run()
