"""Batches for who asks for the next one, instead of a handler that is called.

`Puller` takes the handler's place at a `Delivery`, under the same rules: a batch counts once the
next one is asked for, and only then is anything behind it handed over. It waits for nothing and
knows no event loop; `tcprepl.aio.follow` and `tcprepl.follow` do the waiting.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

import msgspec
from twisted.internet.defer import Deferred

from tcprepl.errors import BadRow
from tcprepl.ids import InstanceName, Pair, StreamName, Token
from tcprepl.replication.following.progress import Progress
from tcprepl.replication.following.retry import Caller, Stopped
from tcprepl.streams.codec import RowCodec, Rows


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


class Puller:
    """Holds what a delivery hands over until it is taken, batch by batch.

    Invariant: at most one batch is with the caller, and everything before it is applied. If its
    position cannot be saved, what was written with it is undone, and it comes again.

    Args:
        on_batches: Called when there are batches again.
    """

    def __init__(self, on_batches: Callable[[], None]) -> None:
        self._on_batches = on_batches
        self._progress: Progress | None = None
        self._caller: Caller | None = None
        self._pair: Pair = ("", "")
        #: Token, position that it brings, and rows of each batch that has not been taken.
        self._batches: Iterator[tuple[Token, Token | None, Rows]] = iter(())
        #: The position that the batch brings which is with the caller.
        self._reached: Token | None = None
        self._with_caller = False
        #: Whether it is all that the delivery waits for, and so saved by it.
        self._whole = False
        self._error: Exception | None = None
        self._waiting: Deferred[None] | None = None

    def attach(self, progress: Progress, caller: Caller) -> None:
        """Belong to a delivery: take its positions and its caller (it calls this)."""
        self._progress = progress
        self._caller = caller

    # -- what the delivery calls ---------------------------------------------------------

    def take(
        self,
        reached: Token | None,
        stream: StreamName,
        instance: InstanceName,
        token: Token,
        rows: Rows,
    ) -> Deferred[None]:
        """Hold a batch that brings the position *reached*; fires when it may be saved.

        Raises:
            BadRow: A row does not fit its stream. Nobody has seen the batch.
        """
        iter(rows)
        self._whole = True
        return self._hold((stream, instance), iter([(token, reached, rows)]))

    def take_run(
        self,
        stream: StreamName,
        instance: InstanceName,
        tokens: Sequence[Token],
        raw: Sequence[bytes],
        codec: RowCodec,
    ) -> Deferred[None]:
        """Hold batches of one row each, *tokens* ascending; fires when all have counted.

        If it fails and is called again, those that have counted are not held again.
        """
        assert self._progress is not None
        pair = (stream, instance)
        begin = bisect_right(tokens, self._progress.known.get(pair, -1))
        self._whole = False
        left = zip(tokens[begin:], raw[begin:], strict=True)
        return self._hold(pair, ((token, token, Rows(codec, [row])) for token, row in left))

    def _hold(
        self, pair: Pair, batches: Iterator[tuple[Token, Token | None, Rows]]
    ) -> Deferred[None]:
        self._pair = pair
        self._batches = batches
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

        A loop that was left may be taken up by another: it begins with the next batch.
        """
        stream, instance = self._pair
        if self._with_caller and not self._count():
            return
        for token, reached, rows in self._batches:
            self._reached = reached
            try:
                iter(rows)
            except BadRow as error:
                assert self._caller is not None
                self._caller.quarantine(self._pair, token, [error])
            else:
                self._with_caller = True
                yield Batch(stream, instance, token, rows)
            if not self._count():
                return

    def _count(self) -> bool:
        """Save the position that a batch brought; return whether there may be more."""
        assert self._caller is not None
        self._with_caller = False
        try:
            if not self._whole:
                self._save()
        except Exception as error:  # noqa: BLE001  # `settle` hands it to the caller
            self._error = error
        if self._error is None and self._caller.running:
            return True
        self._batches = iter(())
        return False

    def _save(self) -> None:
        assert self._progress is not None
        self._progress.advance(self._pair, self._reached)

    def settle(self) -> None:
        """Ask for more at the end of `batches`; what was not saved comes again, a little later."""
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
        self._with_caller = False
        self._batches = iter(())
        self._error = Stopped()
        self.settle()
