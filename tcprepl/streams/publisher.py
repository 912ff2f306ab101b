"""Rows in, for programs that write streams: ``await publisher.publish("typing", rows)``.

Most callers come with one row at a time, and what a call costs is more than what a row costs.
So with a reactor, what is published within one turn of it is gathered: checked, appended and
announced together, per stream and instance, in the order of the calls. What is published into
a quiet stream goes in at once, without waiting for the turn to end; so do calls that are more
than rows (a batch, given tokens, a transaction id) and calls of many rows, after what was
gathered before them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from msgspec import Raw
from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from tcprepl.errors import TcpreplError
from tcprepl.ids import InstanceName, StreamName, Token, idempotency_key
from tcprepl.streams.codec import RowCodec
from tcprepl.streams.log import Appended, Log
from tcprepl.streams.producers import Produced
from tcprepl.streams.registry import Registry

T = TypeVar("T")

#: Rows and bytes after which what was gathered is appended, even if the turn has not ended.
GATHERED_ROWS = 500
GATHERED_BYTES = 131_072
#: Rows of a call from which on it is not gathered: it is cheap by itself, and a copy is not.
LARGE_CALL_ROWS = 32


#: What became of rows that follow one another: how many, and their tokens, or why not.
Outcome: TypeAlias = "tuple[int, Appended | Failure]"


#: A call that was gathered: how many rows it had, who waits for it, and whether its rows are
#: independent, so that a list of outcomes is waited for. A tuple, as there is one for each row.
_Call: TypeAlias = "tuple[int, Deferred[Any], bool]"


class _Gathered:
    """What one turn has brought for one stream and instance, in the order of the calls."""

    __slots__ = ("calls", "codec", "count", "lines", "size_bytes")

    def __init__(self, codec: RowCodec) -> None:
        self.codec = codec
        #: The rows of each call as lines of JSON, an LF between two of them; not checked yet.
        self.lines: list[bytes] = []
        self.calls: list[_Call] = []
        self.count = 0
        self.size_bytes = 0

    def add(self, lines: bytes, count: int, *, each: bool = False) -> Deferred[Any]:
        """Note a call; return its answer."""
        answered: Deferred[Any] = Deferred()
        self.lines.append(lines)
        self.calls.append((count, answered, each))
        self.count += count
        self.size_bytes += len(lines)
        return answered


class Publisher:
    """Validates rows and appends them to the log, as one instance.

    Nothing is raised at the call: whatever is wrong comes with the Deferred. All the rows of
    a call get in, or none of them does. Rows are encoded at the call: what becomes of the
    objects afterwards does not matter.
    """

    def __init__(
        self,
        log: Log,
        registry: Registry,
        instance: InstanceName,
        reactor: IReactorTime | None = None,
    ) -> None:
        """Publish into *log* as *instance*.

        Args:
            log: Takes the rows.
            registry: What streams there are.
            instance: Who publishes.
            reactor: Whose turns gather; without it each call is appended by itself.
        """
        self._log = log
        self._registry = registry
        self.instance = instance
        self._reactor = reactor
        self._gathered: dict[tuple[StreamName, InstanceName], _Gathered] = {}
        self._turn_end: IDelayedCall | None = None
        self._calls_of_turn = 0
        self._bursting = False

    def publish(
        self,
        stream: StreamName,
        rows: Sequence[object],
        *,
        batch: bool = False,
        instance: InstanceName | None = None,
        tokens: Sequence[Token] | None = None,
        transaction_id: str | None = None,
    ) -> Deferred[Appended]:
        """Publish rows; fires once they are safe.

        Args:
            stream: Name of the stream.
            rows: Rows of the stream's type, or lists in field order; at least one.
            batch: Whether all rows share one token.
            instance: The writing instance, if it is another one.
            tokens: The tokens to use, for a relay.
            transaction_id: Makes the call safe to retry; it counts for this stream and instance.

        Raises:
            UnknownStream: (in the Deferred) there is no such stream.
            BadRow: (in the Deferred) a row does not fit; names field, value, expectation.
            LogUnavailable: (in the Deferred) the disk refused; nothing was published.
            TokenOrder: (in the Deferred) *tokens* go backwards.
        """
        reactor = self._reactor
        if reactor is not None:
            key = (stream, instance or self.instance)
            plain = not batch and tokens is None and transaction_id is None
            if plain and len(rows) < LARGE_CALL_ROWS:
                answered = self._gather(reactor, key, rows, RowCodec.snapshot)
                if answered is not None:
                    return answered
            self._append_gathered(key)
        try:
            encoded = self._prepared(stream, self._registry.encode_rows(stream, rows))
        except TcpreplError:
            return fail()
        return self._append(stream, encoded, batch, instance, tokens, transaction_id)

    def publish_json(
        self,
        stream: StreamName,
        rows: Sequence[bytes | Raw],
        *,
        batch: bool = False,
        instance: InstanceName | None = None,
        tokens: Sequence[Token] | None = None,
        transaction_id: str | None = None,
        produced: Produced | None = None,
    ) -> Deferred[Appended]:
        """Publish rows that are JSON already; otherwise as `publish`.

        Args:
            stream: Name of the stream.
            rows: The rows as JSON; at least one.
            batch: Whether all rows share one token.
            instance: The writing instance, if it is another one.
            tokens: The tokens to use, for a relay.
            transaction_id: Makes the call safe to retry.
            produced: Which append of which producer this is, as for `Log.append`.
        """
        reactor = self._reactor
        if reactor is not None:
            key = (stream, instance or self.instance)
            plain = not batch and tokens is None and transaction_id is None and produced is None
            if plain and len(rows) < LARGE_CALL_ROWS:
                answered = self._gather(reactor, key, rows, RowCodec.snapshot_json)
                if answered is not None:
                    return answered
            self._append_gathered(key)
        try:
            checked = self._prepared(stream, self._registry.check_json_rows(stream, rows))
        except TcpreplError:
            return fail()
        return self._append(stream, checked, batch, instance, tokens, transaction_id, produced)

    def publish_each(self, stream: StreamName, rows: bytes, count: int) -> Deferred[list[Outcome]]:
        """Publish rows that are JSON already, as if each came in a call of its own.

        Args:
            stream: Name of the stream.
            rows: The rows, each ended by the only LF in it.
            count: How many rows these are.

        Returns:
            What became of them, in order; never a failure.
        """
        key = (stream, self.instance)
        try:
            codec = self._registry.get(stream).codec
        except TcpreplError:
            return succeed([(count, Failure())])
        at_once = self._reactor is None or self._begins_turn(self._reactor)
        gathered = self._gathered.get(key)
        if gathered is None:
            gathered = self._gathered[key] = _Gathered(codec)
        answered = gathered.add(rows[:-1], count, each=True)
        if at_once or gathered.count >= GATHERED_ROWS or gathered.size_bytes >= GATHERED_BYTES:
            self._append_gathered(key)
        return answered

    def flush(self) -> None:
        """Append what this turn has brought so far."""
        if self._turn_end is not None:
            self._turn_end.cancel()
            self._end_turn()

    # -- gathering -------------------------------------------------------------------------

    def _gather(
        self,
        reactor: IReactorTime,
        key: tuple[StreamName, InstanceName],
        rows: Sequence[T],
        snapshot: Callable[[RowCodec, Sequence[T]], bytes | None],
    ) -> Deferred[Appended] | None:
        """Note rows for the end of the turn; None if they have to be published at once."""
        if self._begins_turn(reactor):
            return None
        gathered = self._gathered.get(key)
        if gathered is None:
            if key[0] not in self._registry:
                return None
            gathered = self._gathered[key] = _Gathered(self._registry.get(key[0]).codec)
        lines = snapshot(gathered.codec, rows) if rows else None
        if not lines:
            return None
        answered = gathered.add(lines, len(rows))
        if gathered.count >= GATHERED_ROWS or gathered.size_bytes >= GATHERED_BYTES:
            self._append_gathered(key)
        return answered

    def _begins_turn(self, reactor: IReactorTime) -> bool:
        """Note a call; return whether it is the first in a while, and need not wait."""
        self._calls_of_turn += 1
        if self._turn_end is not None:
            return False
        self._turn_end = reactor.callLater(0, self._end_turn)
        return not self._bursting

    def _end_turn(self) -> None:
        """Append what the turn has brought; note whether that was more than one call."""
        self._turn_end = None
        self._bursting = self._calls_of_turn > 1
        self._calls_of_turn = 0
        for key in list(self._gathered):
            self._append_gathered(key)

    def _append_gathered(self, key: tuple[StreamName, InstanceName]) -> None:
        """Append what was gathered for *key*, so that what follows it keeps its place."""
        gathered = self._gathered.pop(key, None)
        if gathered is None or not gathered.count:
            return
        stream = key[0]
        lines = b"\n".join((*gathered.lines, b""))
        together = gathered.codec.checked(lines, gathered.count)
        if together is not None:
            with suppress(TcpreplError):
                prepared = self._prepared(stream, together)
                self._append_together(key, prepared, gathered.calls)
                return
        # Somebody's row does not fit: that is for its own call to hear, and no other.
        for part, (count, answered, each) in zip(gathered.lines, gathered.calls, strict=True):
            # A row of a call by itself may hold raw line ends, which `check` takes care of.
            rows = [part] if count == 1 else part.split(b"\n")
            if each:
                outcomes = [self._append_checked(key, gathered.codec, [row]) for row in rows]
                parted = DeferredList(outcomes, consumeErrors=True).addCallback(_outcomes)
                _ = parted.chainDeferred(answered)
            else:
                checked = self._append_checked(key, gathered.codec, rows)
                _ = checked.chainDeferred(answered)

    def _append_checked(
        self, key: tuple[StreamName, InstanceName], codec: RowCodec, rows: Sequence[bytes]
    ) -> Deferred[Appended]:
        stream, instance = key
        try:
            prepared = self._prepared(stream, codec.check(rows))
        except TcpreplError:
            return fail()
        return self._append(stream, prepared, False, instance, None, None)

    def _append_together(
        self,
        key: tuple[StreamName, InstanceName],
        rows: Sequence[bytes],
        calls: list[_Call],
    ) -> None:
        """Append the rows of many calls, and answer each with its own tokens."""
        stream, instance = key

        def answer(appended: Appended) -> None:
            token = appended.first
            for count, answered, each in calls:
                mine = Appended(stream, instance, token, token + count - 1)
                answered.callback([(count, mine)] if each else mine)
                token += count

        def refuse(failure: Failure) -> None:
            for count, answered, each in calls:
                answered.callback([(count, failure)] if each else failure)

        _ = self._append(stream, rows, False, instance, None, None).addCallbacks(answer, refuse)

    def _prepared(self, stream: StreamName, rows: Sequence[bytes]) -> Sequence[bytes]:
        """Return rows that fit as they are appended; raises `TcpreplError` if they may not be."""
        return rows

    def _append(
        self,
        stream: StreamName,
        rows: Sequence[bytes],
        batch: bool,
        instance: InstanceName | None,
        tokens: Sequence[Token] | None,
        transaction_id: str | None,
        produced: Produced | None = None,
    ) -> Deferred[Appended]:
        if transaction_id is not None and instance is not None and instance != self.instance:
            transaction_id = idempotency_key("instance", instance, transaction_id)
        try:
            return self._log.append(
                stream,
                instance or self.instance,
                rows,
                batch=batch,
                tokens=tokens,
                transaction_id=transaction_id,
                produced=produced,
            )
        except (TcpreplError, ValueError):
            return fail()


def _outcomes(results: list[tuple[bool, Any]]) -> list[Outcome]:
    """Return what became of rows that were appended one by one."""
    return [(1, outcome) for _, outcome in results]
