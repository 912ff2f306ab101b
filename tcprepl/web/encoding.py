"""The two shapes of a long poll's answer, each as JSON or MessagePack (protocol.md section 13).

*Object*: ``{table: {"position", "field_names", "rows"}}``, what clients of the API of 2016 read.
*Table*: one array in which each table is a header row ``[name, position, rows, columns,
column names...]`` followed by its rows; tables follow one another, and the count of rows in
the header says where the next one begins.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from tcprepl.http.calls import JSON, ApiError, Call, Response, invalid
from tcprepl.web.tables import Cell, Feed

MSGPACK = "application/msgpack"
_MSGPACK_NAMES = (MSGPACK, "application/x-msgpack", "application/vnd.msgpack")


class Shape(Enum):
    """How tables become one value."""

    OBJECT = "object"
    TABLE = "table"


@dataclass(frozen=True, slots=True)
class Fragment:
    """A part of an answer, encoded.

    Attributes:
        count: Entries of the map (object shape) or of the array (table shape).
        encoded: The entries; JSON ones are separated by commas.
        urgent: Whether it has rows, so that a poll need not wait any longer.
    """

    count: int
    encoded: bytes
    urgent: bool


@dataclass(frozen=True, slots=True)
class Encoder:
    """Writes answers in one shape and one encoding."""

    shape: Shape
    packed: bool

    def response(self, fragments: Sequence[Fragment]) -> Response:
        """Return the answer made of *fragments*."""
        encoded = [fragment.encoded for fragment in fragments if fragment.count]
        if self.packed:
            count = sum(fragment.count for fragment in fragments)
            fixed, wide = (0x80, 0xDF) if self.shape is Shape.OBJECT else (0x90, 0xDD)
            head = bytes([fixed | count]) if count < 16 else b"%c" % wide + count.to_bytes(4, "big")
            return Response(200, head + b"".join(encoded), MSGPACK)
        opening, closing = (b"{", b"}") if self.shape is Shape.OBJECT else (b"[", b"]")
        return Response(200, opening + b",".join(encoded) + closing, JSON)

    def cell_of_text(self, text: str) -> Cell:
        """Return *text* as a cell."""
        return msgspec.json.encode(text)

    def meta(
        self, name: str, position: str, columns: Sequence[str], rows: Sequence[Sequence[object]]
    ) -> Fragment:
        """Return a table of the server's own making; nothing when it has no rows."""
        if not rows:
            return Fragment(0, b"", urgent=False)
        cells = [[msgspec.json.encode(value) for value in row] for row in rows]
        count, encoded = self._table(name, position, columns, cells)
        return Fragment(count, encoded, urgent=True)

    def tables(
        self,
        feed: Feed,
        position: int | str,
        rows: Sequence[Sequence[Sequence[Cell]]],
        further_columns: Sequence[str],
        *,
        moved: bool,
        limited: bool,
    ) -> Fragment:
        """Return the tables of *feed*.

        The first one is there whenever any has rows or the position moved, so that a client
        that keeps the position of the table it asked for keeps the right one.

        Args:
            feed: What was read.
            position: The position reached.
            rows: The rows of each table, with their position.
            further_columns: Columns after those of the tables.
            moved: Whether *position* is beyond what was asked for.
            limited: Whether there is more to read, so that the answer must not wait.
        """
        urgent = any(rows)
        if not urgent and not moved:
            return Fragment(0, b"", urgent=False)
        parts = [
            self._table(table.name, position, ("position", *table.columns, *further_columns), found)
            for index, (table, found) in enumerate(zip(feed.tables, rows, strict=True))
            if found or index == 0
        ]
        separator = b"" if self.packed else b","
        return Fragment(
            sum(count for count, _ in parts),
            separator.join(encoded for _, encoded in parts),
            urgent=urgent or limited,
        )

    def _table(
        self,
        name: str,
        position: int | str,
        columns: Sequence[str],
        rows: Sequence[Sequence[Cell]],
    ) -> tuple[int, bytes]:
        if self.shape is Shape.OBJECT:
            return 1, self._object(name, position, columns, rows)
        header = [name, position, len(rows), len(columns), *columns]
        if self.packed:
            packed = [_pack(header), *(_pack(_values(row)) for row in rows)]
            return len(packed), b"".join(packed)
        lines = [msgspec.json.encode(header), *(b"[" + b",".join(row) + b"]" for row in rows)]
        return len(lines), b",".join(lines)

    def _object(
        self,
        name: str,
        position: int | str,
        columns: Sequence[str],
        rows: Sequence[Sequence[Cell]],
    ) -> bytes:
        if self.packed:
            value = {
                "position": position,
                "field_names": list(columns),
                "rows": [_values(row) for row in rows],
            }
            return _pack(name) + _pack(value)
        encode = msgspec.json.encode
        return b'%b:{"position":%b,"field_names":%b,"rows":[%b]}' % (
            encode(name),
            encode(position),
            encode(columns),
            b",".join(b"[" + b",".join(row) + b"]" for row in rows),
        )


def choose_encoder(call: Call) -> Encoder:
    """Return what the request asks for with ``format`` and ``Accept``."""
    text = call.param("format")
    try:
        shape = Shape(text or "object")
    except ValueError:
        raise invalid("format", text, "object or table") from None
    accepted = [part.partition(";")[0].strip() for part in (call.header("Accept") or "").split(",")]
    return Encoder(shape, any(name in _MSGPACK_NAMES for name in accepted))


def _values(cells: Sequence[Cell]) -> list[Any]:
    return [_value(cell) for cell in cells]


def _value(cell: Cell) -> Any:
    try:
        return msgspec.json.decode(cell)
    except msgspec.DecodeError:
        return json.loads(cell)  # what only the standard library takes, as in Synapse


def _pack(value: object) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except (OverflowError, UnicodeEncodeError, ValueError) as error:
        raise ApiError(
            406,
            "TCPREPL_NOT_IN_MSGPACK",
            f"a row has what MessagePack cannot hold ({error}): ask for application/json",
        ) from None
