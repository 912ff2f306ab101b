"""Keep a table from a stream, exactly once: ``python worker_twisted.py HOST:PORT DATABASE``.

The table counts how often the devices of each user changed. Rows and position are committed
together, so whatever is killed, and whenever, each change counts once.
"""

from __future__ import annotations

import sqlite3
import sys

from twisted.internet import reactor as installed
from twisted.internet.endpoints import clientFromString

from tcprepl.clocks import Reactor
from tcprepl.replication.following.client import ReplicationClient
from tcprepl.streams.codec import Rows
from tcprepl.streams.position_store import SqlitePositionStore


def main(address: str, database: str) -> None:
    """Follow ``device_lists`` until somebody ends this process."""
    reactor: Reactor = installed  # type: ignore[assignment]  # a module, says its annotation
    connection = sqlite3.connect(database)
    # What a power cut takes back it takes from rows and position alike: they come again.
    connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS changes (user_id TEXT PRIMARY KEY, count INTEGER)"
    )

    def handle(stream: str, instance: str, token: int, rows: Rows) -> None:
        """Write with the store's connection, and leave the commit to it."""
        connection.executemany(
            "INSERT INTO changes VALUES (?, 1)"
            " ON CONFLICT (user_id) DO UPDATE SET count = count + 1",
            [(row.entity,) for row in rows],
        )

    client = ReplicationClient(
        reactor,
        clientFromString(reactor, f"tcp:{address}"),
        ["device_lists"],
        handle,
        positions=SqlitePositionStore(connection),
        name="changes",
        since="start",
    )
    client.startService()
    reactor.addSystemEventTrigger("before", "shutdown", client.stopService)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
