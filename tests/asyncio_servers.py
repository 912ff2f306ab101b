"""Somebody who listens under asyncio, for the tests of what talks to him."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(path: str, answer: Answer) -> AsyncIterator[None]:
    """Listen on a Unix socket and do *answer* with whoever comes, until the block ends.

    Then every connection is closed at once: what nobody reads any more would keep its socket
    open beyond its loop, and the test in which it is collected would fail for it.
    """
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await answer(reader, writer)

    try:
        async with await asyncio.start_unix_server(serve, path):
            yield
    finally:
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)  # they are closed by the next turn
