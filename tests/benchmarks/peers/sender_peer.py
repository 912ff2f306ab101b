"""Our sender with many destinations, of which half are down; the outbox is on disk.

``python sender_peer.py live DIRECTORY DESTINATIONS EDUS SECONDS`` takes EDUs, sends those that can
be sent, tries the others for so long, and then rests; ``fill DIRECTORY DESTINATIONS EDUS`` leaves
EDUs on disk, as a process that was killed would; ``restart DIRECTORY`` begins with that, everybody
up. Each prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from msgspec import Raw
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from tcprepl.federation.sending.commit_queue import run_inline
from tcprepl.federation.sending.outbox import Outbox
from tcprepl.federation.sending.sender import FederationSender
from tcprepl.federation.wire.answer import Answer
from tcprepl.federation.wire.edu import TO_DEVICE, Edu
from tcprepl.federation.wire.failures import NotReached

ORIGIN = "matrix.example.com"
reactor: Any = global_reactor


class Rows:
    """Rows as the client delivers them."""

    def __init__(self, raw: list[bytes]) -> None:
        self.raw = raw


class Sink:
    """A transport: every destination that is up takes everything at once."""

    def __init__(self, up: str) -> None:
        self._up = up
        self.edus = 0
        self.first: Deferred[None] = Deferred()

    async def send_transaction(self, destination: str, transaction_id: str, body: bytes) -> Answer:
        """Take one, unless its destination is down."""
        if not self.first.called:
            self.first.callback(None)
        if self._up == "none" or (self._up == "half" and destination.startswith("down")):
            raise NotReached("it is down")
        self.edus += body.count(b'"edu_type"')
        return Answer(200, b"{}")


class Process:
    """What a sender process has."""

    def __init__(self, directory: Path, up: str) -> None:
        self.pool = ThreadPool(0, 1)
        self.pool.start()
        self.began = time.monotonic()
        self.sink = Sink(up)
        self.outbox = Outbox(
            directory / "outbox.sqlite", lambda work: deferToThreadPool(reactor, self.pool, work)
        )
        self.sender = FederationSender(reactor, self.outbox, self.sink, ORIGIN)
        self.sender.start()
        self.sender.intake.canonical = True

    async def take(self, destinations: int, edus: int) -> None:
        """Have the sender take so many EDUs, and wait until they are on disk."""
        content = '{"messages":{},"sender":"@a:matrix.example.com","type":"m.x"}'
        for start in range(0, edus, 500):
            waiting: Deferred[None] | None = None
            for number in range(start, min(start + 500, edus)):
                place = number % destinations
                name = f"{'down' if place % 2 else 'up'}{place}.example.org"
                row = (
                    f'["e",{{"content":{content},"destination":"{name}",'
                    f'"edu_type":"m.direct_to_device","origin":"{ORIGIN}"}}]'
                )
                waiting = self.sender.intake.handle_rows(
                    "federation", "master", number + 1, Rows([row.encode()])
                )
            await (waiting or deferLater(reactor, 0))

    async def stop(self) -> None:
        """End."""
        await self.sender.stop()
        await self.outbox.close()
        self.pool.stop()


async def live(directory: Path, destinations: int, edus: int, seconds: float) -> dict[str, float]:
    """Take EDUs, then rest."""
    process = Process(directory, "half")
    before = time.process_time()
    await process.take(destinations, edus)
    while process.sink.edus < edus // 2:
        await deferLater(reactor, 0.01)
    spent = time.process_time() - before
    await deferLater(reactor, 2.0)  # those that are down have been tried
    before = time.process_time()
    await deferLater(reactor, seconds)
    retries = time.process_time() - before
    await deferLater(reactor, 1.6 * seconds)  # the second round of tries is over, too
    before = time.process_time()
    await deferLater(reactor, seconds)
    rest = time.process_time() - before
    await process.stop()
    return {
        "us_per_edu": spent / edus * 1e6,
        "retries_ms_per_s": retries * 1e3 / seconds,
        "rest_ms_per_s": rest * 1e3 / seconds,
    }


async def fill(directory: Path, destinations: int, edus: int) -> dict[str, float]:
    """Leave EDUs on disk, so many at a time that a million does not take long."""
    outbox = Outbox(directory / "outbox.sqlite", run_inline)
    content = Raw(b'{"messages":{},"sender":"@a:matrix.example.com","type":"m.x"}')
    for start in range(0, edus, 10_000):
        numbers = range(start, min(start + 10_000, edus))
        entries = [
            (
                edu_id,
                0,
                Edu(content, f"up{number % destinations}.example.org", TO_DEVICE, ORIGIN),
            )
            for edu_id, number in zip(outbox.take_ids(len(numbers)), numbers, strict=True)
        ]
        await outbox.add(entries, 1, {("federation", "master"): numbers[-1] + 1})
    await outbox.close()
    return {}


async def restart(directory: Path) -> dict[str, float]:
    """Begin with what is on disk."""
    cpu = time.process_time()
    process = Process(directory, "all")
    await process.sink.first
    first = time.monotonic() - process.began
    cpu = time.process_time() - cpu
    await process.stop()
    return {"first_send_s": first, "first_send_cpu_s": cpu}


def main(arguments: Sequence[str]) -> None:
    """Do what the arguments ask for."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    what, directory, *numbers = arguments
    work: Any = {"live": live, "fill": fill, "restart": restart}[what]

    async def run(_: object) -> None:
        print(json.dumps(await work(Path(directory), *map(int, numbers))))

    react(run)


if __name__ == "__main__":
    main(sys.argv[1:])
