"""One destination: what is known of it, and what its next transaction holds.

Pure: no clock, no disk, no network. `tcprepl.federation.sending.sender` drives it. A destination
that is up holds what waits in memory; for one that is down everything stays on disk, and only a
few numbers are in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from tcprepl.federation.sending.backoff import Backoff
from tcprepl.federation.sending.lanes import Entry, LaneQueue
from tcprepl.federation.sending.outbox import StoredTransaction
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
#: Refusals of the same transaction after which it is split.
SPLIT_AFTER = 3
#: Refusals of a transaction of one EDU after which it lets the others pass.
GIVE_WAY_AFTER = 5
#: Places in a transaction that are won back by one that was accepted.
REGROW_EDUS = 1
#: Bytes that are won back.
REGROW_BYTES = 65_536


class Verdict(Enum):
    """What an answer means for the transaction that it answers."""

    #: It is delivered.
    ACCEPTED = "accepted"
    #: Send it again later, just as it is.
    RETRY = "retry"
    #: It did not get there: its EDUs wait again, and may be replaced or expire.
    DISSOLVE = "dissolve"
    #: It is too much at once: send less.
    SPLIT = "split"
    #: Its one EDU cannot be delivered; the others must not wait for it.
    PARK = "park"
    #: Its one EDU is refused again and again: let the others try first.
    POSTPONE = "postpone"


class Destination:
    """A remote server, and what waits for it.

    Invariant: every EDU that waits has an id up to *held_upto* and is in *queue*, or is on disk
    only and *complete* is false.

    Attributes:
        name: Its server name.
        queue: What waits in memory.
        complete: Whether that is all that waits.
        held_upto: The highest id that was put into the queue.
        in_flight: The transaction that was begun and not ended, if it is in memory.
        stored: Whether there is one on disk that is not in memory.
        backoff: Its failures.
        paused: Whether an operator paused it.
        running: Whether an attempt is under way.
        ready: Whether it stands in the line of those whose turn it is.
        wake_ms: When it is woken next; 0 for not at all.
        max_edus: EDUs that it takes at once, as far as we have learnt.
        max_bytes: Bytes that it takes at once, as far as we have learnt.
        refusals: Refusals of the transaction in flight.
        last_success_ms: When it accepted something last.
        reread: Whether older EDUs than those in memory wait on disk again.
        purges: How often everything that waited was thrown away.
    """

    __slots__ = (
        "backoff",
        "complete",
        "held_upto",
        "in_flight",
        "last_success_ms",
        "max_bytes",
        "max_edus",
        "name",
        "paused",
        "purges",
        "queue",
        "ready",
        "refusals",
        "reread",
        "running",
        "stored",
        "wake_ms",
    )

    def __init__(self, name: ServerName, limits: TransactionLimits) -> None:
        self.name = name
        self.queue: LaneQueue | None = None
        self.complete = True
        self.held_upto = 0
        self.in_flight: StoredTransaction | None = None
        self.stored = False
        self.backoff = Backoff()
        self.paused = False
        self.running = False
        self.ready = False
        self.wake_ms = 0
        self.max_edus = limits.edus
        self.max_bytes = limits.max_bytes
        self.refusals = 0
        self.last_success_ms = 0
        self.reread = False
        self.purges = 0

    @property
    def has_work(self) -> bool:
        """Whether there is something to send, or may be on disk."""
        return (
            bool(self.queue)
            or not self.complete
            or self.reread
            or self.stored
            or self.in_flight is not None
        )

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to know of it."""
        return not (self.has_work or self.running or self.paused or self.backoff.failures)

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
            or not self.complete
            or self.backoff.failures
            or (
                queue is not None
                and (queue.size_bytes > MAX_HELD_BYTES or queue.length >= MAX_HELD_EDUS)
            )
        ):
            self.complete = False
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
            or not self.complete
            or self.backoff.failures
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

    def let_go(self) -> int:
        """Forget the queue, as all of it is on disk; returns how many EDUs were held."""
        held = len(self.queue) if self.queue else 0
        if held:
            self.complete = False
        self.queue = None
        self.held_upto = 0
        return held

    def spill(self) -> int:
        """Forget the queue and the transaction in flight; returns how many EDUs were held."""
        if self.in_flight is not None:
            self.in_flight = None
            self.stored = True
        return self.let_go()

    def take(self, now_ms: int, expired: list[Entry]) -> list[Entry]:
        """Remove and return what the next transaction holds (see `LaneQueue.take`)."""
        if not self.queue:
            return []
        return self.queue.take(self.max_edus, self.max_bytes - ENVELOPE_BYTES, now_ms, expired)

    # -- answers ------------------------------------------------------------------------------

    def accepted(self, now_ms: int, limits: TransactionLimits) -> None:
        """Note that it has accepted the transaction in flight."""
        self.in_flight = None
        self.refusals = 0
        self.last_success_ms = now_ms
        self.max_edus = min(limits.edus, self.max_edus + REGROW_EDUS)
        self.max_bytes = min(limits.max_bytes, self.max_bytes + REGROW_BYTES)

    def judge(self, status: int) -> Verdict:
        """Return what an answer with *status* means; learns from a refusal.

        Returns:
            The verdict; the caller acts on it.
        """
        if 200 <= status < 300:
            return Verdict.ACCEPTED
        transaction = self.in_flight
        assert transaction is not None
        count = len(transaction.entries)
        if status == 413:
            if count == 1:
                return Verdict.PARK
            self._take_less(transaction)
            return Verdict.SPLIT
        if status == 429:
            return Verdict.RETRY
        if status in (401, 403, 404):
            # It is we that it refuses, or it is not there; smaller would not be better.
            return self.judge_not_reached()
        self.refusals += 1
        if count > 1 and self.refusals >= SPLIT_AFTER:
            self._take_less(transaction)
            self.refusals = 0
            return Verdict.DISSOLVE
        if count == 1 and self.refusals >= GIVE_WAY_AFTER:
            self.refusals = 0
            return Verdict.PARK if 400 <= status < 500 else Verdict.POSTPONE
        return Verdict.RETRY

    def judge_not_reached(self) -> Verdict:
        """Return what it means that the transaction in flight did not get there.

        If it was sent before, the remote may have it from then: it keeps its id, so that the
        remote can tell.
        """
        assert self.in_flight is not None
        return Verdict.RETRY if self.in_flight.uncertain else Verdict.DISSOLVE

    def _take_less(self, transaction: StoredTransaction) -> None:
        size = sum(edu_bytes(entry[2]) for entry in transaction.entries)
        self.max_edus = max(1, len(transaction.entries) // 2)
        self.max_bytes = max(2 * ENVELOPE_BYTES, size // 2)
