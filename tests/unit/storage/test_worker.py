"""Jobs one after the other, in a thread or not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest
from twisted.internet.defer import CancelledError

from tcprepl.storage.worker import InlineWorker, ThreadWorker, Worker, answer_of


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


@pytest.mark.parametrize("threaded", [False, True])
def test_what_a_job_does_is_answered_in_the_thread_that_asked(threaded: bool) -> None:
    reactor = Reactor()
    worker: Worker = ThreadWorker(reactor.call_from_thread, "test") if threaded else InlineWorker()
    answers: list[object] = []
    for job in (lambda: 7, lambda: 1 // 0, lambda: 8):
        waiting = answer_of(worker, job)
        waiting.addCallback(answers.append).addErrback(lambda why: answers.append(why.type))
        if threaded:
            assert len(answers) < 3
            reactor.turn()
    assert answers == [7, ZeroDivisionError, 8]
    worker.stop()


def test_a_job_that_nobody_waits_for_any_more_is_done_all_the_same() -> None:
    reactor, done = Reactor(), list[int]()
    worker = ThreadWorker(reactor.call_from_thread, "test")
    waiting = answer_of(worker, lambda: done.append(1))
    waiting.addErrback(lambda why: why.trap(CancelledError))
    waiting.cancel()
    reactor.turn()
    assert done == [1]
    worker.stop()
