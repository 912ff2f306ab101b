"""The commits of an outbox: what goes into which, and what fails with what."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from tcprepl.federation.sending.commit_queue import CommitQueue, OutboxUnavailable, run_inline
from tcprepl.federation.sending.outbox import Outbox


class Later:
    """Runs work when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Any, Deferred[Any]]] = []

    def __call__(self, work: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.waiting.append((work, done))
        return done

    def do(self) -> None:
        work, fired = self.waiting.pop()
        fired.callback(work())


def test_what_is_asked_until_a_commit_begins_goes_into_it(tmp_path: Path) -> None:
    """And what is asked while it runs goes into the next one."""
    run = Later()
    outbox = Outbox(tmp_path / "outbox.sqlite", run)
    done: list[int] = []
    for number in range(3):
        outbox.flush().addCallback(lambda _, number=number: done.append(number))
    work, fired = run.waiting.pop()
    results = work()
    for number in range(3, 6):
        outbox.flush().addCallback(lambda _, number=number: done.append(number))
    assert not run.waiting
    fired.callback(results)
    assert done == [0, 1, 2]
    run.do()
    assert done == [0, 1, 2, 3, 4, 5]
    assert not run.waiting
    outbox.close()
    run.do()


def test_a_thread_that_cannot_begin_fails_what_was_asked(tmp_path: Path) -> None:
    """The next is asked all the same."""
    run = Later()
    outbox = Outbox(tmp_path / "outbox.sqlite", run)
    found: list[Any] = []
    for _ in range(2):
        outbox.flush().addBoth(found.append)
    run.waiting.pop()[1].errback(RuntimeError("no thread"))
    assert [failure.type for failure in found] == [RuntimeError] * 2
    outbox.submit(lambda cursor: 5).addBoth(found.append)
    run.do()
    assert found[2] == 5
    outbox.close()
    run.do()


def test_a_close_is_done_to_the_end_whoever_waits_for_it(tmp_path: Path) -> None:
    """A file that is closed under the commit that runs fails what that commit did."""
    run = Later()
    outbox = Outbox(tmp_path / "outbox.sqlite", run)
    done: list[Any] = []
    outbox.submit(lambda cursor: cursor.execute("SELECT 5").fetchone()).addBoth(done.append)
    closed = outbox.close()
    closed.addErrback(lambda failure: failure.trap(CancelledError))
    closed.cancel()
    while run.waiting:
        run.do()
    assert done == [(5,)]
    assert outbox.close().called
    Outbox(tmp_path / "outbox.sqlite", run_inline).close()


def test_one_failing_operation_does_not_fail_its_neighbours(tmp_path: Path) -> None:
    run = Later()
    outbox = Outbox(tmp_path / "outbox.sqlite", run)
    results: list[Any] = []
    outbox.flush()
    outbox.submit(lambda cursor: cursor.execute("nonsense")).addBoth(results.append)
    outbox.submit(lambda cursor: 5).addBoth(results.append)
    run.do()
    assert isinstance(results[0].value, OutboxUnavailable)
    assert results[1] == 5
    outbox.close()
    run.do()


class Noted(CommitQueue):
    """A database that is a list of what was done; an operation may fail the commit that it is in.

    Attributes:
        done: What was done, each commit in a list; one that failed ends with "undone".
        goes_on: Whether one operation can succeed after another has failed.
    """

    _failures = (OSError,)
    where = "here"

    def __init__(self, run: Any = run_inline) -> None:
        super().__init__(run)
        self.done: list[list[Any]] = []
        self.goes_on = True

    def _in_one(self, ops: Any) -> list[Any]:
        self.done.append([])
        try:
            return self._all(self.done[-1], ops)  # type: ignore[arg-type]
        except BaseException:
            self._outdated = True
            self.done[-1].append("undone")
            raise

    def _recall(self, cursor: Any) -> None:
        cursor.append("recalled")

    def _conclude(self, cursor: Any) -> None:
        cursor.append("concluded")

    def _prepare(self, cursor: Any) -> None:
        raise NotImplementedError

    def _read(self, work: Any) -> Any:
        raise NotImplementedError

    def _go_on(self, error: Exception) -> bool:
        return self.goes_on

    def _shut(self) -> None:
        self.done.append(["shut"])


def note(word: str) -> Any:
    """Return an operation that notes a word, and fails if that is "fail"."""

    def op(cursor: Any) -> str:
        cursor.append(word)
        if word == "fail":
            raise OSError("full")
        return word.upper()

    return op


def test_memory_is_read_at_the_start_and_after_a_failure_and_each_commit_is_concluded() -> None:
    queue = Noted()
    found: list[Any] = []
    for word in ("a", "b", "fail", "c", "d"):
        queue.submit(note(word)).addBoth(found.append)
    assert queue.done == [
        ["recalled", "a", "concluded"],
        ["b", "concluded"],
        ["fail", "undone"],
        ["recalled", "c", "concluded"],
        ["d", "concluded"],
    ]
    assert found[:2] + found[3:] == ["A", "B", "C", "D"]
    assert str(found[2].value) == "here: full"


@pytest.mark.parametrize("goes_on", [True, False])
def test_after_a_failure_each_is_tried_by_itself_where_that_may_help(goes_on: bool) -> None:
    run = Later()
    queue = Noted(run)
    queue.goes_on = goes_on
    found: list[Any] = []
    for word in ("a", "fail", "b"):
        queue.submit(note(word)).addBoth(found.append)
    run.do()
    failed = [not isinstance(one, str) for one in found]
    assert failed == ([False, True, False] if goes_on else [True, True, True])
    assert len(queue.done) == (4 if goes_on else 1)


def test_what_is_asked_for_in_an_answer_is_done_behind_it_not_within_it() -> None:
    queue = Noted()
    answered: list[int] = []

    def ask(number: int) -> None:
        answered.append(number)
        if number < 3_000:
            queue.flush().addCallback(lambda _: ask(number + 1))

    queue.submit(lambda _: queue.flush().addCallback(lambda _: ask(0)))
    assert answered == list(range(3_001))


def test_it_is_closed_once_behind_all_that_was_asked_for() -> None:
    run = Later()
    queue = Noted(run)
    queue.submit(note("a"))
    closing = [queue.close(), queue.close()]
    assert not any(one.called for one in closing)
    run.do()
    assert all(one.called for one in closing)
    assert queue.done == [["recalled", "a", "concluded"], ["shut"]]


def test_what_could_not_be_done_is_its_trouble_until_something_was(tmp_path: Path) -> None:
    """The last one counts: what is refused alone says nothing of the disk."""

    def refused(cursor: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    outbox = Outbox(tmp_path / "outbox.sqlite", run_inline)
    assert outbox.trouble is None
    outbox.submit(refused).addErrback(lambda failure: failure.trap(OutboxUnavailable))
    assert outbox.trouble == f"{outbox.where}: database or disk is full"
    outbox.flush()
    assert outbox.trouble is None
    outbox.close()
