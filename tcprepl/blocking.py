"""Following a server from a plain script, without an event loop of its own.

::

    import tcprepl

    for batch in tcprepl.follow("127.0.0.1:9092", ["typing"], since="start"):
        print(batch.stream, batch.token, list(batch.rows))
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Collection, Iterator
from typing import Self, Unpack

from tcprepl import aio
from tcprepl.aio.connecting import Places
from tcprepl.ids import StreamName
from tcprepl.replication.following.client import FollowOptions
from tcprepl.replication.following.pulling import Batch


class BlockingFollower:
    """Follows a server while it is entered, and yields each batch in order; see `follow`.

    Attributes:
        client: What can be asked between two batches: ``positions()``, ``last_error`` and so on.
    """

    def __init__(self, follower: aio.Follower) -> None:
        self.client = follower.client
        self._follower = follower
        self._runner: asyncio.Runner | None = None

    def __enter__(self) -> Self:
        """Begin to follow.

        Raises:
            RuntimeError: An event loop runs in this thread already: use `tcprepl.aio.follow`.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise RuntimeError("an event loop runs in this thread: use tcprepl.aio.follow there")
        self._runner = asyncio.Runner()
        self._runner.run(self._follower.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Stop; the batch in hand counts, unless something was raised.

        Raises:
            Exception: Its position could not be saved: it does not count, and comes again.
        """
        self._stop(counts=kind is None)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches for ever; one counts when the next is asked for.

        Raises:
            BaseException: (from the loop) A callback has failed for good (`max_attempts`), or what
                was written cannot be undone.
        """
        entered = self._runner is not None
        if not entered:
            self.__enter__()
        try:
            while self._runner is not None:
                yield from self._follower.batches()
                if not self._runner.run(self._follower.more()):
                    return
        finally:
            if not entered:
                self._stop(counts=False)

    def _stop(self, *, counts: bool) -> None:
        assert self._runner is not None
        runner, self._runner = self._runner, None
        with runner:
            runner.run(self._follower.stop(counts=counts))


def follow(
    where: Places,
    streams: Collection[StreamName] | None,
    *,
    tls: ssl.SSLContext | None = None,
    **options: Unpack[FollowOptions],
) -> BlockingFollower:
    """Follow *streams* in a ``for`` loop.

    It is `tcprepl.aio.follow`, which runs in the calling thread while the loop waits for a batch;
    the arguments and the promises are the same. Enter it, if the batch in hand is to count when
    the loop is left by ``break``, or if a loop is to be taken up again::

        connection = sqlite3.connect("worker.db")
        positions = SqlitePositionStore(connection)
        with follow("127.0.0.1:9092", ["typing"], positions=positions) as batches:
            for batch in batches:
                for row in batch.rows:
                    connection.execute("INSERT INTO seen VALUES (?)", (row.room_id,))

    Callbacks among the options are called while a batch is waited for. Who works on a batch for
    longer than a server waits for a sign of life loses the connection; it is made again, and goes
    on where it was.

    Args:
        where: Where the server is: ``HOST:PORT``, ``tls:HOST:PORT`` or ``unix:PATH``. Of several,
            over one database, the next is taken when one is gone.
        streams: Names of the streams; None follows all.
        tls: What to speak TLS with, for a certificate of your own, say.
        **options: See `FollowOptions`.

    Raises:
        ValueError: *where* or an option is not what it should be.
    """
    return BlockingFollower(aio.follow(where, streams, tls=tls, **options))
