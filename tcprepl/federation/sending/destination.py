"""One destination: what is known of it, what its next transaction holds, what answers mean.

Pure: no clock, no disk, no network. `tcprepl.federation.sending.sender` drives it. A destination
that is up holds what waits in memory; for one that is down everything stays on disk, and only a
few numbers are in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from tcprepl.federation.sending.backoff import Backoff
from tcprepl.federation.sending.lanes import Entry, LaneQueue
from tcprepl.federation.sending.search import MAX_SUSPECTS, Search
from tcprepl.federation.sending.stored import StoredTransaction
from tcprepl.federation.wire.answer import Answer, Meaning
from tcprepl.federation.wire.transaction import (
    ENVELOPE_BYTES,
    TransactionLimits,
    edu_bytes,
)
from tcprepl.ids import ServerName

#: EDUs of one destination that are held in memory; the rest is on disk only.
MAX_HELD_EDUS = 500
#: Bytes of them.
MAX_HELD_BYTES = 8 * 1024 * 1024
#: EDUs of one destination that are kept in quarantine; beyond it they are tried again and again.
MAX_QUARANTINED = 1_000
#: Transactions of one destination that may be put off at a time.
MAX_PUT_OFF = 4
#: Unclear answers to the same transaction after which the others do not wait for it.
PUT_OFF_AFTER = 2
#: Places in a transaction that are won back by one that was accepted.
REGROW_EDUS = 1
#: Bytes that are won back.
REGROW_BYTES = 65_536


class Verdict(Enum):
    """What becomes of the transaction that was answered, or was not."""

    #: It is delivered.
    ACCEPTED = auto()
    #: It is sent again just as it is, after a while.
    RETRY = auto()
    #: It is sent again just as it is, after a while; others do not wait for it.
    PUT_OFF = auto()
    #: It did not get there: after a while its EDUs go anew, and may be replaced or expire.
    DISSOLVE = auto()
    #: It was refused: its EDUs go anew at once, fewer at a time.
    HALVE = auto()
    #: Its one EDU was refused and is to blame: it is kept in quarantine.
    QUARANTINE = auto()
    #: Its one EDU was refused, which may not be its fault: it is set aside until the others
    #: were tried.
    SET_ASIDE = auto()


class Held(Enum):
    """How much of what waits for a destination is in memory too."""

    #: All of it.
    ALL = auto()
    #: What is newer than the newest in memory is on disk only.
    OLDEST = auto()
    #: Something older than the newest in memory may be on disk only.
    OUTDATED = auto()


class Destination:
    """A remote server, and what waits for it.

    Invariant: every EDU that waits has an id up to *held_upto* and is in *queue*, or is on disk
    only and *held* says so.

    Attributes:
        name: Its server name.
        queue: What waits in memory.
        held: Whether that is all that waits.
        held_upto: The highest id that was put into the queue.
        in_flight: The transaction that was begun and not ended, if it is in memory.
        stored: Whether there is one on disk that is not in memory.
        put_off: Transactions on disk that others do not wait for.
        quarantined: EDUs on disk that are not sent.
        backoff: Its failures.
        paused: Whether an operator paused it.
        max_edus: EDUs that it takes at once, as far as we have learnt.
        max_bytes: Bytes that it takes at once, as far as we have learnt.
        search: The search for what it refuses, if there is one; it ends when nothing waits.
        last_success_ms: When it accepted something last.
        purges: How often everything that waited was thrown away.
    """

    __slots__ = (
        "_certain_id",
        "_unclear",
        "backoff",
        "held",
        "held_upto",
        "in_flight",
        "last_success_ms",
        "max_bytes",
        "max_edus",
        "name",
        "paused",
        "purges",
        "put_off",
        "quarantined",
        "queue",
        "search",
        "stored",
    )

    def __init__(self, name: ServerName, limits: TransactionLimits) -> None:
        self.name = name
        self.queue: LaneQueue | None = None
        self.held = Held.ALL
        self.held_upto = 0
        self.in_flight: StoredTransaction | None = None
        self.stored = False
        self.put_off = 0
        self.quarantined = 0
        self.backoff = Backoff()
        self.paused = False
        self.max_edus = limits.edus
        self.max_bytes = limits.max_bytes
        self.search: Search | None = None
        self.last_success_ms = 0
        self.purges = 0
        self._certain_id: str | None = None
        self._unclear = 0

    @property
    def has_new_work(self) -> bool:
        """Whether there is something to send, or may be on disk, that was not set aside."""
        return (
            (self.queue is not None and self.queue.length > 0)
            or self.held is not Held.ALL
            or self.stored
            or self.in_flight is not None
        )

    @property
    def has_work(self) -> bool:
        """Whether there is something to send, or may be on disk."""
        search = self.search
        return self.has_new_work or self.put_off > 0 or (search is not None and search.set_aside)

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to know of it."""
        return not (self.has_work or self.paused or self.backoff.failures or self.quarantined)

    @property
    def due_ms(self) -> int:
        """When it may be tried next; 0 for at once."""
        if not self.backoff.interval_ms:
            return 0
        return self.backoff.next_new_ms if self.has_new_work else self.backoff.next_ms

    # -- what waits ---------------------------------------------------------------------------

    def hold(self, entry: Entry, room: bool = True) -> int:
        """Put a new EDU into memory, if there is room and nothing older is on disk only.

        Args:
            entry: The EDU, which is on disk already.
            room: Whether there is room in the process as a whole.

        Returns:
            How many more EDUs are held: 1, 0 if it took the place of another, -1 if that one
            is gone and this one waits on disk.
        """
        queue = self.queue
        if (
            not room
            or self.held is not Held.ALL
            or self.backoff.failures
            or self.put_off
            or (
                queue is not None
                and (queue.size_bytes > MAX_HELD_BYTES or queue.length >= MAX_HELD_EDUS)
            )
        ):
            self._let_rest_be_on_disk()
            return -1 if queue is not None and queue.discard(entry[2]) else 0
        if queue is None:
            queue = self.queue = LaneQueue()
        self.held_upto = entry[0]
        return queue.add(entry)

    def hold_all(self, entries: Sequence[Entry], room: int) -> int:
        """Put new EDUs into memory, as `hold` does each; there is room for *room* in all."""
        queue = self.queue
        waiting, size_bytes = (queue.length, queue.size_bytes) if queue is not None else (0, 0)
        if (
            len(entries) > room
            or self.held is not Held.ALL
            or self.backoff.failures
            or self.put_off
            or size_bytes > MAX_HELD_BYTES
            or waiting + len(entries) > MAX_HELD_EDUS
        ):
            held = 0
            for entry in entries:
                held += self.hold(entry, held < room)
            return held
        # The usual case. What was read at once is bounded, and so is how far this may go over.
        if queue is None:
            queue = self.queue = LaneQueue()
        self.held_upto = entries[-1][0]
        return queue.extend(entries)

    def put(self, entry: Entry) -> int:
        """Put an EDU into memory; returns how many more are held: 1 or 0."""
        if self.queue is None:
            self.queue = LaneQueue()
        self.held_upto = max(self.held_upto, entry[0])
        return self.queue.add(entry)

    def search_on(self, search: Search | None) -> None:
        """Go on with *search*, or with one begun since: what was set aside still is."""
        if self.search is None:
            self.search = search
        elif search is not None and search.set_aside:
            self.search.set_aside = True

    def outdate(self) -> None:
        """Note that something waits on disk that memory may not have; it is read anew."""
        self.held = Held.OUTDATED

    def forget_queue(self) -> int:
        """Forget the queue, as all of it is on disk; returns how many EDUs were held."""
        held = len(self.queue) if self.queue else 0
        if held or self.held is Held.OUTDATED:
            self.held = Held.OLDEST
        self.queue = None
        self.held_upto = 0
        return held

    def purged(self) -> None:
        """Note that nothing is on disk any more; nothing is in memory."""
        self.stored = False
        self.held = Held.ALL
        self.put_off = self.quarantined = 0
        self.search = None

    def forget_memory(self) -> int:
        """Forget the queue and the transaction in flight; returns how many EDUs were held."""
        transaction = self.in_flight
        if transaction is not None:
            self._certain_id = None if transaction.uncertain else transaction.transaction_id
            self.in_flight = None
            self.stored = True
        return self.forget_queue()

    def _let_rest_be_on_disk(self) -> None:
        if self.held is Held.ALL:
            self.held = Held.OLDEST

    def loaded(self, transaction: StoredTransaction | None) -> None:
        """Take the transaction that was on disk into memory; None if there is none."""
        self.stored = False
        self.in_flight = transaction
        if transaction is not None and transaction.transaction_id == self._certain_id:
            transaction.uncertain = False

    def take(self, now_ms: int, expired: list[Entry]) -> list[Entry]:
        """Remove and return what the next transaction holds (see `LaneQueue.take`)."""
        queue = self.queue
        if queue is None or not queue.length:
            return []
        search = self.search
        edus = self.max_edus
        if search is not None and search.limit is not None:
            edus = min(edus, search.limit)
        return queue.take(edus, self.max_bytes - ENVELOPE_BYTES, now_ms, expired)

    # -- answers ------------------------------------------------------------------------------

    def begin(self, transaction: StoredTransaction) -> None:
        """Note that *transaction*, a new one, is about to be sent."""
        self.in_flight = transaction
        self._unclear = 0

    def accepted(self, now_ms: int, limits: TransactionLimits) -> None:
        """Note that it has accepted the transaction in flight."""
        transaction = self.in_flight
        assert transaction is not None
        search = self.search
        if search is not None:
            ids = [entry[0] for entry in transaction.entries]
            search.accepted(ids, self.max_edus)
        self.in_flight = None
        self._unclear = 0
        self.last_success_ms = now_ms
        if self.max_edus != limits.edus:
            self.max_edus = min(limits.edus, self.max_edus + REGROW_EDUS)
        if self.max_bytes != limits.max_bytes:
            self.max_bytes = min(limits.max_bytes, self.max_bytes + REGROW_BYTES)

    def judge(self, answer: Answer) -> Verdict:
        """Return what *answer* means for the transaction in flight; learns from it.

        The transaction's id is given up (all verdicts but `Verdict.RETRY` and
        `Verdict.PUT_OFF`) only after an answer that is definite: of an earlier try that had
        none, nobody knows whether the remote has acted on it, so it goes with the same id
        until the remote accepts it or refuses its content.
        """
        transaction = self.in_flight
        assert transaction is not None
        meaning = answer.meaning()
        transaction.uncertain = transaction.uncertain or answer.repeated
        if meaning is Meaning.ACCEPTED:
            return Verdict.ACCEPTED
        if meaning is Meaning.BUSY:
            return Verdict.RETRY
        if meaning is Meaning.REFUSED:
            return self._judge_refused(transaction, too_large=answer.status == 413)
        if meaning is Meaning.UNCLEAR:
            transaction.uncertain = True
        if transaction.uncertain:
            return self._judge_uncertain(clear=meaning is not Meaning.UNCLEAR)
        return self._judge_denied(transaction, answer.status)

    def judge_not_reached(self) -> Verdict:
        """Return what it means that the transaction in flight did not get there.

        If it was sent before, the remote may have it from then: it keeps its id, so that the
        remote can tell.
        """
        assert self.in_flight is not None
        return Verdict.RETRY if self.in_flight.uncertain else Verdict.DISSOLVE

    def judge_unanswered(self) -> Verdict:
        """Return what it means that the transaction in flight was sent and not answered."""
        assert self.in_flight is not None
        self.in_flight.uncertain = True
        return Verdict.RETRY

    def _judge_refused(self, transaction: StoredTransaction, *, too_large: bool) -> Verdict:
        """Find what it is in *transaction* that the remote will not take."""
        if self.search is None:
            self.search = Search()
        if len(transaction.entries) > 1:
            if too_large:
                self._take_less(transaction)
            self.search.halve(len(transaction.entries))
            return Verdict.HALVE
        edu_id = transaction.entries[0][0]
        if self.quarantined < MAX_QUARANTINED:
            self.search.found(edu_id, self.max_edus)
            return Verdict.QUARANTINE
        self.search.keep(edu_id)
        return Verdict.SET_ASIDE if len(self.search.suspects) < MAX_SUSPECTS else Verdict.DISSOLVE

    def _judge_denied(self, transaction: StoredTransaction, status: int) -> Verdict:
        """Find out whether it is the content of *transaction* that the remote will not take."""
        search = self.search
        if search is None:
            search = self.search = Search()
        entries = transaction.entries
        if len(entries) == 1:
            edu_id = entries[0][0]
            if search.suspect(edu_id, self.max_edus):
                if self.quarantined < MAX_QUARANTINED:
                    search.found(edu_id, self.max_edus)
                    return Verdict.QUARANTINE
                search.keep(edu_id)
        ids = [entry[0] for entry in entries]
        go_on = search.denied(ids, status, was_well=not self.backoff.failures)
        if not go_on or len(search.suspects) >= MAX_SUSPECTS:
            return Verdict.DISSOLVE
        if len(entries) == 1:
            return Verdict.SET_ASIDE
        search.halve(len(entries))
        return Verdict.HALVE

    def _judge_uncertain(self, *, clear: bool) -> Verdict:
        """Keep a transaction that may have arrived as it is, without holding up others."""
        self._unclear += 1
        if self.put_off < MAX_PUT_OFF and (clear or self._unclear >= PUT_OFF_AFTER):
            self._unclear = 0
            return Verdict.PUT_OFF
        return Verdict.RETRY

    def _take_less(self, transaction: StoredTransaction) -> None:
        size = sum(edu_bytes(entry[2]) for entry in transaction.entries)
        self.max_edus = max(1, len(transaction.entries) // 2)
        self.max_bytes = max(2 * ENVELOPE_BYTES, size // 2)
