"""Publishing to a server from asyncio, each row once (protocol.md sections 6.17 and 7.12)."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence

from twisted.python.failure import Failure

from tcprepl.aio.connecting import Where, client_endpoint
from tcprepl.aio.running import Running
from tcprepl.clocks import LoopClock
from tcprepl.errors import LogUnavailable
from tcprepl.ids import InstanceName, ProducerName, ServerName, StreamName
from tcprepl.replication.following import writer as following
from tcprepl.replication.following.asyncio_bridge import future_of
from tcprepl.replication.following.connection import Token
from tcprepl.replication.following.writer import MAX_HELD_APPENDS, MAX_HELD_BYTES
from tcprepl.streams.log import Appended


class ReplicationWriter(Running):
    """Publishes to a server for as long as it is started.

    It promises what `tcprepl.replication.following.writer.ReplicationWriter` promises: an append
    that was answered is in the log once; what is not answered is held, in the order of the
    calls, and said again after every cut. It belongs to the loop in which it was started::

        async with ReplicationWriter("127.0.0.1:9092") as writer:
            for row in rows:
                await writer.when_room()
                last = writer.publish("typing", [row])      # does not wait
            await last                                      # nor do those before it, by now

    Args:
        where: Where the server is: ``HOST:PORT``, ``tls:HOST:PORT`` or ``unix:PATH``.
        producer: The name under which appends are numbered; by default one that nobody has. Whoever
            had it before is fenced. With a name of its own a process that was killed finds out by
            `claimed` how many of its appends were taken.
        tls: What to speak TLS with, for a certificate of your own, say.
        name: How the server is to call us.
        server_name: The homeserver that it has to be; None takes any.
        token: What the server asks for, or what reads it anew for each connection.
        max_held_appends: Appends that are held until they are answered.
        max_held_bytes: Bytes of their rows.

    Raises:
        ValueError: *where* is no address.
    """

    _service: following.ReplicationWriter

    def __init__(
        self,
        where: Where,
        *,
        producer: ProducerName | None = None,
        tls: ssl.SSLContext | None = None,
        name: str = "tcprepl",
        server_name: ServerName | None = None,
        token: Token | None = None,
        max_held_appends: int = MAX_HELD_APPENDS,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self._service = following.ReplicationWriter(
            LoopClock(),
            client_endpoint(where, tls),
            producer=producer,
            name=name,
            server_name=server_name,
            token=token,
            max_held_appends=max_held_appends,
            max_held_bytes=max_held_bytes,
        )
        self._claimed: asyncio.Future[int] | None = None

    # -- life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect; does nothing if it was started before."""
        if self._claimed is None:
            self._claimed = future_of(self._service.claimed)
            _ = self._service.failed.addErrback(self._fail)
            self._service.startService()

    async def stop(self) -> None:
        """Stop for good; what is not answered yet fails with `LogUnavailable`."""
        stopped = future_of(self._service.stopService())
        error = LogUnavailable("the writer was stopped before the server answered")
        stopped.add_done_callback(lambda _: self._not_claimed(error))
        await stopped

    def _fail(self, failure: Failure) -> None:
        self._not_claimed(failure.value or RuntimeError(str(failure)))

    def _not_claimed(self, error: BaseException) -> None:
        if self._claimed is not None and not self._claimed.done():
            self._claimed.set_exception(error)
            self._claimed.exception()  # those who publish are told; maybe nobody waits here

    # -- what callers do -----------------------------------------------------------------------

    def publish(
        self,
        stream: StreamName,
        rows: Sequence[bytes],
        *,
        batch: bool = False,
        instance: InstanceName | None = None,
    ) -> asyncio.Future[Appended]:
        """Append rows, all of them or none; done with their tokens once they are safe.

        Nothing need be awaited before the next call; answers come in the order of the calls. May
        be called before the writer is started, and while there is no connection. Who cancels
        the future only stops waiting: the rows go in.

        Args:
            stream: Name of the stream.
            rows: Rows as JSON; at least one, and together no longer than a line (1 MiB).
            batch: Whether all rows share one token.
            instance: The writing instance, if it is another than the server's own.

        Raises:
            PublishRefused: (from the future) The server does not take these rows; the reason says
                what is wrong. Those behind them are not concerned, unless the writer was fenced.
            LogUnavailable: (from the future) So much is held that no more can be, see `when_room`;
                or the writer was stopped before the server answered.
            ConnectionFailed: (from the future) The server takes no rows at all.
        """
        return future_of(self._service.publish(stream, rows, batch=batch, instance=instance))

    async def when_room(self) -> None:
        """Wait until `publish` takes more, or never will."""
        while self._service.full:  # another that waited may have been quicker
            await future_of(self._service.when_room())

    async def claimed(self) -> int:
        """Wait for the server, and return the number of the last append taken under our name.

        That is how many appends were, since they are numbered from 1.

        Raises:
            PublishRefused: Another process has the name now.
            ConnectionFailed: The server takes no rows.
            LogUnavailable: The writer was stopped.
        """
        assert self._claimed is not None, "start the writer first"
        return await asyncio.shield(self._claimed)

    # -- what callers may ask -------------------------------------------------------------------

    @property
    def held(self) -> int:
        """How many appends are held until they are answered."""
        return self._service.held

    @property
    def full(self) -> bool:
        """Whether so much is held that `publish` takes no more."""
        return self._service.full
