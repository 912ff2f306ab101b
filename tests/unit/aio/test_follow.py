"""``async for`` over a real server, on wires in memory: what counts and what comes again."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from tcprepl import aio
from tcprepl.errors import LogUnavailable
from tests.asyncio_servers import serving
from tests.client_kit import World
from tests.faces import ASYNCIO, using


class Room(World):
    """A server, and tasks that follow it."""

    def follow(self, name: str = "w", **options: Any) -> aio.Follower:
        """Return a follower of it."""
        options.setdefault("registry", self.registry)
        options.setdefault("since", "start")
        return aio.follow(self.network.client_endpoint(name), ["alpha", "beta"], **options)

    def begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin *work*, and let it come to rest."""
        task = asyncio.ensure_future(work)
        self.network.settle()
        return task

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Return what *work* does."""
        task = self.begin(work)
        self.network.run(10.0)
        assert task.done()
        return task.result()


@pytest.fixture
def room() -> Iterator[Room]:
    """A room that ends clean."""
    with using(ASYNCIO):
        made = Room()
        yield made
        made.finish()


async def take(follower: aio.Follower, count: int) -> list[int]:
    """Take *count* batches, and leave."""
    tokens: list[int] = []
    async with follower as batches:
        async for batch in batches:
            tokens.append(batch.token)
            if len(tokens) == count:
                break
    return tokens


def test_batches_come_in_order_and_what_is_in_hand_counts(room: Room) -> None:
    room.publish("alpha", [1])
    room.publish("alpha", [2], [3], batch=True)
    room.publish("alpha", [4])
    positions = aio.MemoryPositionStore()
    assert room.run(take(room.follow(positions=positions), 2)) == [1, 2]
    assert positions.load() == {("alpha", "master"): 2}
    assert room.run(take(room.follow(positions=positions), 1)) == [3]


def test_cuts_are_not_seen(room: Room) -> None:
    follower = room.follow()
    task = room.begin(take(follower, 3))
    room.publish("alpha", [1])
    assert follower.client.positions() == {("alpha", "master"): 1, **follower.client.positions()}
    room.network.wires["w"].cut()
    room.publish("alpha", [2], [3])
    room.network.run(10.0)
    assert task.result() == [1, 2, 3]
    assert follower.client.reconnects == 1


def test_what_is_raised_undoes_what_was_written(room: Room, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "worker.db")
    connection.execute("CREATE TABLE seen (token INTEGER)")
    positions = aio.SqlitePositionStore(connection)
    room.publish("alpha", [1], [2], [3])

    async def work(fails_at: int) -> None:
        async with room.follow(positions=positions) as batches:
            async for batch in batches:
                connection.execute("INSERT INTO seen VALUES (?)", (batch.token,))
                if batch.token == fails_at:
                    raise RuntimeError("half-way")
                if batch.token == 3:
                    break

    with pytest.raises(RuntimeError, match="half-way"):
        room.run(work(2))
    other = sqlite3.connect(tmp_path / "worker.db")
    assert other.execute("SELECT token FROM seen").fetchall() == [(1,)]
    assert positions.load()["alpha", "master"] == 1
    room.run(work(0))
    assert other.execute("SELECT token FROM seen").fetchall() == [(1,), (2,), (3,)]
    assert positions.load()["alpha", "master"] == 3
    other.close()
    connection.close()


def test_a_task_that_is_cancelled_leaves_nothing_half_done(room: Room, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "worker.db")
    connection.execute("CREATE TABLE seen (token INTEGER)")
    room.publish("alpha", [1])

    async def work() -> None:
        async with room.follow(positions=aio.SqlitePositionStore(connection)) as batches:
            async for batch in batches:
                connection.execute("INSERT INTO seen VALUES (?)", (batch.token,))
                await asyncio.Event().wait()

    for task in (room.begin(work()), room.begin(take(room.follow("v"), 5))):
        task.cancel()
        room.network.run(1.0)
        assert task.cancelled()
    assert connection.execute("SELECT token FROM seen").fetchall() == []
    connection.close()


def test_a_disk_that_refuses_at_the_end_is_told(room: Room) -> None:
    room.publish("alpha", [1])

    class Full(aio.MemoryPositionStore):
        atomic = True

        def save(self, positions: Any, incarnation: Any = None) -> None:
            if 1 in positions.values():
                raise LogUnavailable("the disk is full")

    follower = room.follow(positions=Full())
    with pytest.raises(LogUnavailable, match="the disk is full"):
        room.run(take(follower, 1))
    assert not follower.client.running


def test_loops_one_after_the_other(room: Room) -> None:
    room.publish("alpha", [1], [2], [3])

    async def work() -> list[int]:
        tokens = []
        async with room.follow() as batches:
            for _ in range(3):
                async for batch in batches:
                    tokens.append(batch.token)
                    break
            assert batches.client.positions()["alpha", "master"] == 2
        return tokens

    assert room.run(work()) == [1, 2, 3]


def test_without_entering_what_is_in_hand_does_not_count(room: Room) -> None:
    room.publish("alpha", [1], [2])
    positions = aio.MemoryPositionStore()

    async def work() -> None:
        batches = room.follow(positions=positions).__aiter__()
        async for batch in batches:
            if batch.token == 2:
                break
        await batches.aclose()

    room.run(work())
    assert positions.load()["alpha", "master"] == 1


def test_who_stops_the_client_ends_the_loop(room: Room) -> None:
    follower = room.follow()
    task = room.begin(take(follower, 5))
    room.publish("alpha", [1])
    stopped = follower.client.stop()
    room.network.settle()
    assert stopped.done()
    assert task.result() == [1]


def test_a_callback_that_fails_for_good_ends_the_loop(room: Room) -> None:
    def on_position(*_: Any) -> None:
        raise RuntimeError("never")

    task = room.begin(take(room.follow(on_position=on_position, max_attempts=2), 1))
    room.network.run(10.0)
    with pytest.raises(RuntimeError, match="never"):
        task.result()


def test_two_tasks_cannot_wait_at_once(room: Room) -> None:
    follower = room.follow()
    first = room.begin(take(follower, 1))

    async def second() -> None:
        async for _ in follower:
            pass

    other = room.begin(second())
    with pytest.raises(RuntimeError, match="another task waits"):
        other.result()
    room.publish("alpha", [1])
    assert first.result() == [1]


ROWS = 10_000


def test_a_loop_that_takes_its_time_is_not_read_for(socket_directory: Path) -> None:
    """Nor is anything lost when it goes on."""
    head = "SERVER example.com\nPING 1 tcprepl\nPOSITION alpha master 0 0\n"
    padding = '"' + "x" * 200 + '"'
    lines = "".join(f"RDATA alpha master {token} [{padding}]\n" for token in range(1, ROWS + 1))
    goes_on = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write((head + lines).encode())
        await reader.read()
        writer.close()

    async def work(path: str) -> list[int]:
        tokens = []
        async with aio.follow(f"unix:{path}", ["alpha"], since="start") as batches:
            async for batch in batches:
                tokens.append(batch.token)
                await goes_on.wait()
                if batch.token == ROWS:
                    break
        return tokens

    async def main() -> None:
        path = str(socket_directory / "s")
        async with serving(path, serve), asyncio.timeout(20):
            task = asyncio.create_task(work(path))
            while not writers:
                await asyncio.sleep(0)
            for _ in range(200):
                await asyncio.sleep(0)
            (writer,) = writers
            waits = writer.transport.get_write_buffer_size()
            assert waits > len(lines) // 2
            for _ in range(200):
                await asyncio.sleep(0)
            assert writer.transport.get_write_buffer_size() == waits
            goes_on.set()
            assert await task == list(range(1, ROWS + 1))

    asyncio.run(main())


@pytest.mark.parametrize("taken", range(1, 7))
def test_a_task_may_be_cancelled_between_any_two_batches(
    room: Room, tmp_path: Path, taken: int
) -> None:
    """Streams take turns; whoever goes on sees the rest, and nothing twice."""
    connection = sqlite3.connect(tmp_path / "worker.db")
    connection.execute("CREATE TABLE seen (stream TEXT, token INTEGER)")
    for number in range(1, 4):
        room.publish("alpha", [number])
        room.publish("beta", [number])

    async def work(last: int) -> None:
        count = 0
        async with room.follow(positions=aio.SqlitePositionStore(connection)) as batches:
            async for batch in batches:
                values = (batch.stream, batch.token)
                connection.execute("INSERT INTO seen VALUES (?, ?)", values)
                count += 1
                if count == last:
                    await asyncio.Event().wait()

    def seen() -> list[Any]:
        return connection.execute("SELECT * FROM seen ORDER BY stream, token").fetchall()

    for last in (taken, 0):
        task = room.begin(work(last))
        room.network.run(1.0)
        task.cancel()
        room.network.run(1.0)
        assert task.cancelled()
        if last:
            assert len(seen()) == taken - 1
    assert seen() == [(s, n) for s in ("alpha", "beta") for n in (1, 2, 3)]
    connection.close()


def test_a_follower_is_made_where_no_loop_runs() -> None:
    """A script makes one before it has a loop, and nothing asks for the time before that."""
    assert aio.follow("127.0.0.1:1", ["typing"]).client is not None
