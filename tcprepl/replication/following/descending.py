"""Rows of a writer that counts down within what it writes together (protocol.md section 7.6).

Synapse writes the old events of a room from the newest to the oldest, and their tokens fall with
them: ``RDATA backfill`` 6, 5, 4, and then ``POSITION`` up to 6. A reader that took 6 as its
position would drop the others. So such rows are held until what lies between is there, or until
a position says that it is all; then they go on in ascending order. Where they cannot be held any
longer, what is still to come below them is said to be missing: it is fetched, or told as a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tcprepl.ids import Pair, Token
from tcprepl.protocol.commands import PositionCommand
from tcprepl.protocol.events import MixedReceived, RowsReceived, RunReceived, in_batches
from tcprepl.replication.following.progress import Progress

#: Streams whose writers do that.
DESCENDING: Final = frozenset({"backfill"})
#: How long rows are held of which no position comes: they are written in one go.
HOLD_S: Final = 1.0
#: Batches of one pair that are held.
MAX_HELD: Final = 10_000

_KINDS: Final = (RowsReceived, RunReceived, PositionCommand)


class DescendingRows:
    """Holds rows back until they can go on in order.

    Args:
        progress: What the reader has applied.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._held: dict[Pair, list[RowsReceived]] = {}
        #: The newest token that has gone on: what is applied may lag behind.
        self._gone_on: dict[Pair, Token] = {}

    @property
    def holds(self) -> bool:
        """Whether anything is held: call `release` if nothing comes for `HOLD_S`."""
        return bool(self._held)

    def sort(self, events: Sequence[object]) -> Sequence[object]:
        """Return *events* less what has to wait, with what need not wait any longer."""
        if not any(map(_concerns, events)):
            return events
        sorted_events: list[object] = []
        for event in in_batches(events):
            if not isinstance(event, _KINDS) or event.stream not in DESCENDING:
                sorted_events.append(event)
            elif isinstance(event, RowsReceived):
                pair = (event.stream, event.instance)
                held = self._held.setdefault(pair, [])
                held.append(event)
                if len(held) >= MAX_HELD:
                    sorted_events += self._release_early(pair)
            elif isinstance(event, PositionCommand):
                pair = (event.stream, event.instance)
                sorted_events += self._release(pair)
                sorted_events.append(event)
                self._gone_on[pair] = event.token
        for pair in list(self._held):
            if self._whole(pair):
                sorted_events += self._release(pair)
        return sorted_events

    def _whole(self, pair: Pair) -> bool:
        """Return whether no token is missing between what has gone on and what is held."""
        known = self._progress.known.get(pair)
        if known is None:
            return False
        below = max(known, self._gone_on.get(pair, 0))
        tokens = {event.token for event in self._held[pair] if event.token > below}
        return not tokens or max(tokens) == below + len(tokens)

    def _release(self, pair: Pair) -> list[RowsReceived]:
        held = sorted(self._held.pop(pair, ()), key=lambda event: event.token)
        if held:
            self._gone_on[pair] = max(held[-1].token, self._gone_on.get(pair, 0))
        return held

    def _release_early(self, pair: Pair) -> list[RowsReceived | PositionCommand]:
        """Return what is held, with positions that say where rows are missing.

        If the newest row came last, the writer is done: it says a position only after others.
        Tokens that are missing then are those of other instances.
        """
        done = self._held[pair][-1].token == max(event.token for event in self._held[pair])
        below = max(self._progress.known.get(pair) or 0, self._gone_on.get(pair, 0))
        told: list[RowsReceived | PositionCommand] = []
        for event in self._release(pair):
            if not done and below and event.token > below + 1:
                told.append(PositionCommand(*pair, event.token - 1, event.token - 1))
            below = max(below, event.token)
            told.append(event)
        return told

    def release(self) -> list[RowsReceived | PositionCommand]:
        """Return everything that is held, in order, when nothing came for `HOLD_S`."""
        return [event for pair in list(self._held) for event in self._release_early(pair)]

    def clear(self) -> None:
        """Forget what is held: its connection is gone, and it comes again, or is missed."""
        self._held.clear()
        self._gone_on.clear()


def _concerns(event: object) -> bool:
    """Return whether *event* is of a stream whose tokens may fall."""
    if isinstance(event, MixedReceived):
        return any(stream in DESCENDING for stream, _ in set(event.pairs))
    return isinstance(event, _KINDS) and event.stream in DESCENDING
