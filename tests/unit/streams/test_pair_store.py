"""The pairs of a database: what cannot be is not taken for a place in the log."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from tcprepl.storage.sqlite import open_database
from tcprepl.streams.engine import StoredPair
from tcprepl.streams.pair_store import read_pairs, token_of
from tcprepl.streams.sqlite_schema import SCHEMA


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """A database with one pair."""
    with closing(open_database(None, SCHEMA)) as made:
        made.execute("INSERT INTO pairs VALUES (1, 's', 'i', 9, 4, 5, 60, 9)")
        yield made


@pytest.mark.parametrize("change", ["id = 1", "newest = 0", "floor = 9", "floor = 0", "rows = 0"])
def test_what_may_be(connection: sqlite3.Connection, change: str) -> None:
    connection.execute(f"UPDATE pairs SET {change}")
    (pair,) = read_pairs(connection)
    assert isinstance(pair, StoredPair)
    assert (pair.stream, pair.instance, pair.position) == ("s", "i", 9)


@pytest.mark.parametrize(
    "change",
    [
        "position = 8",
        "newest = 10",
        "floor = 10",
        "floor = -1",
        "position = -1, newest = 0, floor = -1",
        "instance = 'a b'",
        "instance = ''",
        "stream = 'a b'",
        "stream = ''",
    ],
)
def test_what_cannot_be(connection: sqlite3.Connection, change: str) -> None:
    connection.execute(f"UPDATE pairs SET {change}")
    with pytest.raises(sqlite3.DatabaseError, match=r"a row of pairs cannot be: \('.*"):
        read_pairs(connection)


@pytest.mark.parametrize("position", [2**62 + 9, 2**62 + 2**53, 2**63 - 1])
def test_a_position_that_is_beyond_its_newest_block_by_more_than_can_be(
    connection: sqlite3.Connection, position: int
) -> None:
    """Every append would be refused, or the next ones soon; it is told where the blocks end."""
    connection.execute("UPDATE pairs SET position = ?", (position,))
    with pytest.raises(sqlite3.DatabaseError, match="a row of pairs cannot be") as refused:
        read_pairs(connection)
    _, remedy, _ = str(refused.value).split("`")
    connection.execute(remedy)
    assert [pair.position for pair in read_pairs(connection)] == [9]


@pytest.mark.parametrize(
    "change",
    [
        "position = 4611686018427387912",  # by no more than 2^62 - 1
        "position = 9223372036854775807, newest = 9223372036854775806",
        "position = 9223372036854775807, newest = 0",  # of a stream in memory, or not known
    ],
)
def test_a_position_that_may_be_however_large(connection: sqlite3.Connection, change: str) -> None:
    connection.execute(f"UPDATE pairs SET {change}")
    assert len(read_pairs(connection)) == 1


def test_a_token_of_a_row() -> None:
    rows: tuple[tuple[object, ...] | None, ...] = (None, (), (None,), ("x",), (7,))
    assert [token_of(row) for row in rows] == [0, 0, 0, 0, 7]
