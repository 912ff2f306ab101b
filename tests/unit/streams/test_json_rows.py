"""Rows in one piece."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.streams.json_rows import JsonRows, rows_in


@given(st.lists(st.binary(max_size=5).filter(lambda row: b"\n" not in row)), st.integers(0, 9))
def test_it_is_the_sequence_of_its_rows(rows: list[bytes], cut: int) -> None:
    whole = JsonRows.of(rows)
    assert whole == rows
    assert rows == whole
    assert whole == JsonRows.of(whole) == JsonRows(whole.joined, len(rows))
    assert len(whole) == len(rows)
    assert list(whole) == rows
    assert whole[cut:] == rows[cut:]
    assert [whole[index] for index in range(len(rows))] == rows
    assert whole.size_bytes == sum(map(len, rows))
    assert whole.joined.count(b"\n") == len(rows)
    assert whole != [*rows, b"more"]


def test_it_is_nothing_else() -> None:
    whole = JsonRows.of([b"[1]"])
    assert whole != JsonRows.of([b"[2]"])
    assert whole != 5
    assert repr(whole) == "<JsonRows n=1 bytes=4>"


@pytest.mark.parametrize(
    "array", [b"5", b"{}", b"[1", b"[NaN]", b"[" * 200_000, b'"\\ud800"', b"\xff"]
)
def test_what_is_no_array_has_no_rows(array: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        rows_in(array)


def test_the_rows_of_an_array_are_as_they_came() -> None:
    assert list(map(bytes, rows_in(b'[ 1, {"a":  2}]'))) == [b"1", b'{"a":  2}']
    assert list(map(bytes, rows_in(rb'["\ud800", 1]'))) == [rb'"\ud800"', b"1"]


def test_an_object_or_a_word_is_said_to_be_no_array() -> None:
    for text in (b"5", b"{}", b'"\\ud800"'):
        with pytest.raises(ValueError, match="it is not an array"):
            rows_in(text)
