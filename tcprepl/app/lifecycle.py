"""One way to start and to stop whatever is made of parts.

A composition root adds each part to its `Lifecycle` once the part has been started, with what
stops it. `Lifecycle.start` undoes what has been started when something is in the way;
`Lifecycle.stop` stops the parts, the newest first, so that the log, which everything stands on,
is closed last, and always. `run` is the life of a process: start, say so, wait for the end,
stop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.python.failure import Failure

from tcprepl.app.measuring import ProcessMeasures
from tcprepl.app.memory import Trimming
from tcprepl.app.systemd import Watchdog, sd_notify, watchdog_interval_s
from tcprepl.background import LoopingProcess, looping_background_process
from tcprepl.clocks import Reactor, make_steady
from tcprepl.logger import get_logger

log = get_logger(__name__)

#: What the parts of a process may take together to stop; the process ends within 10 s.
STOP_WITHIN_S = 8.0
#: How often systemd is told how it goes.
STATUS_INTERVAL_S = 10.0


class Lifecycle:
    """The parts that have been started, and how each is stopped again.

    Invariant: each part is stopped once, after all that were added later. One that raises is
    logged; one that hangs is cancelled, logged and left alone; neither keeps the others. A part
    is waited for at most half of the time that is left of `STOP_WITHIN_S`, so that `stop` ends
    in time and the last parts have some of it, whatever the first ones do.

    Args:
        reactor: Time; it runs evenly from now on (`tcprepl.clocks`).
        name: What it is the life of, for the log.
    """

    def __init__(self, reactor: Reactor, name: str) -> None:
        make_steady(reactor)
        self._reactor = reactor
        self._failed = f"{name}.stop_failed"
        self._overdue = f"{name}.stop_overdue"
        self._parts: list[tuple[str, Callable[[], object]]] = []
        self._starting: Deferred[None] | None = None
        self._asked_to_stop = False
        self._stopping = False
        self._waiters: list[Deferred[None]] = []

    def add(self, part: str, stop: Callable[[], object]) -> None:
        """Note that *part* has been started, and that *stop*, sync or async, stops it."""
        self._parts.append((part, stop))

    async def start(self, begin: Callable[[], Awaitable[None]]) -> None:
        """Run *begin*, which starts the parts and adds them.

        When it fails, or is cancelled, or `stop` is called meanwhile, what has been started is
        stopped again before this raises.

        Raises:
            CancelledError: `stop` was called before everything was there.
            Exception: Whatever *begin* raised.
        """
        self._asked_to_stop = False
        self._starting = Deferred.fromCoroutine(_awaited(begin))
        try:
            await self._starting
            if self._asked_to_stop:
                raise CancelledError
        except BaseException:
            self._starting = None
            await self.stop()
            raise
        self._starting = None

    async def stop(self) -> None:
        """Stop every part; return when all are stopped or were given up. Never raises."""
        self._asked_to_stop = True
        if self._starting is not None:
            self._starting.cancel()
        if self._stopping:
            waiter: Deferred[None] = Deferred()
            self._waiters.append(waiter)
            await waiter
            return
        self._stopping = True
        end = self._reactor.seconds() + STOP_WITHIN_S
        while self._parts:
            part, stop = self._parts.pop()
            await self._stop(part, stop, max(0.0, end - self._reactor.seconds()) / 2)
        self._stopping = False
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)

    async def _stop(self, part: str, stop: Callable[[], object], within_s: float) -> None:
        over: Deferred[None] = Deferred()
        given_up = False

        def ended(result: object) -> None:
            if isinstance(result, Failure) and not given_up:
                untyped: Any = result
                log.error(
                    self._failed,
                    part=part,
                    error=result.getErrorMessage(),
                    exc_info=(result.type, result.value, untyped.getTracebackObject()),
                )
            if not over.called:
                over.callback(None)

        def give_up() -> None:
            nonlocal given_up
            given_up = True
            log.error(self._overdue, part=part, waited_s=round(within_s, 3))
            work.cancel()
            if not over.called:
                over.callback(None)

        work = maybeDeferred(stop).addBoth(ended)
        timer = None if over.called else self._reactor.callLater(within_s, give_up)
        try:
            await over
        except CancelledError:
            # Somebody is in a hurry: no more is waited for this part.
            give_up()
        finally:
            if timer is not None and timer.active():
                timer.cancel()


def end(failed: Deferred[None], why: Failure | None = None) -> None:
    """Let *failed* of a process fire, if it has not: with *why*, or as nothing is left to do."""
    if not failed.called:
        failed.callback(why)  # a failure makes an errback of it


async def _awaited(begin: Callable[[], Awaitable[None]]) -> None:
    await begin()


class Process(Protocol):
    """What `run` runs: a composition root.

    Attributes:
        failed: Fires with the failure when it cannot go on, or without one when it has been
            drained; may never fire.
    """

    failed: Deferred[None]

    @property
    def directory(self) -> Path | None:
        """Where it keeps its data; None for in memory, or elsewhere."""
        ...

    async def start(self) -> None:
        """Start everything, or nothing."""
        ...

    async def stop(self) -> None:
        """Stop everything, in bounded time and without raising, as `Lifecycle.stop` does."""
        ...

    def facts(self) -> Mapping[str, object]:
        """Return what the log says of it once it is ready."""
        ...

    def status_line(self) -> str:
        """Return how it goes, in a few words, for systemd."""
        ...

    def progress(self) -> Deferred[None]:
        """Fire once all that was handed to the disk before has been written, or refused."""
        ...


async def run(
    reactor: Reactor,
    process: Process,
    name: str,
    welcome: Callable[[], object] | None = None,
    on_ready: Callable[[], object] | None = None,
) -> int:
    """Run *process* until cancelled, and return the exit code.

    Args:
        reactor: Time; it runs evenly from now on (`tcprepl.clocks`).
        process: What to run.
        name: What it is, for the log: ``serve`` gives ``serve.ready`` and so on.
        welcome: Called when it is ready, to tell a person.
        on_ready: Called when it is ready, before anybody is told.

    Raises:
        Exception: It could not start, or failed; everything has been stopped.
    """
    ready, stopping, stopped = f"{name}.ready", f"{name}.stopping", f"{name}.stopped"
    await process.start()
    measures = ProcessMeasures(reactor, process.directory)
    trimming = Trimming(reactor)
    telling: list[LoopingProcess] = []
    try:
        if on_ready is not None:
            on_ready()
        log.info(ready, **process.facts())
        if welcome is not None:
            welcome()
        if sd_notify("READY=1", f"STATUS={process.status_line()}"):
            telling.append(
                looping_background_process(
                    reactor,
                    "systemd_status",
                    STATUS_INTERVAL_S,
                    lambda: sd_notify(f"STATUS={process.status_line()}"),
                )
            )
            interval_s = watchdog_interval_s()
            if interval_s is not None:
                telling.append(Watchdog(reactor, interval_s, process.progress).start())
        await process.failed
    except CancelledError:
        log.info(stopping)
    finally:
        sd_notify("STOPPING=1")
        for looping in telling:
            _ = looping.stop()
        _ = trimming.stop()
        _ = measures.stop()
        await process.stop()
        log.info(stopped)
    return 0
