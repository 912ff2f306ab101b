"""What the stores of the log share: listeners, transaction ids, the periodic clean-up."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from tcprepl.background import run_in_background, spread
from tcprepl.errors import LogCorrupt, TokenFromFuture, TokenTooOld
from tcprepl.ids import InstanceName, Pair, ProducerName, StreamName, Token
from tcprepl.limits import MAX_VOLATILE_TRANSACTIONS
from tcprepl.logger import get_logger
from tcprepl.streams.blocks import empty_page
from tcprepl.streams.cursor import Cursor, Source
from tcprepl.streams.gaps import Gaps
from tcprepl.streams.history import History
from tcprepl.streams.holding import DatabaseStatus
from tcprepl.streams.lineage import Places
from tcprepl.streams.log import Appended, Block, Page
from tcprepl.streams.pages import Reading
from tcprepl.streams.producers import Producers
from tcprepl.streams.registry import Registry, StreamDef, check_name
from tcprepl.streams.retention import Retention

logger = get_logger(__name__)

#: How often old rows are looked for when nothing is appended.
EXPIRE_INTERVAL_S = 60.0

#: How much that is too old, and no more than that, goes with an append at most. It is more than
#: comes; what comes of age together, after a quiet time, goes with the look every minute.
AGED_AT_ONCE = 4

#: Why a closed log refuses.
CLOSED = "the log is closed"

T = TypeVar("T")


class Transactions:
    """Transaction ids in memory, with the answers that they got: for a while, the newest ones."""

    def __init__(self, max_age_s: float) -> None:
        self._max_age_ms = max_age_s * 1000
        # The oldest goes first; of a dict the places of those that are gone would be passed anew.
        self._answers: OrderedDict[tuple[StreamName, str], tuple[int, Appended]] = OrderedDict()

    def get(self, stream: StreamName, transaction_id: str, now_ms: int) -> Appended | None:
        """Return what was answered to this id, unless that was too long ago."""
        found = self._answers.get((stream, transaction_id))
        if found is None or now_ms - found[0] > self._max_age_ms:
            return None
        return found[1]

    def put(self, stream: StreamName, transaction_id: str, appended: Appended, now_ms: int) -> None:
        """Remember an answer."""
        self._answers.pop((stream, transaction_id), None)
        self._answers[stream, transaction_id] = (now_ms, appended)
        _ = self._forgets_oldest(now_ms)

    def expiring(self, now_ms: int) -> Iterator[None]:
        """Forget what was answered too long ago, and what is too much: one with each step."""
        while self._forgets_oldest(now_ms):
            yield

    def _forgets_oldest(self, now_ms: int) -> bool:
        """Forget the oldest answer if it is too old, or one too many; return whether it was."""
        answers = self._answers
        for key, (given_ms, _) in answers.items():
            if now_ms - given_ms > self._max_age_ms or len(answers) > MAX_VOLATILE_TRANSACTIONS:
                del answers[key]
                return True
            break
        return False


class BaseLog:
    """Listeners, in order and safe from each other, and the periodic clean-up.

    What is announced while listeners are being called waits until they have all heard of
    what came before, so that every listener hears everything in the same order.
    """

    history: History
    #: Fires with the reason when the log can take no more, ever; most logs never do.
    failed: Deferred[None]
    _pairs: Mapping[Pair, Source]

    def __init__(
        self,
        registry: Registry,
        clock_ms: Callable[[], int],
        retention: Retention,
        reactor: IReactorTime | None,
        gaps: Gaps | None = None,
    ) -> None:
        self.gaps = gaps or Gaps()
        self.failed = Deferred()
        self._registry = registry
        self._clock_ms = clock_ms
        self._retention = retention
        self._transactions = Transactions(retention.transaction_age_s)
        self._producers = Producers()
        self._listeners: list[Callable[[Block], None]] = []
        self._position_listeners: list[
            Callable[[StreamName, InstanceName, Token, Token], None]
        ] = []
        self._outbox: deque[Callable[[], None]] = deque()
        self._announcing = False
        self._closed = False
        self._reactor = reactor
        self._expiry: IDelayedCall | None = None

    def add_listener(self, listener: Callable[[Block], None]) -> None:
        """Call *listener* with each block, in order, the moment it is safe to publish."""
        self._listeners.append(listener)

    def add_position_listener(
        self, listener: Callable[[StreamName, InstanceName, Token, Token], None]
    ) -> None:
        """Call *listener* (stream, instance, before, now) when a position moves without rows."""
        self._position_listeners.append(listener)

    # --- what is there ----------------------------------------------------------------------

    def pairs(self) -> list[Pair]:
        """Return every (stream, instance), in the order in which they became known."""
        return list(self._pairs)

    def source(self, pair: Pair) -> Source | None:
        """Return the log of one pair, for its cursors; None if it is not known."""
        return self._pairs.get(pair)

    @property
    def trouble(self) -> str | None:
        """Why nothing can be appended now; None as far as is known that it can."""
        return None

    @property
    def database(self) -> DatabaseStatus | None:
        """The database that the log shares with other servers; None where it shares none."""
        return None

    def elsewhere(self, pair: Pair) -> str | None:
        """Return which other server alone serves the rows of *pair*, from its memory."""
        return None

    def wait_no_longer(self) -> None:
        """Refuse what is in doubt because the database is away: the process is about to end."""

    def look(self) -> Reading | None:
        """Begin to look for what other servers have written; None where there are none."""
        return None

    def position(self, stream: StreamName, instance: InstanceName) -> Token:
        """Return the newest published token; 0 for a pair that is not known."""
        found = self._pairs.get((stream, instance))
        return found.position if found else 0

    def floor(self, stream: StreamName, instance: InstanceName) -> Token:
        """Return the oldest token from which a read is complete."""
        found = self._pairs.get((stream, instance))
        return found.floor if found else 0

    def restart_point(self, stream: StreamName, instance: InstanceName) -> Token:
        """Return where a reader that cannot be resumed starts anew."""
        found = self._pairs.get((stream, instance))
        return found.restart_point if found else 0

    def goes_on_after(self, pair: Pair, shared: Token) -> Token:
        """Return after what a reader reads on whose rows after *shared* are void."""
        stream = pair[0]
        return 0 if stream in self._registry and self._registry.get(stream).keyed else shared

    def cursor(
        self,
        pair: Pair,
        after: Token,
        places: Places = (),
        *,
        compacted: bool = False,
    ) -> Cursor:
        """Return a reader's place after *after*, as `Log.cursor` says."""
        return Cursor(self, pair, after, places, compacted=compacted)

    def read(
        self,
        stream: StreamName,
        instance: InstanceName,
        after: Token,
        upto: Token,
        *,
        limit_rows: int = 1_000,
        limit_bytes: int = 262_144,
        compacted: bool = False,
    ) -> Page:
        """Return the rows in ``(after, upto]``, waiting for the disk, as `Log.read` says."""
        found = self._pairs.get((stream, instance))
        position = found.position if found is not None else 0
        if after > position:
            raise TokenFromFuture(stream, instance, after, position)
        upto = max(after, min(upto, position))
        if found is None:
            return empty_page(upto)
        if after < found.floor and not (compacted and found.compactable(after)):
            raise TokenTooOld(stream, instance, after, found.floor, found.bound)
        if after >= upto:
            return empty_page(upto)
        page = found.page(after, upto, limit_rows, limit_bytes, None)
        if isinstance(page, Reading):
            page.wait()
            if page.page is not None and page.page.upto <= after:  # damage begins here
                page = empty_page(after)
            else:
                page = found.page(after, upto, limit_rows, limit_bytes, page)
            assert not isinstance(page, Reading)
        if page.upto <= after:
            gap = self.gaps.at((stream, instance), after)
            raise LogCorrupt(
                f"stream {stream} of {instance}: {gap.words() if gap else 'nothing can be read'}",
                table="blocks",
                stream=stream,
                instance=instance,
                token=gap.upto if gap else None,
            )
        return page

    def retain(self, retention: Retention) -> None:
        """Keep what *retention* says from now on, of bounds; the rest of it stays as it was."""
        self._retention = replace(
            self._retention,
            durable=retention.durable,
            ephemeral=retention.ephemeral,
            streams=retention.streams,
        )
        self._rebound()
        self.expire()

    def _rebound(self) -> None:
        """Give each pair the bounds that hold now."""
        raise NotImplementedError

    def expire(self) -> None:
        """Let go of what is beyond retention; where that is much, in turns of the reactor."""
        steps = self._expiry_steps(self._clock_ms())
        if self._reactor is not None:
            run_in_background(spread, self._reactor, steps)
        else:
            for _ in steps:
                pass

    def _expiry_steps(self, now_ms: int) -> Iterator[None]:
        """Let go of what is beyond retention, a little with each step."""
        raise NotImplementedError

    def producers(self) -> int:
        """Return how many names of producers are remembered."""
        return len(self._producers.names())

    def _expire_producers(self, now_ms: int) -> list[ProducerName]:
        """Forget producers that nobody uses any more, and return their names."""
        age_ms = int(self._retention.transaction_age_s * 1000)
        return self._producers.expire(now_ms - age_ms)

    def _start_expiry(self) -> None:
        """Look for old rows now and then, if there is a reactor to say when."""
        if self._reactor is not None:
            self._expiry = self._reactor.callLater(EXPIRE_INTERVAL_S, self._expire_again)

    def _expire_again(self) -> None:
        self._start_expiry()
        self.expire()

    def _definition(self, stream: StreamName, instance: InstanceName) -> StreamDef:
        check_name("instance", instance)
        return self._registry.get(stream)

    def _close(self) -> None:
        self._closed = True
        if self._expiry is not None and self._expiry.active():
            self._expiry.cancel()

    def _announced_block(self, block: Block, answer: T) -> Deferred[T]:
        """Tell the listeners of *block*; return a Deferred that fires once they have heard."""
        if self._announcing or self._outbox:
            self._outbox.append(lambda: self._tell_block(block))
            return self._announced(answer)
        self._announcing = True
        try:
            self._tell_block(block)
        finally:
            self._announcing = False
        if self._outbox:  # what the listeners have published
            self._drain()
        return succeed(answer)

    def _announce_position(
        self, stream: StreamName, instance: InstanceName, before: Token, token: Token
    ) -> None:
        self._outbox.append(lambda: self._tell_position(stream, instance, before, token))

    def _tell_block(self, block: Block) -> None:
        for listener in self._listeners:
            try:
                listener(block)
            except Exception:
                # the others have to hear of it all the same
                logger.exception(
                    "streams.listener.failed",
                    stream=block.stream,
                    instance=block.instance,
                    token=block.last,
                )

    def _tell_position(
        self, stream: StreamName, instance: InstanceName, before: Token, token: Token
    ) -> None:
        for listener in self._position_listeners:
            try:
                listener(stream, instance, before, token)
            except Exception:
                logger.exception(
                    "streams.listener.failed", stream=stream, instance=instance, token=token
                )

    def _announced(self, answer: T) -> Deferred[T]:
        """Return a Deferred that fires once everything announced so far was heard."""
        answered: Deferred[T] = Deferred()
        self._outbox.append(lambda: answered.callback(answer))
        self._drain()
        return answered

    def _drain(self) -> None:
        if self._announcing:
            return
        self._announcing = True
        try:
            while self._outbox:
                try:
                    self._outbox.popleft()()
                except Exception:
                    # whoever waits for what comes behind it has to hear of it all the same
                    logger.exception("streams.announcing.failed")
        finally:
            self._announcing = False
