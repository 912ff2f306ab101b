"""From an upstream into the log, so that it can be served again (protocol.md section 15.4).

A relay is a client, a log and a server in one. `RelayIntake` is what is between the first two: it
takes batches and positions in the upstream's tokens, and queues them for the log in ours. Its
positions are those of the log, so that a relay that is killed goes on exactly where its log
ends: what was logged is not asked for again, and what was not is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred

from tcprepl import metrics
from tcprepl.clocks import Reactor
from tcprepl.errors import (
    CloseReason,
    ConnectionFailed,
)
from tcprepl.ids import IncarnationId, InstanceName, Pair, StreamName, Token
from tcprepl.limits import MAX_AHEAD_RATE_TOKENS, MAX_AHEAD_TOKENS, MAX_FIRST_TOKEN
from tcprepl.logger import get_logger
from tcprepl.protocol.commands import Command
from tcprepl.replication.following.catchup import CatchUp, CatchUpPage
from tcprepl.replication.following.descending import DESCENDING
from tcprepl.replication.relaying.log_queue import LogQueue
from tcprepl.replication.relaying.state import Epoch, RelayState
from tcprepl.replication.status import LinkStatus
from tcprepl.streams.codec import Rows
from tcprepl.streams.gaps import Cause, Gap
from tcprepl.streams.lineage import Places
from tcprepl.streams.log import Log
from tcprepl.streams.registry import Registry, StreamDef

log = get_logger(__name__)

#: How often a pair may begin anew before its oldest tokens are not known by their old names.
MAX_EPOCHS: Final = 16
#: Gaps that the status names.
GAPS_SHOWN: Final = 20
#: Streams of Synapse that begin anew with their process; no other can go backwards while its
#: writer lives, so that a position below the newest row is only late.
IN_MEMORY: Final = frozenset({"federation", "presence_federation", "typing"})
#: Ranges of tokens without rows that are remembered of a pair, the widest.
MAX_HOLES: Final = 8
#: How often a page is asked for before its rows are given up as a gap: for about half a minute, in
#: which a writer that restarts is back. Until then what comes of the pair waits.
CATCH_UP_ATTEMPTS: Final = 13


def relay_registry(met: Iterable[StreamName] = ()) -> Registry:
    """Return the streams of a relay: all of them on disk, *met* ones as opaque JSON.

    On disk even what is ephemeral at its writer: a relay can ask nobody what is true now, and
    must not forget by dying what its readers have still to hear.
    """
    registry = Registry(StreamDef(name) for name in met)
    for name in registry.names():
        kept = copy.copy(registry.get(name))
        kept.durable = True
        registry.add(kept)
    return registry


class Upstream(Protocol):
    """Where a relay's rows come from."""

    def start(self) -> None:
        """Connect, and stay connected."""
        ...

    async def stop(self) -> None:
        """Disconnect."""
        ...

    def send(self, command: Command) -> bool:
        """Send *command* up; return whether it left, or will."""
        ...

    def status(self) -> LinkStatus:
        """Return how it goes."""
        ...


class RelayIntake(LogQueue):
    """Puts what an upstream sends into the log, in order, once.

    Its methods `rows`, `reset` and `position` are the handlers of a `Delivery`.

    Args:
        reactor: For gathering what one turn brings.
        stream_log: The log.
        registry: The streams; those met on the way are added to it.
        state: Offsets and gaps.

    Attributes:
        incarnation: That of the upstream's log, as it named it; None if it named none.
        on_pair: Called with the stream and the instance when a pair is met.
        shifts: For each pair whose tokens are not the upstream's, how they follow from those,
            oldest first, as far as it is known; for looking only.
    """

    def __init__(
        self, reactor: Reactor, stream_log: Log, registry: Registry, state: RelayState
    ) -> None:
        super().__init__(reactor, stream_log)
        self.incarnation: IncarnationId | None = None
        self.on_pair: Callable[[StreamName, InstanceName], None] | None = None
        self._registry = registry
        self._state = state
        self._offsets: dict[Pair, Token] = {}
        self.shifts: dict[Pair, list[Epoch]] = {}
        #: (after, upto): no row was seen between them, as the upstream counts; oldest first.
        self._holes: dict[Pair, list[tuple[Token, Token]]] = {}
        #: How far ahead each pair may go at once, and as of when.
        self._ahead: dict[Pair, tuple[float, float]] = {}
        for pair in state.pairs():
            stream_log.ensure(*pair)  # the log forgets one that has no rows yet
        for pair in stream_log.pairs():
            self._resume(pair)

    def _resume(self, pair: Pair) -> None:
        """Go on with a pair that the log holds."""
        position = self._log.position(*pair)
        epoch = self._state.epoch(pair)
        self._state.settle(pair, self._log.floor(*pair), max(position, epoch.start))
        self._offsets[pair] = epoch.offset
        if epoch.offset:
            self.shifts[pair] = [epoch]
        self._heads[pair] = position
        if epoch.start > position:  # killed between the two
            self._advance(pair, epoch.start)

    # -- positions, as the upstream counts -----------------------------------------------

    def positions(self) -> dict[Pair, Token]:
        """Return up to where each (stream, instance) is taken, in the upstream's tokens."""
        return {pair: max(0, head - self._offsets[pair]) for pair, head in self._heads.items()}

    def known(self, pair: Pair) -> Token | None:
        """Return up to where *pair* is taken, in the upstream's tokens; None for a new one."""
        head = self._heads.get(pair)
        return None if head is None else max(0, head - self._offsets[pair])

    def places(self, pair: Pair, token: Token) -> Places:
        """Return in which incarnations of the upstream's log *pair* was taken up to *token*."""
        return self._state.places(pair, token)

    def follow(self) -> bool:
        """Note that the upstream is being listened to; return whether it ever was before."""
        return self._state.follow()

    def newest(self) -> dict[StreamName, Token]:
        """Return the newest token that is taken of each stream, as the upstream counts."""
        newest: dict[StreamName, Token] = {}
        for (stream, _), token in self.positions().items():
            newest[stream] = max(token, newest.get(stream, 0))
        return newest

    def believes(self, pair: Pair, token: Token) -> bool:
        """Return whether a writer can be at *token* by now.

        If it cannot, the line is at fault. What is believed may be false all the same: it is
        taken back when the writer says otherwise (`passed_over`).
        """
        if not self._heads.get(pair):
            return token <= MAX_FIRST_TOKEN
        ahead = token + self._offsets[pair] - self._heads[pair]
        return ahead <= MAX_AHEAD_RATE_TOKENS or ahead <= self._may_be_ahead(pair)

    def _may_be_ahead(self, pair: Pair) -> float:
        left, at = self._ahead.get(pair, (MAX_AHEAD_TOKENS, 0.0))
        return min(MAX_AHEAD_TOKENS, left + (self._reactor.seconds() - at) * MAX_AHEAD_RATE_TOKENS)

    def passed_over(self, pair: Pair, token: Token, *, position: bool = False) -> Token | None:
        """Return up to where *pair* is taken without what passed over *token*; None if nothing did.

        What passed over it was told falsely, since its writer has only now come to *token*, or
        the writer began anew. A row that was seen, and is said again, was not passed over.

        Args:
            pair: The (stream, instance).
            token: Of a row, as the upstream counts.
            position: It is not that of a row, but where the writer is.
        """
        if position:
            if pair[0] in IN_MEMORY:
                return None  # its state is void: it is read from the start
            token += 1
        known = self.known(pair) or 0
        if token > known:
            return known  # what is above was not believed
        if pair[0] not in DESCENDING:
            for after, upto in reversed(self._holes.get(pair, ())):
                if after < token < upto:
                    return after
        return None

    def _pass_over(self, pair: Pair, after: Token, upto: Token) -> None:
        """Note that *pair* goes from *after* to *upto*, without a row between them."""
        ahead = upto - after
        if ahead <= 1:
            return
        if ahead > MAX_AHEAD_RATE_TOKENS and self._heads[pair]:
            self._ahead[pair] = self._may_be_ahead(pair) - ahead, self._reactor.seconds()
        holes = self._holes.setdefault(pair, [])
        holes.append((after, upto))
        if len(holes) > MAX_HOLES:
            holes.remove(min(holes, key=lambda hole: hole[1] - hole[0]))

    def idle_seconds(self) -> float | None:
        """Return how long ago the last row came; None before the first since the start."""
        if self._rows_at is None:
            return None
        now: float = self._reactor.seconds()
        return now - self._rows_at

    def gap_status(self) -> dict[str, Any]:
        """Return how many gaps there are, and the newest of them in words, for the status."""
        lost = [(pair, gap) for pair, gap in self._state.gaps if gap.lost]
        words = [
            f"{stream} of {instance}: {gap.words()}"
            for (stream, instance), gap in lost[-GAPS_SHOWN:]
        ]
        return {"gaps": len(lost), "newest_gaps": words}

    # -- what the upstream sends ---------------------------------------------------------

    def rows(
        self, stream: StreamName, instance: InstanceName, token: Token, rows: Rows
    ) -> Deferred[None] | None:
        """Take a batch; the answer, if any, fires when there is room for the next."""
        return self.take((stream, instance), token, list(rows.raw))

    def run(
        self, stream: StreamName, instance: InstanceName, tokens: list[Token], raw: list[bytes]
    ) -> Deferred[None] | None:
        """Take batches of one row each, whose tokens grow; otherwise as `rows`."""
        pair = (stream, instance)
        offset, head = self._offsets.get(pair), self._heads.get(pair, 0)
        before = head - (offset or 0)
        ahead = tokens[-1] - before
        if offset is None or tokens[0] <= before or ahead > MAX_AHEAD_RATE_TOKENS:
            return Deferred.fromCoroutine(self._one_by_one(pair, tokens, raw))
        self._state.enter(pair, self.incarnation, before, tokens[-1])
        if ahead > len(tokens):
            for after, upto in zip((max(0, before), *tokens), tokens, strict=False):
                self._pass_over(pair, after, upto)
        self._append(pair, [token + offset for token in tokens] if offset else tokens, raw)
        return self._wait_for_room()

    async def _one_by_one(self, pair: Pair, tokens: list[Token], raw: list[bytes]) -> None:
        for token, row in zip(tokens, raw, strict=True):
            if (waiting := self.take(pair, token, [row])) is not None:
                await waiting

    def take(self, pair: Pair, token: Token, raw: list[bytes]) -> Deferred[None] | None:
        """Take a batch as JSON bytes; otherwise as `rows`."""
        if not self._believed(pair, token):
            return None
        offset = self._offsets.get(pair)
        if offset is None:
            self._meet(pair)
            offset = self._offsets[pair]
        ours = token + offset
        head = self._heads[pair]
        if ours <= head:
            # The dialect of 2017 repeats tokens: ours are one ahead from here on.
            return Deferred.fromCoroutine(self._shift(pair, token, raw))
        self._state.enter(pair, self.incarnation, head - offset, token)
        self._pass_over(pair, max(0, head - offset), token)
        self._append(pair, [ours] * len(raw), raw)
        return self._wait_for_room()

    async def _shift(self, pair: Pair, token: Token, raw: list[bytes]) -> None:
        await self.drained()
        ours = self._heads[pair] + 1
        self._state.set_epoch(pair, Epoch(ours - token, 0))
        self._offset(pair, Epoch(ours - token, ours))
        self._append(pair, [ours] * len(raw), raw)

    def position(self, stream: StreamName, instance: InstanceName, token: Token) -> None:
        """Take note that the upstream is at *token*, and that nothing is missing up to there."""
        pair = (stream, instance)
        if not self._believed(pair, token):
            return
        if pair not in self._heads:
            self._meet(pair)
        first = not (self._heads[pair] or self._state.has_epoch(pair))
        ours = token + self._offsets[pair]
        if ours <= self._heads[pair]:
            if first:
                self._state.set_epoch(pair, Epoch())
            return
        before = self._heads[pair] - self._offsets[pair]
        self._state.enter(pair, self.incarnation, before, token)
        if first:
            # What was before we came is not ours to tell; nothing that we held is missing.
            self._state.add_gap(pair, Gap(0, ours, Cause.RECORD))
        self._pass_over(pair, max(0, before), token)
        self._advance(pair, ours, trims=first)

    async def reset(
        self, stream: StreamName, instance: InstanceName, known: Token | None, token: Token
    ) -> None:
        """Take note that the stream goes on after *token*, whatever was between."""
        pair = (stream, instance)
        if pair not in self._heads or not self._believed(pair, token):
            return
        if token == self.known(pair):
            return  # what was above was not believed
        await self.drained()
        head = self._heads[pair]
        if known is not None and token > known:
            self._state.add_gap(pair, Gap(head, token + self._offsets[pair], Cause.UPSTREAM))
            log.warning(
                "replication.relay.gap",
                stream=stream,
                instance=instance,
                after=known,
                upto=token,
                reason="the upstream could not tell what was between",
            )
            return
        log.warning(
            "replication.relay.began_anew",
            stream=stream,
            instance=instance,
            known=known,
            token=token,
            goes_on_as=head + 1,
        )
        epoch = Epoch(head + 1 - token, head + 1)
        self._state.begin_anew(
            pair,
            self.incarnation,
            0 if known is None else known,
            token,
            gap=Gap(head, head + 1, Cause.ANEW),
            epoch=epoch,
        )
        self._holes[pair] = [hole for hole in self._holes.get(pair, ()) if hole[1] <= token]
        self._offset(pair, epoch)
        self._advance(pair, head + 1)

    def _offset(self, pair: Pair, epoch: Epoch) -> None:
        """Count as *epoch* says from now on."""
        epochs = self.shifts.setdefault(pair, [Epoch(self._offsets[pair])])
        epochs.append(epoch)
        del epochs[:-MAX_EPOCHS]
        self._offsets[pair] = epoch.offset

    def theirs(self, pair: Pair, token: Token) -> Token | None:
        """Return what the upstream calls our *token*; None where that is forgotten."""
        epochs = self.shifts.get(pair)
        if epochs is None:
            return token
        for epoch in reversed(epochs):
            if token >= epoch.start:
                return token - epoch.offset
        return None

    def ours(self, pair: Pair, token: Token) -> Token:
        """Return what we call *token* of the upstream, as it counts now."""
        return token + self._offsets.get(pair, 0)

    def _believed(self, pair: Pair, token: Token) -> bool:
        if self.believes(pair, token):
            return True
        metrics.DROPPED.labels("line", "unbelievable_token").inc()
        stream, instance = pair
        log.error(
            "replication.relay.unbelievable",
            stream=stream,
            instance=instance,
            known=self.known(pair),
            token=token,
            reason="no writer can be there by now; the line is left out",
        )
        return False

    def _meet(self, pair: Pair) -> None:
        stream, instance = pair
        if stream not in self._registry:
            self._state.add_stream(stream)
            self._registry.add(StreamDef(stream))
            log.info("replication.relay.unknown_stream", stream=stream, kept_as="opaque JSON")
        self._log.ensure(stream, instance)
        self._heads[pair] = self._log.position(stream, instance)
        self._offsets[pair] = self._state.epoch(pair).offset
        if self.on_pair is not None:
            self.on_pair(stream, instance)


class LogPositions:
    """The position store of a relay: the log itself."""

    atomic = False

    def __init__(self, intake: RelayIntake) -> None:
        self._intake = intake

    def load(self) -> dict[Pair, Token]:
        """Return what the log holds, in the upstream's tokens."""
        return self._intake.positions()

    def places(self, pair: Pair, token: Token) -> Places:
        """Return in which incarnations of the upstream's log *pair* was read up to *token*."""
        return self._intake.places(pair, token)

    def save(self, positions: object, incarnation: IncarnationId | None = None) -> None:
        """Do nothing: the rows in the log are the position."""

    def rollback(self) -> None:
        """Do nothing: handlers share no transaction with this store."""

    def close(self) -> None:
        """Do nothing."""


class RelayCatchUp:
    """Fetches what was missed, and gives up in the end; what we never held is not missed."""

    def __init__(self, intake: RelayIntake, source: CatchUp) -> None:
        self._intake = intake
        self._source = source
        self._failures: dict[Pair, int] = {}

    async def fetch(
        self, stream: StreamName, instance: InstanceName, after: Token, upto: Token
    ) -> CatchUpPage:
        """Return a page of ``(after, upto]``.

        Raises:
            ConnectionFailed: It could not be had; not transient when it is given up.
        """
        pair = (stream, instance)
        if self._intake.known(pair) is None:
            return CatchUpPage([], upto, limited=False)
        try:
            page = await self._source.fetch(stream, instance, after, upto)
        except Exception as error:
            failures = self._failures.get(pair, 0) + 1
            self._failures[pair] = failures
            if failures < CATCH_UP_ATTEMPTS or not getattr(error, "transient", True):
                raise
            del self._failures[pair]
            raise ConnectionFailed(
                f"given up after {failures} attempts: {error}",
                reason=getattr(error, "reason", CloseReason.CONNECTION_LOST),
                transient=False,
            ) from error
        self._failures.pop(pair, None)
        return page
