"""SIGKILL of a producer, of the server and of both, at random moments.

Every row that was acknowledged is in the log once, at the token that was told; none is there twice;
the rows of the producer are in its order, without a hole. A producer that slept while another took
its place writes nothing.
"""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

import pytest

from tcprepl.storage.worker import InlineWorker
from tcprepl.streams.registry import Registry
from tcprepl.streams.sqlite import SqliteLog
from tests.faults.producer import STREAMS
from tests.harness import FULL, Running, Server, pause, wait_until


def rows_of(directory: Path) -> dict[str, dict[int, int]]:
    """Return for each stream token: number of the row, of the log of a server that has ended."""
    log = SqliteLog(directory, Registry(), lambda: 0, InlineWorker())
    found: dict[str, dict[int, int]] = {}
    for stream in STREAMS:
        found[stream] = {}
        at = 0
        while True:
            page = log.read(stream, "master", at, log.position(stream, "master"))
            for token, row in page.rows():
                assert token not in found[stream]
                found[stream][token] = int(row[3:-4])
            at = page.upto
            if not page.limited:
                break
    log.close()
    return found


@pytest.mark.timeout(1_800 if FULL else 300)
@pytest.mark.parametrize(
    ("face", "rounds"), [("twisted", 200 if FULL else 6), ("asyncio", 40 if FULL else 6)]
)
def test_kill_producer_and_server(tmp_path: Path, face: str, rounds: int) -> None:
    """Once each, in order, through every kill of either."""
    chance = random.Random(7)
    acknowledged = tmp_path / "acknowledged"
    acknowledged.touch()
    with Server(tmp_path / "server") as server:
        producing = [sys.executable, "-m", "tests.faults.producer", face]
        argv = [*producing, server.address, str(acknowledged)]

        def start() -> Running:
            return Running(argv, tmp_path, "producer")

        producer = start()
        zombies: list[Running] = []
        try:
            for number in range(rounds):
                size = acknowledged.stat().st_size
                wait_until(lambda size=size: acknowledged.stat().st_size > size, "an answer")  # type: ignore[misc]
                pause(chance.random() * 0.3)
                what = chance.choice(("producer", "server", "both", "zombie"))
                if what == "zombie" and number % 2:
                    producer.send_signal(signal.SIGSTOP)
                    zombies.append(producer)
                    producer = start()
                    continue
                if what in ("producer", "both"):
                    producer.kill()
                if what in ("server", "both"):
                    server.process.kill()
                    server.start()
                if what in ("producer", "both"):
                    producer = start()
            size = acknowledged.stat().st_size
            wait_until(lambda: acknowledged.stat().st_size > size, "an answer")
            for zombie in zombies:
                zombie.send_signal(signal.SIGCONT)
            for zombie in zombies:
                assert zombie.wait() == 3, zombie.stderr
                assert "fenced" in zombie.stderr
        finally:
            for process in (producer, *zombies):
                process.kill()
        server.process.stop()
        found = rows_of(server.where / "data")
    numbers = sorted(n for rows in found.values() for n in rows.values())
    assert numbers == list(range(1, len(numbers) + 1))
    for rows in found.values():
        in_order = [rows[token] for token in sorted(rows)]
        assert in_order == sorted(in_order)
    told = [line.split() for line in acknowledged.read_text().splitlines()]
    assert len(told) > rounds
    for text, stream, token in told:
        assert found[stream][int(token)] == int(text)
