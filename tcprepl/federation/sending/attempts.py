"""One attempt to send: which transaction goes, and what becomes of it (protocol.md section 14).

`tcprepl.federation.sending.sender` says when a destination has its turn. An attempt takes the
transaction that was begun earlier, or makes a new one, sends it, and acts on the answer as
`tcprepl.federation.sending.destination` judges it. Everything that has to survive a crash is on
disk before the request leaves, and after each verdict.

What is done before, during and after a request shares what is in flight, and each step is about
what the one before has left: so this may be longer than other modules.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeAlias

from twisted.python.failure import Failure

from tcprepl import metrics
from tcprepl.federation.sending.backoff import BackoffPolicy
from tcprepl.federation.sending.commit_queue import OutboxUnavailable
from tcprepl.federation.sending.destination import Destination, Held, Verdict
from tcprepl.federation.sending.lanes import Entry
from tcprepl.federation.sending.outbox import StoredOutbox
from tcprepl.federation.sending.stored import (
    QUARANTINED,
    SET_ASIDE,
    Refusal,
    StoredTransaction,
)
from tcprepl.federation.sending.writes import DISK_RETRY_MS, Writes
from tcprepl.federation.wire.answer import Answer, Meaning
from tcprepl.federation.wire.failures import NotReached, RequestFailed
from tcprepl.federation.wire.transaction import TransactionLimits, build_body
from tcprepl.ids import ServerName
from tcprepl.logger import get_logger

logger = get_logger(__name__)

#: EDUs read back from disk at once.
LOAD_EDUS = 200
#: Age from which a transaction with expired EDUs that never left is not sent as it was.
STALE_TRANSACTION_MS = 600_000

#: A new transaction, of whom it is for, and how often what waited for it had been thrown away.
Prepared: TypeAlias = tuple[Destination, StoredTransaction, int]

#: Types of EDUs that metrics tell apart; others, which a foreign writer may invent, are "other".
_MAX_TYPES = 64


class TransactionTransport(Protocol):
    """How transactions leave (`tcprepl.federation.wire.transport.FederationTransport`)."""

    async def send_transaction(
        self, destination: ServerName, transaction_id: str, body: bytes
    ) -> Answer:
        """Send one; raises `NotReached` or `RequestFailed`."""
        ...


class Attempts:
    """Makes attempts; keeps count of what is held in memory.

    Attributes:
        held: EDUs that are held in memory, all destinations together.
        sent_by_type: EDUs that were accepted, by type.
        sent_transactions: Transactions that were accepted.
    """

    def __init__(
        self,
        outbox: StoredOutbox,
        transport: TransactionTransport,
        server_name: ServerName,
        *,
        limits: TransactionLimits,
        backoff: BackoffPolicy,
        chance: random.Random,
        now_ms: Callable[[], int],
        wall_ms: Callable[[], int],
        writes: Writes,
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        """Make the attempts of one sender.

        Args:
            outbox: Where everything that waits is.
            transport: How transactions leave.
            server_name: Who we are.
            limits: What a transaction may hold.
            backoff: How long to wait after failures.
            chance: Source of chance for spreading.
            now_ms: The time by which things grow old, in ms.
            wall_ms: The time of day in ms since 1970, for what others read.
            writes: Writes what is not waited for.
            later: Calls a function when this turn has ended.
        """
        self.held = 0
        self.sent_by_type: dict[str, int] = {}
        self.sent_transactions = 0
        self._outbox = outbox
        self._transport = transport
        self._server_name = server_name
        self._limits = limits
        self._policy = backoff
        self._chance = chance
        self._now_ms = now_ms
        self._wall_ms = wall_ms
        self._writes = writes
        self._later = later
        #: Transactions that were accepted in this turn, which is not written yet.
        self._ended: dict[Destination, StoredTransaction] = {}
        # Two starts never share an id, whatever the clock says.
        self._prefix = f"{now_ms()}-{chance.getrandbits(32):08x}"
        self._transactions = 0

    def prepare(
        self, destinations: Iterable[Destination], prepared: list[Prepared]
    ) -> list[Destination]:
        """Make a new transaction for each of whom all that waits is in memory: the usual case.

        Args:
            destinations: Those that have their turn.
            prepared: Takes what may be sent once it is on disk that this begins.

        Returns:
            The others, of whom `attempt` has to find out.
        """
        others: list[Destination] = []
        now_ms = self._now_ms()
        wall_ms = self._wall_ms()
        written = not self._ended
        for destination in destinations:
            if destination.stored or destination.held is not Held.ALL:
                others.append(destination)
                continue
            if not written and destination in self._ended:
                self.write_ended()
                written = True
            transaction = self._take(destination, now_ms, wall_ms)
            if transaction is None:
                others.append(destination)
            else:
                prepared.append((destination, transaction, destination.purges))
        return others

    async def not_begun(self, destination: Destination, failure: Failure, *, alone: bool) -> None:
        """Act on it that nothing of what was prepared is on disk: who is to blame shows *alone*."""
        if not alone:
            destination.outdate()
            await self.attempt(destination)
        elif failure.check(OutboxUnavailable):
            self._refused(destination, failure.getErrorMessage())
        else:
            failure.raiseException()

    async def attempt(self, destination: Destination) -> None:
        """Send one transaction, new or begun earlier, and act on what comes of it."""
        try:
            transaction = await self._transaction(destination)
        except OutboxUnavailable as failed:
            self._refused(destination, str(failed))
            return
        if transaction is not None:
            await self.send(destination, transaction)

    async def send(self, destination: Destination, transaction: StoredTransaction) -> None:
        """Send one that is on disk and that *destination* has begun; act on what comes of it."""
        edus = [entry[2] for entry in transaction.entries]
        body = build_body(
            self._server_name, transaction.origin_server_ts, edus, limits=self._limits
        )
        try:
            answer = await self._transport.send_transaction(
                destination.name, transaction.transaction_id, body
            )
        except NotReached as failed:
            if destination.in_flight is transaction:
                verdict = destination.judge_not_reached()
                self._failed(destination, transaction, verdict, str(failed))
        except RequestFailed as failed:
            if destination.in_flight is transaction:
                verdict = destination.judge_unanswered()
                self._failed(destination, transaction, verdict, str(failed))
        else:
            # Otherwise it was purged meanwhile.
            if destination.in_flight is transaction:
                self._answered(destination, transaction, answer)

    def _refused(self, destination: Destination, reason: str) -> None:
        """Note that the disk refuses; that is not written down."""
        logger.error("federation.outbox.unavailable", error=reason)
        wait_ms = int(DISK_RETRY_MS * self._chance.uniform(1.0, 1.2))
        destination.backoff.kept_waiting(self._now_ms(), wait_ms, reason)
        self.forget_memory(destination)
        destination.outdate()

    def gave_up(self, destination: Destination, reason: str) -> None:
        """Note that an attempt ended in a way that nobody expected: what was sent is unknown."""
        self.leave_to_disk(destination)
        self._note_failure(destination, reason)

    def leave_to_disk(self, destination: Destination) -> None:
        """Let only the disk say what there is for *destination*; what is under way may arrive."""
        if destination.in_flight is not None:
            destination.judge_unanswered()
        self.forget_memory(destination)
        destination.outdate()

    def forget_memory(self, destination: Destination) -> None:
        """Let *destination* be on disk only."""
        self.held -= destination.forget_memory()

    def forget_queue(self, destination: Destination) -> None:
        """Let what waits for *destination* be on disk only."""
        self.held -= destination.forget_queue()

    # -- which transaction --------------------------------------------------------------------

    async def _transaction(self, destination: Destination) -> StoredTransaction | None:
        """Return the transaction to send, which is on disk: one begun earlier, or a new one."""
        if destination in self._ended:
            self.write_ended()
        while True:
            if destination.held is Held.OUTDATED:
                self.forget_queue(destination)
            if destination.stored:
                stored = await self._stored(destination)
                if stored is not None:
                    return stored
            purges = destination.purges
            if destination.held is not Held.ALL:
                await self._fill(destination)
                if destination.purges != purges:
                    self.forget_queue(destination)
                    return None
            transaction = self._take(destination, self._now_ms(), self._wall_ms())
            if transaction is not None:
                await self._outbox.begin([(destination.name, transaction)])
                if destination.purges != purges:
                    return None
                destination.begin(transaction)
                return transaction
            if destination.held is not Held.ALL:
                continue  # all that was read back has expired
            await self._next_round(destination)
            return None

    async def _stored(self, destination: Destination) -> StoredTransaction | None:
        """Return the transaction that was begun, unless it need not be sent as it was."""
        purges = destination.purges
        stored = await self._outbox.load_transaction(destination.name)
        if destination.purges != purges:
            return None
        destination.loaded(stored)
        if stored is None or (stored.entries and not self._is_stale(stored)):
            return stored
        self._dissolve(destination, stored)
        return None

    def _is_stale(self, transaction: StoredTransaction) -> bool:
        """Whether *transaction*, which certainly never arrived, holds what has expired."""
        now_ms = self._now_ms()
        return (
            not transaction.uncertain
            and self._wall_ms() - transaction.origin_server_ts > STALE_TRANSACTION_MS
            and any(0 < entry[1] <= now_ms for entry in transaction.entries)
        )

    async def _fill(self, destination: Destination) -> None:
        """Read back what waits on disk only, until a transaction can be full."""
        while (
            destination.held is not Held.ALL and len(destination.queue or ()) < destination.max_edus
        ):
            loaded = await self._outbox.load(
                destination.name,
                destination.held_upto,
                LOAD_EDUS,
                any_put_off=destination.put_off > 0,
            )
            if len(loaded) < LOAD_EDUS and destination.held is Held.OLDEST:
                destination.held = Held.ALL
            for entry in loaded:
                self.held += destination.put(entry)
            if destination.held is Held.OUTDATED:
                break

    def _take(
        self, destination: Destination, now_ms: int, wall_ms: int
    ) -> StoredTransaction | None:
        """Take out of the queue what goes next; what has expired is forgotten."""
        expired: list[Entry] = []
        entries = destination.take(now_ms, expired)
        self.held -= len(entries) + len(expired)
        if expired:
            metrics.DROPPED.labels("edu", "expired").inc(len(expired))
            ids = [entry[0] for entry in expired]
            self._writes.persist(destination, self._outbox.remove, destination.name, ids)
        if not entries:
            return None
        self._transactions += 1
        return StoredTransaction(f"{self._prefix}-{self._transactions}", wall_ms, entries)

    async def _next_round(self, destination: Destination) -> None:
        """Let what was set aside or put off be what is sent next, if it is time.

        What was refused without being certainly to blame is tried again when the remote has
        taken something since, or after a while.
        """
        search = destination.search
        now_ms = self._now_ms()
        if search is not None and search.set_aside:
            if not search.has_new_evidence and not search.rested:
                search.rested = True
                count = len(search.suspects)
                self._back_off(
                    destination,
                    f"it takes none of {count} EDUs" if count > 1 else "it refuses the EDU",
                    refusing=not search.only_us,
                )
                return
            if search.has_new_evidence or now_ms >= destination.backoff.next_ms:
                await self.all_written(destination)
                await self._outbox.release(destination.name, SET_ASIDE)
                search.round_ended()
                destination.outdate()
                return
        if destination.put_off and now_ms >= destination.backoff.next_ms:
            await self.all_written(destination)
            taken, left = await self._outbox.take_back(destination.name)
            destination.stored, destination.put_off = taken, left
            # What has one of its keys waits for it, on disk.
            destination.outdate()

    async def release(self, destination: Destination, *marks: str) -> int:
        """Let what has one of *marks* wait again, to be searched anew; return how many that are.

        Raises:
            OutboxUnavailable: The disk refused; all is as it was.
        """
        # What an answer sets aside while the disk works is of a search that begins then.
        search, destination.search = destination.search, None
        try:
            count = await self._outbox.release(destination.name, *marks)
        except OutboxUnavailable:
            destination.search_on(search)
            raise
        if count:
            destination.outdate()
        return count

    async def all_written(self, destination: Destination) -> None:
        """Wait until what became of the transactions of *destination* is on disk.

        Raises:
            OutboxUnavailable: The disk has refused some of it, which is tried again.
        """
        await self._outbox.flush()
        if self._writes.owes(destination):
            raise OutboxUnavailable(
                f"{self._outbox.where}: what became of a transaction is not written yet"
            )

    # -- what became of it --------------------------------------------------------------------

    def _answered(
        self,
        destination: Destination,
        transaction: StoredTransaction,
        answer: Answer,
    ) -> None:
        """Act on an answer."""
        verdict = destination.judge(answer)
        if verdict is Verdict.ACCEPTED:
            self._accepted(destination, transaction)
            return
        if answer.meaning() is Meaning.REFUSED:
            self._answers(destination)
        if verdict is Verdict.HALVE:
            logger.info(
                "federation.transaction.halved",
                destination=destination.name,
                edus=len(transaction.entries),
                answer=answer.describe(),
            )
            self._dissolve(destination, transaction)
        elif verdict is Verdict.QUARANTINE:
            self._quarantine(destination, transaction, answer)
        elif verdict is Verdict.SET_ASIDE:
            assert destination.search is not None
            destination.search.set_aside = True
            self._set_aside(destination, transaction, answer, SET_ASIDE)
        else:
            search = destination.search
            refusing = verdict is Verdict.PUT_OFF or (
                verdict is Verdict.DISSOLVE and search is not None and not search.only_us
            )
            self._failed(
                destination,
                transaction,
                verdict,
                answer.describe(),
                answer.retry_after_ms,
                refusing=refusing,
            )

    def _accepted(self, destination: Destination, transaction: StoredTransaction) -> None:
        destination.accepted(self._now_ms(), self._limits)
        name = destination.name
        if not self._ended:
            self._later(self.write_ended)
        self._ended[destination] = transaction
        backoff = destination.backoff
        if (backoff.failures or backoff.interval_ms) and backoff.cleared():
            self._writes.persist(destination, self._outbox.set_backoff, name, backoff)
            logger.info("federation.destination.recovered", destination=name)
        self.sent_transactions += 1

    def write_ended(self) -> None:
        """Have it written which transactions were accepted in this turn."""
        ended, self._ended = self._ended, {}
        if not ended:
            return
        transactions = ended.values()
        self._count([entry[2].edu_type for one in transactions for entry in one.entries])
        written = [(one.name, ended[one].transaction_id) for one in ended]

        def one_by_one(_: Failure) -> None:
            for destination, transaction in zip(ended, written, strict=True):
                self._writes.persist(destination, self._outbox.finish, [transaction])

        _ = self._outbox.finish(written).addErrback(one_by_one)

    def _count(self, edu_types: list[str]) -> None:
        """Count EDUs that were accepted."""
        sent = self.sent_by_type
        for edu_type, count in Counter(edu_types).items():
            counted = edu_type if edu_type in sent or len(sent) < _MAX_TYPES else "other"
            sent[counted] = sent.get(counted, 0) + count

    def sent_edus(self) -> Iterator[tuple[tuple[str], float]]:
        """Return how many EDUs of each type were accepted, for metrics."""
        for edu_type, count in self.sent_by_type.items():
            yield (edu_type,), float(count)

    def _answers(self, destination: Destination) -> None:
        """Note that a remote that was away answers: nothing has to wait for its return."""
        if not destination.backoff.refusing and destination.backoff.cleared():
            self._writes.persist(
                destination, self._outbox.set_backoff, destination.name, destination.backoff
            )

    def _quarantine(
        self, destination: Destination, transaction: StoredTransaction, answer: Answer
    ) -> None:
        """Keep the one EDU of *transaction*, which the remote will not take."""
        name = destination.name
        edu = transaction.entries[0][2]
        logger.error(
            "federation.edu.refused",
            destination=name,
            edu_type=edu.edu_type,
            content_bytes=len(edu.content),
            answer=answer.describe(),
            hint=f"it is kept in quarantine; tcprepl fed show {name} shows it, "
            f"fed retry {name} --quarantined sends it again, fed drop {name} drops it",
        )
        metrics.DROPPED.labels("edu", "quarantined").inc()
        destination.quarantined += 1
        self._set_aside(destination, transaction, answer, QUARANTINED)

    def _set_aside(
        self, destination: Destination, transaction: StoredTransaction, answer: Answer, mark: str
    ) -> None:
        destination.in_flight = None
        self._writes.persist(
            destination,
            self._outbox.set_aside,
            destination.name,
            transaction.transaction_id,
            mark,
            Refusal(self._now_ms(), answer.describe()),
        )

    def _put_off(self, destination: Destination, transaction: StoredTransaction) -> None:
        """Keep *transaction*, which may have arrived, as it is; others go meanwhile."""
        destination.put_off += 1
        self._writes.persist(
            destination, self._outbox.put_off, destination.name, transaction.transaction_id
        )

    def _dissolve(self, destination: Destination, transaction: StoredTransaction) -> None:
        """Let the EDUs of a transaction wait again, from the disk, in their old order."""
        destination.in_flight = None
        destination.outdate()
        self.forget_memory(destination)
        self._writes.persist(
            destination, self._outbox.dissolve, destination.name, transaction.transaction_id
        )

    def _failed(
        self,
        destination: Destination,
        transaction: StoredTransaction,
        verdict: Verdict,
        reason: str,
        retry_after_ms: int | None = None,
        *,
        refusing: bool = False,
    ) -> None:
        """Note a failure: memory is let go, the next try waits its time."""
        name = destination.name
        self._back_off(destination, reason, retry_after_ms, refusing=refusing)
        if verdict is Verdict.RETRY:
            self.forget_memory(destination)
        elif verdict is Verdict.PUT_OFF:
            destination.in_flight = None
            self.forget_memory(destination)
            self._put_off(destination, transaction)
        else:
            self._dissolve(destination, transaction)
            if refusing and destination.search is not None:
                # What was refused alone waits its time; the others may be tried sooner.
                destination.search.set_aside = destination.search.rested = True
                self._writes.persist(destination, self._outbox.set_aside_again, name)
        logger.info(
            "federation.transaction.failed",
            destination=name,
            transaction_id=transaction.transaction_id,
            edus=len(transaction.entries),
            reason=reason,
            failures=destination.backoff.failures,
            retry_s=round(destination.backoff.interval_ms / 1000, 1),
        )

    def _back_off(
        self,
        destination: Destination,
        reason: str,
        retry_after_ms: int | None = None,
        *,
        refusing: bool = False,
    ) -> None:
        self._note_failure(destination, reason, retry_after_ms, refusing=refusing)
        self._writes.persist(
            destination, self._outbox.set_backoff, destination.name, destination.backoff
        )

    def _note_failure(
        self,
        destination: Destination,
        reason: str,
        retry_after_ms: int | None = None,
        *,
        refusing: bool = False,
    ) -> None:
        destination.backoff.failed(
            self._now_ms(),
            self._policy,
            self._chance.uniform,
            reason,
            retry_after_ms,
            refusing=refusing,
        )
