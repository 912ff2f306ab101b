"""What the disk refuses is written later, until it is given up."""

from __future__ import annotations

import pytest
import structlog
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from tcprepl.federation.sending.commit_queue import OutboxUnavailable
from tcprepl.federation.sending.destination import Destination, Held
from tcprepl.federation.sending.writes import DISK_RETRY_MS, Writes
from tcprepl.federation.wire.transaction import TransactionLimits


class Disk:
    """Refuses so many times."""

    def __init__(self, refusals: int, error: Exception | None = None) -> None:
        self.refusals = refusals
        self.error = error or OutboxUnavailable("full")
        self.written: list[int] = []

    def __call__(self, number: int) -> Deferred[None]:
        if self.refusals:
            self.refusals -= 1
            return fail(self.error)
        self.written.append(number)
        return succeed(None)


@pytest.mark.parametrize("refusals", [0, 1, 3])
def test_it_is_written_in_the_end(refusals: int) -> None:
    clock, disk, written = Clock(), Disk(refusals), list[Destination]()
    destination = Destination("y", TransactionLimits())
    writes = Writes(clock, written.append)
    writes.persist(destination, disk, 7)
    with structlog.testing.capture_logs() as logs:
        for _ in range(refusals):
            clock.advance(DISK_RETRY_MS / 1000 - 0.002)
            assert disk.written == []
            clock.advance(0.01)
    assert not [line for line in logs if line["event"] == "background.failed"]
    assert disk.written == [7]
    assert not writes._again
    assert written == [destination] * bool(refusals)
    assert destination.held is (Held.OUTDATED if refusals else Held.ALL)
    assert clock.getDelayedCalls() == []


def test_what_is_refused_is_given_up_at_the_end() -> None:
    clock, disk = Clock(), Disk(99)
    writes = Writes(clock, lambda _: None)
    with structlog.testing.capture_logs() as logs:
        writes.persist(Destination("y", TransactionLimits()), disk, 7)
        writes.stop()
    assert [line["event"] for line in logs] == ["federation.outbox.unavailable"]
    assert clock.getDelayedCalls() == []


def test_a_failure_that_is_not_of_the_disk_is_logged() -> None:
    with structlog.testing.capture_logs() as logs:
        writes = Writes(Clock(), lambda _: None)
        writes.persist(
            Destination("y", TransactionLimits()), Disk(1, ZeroDivisionError("a bug")), 7
        )
    assert any(line["event"] == "background.failed" for line in logs)
