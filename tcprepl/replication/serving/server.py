"""The listening end: peers, commands, limits, drain (protocol.md sections 5, 6 and 10).

`ReplicationServer` accepts connections, lets the sans-I/O session say what their bytes
mean, subscribes them to the hub, and hands other commands (USER_SYNC, FEDERATION_ACK, ...)
to whoever registered for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import structlog
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocol, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import implementer

from tcprepl import limits, metrics
from tcprepl.background import LoopingProcess, looping_background_process, run_in_background
from tcprepl.errors import CloseReason, LocalProtocolError
from tcprepl.ids import InstanceName, ServerName, StreamName, Token
from tcprepl.protocol.commands import (
    COMMANDS,
    Command,
    ErrorCommand,
    FederationAckCommand,
    HelpCommand,
    InfoCommand,
    NameCommand,
    RemoteServerUpCommand,
    ReplicateCommand,
    StatusCommand,
    UserIpCommand,
    UserSyncCommand,
)
from tcprepl.protocol.dialects import NATIVE
from tcprepl.protocol.events import Closing, CommandReceived
from tcprepl.protocol.session import ServerSession
from tcprepl.protocol.state import Role
from tcprepl.replication.failures import close_reason_of, describe_address
from tcprepl.replication.serving.hub import Hub
from tcprepl.replication.serving.readers import ANY, Reader
from tcprepl.replication.serving.rendering import WireForm
from tcprepl.replication.status import LinkStatus, PeerStatus, ServerStatus, StreamStatus
from tcprepl.replication.transport import Outlet, make_outlet
from tcprepl.streams.log import Log
from tcprepl.streams.registry import Registry
from tcprepl.streams.releases import assumed_streams

log = structlog.get_logger()

#: What `ReplicationServer.on` takes: called with the command and the peer that sent it.
CommandHandler = Callable[[Any, "Peer"], object]

#: How often deadlines of connections are looked at.
SWEEP_INTERVAL_S = 1.0
#: Replies that may wait for a socket before its peer is read no further.
MAX_REPLY_BYTES = 262_144


def help_lines(topic: str = "") -> list[str]:
    """Return what HELP answers: every command a client may send, or the one called *topic*."""
    specs = [spec for spec in COMMANDS.values() if Role.CLIENT in spec.sent_by]
    chosen = [spec for spec in specs if topic.strip().upper() == spec.command.NAME]
    width = max(len(spec.syntax) for spec in chosen or specs)
    lines = [f"{spec.syntax:<{width}}  {spec.summary}" for spec in chosen or specs]
    if not chosen:
        lines.append("* stands for every stream or instance; words may be in any case")
    return lines


@implementer(IProtocol)
class Peer:
    """One connection: joins its transport, its session and its place in the hub.

    Attributes:
        conn_id: Number of the connection, counted from 1.
        name: What NAME said.
        address: Where it comes from, for people.
        acked: The newest FEDERATION_ACK, or None.
        closing: Why it is being closed, or None.
    """

    __slots__ = (
        "_connected_at",
        "_last_sent",
        "_outlet",
        "_paused",
        "_reader",
        "_server",
        "_session",
        "acked",
        "address",
        "closing",
        "conn_id",
        "name",
        "transport",
    )

    def __init__(self, server: ReplicationServer, conn_id: int, address: str) -> None:
        self._server = server
        self.conn_id = conn_id
        self.address = address
        self.name = ""
        self.acked: Token | None = None
        self.closing: CloseReason | None = None
        self.transport: Any = None
        self._connected_at = server.reactor.seconds()
        self._session: ServerSession = server.make_session()
        self._outlet: Outlet | None = None
        self._reader: Reader | None = None
        self._paused = False
        self._last_sent = 0.0

    def __repr__(self) -> str:
        return f"<Peer {self.conn_id} {self.name or self.address}>"

    @property
    def dialect(self) -> str:
        """Name of the dialect that the peer speaks."""
        return self._session.dialect.name

    @property
    def is_synapse(self) -> bool:
        """Whether it is taken for a Synapse: a program that speaks a dialect of Synapse.

        The wire has no better mark: a Synapse sends PING before its first REPLICATE, always,
        and a person hardly ever does.
        """
        return self._session.pinged and self._session.dialect.name != NATIVE

    @property
    def quiet(self) -> bool:
        """Whether it has neither named itself nor asked for anything."""
        return not self.name and self._reader is None

    # -- IProtocol ---------------------------------------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """Greet: SERVER is the very first line (Twisted calls this)."""
        self.transport = transport
        self._outlet = make_outlet(transport, self._drained)
        self._pump()
        self._server.peer_connected(self)

    def connectionMade(self) -> None:
        """Do nothing: `makeConnection` did it all (Twisted never calls this itself)."""

    def dataReceived(self, data: bytes) -> None:
        """Do what *data* says (Twisted calls this)."""
        now = self._server.reactor.seconds()
        # Line by line, so that answers come in the order of the questions.
        for line in data.splitlines(keepends=True) if data.count(b"\n") > 1 else (data,):
            for event in self._session.receive_data(line, now):
                self._handle(event)
            self._pump()
        self._catch_up()

    def connectionLost(self, reason: Failure) -> None:
        """Forget the peer (Twisted calls this)."""
        if self._reader is not None:
            self._server.hub.unsubscribe(self._reader)
        why = self.closing or close_reason_of(reason)
        self._session.receive_eof(self._server.reactor.seconds(), why)
        self._server.peer_lost(self, why)

    # -- what the session says ---------------------------------------------------------

    def _handle(self, event: object) -> None:
        if isinstance(event, CommandReceived):
            self._command(event.command)
        elif isinstance(event, Closing):
            self._close_transport(event.reason, event.text)

    def _command(self, command: Command) -> None:
        if isinstance(command, ReplicateCommand):
            self._replicate(command)
        elif isinstance(command, NameCommand):
            self.name = command.name
            if self._reader is not None:
                self._reader.label = self.label
        elif isinstance(command, HelpCommand):
            self.tell(help_lines(command.topic))
        elif isinstance(command, StatusCommand):
            self.tell(self._server.status().lines())
        else:
            if isinstance(command, FederationAckCommand):
                self.acked = command.token
            self._server.dispatch(command, self)

    def _replicate(self, command: ReplicateCommand) -> None:
        hub = self._server.hub
        if self._reader is None:
            assert self._outlet is not None
            self._reader = Reader(self._outlet, self.label)
        form = WireForm.of(self._session.dialect, words=not self.is_synapse)
        stream, instance = command.stream, command.instance
        only_instance: InstanceName | None = None
        if stream is None:
            # Of a stream that its release does not have a Synapse must not hear.
            streams = self._server.synapse_streams if self.is_synapse else (ANY,)
            patterns = [(name, ANY) for name in streams]
        elif not form.rdata_instance:
            only_instance = hub.instance
            patterns = [(ANY if stream.upper() == "ALL" else stream, hub.instance)]
        else:
            patterns = [(stream, instance or ANY)]
        if stream is not None and patterns[0][0] != ANY and not self._server.knows(stream):
            known = " ".join(self._server.stream_names())
            self.send(ErrorCommand(f"unknown stream {stream}; there are: {known}"))
            return
        asked = None if command.now or stream is None else command.token
        lines = [
            hub.subscribe(
                self._reader,
                form,
                pattern,
                asked,
                places=command.incarnations,
                only_instance=only_instance,
            )
            for pattern in patterns
        ]
        self._pump()
        if any(lines):
            self._write(b"".join(lines))

    @property
    def label(self) -> str:
        """The name it goes by in logs."""
        return f"{self.conn_id}:{self.name or self.address}"

    # -- what goes out -----------------------------------------------------------------

    def send(self, command: Command) -> None:
        """Send *command*; nothing happens once the connection is closing."""
        if self.closing is None and self.transport is not None:
            self._session.send(command, self._server.reactor.seconds())
            self._pump()

    def tell(self, lines: Iterable[str]) -> None:
        """Answer a person with INFO lines."""
        now = self._server.reactor.seconds()
        for line in lines:
            self._session.send(InfoCommand(line), now)

    def close(self, reason: CloseReason, text: str) -> None:
        """Say why in an ERROR line, then close once it has been written."""
        if self.closing is None:
            self._session.close(reason, text, self._server.reactor.seconds())
            self._close_transport(reason, text)

    def _pump(self) -> None:
        out = self._session.data_to_send()
        if out:
            self._write(out)

    def _write(self, lines: bytes) -> None:
        outlet = self._outlet
        assert outlet is not None
        if not outlet.write(lines) and outlet.buffered_bytes > MAX_REPLY_BYTES:
            # It asks and does not read the answers: read it no further for now.
            self._paused = True
            self.transport.pauseProducing()

    def _drained(self) -> None:
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()
        if self._reader is not None:
            self._server.hub.drained(self._reader)

    def _catch_up(self) -> None:
        reader = self._reader
        if reader is not None and reader.backlog is not None and self.closing is None:
            self._server.hub.serve(reader)

    def _close_transport(self, reason: CloseReason, text: str) -> None:
        if reason is CloseReason.ABORTED:
            self.transport.abortConnection()
            return
        if self.closing is not None:
            return
        self.closing = reason
        if self._reader is not None:
            self._server.hub.unsubscribe(self._reader)
        log.info(
            "replication.peer.closing",
            conn_id=self.conn_id,
            peer=self.name or self.address,
            reason=reason.value,
            text=text,
        )
        self._pump()
        assert self._outlet is not None
        self._outlet.close()

    def sweep(self, now: float) -> None:
        """Look at the deadlines: keep-alive, silence, a close that does not end."""
        reader = self._reader
        group = reader.group if reader is not None else None
        if group is not None and group.written_at > self._last_sent:
            self._last_sent = group.written_at
            self._session.sent_elsewhere(group.written_at)
        elif self._outlet is not None and self._outlet.busy:
            self._session.sent_elsewhere(now)  # it has not taken what it was sent
        deadline = self._session.next_deadline()
        if deadline is not None and now >= deadline:
            for event in self._session.tick(now):
                self._handle(event)
            self._pump()
            self._last_sent = now

    # -- looking -----------------------------------------------------------------------

    def status(self, now: float) -> PeerStatus:
        """Return what is to be told of this connection."""
        reader = self._reader
        hub = self._server.hub
        state = "new"
        lag = None
        if self.closing is not None:
            state = "closing"
        elif reader is not None:
            lag = hub.lag(reader)
            state = "head" if reader.backlog is None or not lag.rows else "behind"
        paused = 0.0
        if reader is not None:
            paused = reader.paused_s
            if reader.backlog is not None:
                paused += now - reader.backlog.began_at
        return PeerStatus(
            conn_id=self.conn_id,
            name=self.name,
            address=self.address,
            dialect=self.dialect,
            state=state,
            behind_rows=lag.rows if lag else 0,
            behind_bytes=lag.bytes if lag else 0,
            behind_seconds=lag.seconds if lag else 0.0,
            behind_stream=lag.stream if lag else None,
            paused_seconds=paused,
            buffered_bytes=self._outlet.buffered_bytes if self._outlet is not None else 0,
            sent_bytes=reader.served_bytes if reader is not None else 0,
            gaps=reader.gaps if reader is not None else 0,
            connected_seconds=now - self._connected_at,
            acked=self.acked,
        )


class _PeerFactory(Factory):
    noisy = False

    def __init__(self, server: ReplicationServer) -> None:
        self._server = server

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return self._server.accept(describe_address(addr))


class ReplicationServer:
    """Serves the streams of one log to any number of peers.

    Args:
        reactor: The reactor.
        stream_log: The log whose streams are served.
        registry: What streams there are.
        server_name: Name of the homeserver, as SERVER says it.
        instance: Name of our own writing instance.
        dialect: What a bare REPLICATE means: ``auto`` and ``1.22`` the two-token POSITION,
            ``1.13`` the one-token form.
        max_connections: Connections held at a time. When there are more, the oldest that
            has said nothing makes room; when there is none, the new one is turned away.
        epoch_s: What to add to the reactor's time to get seconds since 1970, for PING.

    Attributes:
        max_connections: As given; may be changed at any time.
        links: Asked for what the status says of upstreams and Redis.
    """

    def __init__(
        self,
        reactor: Any,
        stream_log: Log,
        registry: Registry,
        server_name: ServerName,
        instance: InstanceName = "master",
        *,
        dialect: str = "auto",
        max_connections: int = limits.MAX_CONNECTIONS,
        epoch_s: float = 0.0,
    ) -> None:
        self.links: list[Callable[[], LinkStatus]] = []
        self.reactor = reactor
        self.server_name = server_name
        self.instance = instance
        self.hub = Hub(reactor, stream_log, instance)
        self._epoch_s = epoch_s
        self._log = stream_log
        self._registry = registry
        self._dialect = dialect
        #: The streams that a Synapse over TCP is told of.
        self.synapse_streams = sorted(assumed_streams(dialect))
        self.max_connections = max_connections
        self._peers: dict[int, Peer] = {}
        self._ports: list[IListeningPort] = []
        self._handlers: dict[type[Command], list[CommandHandler]] = {}
        self._lost_handlers: list[Callable[[Peer], object]] = []
        self._last_conn_id = 0
        self._started_at: float = reactor.seconds()
        self._stopping: Deferred[None] | None = None
        self._sweeper: LoopingProcess | None = None
        self._closed: Counter[str] = Counter()
        self._received: Counter[tuple[str, str]] = Counter()
        self._sources = _Sources(self)
        self._sources.add()

    # -- life --------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to watch deadlines; `listen` does it too."""
        if self._sweeper is None:
            self._sweeper = looping_background_process(
                self.reactor, "replication_sweep", SWEEP_INTERVAL_S, self._sweep
            )

    async def listen(self, endpoint: IStreamServerEndpoint) -> IListeningPort:
        """Listen on *endpoint* and return the port."""
        self.start()
        port = await endpoint.listen(_PeerFactory(self))
        self._ports.append(port)
        log.info("replication.listening", address=describe_address(port.getHost()))
        return port

    async def stop(self, text: str = "server shutting down") -> None:
        """Drain: stop listening, tell every peer why, close, and wait until they are gone.

        Peers that do not take the close within `limits.CLOSE_TIMEOUT_S` are aborted; cancelling
        aborts them at once.
        """
        self.hub.flush()
        ports, self._ports = self._ports, []
        for port in ports:
            await maybeDeferred(port.stopListening)
        for peer in list(self._peers.values()):
            peer.close(CloseReason.SHUTDOWN, text)
        if self._peers:
            self._stopping = Deferred()
            try:
                await self._stopping
            except CancelledError:
                for peer in list(self._peers.values()):
                    peer.transport.abortConnection()
        if self._sweeper is not None:
            sweeper, self._sweeper = self._sweeper, None
            await sweeper.stop()
        self.hub.close()
        self._sources.remove()

    # -- wiring ------------------------------------------------------------------------

    def on(self, command: type[Command], handler: CommandHandler) -> None:
        """Call *handler* (command, peer) for each *command* received; failures are logged."""
        self._handlers.setdefault(command, []).append(handler)

    def on_peer_lost(self, handler: Callable[[Peer], object]) -> None:
        """Call *handler* (peer) for each connection that ends."""
        self._lost_handlers.append(handler)

    def broadcast(self, command: Command, exclude: Peer | None = None) -> None:
        """Send *command* to every peer that spoke, but *exclude*, whose dialect surely has it."""
        for peer in list(self._peers.values()):
            # A Synapse before 1.9 ends a connection on which it hears a word that it lacks.
            if peer is not exclude and not peer.quiet and peer.dialect != "2017":
                with suppress(LocalProtocolError):
                    peer.send(command)

    def knows(self, stream: StreamName) -> bool:
        """Return whether *stream* can be subscribed."""
        return stream in self._registry or any(stream == pair[0] for pair in self.hub.heads)

    def stream_names(self) -> list[StreamName]:
        """Return the streams that there are, sorted."""
        return sorted({pair[0] for pair in self.hub.heads} | set(self._registry.names()))

    def make_session(self) -> ServerSession:
        """Return the session of a new connection."""
        return ServerSession(
            self.server_name,
            self.reactor.seconds(),
            incarnation=self.hub.incarnation,
            dialect=self._dialect,
            epoch_s=self._epoch_s,
        )

    # -- peers -------------------------------------------------------------------------

    def accept(self, address: str) -> Peer:
        """Return the protocol of a new connection from *address*."""
        self._last_conn_id += 1
        return Peer(self, self._last_conn_id, address)

    def peer_connected(self, peer: Peer) -> None:
        """Note that *peer* is there; make room for it, or turn it away."""
        self._peers[peer.conn_id] = peer
        log.debug("replication.peer.connected", conn_id=peer.conn_id, peer=peer.address)
        if self._stopping is not None:
            peer.close(CloseReason.SHUTDOWN, "server shutting down")
        elif len(self._peers) > self.max_connections:
            limit = f"the limit is {self.max_connections} connections (max_connections)"
            for other in self._peers.values():
                if other.quiet and other is not peer and other.closing is None:
                    other.close(
                        CloseReason.TOO_MANY_CONNECTIONS,
                        f"closed to make room, as nothing was said here; {limit}",
                    )
                    return
            peer.close(CloseReason.TOO_MANY_CONNECTIONS, f"too many connections; {limit}")

    def peer_lost(self, peer: Peer, reason: CloseReason) -> None:
        """Note that *peer* is gone."""
        self._peers.pop(peer.conn_id, None)
        self._closed[reason.value] += 1
        metrics.CLOSE_REASON.labels(reason.value).inc()
        log.info(
            "replication.peer.closed",
            conn_id=peer.conn_id,
            peer=peer.name or peer.address,
            reason=reason.value,
        )
        for handler in self._lost_handlers:
            run_in_background(handler, peer)
        if not self._peers and self._stopping is not None:
            stopping, self._stopping = self._stopping, None
            stopping.callback(None)

    def dispatch(self, command: Command, peer: Peer) -> None:
        """Hand *command* to whoever registered for it; relay REMOTE_SERVER_UP."""
        self._received[(command.NAME, peer.name)] += 1
        if isinstance(command, UserSyncCommand):
            metrics.USER_SYNC.inc()
        elif isinstance(command, FederationAckCommand):
            metrics.FEDERATION_ACK.inc()
        elif isinstance(command, UserIpCommand):
            metrics.USER_IP_CACHE.inc()
        elif isinstance(command, RemoteServerUpCommand):
            self.broadcast(command, exclude=peer)
        for handler in self._handlers.get(type(command), ()):
            run_in_background(handler, command, peer)

    def _sweep(self) -> None:
        now = self.reactor.seconds()
        for peer in list(self._peers.values()):
            peer.sweep(now)

    # -- looking -----------------------------------------------------------------------

    def peers(self) -> list[PeerStatus]:
        """Return every connection, oldest first."""
        now = self.reactor.seconds()
        return [peer.status(now) for peer in self._peers.values()]

    def streams(self) -> list[StreamStatus]:
        """Return every (stream, instance) that is served."""
        return [
            StreamStatus(*pair, head.token, self._log.floor(*pair), head.rows, head.bytes)
            for pair, head in self.hub.heads.items()
        ]

    def status(self) -> ServerStatus:
        """Return a snapshot of the server."""
        return ServerStatus(
            server_name=self.server_name,
            instance=self.instance,
            uptime_seconds=self.reactor.seconds() - self._started_at,
            streams=self.streams(),
            peers=self.peers(),
            closed=dict(self._closed),
            links=self.link_states(),
        )

    def link_states(self) -> list[LinkStatus]:
        """Return how it goes with each upstream and Redis."""
        return [link() for link in self.links]

    def received_commands(self) -> dict[tuple[str, str], int]:
        """Return how many commands came in, by command and name of the peer."""
        return dict(self._received)


class _Sources:
    """What a server contributes to the metrics, asked for at each scrape."""

    def __init__(self, server: ReplicationServer) -> None:
        self._metrics: list[tuple[metrics.Live, metrics.Source]] = [
            (metrics.TOTAL_CONNECTIONS, lambda: [((), len(server.peers()))]),
            (
                metrics.INBOUND_COMMANDS,
                lambda: [(key, float(n)) for key, n in server.received_commands().items()],
            ),
            (
                metrics.STREAM_UPDATES,
                lambda: [((s.stream,), float(s.rows)) for s in server.streams()],
            ),
            (
                metrics.STREAM_POSITION,
                lambda: [((s.stream, s.instance), float(s.position)) for s in server.streams()],
            ),
            (
                metrics.CURRENT_POSITION,
                lambda: [
                    ((s.stream,), float(s.position))
                    for s in server.streams()
                    if s.instance == server.instance
                ],
            ),
            (
                metrics.TRANSPORT_SEND_BUFFER,
                lambda: [((_label(p),), float(p.buffered_bytes)) for p in server.peers()],
            ),
            (
                metrics.PEER_BEHIND_ROWS,
                lambda: [
                    ((_label(p), p.behind_stream or ""), float(p.behind_rows))
                    for p in server.peers()
                ],
            ),
            (
                metrics.PEER_BEHIND_BYTES,
                lambda: [
                    ((_label(p), p.behind_stream or ""), float(p.behind_bytes))
                    for p in server.peers()
                ],
            ),
            (
                metrics.PEER_BEHIND_SECONDS,
                lambda: [
                    ((_label(p), p.behind_stream or ""), p.behind_seconds) for p in server.peers()
                ],
            ),
            (
                metrics.PEER_PAUSED_SECONDS,
                lambda: [((_label(p),), p.paused_seconds) for p in server.peers()],
            ),
            (metrics.LINK_UP, _of_links(server, "up")),
            (metrics.LINK_ROWS, _of_links(server, "rows")),
            (metrics.LINK_RECONNECTS, _of_links(server, "reconnects")),
            (metrics.LINK_GAPS, _of_links(server, "gaps")),
            (metrics.LINK_IDLE_SECONDS, _of_links(server, "idle_seconds")),
        ]

    def add(self) -> None:
        for live, source in self._metrics:
            live.add_source(source)

    def remove(self) -> None:
        for live, source in self._metrics:
            live.remove_source(source)


def _of_links(server: ReplicationServer, what: str) -> metrics.Source:
    """Return the source of one number of each link, where it is known."""

    def samples() -> list[tuple[tuple[str, str], float]]:
        found = [(link, getattr(link, what)) for link in server.link_states()]
        return [((link.name, link.kind), float(n)) for link, n in found if n is not None]

    return samples


def _label(peer: PeerStatus) -> str:
    return peer.name or "unnamed"
