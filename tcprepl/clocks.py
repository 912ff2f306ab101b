"""Two clocks: one that runs evenly, and the time of day.

Intervals, deadlines and ages are measured by `steady_seconds`, which nobody can set: it shows the
time of day at which the process began, plus what has passed since. A wall clock that is set
an hour back, or thirty days ahead, does not move it. `wall_seconds` is for what is written
down for others to read: the stamps of receipts and keys, of log lines and of ``PING``.

Twisted's reactors measure by the wall clock: `IReactorTime.seconds` and every `callLater` stand
still for an hour when it is set back by one. `make_steady` puts that right; whatever is
handed a reactor here does so. A loop of asyncio runs evenly by itself; `LoopClock` stands for a
reactor where there is none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.base import DelayedCall, ReactorBase
from twisted.internet.interfaces import (
    IDelayedCall,
    IReactorCore,
    IReactorPluggableNameResolver,
    IReactorThreads,
    IReactorTime,
    IReactorUNIX,
)
from twisted.python import runtime
from zope.interface import implementer


class Reactor(
    IReactorCore, IReactorThreads, IReactorTime, IReactorPluggableNameResolver, IReactorUNIX
):
    """What is asked of Twisted's reactor; a part that needs only its time takes `IReactorTime`."""


#: What the steady clock is ahead of `time.monotonic`: fixed when the process begins.
_BEGAN_S = time.time() - time.monotonic()


def steady_seconds() -> float:
    """Return the time of a clock that never jumps, in seconds: comparable within this process."""
    return _BEGAN_S + time.monotonic()


def steady_ms() -> int:
    """Return `steady_seconds` in whole ms."""
    return int(steady_seconds() * 1000)


def wall_seconds() -> float:
    """Return the time of day, in seconds since 1970; it may jump either way at any moment."""
    return time.time()


def wall_ms() -> int:
    """Return `wall_seconds` in whole ms."""
    return int(wall_seconds() * 1000)


def make_steady(reactor: object) -> None:
    """Let *reactor* measure time by the steady clock from now on.

    Its `seconds` goes on where it was, as the steady clock starts at the time of day; calls that
    are due already stay due in as many seconds as before. May be called at any time, any number of
    times, in the thread of the reactor or before it runs. What has a clock of its own, as
    `task.Clock` has, is left alone.
    """
    if not isinstance(reactor, ReactorBase) or reactor.seconds is not runtime.seconds:
        return
    ahead_s = steady_seconds() - reactor.seconds()
    reactor.seconds = steady_seconds
    for call in reactor.getDelayedCalls():
        if isinstance(call, DelayedCall):
            call.time += ahead_s
            call.seconds = steady_seconds


@implementer(IReactorTime)
class LoopClock:
    """The time of the asyncio loop that runs, for what asks a reactor for nothing else.

    To be used from within the loop only, as all of asyncio.
    """

    def __init__(self) -> None:
        self._calls: dict[DelayedCall, asyncio.TimerHandle] = {}

    def seconds(self) -> float:
        """Return the time of the loop."""
        return asyncio.get_running_loop().time()

    def callLater(  # noqa: N802  # Twisted's name
        self, delay: float, callable: Callable[..., object], *args: Any, **kwargs: Any
    ) -> IDelayedCall:
        """Call *callable* in *delay* seconds, unless the call that is returned is cancelled."""
        due = self.seconds() + delay
        call = DelayedCall(due, callable, args, kwargs, self._cancel, self._schedule, self.seconds)
        self._schedule(call)
        return call

    def getDelayedCalls(self) -> list[DelayedCall]:  # noqa: N802  # Twisted's name
        """Return the calls that are still to be made."""
        return list(self._calls)

    def _schedule(self, call: DelayedCall) -> None:
        if call in self._calls:
            self._calls[call].cancel()
        loop = asyncio.get_running_loop()
        self._calls[call] = loop.call_at(call.time, self._make, call)

    def _cancel(self, call: DelayedCall) -> None:
        self._calls.pop(call).cancel()

    def _make(self, call: DelayedCall) -> None:
        if call.delayed_time > 0:  # it was put off meanwhile
            call.activate_delay()
            self._schedule(call)
            return
        del self._calls[call]
        call.called = 1
        call.func(*call.args, **call.kw)


def epoch_s(reactor: IReactorTime) -> float:
    """Return what to add to the time of *reactor* to get the time of day; 0 for a made-up one."""
    if not isinstance(reactor, ReactorBase | LoopClock):
        return 0.0
    return wall_seconds() - reactor.seconds()


#: What is on disk ages by at most this much while nobody has it open.
MAX_AGEING_WHILE_CLOSED_MS = 86_400_000


def resumed_ms(now_ms: int, newest_ms: int) -> int:
    """Return where the clock of a store goes on that has stamps up to *newest_ms* on disk.

    A store's clock never goes back, and while the store is closed it goes on by a day at most. So
    a process that is started with a wrong clock neither throws away what others have not read
    yet, nor keeps for ever what was written with stamps of the future. The price: what is kept for
    a time may be kept longer by as long as nothing ran.

    Args:
        now_ms: The present, by the clock of this process.
        newest_ms: The newest stamp on disk.
    """
    return min(max(now_ms, newest_ms), newest_ms + MAX_AGEING_WHILE_CLOSED_MS)
