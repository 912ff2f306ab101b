"""A worker as somebody would write it: rows and positions in one SQLite transaction.

Run as ``python -m tests.faults.worker HOST:PORT DATABASE STREAM...``.
"""

from __future__ import annotations

import sqlite3
import sys
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.endpoints import TCP4ClientEndpoint

from tcprepl.cli import logs
from tcprepl.replication.following.client import ReplicationClient
from tcprepl.streams.codec import Rows
from tcprepl.streams.position_store import SqlitePositionStore

reactor: Any = installed


def main() -> None:
    """Follow the streams until killed."""
    address, database, *streams = sys.argv[1:]
    host, _, port = address.rpartition(":")
    logs.configure("debug")
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS seen"
        " (number INTEGER PRIMARY KEY AUTOINCREMENT, stream TEXT, token INTEGER, row TEXT)"
    )
    connection.commit()

    def handler(stream: str, instance: str, token: int, rows: Rows) -> None:
        connection.executemany(
            "INSERT INTO seen (stream, token, row) VALUES (?, ?, ?)",
            [(stream, token, row.decode()) for row in rows.raw],
        )

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
