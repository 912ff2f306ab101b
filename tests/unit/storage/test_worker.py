"""Jobs one after the other, in a thread or not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest

from tcprepl.storage.worker import InlineWorker, ThreadWorker, Worker


class Reactor:
    """Calls what threads ask for, in the test's thread."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]]] = SimpleQueue()

    def call_from_thread(self, f: Callable[..., object], *args: Any) -> None:
        """Take a call."""
        self.calls.put((f, args))

    def turn(self) -> None:
        """Make one call."""
        f, args = self.calls.get(timeout=10)
        f(*args)


@pytest.mark.parametrize("threaded", [False, True])
def test_jobs_run_in_order_and_answer(threaded: bool) -> None:
    reactor = Reactor()
    worker: Worker = ThreadWorker(reactor.call_from_thread, "test") if threaded else InlineWorker()
    order: list[object] = []
    answers: list[tuple[object, object]] = []
    worker.submit(lambda: order.append(1) or "one", lambda *answer: answers.append(answer))
    worker.submit(lambda: 1 // 0, lambda answer, error: answers.append((answer, type(error))))
    assert worker.call(lambda: order.append(2) or threading.current_thread().name) == (
        "test" if threaded else threading.current_thread().name
    )
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 // 0)
    if threaded:
        reactor.turn()
        reactor.turn()
    assert order == [1, 2]
    assert answers == [("one", None), (None, ZeroDivisionError)]
    worker.submit(lambda: order.append(3), lambda *_: None)
    worker.stop()
    assert order == [1, 2, 3]
