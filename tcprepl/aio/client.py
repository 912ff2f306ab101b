"""A handler that is called with each batch, under asyncio (protocol.md sections 5, 7 and 17)."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Collection
from typing import Self, Unpack

from twisted.python.failure import Failure

from tcprepl.aio.connecting import Places, any_endpoint
from tcprepl.aio.running import Running
from tcprepl.clocks import LoopClock
from tcprepl.ids import IncarnationId, Pair, StreamName, Token
from tcprepl.protocol.commands import Command
from tcprepl.replication.following import client as following
from tcprepl.replication.following.asyncio_bridge import future_of
from tcprepl.replication.following.client import FollowOptions
from tcprepl.replication.following.delivery import RowHandler
from tcprepl.replication.following.pulling import Puller


class ReplicationClient(Running):
    """Follows a server for as long as it is started, and calls a handler with each batch.

    It promises what `tcprepl.replication.following.client.ReplicationClient` promises, and takes
    the same options: batches in order, one at a time, a failing handler called again until it
    succeeds, positions that advance only then; with a `SqlitePositionStore` on the connection
    that the handler writes with, each row of a durable stream exactly once. A handler and the
    callbacks may be coroutines, and may await anything that asyncio knows; while one takes its
    time nothing is read, and nothing is kept in memory.

    A client belongs to the loop in which it was started; use it there only. It may be stopped and
    started again::

        async with ReplicationClient("127.0.0.1:9092", ["typing"], handler) as client:
            await client.wait()

    Args:
        where: Where the server is: ``HOST:PORT``, ``tls:HOST:PORT`` or ``unix:PATH``. Of several,
            over one database, the next is taken when one is gone.
        streams: Names of the streams to follow; None follows all.
        handler: Called with (stream, instance, token, rows) for each batch; sync or async.
        tls: What to speak TLS with, for a certificate of your own, say.
        on_connected: Called with this client when a connection is ready for commands.
        **options: See `FollowOptions`.

    Attributes:
        ended: Done when it was stopped or has failed; not to be cancelled.

    Raises:
        ValueError: *where* or an option is not what it should be.
    """

    ended: asyncio.Future[None]
    _service: following.ReplicationClient

    def __init__(
        self,
        where: Places,
        streams: Collection[StreamName] | None,
        handler: RowHandler | Puller,
        *,
        tls: ssl.SSLContext | None = None,
        on_connected: Callable[[Self], object] | None = None,
        **options: Unpack[FollowOptions],
    ) -> None:
        self._service = following.ReplicationClient(
            LoopClock(),
            any_endpoint(where, tls),
            streams,
            handler,
            on_connected=None if on_connected is None else lambda _: on_connected(self),
            **options,
        )

    def start(self) -> None:
        """Begin to follow, from the saved positions; does nothing if it follows already."""
        if not self._service.running:
            self._service.startService()
            self.ended = asyncio.get_running_loop().create_future()
            _ = self._service.failed.addErrback(self._fail)

    def stop(self) -> asyncio.Future[None]:
        """Stop now; await what is returned to know that it has.

        The handler that runs may end and counts; one that failed is not called again. A handler
        must not wait for this.
        """
        ended = getattr(self, "ended", None)  # a later start has one of its own
        stopped = future_of(self._service.stopService())
        if ended is not None:
            stopped.add_done_callback(lambda _: _end(ended))
        return stopped

    async def wait(self) -> None:
        """Wait until it was stopped.

        Raises:
            BaseException: What a handler or callback raised at last (`max_attempts`), or why what
                it wrote cannot be undone; the client has stopped.
        """
        await asyncio.shield(self.ended)

    async def run(self) -> None:
        """Follow until cancelled, or stopped; raises as `wait`."""
        async with self:
            await self.wait()

    def _fail(self, failure: Failure) -> None:
        if not self.ended.done():
            self.ended.set_exception(failure.value or RuntimeError(str(failure)))
            self.ended.exception()  # it is logged already, if nobody waits

    # -- what callers may ask ----------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether it was started, and has neither been stopped nor failed."""
        return bool(self._service.running)

    @property
    def dialect(self) -> str | None:
        """Name of the dialect of the present connection; None without one."""
        return self._service.dialect

    @property
    def incarnation(self) -> IncarnationId | None:
        """The incarnation of its log that the server of the present connection named."""
        return self._service.incarnation

    @property
    def token_taken(self) -> bool:
        """Whether the newest connection, which may be gone, had its token taken or needed none."""
        return self._service.token_taken

    @property
    def received_rows(self) -> int:
        """Rows received since the start."""
        return self._service.received_rows

    @property
    def quarantined_rows(self) -> int:
        """Rows left out because they do not fit their stream."""
        return self._service.quarantined_rows

    def positions(self) -> dict[Pair, Token]:
        """Return what is known of each (stream, instance)."""
        return self._service.positions()

    def send(self, command: Command) -> bool:
        """Send *command*; return whether there was a connection to send it on."""
        return self._service.send(command)


def _end(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)
