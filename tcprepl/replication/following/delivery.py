"""Handing rows to a worker: in order, one at a time, until it succeeds (protocol.md section 7).

`Delivery` is the half of the client library that does not know of connections: it works
through what a connection brought, calls the worker's handler, keeps the positions, tells
gaps from resets, and fetches over HTTP what the wire cannot bring.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from types import CoroutineType
from typing import Any, Protocol, TypeAlias, cast

import structlog
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tcprepl import limits, metrics
from tcprepl.background import run_in_background
from tcprepl.errors import BadRow, ConnectionFailed
from tcprepl.ids import InstanceName, StreamName, Token
from tcprepl.protocol.commands import Command, PositionCommand
from tcprepl.protocol.dialects import Dialect
from tcprepl.protocol.events import RowsReceived, RunReceived, in_batches
from tcprepl.replication.following.catchup import CatchUp
from tcprepl.streams.codec import RowCodec, Rows
from tcprepl.streams.position_store import PositionStore
from tcprepl.streams.registry import Registry

log = structlog.get_logger()

Pair: TypeAlias = tuple[StreamName, InstanceName]

#: Called with (stream, instance, token, rows) for each batch, in order; may be async.
RowHandler: TypeAlias = Callable[[StreamName, InstanceName, Token, Rows], object]
#: Called with (stream, instance, known, token) when a stream cannot go on; may be async.
ResetHandler: TypeAlias = Callable[[StreamName, InstanceName, Token | None, Token], object]
#: Called with (stream, instance, token) when a position was heard; may be async.
PositionHandler: TypeAlias = Callable[[StreamName, InstanceName, Token], object]


class Link(Protocol):
    """What a delivery needs of the client that it belongs to."""

    def pause(self) -> None:
        """Read no more from the connection for now."""
        ...

    def resume(self) -> None:
        """Read on."""
        ...

    def give_up(self, failure: Failure) -> None:
        """Stop for good: a handler has failed as often as it may."""
        ...

    async def wait(self, seconds: float) -> None:
        """Wait; stopping the client ends it early."""
        ...


class Delivery:
    """Works through what connections bring, one batch at a time.

    Args:
        link: The client.
        handler: Called with each batch.
        store: Keeps the positions.
        registry: The streams and their rows.
        streams: The streams to deliver; None is all.
        since: ``now`` or ``start``: where a stream without a position begins.
        on_reset: Called when a stream cannot go on from where it is.
        on_position: Called with each position heard.
        on_command: Called with every other command.
        catch_up: Where missed rows are fetched if the dialect cannot resume.
        max_attempts: How often a failing handler is called; None is for ever.
        join_batches: Whether neighbouring batches may be handed over as one.

    Attributes:
        known: The position of each (stream, instance).
        catching_up: In the dialect of 2017: the tokens asked for, until POSITION comes.
        received_rows: Rows received, by stream.
        quarantined_rows: Rows left out because they do not fit their stream.
        running: Whether handlers are to be called again when they fail.
    """

    def __init__(
        self,
        link: Link,
        handler: RowHandler,
        store: PositionStore,
        registry: Registry,
        *,
        streams: Collection[StreamName] | None,
        since: str,
        on_reset: ResetHandler | None,
        on_position: PositionHandler | None,
        on_command: Callable[[Command], object] | None,
        catch_up: CatchUp | None,
        max_attempts: int | None,
        join_batches: bool = False,
    ) -> None:
        self.known: dict[Pair, Token] = {}
        self.catching_up: dict[Pair, Token] = {}
        self.received_rows: dict[StreamName, int] = {}
        self.quarantined_rows = 0
        self.running = False
        self._link = link
        self._handler = handler
        self._store = store
        self._atomic = store.atomic
        self._registry = registry
        self._streams = streams
        self._since = since
        self._on_reset = on_reset
        self._on_position = on_position
        self._on_command = on_command
        self._catch_up = catch_up
        self._max_attempts = max_attempts
        self._join_batches = join_batches
        self._codecs: dict[StreamName, RowCodec] = {}
        self._dirty: dict[Pair, Token] = {}
        self._inbox: deque[object] = deque()
        self._legacy = False
        self._resumable = False
        self._working = False
        self._blocked = False
        #: Whether a batch was given up: nothing may pass it before the client begins anew.
        self._halted = False
        self._idle_waiter: Deferred[None] | None = None

    @property
    def waiting(self) -> int:
        """Batches and commands received that wait for their turn."""
        return sum(
            len(event.tokens) if isinstance(event, RunReceived) else 1 for event in self._inbox
        )

    def start(self) -> None:
        """Begin from the saved positions."""
        self.known = dict(self._store.load())
        self.running = True
        self._halted = False

    def begin(self, dialect: Dialect) -> None:
        """Begin with a new connection that speaks *dialect*."""
        self._legacy = not dialect.rdata_instance
        self._resumable = dialect.in_band_resume
        self.catching_up.clear()

    async def end(self) -> None:
        """Forget what a lost connection brought; wait for the handler that runs."""
        self._inbox.clear()
        await self.idle()
        if self._dirty:
            self._save()

    def take(self, events: Sequence[object]) -> None:
        """Take what one read brought; work through it, or stop the reading until it is done.

        What comes while the client stops comes again when it begins anew: a handler that
        failed now would not be called again.
        """
        if self._halted or not self.running:
            return
        if self._working or self._inbox:
            self._inbox.extend(events)
        else:
            self._work(events)

    def _work(self, events: Sequence[object]) -> None:
        """Work through *events* until they end or a handler takes its time.

        This is the hot loop of every worker: what a batch costs beyond its handler is here.
        """
        if self._legacy or self._atomic:
            self._work_with_care(list(in_batches(events)))
            return
        work_run = self._join if self._join_batches else self._batches
        waiting: Deferred[None] | None
        for index, event in enumerate(events):
            rest: object = event
            while rest is not None:
                if type(rest) is RunReceived:
                    waiting, rest = work_run(rest)
                elif type(rest) is RowsReceived:
                    waiting, rest = self._one_batch(rest), None
                else:
                    waiting, rest = self._other(rest), None
                if waiting is not None and not self._passed(waiting):
                    rests = () if rest is None else (rest,)
                    self._keep((*rests, *events[index + 1 :]))
                    return
        if self._dirty:
            self._save()

    def _batches(self, run: RunReceived) -> tuple[Deferred[None] | None, RunReceived | None]:
        """Hand over batches of one row each, as far as the handler does not take its time.

        Returns:
            What to wait for, and what is left of the run.
        """
        stream, instance, tokens, raws = run
        codec = self._codec(stream)
        if codec is None:
            return None, None
        pair = (stream, instance)
        handler = self._handler
        known = reached = self.known.get(pair)
        handed = stale = 0
        later: Callable[[], Deferred[None]] | None = None
        for token, raw in zip(tokens, raws, strict=True):
            if reached is not None and token <= reached:
                stale += 1
                continue
            rows = Rows(codec, [raw])
            handed += 1
            try:
                result = handler(stream, instance, token, rows)
            except Exception as error:
                later = partial(self._again, pair, token, rows, error, token)
                break
            if result is not None and isinstance(result, (Deferred, CoroutineType)):
                later = partial(self._settle_soon, pair, token, rows, result, token)
                break
            reached = token
        if stale:
            metrics.DROPPED.labels("row", "already_known").inc(stale)
        if handed:
            self.received_rows[stream] = self.received_rows.get(stream, 0) + handed
        if reached is not None and reached != known:
            self._advance(pair, reached)
        if later is None:
            return None, None
        done = handed + stale
        left = RunReceived(stream, instance, tokens[done:], raws[done:])
        return later(), left if left.tokens else None

    def _join(self, run: RunReceived) -> tuple[Deferred[None] | None, None]:
        """Hand over batches of one row each as one, with the token of the last."""
        stream, instance, tokens, raws = run
        reached = self.known.get((stream, instance))
        new: list[bytes] = []
        for token, raw in zip(tokens, raws, strict=True):
            if reached is None or token > reached:
                reached = token
                new.append(raw)
        if len(new) < len(raws):
            metrics.DROPPED.labels("row", "already_known").inc(len(raws) - len(new))
        if not new or reached is None:
            return None, None
        return self._hand_on((stream, instance), reached, new, reached), None

    def _work_with_care(self, events: Sequence[object]) -> None:
        """Work through *events* one at a time: 2017, or a store that commits each batch."""
        for index, event in enumerate(events):
            waiting = self._one_batch(event) if type(event) is RowsReceived else self._other(event)
            if waiting is not None and not self._passed(waiting):
                self._keep(events[index + 1 :])
                return
        if self._dirty:
            self._save()

    def _codec(self, stream: StreamName) -> RowCodec | None:
        """Return how to read the rows of *stream*; None when it is not ours to read."""
        if self._streams is not None and stream not in self._streams:
            return None
        codec = self._codecs.get(stream)
        if codec is None:
            codec = self._codecs[stream] = self._registry.codec(stream)
        return codec

    def _other(self, event: object) -> Deferred[None] | None:
        """Deal with what is not rows."""
        if isinstance(event, PositionCommand):
            return self._position(event)
        if self._on_command is not None:
            run_in_background(self._on_command, cast("Command", event))
        return None

    def _one_batch(self, event: RowsReceived) -> Deferred[None] | None:
        pair = (event.stream, event.instance)
        known = self.known.get(pair)
        if self._legacy:
            return self._batch_2017(event, pair, known)
        if known is not None and event.token <= known:
            metrics.DROPPED.labels("row", "already_known").inc(len(event.rows))
            return None
        return self._hand_on(pair, event.token, event.rows, event.token)

    def _passed(self, waiting: Deferred[None]) -> bool:
        """Return whether *waiting* has fired and went well; else stop reading until it does."""
        self._working = True
        _ = waiting.addCallbacks(self._went_well, self._give_up)
        if not self._is_working():
            return not self._halted
        self._blocked = True
        self._link.pause()
        return False

    def _keep(self, events: Sequence[object]) -> None:
        """Keep *events* for when the handler that takes its time is done."""
        if not self._halted:
            self._inbox.extendleft(reversed(events))

    def _is_working(self) -> bool:
        return self._working

    def _went_well(self, _result: None) -> None:
        self._working = False
        if not self._blocked:
            return  # it had fired already, and the loop goes on
        self._blocked = False
        self._tell_idle()
        events = tuple(self._inbox)
        self._inbox.clear()
        self._work(events)
        if not self._blocked:
            self._link.resume()

    def _give_up(self, failure: Failure) -> None:
        """A handler has failed for good, or the service stops: nothing may pass this batch."""
        self._working = False
        self._blocked = False
        self._halted = True
        self._inbox.clear()
        if not failure.check(_Stopped):
            self._link.give_up(failure)
        self._tell_idle()

    async def idle(self) -> None:
        """Wait until no handler runs."""
        if self._working:
            self._idle_waiter = Deferred()
            await self._idle_waiter

    def _tell_idle(self) -> None:
        waiter, self._idle_waiter = self._idle_waiter, None
        if waiter is not None:
            waiter.callback(None)

    def _batch_2017(
        self, event: RowsReceived, pair: Pair, known: Token | None
    ) -> Deferred[None] | None:
        """Deliver a batch of the dialect of 2017.

        Between REPLICATE and POSITION a server may send rows in any order; the position is
        known only at the end. Afterwards it may repeat a token without marking a batch.
        """
        asked = self.catching_up.get(pair)
        if asked is not None:
            if event.token <= asked:
                return None
            return self._hand_on(pair, event.token, event.rows, None)
        if known is not None and event.token < known:
            metrics.DROPPED.labels("row", "already_known").inc(len(event.rows))
            return None
        return self._hand_on(pair, event.token, event.rows, event.token)

    def _hand_on(
        self, pair: Pair, token: Token, raw: list[bytes], reached: Token | None
    ) -> Deferred[None] | None:
        """Call the handler with a batch; *reached* is the position that it brings, if any.

        Returns:
            None when that is all, else what to wait for.
        """
        codec = self._codec(pair[0])
        if codec is None:
            return None
        self.received_rows[pair[0]] = self.received_rows.get(pair[0], 0) + len(raw)
        rows = Rows(codec, raw)
        try:
            result = self._handler(*pair, token, rows)
            if result is not None and isinstance(result, (Deferred, CoroutineType)):
                return self._settle_soon(pair, token, rows, result, reached)
            self._advance(pair, reached)
        except Exception as error:
            return self._again(pair, token, rows, error, reached)
        return None

    def _settle_soon(
        self, pair: Pair, token: Token, rows: Rows, result: Any, reached: Token | None
    ) -> Deferred[None]:
        return Deferred.fromCoroutine(self._settle(pair, token, rows, result, reached))

    def _again(
        self, pair: Pair, token: Token, rows: Rows, error: Exception, reached: Token | None
    ) -> Deferred[None]:
        return Deferred.fromCoroutine(self._persist(pair, token, rows, error, reached))

    async def _settle(
        self, pair: Pair, token: Token, rows: Rows, result: Any, reached: Token | None
    ) -> None:
        try:
            await result
            self._advance(pair, reached)
        except Exception as error:
            await self._persist(pair, token, rows, error, reached)

    async def _persist(
        self, pair: Pair, token: Token, rows: Rows, error: Exception, reached: Token | None
    ) -> None:
        """Deliver a batch again that its handler failed on, until it succeeds."""
        attempt = 1
        while True:
            if isinstance(error, BadRow):
                good, bad = rows.sift()
                if bad:
                    self._quarantine(pair, token, bad)
                    rows = good
                    attempt = 0
                    if not rows:
                        self._advance(pair, reached)
                        return
            if attempt:
                log.error(
                    "replication.handler.failed",
                    stream=pair[0],
                    instance=pair[1],
                    token=token,
                    rows=len(rows),
                    attempt=attempt,
                    exc_info=error,
                )
                if self._max_attempts is not None and attempt >= self._max_attempts:
                    raise error
                await self._link.wait(
                    min(
                        limits.HANDLER_RETRY_MAX_S,
                        limits.HANDLER_RETRY_MIN_S * 2 ** min(attempt - 1, 10),
                    )
                )
            if not self.running:
                raise _Stopped
            attempt += 1
            try:
                result = self._handler(*pair, token, rows)
                if isinstance(result, (Deferred, CoroutineType)):
                    await result
                self._advance(pair, reached)
            except Exception as again:
                error = again
            else:
                return

    def _quarantine(self, pair: Pair, token: Token, bad: Sequence[BadRow]) -> None:
        self.quarantined_rows += len(bad)
        metrics.DROPPED.labels("row", "bad").inc(len(bad))
        for error in bad:
            log.error(
                "replication.row.quarantined",
                stream=pair[0],
                instance=pair[1],
                token=token,
                error=str(error),
            )

    def _advance(self, pair: Pair, token: Token | None) -> None:
        """Note that everything up to *token* is dealt with; commit it if that is ours to do."""
        if token is not None:
            self._dirty[pair] = token
            if self._atomic:
                self._commit()
            self.known[pair] = token

    def _position(self, command: PositionCommand) -> Deferred[None] | None:
        """Follow a position: go on, reset, or fetch what is missing."""
        pair = (command.stream, command.instance)
        if self._streams is not None and command.stream not in self._streams:
            return None
        known = self.known.get(pair)
        prev = command.token if command.prev is None else command.prev
        if self._legacy:
            # Rows came in band before this line, whatever their tokens were.
            asked = self.catching_up.pop(pair, None)
            if asked == 0 and known is None:
                known = 0
            prev = min(prev, command.token if known is None else known)
        if known is None and not self._resumable and self._since == "start" and self._catch_up:
            known = 0
        if known is None or prev <= known <= command.token:
            if known != command.token:
                self._advance(pair, command.token)
            return self._call(self._on_position, *pair, command.token)
        if self._resumable or self._catch_up is None:
            return Deferred.fromCoroutine(self._reset(pair, known, command.token))
        return Deferred.fromCoroutine(self._fetch(pair, known, command.token))

    async def _reset(self, pair: Pair, known: Token | None, token: Token) -> None:
        log.warning(
            "replication.client.reset",
            stream=pair[0],
            instance=pair[1],
            known=known,
            token=token,
        )
        metrics.GAPS.labels(pair[0]).inc()
        await self._insist(self._on_reset, *pair, known, token)
        self._advance(pair, token)
        await self._insist(self._on_position, *pair, token)

    async def _fetch(self, pair: Pair, known: Token, token: Token) -> None:
        """Fetch ``(known, token]`` over HTTP; from 0 when the position went back."""
        assert self._catch_up is not None
        if known > token:
            await self._insist(self._on_reset, *pair, known, 0)
            known = 0
        after = known
        attempt = 0
        while after < token:
            if not self.running:
                raise _Stopped
            try:
                page = await self._catch_up.fetch(*pair, after, token)
            except Exception as error:
                attempt += 1
                log.warning(
                    "replication.client.catch_up_failed",
                    stream=pair[0],
                    instance=pair[1],
                    after=after,
                    upto=token,
                    attempt=attempt,
                    error=str(error),
                )
                if isinstance(error, ConnectionFailed) and not error.transient:
                    await self._reset(pair, after, token)
                    return
                await self._link.wait(backoff_s(attempt))
                continue
            if page.missing is not None:
                await self._reset(pair, *page.missing)
            await self._hand_over(pair, after, page.updates)
            if not page.limited or page.upto <= after:
                break
            after = page.upto
        self._advance(pair, token)
        await self._insist(self._on_position, *pair, token)

    async def _hand_over(
        self, pair: Pair, after: Token, updates: Sequence[tuple[Token, bytes]]
    ) -> None:
        """Deliver fetched rows, those that share a token together."""
        index = 0
        while index < len(updates):
            token = updates[index][0]
            raw: list[bytes] = []
            while index < len(updates) and updates[index][0] == token:
                raw.append(updates[index][1])
                index += 1
            if token <= after:
                continue
            waiting = self._hand_on(pair, token, raw, token)
            if waiting is not None:
                await waiting

    def _call(self, callback: Callable[..., object] | None, *args: Any) -> Deferred[None] | None:
        if callback is None:
            return None
        return Deferred.fromCoroutine(self._insist(callback, *args))

    async def _insist(self, callback: Callable[..., object] | None, *args: Any) -> None:
        """Call *callback* until it succeeds; its failures are logged."""
        attempt = 0
        while callback is not None:
            try:
                result = callback(*args)
                if isinstance(result, (Deferred, CoroutineType)):
                    await result
            except Exception as error:
                attempt += 1
                log.error(
                    "replication.callback.failed",
                    callback=getattr(callback, "__qualname__", repr(callback)),
                    arguments=args,
                    attempt=attempt,
                    exc_info=error,
                )
                if self._max_attempts is not None and attempt >= self._max_attempts:
                    raise
                await self._link.wait(backoff_s(attempt))
                if not self.running:
                    raise _Stopped from None
                continue
            return

    # -- positions ---------------------------------------------------------------------

    def _save(self) -> None:
        """Save the positions that moved; what the disk refuses is kept for the next time."""
        try:
            self._commit()
        except Exception as error:
            log.error("replication.positions.not_saved", exc_info=error)

    def _commit(self) -> None:
        self._store.save(dict(self._dirty))
        self._dirty.clear()


class _Stopped(Exception):
    """The service stopped while a batch was being retried."""


def backoff_s(failures: int) -> float:
    """Return how long to wait after *failures* failures in a row: doubling, jittered, capped."""
    longest = min(limits.RECONNECT_MAX_S, limits.RECONNECT_MIN_S * 2.0 ** min(failures, 20))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not a secret
