"""The commits of a log in a database: what waits goes into one, together.

What is appended while a commit is on its way to the disk goes into the next one; listeners hear of
rows, and appends are answered, once they are there. Tokens are given out at the call, so a commit
that the disk refuses leaves a hole in the tokens and none in the rows that were acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from tcprepl.errors import LogCorrupt, LogError
from tcprepl.ids import StreamName, Token
from tcprepl.logger import get_logger
from tcprepl.metrics import COMMIT_SECONDS
from tcprepl.storage.worker import Worker
from tcprepl.streams.base import BaseLog
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
from tcprepl.streams.engine import TRIMMED_PAIRS, Commit, Engine, Freed, KnownTransactions
from tcprepl.streams.gaps import Gaps
from tcprepl.streams.log import Block
from tcprepl.streams.producing import Producing
from tcprepl.streams.registry import Registry
from tcprepl.streams.retention import Retention

logger = get_logger(__name__)

#: What is appended without a pause shares a commit with what goes this often.
CLEANING_INTERVAL_MS = 250
#: How long the disk is left to others between two commits for which nobody waits.
CLEANING_PAUSE_S = 0.005


class GroupCommit(BaseLog):
    """A log that writes what waits by one commit after the other."""

    def __init__(
        self,
        database: Engine,
        worker: Worker,
        registry: Registry,
        clock_ms: Callable[[], int],
        retention: Retention,
        reactor: IReactorTime | None,
        gaps: Gaps | None,
    ) -> None:
        """Begin with nothing that waits; for the arguments see `StoredLog`."""
        super().__init__(registry, clock_ms, retention, reactor, gaps)
        self._database = database
        self._worker = worker
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
        #: Most items of a commit, while some of them meet damage.
        self._most: int | None = None
        self._start_call: IDelayedCall | None = None

    def _expire_pairs(self, pairs: Iterable[DurableStream]) -> None:
        """Let go of what is beyond retention in *pairs*."""
        raise NotImplementedError

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
        items = take(self._waiting, self._most)
        now = self._clock_ms()
        try:
            batch = gather(items, now)
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            self._finished(Batch(items), None, error)
            return
        self._complete(batch, now)
        self._committing = batch.items
        if batch.commit:
            self._worker.submit(partial(self._commit, batch.commit), partial(self._finished, batch))
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

    def _complete(self, batch: Batch, now: int) -> None:
        """Put into *batch* what there is to write for which nobody waits."""
        self._producing.gather(batch.commit)
        if self._may_clean(now, bool(batch.items)):
            self._cleaned_ms = now
            for pair in tuple(islice(self._trims, TRIMMED_PAIRS)):
                batch.commit.trims[pair] = self._trims.pop(pair)
            batch.commit.shrink, self._shrinking = self._shrinking, False
        if self._expire_transactions:
            self._expire_transactions = False
            age_ms = int(self._retention.transaction_age_s * 1000)
            batch.commit.expire_before_ms = now - age_ms

    def _finished(self, batch: Batch, freed: Freed | None, error: BaseException | None) -> None:
        """Publish what is on disk, or fail those who wait; the next commit is on its way."""
        self._busy = False
        self._committing = []
        if isinstance(error, KnownTransactions):
            self._write_again(batch, self._unanswered(batch, error))
            return
        if isinstance(error, LogCorrupt) and len(batch.items) > 1:
            # By halves: it is refused alone who asks for what the damaged file cannot take.
            self._most = len(batch.items) // 2
            self._write_again(batch, batch.items)
            return
        self._decided(batch.items)
        producers = self._producing.finished(batch, error, self._waiting)
        if error is not None:
            self._refused(batch, error)
        else:
            assert freed is not None
            self._most = self._most * 2 if self._most and self._waiting else None
            for pair_id, floor in freed.unfinished.items():
                self._trims.setdefault(pair_id, floor)
            self._shrinking |= freed.spare
            self._tell_damage(freed)
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

    def _unanswered(self, batch: Batch, known: KnownTransactions) -> list[Item]:
        """Answer what another server has taken of *batch*; return all else."""
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
        return rest

    def _write_again(self, batch: Batch, items: list[Item]) -> None:
        """Put *items* of *batch*, which was not written, into the next commits."""
        self._waiting[:0] = items
        self._owe_again(batch)
        self._producing.owe_again(batch.commit)
        self._start()
        self._drain()

    def _owe_again(self, batch: Batch) -> None:
        """Have that written again of *batch* for which nobody waits."""
        for pair_id, floor in batch.commit.trims.items():
            self._trims[pair_id] = max(floor, self._trims.get(pair_id, 0))
        self._shrinking |= batch.commit.shrink
        self._expire_transactions |= batch.commit.expire_before_ms is not None

    def _tell_damage(self, freed: Freed) -> None:
        for pair_id, reason in freed.damaged:
            whose = {}
            if pair_id is not None:
                stored = self._by_id[pair_id].stored
                whose = {"stream": stored.stream, "instance": stored.instance}
            logger.error("streams.trim.damaged", reason=reason, **whose)

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

    def _commit_soon(self, pause_s: float = 0) -> None:
        """Start a commit for what goes, unless one comes anyway."""
        if not (self._closed or self._busy or self._start_call is not None):
            if self._reactor is None:
                self._start()
            elif self._owes_disk:
                self._pausing = pause_s > 0
                self._start_call = self._reactor.callLater(pause_s, self._start)

    def flush(self) -> Deferred[None]:
        """Fire once everything appended so far is on disk, or has been refused."""
        if not (self._busy or self._waiting):
            return succeed(None)
        answered: Deferred[None] = Deferred()
        self._waiting.append(Barrier([answered]))
        self._start()
        return answered
