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
    """

    def __init__(self, stream: StreamDef, start: Token = 0) -> None:
        """Know nothing yet, of what was before *start* least of all."""
        assert stream.key is not None
        self._stream = stream
        self._key = stream.key
        self._tokens: list[Token] = []
        self._rows: list[bytes | None] = []
        self._blank: list[bool] = []
        self._slots: dict[object, int] = {}
        self._live = 0
        self._blank_floor = start
        self._waiting: list[Block] = []
        self._waiting_bytes = 0

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
        if self._waiting_bytes >= FOLD_BYTES:
            self._settle()

    def _settle(self) -> None:
        """Fold what waits: of each key the newest row alone."""
        may_be_blank = self._stream.blank is not never
        for token, key, row in self._newest():
            before = self._slots.get(key)
            if before is not None:
                self._rows[before] = None
                self._live -= not self._blank[before]
            blank = may_be_blank and self._stream.blank(self._stream.codec.decode(row))
            self._slots[key] = len(self._tokens)
            self._tokens.append(token)
            self._rows.append(row)
            self._blank.append(blank)
            self._live += not blank
        if len(self._tokens) > 2 * (self._live + BLANKS_KEPT):
            self._compact()

    def _newest(self) -> Iterator[tuple[Token, object, bytes]]:
        """Take what waits; yield (token, key, row) of the newest row of each key."""
        places: dict[object, int] = {}
        starts: list[int] = []
        count = 0
        for block in self._waiting:
            starts.append(count)
            places.update(
                zip(self._keys(block), range(count, count + len(block.tokens)), strict=True)
            )
            count += len(block.tokens)
        places.pop(_NO_KEY, None)
        rows: list[bytes] = []
        looked_at = -1
        for place, key in sorted(zip(places.values(), places, strict=True)):
            number = bisect_right(starts, place) - 1
            block = self._waiting[number]
            if number != looked_at:
                rows, looked_at = rows_of(block), number
            index = place - starts[number]
            yield block.tokens[index], key, rows[index]
        self._waiting.clear()
        self._waiting_bytes = 0

    def _keys(self, block: Block) -> Sequence[object]:
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

    def _compact(self) -> None:
        """Let go of superseded rows, and of the older half of the blank ones."""
        keys: list[object] = [None] * len(self._tokens)
        for key, slot in self._slots.items():
            keys[slot] = key
        alive = [index for index, row in enumerate(self._rows) if row is not None]
        blanks = [index for index in alive if self._blank[index]]
        gone = set(blanks[:-BLANKS_KEPT])
        if gone:
            self._blank_floor = self._tokens[blanks[-BLANKS_KEPT - 1]]
            alive = [index for index in alive if index not in gone]
        self._tokens = [self._tokens[index] for index in alive]
        self._rows = [self._rows[index] for index in alive]
        self._blank = [self._blank[index] for index in alive]
        self._slots = {keys[index]: slot for slot, index in enumerate(alive)}

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


def drain_until(ring: Ring, token: Token) -> Iterable[Block]:
    """Evict the blocks whose rows are all at most *token*, and return them."""
    gone = []
    while len(ring) and ring.oldest.last <= token:
        gone.append(ring.evict())
    return gone
