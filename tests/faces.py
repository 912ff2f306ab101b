"""The faces of the client library: what a test does with one, it does with all.

A test asks the face in use for its network, its clients and its writers, and drives them as
services of Twisted on a fake clock. Under asyncio the loop is a real one whose time is the clock's;
it turns whenever the clock does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tcprepl import aio
from tcprepl.replication.following.asyncio_bridge import future_of, settled
from tcprepl.replication.following.client import ReplicationClient
from tcprepl.replication.following.writer import ReplicationWriter
from tests.wire import Network


class FakeLoop(asyncio.SelectorEventLoop):
    """A loop that turns when it is told to; its time is that of a clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._turning = False
        self._clock_resolution = 1e-6  # that of a float of the time of day

    def time(self) -> float:
        """Return the time of the clock."""
        return self._clock.seconds()

    def turn(self) -> None:
        """Do all that can be done at this time."""
        if self._turning:
            return
        self._turning = True
        try:
            while any(call.getTime() <= self.time() for call in self.calls()):
                self._run_once()  # type: ignore[attr-defined]
        finally:
            self._turning = False

    def calls(self) -> list[Any]:
        """Return what is to be called, now or later."""
        ready = [SimpleNamespace(getTime=self.time) for _ in self._ready]  # type: ignore[attr-defined]
        scheduled = self._scheduled  # type: ignore[attr-defined]
        return ready + [SimpleNamespace(getTime=h.when) for h in scheduled if not h.cancelled()]


class LoopedClock(Clock):
    """A fake clock that turns a loop when it is advanced."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = FakeLoop(self)

    def advance(self, amount: float) -> None:
        """Let time pass."""
        self.loop.turn()
        super().advance(amount)
        self.loop.turn()

    def getDelayedCalls(self) -> Any:
        """Return what is still to be called, in the loop, too."""
        return [*super().getDelayedCalls(), *self.loop.calls()]


class Face:
    """Twisted's."""

    name = "twisted"

    def clock(self) -> Clock:
        """Return a new clock, and begin to use it."""
        return Clock()

    def client(
        self,
        clock: Any,
        endpoint: Any,
        streams: Collection[str] | None,
        handler: Any,
        **options: Any,
    ) -> Any:
        """Return a client."""
        return ReplicationClient(clock, endpoint, streams, handler, **options)

    def writer(self, clock: Any, endpoint: Any, **options: Any) -> Any:
        """Return a writer."""
        return ReplicationWriter(clock, endpoint, **options)

    def end(self) -> None:
        """End what `clock` began."""


class AsyncioFace(Face):
    """asyncio's, with a handler."""

    name = "asyncio"
    _loop: FakeLoop | None = None

    def clock(self) -> Clock:
        """Return a new clock, whose loop runs from now on."""
        self.end()
        clock = LoopedClock()
        self._loop = clock.loop
        asyncio._set_running_loop(self._loop)
        return clock

    def end(self) -> None:
        """Close the loop."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.turn()
            asyncio._set_running_loop(None)
            loop.close()

    def client(
        self,
        clock: Any,
        endpoint: Any,
        streams: Collection[str] | None,
        handler: Any,
        **options: Any,
    ) -> Any:
        """Return a client."""
        return AsyncioClient(endpoint, streams, handler, **options)

    def writer(self, clock: Any, endpoint: Any, **options: Any) -> Any:
        """Return a writer."""
        return AsyncioWriter(endpoint, **options)


class AsyncForFace(AsyncioFace):
    """asyncio's, in a loop that somebody begins again when it has failed."""

    name = "async for"

    def client(
        self,
        clock: Any,
        endpoint: Any,
        streams: Collection[str] | None,
        handler: Any,
        **options: Any,
    ) -> Any:
        """Return a client."""
        return AsyncForClient(endpoint, streams, handler, **options)


TWISTED, ASYNCIO, ASYNC_FOR = Face(), AsyncioFace(), AsyncForFace()
FACES = {face.name: face for face in (TWISTED, ASYNCIO, ASYNC_FOR)}
_in_use = TWISTED


def face() -> Face:
    """Return the face in use."""
    return _in_use


@contextmanager
def using(one: Face) -> Iterator[None]:
    """Use *one* for a while."""
    global _in_use  # noqa: PLW0603
    before, _in_use = _in_use, one
    try:
        yield
    finally:
        one.end()
        _in_use = before


def make_network() -> Network:
    """Return a network for the face in use."""
    return Network(face().clock())


def make_client(
    clock: Any, endpoint: Any, streams: Collection[str] | None, handler: Any, **options: Any
) -> Any:
    """Return a client of the face in use."""
    return face().client(clock, endpoint, streams, handler, **options)


def make_writer(clock: Any, endpoint: Any, **options: Any) -> Any:
    """Return a writer of the face in use."""
    return face().writer(clock, endpoint, **options)


def _turn() -> None:
    loop = asyncio.get_running_loop()
    if isinstance(loop, FakeLoop):
        loop.turn()


def _deferred(future: asyncio.Future[Any]) -> Deferred[Any]:
    deferred: Deferred[Any] = Deferred.fromFuture(future)
    _turn()
    return deferred


class AsyncioClient:
    """`aio.ReplicationClient`, to be used as Twisted's."""

    def __init__(
        self,
        endpoint: Any,
        streams: Collection[str] | None,
        handler: Any,
        *,
        on_connected: Callable[[Any], object] | None = None,
        **options: Any,
    ) -> None:
        self.outer = aio.ReplicationClient(
            endpoint,
            streams,
            handler,
            on_connected=None if on_connected is None else lambda _: on_connected(self),
            **options,
        )

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.outer, name, None)
        return getattr(self.outer._service, name) if found is None else found

    def startService(self) -> None:
        self.outer.start()
        _turn()

    def stopService(self) -> Deferred[None]:
        return _deferred(self.outer.stop())

    @property
    def failed(self) -> Deferred[None]:
        """What comes of it."""
        return Deferred.fromFuture(self.outer.ended)


class AsyncioWriter:
    """`aio.ReplicationWriter`, to be used as Twisted's."""

    def __init__(self, endpoint: Any, **options: Any) -> None:
        self.outer = aio.ReplicationWriter(endpoint, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.outer._service, name)

    def startService(self) -> None:
        self.outer.start()
        self.outer.start()

    def stopService(self) -> Deferred[None]:
        return _deferred(asyncio.ensure_future(self.outer.stop()))

    @property
    def claimed(self) -> Deferred[int]:
        """How many appends were taken."""
        return _deferred(asyncio.ensure_future(self.outer.claimed()))

    def publish(self, *arguments: Any, **options: Any) -> Deferred[Any]:
        return _deferred(self.outer.publish(*arguments, **options))

    def when_room(self) -> Deferred[None]:
        return _deferred(asyncio.ensure_future(self.outer.when_room()))


class AsyncForClient:
    """A loop over `aio.follow`, which is begun again when it has failed."""

    def __init__(
        self, endpoint: Any, streams: Collection[str] | None, handler: Any, **options: Any
    ) -> None:
        self.running = False
        self._handler = handler
        self._make = lambda: aio.follow(endpoint, streams, **options)
        self._follower = self._make()
        self._task: asyncio.Future[None] | None = None
        self.failed: Deferred[None] = Deferred()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._follower.client._service, name)

    def startService(self) -> None:
        if not self.running:
            self.running = True
            self._task = asyncio.ensure_future(self._run())
            _turn()

    def stopService(self) -> Deferred[None]:
        self.running = False
        if self._task is None:
            self._task = asyncio.get_running_loop().create_future()
            self._task.set_result(None)
        self._follower.client.stop()
        task = asyncio.shield(self._task)
        return _deferred(task)

    async def _run(self) -> None:
        while self.running:
            self._follower = self._make()
            try:
                async with self._follower as batches:
                    async for batch in batches:
                        await self._handle(batch)
            except BaseException:  # noqa: BLE001  # also what ends a process
                if self.running:
                    await asyncio.sleep(0.5)

    async def _handle(self, batch: aio.Batch) -> None:
        result = self._handler(batch.stream, batch.instance, batch.token, batch.rows)
        if result is not None:
            await future_of(Deferred.fromCoroutine(settled(result)))
