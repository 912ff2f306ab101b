"""Work that is shared is done once, and ends when nobody waits for it."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred

from tcprepl.federation.wire.shared import Shared


class Work:
    """Waits until it is told."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self.gate: Deferred[int] = Deferred()

    async def __call__(self) -> int:
        self.begun += 1
        try:
            return await self.gate
        finally:
            self.ended += 1


def ask(
    shared: Shared[str, int], work: Work, times: int
) -> tuple[list[Deferred[int]], list[object]]:
    asked = [shared.ask("k", work) for _ in range(times)]
    found: list[object] = []
    for one in asked:
        one.addCallbacks(found.append, lambda failure: found.append(type(failure.value)))
    return asked, found


def test_it_is_done_once_for_all() -> None:
    shared: Shared[str, int] = Shared()
    work = Work()
    _, found = ask(shared, work, 3)
    work.gate.callback(7)
    assert (found, work.begun, len(shared)) == ([7, 7, 7], 1, 0)


def test_a_failure_is_for_all() -> None:
    shared: Shared[str, int] = Shared()
    work = Work()
    _, found = ask(shared, work, 2)
    work.gate.errback(ZeroDivisionError())
    assert found == [ZeroDivisionError, ZeroDivisionError]


def test_work_that_needs_no_time() -> None:
    async def at_once() -> int:
        return 5

    shared: Shared[str, int] = Shared()
    found: list[object] = []
    shared.ask("k", at_once).addCallback(found.append)
    assert (found, len(shared)) == ([5], 0)


def test_who_is_cancelled_takes_nobody_along() -> None:
    shared: Shared[str, int] = Shared()
    work = Work()
    asked, found = ask(shared, work, 2)
    asked[0].cancel()
    assert (found, work.ended) == ([CancelledError], 0)
    work.gate.callback(7)
    assert found == [CancelledError, 7]


def test_work_that_nobody_waits_for_is_cancelled() -> None:
    shared: Shared[str, int] = Shared()
    first = Work()
    asked, found = ask(shared, first, 2)
    for one in asked:
        one.cancel()
    assert (found, first.ended, len(shared)) == ([CancelledError] * 2, 1, 0)
    second = Work()
    _, found = ask(shared, second, 1)
    second.gate.callback(8)
    assert found == [8]


def test_one_answer_may_cancel_the_next_who_waits() -> None:
    shared: Shared[str, int] = Shared()
    work = Work()
    first, second = shared.ask("k", work), shared.ask("k", work)
    found: list[object] = []
    first.addCallback(lambda _: second.cancel())
    second.addErrback(lambda failure: found.append(type(failure.value)))
    work.gate.callback(1)
    assert found == [CancelledError]
