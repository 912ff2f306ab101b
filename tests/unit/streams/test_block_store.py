"""Blocks in the file of a log: long bodies stand apart, and go with their blocks."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from zlib import crc32

import pytest

from tcprepl.streams.block_store import (
    BODY,
    INLINE_BODY_BYTES,
    delete_blocks,
    prepare,
    write_blocks,
)
from tcprepl.streams.sqlite_schema import SCHEMA

SHORT, LONG = b"s" * INLINE_BODY_BYTES, b"l" * (INLINE_BODY_BYTES + 1)


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """A database with blocks of two pairs."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as made:
        prepare(made).executescript(SCHEMA.create)
        blocks = [(3, LONG + b"3"), (4, SHORT), (7, LONG + b"7"), (9, LONG + b"9")]
        for pair in (1, 2):
            write_blocks(made, [(pair, last, 1, 9, 77, crc32(one), one) for last, one in blocks])
        yield made


def stored(connection: sqlite3.Connection, pair: int) -> list[tuple[int, bytes]]:
    """Return the blocks of a pair with their bodies."""
    found = f"SELECT last, {BODY} FROM blocks WHERE pair = ? ORDER BY last"
    return connection.execute(found, (pair,)).fetchall()


def apart(connection: sqlite3.Connection) -> int:
    """Return how many bodies stand apart."""
    ((count,),) = connection.execute("SELECT count(*) FROM bodies").fetchall()
    return int(count)


def test_a_body_is_found_wherever_it_stands(connection: sqlite3.Connection) -> None:
    expected = [(3, LONG + b"3"), (4, SHORT), (7, LONG + b"7"), (9, LONG + b"9")]
    assert stored(connection, 1) == stored(connection, 2) == expected
    assert apart(connection) == 6
    kinds = connection.execute("SELECT typeof(body) FROM blocks WHERE pair = 1 ORDER BY last")
    assert [kind for (kind,) in kinds] == ["integer", "blob", "integer", "integer"]


def test_a_body_of_before_is_read_where_it_is(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO blocks VALUES (1, 12, 1, 9, 77, 5, ?)", (LONG,))
    assert stored(connection, 1)[-1] == (12, LONG)
    delete_blocks(connection, 1, 9, 12)
    assert stored(connection, 1)[-1][0] == 9
    assert apart(connection) == 6


def test_bodies_go_with_their_blocks(connection: sqlite3.Connection) -> None:
    """Those of the pair, between the tokens, and no others."""
    delete_blocks(connection, 1, 3, 7)
    assert [last for last, _ in stored(connection, 1)] == [3, 9]
    assert len(stored(connection, 2)) == 4
    assert apart(connection) == 5
    delete_blocks(connection, 1, -1, 99)
    delete_blocks(connection, 2, -1, 99)
    assert apart(connection) == 0


def test_a_body_stays_if_it_is_said_to(connection: sqlite3.Connection) -> None:
    delete_blocks(connection, 1, -1, 99, bodies=False)
    assert stored(connection, 1) == []
    assert apart(connection) == 6


def test_a_number_that_is_damaged_takes_no_body_of_another_with_it(
    connection: sqlite3.Connection,
) -> None:
    """Nor does a body go that is not what was written: nobody can say whose it is."""
    theirs = "(SELECT body FROM blocks WHERE pair = 2 AND last = 9)"
    connection.execute(f"UPDATE blocks SET body = {theirs} WHERE pair = 1 AND last = 3")
    ours = "(SELECT body FROM blocks WHERE pair = 1 AND last = 7)"
    connection.execute(f"UPDATE bodies SET body = 'text' WHERE id = {ours}")
    delete_blocks(connection, 1, -1, 99)
    assert stored(connection, 2)[-1] == (9, LONG + b"9")
    assert apart(connection) == 5


@pytest.mark.parametrize(
    ("body", "read"),
    [("'99999'", b"99999"), ("99999", b""), ("-1", b""), ("NULL", b""), ("1.5", b"1.5")],
)
def test_a_body_that_is_none_is_none_of_another(
    connection: sqlite3.Connection, body: str, read: bytes
) -> None:
    connection.execute("CREATE TABLE plain AS SELECT * FROM blocks")
    connection.execute(f"UPDATE plain SET body = {body} WHERE last = 3")
    found = f"SELECT {BODY} FROM plain AS blocks WHERE last = 3"
    assert connection.execute(found).fetchall() == [(read,), (read,)]
