"""Blocks in memory: the newest of a stream, and the newest state of each key.

A `Ring` holds the newest blocks of one (stream, instance). A `Kept` holds, of a stream of
states, what the newest evicted row of each key said, for readers that start anew.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from tcprepl.errors import BadRow
from tcprepl.ids import Token
from tcprepl.streams.blocks import render, rows_of
from tcprepl.streams.log import Block
from tcprepl.streams.registry import StreamDef

#: Blank rows that are kept at least, so that a reader in the middle of the states sees them.
BLANKS_KEPT = 1_024
#: Evicted rows that wait to be folded together.
FOLD_ROWS = 4_096
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
        self._lasts.append(block.last)
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


_NOTHING = Block("", "", (0,), b"", (0,), 0, 0)


class _FirstField(msgspec.Struct, array_like=True, gc=False):
    """What is read of a row when only its key counts."""

    key: str


_first_fields = msgspec.json.Decoder(_FirstField)


class Kept:
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
        self._waiting_rows = 0

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
        self._waiting_rows += len(block.tokens)
        if self._waiting_rows >= FOLD_ROWS:
            self._settle()

    def _settle(self) -> None:
        """Fold what waits: of each key the newest row alone."""
        if not self._waiting:
            return
        tokens: list[Token] = []
        rows: list[bytes] = []
        for block in self._waiting:
            tokens += block.tokens
            rows += rows_of(block)
        self._waiting.clear()
        self._waiting_rows = 0
        for index, (key, value) in sorted(self._newest(rows).items()):
            before = self._slots.get(key)
            if before is not None:
                self._rows[before] = None
                self._live -= not self._blank[before]
            blank = self._stream.blank(value)
            self._slots[key] = len(self._tokens)
            self._tokens.append(tokens[index])
            self._rows.append(rows[index])
            self._blank.append(blank)
            self._live += not blank
        if len(self._tokens) > 2 * (self._live + BLANKS_KEPT):
            self._compact()

    def _newest(self, rows: list[bytes]) -> dict[int, tuple[object, Any]]:
        """Return the index of the newest row of each key, with the key and what it says."""
        if self._stream.key_is_first_field:
            try:
                keys = [first.key for first in _first_fields.decode_lines(b"\n".join(rows))]
                places = dict(zip(keys, range(len(rows)), strict=True))
                return {i: (key, self._stream.codec.decode(rows[i])) for key, i in places.items()}
            except (msgspec.MsgspecError, UnicodeError, BadRow):
                pass  # among them is one that was appended unchecked
        values = [self._value_or_none(row) for row in rows]
        newest = {self._key(v): i for i, v in enumerate(values) if v is not None}
        return {index: (key, values[index]) for key, index in newest.items()}

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
