"""Two clocks: one that runs evenly, and the time of day.

Intervals, deadlines and ages are measured by `steady_seconds`, which nobody can set: it shows the
time of day at which the process began, plus what has passed since. A wall clock that is set
an hour back, or thirty days ahead, does not move it. `wall_seconds` is for what is written
down for others to read: the stamps of receipts and keys, of log lines and of ``PING``.

Twisted's reactors measure by the wall clock: `IReactorTime.seconds` and every `callLater` stand
still for an hour when it is set back by one. `make_steady` puts that right; whatever is
handed a reactor here does so.
"""

from __future__ import annotations

import time

from twisted.internet.base import DelayedCall, ReactorBase
from twisted.internet.interfaces import (
    IReactorCore,
    IReactorPluggableNameResolver,
    IReactorThreads,
    IReactorTime,
    IReactorUNIX,
)
from twisted.python import runtime


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


def epoch_s(reactor: IReactorTime) -> float:
    """Return what to add to the time of *reactor* to get the time of day; 0 for a made-up one."""
    return wall_seconds() - reactor.seconds() if isinstance(reactor, ReactorBase) else 0.0


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
