"""A worker as somebody would write it: rows and positions in one SQLite transaction.

Run as ``python -m tests.faults.worker HOST:PORT DATABASE STREAM...``. Its handler takes its time
for one batch of ten, and fails for two, in the middle of what it writes.
"""

from __future__ import annotations

import random
import sqlite3
import sys
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import deferLater

from tcprepl import limits
from tcprepl.cli import logs
from tcprepl.replication.following.client import ReplicationClient
from tcprepl.streams.codec import Rows
from tcprepl.streams.position_store import SqlitePositionStore

reactor: Any = installed


def main() -> None:
    """Follow the streams until killed."""
    address, database, *streams = sys.argv[1:]
    host, _, port = address.rpartition(":")
    logs.configure("info")
    connection = sqlite3.connect(database)
    # what is killed here is the process and not the machine, so nothing waits for the disk
    connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS seen"
        " (number INTEGER PRIMARY KEY AUTOINCREMENT, stream TEXT, token INTEGER, row TEXT)"
    )
    connection.commit()

    def write(stream: str, token: int, raw: Any, *, fails: bool) -> None:
        for number, row in enumerate(raw):
            connection.execute(
                "INSERT INTO seen (stream, token, row) VALUES (?, ?, ?)",
                (stream, token, row.decode()),
            )
            if fails and number == len(raw) // 2:
                raise RuntimeError("a fault in the handler")

    def handler(stream: str, instance: str, token: int, rows: Rows) -> Deferred[None] | None:
        chance = random.random()
        fails = chance < 0.2
        if 0.15 <= chance < 0.25:
            return deferLater(reactor, 0.005, write, stream, token, rows.raw, fails=fails)
        write(stream, token, rows.raw, fails=fails)
        return None

    limits.HANDLER_RETRY_MIN_S = 0.005
    client = ReplicationClient(
        reactor,
        TCP4ClientEndpoint(reactor, host, int(port)),
        streams,
        handler,
        positions=SqlitePositionStore(connection),
        name="worker",
        since="start",
    )
    client.startService()
    reactor.run()


if __name__ == "__main__":
    main()
