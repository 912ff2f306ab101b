"""What one turn of the reactor has brought for a stream, until it is appended together.

This is the hot path of a writer that publishes row by row, as homeservers do: at its call a
row is encoded, checked and noted, and all else is done once for as many as there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter, itemgetter
from sys import getrefcount
from typing import Any, TypeAlias

from msgspec import MsgspecError, Raw, convert
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tcprepl.ids import Pair
from tcprepl.limits import MAX_ROW_BYTES
from tcprepl.streams.codec import RowCodec, encode
from tcprepl.streams.json_rows import JsonRows
from tcprepl.streams.log import Appended

#: What may wait for the end of a turn, in shares: a row takes one, and one more for each
#: `SHARE_BYTES` of it. What exceeds that is appended at once.
GATHERED_SHARES = 500
SHARE_BYTES = 256
#: Rows of a call from which on it is not gathered: it is cheap by itself, and a copy is not.
LARGE_CALL_ROWS = 32

#: How rows are refused by what is quick: only `RowCodec.encode` can judge them.
_REFUSED = (MsgspecError, UnicodeError, TypeError, OverflowError, RecursionError)

#: What became of rows that follow one another: how many, and their tokens, or why not.
Outcome: TypeAlias = "tuple[int, Appended | Failure]"

_first = itemgetter(0)


# Releases of Twisted differ in whether that is public.
_CALLBACKS = "_callbacks" if hasattr(Deferred(), "_callbacks") else "callbacks"


class _Answer(Deferred[Any]):
    """A Deferred that is made once somebody has it call something.

    Attributes:
        asked: Whether somebody has.
    """

    asked = False
    _canceller = None
    __init__ = object.__init__


class _Unmade:
    """Stands where an answer keeps what it is to call, until it is made."""

    def __get__(self, answer: _Answer, owner: type) -> Any:
        answer.asked = True
        Deferred.__init__(answer)
        return answer.__dict__[_CALLBACKS]


setattr(_Answer, _CALLBACKS, _Unmade())


def _made_answer() -> _Answer:
    """Return an answer that knows who asked for it, for Twisted's debugging."""
    answer: _Answer = _Answer()
    getattr(answer, _CALLBACKS)
    return answer


_asked = attrgetter("asked")
#: How often an answer is referred to, as seen from here, that its caller has not kept.
_NOT_KEPT = max(map(getrefcount, [_Answer()]))


class Gathering:
    """What one turn has brought for one stream and instance, in the order of the calls.

    Attributes:
        pair: The stream and the instance.
        codec: Of the stream.
        lines: Of each call its rows as lines of JSON, an LF between two of them.
        counts: How many rows each call has; negative where they are independent, so that a
            list of outcomes is waited for.
        waiting: The answer to each call.
        room: How many shares more should wait for the end of the turn.
    """

    __slots__ = (
        "_keys",
        "_new",
        "_shape",
        "_sure",
        "codec",
        "counts",
        "lines",
        "pair",
        "room",
        "waiting",
    )

    def __init__(self, pair: Pair, codec: RowCodec) -> None:
        self.pair = pair
        self.codec = codec
        self.lines: list[bytes] = []
        self.counts: list[int] = []
        self.waiting: list[_Answer] = []
        self.room = GATHERED_SHARES
        self._new = _made_answer if Deferred.debug else _Answer
        self._shape = codec.common_row
        #: Whether all rows are known to fit; the key of each, if so and where rows have one.
        self._sure = True
        self._keys: list[Any] | None = [] if codec.keyed else None

    def take(self, rows: Sequence[Any]) -> Deferred[Appended] | None:
        """Note a call; return its answer, or None if it is to be appended by itself.

        So it is if it has many rows, or rows that only `RowCodec.encode` can judge.
        They are encoded now: what becomes of the objects afterwards does not matter.
        """
        # What follows is done for each row of a writer: it has no call more than it needs.
        count = len(rows)
        if count == 1:
            row = rows[0]
            if type(row) is list and self._shape is not None:
                try:
                    convert(rows, self._shape)
                    lines = encode(row)
                except _REFUSED:
                    return self._take_unsure(rows)
                if self._keys is not None:
                    self._keys.append(row[0])
                self.lines.append(lines)
                self.counts.append(1)
                self.room -= 1 + len(lines) // SHARE_BYTES
                answered = self._new()
                self.waiting.append(answered)
                return answered
        elif not 0 < count < LARGE_CALL_ROWS:
            return None
        sure = self.codec.sure_lines(rows)
        if sure is None:
            return self._take_unsure(rows)
        if self._keys is not None:
            self._keys += map(_first, rows)
        return self._note(sure, count)

    def _take_unsure(self, rows: Sequence[Any]) -> Deferred[Appended] | None:
        """Note a call whose rows are looked at once all are together."""
        lines = self.codec.snapshot(rows)
        if not lines:
            return None
        self._sure = False
        return self._note(lines, len(rows))

    def take_json(self, rows: Sequence[bytes | Raw]) -> Deferred[Appended] | None:
        """Note a call with JSON, as `take` does; `RowCodec.check` judges the others."""
        lines = self.codec.snapshot_json(rows) if len(rows) < LARGE_CALL_ROWS else None
        if not lines:
            return None
        self._sure = False
        return self._note(lines, len(rows))

    def take_each(self, lines: bytes, count: int) -> Deferred[list[Outcome]]:
        """Note *count* calls with a line of JSON each; an LF is between two of them."""
        self._sure = False
        answered = self._note(lines, count)
        self.counts[-1] = -count
        return answered

    def _note(self, lines: bytes, count: int) -> _Answer:
        answered = self._new()
        self.lines.append(lines)
        self.counts.append(count)
        self.waiting.append(answered)
        self.room -= count + len(lines) // SHARE_BYTES
        return answered

    def together(self) -> JsonRows | None:
        """Return the rows of all calls in one piece; None if one may not fit."""
        lines = b"\n".join((*self.lines, b""))
        if self._sure and (
            len(lines) <= MAX_ROW_BYTES or max(map(len, self.lines)) <= MAX_ROW_BYTES
        ):
            keys = None if self._keys is None else self.codec.keys_of(self._keys)
            return JsonRows(lines, sum(self.counts), keys)
        return self.codec.checked(lines, sum(map(abs, self.counts)))

    def answer(self, appended: Appended) -> None:
        """Answer each call with its own tokens."""
        if max(map(getrefcount, self.waiting)) <= _NOT_KEPT and not any(map(_asked, self.waiting)):
            return  # Most writers do not ask, and to tell nobody costs as much as to encode a row.
        stream, instance, after = *self.pair, appended.first - 1
        for count, answered in zip(self.counts, self.waiting, strict=True):
            first, after = after + 1, after + abs(count)
            mine: Any = Appended(stream, instance, first, after)
            if count < 0:
                mine = [(-count, mine)]
            if answered.asked:
                answered.callback(mine)
            else:  # there is nothing to call yet
                answered.result = mine
                answered.called = True

    def refuse(self, failure: Failure) -> None:
        """Answer each call with *failure*."""
        for count, answered in zip(self.counts, self.waiting, strict=True):
            answered.callback([(-count, failure)] if count < 0 else failure)
