"""Calling a handler with batches of one row each: the hot loop of every worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import length_hint

from twisted.internet.defer import Deferred

from tcprepl import metrics
from tcprepl.ids import InstanceName, Pair, StreamName, Token
from tcprepl.protocol.events import MixedReceived, RunReceived
from tcprepl.replication.following.progress import Progress
from tcprepl.replication.following.retry import AWAITABLE, Call, Caller
from tcprepl.streams.codec import RowCodec, Rows


class _Place:
    """Where one pair is in a run."""

    __slots__ = ("codec", "instance", "pair", "reached", "stale", "stream")

    def __init__(self, pair: Pair, codec: RowCodec | None, reached: Token) -> None:
        self.pair = pair
        self.stream, self.instance = pair
        self.codec = codec
        self.reached = reached
        self.stale = 0


class Runs:
    """Hands batches of one row each to a handler, as far as it does not take its time.

    What a row costs beyond its handler is here; positions are noted once for all of them, so
    the store may not be one that shares a transaction with the handler.

    Args:
        handler: Called with (stream, instance, token, rows).
        progress: The positions.
        caller: Goes on with a call that did not succeed at once.
        codec_of: Returns how to read a stream; None when it is not to be handed over.
        received: Counts the rows handed over, by stream.
        passed_over: As for `Delivery`.
        go_back: Called with (pair, known, base) where *known* was told falsely.
    """

    def __init__(
        self,
        handler: Callable[[StreamName, InstanceName, Token, Rows], object],
        progress: Progress,
        caller: Caller,
        codec_of: Callable[[StreamName], RowCodec | None],
        received: dict[StreamName, int],
        passed_over: Callable[[Pair, Token], Token | None] | None,
        go_back: Callable[[Pair, Token, Token], Deferred[None]],
    ) -> None:
        self._handler = handler
        self._progress = progress
        self._caller = caller
        self._codec_of = codec_of
        self._received = received
        self._passed_over = passed_over
        self._go_back = go_back

    def run(self, run: RunReceived) -> tuple[Deferred[None] | None, MixedReceived | None]:
        """Call the handler with each row that is new, in order.

        Returns:
            What to wait for, and what is left.
        """
        place = self._place((run.stream, run.instance))
        return self._hand_over([place] * len(run.tokens), run.tokens, run.rows)

    def mixed(self, mixed: MixedReceived) -> tuple[Deferred[None] | None, MixedReceived | None]:
        """Do as `run` does."""
        pairs, tokens, raws = mixed
        places = {pair: self._place(pair) for pair in set(pairs)}
        return self._hand_over(list(map(places.__getitem__, pairs)), tokens, raws)

    def _place(self, pair: Pair) -> _Place:
        return _Place(pair, self._codec_of(pair[0]), self._progress.known.get(pair, -1))

    def _hand_over(
        self, places: list[_Place], tokens: Sequence[Token], raws: Sequence[bytes]
    ) -> tuple[Deferred[None] | None, MixedReceived | None]:
        handler, caller = self._handler, self._caller
        later: Callable[[], Deferred[None]] | None = None
        rest = iter(tokens)
        again = 0
        for place, token, raw in zip(places, rest, raws, strict=True):
            codec = place.codec
            if codec is None:
                continue
            if token <= place.reached:
                pair = place.pair
                base = None if self._passed_over is None else self._passed_over(pair, token)
                if base is not None:
                    later = partial(self._go_back, pair, place.reached, base)
                    again = 1
                    break
                place.stale += 1
                continue
            rows = Rows(codec, [raw])
            try:
                result = handler(place.stream, place.instance, token, rows)
            except BaseException as error:  # noqa: BLE001  # undone, then raised
                call = Call(handler, (*place.pair, token, rows), place.pair, token, rows)
                later = partial(caller.again, call, error)
                break
            if result is not None and isinstance(result, AWAITABLE):
                call = Call(handler, (*place.pair, token, rows), place.pair, token, rows)
                later = partial(caller.settle, call, result)
                break
            place.reached = token
            if not caller.running:
                break
        done = len(tokens) - length_hint(rest) - again
        self._note(places[:done])
        if later is None:
            return None, None
        left = MixedReceived([place.pair for place in places[done:]], tokens[done:], raws[done:])
        return later(), left if left.tokens else None

    def _note(self, done: list[_Place]) -> None:
        """Count the rows of *done*, and note what was reached with them."""
        for place in dict.fromkeys(done):
            if place.codec is None:
                continue
            if place.stale:
                metrics.DROPPED.labels("row", "already_known").inc(place.stale)
            handed = done.count(place) - place.stale
            if handed:
                self._received[place.stream] = self._received.get(place.stream, 0) + handed
            if place.reached != self._progress.known.get(place.pair, -1):
                self._progress.advance(place.pair, place.reached)
