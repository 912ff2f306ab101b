"""What one turn of the reactor has brought for a stream, until it is appended together.

This is the hot path of a writer that publishes row by row, as homeservers do: at its call a
row is encoded, checked and noted, and all else is done once for as many as there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, repeat
from operator import attrgetter, itemgetter
from typing import Any, TypeAlias

from msgspec import MsgspecError, Raw, convert
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tcprepl.ids import Pair
from tcprepl.limits import MAX_ROW_BYTES
from tcprepl.streams.codec import RowCodec, encode
from tcprepl.streams.json_rows import JsonRows
from tcprepl.streams.log import Appended

#: Rows and bytes after which what was gathered is appended, even if the turn has not ended.
GATHERED_ROWS = 500
GATHERED_BYTES = 131_072
#: Rows of a call from which on it is not gathered: it is cheap by itself, and a copy is not.
LARGE_CALL_ROWS = 32

#: What became of rows that follow one another: how many, and their tokens, or why not.
Outcome: TypeAlias = "tuple[int, Appended | Failure]"

#: What waits for a Deferred. Releases of Twisted differ in whether that is public.
_callbacks = attrgetter("_callbacks" if hasattr(Deferred(), "_callbacks") else "callbacks")
_called = attrgetter("called")
_first = itemgetter(0)
_next = (1).__add__


class Gathering:
    """What one turn has brought for one stream and instance, in the order of the calls.

    Attributes:
        pair: The stream and the instance.
        codec: Of the stream.
        lines: Of each call its rows as lines of JSON, an LF between two of them.
        counts: How many rows each call has; negative where they are independent, so that a
            list of outcomes is waited for.
        waiting: Who waits for each call.
        room_rows: How many rows more should wait for the end of the turn.
        room_bytes: How many bytes more.
    """

    __slots__ = (
        "_keys",
        "_shape",
        "_sure",
        "codec",
        "counts",
        "lines",
        "pair",
        "room_bytes",
        "room_rows",
        "waiting",
    )

    def __init__(self, pair: Pair, codec: RowCodec) -> None:
        self.pair = pair
        self.codec = codec
        self.lines: list[bytes] = []
        self.counts: list[int] = []
        self.waiting: list[Deferred[Any]] = []
        self.room_rows = GATHERED_ROWS
        self.room_bytes = GATHERED_BYTES
        self._shape = codec.common_row
        #: Whether all rows are known to fit; the key of each, if so and where rows have one.
        self._sure = True
        self._keys: list[Any] | None = [] if codec.keyed else None

    def take(self, rows: Sequence[Any]) -> Deferred[Appended] | None:
        """Note a call; return its answer, or None if it is to be appended by itself.

        So it is if it has many rows, or rows that only `RowCodec.encode` can judge.
        They are encoded now: what becomes of the objects afterwards does not matter.
        """
        count = len(rows)
        lines: bytes | None = None
        if count == 1 and self._shape is not None and type(rows[0]) is list:
            try:
                convert(rows, self._shape)
                lines = encode(rows[0])
            except (MsgspecError, UnicodeError, TypeError, OverflowError, RecursionError):
                pass
        elif 0 < count < LARGE_CALL_ROWS:
            lines = self.codec.sure_lines(rows)
        else:
            return None
        if lines is None:
            lines = self.codec.snapshot(rows)
            if not lines:
                return None
            self._sure = False
        elif self._keys is not None:
            if count == 1:
                self._keys.append(rows[0][0])
            else:
                self._keys += map(_first, rows)
        answered: Deferred[Any] = Deferred()
        self.lines.append(lines)
        self.counts.append(count)
        self.waiting.append(answered)
        self.room_rows -= count
        self.room_bytes -= len(lines)
        return answered

    def take_json(self, rows: Sequence[bytes | Raw]) -> Deferred[Appended] | None:
        """Note a call with JSON, as `take` does; `RowCodec.check` judges the others."""
        lines = self.codec.snapshot_json(rows) if len(rows) < LARGE_CALL_ROWS else None
        return self._note(lines, len(rows)) if lines else None

    def take_each(self, lines: bytes, count: int) -> Deferred[list[Outcome]]:
        """Note *count* calls with a line of JSON each; an LF is between two of them."""
        answered = self._note(lines, count)
        self.counts[-1] = -count
        return answered

    def _note(self, lines: bytes, count: int) -> Deferred[Any]:
        self._sure = False
        answered: Deferred[Any] = Deferred()
        self.lines.append(lines)
        self.counts.append(count)
        self.waiting.append(answered)
        self.room_rows -= count
        self.room_bytes -= len(lines)
        return answered

    def together(self) -> JsonRows | None:
        """Return the rows of all calls in one piece; None if one may not fit."""
        lines = b"\n".join((*self.lines, b""))
        count = GATHERED_ROWS - self.room_rows
        if self._sure and (
            len(lines) <= MAX_ROW_BYTES or max(map(len, self.lines)) <= MAX_ROW_BYTES
        ):
            keys = None if self._keys is None else self.codec.keys_of(self._keys)
            return JsonRows(lines, count, keys)
        return self.codec.checked(lines, count)

    def answer(self, appended: Appended) -> None:
        """Answer each call with its own tokens."""
        stream, instance, after = *self.pair, appended.first - 1
        waiting = self.waiting
        if min(self.counts) > 0 and not (
            any(map(_callbacks, waiting)) or any(map(_called, waiting))
        ):
            # As nearly always nobody listens: to note the answers costs a third of running no
            # callbacks.
            upto = list(accumulate(self.counts, initial=after))
            firsts = map(_next, upto)
            made = map(Appended, repeat(stream), repeat(instance), firsts, upto[1:])
            for answered, mine in zip(waiting, made, strict=True):
                answered.result = mine
                answered.called = True
            return
        for count, answered in zip(self.counts, waiting, strict=True):
            first, after = after + 1, after + abs(count)
            mine = Appended(stream, instance, first, after)
            answered.callback([(-count, mine)] if count < 0 else mine)

    def refuse(self, failure: Failure) -> None:
        """Answer each call with *failure*."""
        for count, answered in zip(self.counts, self.waiting, strict=True):
            answered.callback([(-count, failure)] if count < 0 else failure)
