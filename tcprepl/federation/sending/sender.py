"""The sender: whose turn it is, and what becomes of each attempt (protocol.md section 14).

Destinations that have something to send stand in one line; a bounded number of requests is
under way; each destination sends one transaction and goes to the end of the line. Those that
have to wait are in one heap with one timer, so thousands that are down cost nothing until
their next try is due.

Everything that waits is in the outbox. What is in memory is a copy for destinations that are
up, bounded per destination and in all.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, ParamSpec, Protocol

import structlog
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tcprepl import metrics
from tcprepl.background import (
    LoopingProcess,
    looping_background_process,
    run_in_background,
)
from tcprepl.federation.sending.backoff import BackoffPolicy
from tcprepl.federation.sending.describe import describe_destination
from tcprepl.federation.sending.destination import Destination, Verdict
from tcprepl.federation.sending.intake import Intake
from tcprepl.federation.sending.lanes import Entry
from tcprepl.federation.sending.outbox import (
    Outbox,
    OutboxUnavailable,
    StoredTransaction,
    Waiting,
)
from tcprepl.federation.sending.sharding import Shard
from tcprepl.federation.wire.edu import PRESENCE
from tcprepl.federation.wire.transaction import TransactionLimits, build_body
from tcprepl.federation.wire.transport import Answer, NotReached, RequestFailed
from tcprepl.ids import InstanceName, ServerName, Token

logger = structlog.get_logger()

P = ParamSpec("P")

#: Requests that are under way at once.
MAX_CONCURRENT_REQUESTS = 50
#: EDUs held in memory in all.
MAX_HELD_EDUS_IN_ALL = 200_000
#: EDUs read back from disk at once.
_LOAD_EDUS = 200
#: How long destinations that wait at the start are spread over, per destination and at most.
_START_SPREAD_MS = 10
_START_SPREAD_MAX_MS = 30_000
#: How long presence is held back so that more of it goes at once, per destination and at most.
_PRESENCE_SPREAD_MS = 20
_PRESENCE_SPREAD_MAX_MS = 10_000
#: Age from which a transaction with expired EDUs is not sent again as it was.
STALE_TRANSACTION_MS = 600_000
#: How often what has expired is removed from the disk.
_SWEEP_S = 30.0
#: How many of them at once, so that others get at the disk in between.
_SWEEP_EDUS = 5_000
#: Wait after the disk refused.
_DISK_RETRY_MS = 5_000
#: Longest wait of the timer, so that a clock that was set does not stop us.
_MAX_SLEEP_S = 60.0


_sent_edus = lru_cache(1_024)(metrics.SENT_EDUS_BY_TYPE.labels)


class TransactionTransport(Protocol):
    """How transactions leave (`tcprepl.federation.wire.transport.FederationTransport`)."""

    async def send_transaction(
        self, destination: ServerName, transaction_id: str, body: bytes
    ) -> Answer:
        """Send one; raises `NotReached` or `RequestFailed`."""
        ...


class FederationSender:
    """Sends what the outbox holds.

    Attributes:
        server_name: Who we are.
        outbox: What waits.
        intake: Takes rows from the replication client.
        destinations: Destinations about which there is something to know.
    """

    def __init__(
        self,
        clock: IReactorTime,
        outbox: Outbox,
        transport: TransactionTransport,
        server_name: ServerName,
        *,
        shard: Shard | None = None,
        limits: TransactionLimits | None = None,
        backoff: BackoffPolicy | None = None,
        max_concurrent: int = MAX_CONCURRENT_REQUESTS,
        acknowledge: Callable[[InstanceName, Token], object] | None = None,
        expiry_ms: Mapping[str, int] | None = None,
        chance: random.Random | None = None,
    ) -> None:
        """Make the sender; nothing is sent before `start`.

        Args:
            clock: Time; its seconds are wall-clock seconds.
            outbox: Where everything that waits is.
            transport: How transactions leave.
            server_name: Who we are.
            shard: Which destinations are ours; all by default.
            limits: What a transaction may hold.
            backoff: How long to wait after failures.
            max_concurrent: Requests under way at once.
            acknowledge: Called with instance and token when rows are on disk.
            expiry_ms: How long EDUs of a type are worth sending.
            chance: Source of chance for spreading.
        """
        self.server_name = server_name
        self.outbox = outbox
        self.destinations: dict[ServerName, Destination] = {}
        self._clock = clock
        self._transport = transport
        self._limits = limits or TransactionLimits()
        self._policy = backoff or BackoffPolicy()
        self._max_concurrent = max_concurrent
        self._chance = chance or random.Random()  # noqa: S311  # spreading, not a secret
        self._ready: deque[Destination] = deque()
        self._sleeping: list[tuple[int, int, Destination]] = []
        self._sequence = 0
        self._timer: IDelayedCall | None = None
        self._timer_ms = 0
        self._running: dict[Destination, Deferred[None]] = {}
        self._dispatching = False
        self._held = 0
        self._started = False
        self._transaction_prefix = f"{self.now_ms()}"
        self._transactions = 0
        self._totals: dict[str, Waiting] = {}
        self._sweeper: LoopingProcess | None = None
        self._sources: list[tuple[metrics.Live, metrics.Source]] = []
        self.intake = Intake(
            clock,
            outbox,
            server_name,
            shard or Shard("", ()),
            self.deliver,
            acknowledge or (lambda instance, token: None),
            now_ms=self.now_ms,
            expiry_ms=expiry_ms,
        )

    def now_ms(self) -> int:
        """Return wall-clock time in ms."""
        return int(self._clock.seconds() * 1000)

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Take up what waits on disk, spread over a while, and send."""
        self._started = True
        now_ms = self.now_ms()
        stored = self.take_up()
        spread = min(_START_SPREAD_MAX_MS, _START_SPREAD_MS * len(stored))
        for destination in stored:
            if destination.has_work:
                self._wake_at(destination, now_ms + int(self._chance.uniform(0, spread)))
        self._sweeper = looping_background_process(
            self._clock, "federation_outbox_sweep", _SWEEP_S, self._sweep
        )
        self._watch(metrics.PENDING_DESTINATIONS, lambda: [((), float(self.pending()))])
        self._watch(
            metrics.PENDING_EDUS,
            lambda: [((), float(sum(lane.edus for lane in self._totals.values())))],
        )
        self._watch(
            metrics.OUTBOX_ROWS,
            lambda: [((lane,), float(found.edus)) for lane, found in self._totals.items()],
        )
        self._watch(
            metrics.OUTBOX_OLDEST_SECONDS,
            lambda: [
                ((lane,), (self.now_ms() - found.oldest_ms) / 1000)
                for lane, found in self._totals.items()
            ],
        )
        logger.info("federation.sender.started", destinations=len(stored))

    def take_up(self) -> list[Destination]:
        """Learn from the outbox what waits for whom; returns the destinations."""
        stored = []
        for name, found in self.outbox.destinations().items():
            destination = self._destination(name)
            destination.complete = not found.waiting
            destination.stored = found.in_flight
            destination.paused = found.paused
            if found.backoff is not None:
                destination.backoff = found.backoff
            stored.append(destination)
        return stored

    async def stop(self) -> None:
        """Stop: give up the requests under way (they are sent again), leave the outbox open."""
        self._started = False
        self.intake.stop()
        for live, source in self._sources:
            live.remove_source(source)
        self._sources = []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sweeper is not None:
            await self._sweeper.stop()
        running = list(self._running.values())
        for attempt in running:
            attempt.cancel()
        await DeferredList(running)
        await self.outbox.flush()

    def _watch(self, live: metrics.Live, source: metrics.Source) -> None:
        self._sources.append((live, live.add_source(source)))

    async def _sweep(self) -> None:
        try:
            while await self.outbox.expire(self.now_ms(), _SWEEP_EDUS) == _SWEEP_EDUS:
                pass
            self._totals = await self.outbox.totals()
        except OutboxUnavailable as failed:
            logger.error("federation.outbox.unavailable", error=str(failed))

    def pending(self) -> int:
        """Return how many destinations have something to send."""
        return sum(destination.has_work for destination in self.destinations.values())

    # -- what comes in ------------------------------------------------------------------------

    def deliver(self, entries: Sequence[Entry]) -> None:
        """Take EDUs that are on disk now."""
        by_name: defaultdict[ServerName, list[Entry]] = defaultdict(list)
        for entry in entries:
            by_name[entry[2].destination].append(entry)
        touched: list[tuple[Destination, bool]] = []
        for name, group in by_name.items():
            destination = self._destination(name)
            self._held += destination.hold_all(group, MAX_HELD_EDUS_IN_ALL - self._held)
            touched.append((destination, any(entry[2].edu_type != PRESENCE for entry in group)))
        if not self._started:
            return
        lazy = min(_PRESENCE_SPREAD_MAX_MS, _PRESENCE_SPREAD_MS * len(touched))
        for destination, urgent in touched:
            self._poke(destination, 0 if urgent else int(self._chance.uniform(0, lazy)))

    def remote_server_up(self, name: ServerName) -> None:
        """Forget the failures of a server that has just been heard of, and try it now."""
        destination = self.destinations.get(name)
        if destination is not None and destination.backoff.cleared():
            self._persist(destination, self.outbox.set_backoff, name, destination.backoff)
            logger.info("federation.destination.up", destination=name)
            self._poke(destination)

    # -- whose turn it is ---------------------------------------------------------------------

    def _destination(self, name: ServerName) -> Destination:
        destination = self.destinations.get(name)
        if destination is None:
            destination = self.destinations[name] = Destination(name, self._limits)
        return destination

    def _poke(self, destination: Destination, delay_ms: int = 0) -> None:
        """Give *destination* its turn as soon as it may have one."""
        if destination.running or destination.ready or destination.paused or not self._started:
            return
        if not destination.has_work:
            self._forget_if_plain(destination)
            return
        now_ms = self.now_ms()
        due_ms = max(now_ms + delay_ms, destination.backoff.next_ms)
        if due_ms > now_ms:
            self._wake_at(destination, due_ms)
            return
        destination.ready = True
        destination.wake_ms = 0
        self._ready.append(destination)
        self._dispatch()

    def _wake_at(self, destination: Destination, due_ms: int) -> None:
        """Poke *destination* at *due_ms*, or earlier if that was asked for already."""
        if destination.wake_ms and destination.wake_ms <= due_ms:
            return
        destination.wake_ms = due_ms
        self._sequence += 1
        heapq.heappush(self._sleeping, (due_ms, self._sequence, destination))
        self._arm()

    def _arm(self) -> None:
        """Set the one timer to the first of the heap."""
        sleeping = self._sleeping
        while sleeping and sleeping[0][2].wake_ms != sleeping[0][0]:
            heapq.heappop(sleeping)
        if not sleeping or not self._started:
            return
        due_ms = sleeping[0][0]
        if self._timer is not None:
            if self._timer_ms <= due_ms:
                return
            self._timer.cancel()
        delay_s = min(max(0, due_ms - self.now_ms()) / 1000, _MAX_SLEEP_S)
        self._timer_ms = due_ms
        self._timer = self._clock.callLater(delay_s, self._wake)

    def _wake(self) -> None:
        """Poke everything that is due."""
        self._timer = None
        sleeping = self._sleeping
        now_ms = self.now_ms()
        while sleeping and sleeping[0][0] <= now_ms:
            due_ms, _, destination = heapq.heappop(sleeping)
            if destination.wake_ms == due_ms:
                destination.wake_ms = 0
                self._poke(destination)
        self._arm()

    def _dispatch(self) -> None:
        """Begin as many attempts as there is room for."""
        if self._dispatching:
            return
        self._dispatching = True
        while self._ready and len(self._running) < self._max_concurrent and self._started:
            destination = self._ready.popleft()
            destination.ready = False
            if destination.paused:
                continue
            destination.running = True
            attempt = Deferred.fromCoroutine(self._attempt(destination))
            self._running[destination] = attempt
            run_in_background(attempt.addBoth, self._ended, destination)
        self._dispatching = False

    def _ended(self, result: object, destination: Destination) -> object:
        """Let go of an attempt; a failure nobody expected waits too, and goes on to be logged."""
        destination.running = False
        del self._running[destination]
        if isinstance(result, Failure):
            if not self._started and result.check(CancelledError):
                return None
            destination.complete = False
            self._held -= destination.spill()
            destination.backoff.failed(
                self.now_ms(), self._policy, self._chance.uniform, result.getErrorMessage()
            )
        self._poke(destination)
        self._dispatch()
        return result

    def _forget_if_plain(self, destination: Destination) -> None:
        if destination.is_plain and destination.max_edus == self._limits.edus:
            self.destinations.pop(destination.name, None)

    def _persist(
        self,
        destination: Destination,
        write: Callable[P, Deferred[None]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Have something written about *destination*; if the disk refuses, again and again."""
        again = partial(write, *args, **kwargs)
        _ = again().addErrback(self._write_again, destination, again)

    def _write_again(
        self, failure: Failure, destination: Destination, write: Callable[[], Deferred[None]]
    ) -> None:
        run_in_background(self._write, failure, destination, write)

    async def _write(
        self, failure: Failure, destination: Destination, write: Callable[[], Deferred[None]]
    ) -> None:
        while True:
            failure.trap(OutboxUnavailable)
            logger.error(
                "federation.outbox.unavailable",
                error=failure.getErrorMessage(),
                destination=destination.name,
                retry_s=_DISK_RETRY_MS / 1000,
            )
            await deferLater(self._clock, _DISK_RETRY_MS / 1000)
            try:
                await write()
            except OutboxUnavailable:
                failure = Failure()
            else:
                break
        # Meanwhile the disk was not what memory took it for.
        destination.reread = True
        self._poke(destination)

    # -- one attempt --------------------------------------------------------------------------

    async def _attempt(self, destination: Destination) -> None:
        """Send one transaction, new or begun earlier, and act on what comes of it."""
        try:
            transaction = await self._transaction(destination)
        except OutboxUnavailable as failed:
            logger.error("federation.outbox.unavailable", error=str(failed))
            destination.backoff.failed(
                self.now_ms(), self._policy, self._chance.uniform, str(failed), _DISK_RETRY_MS
            )
            destination.complete = False
            self._held -= destination.spill()
            return
        if transaction is None:
            return
        edus = [entry[2] for entry in transaction.entries]
        body = build_body(self.server_name, transaction.origin_server_ts, edus, limits=self._limits)
        by_type = Counter([edu.edu_type for edu in edus])
        try:
            answer = await self._transport.send_transaction(
                destination.name, transaction.transaction_id, body
            )
        except NotReached as failed:
            if destination.in_flight is transaction:
                verdict = destination.judge_not_reached()
                self._failed(destination, transaction, verdict, str(failed))
        except RequestFailed as failed:
            self._failed(destination, transaction, Verdict.RETRY, str(failed))
        else:
            self._answered(destination, transaction, answer, by_type)

    async def _transaction(self, destination: Destination) -> StoredTransaction | None:
        """Return the transaction to send: the one begun earlier, or a new one."""
        outbox = self.outbox
        name = destination.name
        purges = destination.purges
        if destination.reread:
            destination.reread = False
            self._held -= destination.let_go()
            destination.complete = False
        if destination.stored:
            stored = await outbox.load_transaction(name)
            destination.stored = False
            if destination.purges != purges:
                return None
            if stored is not None and stored.entries and not self._is_stale(stored):
                destination.in_flight = stored
                return stored
            if stored is not None:
                self._held -= destination.let_go()
                destination.complete = False
                self._persist(destination, outbox.dissolve, name, stored.transaction_id)
        await self._fill(destination)
        if destination.purges != purges:
            self._held -= destination.let_go()
            return None
        expired: list[Entry] = []
        before = len(destination.queue or ())
        entries = destination.take(self.now_ms(), expired)
        self._held -= before - len(destination.queue or ())
        if expired:
            metrics.DROPPED.labels("edu", "expired").inc(len(expired))
            self._persist(destination, outbox.remove, [entry[0] for entry in expired])
        if not entries:
            return None
        self._transactions += 1
        transaction = StoredTransaction(
            f"{self._transaction_prefix}-{self._transactions}", self.now_ms(), entries
        )
        destination.refusals = 0
        await outbox.begin(name, transaction)
        if destination.purges != purges:
            return None
        destination.in_flight = transaction
        return transaction

    async def _fill(self, destination: Destination) -> None:
        """Read back what waits on disk only, until a transaction can be full."""
        while not destination.complete and len(destination.queue or ()) < destination.max_edus:
            loaded = await self.outbox.load(destination.name, destination.held_upto, _LOAD_EDUS)
            if len(loaded) < _LOAD_EDUS:
                destination.complete = True
            for entry in loaded:
                self._held += destination.put(entry)

    def _is_stale(self, transaction: StoredTransaction) -> bool:
        now_ms = self.now_ms()
        return now_ms - transaction.origin_server_ts > STALE_TRANSACTION_MS and any(
            0 < entry[1] <= now_ms for entry in transaction.entries
        )

    def _answered(
        self,
        destination: Destination,
        transaction: StoredTransaction,
        answer: Answer,
        by_type: Mapping[str, int],
    ) -> None:
        """Act on an answer."""
        if destination.in_flight is not transaction:
            return  # purged meanwhile
        name = destination.name
        verdict = destination.judge(answer.status)
        if verdict is Verdict.ACCEPTED:
            self._accepted(destination, transaction, by_type)
        elif verdict is Verdict.SPLIT:
            logger.info(
                "federation.transaction.split",
                destination=name,
                edus=len(transaction.entries),
                next_edus=destination.max_edus,
            )
            self._give_back(destination, transaction)
        elif verdict is Verdict.PARK:
            destination.in_flight = None
            edu = transaction.entries[0][2]
            logger.error(
                "federation.edu.refused",
                destination=name,
                edu_type=edu.edu_type,
                content_bytes=len(edu.content),
                answer=answer.describe(),
                hint=f"it is set aside; tcprepl fed retry {name} sends it again",
            )
            metrics.DROPPED.labels("edu", "set_aside").inc()
            self._persist(destination, self.outbox.park, name, transaction.transaction_id)
        else:
            self._failed(
                destination, transaction, verdict, answer.describe(), answer.retry_after_ms
            )

    def _accepted(
        self,
        destination: Destination,
        transaction: StoredTransaction,
        by_type: Mapping[str, int],
    ) -> None:
        destination.accepted(self.now_ms(), self._limits)
        name = destination.name
        self._persist(destination, self.outbox.finish, name, transaction.transaction_id)
        if destination.backoff.cleared():
            self._persist(destination, self.outbox.set_backoff, name, destination.backoff)
            logger.info("federation.destination.recovered", destination=name)
        metrics.SENT_TRANSACTIONS.inc()
        metrics.SENT_EDUS.inc(len(transaction.entries))
        for edu_type, count in by_type.items():
            _sent_edus(edu_type).inc(count)

    def _give_back(self, destination: Destination, transaction: StoredTransaction) -> None:
        """Let the EDUs of a transaction wait again, from the disk, in their old order."""
        destination.in_flight = None
        self._held -= destination.spill()
        destination.complete = False
        self._persist(
            destination, self.outbox.dissolve, destination.name, transaction.transaction_id
        )

    def _failed(
        self,
        destination: Destination,
        transaction: StoredTransaction,
        verdict: Verdict,
        reason: str,
        retry_after_ms: int | None = None,
    ) -> None:
        """Note a failure: memory is let go, the next try waits its time."""
        if destination.in_flight is not transaction:
            return  # purged meanwhile
        name = destination.name
        backoff = destination.backoff
        backoff.failed(self.now_ms(), self._policy, self._chance.uniform, reason, retry_after_ms)
        if verdict is Verdict.RETRY:
            self._held -= destination.spill()
        elif verdict is Verdict.POSTPONE:
            destination.in_flight = None
            self._held -= destination.spill()
            destination.complete = False
            self._persist(destination, self.outbox.postpone, name, transaction.transaction_id)
        else:
            self._give_back(destination, transaction)
        self._persist(destination, self.outbox.set_backoff, name, backoff)
        logger.info(
            "federation.transaction.failed",
            destination=name,
            transaction_id=transaction.transaction_id,
            edus=len(transaction.entries),
            reason=reason,
            failures=backoff.failures,
            retry_s=round(backoff.interval_ms / 1000, 1),
        )

    # -- the operator's handles ---------------------------------------------------------------

    def retry(self, name: ServerName) -> Deferred[int]:
        """Try *name* now, with what was set aside; answers how many EDUs that was."""
        destination = self._destination(name)
        destination.backoff.due_now()
        self._persist(destination, self.outbox.set_backoff, name, destination.backoff)

        def unparked(count: int) -> int:
            if count:
                destination.reread = True
            self._poke(destination)
            return count

        return self.outbox.unpark(name).addCallback(unparked)

    def pause(self, name: ServerName) -> Deferred[None]:
        """Send nothing to *name* until `resume`; what waits is kept."""
        self._destination(name).paused = True
        return self.outbox.set_paused(name, True)

    def resume(self, name: ServerName) -> Deferred[None]:
        """Send to *name* again."""
        destination = self._destination(name)
        destination.paused = False
        self._poke(destination)
        return self.outbox.set_paused(name, False)

    def purge(self, name: ServerName) -> Deferred[int]:
        """Forget every EDU for *name*; answers how many."""
        destination = self._destination(name)
        destination.purges += 1
        destination.in_flight = None
        self._held -= destination.let_go()
        destination.stored = False
        destination.complete = True
        return self.outbox.purge(name)

    async def describe(self) -> list[dict[str, Any]]:
        """Return what waits for each destination, and why it waits; the oldest first."""
        on_disk = await self.outbox.summary()
        names = on_disk.keys() | {
            name for name, found in self.destinations.items() if not found.is_plain
        }
        lines = [
            self._describe(name, self.destinations.get(name), on_disk.get(name, {}))
            for name in names
        ]
        lines.sort(key=lambda line: (-line["oldest_seconds"], line["destination"]))
        return lines

    async def describe_one(self, name: ServerName) -> dict[str, Any]:
        """Return what waits for *name*, and why it waits."""
        on_disk = await self.outbox.summary(name)
        return self._describe(name, self.destinations.get(name), on_disk.get(name, {}))

    def _describe(
        self, name: ServerName, destination: Destination | None, waiting: Mapping[str, Waiting]
    ) -> dict[str, Any]:
        found = destination or Destination(name, self._limits)
        return describe_destination(
            name,
            waiting,
            found.backoff,
            self.now_ms(),
            paused=found.paused,
            running=found.running,
            in_turn=found.ready,
            transaction_id=found.in_flight.transaction_id if found.in_flight else None,
            wake_ms=found.wake_ms,
            last_success_ms=found.last_success_ms,
        )
