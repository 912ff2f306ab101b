"""Work that nobody waits for, and that cannot fail silently.

Everything that is started and not awaited goes through this module. Work may be a plain
function, an ``async def``, or a function that returns a Deferred. Whatever it is:

* A failure is logged once, at ERROR, where and when it happened, with the name of the work,
  its log context and its traceback, and it is counted. It never surfaces as Twisted's
  "Unhandled error in Deferred", which comes at garbage collection and names nobody.
* Work runs in its own copy of the log context (structlog's contextvars): what it binds, the
  caller does not see, and what the caller binds later, the work does not see. A coroutine
  keeps its context across every await. (Callbacks that work itself put on a Deferred run in
  the context of whoever fires that Deferred, as everywhere in Twisted.)
* Nothing is wrapped: a use costs no function object, only the call.

`run_in_background` is for an action; `run_as_background_process` for a piece of work with a
name of its own: it gets a number, a log context that starts empty but for these two, and
metrics; `looping_background_process` runs one again and again. `spread` parts work of which a
lot is due at once, `stop_all` ends several; `started` is for a coroutine that seldom waits,
`whoever_waits` for work that goes on when nobody waits for it any more. No global reactor is used.
"""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from functools import partial
from time import perf_counter
from types import CoroutineType
from typing import Any, ParamSpec, Protocol, TypeVar, TypeVarTuple, cast

from structlog.contextvars import bind_contextvars, clear_contextvars
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tcprepl import metrics
from tcprepl.logger import get_logger

logger = get_logger(__name__)

#: For how long `spread` works in one turn of the reactor. What the work causes comes on top:
#: rows that it published are encoded and sent when the turn ends.
TURN_BUDGET_S = 0.005

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def run_in_background(f: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call *f* and go on, without waiting for its end and without ever raising.

    *f* starts at once, before this returns; it ends when it ends.

    Args:
        f: A function, sync or async, or one that returns a Deferred.
        *args: Arguments for *f*.
        **kwargs: Keyword arguments for *f*.
    """
    context = contextvars.copy_context()
    result = context.run(_call, f, f, args, kwargs)
    if result is None:
        return
    if isinstance(result, Deferred):
        _ = result.addErrback(_log_failure, context, f)
    elif isinstance(result, (CoroutineType, Awaitable)):
        _ = context.run(started, _supervise(result, f))


def started(coroutine: Coroutine[Any, Any, None]) -> Deferred[None] | None:
    """Start *coroutine*; a Deferred for its end, as `Deferred.fromCoroutine` makes it.

    None if it has ended at once: what never waits costs no Deferred. Then it raises what
    *coroutine* raises.
    """
    context = contextvars.copy_context()
    try:
        waiting = context.run(coroutine.send, None)
    except StopIteration:
        return None
    return context.run(Deferred.fromCoroutine, _going_on(coroutine, waiting))


def _going_on(coroutine: Coroutine[Any, Any, None], waiting: Any) -> Generator[Any, Any, None]:
    """Stand for *coroutine*, which has been started and waits for *waiting*."""
    while True:
        try:
            try:
                result = yield waiting
            except GeneratorExit:  # nobody will ever fire that; it may be closed already
                coroutine.close()
                raise
            except BaseException as error:  # noqa: BLE001  # its own affair
                waiting = coroutine.throw(error)
            else:
                waiting = coroutine.send(result)
        except StopIteration:
            return


def whoever_waits(work: Deferred[T]) -> Deferred[T]:
    """Return a Deferred with the outcome of *work*: who cancels it waits no longer, no more.

    For work in a thread, which a cancelled Deferred does not end, and for work whose end others
    wait for as well. When it fails and nobody waits for it any more, that is logged.
    """
    context = contextvars.copy_context()
    outcome: Deferred[T] = Deferred()

    def settle(result: T | Failure) -> None:
        if not outcome.called:
            outcome.callback(cast("T", result))  # a failure makes an errback of it
        elif isinstance(result, Failure):
            _log_failure(result, context, whoever_waits)

    _ = work.addBoth(settle)
    return outcome


def run_as_background_process(
    name: str, f: Callable[P, object], *args: P.args, **kwargs: P.kwargs
) -> None:
    """Call *f* as a process of its own and go on, without ever raising.

    The process has the log keys ``process`` and ``process_number`` and nothing else from its
    caller. Metrics count it under *name*: started, in flight, failed, seconds.

    Args:
        name: What the work is, for logs and metrics; one of few, not one per object.
        f: A function, sync or async, or one that returns a Deferred.
        *args: Arguments for *f*.
        **kwargs: Keyword arguments for *f*.
    """
    _ = _run_process(name, f, args, kwargs)


def looping_background_process(
    clock: IReactorTime,
    name: str,
    interval_s: float,
    f: Callable[[*Ts], object],
    *args: *Ts,
    now: bool = False,
) -> LoopingProcess:
    """Run *f* every *interval_s* seconds, each turn a background process called *name*.

    A turn that fails is logged and the next one comes all the same. Turns do not overlap: a
    turn that takes longer than the interval makes the loop skip what it missed.

    Args:
        clock: Where time comes from.
        name: As for `run_as_background_process`.
        interval_s: Time from the start of one turn to the start of the next.
        f: A function, sync or async, or one that returns a Deferred.
        *args: Arguments for *f*.
        now: Whether the first turn starts at once, rather than after one interval.

    Returns:
        The loop, which has a ``stop()``.
    """
    return LoopingProcess(clock, name, interval_s, f, args, now=now)


async def spread(clock: IReactorTime, steps: Iterable[object]) -> None:
    """Go through *steps*, giving the reactor a turn whenever `TURN_BUDGET_S` are used up.

    For work of which a lot may come due at once. The first steps are done before this returns;
    on a clock that stands still all of them are.

    Args:
        clock: Where time and turns come from.
        steps: Does a little work each time it is asked for the next step, and looks at the
            state as it is then: others have changed it in between.
    """
    began = clock.seconds()
    for _ in steps:
        if clock.seconds() - began >= TURN_BUDGET_S:
            await deferLater(clock, 0)
            began = clock.seconds()


class LoopingProcess:
    """A background process that is run again and again (`looping_background_process`).

    At any moment either a turn is running or a delayed call for the next one exists; after
    `stop` neither, once the Deferred that it returned has fired.
    """

    __slots__ = (
        "_args",
        "_call",
        "_clock",
        "_due",
        "_f",
        "_interval_s",
        "_name",
        "_running",
        "_stopped",
        "_waiters",
    )

    def __init__(
        self,
        clock: IReactorTime,
        name: str,
        interval_s: float,
        f: Callable[..., object],
        args: tuple[object, ...],
        *,
        now: bool,
    ) -> None:
        if interval_s <= 0:
            raise ValueError(f"interval_s must be above 0, not {interval_s!r}")
        self._clock = clock
        self._name = name
        self._interval_s = interval_s
        self._f = f
        self._args = args
        self._call: IDelayedCall | None = None
        self._running = False
        self._stopped = False
        self._waiters: list[Deferred[None]] = []
        self._due = clock.seconds()
        if now:
            self._turn()
        else:
            self._schedule()

    @property
    def running(self) -> bool:
        """Whether a turn is under way."""
        return self._running

    def stop(self) -> Deferred[None]:
        """Start no further turn; fires when a turn that is under way has ended.

        May be called often, also from within a turn (which must not wait for it then).
        """
        self._stopped = True
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if not self._running:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._waiters.append(waiter)
        return waiter

    def _schedule(self) -> None:
        now = self._clock.seconds()
        behind = max(now - self._due, 0.0)
        self._due += self._interval_s * (int(behind / self._interval_s) + 1)
        self._call = self._clock.callLater(max(self._due - now, 0.0), self._turn)

    def _turn(self) -> None:
        self._call = None
        self._running = True
        ended = _run_process(self._name, self._f, self._args, _NO_KEYWORDS)
        if ended is None:
            self._turn_ended(None)
        else:
            _ = ended.addCallback(self._turn_ended)

    def _turn_ended(self, _: object) -> None:
        self._running = False
        if not self._stopped:
            self._schedule()
            return
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)


class Stoppable(Protocol):
    """What can be stopped, as a `LoopingProcess` can."""

    def stop(self) -> Deferred[None]:
        """Stop; fires once nothing of it runs any more."""
        ...


def stop_all(running: Iterable[Stoppable]) -> Deferred[None]:
    """Stop all that is *running*; fires once nothing of it does."""
    return gatherResults([each.stop() for each in running]).addCallback(lambda _: None)


class _Statistics:
    """What is counted of the processes of one name."""

    __slots__ = ("in_flight", "name", "seconds", "started")

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = 0
        self.in_flight = 0
        self.seconds = 0.0


_statistics: dict[str, _Statistics] = {}


def _samples(attribute: str) -> Iterator[tuple[tuple[str], float]]:
    for name, statistics in _statistics.items():
        yield (name,), getattr(statistics, attribute)


metrics.BACKGROUND_STARTED.add_source(partial(_samples, "started"))
metrics.BACKGROUND_IN_FLIGHT.add_source(partial(_samples, "in_flight"))
metrics.BACKGROUND_SECONDS.add_source(partial(_samples, "seconds"))


_NO_KEYWORDS: dict[str, object] = {}


def _run_process(
    name: str,
    f: Callable[..., object],
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> Deferred[None] | None:
    """Run *f* as a process; the answer never fails, and is None if the work is over already."""
    statistics = _statistics.get(name)
    if statistics is None:
        statistics = _statistics[name] = _Statistics(name)
    statistics.started += 1
    statistics.in_flight += 1
    began = perf_counter()
    context = contextvars.copy_context()
    context.run(_enter_process, name, statistics.started)
    result = context.run(_call, f, name, args, kwargs)
    ended: Deferred[None]
    if isinstance(result, Deferred):
        ended = result.addErrback(_log_failure, context, name)
    elif isinstance(result, (CoroutineType, Awaitable)):
        waits = context.run(started, _supervise(result, name))
        if waits is None:
            _process_ended(None, statistics, began)
            return None
        ended = waits
    else:
        _process_ended(None, statistics, began)
        return None
    return ended.addCallback(_process_ended, statistics, began)


def _enter_process(name: str, number: int) -> None:
    clear_contextvars()
    bind_contextvars(process=name, process_number=number)


def _process_ended(_: object, statistics: _Statistics, began: float) -> None:
    statistics.in_flight -= 1
    statistics.seconds += perf_counter() - began


def _call(
    f: Callable[..., object],
    work: Callable[..., object] | str,
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> object:
    """Call *f*; a failure is logged here, inside the context that *f* ran in."""
    try:
        return f(*args, **kwargs)
    except Exception as error:
        logger.exception("background.failed", work=_count_failure(work), error=str(error))
        return None


async def _supervise(awaited: Awaitable[object], work: Callable[..., object] | str) -> None:
    """Await *awaited*; a failure is logged here, inside the context that it ran in."""
    try:
        await awaited
    except GeneratorExit:
        raise
    except BaseException as error:
        # Twisted would keep any other exception in a Deferred that nobody looks at.
        logger.exception("background.failed", work=_count_failure(work), error=str(error))


def _log_failure(
    failure: Failure, context: contextvars.Context, work: Callable[..., object] | str
) -> None:
    """Errback: log *failure* inside the context of the work, which ends here."""
    untyped: Any = failure
    context.run(
        logger.error,
        "background.failed",
        work=_count_failure(work),
        error=failure.getErrorMessage(),
        exc_info=(failure.type, failure.value, untyped.getTracebackObject()),
    )


def _count_failure(work: Callable[..., object] | str) -> str:
    name = _name_of(work)
    metrics.BACKGROUND_FAILED.labels(name).inc()
    return name


def _name_of(work: Callable[..., object] | str) -> str:
    if isinstance(work, str):
        return work
    while isinstance(work, partial):
        work = work.func
    return getattr(work, "__qualname__", None) or type(work).__qualname__
