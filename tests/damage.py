"""Damage to the file of a log: where the bytes of a block stand in it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from tcprepl.streams.block_store import BODY

#: Bytes by which a block is found: fewer than a page holds of it, more than are the same by chance.
_BYTES = 12


def bodies(path: Path) -> list[tuple[int, bytes]]:
    """Return of each block in the file, which nobody has open, its last token and its body."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT last, {BODY} FROM blocks ORDER BY pair, last").fetchall()


def place_of(path: Path, token: int) -> int:
    """Return where in the file a byte stands of the block that *token* is in, or is its end."""
    body = next(body for last, body in bodies(path) if last >= token)
    place = place_in(path.read_bytes(), body)
    assert place is not None
    return place


def place_in(content: bytes, body: bytes) -> int | None:
    """Return where in *content* a byte of *body* stands, and of nothing else; None if nowhere."""
    starts = range(len(body) // 2, len(body) - _BYTES)
    found = (content.find(body[n : n + _BYTES]) for n in starts if _is_once(content, body, n))
    return next(found, None)


def invert_page(path: Path, number: int) -> None:
    """Invert every bit of a page; the second one says which page points to which."""
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[16:18], "big")
    page = slice((number - 1) * size, number * size)
    content[page] = bytes(byte ^ 0xFF for byte in content[page])
    path.write_bytes(content)


def _is_once(content: bytes, body: bytes, start: int) -> bool:
    return content.count(body[start : start + _BYTES]) == 1
