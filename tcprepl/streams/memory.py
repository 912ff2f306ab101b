"""Streams in memory: the log of tests and of processes without a disk, and ephemeral streams.

`MemoryStream` is one (stream, instance) held in memory; the SQLite log uses it too, for
ephemeral streams. `MemoryLog` is the whole `Log` made of them; nothing outlives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime

from tcprepl.errors import LogUnavailable, ProducerError, TokenOrder
from tcprepl.ids import InstanceName, Pair, ProducerName, StreamName, Token
from tcprepl.limits import MAX_TOKEN
from tcprepl.streams.base import AGED_AT_ONCE, CLOSED, BaseLog
from tcprepl.streams.blocks import assign_tokens, cut_page, render
from tcprepl.streams.gaps import Gaps
from tcprepl.streams.history import History
from tcprepl.streams.log import ACKNOWLEDGED, Appended, Block, Page
from tcprepl.streams.pages import Reading
from tcprepl.streams.producers import Produced, ProducerState
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.streams.retention import Bounds, Retention
from tcprepl.streams.ring import CompactedRows, Ring, drain_until

#: Why the rows of an ephemeral stream from before the start are gone.
RESTARTED = "kept in memory, and the process was restarted"


class MemoryStream:
    """One (stream, instance) in memory.

    Attributes:
        stream: What is known of the stream.
        instance: Name of the instance.
        position: The newest token.
        floor: The oldest token from which a read is complete.
        bound: What made the rows up to the floor go.
        bounds: How much is kept; may be changed.
    """

    __slots__ = (
        "_compacted",
        "_ring",
        "bound",
        "bounds",
        "floor",
        "instance",
        "position",
        "stream",
    )

    def __init__(
        self, stream: StreamDef, instance: InstanceName, bounds: Bounds, start: Token = 0
    ) -> None:
        self.stream = stream
        self.instance = instance
        self.position = start
        self.floor = start
        self.bound = RESTARTED
        self.bounds = bounds
        self._ring = Ring()
        self._compacted = (
            CompactedRows(stream, start) if stream.keyed and not stream.durable else None
        )

    @property
    def restart_point(self) -> Token:
        """Where a reader that cannot be resumed starts anew."""
        return 0 if self._compacted is not None else self.floor

    @property
    def size_bytes(self) -> int:
        """Bytes of the lines held, states beyond retention not counted."""
        return self._ring.size_bytes

    @property
    def held(self) -> tuple[int, int]:
        """Rows and bytes held, states beyond retention not counted."""
        return self._ring.rows, self._ring.size_bytes

    def add(self, tokens: Sequence[Token], rows: Sequence[bytes], now_ms: int) -> Block:
        """Add rows and return the new block; `expire` lets go of what is then beyond the bounds."""
        block = render(self.stream.name, self.instance, tokens, rows, now_ms)
        self._ring.append(block)
        self.position = tokens[-1]
        return block

    def expire(self, now_ms: int) -> None:
        """Let go of what is beyond the bounds, as an append does: of what is too old a little."""
        done = 0
        while self._expires_oldest(now_ms):
            done += 1
            if done >= AGED_AT_ONCE and not self.bounds.is_full(
                self._ring.size_bytes, self._ring.rows
            ):
                return

    def expiring(self, now_ms: int) -> Iterator[None]:
        """Let go of what is beyond the bounds, a block with each step."""
        while self._expires_oldest(now_ms):
            yield

    def _expires_oldest(self, now_ms: int) -> bool:
        """Let go of the oldest block if it is beyond the bounds; return whether it was."""
        ring = self._ring
        if not ring.rows:
            return False
        bound = self.bounds.excess(ring.oldest.written_ms, ring.size_bytes, ring.rows, now_ms)
        if bound is None:
            return False
        self._forget(ring.evict())
        self.bound = bound
        return True

    def trim(self, upto: Token, why: str) -> None:
        """Let go of the rows up to *upto*."""
        upto = min(upto, self.position)
        if upto <= self.floor:
            return
        for block in drain_until(self._ring, upto):
            self._forget(block)
        self.floor = upto
        self.bound = why

    def _forget(self, block: Block) -> None:
        self.floor = max(self.floor, block.last)
        if self._compacted is not None:
            self._compacted.fold(block)

    def compactable(self, after: Token) -> bool:
        """Return whether the newest row of each key after *after* is known, gone ones too."""
        compacted = self._compacted
        return compacted is not None and (not after or after >= compacted.blank_floor)

    def page(
        self,
        after: Token,
        upto: Token,
        rows: int,
        size_bytes: int,
        reading: Reading | None = None,
    ) -> Page:
        """Return a page, as `Source.page` says; of what was let go the newest of each key."""
        blocks = self._ring.after(after)
        if after < self.floor and self._compacted is not None:
            blocks = chain(self._compacted.after(after, self.instance), blocks)
        return cut_page(blocks, after, upto, rows, size_bytes)


class EphemeralStream(MemoryStream):
    """An ephemeral stream, and the tokens that it has claimed on disk."""

    __slots__ = ("claimed", "claiming", "pair_id")

    def __init__(
        self,
        stream: StreamDef,
        instance: InstanceName,
        bounds: Bounds,
        pair_id: int,
        start: Token,
    ) -> None:
        super().__init__(stream, instance, bounds, start)
        self.pair_id = pair_id
        self.claimed = start
        self.claiming = False


class MemoryLog(BaseLog):
    """Every stream in memory, safe at once; nothing outlives the object.

    Attributes:
        history: The incarnations of the log: this one.
    """

    def __init__(
        self,
        registry: Registry,
        clock_ms: Callable[[], int],
        retention: Retention | None = None,
        reactor: IReactorTime | None = None,
        gaps: Gaps | None = None,
    ) -> None:
        """Start with no streams.

        Args:
            registry: What streams there are.
            clock_ms: Gives wall-clock time in ms since 1970.
            retention: What to keep; the defaults by default.
            reactor: Lets go of old rows now and then; without, only appends do.
            gaps: Where rows are known to be missing, if anywhere.
        """
        super().__init__(registry, clock_ms, retention or Retention(), reactor, gaps)
        self._pairs: dict[Pair, MemoryStream] = {}
        self.history = History()
        self.history.begin({}, clock_ms())
        self._start_expiry()

    def ensure(self, stream: StreamName, instance: InstanceName) -> None:
        """Make (stream, instance) known."""
        self._get(stream, instance)

    def _get(self, stream: StreamName, instance: InstanceName) -> MemoryStream:
        found = self._pairs.get((stream, instance))
        if found is None:
            definition = self._definition(stream, instance)
            bounds = self._retention.bounds(stream, durable=definition.durable)
            found = self._pairs[stream, instance] = MemoryStream(definition, instance, bounds)
        return found

    def _rebound(self) -> None:
        for (stream, _), held in self._pairs.items():
            durable = self._registry.get(stream).durable
            held.bounds = self._retention.bounds(stream, durable=durable)

    def append(
        self,
        stream: StreamName,
        instance: InstanceName,
        rows: Sequence[bytes],
        *,
        batch: bool = False,
        tokens: Sequence[Token] | None = None,
        transaction_id: str | None = None,
        produced: Produced | None = None,
    ) -> Deferred[Appended]:
        """Append rows, as `Log.append` says; the answer is there at once."""
        if self._closed:
            return fail(LogUnavailable(CLOSED))
        now = self._clock_ms()
        if produced is not None:
            try:
                taken = self._producers.check(produced)
            except ProducerError:
                return fail()
            if taken is not None:
                return succeed(taken)
        if transaction_id is not None:
            known = self._transactions.get(stream, transaction_id, now)
            if known is not None:
                return succeed(known)
        found = self._get(stream, instance)
        given = assign_tokens(
            stream, instance, found.position, len(rows), batch=batch, tokens=tokens
        )
        appended = Appended(stream, instance, given[0], given[-1])
        if transaction_id is not None:
            self._transactions.put(stream, transaction_id, appended, now)
        if produced is not None:
            self._producers.begun(produced, appended, now)
            self._producers.settled(produced)
        answered = self._announced_block(found.add(given, rows, now), appended)
        found.expire(now)  # nobody has to wait for that
        return answered

    def claim(self, producer: ProducerName, epoch: int | None = None) -> Deferred[ProducerState]:
        """Take a producer's name, as `Log.claim` says; the answer is there at once."""
        if self._closed:
            return fail(LogUnavailable(CLOSED))
        try:
            return succeed(self._producers.claim(producer, epoch, self._clock_ms()))
        except ProducerError:
            return fail()

    def may_begin(self, stream: StreamName, produced: Produced) -> bool:
        """Return whether a run of appends may be made as one."""
        return self._producers.is_next(produced)

    def advance(self, stream: StreamName, instance: InstanceName, token: Token) -> Deferred[None]:
        """Move the position to *token* without rows."""
        if self._closed:
            return fail(LogUnavailable(CLOSED))
        found = self._get(stream, instance)
        before = found.position
        if token < before or token > MAX_TOKEN:
            raise TokenOrder(stream, instance, token, before)
        if token == before:
            return succeed(None)
        found.position = token
        self._announce_position(stream, instance, before, token)
        return self._announced(None)

    def trim(
        self, stream: StreamName, instance: InstanceName, upto: Token, why: str = ACKNOWLEDGED
    ) -> None:
        """Forget rows whose token is at most *upto*."""
        found = self._pairs.get((stream, instance))
        if found is not None:
            found.trim(upto, why)

    def _expiry_steps(self, now_ms: int) -> Iterator[None]:
        self._expire_producers(now_ms)
        for found in tuple(self._pairs.values()):
            yield from found.expiring(now_ms)
        yield from self._transactions.expiring(now_ms)

    def flush(self) -> Deferred[None]:
        """Fire at once: what is appended is as safe as it gets."""
        return succeed(None)

    def close(self) -> Deferred[None]:
        """Take no more rows; what is there can still be read."""
        self._close()
        return succeed(None)
