"""What SQLite does with the rows of a stream, by itself: the bound of a log on disk.

``python sqlite_peer.py ROWS BATCH IN_FLIGHT`` prints rows a second, as JSON. As our log does, a
commit takes all that is on its way, in blocks of at most a thousand rows, with an fsync; but what
is written is made before the clock starts, nobody is answered, and no thread hands anything over.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks import receipt_rows

_BLOCK_ROWS = 1_000
_TABLE = """
CREATE TABLE blocks (
    pair INTEGER, last INTEGER, rows INTEGER, bytes INTEGER, body BLOB, PRIMARY KEY (pair, last)
) WITHOUT ROWID
"""


def ingest(path: Path, rows: int, batch_rows: int, in_flight: int) -> float:
    """Write *rows* rows; return rows a second."""
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("page_size=16384", "journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute(_TABLE)
    texts = [
        b"".join(
            b"RDATA receipts master 1234567 %b\n" % json.dumps(row, separators=(",", ":")).encode()
            for row in batch
        )
        for batch in receipt_rows.batches(batch_rows)
    ]
    in_block = max(1, min(in_flight, _BLOCK_ROWS // batch_rows))
    bodies = itertools.cycle(
        [
            b"".join(texts[start : start + in_block])
            for start in range(0, len(texts) - in_block + 1, in_block)
        ]
    )
    commits = max(1, rows // batch_rows // in_flight)
    token = 0
    started = time.perf_counter()
    for _ in range(commits):
        blocks = []
        for _ in range(max(1, in_flight // in_block)):
            token += in_block * batch_rows
            body = next(bodies)
            blocks.append((1, token, in_block * batch_rows, len(body), body))
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO blocks VALUES (?, ?, ?, ?, ?)", blocks)
        connection.execute("COMMIT")
    taken = time.perf_counter() - started
    connection.close()
    return token / taken


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        rate = ingest(Path(directory) / "bare.sqlite3", *map(int, sys.argv[1:4]))
    print(json.dumps({"rows_per_s": rate}))
