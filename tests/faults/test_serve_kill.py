"""SIGKILL of the server and of a worker, at random moments, under a steady publisher.

Every row of a durable stream that was acknowledged reaches a resuming worker exactly once
and in order, and tokens of no stream ever go backwards.
"""

from __future__ import annotations

import itertools
import json
import random
import sqlite3
import sys
import threading
from pathlib import Path

import pytest

from tcprepl.cli.api import Api
from tests.harness import FULL, Running, Server, pause, wait_until

ROUNDS = 30 if FULL else 4
DURABLE = ("device_lists", "to_device")


class SteadyPublisher(threading.Thread):
    """Publishes numbered rows, one request after the other, each until it is acknowledged."""

    def __init__(self, url: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.random = random.Random(seed)
        self.acknowledged: dict[str, list[tuple[int, str]]] = {s: [] for s in DURABLE}
        self.typing_tokens: list[int] = []
        self.failure: BaseException | None = None
        self._enough = threading.Event()

    def run(self) -> None:
        """Publish until told to stop."""
        api = Api(self.url, retry_s=60.0)
        number = 0
        try:
            while not self._enough.is_set():
                stream = self.random.choice(DURABLE)
                batch = self.random.random() < 0.3
                rows = [
                    json.dumps([f"@{number + n}:example.com"], separators=(",", ":"))
                    for n in range(self.random.randint(1, 20))
                ]
                _, tokens = api.post_rows(
                    stream,
                    [row.encode() for row in rows],
                    batch=batch,
                    instance=None,
                    transaction_id=f"rows-{number}",
                )
                self.acknowledged[stream] += zip(tokens, rows, strict=True)
                _, tokens = api.post_rows(
                    "typing",
                    [json.dumps([f"!{number}:example.com", []]).encode()],
                    batch=False,
                    instance=None,
                    transaction_id=f"typing-{number}",
                )
                self.typing_tokens += tokens
                number += len(rows)
                self._enough.wait(0.01)  # what a worker that fails for one batch of five can take
        except BaseException as error:
            self.failure = error
            raise
        finally:
            api.close()

    def stop(self) -> None:
        """Finish the row at hand, and end."""
        self._enough.set()
        self.join(90.0)
        assert not self.is_alive()
        assert self.failure is None


def positions(server: Server) -> dict[tuple[str, str], int]:
    """Return the position of every stream."""
    status = server.request("GET", "/_tcprepl/v1/status")
    return {(p["stream"], p["instance"]): p["position"] for p in status["streams"]}


def seen(database: Path) -> dict[str, list[tuple[int, str]]]:
    """Return what the worker has committed, in the order in which it came."""
    found: dict[str, list[tuple[int, str]]] = {stream: [] for stream in DURABLE}
    connection = sqlite3.connect(database)
    try:
        for stream, token, row in connection.execute(
            "SELECT stream, token, row FROM seen ORDER BY number"
        ):
            found[stream].append((token, row))
    finally:
        connection.close()
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("face", "seed"),
    [
        ("twisted", 1),
        ("asyncio", 1),
        *([("twisted", 2), ("asyncio", 2), ("async-for", 3), ("for", 4)] if FULL else []),
    ],
)
def test_kill_server_and_worker(tmp_path: Path, face: str, seed: int) -> None:
    """Exactly once, in order, through every kill of either; tokens never go back."""
    chance = random.Random(seed)
    database = tmp_path / "worker.db"
    with Server(tmp_path / "server") as server:
        argv = [sys.executable, "-m", "tests.faults.worker", face, server.address, str(database)]

        def start_worker() -> Running:
            return Running([*argv, *DURABLE], tmp_path, "worker")

        worker = start_worker()
        publisher = SteadyPublisher(server.url, seed)
        publisher.start()
        known: dict[tuple[str, str], int] = {}
        try:
            for _ in range(ROUNDS):
                pause(chance.uniform(0.05, 0.6))
                if chance.random() < 0.6:
                    server.process.kill()
                    server.start()
                    now = positions(server)
                    assert all(now.get(pair, 0) >= token for pair, token in known.items())
                    known = now
                else:
                    worker.kill()
                    worker = start_worker()
            publisher.stop()
            wanted = publisher.acknowledged
            assert sum(map(len, wanted.values())) > ROUNDS
            wait_until(
                lambda: all(len(seen(database)[s]) >= len(wanted[s]) for s in DURABLE),
                "the worker has every acknowledged row",
                60.0,
            )
        finally:
            worker.kill()
        for stream in DURABLE:
            assert seen(database)[stream] == wanted[stream], stream
        tokens = publisher.typing_tokens
        assert all(a < b for a, b in itertools.pairwise(tokens))
