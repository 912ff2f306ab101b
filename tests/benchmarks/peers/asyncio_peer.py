"""Our worker under asyncio, in a process of its own.

``asyncio_peer.py worker PORT ROWS (handler|for)``
"""

from __future__ import annotations

import asyncio
import sys

from tcprepl.aio import ReplicationClient, Rows, follow


class Counter:
    """Says DONE each time that so many rows have been handled."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._seen = 0

    def handle(self, stream: str, instance: str, token: int, rows: Rows) -> None:
        """Look at every row."""
        for _ in rows:
            self._seen += 1
        if self._seen >= self._wanted:
            self._seen = 0
            print("DONE", flush=True)


async def with_handler(where: str, wanted: int) -> None:
    """Follow every stream, with a handler."""
    await ReplicationClient(where, None, Counter(wanted).handle, dialect="1.22").run()


async def in_a_loop(where: str, wanted: int) -> None:
    """Follow every stream, in an ``async for``."""
    seen = 0
    async with follow(where, None, dialect="1.22") as batches:
        async for batch in batches:
            for _ in batch.rows:
                seen += 1
            if seen >= wanted:
                seen = 0
                print("DONE", flush=True)


def main(role: str, port: str, wanted: str, way: str) -> None:
    """Run until killed."""
    assert role == "worker"
    work = with_handler if way == "handler" else in_a_loop
    asyncio.run(work(f"127.0.0.1:{port}", int(wanted)))


if __name__ == "__main__":
    main(*sys.argv[1:])
