"""The commits of an outbox: what goes into which, and what fails with what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from tcprepl.federation.sending.commit_queue import OutboxUnavailable
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
