"""Calling what a worker gave us until it succeeds (protocol.md section 7.2).

`Caller` knows nothing of connections and of order: it is told what to call and which
position is reached by it, and it is given one thing at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import CoroutineType
from typing import Any

from twisted.internet.defer import Deferred

from tcprepl import limits, metrics
from tcprepl.errors import BadRow, LogError
from tcprepl.ids import Pair, Token
from tcprepl.logger import get_logger
from tcprepl.replication.following.asyncio_bridge import settled
from tcprepl.replication.following.progress import Progress
from tcprepl.streams.codec import Rows

log = get_logger(__name__)

#: What a handler returns when it takes its time; the first two are what is common.
AWAITABLE = (Deferred, CoroutineType, Awaitable)


class Stopped(Exception):
    """The client stops, so what failed is not called again; it comes anew after the next start.

    What is called may raise it itself: it is then undone like any failure, and not logged.
    """


@dataclass(slots=True)
class Call:
    """Something to call, and what has been reached once it has succeeded.

    Attributes:
        function: A handler or a callback, sync or async.
        arguments: What it is called with; for a handler the rows are the last.
        pair: Whose position moves.
        reached: The position to save with what was written; None for none yet.
        rows: The rows, for a handler: those that do not fit their stream can be left out.
    """

    function: Callable[..., object]
    arguments: tuple[Any, ...]
    pair: Pair
    reached: Token | None
    rows: Rows | None = None


class Caller:
    """Calls handlers and callbacks, again and again if need be.

    After each call either all of what it wrote is saved together with its position, or none
    of it (with a store that shares its transaction; see `Progress`). That holds however it
    fails: by raising, at an ``await``, because rows do not fit their stream, because the
    store refuses, because the client stops or gives up.

    Args:
        progress: The positions.
        wait: Waits so many seconds, less if the client stops.
        max_attempts: How often each thing is called; None is for ever.

    Attributes:
        running: Whether what failed is called again.
        quarantined_rows: Rows left out because they do not fit their stream.
    """

    def __init__(
        self,
        progress: Progress,
        wait: Callable[[float], Awaitable[None]],
        max_attempts: int | None,
    ) -> None:
        self.running = False
        self.quarantined_rows = 0
        self._progress = progress
        self._wait = wait
        self._max_attempts = max_attempts

    def call(
        self,
        function: Callable[..., object],
        arguments: tuple[Any, ...],
        pair: Pair,
        reached: Token | None,
        rows: Rows | None = None,
    ) -> Deferred[None] | None:
        """Call *function*, and save the position that it reached; see `Call` for the arguments.

        Whoever calls must wait before calling anything else.

        Returns:
            None if that succeeded at once. Else a Deferred that fires when it has succeeded,
            and fails with `Stopped`, or with what the last attempt raised: then it is given
            up, and undone.
        """
        try:
            result = function(*arguments)
            if result is not None and isinstance(result, AWAITABLE):
                return self.settle(Call(function, arguments, pair, reached, rows), result)
            self._progress.advance(pair, reached)
        except BaseException as error:  # noqa: BLE001  # undone, then raised
            return self.again(Call(function, arguments, pair, reached, rows), error)
        return None

    def settle(self, call: Call, result: Any) -> Deferred[None]:
        """Wait for *result*, which *call* returned; as `call` from there on."""
        return Deferred.fromCoroutine(self._settle(call, result))

    def again(self, call: Call, error: BaseException) -> Deferred[None]:
        """Call it again, for it has raised *error*; as `call` from there on."""
        return Deferred.fromCoroutine(self._retry(call, error))

    async def _settle(self, call: Call, result: Awaitable[object]) -> None:
        try:
            await settled(result)
            self._progress.advance(call.pair, call.reached)
        except BaseException as error:  # noqa: BLE001  # undone, then raised
            await self._retry(call, error)

    async def _retry(self, call: Call, error: BaseException) -> None:
        attempt = 1
        while True:
            self._progress.undo()
            if isinstance(error, Stopped):
                raise error
            if not isinstance(error, (Exception, asyncio.CancelledError)):
                raise error  # the process ends, or the coroutine is thrown away
            if self._leave_out_bad_rows(call, error):
                attempt = 0
            if attempt:
                self._log(call, attempt, error)
                if self._max_attempts is not None and attempt >= self._max_attempts:
                    raise error
                if self.running:
                    await self._wait(_backoff_s(attempt))
            if not self.running:
                raise Stopped
            attempt += 1
            try:
                if call.rows is None or call.rows:
                    result = call.function(*call.arguments)
                    if isinstance(result, AWAITABLE):
                        await settled(result)
                self._progress.advance(call.pair, call.reached)
            except BaseException as again:  # noqa: BLE001  # undone, then raised
                error = again
            else:
                return

    def _leave_out_bad_rows(self, call: Call, error: BaseException) -> bool:
        """Take out the rows that do not fit their stream; return whether there were any."""
        if not isinstance(error, BadRow) or call.rows is None:
            return False
        good, bad = call.rows.sift()
        if not bad:
            return False
        call.rows = good
        call.arguments = (*call.arguments[:-1], good)
        self.quarantine(call.pair, call.arguments[-2], bad)
        return True

    def quarantine(self, pair: Pair, token: Token, bad: Sequence[BadRow]) -> None:
        """Log and count rows that are left out."""
        self.quarantined_rows += len(bad)
        metrics.DROPPED.labels("row", "bad").inc(len(bad))
        stream, instance = pair
        for error in bad:
            log.error(
                "replication.row.quarantined",
                stream=stream,
                instance=instance,
                token=token,
                error=str(error),
            )

    def _log(self, call: Call, attempt: int, error: BaseException) -> None:
        stream, instance = call.pair
        if call.rows is None:
            log.error(
                "replication.callback.failed",
                callback=getattr(call.function, "__qualname__", repr(call.function)),
                stream=stream,
                instance=instance,
                token=call.reached,
                attempt=attempt,
                **_in_words(error),
            )
        else:
            log.error(
                "replication.handler.failed",
                stream=stream,
                instance=instance,
                token=call.arguments[-2],
                rows=len(call.rows),
                attempt=attempt,
                **_in_words(error),
            )


def _in_words(error: BaseException) -> dict[str, Any]:
    """Return what a log line says of *error*: a log that refuses says all that there is to know."""
    return {"error": str(error)} if isinstance(error, LogError) else {"exc_info": error}


def _backoff_s(failures: int) -> float:
    """Return how long to wait before what failed *failures* times is called again."""
    return min(
        limits.HANDLER_RETRY_MAX_S, limits.HANDLER_RETRY_MIN_S * 2.0 ** min(failures - 1, 10)
    )
