"""Publish the lines of a file, exactly once: ``python writer.py HOST:PORT STREAM PRODUCER FILE``.

Each line is a row as JSON. The server knows how many of the producer's appends it has taken, so
whoever was killed begins again with the same words, and goes on where it was.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tcprepl.aio import ReplicationWriter

#: Rows of an append: all of them are taken, or none.
ROWS = 200


async def main(address: str, stream: str, producer: str, path: str) -> None:
    """Publish what has not been taken; a row that does not fit ends it, and nothing passes that."""
    rows = Path(path).read_bytes().splitlines()
    async with ReplicationWriter(address, producer=producer) as writer:
        taken = await writer.claimed() * ROWS
        for start in range(taken, len(rows), ROWS):
            done = await writer.publish(stream, rows[start : start + ROWS])
            print(f"{stream} is at {done.last}", flush=True)
        print(f"{len(rows)} rows, {min(taken, len(rows))} of them taken before", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
