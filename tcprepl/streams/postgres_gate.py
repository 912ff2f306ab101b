"""What is appended to a log in PostgreSQL, and has to wait until the database was asked.

Where the log of a directory would look at its disk before it takes an append (is the transaction id
known? are there tokens left?), it and those of the pair that follow it stand at a `Gate` until the
answer is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, fail, maybeDeferred

from tcprepl.errors import LogFenced, LogUnavailable, TokenOrder
from tcprepl.ids import InstanceName, Pair, StreamName, Token
from tcprepl.limits import MAX_TOKEN
from tcprepl.logger import get_logger
from tcprepl.storage.worker import Worker
from tcprepl.streams.blocks import assign_tokens
from tcprepl.streams.durable import DurableStream
from tcprepl.streams.engine import Commit, Freed
from tcprepl.streams.log import Appended
from tcprepl.streams.memory import EphemeralStream
from tcprepl.streams.postgres_database import PostgresDatabase
from tcprepl.streams.producers import Produced
from tcprepl.streams.stored import StoredLog

logger = get_logger(__name__)


class Call(NamedTuple):
    """An append, or a move, that stands at a gate.

    Attributes:
        make: Makes it.
        answered: Fires with what it answers.
        upto: The last token that it needs, for an ephemeral stream.
        transaction_id: Its transaction id, if that has to be looked up.
    """

    make: Callable[[], Deferred[Any]]
    answered: Deferred[Any]
    upto: Callable[[], Token]
    transaction_id: str | None


class Gate:
    """What waits for the database before it is done to one pair.

    Attributes:
        calls: In their order.
        looked_up: The transaction ids that were asked for, with the answers of those known.
    """

    __slots__ = ("calls", "looked_up")

    def __init__(self) -> None:
        self.calls: deque[Call] = deque()
        self.looked_up: dict[str, Appended | None] = {}


class GatedLog(StoredLog):
    """A log that looks into its database in a thread before it takes an append, where it has to."""

    _database: PostgresDatabase
    #: Reads from the database.
    _reading: Worker
    _gates: dict[Pair, Gate]
    #: Why nothing is taken any more.
    _fenced: LogFenced | None

    def _end(self, error: LogFenced) -> None:
        """Take no more: whatever is appended from now on is refused with the reason."""
        if self._fenced is None:
            self._fenced = error
            logger.error("postgresql.fenced", writer=error.writer, reason=str(error))
            self.failed.errback(error)

    def _unavailable(self) -> LogUnavailable:
        return LogUnavailable(f"the database is away: {self._database.away}")

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
        """Append rows, as `Log.append` says.

        Where the database has to be asked first, an error that would be raised is in the
        Deferred. A producer's append to an ephemeral stream is refused while tokens are short.
        """
        pair = self._get(stream, instance)
        make = partial(
            super().append,
            stream,
            instance,
            rows,
            batch=batch,
            tokens=tokens,
            transaction_id=transaction_id,
            produced=produced,
        )
        count = len(rows)
        return self._at_gate(
            (stream, instance),
            make,
            lambda: assign_tokens(
                stream, instance, pair.position, count, batch=batch, tokens=tokens
            )[-1],
            transaction_id if isinstance(pair, DurableStream) else None,
            waits=produced is None,
        )

    def advance(self, stream: StreamName, instance: InstanceName, token: Token) -> Deferred[None]:
        """Move the position to *token* without rows."""

        def upto() -> Token:
            position = self.position(stream, instance)
            if token < position:
                raise TokenOrder(stream, instance, token, position)
            return token

        make = partial(super().advance, stream, instance, token)
        return self._at_gate((stream, instance), make, upto, None)

    def _at_gate(
        self,
        name: Pair,
        make: Callable[[], Deferred[Any]],
        upto: Callable[[], Token],
        transaction_id: str | None,
        *,
        waits: bool = True,
    ) -> Deferred[Any]:
        """Make a call now, or once everything is known that it depends on.

        Args:
            name: The pair.
            make: Makes it.
            upto: Returns the last token that it needs, of an ephemeral stream.
            transaction_id: What has to be looked up, of a durable one.
            waits: Whether it stands at the gate; a producer has an order of its own.
        """
        if self._fenced is not None:
            return fail(self._fenced)
        pair = self._get(*name)
        durable = isinstance(pair, DurableStream)
        if durable and self._database.away is not None:
            return fail(self._unavailable())
        call = Call(make, Deferred(), upto, transaction_id)
        gate = self._gates.get(name)
        if self._closed or (durable and not waits):
            return make()
        if gate is None and self._may_pass(pair, call, {}):
            return make()
        if waits:
            self._gates.setdefault(name, Gate()).calls.append(call)
        elif gate is None:
            self._gates[name] = Gate()
        if gate is None:
            self._ask(name, pair, self._gates[name], upto())
        if not waits:
            if gate is None and name not in self._gates:
                return make()
            call.answered.errback(LogUnavailable("tokens are short for a moment: try again"))
        return call.answered

    def _may_pass(
        self,
        pair: DurableStream | EphemeralStream,
        call: Call,
        looked_up: dict[str, Appended | None],
    ) -> bool:
        if isinstance(pair, EphemeralStream):
            try:
                upto = call.upto()
            except (TokenOrder, ValueError):
                return True  # to be refused
            return upto <= pair.claimed or upto > MAX_TOKEN
        id_ = call.transaction_id
        return id_ is None or id_ in looked_up or (pair.stored.stream, id_) in self._in_flight

    def _ask(
        self, name: Pair, pair: DurableStream | EphemeralStream, gate: Gate, upto: Token
    ) -> None:
        """Ask the database for what the first call at the gate needs, and others with it."""
        if isinstance(pair, EphemeralStream):
            row = self._claim_row(pair)
            row.position = claimed = self._claim_after(upto)

            def claim(_: Freed | None, error: BaseException | None) -> None:
                if error is None:
                    pair.claimed = max(pair.claimed, claimed)
                self._open(name, pair, gate, error)

            self._worker.submit(lambda: self._database.write(Commit(pairs=[row])), claim)
            return
        stream = pair.stored.stream
        wanted = [(stream, call.transaction_id) for call in gate.calls if call.transaction_id]
        since = self._clock_ms() - int(self._retention.transaction_age_s * 1000)

        def found(answers: Any, error: BaseException | None) -> None:
            if error is None:
                gate.looked_up.update({id_: answers.get((stream, id_)) for _, id_ in wanted})
            self._open(name, pair, gate, error)

        self._reading.submit(lambda: self._database.transactions(wanted, since), found)

    def _open(
        self,
        name: Pair,
        pair: DurableStream | EphemeralStream,
        gate: Gate,
        error: BaseException | None,
    ) -> None:
        """Let the calls through, as far as everything is known; none of them if it cannot be."""
        if isinstance(error, LogFenced):
            self._end(error)
        calls = gate.calls
        while calls:
            call = calls[0]
            if error is None and not self._may_pass(pair, call, gate.looked_up):
                self._ask(name, pair, gate, call.upto())
                return
            calls.popleft()
            known = gate.looked_up.pop(call.transaction_id, None) if call.transaction_id else None
            if error is not None:
                call.answered.errback(error)
            elif known is not None:
                call.answered.callback(known)
            else:
                _ = maybeDeferred(call.make).chainDeferred(call.answered)
        del self._gates[name]

    def _known_answer(
        self,
        pair: DurableStream | EphemeralStream,
        stream: StreamName,
        transaction_id: str,
        now: int,
    ) -> Deferred[Appended] | None:
        """Return the answer of an append under way; all others were looked for at the gate."""
        if isinstance(pair, EphemeralStream) or (stream, transaction_id) in self._in_flight:
            return super()._known_answer(pair, stream, transaction_id, now)
        return None
