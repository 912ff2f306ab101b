"""Batches for who asks for the next one, instead of a handler that is called.

`Puller` takes the handler's place at a `Delivery`, under the same rules: a batch counts once the
next one is asked for, and only then is anything behind it handed over. It waits for nothing and
knows no event loop; `tcprepl.aio.follow` and `tcprepl.follow` do the waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from types import EllipsisType
from typing import Final, NamedTuple

import msgspec
from twisted.internet.defer import Deferred

from tcprepl import metrics
from tcprepl.ids import InstanceName, Pair, StreamName, Token
from tcprepl.protocol.events import MixedReceived, RowsReceived, RunReceived
from tcprepl.replication.following.progress import Progress
from tcprepl.replication.following.retry import Caller, Stopped
from tcprepl.streams.codec import RowCodec, Rows

#: A row of another than the newest shape, or not one row.
_NOT_QUICK: Final = (ValueError, msgspec.MsgspecError, RecursionError)


class Batch(msgspec.Struct, frozen=True, gc=False):
    """The rows of one token.

    Attributes:
        stream: Name of the stream.
        instance: Who wrote it.
        token: Its place in the stream of that instance.
        rows: The rows, each of the type of its stream; ``rows.raw`` is their JSON.
    """

    stream: StreamName
    instance: InstanceName
    token: Token
    rows: Rows


class Judged(NamedTuple):
    """A batch that is handed over whatever its token, and the position that it brings."""

    stream: StreamName
    instance: InstanceName
    token: Token
    rows: list[bytes]
    reached: Token | None


class Hand(deque[RunReceived | MixedReceived | RowsReceived | Judged]):
    """What is handed over at once; what was taken of it is gone from it."""

    @property
    def pair(self) -> Pair:
        """The pair that it begins with."""
        event = self[0]
        if isinstance(event, MixedReceived):
            return event.pairs[0]
        return event.stream, event.instance

    def __repr__(self) -> str:
        """Return where it begins; rows are not for logs."""
        return f"<from {' '.join(self.pair)} on>" if self else ""


class Puller:
    """Holds what a delivery hands over until it is taken, batch by batch.

    Invariant: at most one batch is with the caller, and everything before it is applied. If its
    position cannot be saved, what was written with it is undone, and it comes again. (Where a
    commit takes no part, positions are noted for each read, not for each batch.)

    Args:
        on_batches: Called when there are batches again.
    """

    def __init__(self, on_batches: Callable[[], None]) -> None:
        self._on_batches = on_batches
        self._progress: Progress
        self._caller: Caller
        self._codecs: Mapping[StreamName, RowCodec]
        self._hand = Hand()
        #: What is left of the first event of the hand, once it has begun.
        self._left: Iterator[tuple[Pair, Token, list[bytes]]] | None = None
        #: A batch is with the caller; its pair, and the position that it brings.
        self._with_caller = False
        self._pair: Pair = ("", "")
        self._reached: Token | None = None
        #: Positions that count and have not been noted.
        self._counted: dict[Pair, Token] = {}
        self._error: Exception | None = None
        self._waiting: Deferred[None] | None = None

    def attach(
        self,
        progress: Progress,
        caller: Caller,
        codecs: Mapping[StreamName, RowCodec],
    ) -> None:
        """Belong to a delivery: take its positions, its caller and its codecs (it calls this)."""
        self._progress = progress
        self._caller = caller
        self._codecs = codecs

    def take(self, hand: Hand) -> Deferred[None]:
        """Hold what is in *hand*; fires when all of it counts (the delivery calls this).

        If it fails and is called again, what counts is not held again.
        """
        self._hand = hand
        self._left = None
        self._waiting = Deferred()
        self._on_batches()
        return self._waiting

    # -- what is called by who wants batches ----------------------------------------------

    @property
    def holds(self) -> bool:
        """Whether `batches` may have something to yield, before the next `settle`."""
        return self._waiting is not None

    def batches(self) -> Iterator[Batch]:
        """Yield what there is at the moment; each counts when the next is asked for.

        A loop that was left may be taken up by another: it begins with the next batch. Rows that
        do not fit their stream are left out.
        """
        if self._with_caller and not self._count():
            return
        hand, caller, counted = self._hand, self._caller, self._counted
        known_of, one_by_one = self._progress.known, self._progress.atomic
        while hand:
            event = hand[0]
            brought: Token | EllipsisType | None = ...  # its token
            if isinstance(event, Judged):
                brought = event.reached
            if self._left is None:
                self._left = _rows_of(event)
            before: Pair | None = None
            for pair, token, raw in self._left:
                if pair is not before:
                    found = self._codecs.get(pair[0])
                    if found is None:
                        continue  # it is among those of others, and nobody asked for it
                    self._pair = before = pair
                    stream, instance = pair
                    codec = found
                    quick = codec.quick_decode
                    known = counted.get(pair) or known_of.get(pair, -1) if brought is ... else -1
                if token <= known:
                    metrics.DROPPED.labels("row", "already_known").inc(len(raw))
                    continue
                self._reached = reached = token if brought is ... else brought
                try:
                    (row,) = raw
                    rows = Rows(codec, raw, [quick(row)])
                except _NOT_QUICK:
                    rows = self._good(codec, instance, token, raw)
                    if not rows:
                        if not self._count():
                            return
                        known = token
                        continue
                self._with_caller = True
                yield Batch(stream, instance, token, rows)
                if one_by_one or not caller.running:
                    if not self._count():
                        return
                else:
                    self._with_caller = False
                    if reached is not None:
                        counted[pair] = reached
                known = token
            self._left = None
            hand.popleft()
        self._note()

    def _good(
        self, codec: RowCodec, instance: InstanceName, token: Token, raw: Sequence[bytes]
    ) -> Rows:
        """Return the rows that fit their stream; log and count those that do not."""
        good, bad = Rows(codec, raw).sift()
        if bad:
            self._caller.quarantine((codec.stream, instance), token, bad)
        return good

    def _count(self) -> bool:
        """Save the position that a batch brought; return whether there may be more."""
        self._with_caller = False
        try:
            self._save()
        except Exception as error:  # noqa: BLE001  # `settle` hands it to the caller
            self._error = error
            self._left = None
            return False
        if not self._caller.running:
            self._hand.clear()
        return self._caller.running

    def _save(self) -> None:
        self._note()
        self._progress.advance(self._pair, self._reached)

    def _note(self) -> None:
        """Note what counts, where that is not saved for each batch."""
        for pair, token in self._counted.items():
            self._progress.advance(pair, token)
        self._counted.clear()

    def settle(self) -> None:
        """Ask for more, after the end of `batches`; what was not saved comes again a bit later."""
        waiting, self._waiting = self._waiting, None
        error, self._error = self._error, None
        if waiting is not None:
            if error is None:
                waiting.callback(None)
            else:
                waiting.errback(error)

    def finish(self) -> None:
        """Count the batch that is with the caller, who wants no more.

        Raises:
            Exception: Its position could not be saved. It does not count.
        """
        if self._with_caller:
            self._save()

    def abandon(self) -> None:
        """Undo what was written since the last batch that counts; the delivery has stopped."""
        self._note()
        self._with_caller = False
        self._hand.clear()
        self._left = None
        self._error = Stopped()
        self.settle()


def _rows_of(
    event: RunReceived | MixedReceived | RowsReceived | Judged,
) -> Iterator[tuple[Pair, Token, list[bytes]]]:
    """Yield the batches of *event*."""
    if isinstance(event, MixedReceived):
        return zip(event.pairs, event.tokens, ([row] for row in event.rows), strict=True)
    pair = (event.stream, event.instance)
    if isinstance(event, RunReceived):
        return zip(repeat(pair), event.tokens, ([row] for row in event.rows), strict=False)
    return iter(((pair, event.token, event.rows),))
