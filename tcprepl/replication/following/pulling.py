"""Batches for who asks for the next one, instead of a handler that is called.

`Puller` takes the handler's place at a `Delivery`, under the same rules: a batch counts once the
next one is asked for, and only then is anything behind it handed over. It waits for nothing and
knows no event loop; `tcprepl.aio.follow` and `tcprepl.follow` do the waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, Final, NamedTuple

import msgspec
from twisted.internet.defer import Deferred

from tcprepl import metrics
from tcprepl.ids import InstanceName, Pair, StreamName, Token
from tcprepl.protocol.events import MixedReceived, RowsReceived, RunReceived
from tcprepl.replication.following.progress import Progress
from tcprepl.replication.following.retry import Caller, Stopped
from tcprepl.streams.codec import RowCodec, Rows

#: A row of another than the newest shape, or more rows than one.
_NOT_QUICK: Final = (ValueError, msgspec.MsgspecError, RecursionError, TypeError)


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


class _Place:
    """Where one pair is in a hand.

    Attributes:
        reached: The token up to which it counts.
        noted: Up to where that was noted.
    """

    __slots__ = ("codec", "instance", "noted", "pair", "quick", "reached", "stream")

    def __init__(self, pair: Pair, codec: RowCodec | None, reached: Token) -> None:
        self.pair = pair
        self.stream, self.instance = pair
        self.codec = codec  # None: it is among those of others, and nobody asked for it
        self.quick: Any = None if codec is None else codec.quick_decode
        self.reached = self.noted = reached


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
        self._left: Iterator[tuple[_Place, Token, bytes | list[bytes]]] | None = None
        #: Where the pairs of the hand are.
        self._places: dict[Pair, _Place] = {}
        #: Whose batch is with the caller, and its token.
        self._lent: _Place | None = None
        self._token: Token = 0
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
        self._places = {}
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
        if self._lent is not None and not self._count():
            return
        hand, caller = self._hand, self._caller
        while hand:
            event = hand[0]
            one_by_one = self._progress.atomic or type(event) is Judged
            if self._left is None:
                self._left = self._rows_of(event)
            for place, token, raw in self._left:
                codec = place.codec
                if token <= place.reached or codec is None:
                    if codec is not None:
                        count = len(raw) if isinstance(raw, list) else 1
                        metrics.DROPPED.labels("row", "already_known").inc(count)
                    continue
                self._lent = place
                self._token = token
                try:
                    rows = Rows(codec, [raw], [place.quick(raw)])  # type: ignore[list-item]
                except _NOT_QUICK:
                    rows = self._good(codec, place, token, raw if isinstance(raw, list) else [raw])
                    if not rows:
                        if not self._count():
                            return
                        continue
                yield Batch(place.stream, place.instance, token, rows)
                if one_by_one or not caller.running:
                    if not self._count():
                        return
                else:
                    self._lent = None
                    place.reached = token
            self._left = None
            hand.popleft()
        self._note()

    def _rows_of(
        self, event: RunReceived | MixedReceived | RowsReceived | Judged
    ) -> Iterator[tuple[_Place, Token, bytes | list[bytes]]]:
        """Yield the batches of *event*: where each is, its token, and its row or rows."""
        if isinstance(event, MixedReceived):
            places = {pair: self._place(pair) for pair in set(event.pairs)}
            return zip(map(places.__getitem__, event.pairs), event.tokens, event.rows, strict=True)
        place = self._place((event.stream, event.instance))
        if isinstance(event, RunReceived):
            return zip(repeat(place), event.tokens, event.rows, strict=False)
        if isinstance(event, Judged):
            self._note()
            del self._places[place.pair]
            place = _Place(place.pair, place.codec, -1)
        return iter(((place, event.token, event.rows),))

    def _place(self, pair: Pair) -> _Place:
        place = self._places.get(pair)
        if place is None:
            known = self._progress.known.get(pair, -1)
            place = self._places[pair] = _Place(pair, self._codecs.get(pair[0]), known)
        return place

    def _good(self, codec: RowCodec, place: _Place, token: Token, raw: Sequence[bytes]) -> Rows:
        """Return the rows that fit their stream; log and count those that do not."""
        good, bad = Rows(codec, raw).sift()
        if bad:
            self._caller.quarantine(place.pair, token, bad)
        return good

    def _count(self) -> bool:
        """Save the position that a batch brought; return whether there may be more."""
        try:
            self._save()
        except Exception as error:  # noqa: BLE001  # `settle` hands it to the caller
            self._error = error
            self._left = None
            return False
        finally:
            self._lent = None
        if not self._caller.running:
            self._hand.clear()
        return self._caller.running

    def _save(self) -> None:
        """Save the position that the batch with the caller brought, and those before it."""
        self._note()
        assert self._lent is not None
        event = self._hand[0]
        reached = event.reached if isinstance(event, Judged) else self._token
        self._progress.advance(self._lent.pair, reached)
        self._lent.reached = self._lent.noted = self._token

    def _note(self) -> None:
        """Note what counts, where that is not saved for each batch."""
        for place in self._places.values():
            if place.reached != place.noted:
                self._progress.advance(place.pair, place.reached)
                place.noted = place.reached

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
        if self._lent is not None:
            self._save()

    def abandon(self) -> None:
        """Undo what was written since the last batch that counts; the delivery has stopped."""
        self._note()
        self._lent = None
        self._hand.clear()
        self._left = None
        self._error = Stopped()
        self.settle()
