"""From rows to the outbox: what a sender reads, keeps, and acknowledges.

Rows of the ``federation`` stream become EDUs, those of our share go into the outbox together
with the position that covers them, and only then the position is acknowledged. What arrives
while the disk works goes into the next commit; when too much waits, the reading stops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from tcprepl.federation.sending.lanes import EXPIRY_MS, Entry
from tcprepl.federation.sending.outbox import StoredOutbox
from tcprepl.federation.sending.sharding import Shard
from tcprepl.federation.wire.edu import parse_rows
from tcprepl.ids import IncarnationId, InstanceName, Pair, ServerName, StreamName, Token
from tcprepl.logger import get_logger
from tcprepl.streams.lineage import NEW, Lineage, Places

logger = get_logger(__name__)

FEDERATION = "federation"

#: Rows that may wait for the disk before the reading stops.
MAX_UNSTORED_ROWS = 2_000
#: Bytes of them.
MAX_UNSTORED_BYTES = 16 * 1024 * 1024
#: Waits after which a disk that refused is tried again.
_DISK_RETRY_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
#: After how long rows are looked at again that an error of ours kept from being read.
_UNREAD_RETRY_S = 5.0


class RawRows(Protocol):
    """Rows as the client delivers them (`tcprepl.streams.codec.Rows`)."""

    @property
    def raw(self) -> Sequence[bytes]:
        """The rows as JSON bytes."""
        ...


class EduIntake:
    """Takes rows, stores what is ours, acknowledges.

    It is also the position store of the client that reads the rows: the positions are the ones
    on disk, and only `Outbox.add` writes them.

    Attributes:
        canonical: Whether the writer promises that its rows are canonical JSON.
    """

    def __init__(
        self,
        clock: IReactorTime,
        outbox: StoredOutbox,
        server_name: ServerName,
        shard: Shard,
        deliver: Callable[[list[Entry]], None],
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
        self.canonical = False
        self._rows: list[bytes] = []
        self._bytes = 0
        #: Where each pair is, and in which incarnation of the writer's log.
        self._positions: dict[Pair, tuple[Token, IncarnationId | None]] = {}
        #: Whether a commit is under way, or will begin within this turn.
        self._scheduled = False
        self._failures = 0
        self._waiters: list[Deferred[None]] = []
        self._stopped = False
        self._stored = outbox.positions()
        self._lineages = outbox.lineages()
        self._incarnation: IncarnationId | None = None
        #: Counts connections and resets: what was taken before either says nothing to the writer.
        self._epoch = 0
        #: In which the newest position was noted.
        self._noted_in: int

    # -- the position store of the client -----------------------------------------------------

    #: Nothing is committed by `save`.
    atomic = False

    def load(self) -> dict[Pair, Token]:
        """Return the positions up to which every row is on disk."""
        return self._outbox.positions()

    def places(self, pair: Pair, token: Token) -> Places:
        """Return in which incarnations of the writer's log *pair* was read up to *token*."""
        lineage = self._lineages.get(pair)
        return () if lineage is None else lineage.places(token)

    def save(
        self, positions: Mapping[Pair, Token], incarnation: IncarnationId | None = None
    ) -> None:
        """Do nothing: positions are stored with the EDUs that they cover."""

    def rollback(self) -> None:
        """Do nothing: nothing is shared with the client."""

    def close(self) -> None:
        """Do nothing: the outbox is closed by who opened it."""

    # -- what the client calls ----------------------------------------------------------------

    def connected(self, incarnation: IncarnationId | None) -> None:
        """Note that a connection has begun, to a writer whose log is in *incarnation*.

        Nothing is acknowledged on it before the writer has said where the stream stands: it
        may have other rows by now under the tokens that we have.
        """
        self._incarnation = incarnation
        self._epoch += 1

    def handle_rows(
        self, stream: StreamName, instance: InstanceName, token: Token, rows: RawRows
    ) -> Deferred[None] | None:
        """Take one batch; a Deferred when the reading has to wait for the disk."""
        raw = rows.raw
        self._rows += raw
        self._bytes += sum(map(len, raw))
        self._note(stream, instance, token)
        if self._bytes <= MAX_UNSTORED_BYTES and len(self._rows) <= MAX_UNSTORED_ROWS:
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
        """Note that the stream cannot go on from *known*; what follows begins after *token*.

        What was taken stays and is sent. Where the writer was restored from a copy, *token* is
        the last that both have, and what follows are EDUs that we never had.
        """
        if stream != FEDERATION:
            return
        self._epoch += 1
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

    def stop(self) -> None:
        """Take no more; what is not on disk was not acknowledged and comes again."""
        self._stopped = True
        self._release()

    # -- storing ------------------------------------------------------------------------------

    def _note(self, stream: StreamName, instance: InstanceName, token: Token) -> None:
        self._noted_in = self._epoch
        self._positions[stream, instance] = token, self._incarnation
        if not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        """Store presently: what the rest of this turn brings goes into the same commit."""
        self._scheduled = True
        if not self._stopped:
            self._clock.callLater(0, self._store)

    def _store(self) -> None:
        """Begin a commit with all that has come so far."""
        if self._stopped:
            return
        rows, noted = self._rows, self._positions
        now_ms = self._now_ms()
        us = self._server_name
        try:
            edus = parse_rows(rows, us, now_ms, canonical=self.canonical)
            if not self._shard.whole:
                owns = self._shard.owns
                edus = [edu for edu in edus if owns(edu.destination)]
            lifetime = self._expiry_ms.get
            ids = self._outbox.take_ids(len(edus))
            entries: list[Entry] = [
                (edu_id, now_ms + ms if (ms := lifetime(edu.edu_type)) else 0, edu)
                for edu_id, edu in zip(ids, edus, strict=True)
                if edu.destination != us
            ]
        except Exception:
            # Nothing passes them: they stay where they are, and whoever sends more waits.
            logger.exception("federation.rows.not_read", rows=len(rows), retry_s=_UNREAD_RETRY_S)
            self._clock.callLater(_UNREAD_RETRY_S, self._store)
            return
        self._rows, self._bytes, self._positions = [], 0, {}
        lineages: dict[Pair, Lineage] = {}
        for pair, (token, incarnation) in noted.items():
            lineage = self._lineages.get(pair, NEW)
            entered = lineage.entered(incarnation, self._stored.get(pair, 0), token)
            if entered is not lineage:
                lineages[pair] = entered
        positions = {pair: token for pair, (token, _) in noted.items()}
        self._attempt(entries, now_ms, positions, lineages, self._noted_in)

    def _attempt(
        self,
        entries: list[Entry],
        now_ms: int,
        positions: dict[Pair, Token],
        lineages: dict[Pair, Lineage],
        epoch: int,
    ) -> None:
        if self._stopped:
            return
        entered = {pair: lineage.stored() for pair, lineage in lineages.items()}
        _ = self._outbox.add(entries, now_ms, positions, entered).addCallbacks(
            self._have_stored,
            self._could_not_store,
            callbackArgs=(entries, positions, lineages, epoch),
            errbackArgs=(entries, now_ms, positions, lineages, epoch),
        )

    def _have_stored(
        self,
        _: None,
        entries: list[Entry],
        positions: dict[Pair, Token],
        lineages: dict[Pair, Lineage],
        epoch: int,
    ) -> None:
        self._scheduled = False
        self._failures = 0
        self._stored.update(positions)
        self._lineages.update(lineages)
        if self._stopped:
            return
        self._deliver(entries)
        if epoch == self._epoch:
            for (_stream, instance), token in positions.items():
                self._acknowledge(instance, token)
        if self._positions:
            self._schedule()
        self._release()

    def _could_not_store(
        self,
        failure: Failure,
        entries: list[Entry],
        now_ms: int,
        positions: dict[Pair, Token],
        lineages: dict[Pair, Lineage],
        epoch: int,
    ) -> None:
        wait_s = _DISK_RETRY_S[min(self._failures, len(_DISK_RETRY_S) - 1)]
        self._failures += 1
        logger.error(
            "federation.outbox.unavailable",
            error=failure.getErrorMessage(),
            edus=len(entries),
            retry_s=wait_s,
        )
        self._clock.callLater(wait_s, self._attempt, entries, now_ms, positions, lineages, epoch)

    def _release(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiting in waiters:
            waiting.callback(None)
