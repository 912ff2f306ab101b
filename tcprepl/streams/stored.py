"""The log in a database: one writer thread, group commit (protocol.md section 7).

Durable streams: listeners hear of rows, and appends are answered, once they are on disk
(`tcprepl.streams.group_commit`). The newest blocks are also in memory.

Ephemeral streams are in memory (`MemoryStream`). Only the highest token that they may have
given out is on disk, claimed many at a time; a new process begins above it.

`tcprepl.streams.sqlite` and `tcprepl.streams.postgresql` put it on a database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import ClassVar, Final

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime

from tcprepl.background import whoever_waits
from tcprepl.clocks import resumed_ms
from tcprepl.errors import LogError, LogUnavailable, ProducerError, TokenOrder
from tcprepl.ids import InstanceName, Pair, ProducerName, StreamName, Token
from tcprepl.limits import MAX_TOKEN
from tcprepl.logger import get_logger
from tcprepl.storage.worker import InlineWorker, Worker
from tcprepl.streams.base import CLOSED
from tcprepl.streams.blocks import assign_tokens
from tcprepl.streams.commits import (
    Advance,
    Append,
    Claim,
)
from tcprepl.streams.durable import DurableStream
from tcprepl.streams.engine import Commit, Engine, Freed, StoredPair
from tcprepl.streams.gaps import Gap, Gaps
from tcprepl.streams.group_commit import GroupCommit
from tcprepl.streams.json_rows import JsonRows
from tcprepl.streams.log import ACKNOWLEDGED, Appended
from tcprepl.streams.memory import EphemeralStream
from tcprepl.streams.pages import PageCache
from tcprepl.streams.producers import Produced, ProducerState
from tcprepl.streams.registry import Registry
from tcprepl.streams.retention import Retention

logger = get_logger(__name__)

#: Pairs that are looked at in one step for what is beyond retention: each may be read from disk.
_PAIRS_A_STEP: Final = 50


class StoredLog(GroupCommit):
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
        super().__init__(
            database, worker, registry, clock_ms, retention or Retention(), reactor, gaps
        )
        self._pages = PageCache(reading_worker or InlineWorker(), ahead=self.reads_ahead)
        self._pairs: dict[Pair, DurableStream | EphemeralStream] = {}
        self._next_id = database.first_id
        self._closing: Deferred[None] | None = None
        try:
            self._load()
        except BaseException:
            self._close_database()
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
        start.shrink = True  # a process that was killed may have left pages to be given back
        freed = self._database.write(start)
        self._shrinking |= freed.spare
        self._tell_damage(freed)

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

    def may_begin(self, stream: StreamName, produced: Produced) -> bool:
        """Return whether a run of appends may be made as one: only to a durable stream."""
        return self._registry.get(stream).durable and self._producing.may_begin(produced)

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

    def _expiry_steps(self, now_ms: int) -> Iterator[None]:
        self._expire_transactions = True
        self._producing.forget(self._expire_producers(now_ms))
        durable = tuple(self._by_id.values())
        for start in range(0, len(durable), _PAIRS_A_STEP):
            self._expire_pairs(durable[start : start + _PAIRS_A_STEP])
            yield
        self._commit_soon()
        for pair in tuple(self._pairs.values()):
            if isinstance(pair, EphemeralStream):
                yield from pair.expiring(now_ms)
        yield from self._transactions.expiring(now_ms)

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

    def close(self) -> Deferred[None]:
        """Flush, release the lock and the files; later appends are refused.

        It is done to the end, whoever waits for it.
        """
        if self._closing is None:
            flushed = self.flush()
            self._close()
            self._closing = flushed.addCallback(self._release)
        return whoever_waits(self._closing)

    def _release(self, _: None) -> Deferred[None] | None:
        """Give back the tokens that were claimed and not used; close everything."""
        last = self._last_commit()
        try:
            self._worker.call(lambda: self._database.write(last))
        except LogError as error:
            logger.warning("streams.close.failed", reason=str(error))
        self._close_database()
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

    def _close_database(self) -> None:
        """Stop the threads and close the database; what is under way is waited for."""
        self._worker.stop()
        self._pages.close()
        self._database.close()
