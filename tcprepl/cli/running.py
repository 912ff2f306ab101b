"""Run something on the global reactor until it is done or somebody presses Ctrl-C."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, cast

from twisted.internet import defer, error
from twisted.internet._resolver import GAIResolver
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from tcprepl.clocks import Reactor, make_steady
from tcprepl.errors import ConnectionFailed

SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: A process ends this soon after it was asked to, even if a part of it hangs: then as if killed,
#: which loses nothing that was answered. Those who start us allow 10 s.
END_WITHIN_S = 9.0
#: Names that are looked up at once.
RESOLVER_THREADS = 10
#: How a process ends that was interrupted while it waited.
_INTERRUPTED = (defer.CancelledError, error.ConnectingCancelledError, ConnectionFailed)


def run_until_done(
    main: Callable[[Any], Coroutine[defer.Deferred[Any], Any, int]],
    reactor: Reactor | None = None,
    *,
    on_hangup: Callable[[], object] | None = None,
    end: Callable[[int], object] = os._exit,
) -> int:
    """Run the coroutine ``main(reactor)`` and return its exit code.

    SIGINT and SIGTERM cancel it: it gets a CancelledError where it waits, tidies up, and
    returns. One that lets the error through has ended as it was asked to: exit code 0. Who has
    not ended `END_WITHIN_S` later is ended, with 1; so is who gets a second signal, at once.

    Args:
        main: What to run.
        reactor: The reactor; the installed one by default.
        on_hangup: Called in the reactor for each SIGHUP; without it SIGHUP kills, as it does.
        end: Ends the process without tidying.

    Raises:
        Exception: whatever *main* raised.
    """
    if reactor is None:
        reactor = _installed_reactor()
    outcome: list[int | Failure] = []
    interrupted: list[int] = []
    task: defer.Deferred[int] = defer.Deferred()
    overdue = threading.Timer(END_WITHIN_S, _end_overdue, [end])
    overdue.daemon = True

    def finish(result: int | Failure) -> None:
        outcome.append(result)
        try:
            reactor.stop()
        except error.ReactorNotRunning:
            return

    def begin() -> None:
        nonlocal task
        take_signals()  # the reactor has put its own in their place
        task = defer.Deferred.fromCoroutine(main(reactor))
        _ = task.addBoth(finish)

    def cancel() -> None:
        task.cancel()  # the one that there is by then

    def interrupt(number: int, _: object) -> None:
        interrupted.append(number)
        if len(interrupted) == 1:
            overdue.start()
            reactor.callFromThread(cancel)
        else:
            end(1)

    def hang_up(_: int, __: object) -> None:
        assert on_hangup is not None
        reactor.callFromThread(on_hangup)

    def take_signals() -> None:
        for number in SIGNALS:
            signal.signal(number, interrupt)
        if on_hangup is not None:
            signal.signal(signal.SIGHUP, hang_up)

    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGHUP)}
    reactor.callWhenRunning(begin)
    take_signals()
    reactor.run()
    for number, handler in before.items():
        signal.signal(number, handler)
    overdue.cancel()
    result = outcome[0] if outcome else 1
    if isinstance(result, Failure):
        if interrupted and isinstance(result.value, _INTERRUPTED):
            return 0
        result.raiseException()
    assert isinstance(result, int)
    return result


def _end_overdue(end: Callable[[int], object]) -> None:
    text = (
        f"tcprepl: not everything could be stopped within {END_WITHIN_S:g} s; ends all the same\n"
    )
    try:
        if select.select([], [2], [], 0)[1]:  # nobody may read there
            os.write(2, text.encode())
    finally:
        end(1)


def pool_aside(threads: int, name: str) -> ThreadPool:
    """Return a pool whose threads nobody waits for at the end: what they wait for may never come.

    The end of the reactor waits for those of its own pool, and of the pool alone.
    """
    pool = ThreadPool(0, threads, name=name)
    pool.threadFactory = partial(threading.Thread, daemon=True)  # type: ignore[assignment]
    return pool


def _installed_reactor() -> Any:
    """Return Twisted's reactor, which measures time by a clock that never jumps.

    Names are looked up in threads that nobody waits for at the end: it may take them minutes.
    """
    from twisted.internet import reactor as installed

    reactor = cast("Reactor", installed)
    make_steady(reactor)
    pool = pool_aside(RESOLVER_THREADS, "names")
    reactor.callWhenRunning(pool.start)
    reactor.installNameResolver(GAIResolver(reactor, lambda: pool))
    return reactor
