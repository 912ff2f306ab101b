"""From rows to the outbox: what a sender reads, keeps, and acknowledges.

Rows of the ``federation`` stream become EDUs, those of our share go into the outbox together
with the position that covers them, and only then the position is acknowledged. What arrives
while the disk works goes into the next commit; when too much waits, the reading stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import structlog
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from tcprepl.federation.edu import Edu, parse_rows
from tcprepl.federation.lanes import EXPIRY_MS
from tcprepl.federation.outbox import Added, Outbox
from tcprepl.federation.sharding import Shard
from tcprepl.ids import InstanceName, ServerName, StreamName, Token

logger = structlog.get_logger()

FEDERATION = "federation"

#: EDUs that may wait for the disk before the reading stops.
MAX_UNSTORED_EDUS = 5_000
#: Bytes of them.
MAX_UNSTORED_BYTES = 16 * 1024 * 1024
#: Waits after which a disk that refused is tried again.
_DISK_RETRY_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class RawRows(Protocol):
    """Rows as the client delivers them (`tcprepl.streams.codec.Rows`)."""

    @property
    def raw(self) -> Iterable[bytes]:
        """The rows as JSON bytes."""
        ...


class Intake:
    """Takes rows, stores what is ours, acknowledges.

    It is also the position store of the client that reads the rows: the positions are the ones
    on disk, and only `Outbox.add` writes them.
    """

    def __init__(
        self,
        clock: IReactorTime,
        outbox: Outbox,
        server_name: ServerName,
        shard: Shard,
        deliver: Callable[[list[Added]], None],
        acknowledge: Callable[[InstanceName, Token], object],
        *,
        now_ms: Callable[[], int],
        expiry_ms: Mapping[str, int] | None = None,
    ) -> None:
        """Make the intake.

        Args:
            clock: For waiting, and for gathering what one turn brings.
            outbox: Where EDUs are stored.
            server_name: Who we are; EDUs to ourselves are dropped.
            shard: Which destinations are ours.
            deliver: Called with EDUs once they are on disk.
            acknowledge: Called with instance and token once all rows up to there are on disk.
            now_ms: Wall-clock time in ms.
            expiry_ms: How long EDUs of a type are worth sending.
        """
        self._clock = clock
        self._outbox = outbox
        self._server_name = server_name
        self._shard = shard
        self._deliver = deliver
        self._acknowledge = acknowledge
        self._now_ms = now_ms
        self._expiry_ms = EXPIRY_MS if expiry_ms is None else expiry_ms
        self._edus: list[Edu] = []
        self._bytes = 0
        self._positions: dict[tuple[StreamName, InstanceName], Token] = {}
        self._storing = False
        self._scheduled = False
        self._failures = 0
        self._waiters: list[Deferred[None]] = []
        self._stopped = False
        self._stored = outbox.positions()

    # -- the position store of the client -----------------------------------------------------

    #: Nothing is committed by `save`.
    atomic = False

    def load(self) -> dict[tuple[StreamName, InstanceName], Token]:
        """Return the positions up to which every row is on disk."""
        return self._outbox.positions()

    def save(self, positions: Mapping[tuple[StreamName, InstanceName], Token]) -> None:
        """Do nothing: positions are stored with the EDUs that they cover."""

    def rollback(self) -> None:
        """Do nothing: nothing is shared with the client."""

    def close(self) -> None:
        """Do nothing: the outbox is closed by who opened it."""

    # -- what the client calls ----------------------------------------------------------------

    def handle_rows(
        self, stream: StreamName, instance: InstanceName, token: Token, rows: RawRows
    ) -> Deferred[None] | None:
        """Take one batch; a Deferred when the reading has to wait for the disk."""
        owns = None if self._shard.whole else self._shard.owns
        mine = self._edus
        size = 0
        for edu in parse_rows(rows.raw, self._server_name, self._now_ms()):
            destination = edu.destination
            if destination == self._server_name or (owns is not None and not owns(destination)):
                continue
            mine.append(edu)
            size += len(edu.content)
        self._bytes += size
        self._note(stream, instance, token)
        if len(mine) <= MAX_UNSTORED_EDUS and self._bytes <= MAX_UNSTORED_BYTES:
            return None
        waiting: Deferred[None] = Deferred()
        self._waiters.append(waiting)
        return waiting

    def handle_position(self, stream: StreamName, instance: InstanceName, token: Token) -> None:
        """Note that everything up to *token* has been seen; it is acknowledged like rows."""
        if stream == FEDERATION:
            self._note(stream, instance, token)

    def handle_reset(
        self, stream: StreamName, instance: InstanceName, known: Token | None, token: Token
    ) -> None:
        """Note that the stream cannot go on from *known*; what follows begins after *token*."""
        if stream != FEDERATION:
            return
        if known is not None and token > known:
            logger.error(
                "federation.rows.lost",
                stream=stream,
                instance=instance,
                after=known,
                upto=token,
                reason="the writer no longer has them; its retention bounds what it keeps",
            )
        else:
            logger.warning("federation.stream.reset", instance=instance, known=known, token=token)
        self._note(stream, instance, token)

    def acknowledge_again(self) -> None:
        """Acknowledge what is on disk once more: a new connection does not know it."""
        for (stream, instance), token in self._stored.items():
            if stream == FEDERATION:
                self._acknowledge(instance, token)

    def stop(self) -> None:
        """Take no more; what is not on disk was not acknowledged and comes again."""
        self._stopped = True
        self._release()

    # -- storing ------------------------------------------------------------------------------

    def _note(self, stream: StreamName, instance: InstanceName, token: Token) -> None:
        self._positions[stream, instance] = token
        if not self._storing and not self._scheduled and not self._stopped:
            # The rest of what this turn brings goes into the same commit.
            self._scheduled = True
            self._clock.callLater(0, self._store)

    def _store(self) -> None:
        self._scheduled = False
        if self._stopped or self._storing or not self._positions:
            return
        self._storing = True
        added = self._number(self._edus)
        positions = self._positions
        self._edus, self._bytes, self._positions = [], 0, {}
        self._attempt(added, positions)

    def _number(self, edus: list[Edu]) -> list[Added]:
        """Give each EDU its id; of several with one key only the newest is left."""
        newest: dict[object, Edu] = {}
        for edu in edus:
            if edu.key is None:
                newest[id(edu)] = edu
            else:
                newest[edu.destination, edu.edu_type, edu.key] = edu
        now_ms = self._now_ms()
        expiry = self._expiry_ms
        next_id = self._outbox.next_id
        return [
            Added(
                next_id(),
                edu,
                now_ms,
                now_ms + expiry[edu.edu_type] if edu.edu_type in expiry else 0,
            )
            for edu in newest.values()
        ]

    def _attempt(
        self, added: list[Added], positions: dict[tuple[StreamName, InstanceName], Token]
    ) -> None:
        if self._stopped:
            return
        _ = self._outbox.add(added, positions).addCallbacks(
            self._have_stored,
            self._could_not_store,
            callbackArgs=(added, positions),
            errbackArgs=(added, positions),
        )

    def _have_stored(
        self,
        _: None,
        added: list[Added],
        positions: dict[tuple[StreamName, InstanceName], Token],
    ) -> None:
        self._storing = False
        self._failures = 0
        self._stored.update(positions)
        if self._stopped:
            return
        self._deliver(added)
        for (_stream, instance), token in positions.items():
            self._acknowledge(instance, token)
        if self._positions:
            self._store()
        if len(self._edus) <= MAX_UNSTORED_EDUS and self._bytes <= MAX_UNSTORED_BYTES:
            self._release()

    def _could_not_store(
        self,
        failure: Failure,
        added: list[Added],
        positions: dict[tuple[StreamName, InstanceName], Token],
    ) -> None:
        wait_s = _DISK_RETRY_S[min(self._failures, len(_DISK_RETRY_S) - 1)]
        self._failures += 1
        logger.error(
            "federation.outbox.unavailable",
            error=failure.getErrorMessage(),
            edus=len(added),
            retry_s=wait_s,
        )
        self._clock.callLater(wait_s, self._attempt, added, positions)

    def _release(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiting in waiters:
            waiting.callback(None)
