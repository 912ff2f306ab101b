"""What a relay has taken, on its way into the log: in order, and again when the log refuses.

One group of appends is under way at a time, and what comes meanwhile is the next one; so
the disk decides how many rows share an fsync. What the log cannot take now, since its disk is full
or its database away, is kept, in order, and tried again until it does; when too much is kept, the
upstream is read no further. The relay stops when the log can take no more, ever: everything up to a
point is in it, and the next start goes on from there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from tcprepl.background import run_in_background
from tcprepl.clocks import Reactor
from tcprepl.errors import (
    LogFenced,
    LogUnavailable,
    WrittenElsewhere,
)
from tcprepl.ids import Pair, Token
from tcprepl.logger import get_logger
from tcprepl.streams.log import Log

log = get_logger(__name__)

#: Bytes of rows that one group of appends carries at most.
GROUP_BYTES: Final = 1_048_576
#: Bytes of rows that may wait for the disk before the upstream is read no further.
MAX_WAITING_BYTES: Final = 16 * 1_048_576
#: What a call that waits for the rows before it counts for, besides what it says itself.
CALL_BYTES: Final = 256
#: How soon what the log could not take is tried again.
RETRY_S: Final = 0.5


class _Item:
    """One thing to do to the log: rows of a pair, or a position without rows; or a call."""

    __slots__ = ("call", "pair", "rows", "size", "tokens", "trims")

    def __init__(self, pair: Pair) -> None:
        self.call: Callable[[], object] | None = None
        self.pair = pair
        self.tokens: list[Token] = []
        self.rows: list[bytes] = []
        self.size = 0
        self.trims = False


class LogQueue:
    """Rows and positions that go into the log, in the order in which they were queued.

    What the log refuses for now waits, with all behind it, and is tried again.

    Args:
        reactor: For gathering what one turn brings.
        stream_log: The log.

    Attributes:
        failed: Fires, with the failure, when the log takes no more.
        rows_taken: Rows queued for the log since the start.
        trouble: Why the log takes nothing now; None as far as is known that it does.
    """

    def __init__(self, reactor: Reactor, stream_log: Log) -> None:
        self.failed: Deferred[None] = Deferred()
        self.trouble: str | None = None
        self.rows_taken = 0
        self._rows_at: float | None = None
        self._reactor = reactor
        self._log = stream_log
        #: Up to where each pair is queued.
        self._heads: dict[Pair, Token] = {}
        self._queue: deque[_Item] = deque()
        self._waiting_bytes = 0
        self._busy = False
        self._broken = False
        self._ending = False
        self._gathers = False
        self._retry: Deferred[None] | None = None
        self._call: Any = None
        self._drained: list[Deferred[None]] = []
        self._room: Deferred[None] | None = None

    def _append(self, pair: Pair, tokens: list[Token], rows: list[bytes]) -> None:
        item = self._queue[-1] if self._queue else None
        if item is None or item.pair != pair or not item.rows or item.size > GROUP_BYTES // 4:
            item = _Item(pair)
            self._queue.append(item)
        size = sum(map(len, rows))
        item.tokens += tokens
        item.rows += rows
        item.size += size
        self._waiting_bytes += size
        self.rows_taken += len(rows)
        self._rows_at = self._reactor.seconds()
        self._heads[pair] = tokens[-1]
        self._kick()

    def _advance(self, pair: Pair, token: Token, *, trims: bool = False) -> None:
        item = _Item(pair)
        item.tokens.append(token)
        item.trims = trims
        self._queue.append(item)
        self._heads[pair] = token
        self._kick()

    def _wait_for_room(self) -> Deferred[None] | None:
        if not self.full:
            return None
        waiter: Deferred[None] = Deferred()
        self.when_room(lambda: waiter.callback(None))
        return waiter

    @property
    def full(self) -> bool:
        """Whether so much waits that nothing more should be taken; `when_room` tells."""
        return self._waiting_bytes > MAX_WAITING_BYTES and not self._broken

    def when_room(self, call: Callable[[], object]) -> None:
        """Call *call* once there is room, or the log takes no more."""
        if self._room is None:
            self._room = Deferred()
        _ = self._room.addCallback(lambda _: call())

    def after(self, call: Callable[[], object], size: int = 0) -> None:
        """Call *call* once everything taken so far is in the log, and nothing later.

        It is not called when the log takes no more.

        Args:
            call: What to call.
            size: Bytes that it holds.
        """
        if not self._queue and not self._busy:
            call()
            return
        item = _Item(("", ""))
        item.call = call
        item.size = CALL_BYTES + size
        self._waiting_bytes += item.size
        self._queue.append(item)
        self._kick()

    async def drained(self) -> None:
        """Wait until everything taken so far is in the log.

        Raises:
            LogUnavailable: It is not, and will not be: the log takes no more.
        """
        await self.settled()
        if self._queue and self._broken:
            raise LogUnavailable("the log took no more before it had what was taken")

    async def settled(self) -> None:
        """Wait until everything taken so far is in the log, or let go."""
        if (self._queue or self._busy) and not self._broken:
            waiter: Deferred[None] = Deferred()
            self._drained.append(waiter)
            await waiter

    def _kick(self) -> None:
        if self._call is None and not (self._gathers or self._busy or self._broken):
            self._call = self._reactor.callLater(0, self._begin)

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Take what comes within as one group, and begin with it at the end, not a turn later."""
        self._gathers = True
        try:
            yield
        finally:
            self._gathers = False
            if self._queue and self._call is None and not (self._busy or self._broken):
                self._begin()

    def _begin(self) -> None:
        self._call = None
        self._busy = True
        run_in_background(self._pump)

    async def _pump(self) -> None:
        """Append group after group until nothing waits, or the log takes no more."""
        while self._queue and not self._broken:
            failure = await self._append_group()
            if failure is not None:
                await self._refused(failure)
        self._busy = False
        waiters, self._drained = self._drained, []
        for waiter in waiters:
            waiter.callback(None)
        if self._broken and self._room is not None:
            self._room.callback(None)
            self._room = None
        elif self._queue:
            self._kick()

    async def _refused(self, failure: Failure) -> None:
        """Wait until the log may take what it has refused; or end, if it never will."""
        final = failure.check(LogFenced, WrittenElsewhere) or not failure.check(LogUnavailable)
        if final and not self.failed.called:
            log.error("replication.relay.stopped", error=failure.getErrorMessage())
            self.failed.errback(failure)
        if final or self._ending:
            self._broken = True
            rows = sum(len(item.rows) for item in self._queue)
            log.warning("replication.relay.dropped", rows=rows, reason=failure.getErrorMessage())
            return
        if self.trouble is None:
            log.error("replication.relay.waits", reason=failure.getErrorMessage())
        self.trouble = failure.getErrorMessage()
        self._retry = Deferred()
        again = self._reactor.callLater(RETRY_S, self._retry.callback, None)
        await self._retry
        self._retry = None
        if again.active():
            again.cancel()

    def end(self) -> None:
        """Take it as final from now on if the log refuses: the process is about to end."""
        self._ending = True
        if self._retry is not None and not self._retry.called:
            self._retry.callback(None)  # tried once more

    async def _append_group(self) -> Failure | None:
        """Append what waits, up to a bound; return why some of it was refused, and waits again."""
        items: list[_Item] = []
        under_way: list[Deferred[Any]] = []
        size = 0
        while self._queue and size < GROUP_BYTES and self._queue[0].call is None:
            item = self._queue.popleft()
            items.append(item)
            size += item.size
            under_way.append(maybeDeferred(self._apply, item))
            if isinstance(getattr(under_way[-1], "result", None), Failure):
                break  # nothing passes it
        refused: list[_Item] = []
        failure: Failure | None = None
        # The last one first: when it is answered, nearly always all of them are.
        for item, answered in zip(reversed(items), reversed(under_way), strict=True):
            try:
                await answered
            except Exception:  # noqa: BLE001 - whatever it is, it was refused
                failure = Failure()
                refused.append(item)
            else:
                self._waiting_bytes -= item.size
        for item in items:
            if item.trims and item not in refused:
                self._log.trim(*item.pair, item.tokens[0], "from before this relay listened")
        if failure is not None:
            self._queue.extendleft(refused)
            return failure
        if self.trouble is not None:
            self.trouble = None
            log.info("replication.relay.goes_on")
        while self._queue and (call := self._queue[0].call) is not None:
            self._waiting_bytes -= self._queue.popleft().size
            run_in_background(call)
        self._make_room()
        return None

    def _make_room(self) -> None:
        if self._room is not None and self._waiting_bytes <= MAX_WAITING_BYTES // 2:
            room, self._room = self._room, None
            room.callback(None)

    def _apply(self, item: _Item) -> Deferred[Any]:
        if item.rows:
            return self._log.append(*item.pair, item.rows, tokens=item.tokens)
        return self._log.advance(*item.pair, item.tokens[0])

    async def close(self) -> None:
        """Wait for what is under way; what the log refuses now is not tried again."""
        self.end()
        await self.settled()
