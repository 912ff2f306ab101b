"""A worker as somebody would write it: rows and positions in one SQLite transaction.

Run as ``python -m tests.faults.worker FACE HOST:PORT DATABASE STREAM...``, where FACE is one of
``twisted``, ``asyncio``, ``async-for`` and ``for``; of several addresses, with commas, any will do.
It takes its time for one batch of ten, and fails for two, in the middle of what it writes. A loop
has to connect anew when it has failed, and fails for one of a hundred. What it is told of rows
that it will not get is kept in the order in which it was told.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tcprepl
from tcprepl import aio, limits
from tcprepl.cli import logs
from tcprepl.streams.codec import Rows
from tcprepl.streams.position_store import SqlitePositionStore

#: How long it takes when it takes its time.
SLOW_S = 0.005
#: How often a loop fails.
LOOP_FAULTS = 0.01


class Fault(Exception):
    """What goes wrong in a handler."""


class Worker:
    """What it writes, and how it fails.

    Attributes:
        positions: Where its positions are: in the transaction of the rows.
    """

    def __init__(self, database: str) -> None:
        self._connection = sqlite3.connect(database)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS seen"
            " (number INTEGER PRIMARY KEY AUTOINCREMENT, stream TEXT, token INTEGER, row TEXT)"
        )
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS told (number INTEGER PRIMARY KEY AUTOINCREMENT,"
            " behind INTEGER, stream TEXT, known INTEGER, token INTEGER)"
        )
        self._connection.commit()
        self.positions = SqlitePositionStore(self._connection)

    def chances(self, faults: float = 0.2) -> tuple[bool, bool]:
        """Return whether it takes its time, and whether it fails, which may be both."""
        return random.random() < 0.1, random.random() < faults

    def write(self, stream: str, token: int, rows: Rows, *, fails: bool) -> None:
        """Write the rows, and fail half-way if that is how it is."""
        for number, row in enumerate(rows.raw):
            self._connection.execute(
                "INSERT INTO seen (stream, token, row) VALUES (?, ?, ?)",
                (stream, token, row.decode()),
            )
            if fails and number == len(rows.raw) // 2:
                raise Fault("a fault in the handler")

    def note(self, stream: str, instance: str, known: int | None, token: int) -> None:
        """Note that the stream cannot go on from *known*, but from *token*."""
        self._connection.execute(
            "INSERT INTO told (behind, stream, known, token)"
            " SELECT COALESCE(MAX(number), 0), ?, ?, ? FROM seen",
            (stream, known, token),
        )


def under_twisted(worker: Worker, address: str, streams: Sequence[str]) -> None:
    """Follow with a handler that may return a Deferred."""
    from twisted.internet import reactor as installed
    from twisted.internet.task import deferLater

    from tcprepl.addresses import parse_address
    from tcprepl.app.connecting import client_endpoint
    from tcprepl.replication.following.client import ReplicationClient

    reactor: Any = installed

    def handler(stream: str, instance: str, token: int, rows: Rows) -> Any:
        slow, fails = worker.chances()
        if slow:
            return deferLater(reactor, SLOW_S, worker.write, stream, token, rows, fails=fails)
        worker.write(stream, token, rows, fails=fails)
        return None

    first, *others = map(parse_address, address.split(","))
    endpoint = client_endpoint(reactor, replace(first, others=tuple(others)))
    client = ReplicationClient(
        reactor,
        endpoint,
        streams,
        handler,
        positions=worker.positions,
        name="worker",
        since="start",
        on_reset=worker.note,
    )
    client.startService()
    reactor.run()


async def under_asyncio(worker: Worker, address: str, streams: Sequence[str]) -> None:
    """Follow with a handler that may be a coroutine."""

    async def later(stream: str, token: int, rows: Rows, *, fails: bool) -> None:
        await asyncio.sleep(SLOW_S)
        worker.write(stream, token, rows, fails=fails)

    def handler(stream: str, instance: str, token: int, rows: Rows) -> Any:
        slow, fails = worker.chances()
        if slow:
            return later(stream, token, rows, fails=fails)
        worker.write(stream, token, rows, fails=fails)
        return None

    await aio.ReplicationClient(
        address.split(","),
        streams,
        handler,
        positions=worker.positions,
        name="worker",
        since="start",
        on_reset=worker.note,
    ).run()


async def in_async_for(worker: Worker, address: str, streams: Sequence[str]) -> None:
    """Follow in a loop, again and again."""
    while True:
        try:
            async with aio.follow(
                address.split(","),
                streams,
                positions=worker.positions,
                name="worker",
                since="start",
                on_reset=worker.note,
            ) as batches:
                async for batch in batches:
                    slow, fails = worker.chances(LOOP_FAULTS)
                    if slow:
                        await asyncio.sleep(SLOW_S)
                    worker.write(batch.stream, batch.token, batch.rows, fails=fails)
        except Fault:
            continue


def in_for(worker: Worker, address: str, streams: Sequence[str]) -> None:
    """Follow in a plain loop, again and again."""
    while True:
        try:
            with tcprepl.follow(
                address.split(","),
                streams,
                positions=worker.positions,
                name="worker",
                since="start",
                on_reset=worker.note,
            ) as batches:
                for batch in batches:
                    slow, fails = worker.chances(LOOP_FAULTS)
                    if slow:
                        time.sleep(SLOW_S)
                    worker.write(batch.stream, batch.token, batch.rows, fails=fails)
        except Fault:
            continue


def main() -> None:
    """Follow the streams until killed."""
    face, address, database, *streams = sys.argv[1:]
    logs.configure("info")
    limits.HANDLER_RETRY_MIN_S = 0.005
    worker = Worker(database)
    if face == "twisted":
        under_twisted(worker, address, streams)
    elif face == "for":
        in_for(worker, address, streams)
    else:
        follow = under_asyncio if face == "asyncio" else in_async_for
        try:
            loop = asyncio.new_event_loop()
        except OSError as error:  # no descriptors: CPython stumbles over such a loop when it goes
            print(f"no loop: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(follow(worker, address, streams))


if __name__ == "__main__":
    main()
