"""Following and publishing from asyncio, without Twisted's reactor.

The three things there are::

    async with follow("127.0.0.1:9092", ["typing"], since="start") as batches:
        async for batch in batches:                 # a batch counts when the next is asked for
            print(batch.token, list(batch.rows))

    async with ReplicationClient("127.0.0.1:9092", ["typing"], handler) as client:
        await client.wait()                         # a handler is called until it succeeds

    async with ReplicationWriter("127.0.0.1:9092") as writer:
        done = await writer.publish("typing", [b'["!room:example.com", []]'])

They are the edges of what `tcprepl.replication.following` does: the same session, the same rules of
delivery, retry and position, with asyncio's clock and sockets. So they promise the same: rows in
order, resumed after every cut, and exactly once with a `SqlitePositionStore` on the connection that
the rows are written with. Log lines go through structlog, metrics into `tcprepl.metrics`. It may
import replication and below, and never a reactor.
"""

from tcprepl.aio.client import ReplicationClient
from tcprepl.aio.connecting import Places, Where
from tcprepl.aio.follow import Follower, follow
from tcprepl.aio.http_catchup import HttpCatchUp
from tcprepl.aio.writer import ReplicationWriter
from tcprepl.replication.following.client import FollowOptions
from tcprepl.replication.following.pulling import Batch
from tcprepl.streams.codec import Rows
from tcprepl.streams.log import Appended
from tcprepl.streams.position_store import (
    MemoryPositionStore,
    PositionStore,
    SqlitePositionStore,
)
from tcprepl.streams.registry import Registry, StreamDef

__all__ = [
    "Appended",
    "Batch",
    "FollowOptions",
    "Follower",
    "HttpCatchUp",
    "MemoryPositionStore",
    "Places",
    "PositionStore",
    "Registry",
    "ReplicationClient",
    "ReplicationWriter",
    "Rows",
    "SqlitePositionStore",
    "StreamDef",
    "Where",
    "follow",
]
