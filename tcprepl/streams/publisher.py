"""Rows in, for programs that write streams: ``await publisher.publish("typing", rows)``.

Most callers come with one row at a time, and what a call costs is more than what a row costs.
So with a reactor, what is published within one turn of it is gathered: checked, appended and
announced together, per stream and instance, in the order of the calls. What is published into
a quiet stream goes in at once, without waiting for the turn to end; so do calls that are more
than rows (a batch, given tokens, a transaction id) and calls of many rows, after what was
gathered before them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from msgspec import Raw
from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from tcprepl.errors import TcpreplError
from tcprepl.ids import InstanceName, Pair, StreamName, Token, idempotency_key
from tcprepl.streams.codec import RowCodec
from tcprepl.streams.gathering import LARGE_CALL_ROWS, Gathering, Outcome
from tcprepl.streams.log import Appended, Log
from tcprepl.streams.producers import Produced
from tcprepl.streams.registry import Registry


class Publisher:
    """Validates rows and appends them to the log, as one instance.

    Nothing is raised at the call: whatever is wrong comes with the Deferred. All the rows of
    a call get in, or none of them does. Rows are encoded at the call: what becomes of the
    objects afterwards does not matter.
    """

    #: Of some streams, what returns rows that fit as they are appended, or raises `TcpreplError`.
    _prepare: ClassVar[Mapping[StreamName, Callable[[Sequence[bytes]], Sequence[bytes]]]] = {}

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
        #: Not empty only while a turn is under way.
        #: Found by the stream where the instance is our own.
        self._gathered: dict[StreamName | Pair, Gathering] = {}
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
        key = stream if instance is None or instance == self.instance else (stream, instance)
        if not batch and tokens is None and transaction_id is None:
            gathering = self._gathered.get(key) or self._begin(key, len(rows))
            if gathering is not None:
                answered = gathering.take(rows)
                if answered is not None:
                    if gathering.room <= 0:
                        self._append_gathered(key)
                    return answered
        self._append_gathered(key)
        pair = (stream, instance or self.instance)
        try:
            encoded = self._registry.get(stream).codec.encode(rows)
            return self._append(pair, encoded, batch, tokens, transaction_id)
        except TcpreplError:
            return fail()

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
        key = stream if instance is None or instance == self.instance else (stream, instance)
        if not batch and tokens is None and transaction_id is None and produced is None:
            gathering = self._gathered.get(key) or self._begin(key, len(rows))
            if gathering is not None:
                answered = gathering.take_json(rows)
                if answered is not None:
                    if gathering.room <= 0:
                        self._append_gathered(key)
                    return answered
        self._append_gathered(key)
        pair = (stream, instance or self.instance)
        try:
            checked = self._registry.get(stream).codec.check(rows)
            return self._append(pair, checked, batch, tokens, transaction_id, produced)
        except TcpreplError:
            return fail()

    def publish_each(
        self, stream: StreamName, rows: bytes, count: int, produced: Produced | None = None
    ) -> Deferred[list[Outcome]] | None:
        """Publish rows that are JSON already, as if each came in a call of its own.

        Args:
            stream: Name of the stream.
            rows: The rows, each ended by the only LF in it.
            count: How many rows these are.
            produced: Which appends of which producer these are: a run of as many.

        Returns:
            What became of them, in order; never a failure. None where those of a producer really
            have to come one by one, by `publish_json`.
        """
        try:
            codec = self._registry.get(stream).codec
        except TcpreplError:
            return succeed([(count, Failure())])
        if produced is not None or count >= LARGE_CALL_ROWS:
            taken = self._publish_run(stream, codec, rows, count, produced)
            if taken is not None or produced is not None:
                return taken
        at_once = self._begins_turn()
        gathering = self._gathered.get(stream)
        if gathering is None:
            gathering = self._gathered[stream] = Gathering((stream, self.instance), codec)
        answered = gathering.take_each(rows[:-1], count)
        if at_once or gathering.room <= 0:
            self._append_gathered(stream)
        return answered

    def _publish_run(
        self,
        stream: StreamName,
        codec: RowCodec,
        rows: bytes,
        count: int,
        produced: Produced | None,
    ) -> Deferred[list[Outcome]] | None:
        """Append rows as one; None if it is not known that each would be taken."""
        checked = codec.checked(rows, count)
        if checked is None or not (produced is None or self._log.may_begin(stream, produced)):
            return None
        self._append_gathered(stream)
        appended: Deferred[Any]
        try:
            appended = self._append((stream, self.instance), checked, produced=produced)
        except TcpreplError:
            return None
        return appended.addBoth(lambda outcome: [(count, outcome)])

    def flush(self) -> None:
        """Append what this turn has brought so far."""
        if self._turn_end is not None:
            self._turn_end.cancel()
            self._end_turn()

    # -- gathering -------------------------------------------------------------------------

    def _begin(self, key: StreamName | Pair, count: int) -> Gathering | None:
        """Begin to gather for *key*; None if a call with *count* rows is for now."""
        if count >= LARGE_CALL_ROWS or self._begins_turn():
            return None
        pair = (key, self.instance) if isinstance(key, str) else key
        if pair[0] not in self._registry:
            return None
        gathering = Gathering(pair, self._registry.get(pair[0]).codec)
        self._gathered[key] = gathering
        return gathering

    def _begins_turn(self) -> bool:
        """Return whether a call need not wait: the first in a while, or there are no turns."""
        if self._reactor is None:
            return True
        if self._turn_end is not None:
            return False
        self._turn_end = self._reactor.callLater(0, self._end_turn)
        self._calls_of_turn += not self._bursting
        return not self._bursting

    def _end_turn(self) -> None:
        """Append what the turn has brought; note whether that was more than one call."""
        self._turn_end = None
        left = sum(len(gathering.counts) for gathering in self._gathered.values())
        self._bursting = self._calls_of_turn + left > 1
        self._calls_of_turn = 0
        for key in list(self._gathered):
            gathering = self._gathered.pop(key, None)
            if gathering is not None:
                self._append_together(gathering)

    def _append_gathered(self, key: StreamName | Pair) -> None:
        """Append what was gathered for *key*, so that what follows it keeps its place."""
        gathering = self._gathered.pop(key, None)
        if gathering is not None:
            self._calls_of_turn += len(gathering.counts)
            self._append_together(gathering)

    def _append_together(self, gathering: Gathering) -> None:
        """Append the rows of many calls, and answer each with its own tokens."""
        if not gathering.counts:
            return
        pair, codec = gathering.pair, gathering.codec
        together = gathering.together()
        if together is not None:
            try:
                appended = self._append(pair, together)
            except TcpreplError:
                pass  # one may not be appended: which one is found out below
            else:
                tokens = getattr(appended, "result", None)
                if isinstance(tokens, Appended):  # there at once, as of a log in memory
                    gathering.answer(tokens)
                else:
                    _ = appended.addCallbacks(gathering.answer, gathering.refuse)
                return
        # Somebody's row does not fit: that is for its own call to hear, and no other.
        calls = zip(gathering.lines, gathering.counts, gathering.waiting, strict=True)
        for part, count, answered in calls:
            # A row of a call by itself may hold raw line ends, which `check` takes care of.
            rows = [part] if abs(count) == 1 else part.split(b"\n")
            if count < 0:
                outcomes = [self._append_checked(pair, codec, [row]) for row in rows]
                parted = DeferredList(outcomes, consumeErrors=True).addCallback(_outcomes)
                _ = parted.chainDeferred(answered)
            else:
                _ = self._append_checked(pair, codec, rows).chainDeferred(answered)

    def _append_checked(
        self, pair: Pair, codec: RowCodec, rows: Sequence[bytes]
    ) -> Deferred[Appended]:
        try:
            return self._append(pair, codec.check(rows))
        except TcpreplError:
            return fail()

    def _append(
        self,
        pair: Pair,
        rows: Sequence[bytes],
        batch: bool = False,
        tokens: Sequence[Token] | None = None,
        transaction_id: str | None = None,
        produced: Produced | None = None,
    ) -> Deferred[Appended]:
        """Append rows that fit.

        Raises:
            TcpreplError: They may not be appended for all that, as `_prepare` finds.
        """
        prepare = self._prepare.get(pair[0])
        if prepare is not None:
            rows = prepare(rows)
        if transaction_id is not None and pair[1] != self.instance:
            transaction_id = idempotency_key("instance", pair[1], transaction_id)
        try:
            return self._log.append(
                pair[0],
                pair[1],
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
