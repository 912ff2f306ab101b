"""Blocks in the SQLite file of a log: where their bodies stand.

While SQLite looks for a block it reads all of each one that it compares. So a long body stands in
a table of its own, by number, and ``blocks.body`` is that number: what is looked through stays
small however long bodies are, and a broken page of one body costs one block. Bodies that files of
before have in ``blocks``, and those that a migration puts there, stay where they are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Final, TypeAlias
from zlib import crc32

from tcprepl.ids import Token

#: Bodies with more bytes stand apart.
INLINE_BODY_BYTES: Final = 512
CREATE_BODIES: Final = """
CREATE TABLE bodies (
    id INTEGER PRIMARY KEY,
    body BLOB NOT NULL
);
"""
#: The body of a row of ``blocks``, wherever it stands. One bit that has turned makes a text or
#: nothing of a blob, or a number that no body has, which are damage as any other.
BODY: Final = (
    "ifnull(CAST(CASE typeof(body) WHEN 'integer'"
    " THEN (SELECT apart.body FROM bodies AS apart WHERE apart.id = blocks.body)"
    " ELSE body END AS BLOB), x'')"
)
_INSERT_BODY: Final = "INSERT INTO bodies (body) VALUES (?)"
_INSERT_BLOCK: Final = (
    "INSERT INTO blocks (pair, last, rows, bytes, written_ms, crc, body)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
#: A body goes with its block if it is that block's: a number that is damaged may be another's.
_DELETE_BODIES: Final = (
    "DELETE FROM bodies WHERE id IN"
    " (SELECT apart.id FROM blocks JOIN bodies AS apart ON apart.id = blocks.body"
    " WHERE pair = ? AND last > ? AND last <= ? AND typeof(blocks.body) = 'integer'"
    " AND crc32(apart.body) = crc)"
)
_DELETE_BLOCKS: Final = "DELETE FROM blocks WHERE pair = ? AND last > ? AND last <= ?"

#: The columns of a block: pair, last token, rows, bytes of lines, time in ms, checksum, body.
BlockRow: TypeAlias = tuple[int, Token, int, int, int, int, bytes]


def write_blocks(connection: sqlite3.Connection, rows: Iterable[BlockRow]) -> None:
    """Write blocks, within the transaction of the caller."""
    stored: list[tuple[int | bytes | None, ...]] = []
    for row in rows:
        body = row[-1]
        if len(body) > INLINE_BODY_BYTES:
            stored.append((*row[:-1], connection.execute(_INSERT_BODY, (body,)).lastrowid))
        else:
            stored.append(row)
    connection.executemany(_INSERT_BLOCK, stored)


def prepare(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Return a connection that `delete_blocks` may be called with."""
    connection.create_function("crc32", 1, _checksum, deterministic=True)
    return connection


def delete_blocks(
    connection: sqlite3.Connection, pair: int, after: Token, upto: Token, *, bodies: bool = True
) -> None:
    """Delete the blocks of *pair* that end in ``(after, upto]``, within the caller's transaction.

    Args:
        connection: The database, prepared.
        pair: The id of the pair.
        after: Blocks up to there stay.
        upto: Blocks behind it stay.
        bodies: Whether bodies that stand apart go as well.
    """
    for statement in (_DELETE_BODIES, _DELETE_BLOCKS) if bodies else (_DELETE_BLOCKS,):
        connection.execute(statement, (pair, after, upto))


def _checksum(body: object) -> int | None:
    return crc32(body) if isinstance(body, bytes) else None
