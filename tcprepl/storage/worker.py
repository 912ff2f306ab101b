"""The one thread that writes to the disk, and a stand-in that needs no thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")

#: Called with the answer of a job, or with the exception that it raised.
Done = Callable[[T | None, BaseException | None], None]


class Worker(Protocol):
    """Runs jobs one after the other, in the order in which they were given."""

    def submit(self, job: Callable[[], T], done: Done[T]) -> None:
        """Run *job*; then call *done* in the caller's thread."""
        ...

    def call(self, job: Callable[[], T]) -> T:
        """Run *job* after those before it, wait for it, and return or raise what it does."""
        ...

    def stop(self) -> None:
        """End, after the jobs that were given."""
        ...


class InlineWorker:
    """Runs each job at once, in the caller's thread."""

    def submit(self, job: Callable[[], T], done: Done[T]) -> None:
        """Run *job* and call *done* before this returns."""
        try:
            answer = job()
        except Exception as error:  # noqa: BLE001 - handed to the caller
            done(None, error)
        else:
            done(answer, None)

    def call(self, job: Callable[[], T]) -> T:
        """Run *job*."""
        return job()

    def stop(self) -> None:
        """Do nothing."""


class ThreadWorker:
    """Runs jobs in a thread of its own.

    The thread is a daemon: a process that ends without closing its log ends all the same,
    and loses nothing that was acknowledged.
    """

    def __init__(self, call_from_thread: Callable[..., object], name: str) -> None:
        """Start the thread.

        Args:
            call_from_thread: The reactor's ``callFromThread``.
            name: Name of the thread.
        """
        self._call_from_thread = call_from_thread
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def submit(self, job: Callable[[], T], done: Done[T]) -> None:
        """Run *job* in the thread; then call *done* in the reactor's."""

        def run() -> None:
            try:
                answer = job()
            except Exception as error:  # noqa: BLE001 - handed to the caller
                self._call_from_thread(done, None, error)
            else:
                self._call_from_thread(done, answer, None)

        self._jobs.put(run)

    def call(self, job: Callable[[], T]) -> T:
        """Run *job* in the thread and wait for it."""
        finished = threading.Event()
        outcome: list[T] = []
        failure: list[Exception] = []

        def run() -> None:
            try:
                outcome.append(job())
            except Exception as error:  # noqa: BLE001 - handed to the caller
                failure.append(error)
            finally:
                finished.set()

        self._jobs.put(run)
        finished.wait()
        if failure:
            raise failure[0]
        return outcome[0]

    def stop(self) -> None:
        """End the thread after the jobs that were given, and wait for that."""
        self._jobs.put(None)
        self._thread.join()


def answer_of(worker: Worker, job: Callable[[], T]) -> Deferred[T]:
    """Run *job* in *worker*; fires with what it does, also where nobody waits any more."""
    answer: Deferred[T] = Deferred()

    def done(result: T | None, error: BaseException | None) -> None:
        if error is None:
            answer.callback(result)  # type: ignore[arg-type]  # it is what the job returned
        else:
            answer.errback(error)

    worker.submit(job, done)
    return answer
