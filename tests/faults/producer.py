"""A process that publishes numbered rows for ever, and notes what was acknowledged.

``python -m tests.faults.producer (twisted|asyncio) HOST:PORT ACKNOWLEDGED [PAUSE_S]``: append *n*
has the number in its row and goes to one of two streams; it begins after the last one that the
server has taken, and rests for so long after each piece. With Twisted there may be several
addresses, with commas. Ends with 3 when another process has claimed the name.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from typing import Any

from tcprepl.aio import Appended, ReplicationWriter
from tcprepl.errors import PublishRefused

STREAMS = ("device_lists", "to_device")
OPEN = 200


class Numbers:
    """What is published, and the file of what was acknowledged."""

    def __init__(self, path: str, taken: int) -> None:
        self._acknowledged = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self._number = taken

    def next(self) -> tuple[int, str, list[bytes]]:
        """Return the next number, and its stream and rows."""
        self._number += 1
        return self._number, STREAMS[self._number // 11 % 2], [b'["@%d:x"]' % self._number]

    def note(self, number: int, answer: Appended) -> None:
        """Note that it was taken."""
        line = f"{number} {answer.stream} {answer.last}\n"
        os.write(self._acknowledged, line.encode())


async def under_twisted(reactor: Any, address: str, path: str, pause_s: float) -> None:
    """Publish until killed or fenced."""
    from twisted.internet.defer import Deferred
    from twisted.internet.task import deferLater

    from tcprepl.addresses import parse_address
    from tcprepl.app.connecting import client_endpoint
    from tcprepl.replication.following import writer as following

    first, *others = map(parse_address, address.split(","))
    writer = following.ReplicationWriter(
        reactor,
        client_endpoint(reactor, replace(first, others=tuple(others))),
        producer="steady",
        max_held_appends=OPEN,
    )
    writer.startService()
    numbers = Numbers(path, await writer.claimed)

    def publish_next() -> Deferred[Any]:
        number, stream, rows = numbers.next()
        published = writer.publish(stream, rows)
        return published.addCallback(lambda answer: numbers.note(number, answer))

    while True:
        await writer.when_room()
        # In pieces, so that what there is to write is not always as much as may be open.
        for _ in range(OPEN // 8):
            published = publish_next()
            published.addErrback(lambda failure: failure.trap(PublishRefused) and None)
            if writer.full:
                break
        if writer.failed.called:
            sys.stderr.write(f"{writer.failed.result}\n")
            writer.failed.addErrback(lambda _: None)
            raise SystemExit(3)
        await published
        await deferLater(reactor, pause_s)


async def under_asyncio(address: str, path: str, pause_s: float) -> None:
    """Publish until killed or fenced."""
    async with ReplicationWriter(address, producer="steady", max_held_appends=OPEN) as writer:
        numbers = Numbers(path, await writer.claimed())

        def publish_next() -> asyncio.Future[Appended]:
            number, stream, rows = numbers.next()
            published = writer.publish(stream, rows)

            def note(published: asyncio.Future[Appended]) -> None:
                if published.exception() is None:
                    numbers.note(number, published.result())

            published.add_done_callback(note)
            return published

        while True:
            await writer.when_room()
            for _ in range(OPEN // 8):
                published = publish_next()
                if writer.full:
                    break
            try:
                await published
            except PublishRefused as error:
                sys.stderr.write(f"{error}\n")
                raise SystemExit(3) from None
            await asyncio.sleep(pause_s)


def main(face: str, address: str, path: str, pause: str = "0") -> None:
    """Publish."""
    if face == "asyncio":
        asyncio.run(under_asyncio(address, path, float(pause)))
    else:
        from twisted.internet.task import react

        react(under_twisted, (address, path, float(pause)))


if __name__ == "__main__":
    main(*sys.argv[1:])
