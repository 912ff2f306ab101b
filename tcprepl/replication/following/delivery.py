"""Handing rows to a worker: in order, one batch at a time (protocol.md section 7).

`Delivery` is the half of the client library that does not know of connections: it works
through what a connection brought, tells gaps from resets, and fetches over HTTP what the wire
cannot bring. Calling a handler until it succeeds is `retry.Caller`'s, the positions are
`progress.Progress`'s, and what only servers of 2017 do is in `dialect_2017`.

Whatever comes, rows, runs, positions or pages, passes one inbox, and each may have to wait in the
middle of it: so this may be longer than other modules.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from tcprepl import metrics
from tcprepl.background import run_in_background
from tcprepl.errors import ConnectionFailed
from tcprepl.ids import IncarnationId, InstanceName, Pair, StreamName, Token
from tcprepl.logger import get_logger
from tcprepl.protocol.commands import Command, ErrorCommand, PositionCommand
from tcprepl.protocol.dialects import Dialect
from tcprepl.protocol.events import (
    MixedReceived,
    RowsReceived,
    RunReceived,
    in_batches,
    unmixed,
)
from tcprepl.protocol.session import ENDS_CONNECTION
from tcprepl.replication.failures import backoff_s
from tcprepl.replication.following.asyncio_bridge import bridged, settled
from tcprepl.replication.following.catchup import CatchUp
from tcprepl.replication.following.descending import HOLD_S, DescendingRows
from tcprepl.replication.following.dialect_2017 import Resumption, Verdict
from tcprepl.replication.following.progress import Progress
from tcprepl.replication.following.pulling import Hand, Judged, Puller
from tcprepl.replication.following.retry import Caller, Stopped
from tcprepl.replication.following.runs import Runs
from tcprepl.streams.codec import RowCodec, Rows
from tcprepl.streams.lineage import Places
from tcprepl.streams.position_store import PositionStore
from tcprepl.streams.registry import Registry

log = get_logger(__name__)

#: When positions that could not be saved are tried again, if no more rows come.
SAVE_AGAIN_S: Final = 5.0
#: Called with (stream, instance, token, rows) for each batch, in order; may be async.
RowHandler: TypeAlias = Callable[[StreamName, InstanceName, Token, Rows], object]
#: Called with (stream, instance, tokens, rows as JSON), for batches of one row each; may be async.
RunHandler: TypeAlias = Callable[[StreamName, InstanceName, list[Token], list[bytes]], object]
#: Called with (stream, instance, known, token) when a stream cannot go on; may be async.
ResetHandler: TypeAlias = Callable[[StreamName, InstanceName, Token | None, Token], object]
#: Called with (stream, instance, token) when a position was heard; may be async.
PositionHandler: TypeAlias = Callable[[StreamName, InstanceName, Token], object]


class PassedOver(Protocol):
    """Tells whether a token was passed over: see `RelayIntake.passed_over`."""

    def __call__(self, pair: Pair, token: Token, *, position: bool = False) -> Token | None:
        """Return up to where *pair* is taken without what passed over *token*, if it was."""
        ...


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

    def fail(self, text: str) -> None:
        """End the connection: not all that it brought was worked through. It comes again."""
        ...

    async def wait(self, seconds: float) -> None:
        """Wait; stopping the client ends it early."""
        ...

    def call_later(self, seconds: float, function: Callable[[], None]) -> IDelayedCall:
        """Call *function* after a while."""
        ...


class Delivery:
    """Works through what connections bring, one batch at a time.

    The order of calls: `start`; then for each connection `begin`, `take` as often as it brings
    something, and `end` once it is lost; `stop` at any time. At most one handler or callback
    runs at a time, and nothing is handed over after one that has not succeeded.

    Args:
        link: The client.
        handler: Called with each batch; or a `Puller`, which is asked for them.
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
        passed_over: Asked when a row, or a position, is not above what is known. Where it tells a
            token, what is known was told falsely: the stream goes on there, as after a reset.
        on_run: Called in the handler's place with neighbouring batches that are all new.

    Attributes:
        resumption: In the dialect of 2017: what was asked for, until POSITION comes.
        received_rows: Rows received, by stream.
    """

    def __init__(
        self,
        link: Link,
        handler: RowHandler | Puller,
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
        passed_over: PassedOver | None = None,
        on_run: RunHandler | None = None,
    ) -> None:
        self.received_rows: dict[StreamName, int] = {}
        self.resumption = Resumption(keep=store.atomic)
        self._progress = Progress(store)
        self._caller = Caller(self._progress, link.wait, max_attempts)
        self._link = link
        self._handler = handler
        self._puller = handler if isinstance(handler, Puller) else None
        self._registry = registry
        self._streams = streams
        self._since = since
        self._on_reset = on_reset
        self._on_position = on_position
        self._on_command = None if on_command is None else bridged(on_command)
        self._catch_up = catch_up
        self._join_batches = join_batches
        self._passed_over = passed_over
        self._on_run = on_run
        self._codecs: dict[StreamName, RowCodec] = {}
        self._runs = Runs(
            cast("RowHandler", handler),
            self._progress,
            self._caller,
            self._codec,
            self.received_rows,
            passed_over,
            self._go_back,
        )
        if self._puller is not None:
            self._puller.attach(self._progress, self._caller, self._codecs)
        self._inbox: deque[object] = deque()
        self._descending = DescendingRows(self._progress)
        self._release_call: IDelayedCall | None = None
        self._saving: IDelayedCall | None = None
        #: Whether a writer may be at the other end whose rows come in any order.
        self._sorts = False
        self._legacy = False
        self._resumable = False
        #: A handler or callback was called and has not succeeded yet.
        self._working = False
        #: It did not succeed at once, so what came after it waits in the inbox.
        self._blocked = False
        #: A batch was given up: nothing may pass it before the client begins anew.
        self._halted = False
        #: Something of this connection was not worked through: nothing may pass it.
        self._broken = False
        self._idle_waiter: Deferred[None] | None = None

    # -- what may be asked -------------------------------------------------------------

    @property
    def known(self) -> dict[Pair, Token]:
        """The position of each (stream, instance); to be read only."""
        return self._progress.known

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._caller.running

    @property
    def quarantined_rows(self) -> int:
        """Rows left out because they do not fit their stream."""
        return self._caller.quarantined_rows

    @property
    def waiting(self) -> int:
        """Batches and commands received that wait for their turn."""
        return sum(
            len(event.tokens) if isinstance(event, RunReceived | MixedReceived) else 1
            for event in self._inbox
        )

    # -- life --------------------------------------------------------------------------

    def start(self) -> None:
        """Begin from the saved positions; also after a `stop` and an `end`."""
        self._progress.load()
        self._caller.running = True
        self._halted = False

    def stop(self) -> None:
        """Take no more, and let a handler that fails rest.

        The one that runs may end and counts; `end` waits for it.
        """
        self._caller.running = False

    def begin(self, dialect: Dialect, incarnation: IncarnationId | None = None) -> None:
        """Begin with a new connection that speaks *dialect*.

        Args:
            dialect: The dialect.
            incarnation: Which one of its log the server named; None if it named none.
        """
        self._progress.incarnation = incarnation
        self._sorts = not (dialect.in_band_resume and dialect.rdata_instance)
        self._legacy = not dialect.rdata_instance
        self._resumable = dialect.in_band_resume
        self.resumption.clear()
        self._broken = False

    async def end(self) -> None:
        """Forget what a lost connection brought; wait for the handler that runs.

        Afterwards what is known is what was applied, and it is saved.
        """
        self._inbox.clear()
        self._descending.clear()
        if self._release_call is not None:
            self._release_call.cancel()
            self._release_call = None
        if self._saving is not None:
            self._saving.cancel()
            self._saving = None
        await self._idle()
        self._progress.save()

    def places(self, pair: Pair) -> Places:
        """Return in which incarnations of the server's log *pair* was read, newest first."""
        return self._progress.places(pair)

    # -- working through ---------------------------------------------------------------

    def take(self, events: Sequence[object]) -> None:
        """Take what one read brought; work through it, or stop the reading until it is done.

        What comes while the client stops comes again when it begins anew: a handler that
        failed now would not be called again.
        """
        if self._halted or self._broken or not self._caller.running:
            return
        if self._sorts:
            events = self._descending.sort(events)
            if self._descending.holds and self._release_call is None:
                self._release_call = self._link.call_later(HOLD_S, self._release)
        self._work(events)

    def _release(self) -> None:
        """Work through what was held for want of a position."""
        self._release_call = None
        self._go_on(self._descending.release())

    def _go_on(self, events: Iterable[object]) -> None:
        """Work through *events*, whose connection ends if something unexpected comes of it."""
        if self._broken:
            return
        try:
            self._work(events)
        except Exception as error:
            log.exception("replication.client.delivery_failed")
            self._broken = True
            self._inbox.clear()
            self._link.fail(f"what it brought could not be worked through: {error!r}")

    def _work(self, events: Iterable[object]) -> None:
        """Work through *events* until they end or a handler takes its time; it may already do so.

        This is the hot loop of every worker: what a batch costs beyond its handler is here.
        """
        if self._working or self._inbox:
            self._inbox.extend(events)
            return
        # One at a time where each batch is committed, and where a batch is not what it seems.
        pulled = self._puller is not None and not self._join_batches
        rests: Iterator[object]
        if self._legacy or (self._progress.atomic and not self._join_batches and not pulled):
            rests = iter(list(in_batches(events)))
        else:
            rests = iter(events)
            if pulled:
                rests = self._in_hands(rests)
            elif self._progress.atomic or self._puller is not None:
                rests = unmixed(rests)
        work_run: Callable[[RunReceived], tuple[Deferred[None] | None, object]]
        work_run = self._join if self._join_batches else self._runs.run
        if self._on_run is not None:
            work_run = self._whole
        waiting: Deferred[None] | None
        caller = self._caller
        for event in rests:
            rest: object = event
            while rest is not None and caller.running:
                if type(rest) is RunReceived:
                    waiting, rest = work_run(rest)
                elif type(rest) is MixedReceived:
                    waiting, rest = self._runs.mixed(rest)
                elif type(rest) is RowsReceived:
                    waiting, rest = self._one_batch(rest), None
                elif type(rest) is Hand:
                    waiting, rest = self._pull(rest), None
                else:
                    waiting, rest = self._other(rest), None
                if waiting is not None and not self._passed(waiting):
                    self._keep((*(() if rest is None else (rest,)), *rests))
                    return
        self._save()

    def _save(self) -> None:
        """Save how far we are; what the disk refuses again after a while, if no more rows come."""
        if self._saving is not None:
            if self._saving.active():
                self._saving.cancel()
            self._saving = None
        if not self._progress.save() and self._caller.running:
            self._saving = self._link.call_later(SAVE_AGAIN_S, self._save)

    def _whole(self, run: RunReceived) -> tuple[Deferred[None] | None, MixedReceived | None]:
        """Hand over a run as it is, if the handler has seen nothing of it."""
        stream, instance, tokens, raws = run
        pair = (stream, instance)
        if tokens[0] <= self.known.get(pair, -1) or self._codec(stream) is None:
            return self._runs.run(run)
        assert self._on_run is not None
        self.received_rows[stream] = self.received_rows.get(stream, 0) + len(raws)
        return self._caller.call(self._on_run, run, pair, tokens[-1]), None

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
        return self._hand_over((stream, instance), reached, new, reached), None

    def _in_hands(self, events: Iterable[object]) -> Iterator[object]:
        """Yield *events* with those that are rows and follow one another in a `Hand`."""
        hand = Hand()
        received, codecs = self.received_rows, self._codecs
        for event in events:
            if type(event) is Hand:
                hand += event
                continue
            counts: Mapping[StreamName, int]
            if isinstance(event, MixedReceived):
                counts = Counter([stream for stream, _ in event.pairs])
            elif isinstance(event, RunReceived | RowsReceived):
                counts = {event.stream: len(event.rows)}
            else:
                if hand:
                    yield hand
                    hand = Hand()
                yield event
                continue
            wanted = [s for s in counts if s in codecs or self._codec(s) is not None]
            for stream in wanted:
                received[stream] = received.get(stream, 0) + counts[stream]
            if wanted:
                hand.append(event)
        if hand:
            yield hand

    def _pull(self, hand: Hand) -> Deferred[None] | None:
        """Let what is in *hand* be taken."""
        assert self._puller is not None
        return self._caller.call(self._puller.take, (hand,), hand.pair, None)

    def _one_batch(self, batch: RowsReceived) -> Deferred[None] | None:
        stream, instance, token, rows = batch
        pair = (stream, instance)
        known = self._progress.known.get(pair)
        if not self._legacy and (known is None or token > known):
            return self._hand_over(pair, token, rows, token)
        reached: Token | None = token
        if self._legacy and self._follows(stream):
            verdict = self.resumption.judge(batch, known)
            if verdict is Verdict.KEPT:
                return None
            stale = verdict is Verdict.STALE
            if verdict is Verdict.MISSED:
                reached = None
        else:
            stale = known is not None and token <= known
            if known is not None and stale and self._passed_over is not None:
                base = self._passed_over(pair, token)
                if base is not None:
                    return _started(self._go_back_for(batch, known, base))
        if stale:
            metrics.DROPPED.labels("row", "already_known").inc(len(rows))
            return None
        return self._hand_over(pair, token, rows, reached)

    def _other(self, event: object) -> Deferred[None] | None:
        """Deal with what is not rows."""
        if isinstance(event, PositionCommand):
            if not self._follows(event.stream):
                return None
            return self._position_2017(event) if self._legacy else self._position(event)
        if self._on_command is not None:
            run_in_background(self._on_command, cast("Command", event))
        elif isinstance(event, ErrorCommand) and not event.text.endswith(ENDS_CONNECTION):
            # nobody else says that a stream is not there, or may not be read
            log.warning("replication.client.told", text=event.text)
        return None

    def _follows(self, stream: StreamName) -> bool:
        return self._streams is None or stream in self._streams

    def _codec(self, stream: StreamName) -> RowCodec | None:
        """Return how to read the rows of *stream*; None when it is not ours to read."""
        if not self._follows(stream):
            return None
        codec = self._codecs.get(stream)
        if codec is None:
            codec = self._codecs[stream] = self._registry.codec(stream)
        return codec

    def _hand_over(
        self, pair: Pair, token: Token, raw: list[bytes], reached: Token | None
    ) -> Deferred[None] | None:
        """Call the handler with a batch; *reached* is the position that it brings, if any.

        Returns:
            None when that is all, else what to wait for.
        """
        stream, instance = pair
        codec = self._codecs.get(stream) or self._codec(stream)
        if codec is None:
            return None
        self.received_rows[stream] = self.received_rows.get(stream, 0) + len(raw)
        if self._puller is not None:
            return self._pull(Hand([Judged(stream, instance, token, raw, reached)]))
        rows = Rows(codec, raw)
        handler = cast("RowHandler", self._handler)
        return self._caller.call(handler, (stream, instance, token, rows), pair, reached, rows)

    # -- waiting for a handler ---------------------------------------------------------

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
        self._go_on(events)
        if not self._blocked:
            self._link.resume()

    def _give_up(self, failure: Failure) -> None:
        """A handler has failed for good, or the service stops: nothing may pass this batch."""
        self._working = False
        self._blocked = False
        self._halted = True
        self._inbox.clear()
        if not failure.check(Stopped):
            self._link.give_up(failure)
        self._tell_idle()

    async def _idle(self) -> None:
        """Wait until no handler runs."""
        if self._working:
            self._idle_waiter = Deferred()
            await self._idle_waiter

    def _tell_idle(self) -> None:
        waiter, self._idle_waiter = self._idle_waiter, None
        if waiter is not None:
            waiter.callback(None)

    # -- positions ---------------------------------------------------------------------

    def _position(self, command: PositionCommand) -> Deferred[None] | None:
        """Follow a position: go on, reset, or fetch what is missing."""
        pair = (command.stream, command.instance)
        known = self.known.get(pair)
        prev = command.token if command.prev is None else command.prev
        if known is None and not self._resumable and self._since == "start" and self._catch_up:
            known = 0
        return self._follow(pair, known, prev, command.token)

    def _position_2017(self, command: PositionCommand) -> Deferred[None] | None:
        """Follow a position: rows came in band before it, whatever their tokens were."""
        pair = (command.stream, command.instance)
        self.resumption.end(pair)
        kept = self.resumption.take_kept(pair)
        return _started(self._resume_2017(pair, kept, command.token))

    async def _resume_2017(
        self, pair: Pair, kept: Sequence[tuple[Token, bytes]], token: Token
    ) -> None:
        for reached, rows in _by_token(kept):
            await _done(self._hand_over(pair, reached, rows, reached))
            token = max(token, reached)
        known = self.known.get(pair)
        prev = token if known is None else min(known, token)
        await _done(self._follow(pair, known, prev, token))

    def _follow(
        self, pair: Pair, known: Token | None, prev: Token, token: Token
    ) -> Deferred[None] | None:
        """Go on at *token*, from *known*, if nothing was missed up to *prev*."""
        if known is None or prev <= known <= token:
            return self._tell_position(pair, token)
        if token < known and self._passed_over is not None:
            base = self._passed_over(pair, token, position=True)
            if base is not None:
                return _started(self._go_back_to(pair, known, base, prev, token))
        if self._resumable or self._catch_up is None:
            return _started(self._reset(pair, known, token))
        return _started(self._fetch(pair, known, token))

    def _tell_position(self, pair: Pair, token: Token) -> Deferred[None] | None:
        """Note a position, and tell it."""
        if self._on_position is None and self.known.get(pair) == token:
            return None
        return self._tell(self._on_position, (*pair, token), pair, token)

    def _tell(
        self,
        callback: Callable[..., object] | None,
        arguments: tuple[Any, ...],
        pair: Pair,
        reached: Token,
    ) -> Deferred[None] | None:
        return self._caller.call(callback or _nothing, arguments, pair, reached)

    async def _reset(self, pair: Pair, known: Token | None, token: Token) -> None:
        stream, instance = pair
        log.warning(
            "replication.client.reset", stream=stream, instance=instance, known=known, token=token
        )
        metrics.GAPS.labels(stream).inc()
        await _done(self._tell(self._on_reset, (*pair, known, token), pair, token))
        await _done(self._tell_position(pair, token))

    def _go_back(self, pair: Pair, known: Token, base: Token) -> Deferred[None]:
        """Go on after *base*: *known* was told falsely."""
        return _started(self._reset(pair, known, base))

    async def _go_back_for(self, batch: RowsReceived, known: Token, base: Token) -> None:
        pair = (batch.stream, batch.instance)
        await self._reset(pair, known, base)
        await _done(self._hand_over(pair, batch.token, batch.rows, batch.token))

    async def _go_back_to(
        self, pair: Pair, known: Token, base: Token, prev: Token, token: Token
    ) -> None:
        await self._reset(pair, known, base)
        await _done(self._follow(pair, base, prev, token))

    async def _fetch(self, pair: Pair, known: Token, token: Token) -> None:
        """Fetch ``(known, token]`` over HTTP; from 0 when the position went back."""
        assert self._catch_up is not None
        stream, instance = pair
        if known > token:
            await _done(self._tell(self._on_reset, (*pair, known, 0), pair, 0))
            known = 0
        after = known
        attempt = 0
        while after < token:
            if not self._caller.running:
                raise Stopped
            try:
                page = await settled(self._catch_up.fetch(stream, instance, after, token))
            except Exception as error:
                attempt += 1
                log.warning(
                    "replication.client.catch_up_failed",
                    stream=stream,
                    instance=instance,
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
            for batch_token, rows in _by_token(page.updates):
                if batch_token > after:
                    await _done(self._hand_over(pair, batch_token, rows, batch_token))
            if not page.limited or page.upto <= after:
                break
            after = page.upto
        await _done(self._tell_position(pair, token))


def _nothing(*_: object) -> None:
    """Stand for a callback that nobody gave."""


_started = Deferred.fromCoroutine


async def _done(waiting: Deferred[None] | None) -> None:
    """Wait for what `Caller.call` returned."""
    if waiting is not None:
        await waiting


def _by_token(updates: Iterable[tuple[Token, bytes]]) -> Iterator[tuple[Token, list[bytes]]]:
    """Yield rows with their token, those that share one together."""
    rows: list[bytes] = []
    newest = 0
    for token, row in updates:
        if rows and token != newest:
            yield newest, rows
            rows = []
        newest = token
        rows.append(row)
    if rows:
        yield newest, rows
