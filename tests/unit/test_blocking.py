"""A ``for`` loop over a server that runs in another thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import tcprepl
from tcprepl import aio, blocking
from tcprepl.streams.registry import Registry, StreamDef
from tests.asyncio_servers import serving

LINES = (
    "SERVER example.com\nPING 1 tcprepl\nPOSITION alpha master 0 0\n"
    "RDATA alpha master 1 [1]\nRDATA alpha master 2 [2]\nRDATA alpha master 3 [3]\n"
)


@pytest.fixture
def server(socket_directory: Path) -> Iterator[str]:
    """Somebody who says the same to everybody; yields where."""
    path = str(socket_directory / "s")
    ready = threading.Event()
    stop: list[Callable[[], object]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(LINES.encode())
        await reader.read()
        writer.close()

    async def main() -> None:
        over = asyncio.Event()
        stop.append(partial(asyncio.get_running_loop().call_soon_threadsafe, over.set))
        async with serving(path, serve):
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(20)
    yield f"unix:{path}"
    stop[0]()
    thread.join(20)


def test_a_loop(server: str) -> None:
    for batch in tcprepl.follow(server, ["alpha"], since="start", registry=registry()):
        assert batch.rows.raw == [b"[%d]" % batch.token]
        if batch.token == 3:
            break


def test_loops_one_after_the_other_and_what_is_in_hand_counts(server: str) -> None:
    positions = aio.MemoryPositionStore()
    with blocking.follow(server, ["alpha"], positions=positions, registry=registry()) as batches:
        for expected in (1, 2):
            for batch in batches:
                assert batch.token == expected
                break
        assert batches.client.positions() == {("alpha", "master"): 1}
    assert positions.load() == {("alpha", "master"): 2}
    with pytest.raises(RuntimeError, match="enough"):
        fail_at_once(batches)
    assert positions.load() == {("alpha", "master"): 0}


def test_who_stops_the_client_ends_the_loop(server: str) -> None:
    def heard(stream: str, instance: str, token: int) -> None:
        batches.client.stop()

    batches = blocking.follow(server, ["alpha"], on_position=heard, registry=registry())
    with batches:
        assert list(batches) == []


def test_not_inside_a_loop() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"use tcprepl.aio.follow there"):
            blocking.follow("127.0.0.1:9092", None).__enter__()

    asyncio.run(main())


def fail_at_once(batches: blocking.BlockingFollower) -> None:
    """Take a batch, and fail."""
    with batches:
        for _ in batches:
            raise RuntimeError("enough")


def registry() -> Registry:
    """Return a registry with the stream."""
    return Registry([StreamDef("alpha")])
