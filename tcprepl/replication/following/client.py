"""Following a server: reconnect, resume, deliver in order (protocol.md sections 5, 7 and 17).

`ReplicationClient` is a Twisted service. It connects, asks for the chosen streams from the
positions it holds, and calls a handler with each batch in order. The position of a stream
advances only after the handler has succeeded, and a slow handler stops the reading from
the socket, not the memory.

It asks its reactor for the time and its endpoint for a connection, and for nothing else:
`tcprepl.aio` gives it those of asyncio, and has everything else from here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import TypedDict

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.python.failure import Failure

from tcprepl import metrics
from tcprepl.background import run_in_background
from tcprepl.ids import IncarnationId, Pair, ServerName, StreamName, Token
from tcprepl.logger import get_logger
from tcprepl.protocol.commands import Command, ReplicateCommand
from tcprepl.protocol.dialects import DEFAULT_INSTANCE, DIALECTS, Dialect
from tcprepl.protocol.grammar import is_name
from tcprepl.replication.following.any_of import AnyOf
from tcprepl.replication.following.asyncio_bridge import bridged
from tcprepl.replication.following.catchup import CatchUp
from tcprepl.replication.following.connection import ClientConnection, Ended
from tcprepl.replication.following.connection import Token as AccessToken
from tcprepl.replication.following.delivery import (
    Delivery,
    PassedOver,
    PositionHandler,
    ResetHandler,
    RowHandler,
)
from tcprepl.replication.following.pulling import Puller
from tcprepl.replication.following.reconnecting import Reconnecting
from tcprepl.streams.position_store import MemoryPositionStore, PositionStore
from tcprepl.streams.registry import Registry

log = get_logger(__name__)


class FollowOptions(TypedDict, total=False):
    """What may be said of following besides where the server is, what to follow and who handles it.

    Attributes:
        positions: Where positions are kept; in memory by default. With a `SqlitePositionStore` on
            the connection that handlers write with, each row counts exactly once.
        name: How the server is to call us; ``tcprepl`` by default.
        server_name: The homeserver that it has to be; None takes any.
        token: What the server asks for, or what reads it anew for each connection; it is said to a
            server of our own kind only. Mind that it goes where *endpoint* leads: use TLS.
        since: Where to begin a stream for which no position is known: ``now``, which is the
            default, or ``start``.
        on_reset: Called with (stream, instance, known, token) when a stream cannot go on from where
            we are: rows in ``(known, token]`` are lost when *token* is above *known*; state has to
            be forgotten when it is below. What follows begins after *token*. Like a handler it may
            be async, is called again if it fails, and shares the transaction.
        on_position: Called with (stream, instance, token) for each position heard: the stream is
            known up to there. As `on_reset`.
        on_command: Called with every other command received (ERROR, REMOTE_SERVER_UP, ...). May be
            async; nothing waits for it.
        dialect: ``auto``, which is the default, or the name of the dialect that the server speaks.
        catch_up: Where missed rows are fetched if the server's dialect cannot resume.
        registry: The streams and their rows; the built-in ones by default. Rows of a stream that it
            does not have are any JSON.
        max_attempts: How often a failing handler or callback is called before the client gives up;
            None, which is the default, is for ever.
        join_batches: Whether batches of one (stream, instance) that came together may be
            handed over as one, with the token of the last: for a handler to which only the
            newest position counts, and which gets many small batches.
    """

    positions: PositionStore | None
    name: str
    server_name: ServerName | None
    token: AccessToken | None
    since: str
    on_reset: ResetHandler | None
    on_position: PositionHandler | None
    on_command: Callable[[Command], object] | None
    dialect: str
    catch_up: CatchUp | None
    registry: Registry | None
    max_attempts: int | None
    join_batches: bool


class ReplicationClient(Reconnecting):
    """Follows a server for as long as the service runs.

    Delivery, per (stream, instance): batches come in order, one at a time; a batch whose
    handler fails is delivered again until it succeeds, and nothing passes it. Positions are
    saved once the handlers of what one read from the socket brought have succeeded: a
    worker that is killed in between sees these batches again, unless its own writes and the
    positions are committed together (see `SqlitePositionStore`), in which case each row of
    a durable stream is seen exactly once.

    A row that does not fit its stream is quarantined: logged, counted, left out; the rest
    of its batch is delivered.

    Args:
        reactor: The reactor; it measures time evenly from now on (`tcprepl.clocks`).
        endpoint: Where the server is. Of several, over one database, the next is taken when one is
            gone.
        streams: Names of the streams to follow; None follows all.
        handler: Called with each batch; sync or async. Its failure is logged and retried. A
            `Puller` in its place is asked for the batches.
        on_connected: Called with this client when a connection is ready for commands; may be async.
        positions: This and what follows is described in `FollowOptions`. When `max_attempts` is
            reached, `failed` fires.
        name: See there.
        server_name: See there.
        token: See there.
        since: See there.
        on_reset: See there.
        on_position: See there.
        on_command: See there.
        dialect: See there.
        catch_up: See there.
        registry: See there.
        max_attempts: See there.
        join_batches: See there.
        passed_over: Who knows which tokens had no row takes back what was told falsely (see
            `Delivery`).

    Attributes:
        failed: Fires, with the failure, when a handler has failed for good.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        endpoint: IStreamClientEndpoint | Sequence[IStreamClientEndpoint],
        streams: Collection[StreamName] | None,
        handler: RowHandler | Puller,
        *,
        positions: PositionStore | None = None,
        name: str = "tcprepl",
        server_name: ServerName | None = None,
        token: AccessToken | None = None,
        since: str = "now",
        on_reset: ResetHandler | None = None,
        on_position: PositionHandler | None = None,
        on_command: Callable[[Command], object] | None = None,
        on_connected: Callable[[ReplicationClient], object] | None = None,
        dialect: str = "auto",
        catch_up: CatchUp | None = None,
        registry: Registry | None = None,
        max_attempts: int | None = None,
        join_batches: bool = False,
        passed_over: PassedOver | None = None,
    ) -> None:
        if since not in ("now", "start"):
            raise ValueError(f"since is {since!r}, expected 'now' or 'start'")
        if isinstance(streams, str):
            raise ValueError(f"streams is a text, expected a collection of names: [{streams!r}]")
        if bad := [stream for stream in streams or () if not is_name(stream)]:
            raise ValueError(f"{bad[0]!r} can be no name of a stream")
        if dialect != "auto" and not (dialect in DIALECTS and DIALECTS[dialect].over_tcp):
            known = ", ".join(name for name, found in DIALECTS.items() if found.over_tcp)
            raise ValueError(f"dialect is {dialect!r}, expected auto or one of {known}")
        if isinstance(endpoint, Sequence):
            endpoint = AnyOf(endpoint)
        super().__init__(
            reactor, endpoint, "client", name=name, server_name=server_name, token=token
        )
        self.failed: Deferred[None] = Deferred()
        self._streams = None if streams is None else tuple(streams)
        self._since = since
        self._on_connected = None if on_connected is None else bridged(on_connected)
        self._said_dialect = dialect
        self._refused_streams: set[StreamName] = set()
        #: The connection that was greeted last; it may be gone.
        self._newest: ClientConnection | None = None
        self._sources: list[tuple[metrics.Live, metrics.Source]] = []
        self._delivery = Delivery(
            self,
            handler,
            MemoryPositionStore() if positions is None else positions,
            registry or Registry(),
            streams=self._streams,
            since=since,
            on_reset=on_reset,
            on_position=on_position,
            on_command=on_command,
            catch_up=catch_up,
            max_attempts=max_attempts,
            join_batches=join_batches,
            passed_over=passed_over,
        )

    # -- life --------------------------------------------------------------------------

    def startService(self) -> None:
        """Begin to follow (Twisted calls this)."""
        if self.running:
            return
        if self.failed.called:
            self.failed = Deferred()
        super().startService()

    def _beginning(self) -> None:
        self._dialect = self._said_dialect
        self._delivery.start()
        rows = self._delivery.received_rows
        self._sources = [
            (
                metrics.INBOUND_RDATA,
                metrics.INBOUND_RDATA.add_source(
                    lambda: [((stream,), float(count)) for stream, count in rows.items()]
                ),
            ),
            (
                metrics.COMMAND_QUEUE,
                metrics.COMMAND_QUEUE.add_source(lambda: [(("*",), float(self._delivery.waiting))]),
            ),
        ]

    def stopService(self) -> Deferred[None]:
        """Stop: let the running handler end, save the positions, disconnect."""
        self._delivery.stop()
        return super().stopService()

    def _take(self, events: Sequence[object]) -> None:
        self._delivery.take(events)

    async def _left(self, ended: Ended) -> None:
        await self._delivery.end()
        if ended.served:
            self._failures = 0
        if ended.speaks_2017:
            self._dialect = "2017"
        self._note_refused(ended.text)

    async def _over(self) -> None:
        await self._delivery.end()
        for live, source in self._sources:
            live.remove_source(source)

    # -- what the delivery asks for ----------------------------------------------------

    async def wait(self, seconds: float) -> None:
        """Wait; stopping the service ends it early."""
        await self._wait(seconds)

    def pause(self) -> None:
        """Read no more from the connection for now."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read on."""
        if self._connection is not None:
            self._connection.resume()

    def call_later(self, seconds: float, function: Callable[[], None]) -> IDelayedCall:
        """Call *function* after a while."""
        call: IDelayedCall = self.reactor.callLater(seconds, function)
        return call

    def fail(self, text: str) -> None:
        """End the connection: not all that it brought was worked through. It comes again."""
        if self._connection is not None:
            self._connection.fail(text)

    def give_up(self, failure: Failure) -> None:
        """Stop for good: a handler has failed as often as it may."""
        self.failed.errback(failure)
        run_in_background(self.stopService)

    # -- what callers may ask ----------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether a connection is up and past its greeting."""
        return self._connection is not None and self._connection.ready

    @property
    def dialect(self) -> str | None:
        """Name of the dialect of the present connection; None without one."""
        return None if self._connection is None else self._connection.dialect.name

    @property
    def incarnation(self) -> IncarnationId | None:
        """The incarnation of its log that the server of the present connection named."""
        return None if self._connection is None else self._connection.incarnation

    @property
    def token_taken(self) -> bool:
        """Whether the newest connection, which may be gone, had its token taken or needed none."""
        return self._newest is not None and self._newest.token_taken

    def positions(self) -> dict[Pair, Token]:
        """Return what is known of each (stream, instance)."""
        return dict(self._delivery.known)

    @property
    def received_rows(self) -> int:
        """Rows received since the start."""
        return sum(self._delivery.received_rows.values())

    @property
    def catching_up(self) -> Collection[Pair]:
        """In the dialect of 2017: what was asked for and has not had its POSITION yet."""
        return self._delivery.resumption.asked.keys()

    @property
    def quarantined_rows(self) -> int:
        """Rows left out because they do not fit their stream."""
        return self._delivery.quarantined_rows

    def send(self, command: Command) -> bool:
        """Send *command*; return whether there was a connection to send it on."""
        if self._connection is None or not self._connection.ready:
            metrics.DROPPED.labels("command", "not_connected").inc()
            return False
        self._connection.send(command)
        return True

    # -- asking for streams ------------------------------------------------------------

    def _greeted(self, dialect: Dialect) -> None:
        """Ask for what we follow; the greeting is over and the dialect is known."""
        self._newest = self._connection
        incarnation = self.incarnation
        self._delivery.begin(dialect, incarnation)
        for command in self._requests(dialect, names_incarnation=bool(incarnation)):
            self.send(command)
        if self._on_connected is not None:
            run_in_background(self._on_connected, self)

    def _requests(
        self, dialect: Dialect, *, names_incarnation: bool = False
    ) -> list[ReplicateCommand]:
        if not dialect.in_band_resume:
            return [ReplicateCommand()]
        now = self._since == "now"
        start = None if now else 0
        named = [
            (stream, instance, token)
            for (stream, instance), token in sorted(self._delivery.known.items())
            if self._streams is None or stream in self._streams
        ]
        if not dialect.rdata_instance:
            return self._requests_2017({stream: token for stream, _, token in named}, start)
        # an earlier release would not take the further words
        places = self._delivery.places if names_incarnation else lambda pair: ()
        requests = [
            ReplicateCommand(s, instance, token, incarnations=places((s, instance)))
            for s, instance, token in named
        ]
        requests += [
            ReplicateCommand(stream, "*", start, now=now) for stream in self._streams or ("*",)
        ]
        return requests

    def _requests_2017(
        self, known: dict[StreamName, Token], start: Token | None
    ) -> list[ReplicateCommand]:
        """Return what to ask a server of the dialect of 2017, which resumes in band.

        It answers an unknown stream with an ERROR and the loss of the connection, so what
        was refused before is left out.
        """
        requests = [] if self._streams is not None else [ReplicateCommand("ALL", now=True)]
        for stream in self._streams or sorted(known):
            if stream in self._refused_streams:
                continue
            token = known.get(stream, start)
            if token is not None:
                self._delivery.resumption.ask((stream, DEFAULT_INSTANCE), token)
            requests.append(ReplicateCommand(stream, token=token, now=token is None))
        return requests

    def _note_refused(self, text: str) -> None:
        if "failed to handle replicate" in text:
            words = set(re.findall(r"\w+", text.partition("failed to handle replicate")[2]))
            refused = words.intersection(
                self._streams or [stream for stream, _ in self._delivery.known]
            )
            self._refused_streams |= refused
            log.error("replication.client.stream_refused", streams=sorted(refused), text=text)
