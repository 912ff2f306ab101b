"""A process that publishes numbered rows for ever, and notes what was acknowledged.

``python -m tests.faults.producer HOST:PORT ACKNOWLEDGED``: append *n* has the number in its row and
goes to one of two streams; it begins after the last one that the server has taken. Ends with 3 when
another process has claimed the name.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from tcprepl.app.connecting import client_endpoint
from tcprepl.errors import PublishRefused
from tcprepl.replication.following.writer import ReplicationWriter
from tcprepl.values import parse_address

STREAMS = ("device_lists", "to_device")
OPEN = 200


async def publish(reactor: Any, address: str, path: str) -> None:
    """Publish until killed or fenced."""
    writer = ReplicationWriter(
        reactor,
        client_endpoint(reactor, parse_address(address)),
        producer="steady",
        max_held_appends=OPEN,
    )
    writer.startService()
    acknowledged = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    number = await writer.claimed

    def publish_next() -> Deferred[Any]:
        nonlocal number
        number += 1
        mine, stream = number, STREAMS[number % 2]

        def note(answer: Any) -> None:
            os.write(acknowledged, f"{mine} {stream} {answer.last}\n".encode())

        return writer.publish(stream, [b'["@%d:x"]' % mine]).addCallback(note)

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


if __name__ == "__main__":
    react(publish, sys.argv[1:])
