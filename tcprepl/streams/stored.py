"""The log in a database: one writer thread, group commit (protocol.md section 7).

Durable streams: what is appended while a commit is on its way to the disk goes into the next
one, together; listeners hear of rows, and appends are answered, once they are there. Tokens
are given out at the call, so a commit that the disk refuses leaves a hole in the tokens and
none in the rows that were acknowledged. The newest blocks are also in memory.

Ephemeral streams are in memory (`MemoryStream`). Only the highest token that they may have
given out is on disk, claimed many at a time; a new process begins above it.

`tcprepl.streams.sqlite` and `tcprepl.streams.postgresql` put it on a database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

import structlog
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from tcprepl.clocks import resumed_ms
from tcprepl.errors import LogError, LogUnavailable, ProducerError, TokenOrder
from tcprepl.ids import InstanceName, Pair, ProducerName, StreamName, Token
from tcprepl.limits import MAX_TOKEN
from tcprepl.metrics import COMMIT_SECONDS
from tcprepl.storage.worker import InlineWorker, Worker
from tcprepl.streams.base import CLOSED, BaseLog
from tcprepl.streams.blocks import assign_tokens
from tcprepl.streams.commits import (
    Advance,
    Append,
    Barrier,
    Batch,
    Claim,
    Item,
    gather,
    names_tokens,
    take,
)
from tcprepl.streams.durable import DurableStream
from tcprepl.streams.engine import Commit, Engine, Freed, KnownTransactions, StoredPair
from tcprepl.streams.gaps import Gap, Gaps
from tcprepl.streams.json_rows import JsonRows
from tcprepl.streams.log import ACKNOWLEDGED, Appended, Block
from tcprepl.streams.memory import EphemeralStream
from tcprepl.streams.pages import PageCache
from tcprepl.streams.producers import Produced, ProducerState
from tcprepl.streams.producing import Producing
from tcprepl.streams.registry import Registry
from tcprepl.streams.retention import Retention

logger = structlog.get_logger()

#: What is appended without a pause shares a commit with what goes this often.
CLEANING_INTERVAL_MS = 250
#: How long the disk is left to others between two commits for which nobody waits.
CLEANING_PAUSE_S = 0.005


class StoredLog(BaseLog):
    """Every stream of one database.

    Attributes:
        history: The incarnations of the log, this one the current.
        reads_ahead: As for `PageCache`.
    """

    reads_ahead: ClassVar[bool] = False

    def __init__(
        self,
        database: Engine,
        registry: Registry,
        clock_ms: Callable[[], int],
        worker: Worker,
        retention: Retention | None = None,
        reactor: IReactorTime | None = None,
        gaps: Gaps | None = None,
        reading_worker: Worker | None = None,
    ) -> None:
        """Take over what is in *database*; if that fails, what was given is closed and stopped.

        Args:
            database: The database, for this log alone.
            registry: What streams there are.
            clock_ms: Gives the time in ms since 1970, by a clock that never jumps. Ages on
                disk go on where they were (`tcprepl.clocks.resumed_ms`).
            worker: Runs the commits; the log stops it when it is closed.
            retention: What to keep; the defaults by default.
            reactor: Gathers what one turn appends into one commit, and lets go of old rows
                now and then. Without it commits start at once, and only appends clean up.
            gaps: Where rows are known to be missing, if anywhere.
            reading_worker: Reads from the disk, and is stopped as the other is; without it
                pages are read in the caller's thread.
        """
        super().__init__(registry, clock_ms, retention or Retention(), reactor, gaps)
        self._database = database
        self._worker = worker
        self._pages = PageCache(reading_worker or InlineWorker(), ahead=self.reads_ahead)
        self._pairs: dict[Pair, DurableStream | EphemeralStream] = {}
        self._by_id: dict[int, DurableStream] = {}
        self._waiting: list[Item] = []
        self._committing: list[Item] = []
        self._in_flight: dict[tuple[StreamName, str], Append] = {}
        self._producing = Producing(self._producers)
        self._trims: dict[int, Token] = {}
        self._expire_transactions = False
        self._shrinking = False
        self._cleaned_ms = 0
        self._pausing = False
        self._busy = False
        self._start_call: IDelayedCall | None = None
        self._next_id = database.first_id
        try:
            self._load()
        except BaseException:
            self._let_go()
            raise
        self._start_expiry()
        self._commit_soon()

    def _load(self) -> None:
        """Take over what the database knows, and begin an incarnation on top of it.

        The incarnation and the claims of the ephemeral streams are on disk before anybody can
        hear of either.
        """
        start = Commit()
        positions: dict[Pair, Token] = {}
        for stored in self._database.pairs():
            positions[stored.stream, stored.instance] = stored.position
            if not self._owns(stored):
                self._add_foreign(stored)
                continue
            self._next_id = max(self._next_id, stored.id + 1)
            if stored.stream not in self._registry:
                logger.warning(
                    "streams.unknown",
                    stream=stored.stream,
                    instance=stored.instance,
                    reason="the log has it, the configuration does not; its rows are left alone",
                )
                continue
            pair = self._add(stored)
            if isinstance(pair, DurableStream):
                if not self._database.is_trimmed(stored):  # the process before was at it
                    pair.trimming = True
                    self._trims[stored.id] = stored.floor
            else:
                positions[stored.stream, stored.instance] = pair.position
                pair.claimed = self._claim_after(pair.position)
                start.pairs.append(self._claim_row(pair))
        for producer in self._database.producers():
            self._producers.restore(*producer)
        self.history = self._database.history()
        newest_ms = self._database.newest_ms()
        if newest_ms is not None:
            clock_ms = self._clock_ms
            moved_ms = resumed_ms(now_ms := clock_ms(), newest_ms) - now_ms
            self._clock_ms = lambda: clock_ms() + moved_ms
        start.begun = self.history.begin(positions, self._clock_ms(), over=self._database.over)
        start.oldest_incarnation = self.history.incarnations[0].number
        self._database.write(start)

    def _owns(self, stored: StoredPair) -> bool:
        """Return whether this log writes *stored*; all of them, unless others write here, too."""
        return True

    def _add_foreign(self, stored: StoredPair) -> DurableStream | None:
        """Take note of a pair that another server writes."""
        raise AssertionError("nobody else writes here")

    def _add(self, stored: StoredPair) -> DurableStream | EphemeralStream:
        definition = self._registry.get(stored.stream)
        bounds = self._retention.bounds(stored.stream, durable=definition.durable)
        pair: DurableStream | EphemeralStream
        if definition.durable:
            pair = self._by_id[stored.id] = DurableStream(
                stored, bounds, self._database, self._pages, self._note_damage
            )
        else:
            start = stored.position
            if definition.keyed and start:
                # Whoever holds exactly the highest token has states of a process that is
                # gone. One token more, and it is told to begin anew.
                start = min(start + 1, MAX_TOKEN)
            pair = EphemeralStream(definition, stored.instance, bounds, stored.id, start)
        self._pairs[stored.stream, stored.instance] = pair
        return pair

    def _rebound(self) -> None:
        for (stream, _), pair in self._pairs.items():
            durable = self._registry.get(stream).durable
            pair.bounds = self._retention.bounds(stream, durable=durable)

    def _get(self, stream: StreamName, instance: InstanceName) -> DurableStream | EphemeralStream:
        found = self._pairs.get((stream, instance))
        if found is None:
            self._definition(stream, instance)
            found = self._add(StoredPair(self._next_id, stream, instance, 0, 0))
            self._next_id += 1
        return found

    def ensure(self, stream: StreamName, instance: InstanceName) -> None:
        """Make (stream, instance) known."""
        pair = self._get(stream, instance)
        if isinstance(pair, EphemeralStream) and not self._closed:
            self._claim_ahead(pair)

    # --- what is added --------------------------------------------------------------------

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

        Transaction ids of an ephemeral stream are forgotten when the process ends, as its
        rows are. An ephemeral append of a producer waits for those before it, durable ones.
        """
        if self._closed:
            return fail(LogUnavailable(CLOSED))
        pair = self._get(stream, instance)
        now = self._clock_ms()
        if transaction_id is not None:
            known = self._known_answer(pair, stream, transaction_id, now)
            if known is not None:
                return known
        elif produced is not None:
            again = partial(self.append, stream, instance, rows, batch=batch, tokens=tokens)
            answer = self._producing.ask(produced, again, at_once=isinstance(pair, EphemeralStream))
            if answer is not None:
                return answer
        if isinstance(pair, EphemeralStream):
            before = pair.position
        else:
            before = pair.assigned if tokens is None else pair.least
        given = assign_tokens(stream, instance, before, len(rows), batch=batch, tokens=tokens)
        if isinstance(pair, EphemeralStream):
            return self._append_ephemeral(pair, given, rows, transaction_id, produced, now)
        pair.take(given[-1])
        answered: Deferred[Appended] = Deferred()
        append = Append(
            pair,
            given,
            JsonRows.of(rows),
            transaction_id,
            [answered],
            produced,
            named=tokens is not None,
        )
        if produced is not None:
            self._producers.begun(produced, append.answer, now)
        if transaction_id is not None:
            self._in_flight[stream, transaction_id] = append
        self._enqueue(append)
        return answered

    def _known_answer(
        self,
        pair: DurableStream | EphemeralStream,
        stream: StreamName,
        transaction_id: str,
        now: int,
    ) -> Deferred[Appended] | None:
        """Return the answer that the transaction id already has, or will have."""
        known: Appended | None
        if isinstance(pair, EphemeralStream):
            known = self._transactions.get(stream, transaction_id, now)
        else:
            under_way = self._in_flight.get((stream, transaction_id))
            if under_way is not None:
                answered: Deferred[Appended] = Deferred()
                under_way.waiting.append(answered)
                return answered
            since = now - int(self._retention.transaction_age_s * 1000)
            try:
                known = self._database.transaction(stream, transaction_id, since)
            except LogError:
                return fail()
        return None if known is None else succeed(known)

    def _append_ephemeral(
        self,
        pair: EphemeralStream,
        tokens: Sequence[Token],
        rows: Sequence[bytes],
        transaction_id: str | None,
        produced: Produced | None,
        now: int,
    ) -> Deferred[Appended]:
        try:
            self._claim(pair, tokens[-1])
        except LogError:
            return fail()
        answer = Appended(pair.stream.name, pair.instance, tokens[0], tokens[-1])
        if transaction_id is not None:
            self._transactions.put(pair.stream.name, transaction_id, answer, now)
        if produced is not None:
            self._producers.begun(produced, answer, now)
            self._producing.taken_at_once(produced, answer)
        answered = self._announced_block(pair.add(tokens, rows, now), answer)
        pair.expire(now)  # nobody has to wait for that
        if produced is not None:
            self._commit_soon()
        return answered

    def claim(self, producer: ProducerName, epoch: int | None = None) -> Deferred[ProducerState]:
        """Take a producer's name, as `Log.claim` says."""
        if self._closed:
            return fail(LogUnavailable(CLOSED))
        now = self._clock_ms()
        try:
            state = self._producers.claim(producer, epoch, now)
        except ProducerError:
            return fail()
        answered: Deferred[ProducerState] = Deferred()
        # Behind all appends of the name that are under way, so it knows what became of them.
        self._enqueue(Claim(producer, state.epoch, now, [answered]))
        return answered

    def advance(self, stream: StreamName, instance: InstanceName, token: Token) -> Deferred[None]:
        """Move the position to *token* without rows."""
        if self._closed:
            return fail(LogUnavailable(CLOSED))
        pair = self._get(stream, instance)
        before = pair.position if isinstance(pair, EphemeralStream) else pair.least
        if token < before or token > MAX_TOKEN:
            raise TokenOrder(stream, instance, token, before)
        if token == before == pair.position:
            return succeed(None)
        if isinstance(pair, EphemeralStream):
            try:
                self._claim(pair, token)
            except LogError:
                return fail()
            pair.position = token
            self._announce_position(stream, instance, before, token)
            return self._announced(None)
        answered: Deferred[None] = Deferred()
        pair.take(token)
        self._enqueue(Advance(pair, token, [answered]))
        return answered

    # --- tokens of ephemeral streams --------------------------------------------------------

    def _claim_after(self, token: Token) -> Token:
        """Return the token up to which to claim when *token* is in use."""
        return min(token + self._retention.reserved_tokens, MAX_TOKEN)

    def _claim_row(self, pair: EphemeralStream) -> StoredPair:
        return StoredPair(pair.pair_id, pair.stream.name, pair.instance, pair.claimed, 0)

    def _claim(self, pair: EphemeralStream, token: Token) -> None:
        """See to it that *token* is claimed on disk before anybody hears of it.

        Raises:
            LogUnavailable: the disk refused.
        """
        if token > pair.claimed:
            claimed = self._claim_after(token)
            row = self._claim_row(pair)
            row.position = claimed
            self._worker.call(lambda: self._database.write(Commit(pairs=[row])))
            pair.claimed = claimed
        elif (pair.claimed - token) * 2 < self._retention.reserved_tokens:
            self._claim_ahead(pair)

    def _claim_ahead(self, pair: EphemeralStream) -> None:
        """Claim more tokens while there are some left, without waiting."""
        if pair.claiming or pair.claimed >= self._claim_after(pair.position):
            return
        row = self._claim_row(pair)
        row.position = self._claim_after(pair.claimed)
        pair.claiming = True

        def done(_: Freed | None, error: BaseException | None) -> None:
            pair.claiming = False
            if error is not None:
                # not urgent yet: the next append tries again, the last one has to wait for it
                logger.warning(
                    "streams.claim.failed",
                    stream=row.stream,
                    instance=row.instance,
                    reason=str(error),
                )
            else:
                pair.claimed = max(pair.claimed, row.position)

        self._worker.submit(lambda: self._database.write(Commit(pairs=[row])), done)

    # --- commits ----------------------------------------------------------------------------

    def _enqueue(self, item: Item) -> None:
        self._waiting.append(item)
        if self._busy:
            return
        if self._start_call is not None:
            if self._pausing:
                self._pausing = False
                self._start_call.reset(0)
            return
        if self._reactor is None:
            self._start()
        else:
            self._start_call = self._reactor.callLater(0, self._start)

    def _start(self) -> None:
        """Start the next commit, if there is anything to commit and none is under way."""
        if self._start_call is not None:
            if self._start_call.active():
                self._start_call.cancel()
            self._start_call = None
        if self._busy or not (self._waiting or self._owes_disk):
            return
        self._busy = True
        batch = self._gather()
        self._committing = batch.items
        if batch.commit:
            self._worker.submit(
                lambda: self._commit(batch.commit),
                lambda freed, error: self._finished(batch, freed, error),
            )
        else:
            self._finished(batch, Freed(), None)

    def _commit(self, commit: Commit) -> Freed:
        with COMMIT_SECONDS.time():
            return self._database.write(commit)

    @property
    def _owes_disk(self) -> bool:
        """Whether there is something to write for which nobody waits."""
        return bool(
            self._trims or self._expire_transactions or self._shrinking or self._producing.owes_disk
        )

    def _gather(self) -> Batch:
        """Take what waits, up to a bound, and make it ready to be written."""
        now = self._clock_ms()
        batch = gather(take(self._waiting), now)
        self._producing.gather(batch.commit)
        if self._may_clean(now, bool(batch.items)):
            self._cleaned_ms = now
            batch.commit.trims, self._trims = self._trims, {}
            batch.commit.shrink, self._shrinking = self._shrinking, False
        if self._expire_transactions:
            self._expire_transactions = False
            age_ms = int(self._retention.transaction_age_s * 1000)
            batch.commit.expire_before_ms = now - age_ms
        return batch

    def _finished(self, batch: Batch, freed: Freed | None, error: BaseException | None) -> None:
        """Publish what is on disk, or fail those who wait; the next commit is on its way."""
        self._busy = False
        self._committing = []
        if isinstance(error, KnownTransactions):
            self._write_again(batch, error)
            return
        self._decided(batch.items)
        producers = self._producing.finished(batch, error, self._waiting)
        if error is not None:
            self._refused(batch, error)
        else:
            assert freed is not None
            for pair_id, floor in freed.unfinished.items():
                self._trims.setdefault(pair_id, floor)
            self._shrinking |= freed.spare
            for pair_id, rows, size in freed.trimmed:
                pair = self._by_id[pair_id]
                pair.stored.rows -= rows
                pair.stored.size_bytes -= size
                pair.trimming = pair_id in self._trims
                if not pair.trimming:  # its counts are right again
                    self._outbox.append(partial(self._expire_pairs, (pair,)))
            for pair, step in batch.steps:
                self._outbox.append(partial(self._publish, pair, step))
            for item in batch.items:
                self._outbox.append(partial(self._answer, item))
            if batch.steps:
                self._outbox.append(partial(self._expire_pairs, {pair for pair, _ in batch.steps}))
        self._outbox.append(partial(self._producing.go_on, producers))
        if self._waiting:
            self._start()
        elif error is None and self._reactor is not None:
            self._commit_soon(CLEANING_PAUSE_S)
        self._drain()

    def _decided(self, items: Iterable[Item]) -> None:
        """Forget transaction ids as those under way: what becomes of them is known."""
        for item in items:
            if isinstance(item, Append) and item.transaction_id is not None:
                del self._in_flight[item.pair.stored.stream, item.transaction_id]

    def _write_again(self, batch: Batch, known: KnownTransactions) -> None:
        """Answer what another server has taken; all else of *batch* goes into the next commit."""
        rest: list[Item] = []
        for item in batch.items:
            key = ("", "")
            if isinstance(item, Append) and item.transaction_id is not None:
                key = (item.pair.stored.stream, item.transaction_id)
            if key in known.answers:
                del self._in_flight[key]
                answer: Any = known.answers[key]
                self._outbox += [partial(waiter.callback, answer) for waiter in item.waiting]
            else:
                rest.append(item)
        self._waiting[:0] = rest
        self._owe_again(batch)
        self._producing.owe_again(batch.commit)
        self._start()
        self._drain()

    def _owe_again(self, batch: Batch) -> None:
        """Have that written again of *batch* for which nobody waits."""
        for pair_id, floor in batch.commit.trims.items():
            self._trims[pair_id] = max(floor, self._trims.get(pair_id, 0))

    def _may_clean(self, now_ms: int, others_wait: bool) -> bool:
        """Return whether a commit may clean up, too: now and then, if somebody waits for it."""
        idle_ms = abs(now_ms - self._cleaned_ms)
        return self._reactor is None or not others_wait or idle_ms >= CLEANING_INTERVAL_MS

    def _refused(self, batch: Batch, error: BaseException) -> None:
        logger.error(
            "streams.commit.failed",
            appends=len(batch.items),
            reason=str(error),
            exc_info=None if isinstance(error, LogError) else error,
        )
        self._owe_again(batch)
        pairs = {item.pair for item in batch.items if names_tokens(item)}
        behind = [item for item in self._waiting if names_tokens(item) and item.pair in pairs]
        if pairs:  # nothing passes what was refused, which may come again
            self._decided(behind)
            gone = set(map(id, behind))
            self._waiting = [item for item in self._waiting if id(item) not in gone]
            self._outbox.append(partial(self._take_back, pairs))
        for item in [*batch.items, *behind]:
            if isinstance(item, Barrier):
                self._outbox.append(partial(self._answer, item))
            else:
                self._outbox += [partial(waiter.errback, error) for waiter in item.waiting]

    def _take_back(self, pairs: Iterable[DurableStream]) -> None:
        """Let tokens that a caller has named, and that were refused, be named again."""
        last = {pair: pair.position for pair in pairs}
        for item in (*self._committing, *self._waiting):
            if isinstance(item, Append | Advance) and item.pair in last:
                last[item.pair] = item.last
        for pair, token in last.items():
            pair.least = token

    def _publish(self, pair: DurableStream, step: Block | Advance) -> None:
        if isinstance(step, Block):
            pair.published(step, self._retention.recent_bytes)
            self._tell_block(step)
        elif step.token > pair.position:
            stored = pair.stored
            before = stored.position
            stored.position = step.token
            self._tell_position(stored.stream, stored.instance, before, step.token)

    def _answer(self, item: Item) -> None:
        answer: Any = None
        if isinstance(item, Append):
            answer = item.answer
        elif isinstance(item, Claim):
            answer = self._producing.claimed(item)
        for answered in item.waiting:
            answered.callback(answer)

    # --- what goes --------------------------------------------------------------------------

    def trim(
        self, stream: StreamName, instance: InstanceName, upto: Token, why: str = ACKNOWLEDGED
    ) -> None:
        """Forget rows whose token is at most *upto*."""
        pair = self._pairs.get((stream, instance))
        if isinstance(pair, EphemeralStream):
            pair.trim(upto, why)
        elif pair is not None:
            upto = min(upto, pair.position)
            if upto > pair.floor:
                pair.bound = why
                self._raise_floor(pair, upto)
                self._commit_soon()

    def _raise_floor(self, pair: DurableStream, floor: Token) -> None:
        """Tell readers first, then the disk: nobody reads what is about to go."""
        stored = pair.stored
        pair.raise_floor(floor)
        self.gaps.keep((stored.stream, stored.instance), floor, MAX_TOKEN)
        pair.trimming = True
        self._trims[pair.stored.id] = floor

    def expire(self) -> None:
        """Let go of what is beyond retention."""
        now = self._clock_ms()
        self._transactions.expire(now)
        self._expire_transactions = True
        self._producing.forget(self._expire_producers(now))
        for pair in self._pairs.values():
            if isinstance(pair, EphemeralStream):
                pair.expire(now)
        self._expire_pairs(self._by_id.values())

    def _expire_pairs(self, pairs: Iterable[DurableStream]) -> None:
        if self._closed:
            return  # what is beyond retention goes with the first commit of the next process
        now = self._clock_ms()
        for pair in pairs:
            try:
                floor = pair.beyond_retention(now)
            except LogError as error:
                logger.error("streams.expire.failed", stream=pair.stored.stream, reason=str(error))
                continue
            if floor > pair.floor:
                self._raise_floor(pair, floor)
        self._commit_soon()

    def _commit_soon(self, pause_s: float = 0) -> None:
        """Start a commit for what goes, unless one comes anyway."""
        if not (self._closed or self._busy or self._start_call is not None):
            if self._reactor is None:
                self._start()
            elif self._owes_disk:
                self._pausing = pause_s > 0
                self._start_call = self._reactor.callLater(pause_s, self._start)

    def _note_damage(self, stored: StoredPair, gap: Gap) -> None:
        """Take note that the rows of *gap* cannot be read, for all who come by."""
        if gap.upto > gap.after and self.gaps.add((stored.stream, stored.instance), gap):
            logger.error(
                "streams.block.damaged",
                stream=stored.stream,
                instance=stored.instance,
                after=gap.after,
                upto=gap.upto,
                reason=gap.detail,
            )

    # --- the end ----------------------------------------------------------------------------

    def flush(self) -> Deferred[None]:
        """Fire once everything appended so far is on disk, or has been refused."""
        if not (self._busy or self._waiting):
            return succeed(None)
        answered: Deferred[None] = Deferred()
        self._waiting.append(Barrier([answered]))
        self._start()
        return answered

    def close(self) -> Deferred[None]:
        """Flush, release the lock and the files; later appends are refused."""
        if self._closed:
            return succeed(None)
        flushed = self.flush()
        self._close()
        return flushed.addCallback(self._release)

    def _release(self, _: None) -> Deferred[None] | None:
        """Give back the tokens that were claimed and not used; close everything."""
        last = self._last_commit()
        try:
            self._worker.call(lambda: self._database.write(last))
        except LogError as error:
            logger.warning("streams.close.failed", reason=str(error))
        self._let_go()
        return None

    def _last_commit(self) -> Commit:
        """Return what is written when everything else has been."""
        rows = []
        for pair in self._pairs.values():
            if isinstance(pair, EphemeralStream) and pair.claimed:
                row = self._claim_row(pair)
                row.position = pair.position
                rows.append(row)
        last = Commit(pairs=rows, trims=self._trims)
        self._producing.gather(last)
        return last

    def _let_go(self) -> None:
        """Stop the threads and close the database; what is under way is waited for."""
        self._worker.stop()
        self._pages.close()
        self._database.close()
