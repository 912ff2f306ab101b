"""Run something on the global reactor until it is done or somebody presses Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet import defer, error
from twisted.python.failure import Failure

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_until_done(
    main: Callable[[Any], Coroutine[defer.Deferred[Any], Any, int]], reactor: Any = None
) -> int:
    """Run the coroutine ``main(reactor)`` and return its exit code.

    SIGINT and SIGTERM cancel it: it gets a CancelledError where it waits, tidies up, and
    returns. One that lets the error through has ended as it was asked to: exit code 0. A
    second signal does not wait for the tidying.

    Raises:
        Exception: whatever *main* raised.
    """
    if reactor is None:
        from twisted.internet import reactor as installed

        reactor = installed
    outcome: list[int | Failure] = []
    interrupted: list[int] = []

    def finish(result: int | Failure) -> None:
        outcome.append(result)
        stop()

    def stop() -> None:
        try:
            reactor.stop()
        except error.ReactorNotRunning:
            return

    def begin() -> None:
        task = defer.Deferred.fromCoroutine(main(reactor)).addBoth(finish)

        def interrupt(number: int, _: object) -> None:
            interrupted.append(number)
            if len(interrupted) == 1:
                reactor.callFromThread(task.cancel)
            else:
                reactor.callFromThread(stop)

        for number in SIGNALS:
            signal.signal(number, interrupt)

    before = [signal.getsignal(number) for number in SIGNALS]
    reactor.callWhenRunning(begin)
    reactor.run()
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)
    result = outcome[0] if outcome else 1
    if isinstance(result, Failure):
        if interrupted and isinstance(result.value, defer.CancelledError):
            return 0
        result.raiseException()
    assert isinstance(result, int)
    return result
