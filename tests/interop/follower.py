"""A worker built on the client library, as a process that tests start, cut and kill.

``python -m tests.interop.follower JOURNAL POSITIONS PORT [--http URL] [--secret S] STREAM ...``
follows the streams from their start and writes what it is told to JOURNAL, a JSON array a
line: ``["rows", stream, instance, token, [row, ...]]``, ``["reset", stream, instance, known,
token]``, ``["position", stream, instance, token]``. Positions are kept in a database, so a
killed follower goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.endpoints import TCP4ClientEndpoint

from tcprepl.replication.following.client import ReplicationClient
from tcprepl.replication.following.http_catchup import HttpCatchUp
from tcprepl.streams.codec import Rows
from tcprepl.streams.position_store import SqlitePositionStore
from tests.interop.environments import REPOSITORY
from tests.interop.processes import Child, wait_until


class Follower(Child):
    """The process, and what it has written so far."""

    def __init__(
        self,
        directory: Path,
        port: int,
        streams: tuple[str, ...],
        *,
        http_port: int | None = None,
    ) -> None:
        self.journal_path = directory / "journal"
        command: list[str | Path] = [sys.executable, "-m", "tests.interop.follower"]
        command += [self.journal_path, directory / "positions.db", str(port)]
        if http_port is not None:
            command += ["--http", f"http://127.0.0.1:{http_port}"]
        super().__init__([*command, *streams], directory / "follower.log", cwd=REPOSITORY)

    def journal(self) -> list[list[Any]]:
        """Return everything written so far, over all the starts in this directory."""
        if not self.journal_path.exists():
            return []
        # The last line may be half written: it is looked at next time.
        return [json.loads(line) for line in self.journal_path.read_text().split("\n")[:-1]]

    def rows(self, stream: str) -> list[tuple[int, Any]]:
        """Return (token, row) of *stream* in the order of delivery."""
        return list(self._rows(stream))

    def wait_for_position(self, stream: str, token: int) -> None:
        """Wait until the follower has dealt with *stream* up to *token*."""
        self.wait_ready(
            f"{stream} reaches {token}",
            lambda: self.position(stream) == token,
        )

    def position(self, stream: str) -> int | None:
        """Return the newest token of *stream* that was delivered or announced."""
        found = None
        for kind, name, _, *rest in self.journal():
            if name == stream and kind in {"rows", "position"}:
                found = rest[0]
        return found

    def typing(self) -> dict[str, list[str]]:
        """Return who types where, as a follower that obeys resets knows it."""
        rooms: dict[str, list[str]] = {}
        for kind, name, _, *rest in self.journal():
            if name != "typing":
                continue
            if kind == "reset":
                rooms.clear()
            elif kind == "rows":
                rooms.update(rest[1])
        return {room: users for room, users in rooms.items() if users}

    def _rows(self, stream: str) -> Iterator[tuple[int, Any]]:
        for kind, name, _, *rest in self.journal():
            if kind == "rows" and name == stream:
                token, rows = rest
                yield from ((token, row) for row in rows)


def wait_for_row(follower: Follower, stream: str, part: str) -> None:
    """Wait until a row of *stream* that holds *part* has been delivered."""
    wait_until(
        f"a row of {stream} with {part}",
        lambda: any(part in json.dumps(row) for _, row in follower.rows(stream)),
    )


def main(arguments: list[str] | None = None) -> None:
    """Follow until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("journal", type=Path)
    parser.add_argument("positions", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--http")
    parser.add_argument("--secret")
    parser.add_argument("streams", nargs="*")
    asked = parser.parse_args(arguments)
    reactor: Any = global_reactor
    journal = asked.journal.open("a", buffering=1)

    def note(*entry: object) -> None:
        journal.write(json.dumps(entry) + "\n")

    def handle(stream: str, instance: str, token: int, rows: Rows) -> None:
        for _ in rows:
            pass  # every row has to be readable as the type of its stream
        note("rows", stream, instance, token, [json.loads(row) for row in rows.raw])

    client = ReplicationClient(
        reactor,
        TCP4ClientEndpoint(reactor, "127.0.0.1", asked.port),
        asked.streams or None,
        handle,
        positions=SqlitePositionStore(asked.positions),
        name="follower",
        since="start",
        on_reset=lambda *told: note("reset", *told),
        on_position=lambda *told: note("position", *told),
        catch_up=HttpCatchUp(reactor, {"*": asked.http}, asked.secret) if asked.http else None,
    )
    reactor.callWhenRunning(client.startService)
    reactor.addSystemEventTrigger("before", "shutdown", client.stopService)
    reactor.run()


if __name__ == "__main__":
    main()
