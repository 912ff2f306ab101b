"""Blocks in memory: the newest of a stream, and the newest state of each key.

A `Ring` holds the newest blocks of one (stream, instance). `CompactedRows` hold, of a
stream of states, what the newest evicted row of each key said, for readers that start anew.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tcprepl.errors import BadRow
from tcprepl.ids import Token
from tcprepl.streams.blocks import render, rows_of
from tcprepl.streams.log import Block
from tcprepl.streams.registry import StreamDef, never

#: Blank rows that are kept at least, so that a reader in the middle of the states sees them.
BLANKS_KEPT = 1_024
#: Bytes of evicted rows that wait to be folded together.
FOLD_BYTES = 1024 * 1024
#: Rows that are folded in one step, where many wait; states that are copied in one.
STEP_ROWS = 250
STEP_STATES = 2_000
#: Rows that are rendered at once when states are read.
_CHUNK_ROWS = 500


class Ring:
    """The newest blocks, in token order; the caller decides when the oldest goes.

    Attributes:
        rows: Rows held.
        size_bytes: Bytes of lines held.
    """

    __slots__ = ("_blocks", "_head", "_lasts", "rows", "size_bytes")

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._lasts: list[Token] = []
        self._head = 0
        self.rows = 0
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._blocks) - self._head

    @property
    def oldest(self) -> Block:
        """The oldest block; there has to be one."""
        return self._blocks[self._head]

    def append(self, block: Block) -> None:
        """Add the newest block."""
        self._blocks.append(block)
        self._lasts.append(block.tokens[-1])
        self.rows += len(block.tokens)
        self.size_bytes += len(block.lines)

    def evict(self) -> Block:
        """Remove the oldest block and return it."""
        block = self._blocks[self._head]
        self._head += 1
        self.rows -= len(block.tokens)
        self.size_bytes -= len(block.lines)
        if self._head >= 64 and self._head * 2 >= len(self._blocks):
            del self._blocks[: self._head]
            del self._lasts[: self._head]
            self._head = 0
        else:
            # let go of the bytes now; the slot goes with the next clean-up
            self._blocks[self._head - 1] = _NOTHING
        return block

    def after(self, token: Token) -> Iterator[Block]:
        """Yield the blocks that hold rows after *token*."""
        for index in range(bisect_right(self._lasts, token, self._head), len(self._blocks)):
            yield self._blocks[index]


#: Stands for the key of a row that says nothing.
_NO_KEY = object()
_NOTHING = Block("", "", (0,), b"", 0)


class CompactedRows:
    """The newest evicted row of each key, in token order.

    A row that is blank is kept too, for a while: a reader that is in the middle of the
    states, and got an earlier row of the key, has to hear of it.

    What there is to do for many rows is done a step at a time, as more of them come; whoever
    looks has all of it done but what only makes room.
    """

    def __init__(self, stream: StreamDef, start: Token = 0) -> None:
        """Know nothing yet, of what was before *start* least of all."""
        assert stream.key is not None
        self._stream = stream
        self._key = stream.key
        #: Of each row its token, its key, whether it is blank, and itself: None if superseded.
        self._tokens: list[Token] = []
        self._keys: list[object] = []
        self._rows: list[bytes | None] = []
        self._blank: list[bool] = []
        self._slots: dict[object, int] = {}
        self._live = 0
        self._blank_floor = start
        self._waiting: list[Block] = []
        self._waiting_bytes = 0
        #: What is under way, of which at most one is: folding, or making room.
        self._folding: Iterator[None] | None = None
        self._compacting: Iterator[None] | None = None

    def __len__(self) -> int:
        self._settle()
        return self._live

    @property
    def blank_floor(self) -> Token:
        """Below this token a reader that began before has missed that a key went blank."""
        self._settle()
        return self._blank_floor

    def fold(self, block: Block) -> None:
        """Take in the rows of an evicted block; each replaces what its key said before.

        That is put off until many rows are together, most of them superseded by then, or
        until somebody asks.
        """
        self._waiting.append(block)
        self._waiting_bytes += len(block.lines)
        if self._folding is None and self._compacting is None:
            if self._takes_room(2):
                self._compacting = self._compact()
            elif self._waiting_bytes >= FOLD_BYTES:
                self._folding = self._fold_waiting()
            else:
                return
        # Faster than rows come, so that it ends before as many wait as it began with.
        for _ in range(1 + 2 * len(block.tokens) // STEP_ROWS):
            self._folding = _advanced(self._folding)
            self._compacting = _advanced(self._compacting)

    def _settle(self) -> None:
        """Fold all that waits, for who looks."""
        while self._folding is not None:
            self._folding = _advanced(self._folding)
        if self._waiting:
            self._compacting = None  # it would miss this, and begins again
            for _ in self._fold_waiting():
                pass
        # Where there are many states the next rows make room, unless they seldom could.
        if self._takes_room(2 if len(self._tokens) <= 5 * STEP_STATES else 4):
            self._compacting = None
            for _ in self._compact():
                pass

    def _takes_room(self, times: int) -> bool:
        """Return whether more than *times* of what has to be there is there."""
        return len(self._tokens) > times * (self._live + BLANKS_KEPT)

    def _fold_waiting(self) -> Iterator[None]:
        """Fold what waits now, of each key the newest row alone; a step each time."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        may_be_blank = self._stream.blank is not never
        places: dict[object, int] = {}
        starts: list[int] = []
        count = looked = 0
        for block in waiting:
            starts.append(count)
            keys = self._keys_of(block)
            places.update(zip(keys, range(count, count + len(keys)), strict=True))
            count += len(keys)
            if count - looked >= STEP_ROWS:
                looked = count
                yield
        places.pop(_NO_KEY, None)
        rows: list[bytes] = []
        looked = -1
        for done, (place, key) in enumerate(sorted(zip(places.values(), places, strict=True)), 1):
            number = bisect_right(starts, place) - 1
            block = waiting[number]
            if number != looked:
                rows, looked = rows_of(block), number
            row = rows[place - starts[number]]
            before = self._slots.get(key)
            if before is not None:
                self._rows[before] = None
                self._live -= not self._blank[before]
            blank = may_be_blank and self._stream.blank(self._stream.codec.decode(row))
            self._slots[key] = len(self._tokens)
            self._tokens.append(block.tokens[place - starts[number]])
            self._keys.append(key)
            self._rows.append(row)
            self._blank.append(blank)
            self._live += not blank
            if not done % STEP_ROWS:
                yield

    def _keys_of(self, block: Block) -> Sequence[object]:
        """Return the key of each row of *block*."""
        if block.keys is not None:
            return block.keys
        values = map(self._value_or_none, rows_of(block))
        return [_NO_KEY if value is None else self._key(value) for value in values]

    def _value_or_none(self, row: bytes) -> Any:
        """Return what *row* says; rows that were appended unchecked may say nothing."""
        try:
            return self._stream.codec.decode(row)
        except BadRow:
            return None

    def _compact(self) -> Iterator[None]:
        """Let go of superseded rows, and of the older half of the blank ones; in steps.

        Nothing is folded meanwhile: what there is now is there until all of it is done.
        """
        size = len(self._tokens)
        blanks: list[int] = []
        for start in range(0, size, STEP_STATES):
            part = range(start, min(start + STEP_STATES, size))
            blanks += [i for i in part if self._blank[i] and self._rows[i] is not None]
            yield
        floor, first_blank = self._blank_floor, 0
        if len(blanks) > BLANKS_KEPT:
            floor, first_blank = self._tokens[blanks[-BLANKS_KEPT - 1]], blanks[-BLANKS_KEPT]
        tokens: list[Token] = []
        keys: list[object] = []
        rows: list[bytes | None] = []
        blank: list[bool] = []
        slots: dict[object, int] = {}
        for start in range(0, size, STEP_STATES):
            for i in range(start, min(start + STEP_STATES, size)):
                if self._rows[i] is None or (self._blank[i] and i < first_blank):
                    continue
                slots[self._keys[i]] = len(tokens)
                tokens.append(self._tokens[i])
                keys.append(self._keys[i])
                rows.append(self._rows[i])
                blank.append(self._blank[i])
            yield
        self._tokens, self._keys, self._rows, self._blank = tokens, keys, rows, blank
        self._slots = slots
        self._blank_floor = floor

    def after(self, token: Token, instance: str) -> Iterator[Block]:
        """Yield the states newer than *token* as blocks, rendered for this call.

        The blank rows are left out for a reader that begins.
        """
        self._settle()
        tokens: list[Token] = []
        rows: list[bytes] = []
        for index in range(bisect_right(self._tokens, token), len(self._tokens)):
            row = self._rows[index]
            if row is None or (self._blank[index] and not token):
                continue
            if len(rows) >= _CHUNK_ROWS and self._tokens[index] != tokens[-1]:
                yield render(self._stream.name, instance, tokens, rows, 0)
                tokens, rows = [], []
            tokens.append(self._tokens[index])
            rows.append(row)
        if rows:
            yield render(self._stream.name, instance, tokens, rows, 0)


def _advanced(work: Iterator[None] | None) -> Iterator[None] | None:
    """Do the next step of *work*; return it, or None if it has ended."""
    return work if work is not None and next(work, work) is None else None


def drain_until(ring: Ring, token: Token) -> Iterable[Block]:
    """Evict the blocks whose rows are all at most *token*, and return them."""
    gone = []
    while len(ring) and ring.oldest.last <= token:
        gone.append(ring.evict())
    return gone
