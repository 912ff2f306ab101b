"""The sender: life, what comes in, who is tried when (protocol.md section 14).

Destinations that have something to send take turns (`tcprepl.federation.sending.turns`); a
bounded number of requests is under way; each destination sends one transaction and goes to the
end of the line. One timer serves all that have to wait.

Everything that waits is in the outbox. What is in memory is a copy for destinations that are
up, bounded per destination and in all.

Whatever begins or ends an attempt passes one loop, and so do the operator's handles: so this may be
longer than other modules.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from tcprepl import metrics
from tcprepl.background import (
    LoopingProcess,
    looping_background_process,
    run_in_background,
    started,
)
from tcprepl.clocks import epoch_s, resumed_ms
from tcprepl.federation.sending.attempts import Attempts, Prepared, TransactionTransport
from tcprepl.federation.sending.backoff import BackoffPolicy
from tcprepl.federation.sending.commit_queue import OutboxUnavailable
from tcprepl.federation.sending.describe import describe_destination
from tcprepl.federation.sending.destination import Destination, Held
from tcprepl.federation.sending.intake import EduIntake
from tcprepl.federation.sending.lanes import Entry
from tcprepl.federation.sending.outbox import StoredOutbox
from tcprepl.federation.sending.sharding import Shard
from tcprepl.federation.sending.stored import QUARANTINED, SET_ASIDE, StoredTransaction, Waiting
from tcprepl.federation.sending.turns import Place, Turns
from tcprepl.federation.sending.writes import Writes
from tcprepl.federation.wire.edu import PRESENCE
from tcprepl.federation.wire.transaction import TransactionLimits
from tcprepl.ids import InstanceName, ServerName, Token
from tcprepl.logger import get_logger

logger = get_logger(__name__)

#: Requests that are under way at once.
MAX_CONCURRENT_REQUESTS = 50
#: EDUs held in memory in all.
MAX_HELD_EDUS_IN_ALL = 200_000
#: How long destinations that wait at the start are spread over, per destination and at most.
_START_SPREAD_MS = 10
_START_SPREAD_MAX_MS = 30_000
#: How long presence is held back so that more of it goes at once, per destination and at most.
_PRESENCE_SPREAD_MS = 20
_PRESENCE_SPREAD_MAX_MS = 10_000
#: How often what has expired is removed from the disk.
_SWEEP_S = 30.0
#: How many of them at once, so that others get at the disk in between.
_SWEEP_EDUS = 5_000
#: Longest wait of the timer, so that a clock that was set does not stop us.
_MAX_SLEEP_S = 60.0


class FederationSender:
    """Sends what the outbox holds.

    Attributes:
        server_name: Who we are.
        outbox: What waits.
        intake: Takes rows from the replication client.
        destinations: Destinations about which there is something to know, and others for a while.
    """

    def __init__(
        self,
        clock: IReactorTime,
        outbox: StoredOutbox,
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
        #: What our time is ahead of the reactor's: it goes on where that of the outbox is.
        self._moved_ms = 0
        if newest_ms := outbox.newest_ms():
            self._moved_ms = resumed_ms(self.now_ms(), newest_ms) - self.now_ms()
        self._limits = limits or TransactionLimits()
        self._chance = chance or random.Random()  # noqa: S311  # spreading, not a secret
        self._turns: Turns[Destination] = Turns(max_concurrent)
        self._timer: IDelayedCall | None = None
        self._timer_ms: int
        self._running: dict[Destination, Deferred[None]] = {}
        #: What was prepared and is not on disk yet.
        self._beginning: dict[Deferred[None], None] = {}
        self._dispatching = False
        self._started = False
        self._writes = Writes(clock, self._poke)
        self._attempts = Attempts(
            outbox,
            transport,
            server_name,
            limits=self._limits,
            backoff=backoff or BackoffPolicy(),
            chance=self._chance,
            now_ms=self.now_ms,
            wall_ms=self._wall_ms,
            writes=self._writes,
            later=partial(clock.callLater, 0),
        )
        self._totals: dict[str, Waiting] = {}
        self._sweeper: LoopingProcess | None = None
        self._sources: list[tuple[metrics.Live, metrics.Source]] = []
        self.intake = EduIntake(
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
        """Return the time by which retries and EDUs grow old, in ms: it never jumps.

        It goes on where it was when the outbox was closed; then the time of day may be another.
        """
        return int(self._clock.seconds() * 1000) + self._moved_ms

    def _wall_ms(self) -> int:
        return int((self._clock.seconds() + epoch_s(self._clock)) * 1000)

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Take up what waits on disk, spread over a while, and send."""
        self._started = True
        stored = self.take_up()
        spread = min(_START_SPREAD_MAX_MS, _START_SPREAD_MS * len(stored))
        for destination in stored:
            if destination.has_work:
                delay_ms = int(self._chance.uniform(0, spread))
                self._poke(destination, delay_ms)
        self._sweeper = looping_background_process(
            self._clock, "federation_outbox_sweep", _SWEEP_S, self._sweep
        )
        attempts = self._attempts
        self._watch(metrics.SENT_TRANSACTIONS, lambda: [((), float(attempts.sent_transactions))])
        self._watch(metrics.SENT_EDUS, lambda: [((), float(sum(attempts.sent_by_type.values())))])
        self._watch(metrics.SENT_EDUS_BY_TYPE, attempts.sent_edus)
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
            destination.held = Held.OLDEST if found.waiting else Held.ALL
            destination.stored = found.in_flight
            destination.put_off = found.put_off
            destination.quarantined = found.quarantined
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
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._writes.stop()
        running = [*self._beginning, *self._running.values()]
        for attempt in running:
            attempt.cancel()
        await DeferredList(running)
        self._attempts.write_ended()
        if self._sweeper is not None:
            await self._sweeper.stop()
        await self.outbox.flush()

    def _watch(self, live: metrics.Live, source: metrics.Source) -> None:
        self._sources.append((live, live.add_source(source)))

    async def _sweep(self) -> None:
        try:
            while await self.outbox.expire(self.now_ms(), _SWEEP_EDUS) == _SWEEP_EDUS:
                pass
            self._totals = await self.outbox.totals()
            quarantined = await self.outbox.all_quarantined()
            for destination in list(self.destinations.values()):
                # What has expired there, or was replaced, is gone.
                destination.quarantined = quarantined.get(destination.name, 0)
                self._forget_if_plain(destination)
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
        lazy: list[Destination] = []
        now_ms = self.now_ms()
        for name, group in by_name.items():
            destination = self._destination(name)
            room = MAX_HELD_EDUS_IN_ALL - self._attempts.held
            try:
                self._attempts.held += destination.hold_all(group, room)
            except Exception:
                logger.exception("federation.edus.not_held", destination=name, edus=len(group))
                self._attempts.leave_to_disk(destination)
            if group[0][2].edu_type == PRESENCE and all(
                entry[2].edu_type == PRESENCE for entry in group
            ):
                lazy.append(destination)
            elif self._started and not destination.paused:
                self._turns.ask(destination, max(now_ms, destination.due_ms), now_ms)
        spread_ms = min(_PRESENCE_SPREAD_MAX_MS, _PRESENCE_SPREAD_MS * len(by_name))
        for destination in lazy:
            self._poke(destination, int(self._chance.uniform(0, spread_ms)))
        self._dispatch()

    def remote_server_up(self, name: ServerName) -> None:
        """Forget the failures of a server that has just been heard of, and try it now."""
        destination = self.destinations.get(name)
        if destination is not None and destination.backoff.cleared():
            self._writes.persist(destination, self.outbox.set_backoff, name, destination.backoff)
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
        if destination.paused or not self._started:
            return
        if not destination.has_work:
            return
        now_ms = self.now_ms()
        self._turns.ask(destination, max(now_ms + delay_ms, destination.due_ms), now_ms)
        self._dispatch()

    def _arm(self) -> None:
        """Set the one timer to the first who waits."""
        due_ms = self._turns.next_due_ms()
        if due_ms is None or not self._started:
            return
        if self._timer is not None:
            if self._timer_ms <= due_ms:
                return
            self._timer.cancel()
        delay_s = min(max(0, due_ms - self.now_ms()) / 1000, _MAX_SLEEP_S)
        self._timer_ms = due_ms
        self._timer = self._clock.callLater(delay_s, self._wake)

    def _wake(self) -> None:
        """Give turns to those who are due."""
        self._timer = None
        self._dispatch()

    def _dispatch(self) -> None:
        """Begin as many attempts as there is room for."""
        if self._dispatching or not self._started:
            return
        self._dispatching = True
        try:
            self._begin_attempts(self.now_ms())
        finally:
            self._dispatching = False
            self._arm()

    def _begin_attempts(self, now_ms: int) -> None:
        while self._started:
            turns: list[Destination] = []
            while (destination := self._turns.begin(now_ms)) is not None:
                turns.append(destination)
            if not turns:
                break
            prepared: list[Prepared] = []
            try:
                others = self._attempts.prepare(turns, prepared)
            except Exception:  # noqa: BLE001  # it is told to whom it concerns
                failure = Failure()
                for destination in turns:  # some were prepared, but the disk knows of none
                    self._ended(failure, destination)
                continue
            for destination in others:
                self._run(destination, self._attempts.attempt(destination))
            if prepared:
                begun = [(one[0].name, one[1]) for one in prepared]
                beginning = maybeDeferred(self.outbox.begin, begun)
                self._beginning[beginning] = None
                _ = beginning.addBoth(self._begun, beginning, prepared)

    def _begun(
        self, result: object, beginning: Deferred[None], prepared: Sequence[Prepared]
    ) -> None:
        """Send what is on disk now."""
        del self._beginning[beginning]
        # Those whose turns end here begin the next ones together.
        outermost = not self._dispatching
        self._dispatching = True
        try:
            for one in prepared:
                try:
                    self._send_begun(*one, result, alone=len(prepared) == 1)
                except Exception:  # noqa: BLE001  # it is told to whom it concerns
                    self._ended(Failure(), one[0])
        finally:
            self._dispatching = not outermost
        if outermost:
            self._dispatch()

    def _send_begun(
        self,
        destination: Destination,
        transaction: StoredTransaction,
        purges: int,
        result: object,
        *,
        alone: bool,
    ) -> None:
        if not isinstance(result, Failure):
            if destination.purges != purges:  # all that waited was thrown away meanwhile
                self._ended(None, destination)
            else:
                destination.begin(transaction)
                self._run(destination, self._attempts.send(destination, transaction))
        elif self._started:
            self._run(destination, self._attempts.not_begun(destination, result, alone=alone))
        else:
            self._turns.end(destination)

    def _run(self, destination: Destination, attempt: Coroutine[Any, Any, None]) -> None:
        try:
            running = started(attempt)
        except Exception:  # noqa: BLE001  # it is told to whom it concerns
            self._ended(Failure(), destination)
            return
        if running is None:
            self._ended(None, destination)
        else:
            self._running[destination] = running
            _ = running.addBoth(self._ended, destination)

    def _ended(self, result: object, destination: Destination) -> None:
        """Let go of an attempt; a failure that nobody expected waits too, and is logged."""
        self._turns.end(destination)
        self._running.pop(destination, None)
        if isinstance(result, Failure):
            if not self._started and result.check(CancelledError):
                return
            self._attempts.gave_up(destination, result.getErrorMessage())
            run_in_background(fail, result)
        if destination.has_work:
            self._poke(destination)
        else:
            destination.search = None
        self._dispatch()

    def _forget_if_plain(self, destination: Destination) -> None:
        if (
            destination.is_plain
            and destination.max_edus == self._limits.edus
            and self._turns.place(destination) is Place.AWAY
        ):
            self.destinations.pop(destination.name, None)

    # -- the operator's handles ---------------------------------------------------------------

    async def retry(self, name: ServerName, *, quarantined: bool = False) -> int:
        """Try *name* now, also with what is in quarantine if that is asked for.

        Returns:
            How many EDUs are tried again that were not to be tried yet.
        """
        await self._attempts.all_written(self._destination(name))
        destination = self._destination(name)
        destination.backoff.due_now()
        self._writes.persist(destination, self.outbox.set_backoff, name, destination.backoff)
        marks = (SET_ASIDE, QUARANTINED) if quarantined else (SET_ASIDE,)
        try:
            count = await self._attempts.release(destination, *marks)
            if quarantined:
                destination.quarantined = 0
        finally:
            self._poke(destination)
        return count

    async def drop(self, name: ServerName) -> int:
        """Forget the EDUs for *name* that are in quarantine; answers how many."""
        count = await self.outbox.drop_quarantined(name)
        destination = self.destinations.get(name)
        if destination is not None:
            destination.quarantined = 0
        return count

    def pause(self, name: ServerName) -> Deferred[None]:
        """Send nothing to *name* until `resume`; what waits is kept."""
        return self.outbox.set_paused(name, True).addCallback(self._paused, name)

    def _paused(self, _: None, name: ServerName) -> None:
        destination = self._destination(name)
        destination.paused = True
        self._turns.withdraw(destination)

    def resume(self, name: ServerName) -> Deferred[None]:
        """Send to *name* again."""
        return self.outbox.set_paused(name, False).addCallback(self._resumed, name)

    def _resumed(self, _: None, name: ServerName) -> None:
        destination = self._destination(name)
        destination.paused = False
        self._poke(destination)

    async def purge(self, name: ServerName) -> int:
        """Forget every EDU for *name*; answers how many."""
        # What is being stored would be in memory later, and leave.
        await self.outbox.flush()
        destination = self._destination(name)
        destination.purges += 1
        # Until it has answered, only the disk says what there is: perhaps a transaction, too.
        self._attempts.leave_to_disk(destination)
        destination.stored = True
        try:
            count = await self.outbox.purge(name)
            destination.purged()
        finally:
            self._poke(destination)
        return count

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
        line = self._describe(name, self.destinations.get(name), on_disk.get(name, {}))
        return {**line, "quarantined": await self.outbox.quarantined(name)}

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
            place=self._turns.place(found),
            transaction_id=found.in_flight.transaction_id if found.in_flight else None,
            wake_ms=self._turns.due_ms(found),
            last_success_ms=found.last_success_ms,
            behind_ms=self._wall_ms() - self.now_ms(),
        )
