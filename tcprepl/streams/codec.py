"""Rows to JSON and back: in bulk and fast, refusing what does not fit (protocol.md section 7).

The fast way encodes all rows in one call and decodes the same bytes in one typed call, which
validates them. Only what that refuses is looked at row by row: texts with lone surrogates,
which JSON as other servers write it may contain, go through the standard library; historical
shapes and unknown type words have readers of their own; the rest is a `BadRow` that says
where, what, and what was expected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isfinite
from operator import attrgetter, itemgetter
from typing import Any, NoReturn, TypeAlias, overload

import msgspec
import msgspec.inspect
from msgspec import UNSET, Raw, Struct, convert

from tcprepl.errors import BadRow
from tcprepl.ids import StreamName
from tcprepl.limits import MAX_ROW_BYTES
from tcprepl.streams.json_rows import JsonRows
from tcprepl.streams.shapes import (
    SNIPPET_CHARS,
    array_of,
    fault_in,
    is_closed,
    shortened,
    snippet,
    structs_of,
    without_surplus,
)

#: Reads a shape that the typed decoder refused; raises `msgspec.ValidationError` if it cannot.
Reader: TypeAlias = Callable[[Any], Any]

_encoder = msgspec.json.Encoder()
encode = _encoder.encode
_opaque_decoder = msgspec.json.Decoder(Any)
_packer = msgspec.msgpack.Encoder()
#: What a row given as plain values is.
_SEQUENCES = frozenset({list, tuple})
_first = itemgetter(0)
_NOT_FINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")


class RowCodec:
    """JSON in and out for the rows of one stream.

    Attributes:
        stream: Name of the stream, for errors.
        row_type: Type of a row; `typing.Any` for opaque JSON.
        keyed: Whether the first field of a row says what it is a state of.
        quick_decode: Returns a row of the newest shape as its type; what it refuses is for
            `decode`.
    """

    __slots__ = (
        "_common_rows",
        "_decoder",
        "_key_field",
        "_reader",
        "_short",
        "_usual",
        "common_row",
        "keyed",
        "quick_decode",
        "row_type",
        "stream",
    )

    def __init__(
        self,
        stream: StreamName,
        row_type: Any,
        reader: Reader | None = None,
        common: Any = None,
        *,
        keyed: bool = False,
    ) -> None:
        """Make the codec.

        Args:
            stream: Name of the stream.
            row_type: Type of a row; `typing.Any` for opaque JSON.
            reader: Reads historical shapes.
            common: The shape that nearly all rows have, as a type that says of every value in
                it what it has to be; whatever has it fits *row_type*.
            keyed: Whether the first field of a row is a text that says what it is a state of.
        """
        self.stream = stream
        self.row_type = row_type
        self._reader = reader
        keyed = keyed and structs_of(row_type) == (row_type,)
        self.keyed = keyed
        self._key_field = attrgetter(row_type.__struct_fields__[0]) if keyed else None
        self._decoder = _opaque_decoder if row_type is Any else msgspec.json.Decoder(row_type)
        self.quick_decode = self._decoder.decode
        # whether rows may end in UNSET fields, which the encoder does not leave out by itself
        self._short = any(
            UNSET in (field.default for field in msgspec.structs.fields(struct))
            for struct in structs_of(row_type)
        )
        closed = row_type if common is None else common
        sure = is_closed(msgspec.inspect.type_info(closed))
        # Structs, since of nothing else does msgspec keep what it has found out.
        self.common_row = array_of(closed) if sure else None
        self._common_rows = array_of(list[closed]) if sure else None  # type: ignore[valid-type]
        # what is only looked at may be looked at as the common shape
        usual = sure and common is not None and not keyed
        self._usual = msgspec.json.Decoder(common) if usual else self._decoder

    def encode(self, rows: Sequence[object]) -> Sequence[bytes]:
        """Return each row as one line of JSON.

        Args:
            rows: Rows of the stream's type, or lists, or whatever the shape is in Python.

        Raises:
            BadRow: one of them does not fit.
        """
        types = {type(rows[0])} if len(rows) == 1 else set(map(type, rows))
        plain = types <= _SEQUENCES
        if self._short and not plain:
            rows = [_without_unset(row) for row in rows]
        try:
            together = _encoder.encode_lines(rows)
            if not (plain and self._are_common(rows)):
                self._decoder.decode_lines(together)
                if together.count(b"\n") != len(rows) or b"\r" in together:
                    return self._encode_each(rows)
                if b"null" in together and _may_have_nan(rows):
                    return self._encode_each(rows)
        except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError):
            return self._encode_each(rows)
        encoded = JsonRows(together, len(rows), self._keys(rows, types))
        if len(together) > MAX_ROW_BYTES:
            self._check_sizes(encoded)
        return encoded

    def _keys(self, rows: Sequence[Any], types: set[type]) -> tuple[str, ...] | None:
        """Return the key of each row, if that is easy."""
        if self._key_field is None:
            return None
        if types <= _SEQUENCES:
            return self.keys_of(map(_first, rows))
        if types == {self.row_type}:
            return self.keys_of(map(self._key_field, rows))
        return None

    @staticmethod
    def keys_of(values: Iterable[Any]) -> tuple[str, ...] | None:
        """Return what the first fields of keyed rows say; None if they are no good for comparing.

        What is written as a text need not be one.
        """
        keys = tuple(values)
        return keys if set(map(type, keys)) == {str} else None

    def _are_common(self, rows: Sequence[object]) -> bool:
        """Whether *rows* surely fit; values say as much as their JSON does, in half the time."""
        if self._common_rows is None:
            return False
        try:
            convert((rows,), self._common_rows)
        except (msgspec.ValidationError, RecursionError):
            return False
        return True

    def _encode_each(self, rows: Sequence[object]) -> list[bytes]:
        return [self._encode_one(row, index) for index, row in enumerate(rows)]

    def check(self, rows: Sequence[bytes | Raw]) -> Sequence[bytes]:
        """Return rows that are JSON already as single lines, after validating them.

        Raises:
            BadRow: one of them does not fit.
        """
        together = b"\n".join((*rows, b""))
        found = self.checked(together, len(rows))
        if found is not None:
            return found
        return [self._check_one(bytes(row), index) for index, row in enumerate(rows)]

    def sure_lines(self, rows: Sequence[object]) -> bytes | None:
        """Return *rows* as lines of JSON, with an LF between two of them, if all surely fit.

        That is quick to say of rows that are plain lists of the common shape.
        """
        if not (_SEQUENCES.issuperset(map(type, rows)) and self._are_common(rows)):
            return None
        try:
            lines = _encoder.encode_lines(rows)[:-1]
        except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError):
            return None
        return lines if len(lines) <= MAX_ROW_BYTES else None

    def snapshot(self, rows: Sequence[object]) -> bytes | None:
        """Return *rows* as `sure_lines`, but for `checked`.

        Nothing is checked yet but what only the objects can tell.

        Returns:
            None, or nothing, if only `encode` can say what becomes of them.
        """
        if self._short and type(rows[0]) not in _SEQUENCES:
            rows = [_without_unset(row) for row in rows]
        try:
            if len(rows) == 1:
                lines = encode(rows[0])
            else:
                lines = _encoder.encode_lines(rows)[:-1]
                if lines.count(b"\n") != len(rows) - 1:
                    return None
        except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError):
            return None
        if b"null" in lines and _may_have_nan(rows):
            return None
        return lines

    def snapshot_json(self, rows: Sequence[bytes | Raw]) -> bytes | None:
        """Return rows that are JSON already as `snapshot` does those that are not.

        Returns:
            None, or nothing, if only `check` can say what becomes of them.
        """
        lines = b"\n".join(rows)
        return lines if lines.count(b"\n") == len(rows) - 1 else None

    def checked(self, lines: bytes, count: int) -> JsonRows | None:
        """Return *count* rows that `snapshot` made, each ended by LF, if all of them fit.

        Returns:
            None if one may not fit: `check` says which, and what is wrong with it.
        """
        try:
            _ = lines.isascii() or lines.decode()
            found = self._decoded(lines)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return None
        # a quarter of the time of bytes.count
        ends = len(lines) - len(lines.replace(b"\n", b""))
        if len(found) != count or ends != count or b"\r" in lines:
            return None
        if len(lines) > MAX_ROW_BYTES and max(map(len, lines.split(b"\n"))) > MAX_ROW_BYTES:
            return None
        return JsonRows(lines, count, self._keys(found, {self.row_type}))

    def _decoded(self, lines: bytes) -> list[Any]:
        """Return rows, of their type or of the common one."""
        try:
            found: list[Any] = self._usual.decode_lines(lines)
        except msgspec.ValidationError:
            if self._usual is self._decoder:
                raise
            found = self._decoder.decode_lines(lines)
        return found

    def decode(self, row: bytes | Raw) -> Any:
        """Return one row as its type.

        Fields beyond those that the type has are dropped, so that rows of newer versions can
        be read.

        Raises:
            BadRow: it does not fit.
        """
        try:
            return self._decoder.decode(row)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return self._read(bytes(row), None, longer=True)

    def decode_all(self, rows: Sequence[bytes]) -> list[Any]:
        """Return many rows as their type, in one go.

        Raises:
            BadRow: one does not fit; *index* says which.
        """
        try:
            found: list[Any] = self._decoder.decode_lines(b"\n".join(rows))
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            found = []
        if len(found) == len(rows):
            return found
        found = []
        for index, row in enumerate(rows):
            try:
                found.append(self._decoder.decode(row))
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
                found.append(self._read(row, index, longer=True))
        return found

    def _encode_one(self, row: object, index: int) -> bytes:
        try:
            if _has_nan(row):
                self._refuse_nan(index)
            try:
                line = _encoder.encode(row)
            except UnicodeEncodeError:  # lone surrogates
                line = json.dumps(
                    msgspec.to_builtins(row), allow_nan=False, separators=(",", ":")
                ).encode()
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise BadRow(
                self.stream, "", snippet(row), f"values that JSON has ({error})", index
            ) from None
        return self._check_one(line, index)

    def _check_one(self, line: bytes, index: int) -> bytes:
        try:
            line.decode()
            self._decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            self._read(line, index, longer=False)
        if b"\n" in line or b"\r" in line:
            # raw line ends can stand only between the values
            line = line.replace(b"\r", b" ").replace(b"\n", b" ")
        if len(line) > MAX_ROW_BYTES:
            self._check_sizes([line], index)
        return line

    def _check_sizes(self, lines: Sequence[bytes], first: int = 0) -> None:
        for index, line in enumerate(lines, first):
            if len(line) > MAX_ROW_BYTES:
                raise BadRow(
                    self.stream,
                    "",
                    f"{len(line)} bytes: {line[:SNIPPET_CHARS].decode(errors='replace')}...",
                    f"at most {MAX_ROW_BYTES} bytes",
                    index,
                )

    def _refuse_nan(self, index: int) -> NoReturn:
        raise BadRow(self.stream, "", "NaN or Infinity", "numbers that JSON has", index)

    def _read(self, line: bytes, index: int | None, *, longer: bool) -> Any:
        """Read what the typed decoder refused, or say what is wrong with it."""
        try:
            # of bytes it would take other encodings, and a mark at the beginning
            value = json.loads(line.decode(), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise BadRow(
                self.stream,
                "",
                shortened(line.decode(errors="replace")),
                f"JSON ({_in_words(error)})",
                index,
            ) from None
        try:
            return self._convert(value)
        except msgspec.ValidationError as error:
            if longer and (cut := without_surplus(self.row_type, value)) is not value:
                try:
                    return self._convert(cut)
                except msgspec.ValidationError:
                    pass
            self._refuse(value, index, error)

    def _convert(self, value: Any) -> Any:
        try:
            return convert(value, self.row_type)
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            if self._reader is not None:
                try:
                    return self._reader(value)
                except (msgspec.ValidationError, UnicodeEncodeError):
                    pass
            if isinstance(error, UnicodeEncodeError):
                # msgspec compares words, of kinds and of fields, as UTF-8
                raise msgspec.ValidationError("Expected words without lone surrogates") from None
            raise

    def _refuse(self, value: Any, index: int | None, error: msgspec.ValidationError) -> NoReturn:
        field, found, expected = fault_in(self.row_type, value, error)
        raise BadRow(self.stream, field, snippet(found), expected, index) from None


class Rows(Struct, gc=False, eq=False):
    """The rows of one batch, a sequence decoded only when somebody looks.

    A worker makes one for each batch that it receives, so its constructor is in C.

    Attributes:
        raw: The rows as they came, JSON bytes.
    """

    _codec: RowCodec
    raw: Sequence[bytes]
    _decoded: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.raw)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Rows(self._codec, self.raw[index])
        if self._decoded is not None:
            return self._decoded[index]
        return self._codec.decode(self.raw[index])

    def __iter__(self) -> Iterator[Any]:
        decoded = self._decoded
        if decoded is None:
            raw = self.raw
            codec = self._codec
            if len(raw) == 1:  # nearly always, and nearly always of the newest shape
                try:
                    decoded = [codec.quick_decode(raw[0])]
                except (msgspec.MsgspecError, UnicodeError, RecursionError):
                    decoded = [codec.decode(raw[0])]
            else:
                decoded = codec.decode_all(raw)
            self._decoded = decoded
        return iter(decoded)

    def __repr__(self) -> str:
        return f"<Rows {self._codec.stream} n={len(self.raw)}>"

    def sift(self) -> tuple[Rows, list[BadRow]]:
        """Part the rows that fit their stream from those that do not.

        Returns:
            The good rows (this very object when all are good), and an error for each bad one.
        """
        try:
            iter(self)
        except BadRow:
            pass
        else:
            return self, []
        good: list[bytes] = []
        bad: list[BadRow] = []
        for index, row in enumerate(self.raw):
            try:
                self._codec.decode(row)
            except BadRow as error:
                bad.append(BadRow(error.stream, error.field, error.value, error.expected, index))
            else:
                good.append(row)
        return Rows(self._codec, good), bad


Sequence.register(Rows)


def _without_unset(row: object) -> object:
    if isinstance(row, Struct):
        values = list(msgspec.structs.astuple(row))
        while values and values[-1] is UNSET:
            values.pop()
        return values
    return row


def _may_have_nan(rows: Sequence[object]) -> bool:
    """Whether a NaN or an infinity may be in *rows*: quick, and sure when it says no.

    In msgpack such a number has these bytes. They cannot be part of a text, and where they
    are part of something else, a second look finds nothing.
    """
    try:
        return _NOT_FINITE.search(_packer.encode(rows)) is not None
    except (OverflowError, TypeError, ValueError):
        return True  # msgpack does not have integers over 64 bits


def _has_nan(value: object) -> bool:
    """Whether a NaN or an infinity hides in *value*, which the encoder would write as null."""
    if isinstance(value, float):
        return not isfinite(value)
    if isinstance(value, Struct):
        value = msgspec.structs.astuple(value)
    if isinstance(value, dict):
        return any(map(_has_nan, value.values())) or any(map(_has_nan, value))
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(_has_nan, value))
    return False


def _in_words(error: Exception) -> str:
    """Return what is wrong with JSON: Python tells whoever sends long integers to change Python."""
    return "an integer has too many digits" if "max_str_digits" in str(error) else str(error)


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")
