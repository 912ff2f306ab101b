"""Batches in an ``async for`` (protocol.md sections 5, 7 and 17)."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Collection, Iterator
from typing import Self, Unpack

from tcprepl.aio.client import ReplicationClient
from tcprepl.aio.connecting import Places
from tcprepl.ids import StreamName
from tcprepl.replication.following.client import FollowOptions
from tcprepl.replication.following.pulling import Batch, Puller


class Follower:
    """Follows a server while it is entered, and yields each batch in order; see `follow`.

    Attributes:
        client: What can be asked: ``connected``, ``positions()``, ``last_error`` and so on.
    """

    def __init__(
        self,
        where: Places,
        streams: Collection[StreamName] | None,
        *,
        tls: ssl.SSLContext | None = None,
        **options: Unpack[FollowOptions],
    ) -> None:
        self._puller = Puller(self._wake)
        self.client = ReplicationClient(where, streams, self._puller, tls=tls, **options)
        self._waiter: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to follow."""
        self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Stop; the batch in hand counts, unless something was raised.

        Raises:
            Exception: Its position could not be saved on the connection that you write with: it
                does not count, and comes again. (Of a store of its own that is logged, and the rows
                come again next time.)
        """
        await self.stop(counts=kind is None)

    def __aiter__(self) -> AsyncGenerator[Batch, None]:
        """Yield batches until it is stopped; one counts when the next is asked for.

        One loop at a time. A loop that was left may be followed by another, which goes on behind
        the batch in hand.

        Raises:
            BaseException: (from the loop) A callback has failed for good (`max_attempts`), or what
                was written cannot be undone.
        """
        return self._iterate()

    async def _iterate(self) -> AsyncGenerator[Batch, None]:
        entered = self.client.running
        if not entered:
            self.start()
        try:
            while True:
                for batch in self.batches():
                    yield batch
                if not await self.more():
                    return
        finally:
            if not entered:
                await self.stop(counts=False)

    # -- the parts, for who iterates in another way -------------------------------------------

    def start(self) -> None:
        """Begin to follow."""
        self.client.start()
        self.client.ended.add_done_callback(lambda _: self._wake())

    def batches(self) -> Iterator[Batch]:
        """Yield what is there; a batch counts when the next is asked for."""
        return self._puller.batches()

    async def more(self) -> bool:
        """Wait until `batches` has something; call it when that has ended.

        Returns:
            Whether it has; False when it was stopped.

        Raises:
            RuntimeError: Another task waits already.
            BaseException: As the loop.
        """
        if self._waiter is not None:
            raise RuntimeError("another task waits for the next batch already")
        self._puller.settle()
        while not self._puller.holds:
            if self.client.ended.done():
                self.client.ended.result()
                return False
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return True

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def stop(self, *, counts: bool) -> None:
        """Stop to follow.

        Args:
            counts: Whether the batch in hand counts; what was written with it is undone if not.

        Raises:
            Exception: Its position could not be saved on the caller's connection, so it does not
                count.
        """
        try:
            if counts:
                self._puller.finish()
        finally:
            stopped = self.client.stop()
            self._puller.abandon()
            await stopped


def follow(
    where: Places,
    streams: Collection[StreamName] | None,
    *,
    tls: ssl.SSLContext | None = None,
    **options: Unpack[FollowOptions],
) -> Follower:
    """Follow *streams*: enter what is returned, and iterate over it.

    A batch counts once the next one is asked for, or the ``async with`` is left without an
    exception. Only then does its position advance. With a `SqlitePositionStore` on the connection
    that you write with, what you wrote and the position become true together, or are undone
    together, whatever is raised and whoever dies: exactly once. Do not commit yourself::

        connection = sqlite3.connect("worker.db")
        positions = SqlitePositionStore(connection)
        async with follow("127.0.0.1:9092", ["typing"], positions=positions) as batches:
            async for batch in batches:
                for row in batch.rows:
                    connection.execute("INSERT INTO seen VALUES (?)", (row.room_id,))

    A position that cannot be saved is logged. With a store on your connection what was written
    with it is undone, and its batch comes again a little later; another store is tried again.
    Rows that do not fit their stream are logged, counted and left out. Cuts and restarts of the
    server are not seen here: `Follower.client` tells of them. While you do not ask for the next
    batch nothing is read. Without ``async with`` it works, too, but then the batch in hand
    never counts when the loop is left.

    Args:
        where: Where the server is: ``HOST:PORT``, ``tls:HOST:PORT`` or ``unix:PATH``. Of several,
            over one database, the next is taken when one is gone.
        streams: Names of the streams; None follows all.
        tls: What to speak TLS with, for a certificate of your own, say.
        **options: See `FollowOptions`. Where to begin is ``since``: ``"now"``, if you do not say
            ``"start"``, for a stream that has no position yet.

    Raises:
        ValueError: *where* or an option is not what it should be.
    """
    return Follower(where, streams, tls=tls, **options)
