"""What has to get to the disk, and nobody waits for: if the disk refuses, again and again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tcprepl.background import run_in_background
from tcprepl.federation.sending.commit_queue import OutboxUnavailable
from tcprepl.federation.sending.destination import Destination
from tcprepl.logger import get_logger

logger = get_logger(__name__)

P = ParamSpec("P")

#: Wait after the disk refused.
DISK_RETRY_MS = 5_000


class Writes:
    """Has things written about destinations.

    While something of a destination is not written, its next transaction does not begin
    (`Outbox.begin`), so nothing is done twice if that is cut short. Nor may anything be undone
    that may not be done yet: ask `owes`.
    """

    def __init__(self, clock: IReactorTime, written: Callable[[Destination], object]) -> None:
        """Make it.

        Args:
            clock: For waiting until the disk is asked again.
            written: Called with a destination of which everything is written that was late.
        """
        self._clock = clock
        self._written = written
        self._again: dict[Deferred[None], Destination] = {}

    def persist(
        self,
        destination: Destination,
        write: Callable[P, Deferred[Any]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Have something written about *destination*; if the disk refuses, again and again."""
        again = partial(write, *args, **kwargs)
        _ = again().addErrback(self._refused, destination, again)

    def owes(self, destination: Destination) -> bool:
        """Return whether the disk has refused something about *destination*, and not taken it."""
        return destination in self._again.values()

    def stop(self) -> None:
        """Give up what was refused: the disk has what it needs for the next start."""
        for writing in list(self._again):
            writing.cancel()

    def _refused(
        self, failure: Failure, destination: Destination, write: Callable[[], Deferred[Any]]
    ) -> None:
        writing = Deferred.fromCoroutine(self._write(failure, destination, write))
        self._again[writing] = destination

        def ended(result: Failure | None) -> Failure | None:
            del self._again[writing]
            if result is not None:
                return None if result.check(CancelledError) else result
            # Meanwhile the disk was not what memory took it for.
            destination.outdate()
            if not self.owes(destination):
                self._written(destination)
            return None

        run_in_background(writing.addBoth, ended)

    async def _write(
        self, failure: Failure, destination: Destination, write: Callable[[], Deferred[Any]]
    ) -> None:
        while True:
            failure.trap(OutboxUnavailable)
            logger.error(
                "federation.outbox.unavailable",
                error=failure.getErrorMessage(),
                destination=destination.name,
                retry_s=DISK_RETRY_MS / 1000,
            )
            await deferLater(self._clock, DISK_RETRY_MS / 1000)
            try:
                await write()
            except OutboxUnavailable:
                failure = Failure()
            else:
                return
