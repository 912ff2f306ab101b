"""The rows of an append in one piece: encoded together, rendered together, seldom parted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final, overload

import msgspec

#: Raises `msgspec.DecodeError` for what is not one value of JSON; lone surrogates are not, for it.
one_value: Final = msgspec.json.Decoder(msgspec.Raw).decode


def is_json(row: bytes) -> bool:
    """Return whether *row* is JSON, as Synapse reads it."""
    try:
        one_value(row)
    except (msgspec.DecodeError, RecursionError):
        try:
            json.loads(row.decode())
        except (ValueError, RecursionError):
            return False
    return True


def rows_in(array: bytes) -> Sequence[bytes | msgspec.Raw]:
    """Return the elements of a JSON array, each as it came.

    Raises:
        ValueError: It is not a JSON array.
    """
    try:
        return msgspec.json.decode(array, type=list[msgspec.Raw])
    except msgspec.ValidationError:
        raise ValueError("it is not an array") from None
    except (msgspec.DecodeError, RecursionError):
        pass
    # The standard library takes what msgspec does not: lone surrogates, as Synapse sends.
    try:
        found = json.loads(array.decode(), parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, list):
        raise ValueError("it is not an array")
    return [json.dumps(row, separators=(",", ":")).encode() for row in found]


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


class JsonRows(Sequence[bytes]):
    """Rows as lines of JSON; equal to any other sequence of the same lines.

    Taking every row apart and putting it together again would cost more than all else that
    happens to it, so that is done only when somebody looks at a single one.

    Attributes:
        joined: The rows, each ended by LF.
        size_bytes: Bytes of all rows, LF not counted.
        keys: What each row is a state of, where that was known without a look at the JSON.
    """

    __slots__ = ("_count", "_parted", "joined", "keys", "size_bytes")

    def __init__(self, joined: bytes, count: int, keys: Sequence[str] | None = None) -> None:
        """Hold *count* rows, each ended by the only LF in it."""
        self.joined = joined
        self.size_bytes = len(joined) - count
        self.keys = keys
        self._count = count
        self._parted: list[bytes] | None = None

    @classmethod
    def of(cls, rows: Sequence[bytes]) -> JsonRows:
        """Return *rows*, which hold no LF, in one piece."""
        if isinstance(rows, cls):
            return rows
        return cls(b"\n".join(rows) + b"\n" if rows else b"", len(rows))

    @property
    def parted(self) -> list[bytes]:
        """The rows, one by one."""
        if self._parted is None:
            self._parted = self.joined.split(b"\n")
            self._parted.pop()
        return self._parted

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> JsonRows: ...

    def __getitem__(self, index: int | slice) -> bytes | JsonRows:
        if isinstance(index, slice):
            return self.of(self.parted[index])
        return self.parted[index]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.parted)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, JsonRows):
            return self.joined == other.joined
        return isinstance(other, Sequence) and self.parted == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<JsonRows n={self._count} bytes={len(self.joined)}>"
