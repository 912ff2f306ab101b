"""Keep a table from a stream, exactly once: ``python worker_asyncio.py HOST:PORT DATABASE``.

As ``worker_twisted.py``, without Twisted's reactor: a batch counts, and is committed together with
its position, when the next one is asked for.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys

from tcprepl.aio import SqlitePositionStore, follow


async def main(address: str, database: str) -> None:
    """Follow ``device_lists`` until somebody ends this process."""
    connection = sqlite3.connect(database)
    # What a power cut takes back it takes from rows and position alike: they come again.
    connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS changes (user_id TEXT PRIMARY KEY, count INTEGER)"
    )
    positions = SqlitePositionStore(connection)
    async with follow(address, ["device_lists"], positions=positions, since="start") as batches:
        async for batch in batches:
            connection.executemany(
                "INSERT INTO changes VALUES (?, 1)"
                " ON CONFLICT (user_id) DO UPDATE SET count = count + 1",
                [(row.entity,) for row in batch.rows],
            )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
