"""The listening end: connections, their limit, what they hear, drain (protocol.md 5 and 6).

`ReplicationServer` accepts connections, each a `Peer`, and hands what they say beyond asking
for streams (USER_SYNC, FEDERATION_ACK, ...) to whoever registered for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory

from tcprepl import limits, metrics
from tcprepl.access import EVERYTHING, NOTHING, Grant, Tokens
from tcprepl.background import (
    LoopingProcess,
    looping_background_process,
    run_in_background,
    spread,
)
from tcprepl.clocks import Reactor, epoch_s
from tcprepl.errors import CloseReason, LocalProtocolError
from tcprepl.ids import InstanceName, Pair, ServerName, StreamName
from tcprepl.logger import get_logger
from tcprepl.protocol.commands import (
    Command,
    FederationAckCommand,
    RemoteServerUpCommand,
    UserIpCommand,
    UserSyncCommand,
)
from tcprepl.protocol.server_session import ServerSession
from tcprepl.replication.failures import describe_address, too_many
from tcprepl.replication.serving.deadlines import STEP_S, Deadlines
from tcprepl.replication.serving.hub import Hub
from tcprepl.replication.serving.measuring import CommandCounts, Sources
from tcprepl.replication.serving.peer import Peer
from tcprepl.replication.serving.publishing import Door, PublisherPort
from tcprepl.replication.serving.readers import Reader
from tcprepl.replication.serving.turns import Turns
from tcprepl.replication.status import LinkStatus, PeerStatus, ServerStatus, StreamStatus
from tcprepl.streams.gaps import Cause
from tcprepl.streams.log import Log
from tcprepl.streams.registry import Registry
from tcprepl.streams.releases import assumed_streams

if TYPE_CHECKING:
    from tcprepl.replication.serving.draining import Drain

log = get_logger(__name__)

#: What `ReplicationServer.on` takes: called with the command and the peer that sent it.
CommandHandler = Callable[[Any, Peer], object]


class _PeerFactory(Factory):
    noisy = False

    def __init__(self, server: ReplicationServer, *, vouched: bool) -> None:
        self._server = server
        self._vouched = vouched

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return self._server.accept(describe_address(addr), vouched=self._vouched)


class ReplicationServer:
    """Serves the streams of one log to any number of peers.

    While they ask for more than a turn of the reactor takes, the threads of the whole process are
    switched more often (`sys.setswitchinterval`), so that those of the log get on.

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
        publisher: Takes the rows that peers publish; None takes none.
        tokens: What who says a token may do.
        anonymous: What who says none may do, where the listener vouches for them.

    Attributes:
        max_connections: As given; may be changed at any time.
        log: The log.
        links: Asked for what the status says of upstreams and Redis.
        others: Asked for connections that get the same streams in another way.
        closers: Asked to close one of those, by number, and why; return whether they have it.
        drain: Begins to drain the process, given seconds and where peers are to go, and returns
            the drain that there is; None where that makes no sense.
        other_readers: Asked for what reads for those, each with the connection's number.
    """

    def __init__(
        self,
        reactor: Reactor,
        stream_log: Log,
        registry: Registry,
        server_name: ServerName,
        instance: InstanceName = "master",
        *,
        dialect: str = "auto",
        max_connections: int = limits.MAX_CONNECTIONS,
        publisher: PublisherPort | None = None,
        tokens: Tokens | None = None,
        anonymous: Grant = EVERYTHING,
    ) -> None:
        self.tokens = Tokens() if tokens is None else tokens
        self._anonymous = anonymous
        self.links: list[Callable[[], LinkStatus]] = []
        self.others: list[Callable[[], list[PeerStatus]]] = []
        self.closers: list[Callable[[int, CloseReason, str], bool]] = []
        self.drain: Callable[[float, str], Drain] | None = None
        self.other_readers: list[Callable[[], list[tuple[int, Reader]]]] = []
        self.reactor = reactor
        self.server_name = server_name
        self.instance = instance
        #: Where rows go in.
        self.door = Door(reactor, stream_log, publisher)
        self.hub = Hub(reactor, stream_log, instance)
        self.log = stream_log
        self._registry = registry
        self._dialect = dialect
        #: The streams that a Synapse over TCP is told of.
        self.synapse_streams = sorted(assumed_streams(dialect))
        self.max_connections = max_connections
        self._peers: dict[int, Peer] = {}
        self._deadlines: Deadlines[Peer] = Deadlines(reactor)
        self._ports: list[IListeningPort] = []
        self._handlers: dict[type[Command], list[CommandHandler]] = {}
        self._lost_handlers: list[Callable[[Peer], object]] = []
        self._last_conn_id = 0
        self._started_at: float = reactor.seconds()
        self._stopping: Deferred[None] | None = None
        #: Why nobody is let in any more.
        self._shut: str | None = None
        self._sweeper: LoopingProcess | None = None
        self._closed: Counter[str] = Counter()
        #: Who works when.
        self.turns = Turns(reactor)
        self._names: Counter[str] = Counter()
        self._received = CommandCounts()
        self._sources = Sources(self)
        self._sources.add()

    # -- life --------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to watch deadlines; `listen` does it too."""
        if self._sweeper is None:
            self._sweeper = looping_background_process(
                self.reactor, "replication_sweep", STEP_S, self._sweep
            )

    async def listen(
        self, endpoint: IStreamServerEndpoint, *, vouched: bool = True
    ) -> IListeningPort:
        """Listen on *endpoint* and return the port.

        Args:
            endpoint: Where.
            vouched: Whether it lets only those in who have what is granted without a token:
                processes of this machine, say, or who shows a certificate.
        """
        self.start()
        port = await endpoint.listen(_PeerFactory(self, vouched=vouched))
        self._ports.append(port)
        log.info("replication.listening", address=describe_address(port.getHost()))
        return port

    async def stop(self, text: str = "server shutting down") -> None:
        """Drain: stop listening, tell every peer why, close, and wait until they are gone.

        Peers that do not take the close within `limits.CLOSE_TIMEOUT_S` are aborted; cancelling
        aborts them at once.
        """
        self.hub.flush()
        await self._close_ports()
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
        self.turns.close()
        self.hub.close()
        self._sources.remove()

    async def _close_ports(self) -> None:
        ports, self._ports = self._ports, []
        for port in ports:
            await maybeDeferred(port.stopListening)

    def shut(self, text: str, publisher: PublisherPort) -> None:
        """Let nobody in any more, who are told *text*; rows go to *publisher*, if they went in."""
        self._shut = text
        if self.door.publisher is not None:
            self.door.publisher = publisher
        run_in_background(self._close_ports)

    # -- wiring ------------------------------------------------------------------------

    def on(self, command: type[Command], handler: CommandHandler) -> None:
        """Call *handler* (command, peer) for each *command* received; failures are logged."""
        self._handlers.setdefault(command, []).append(handler)

    def on_peer_lost(self, handler: Callable[[Peer], object]) -> None:
        """Call *handler* (peer) for each connection that ends."""
        self._lost_handlers.append(handler)

    def broadcast(self, command: Command, exclude: Peer | None = None) -> None:
        """Send *command* to every peer that spoke, but *exclude*, whose dialect surely has it.

        It is one of those that need the right to operate, so who may not say it does not hear it.
        """
        for peer in list(self._peers.values()):
            # A Synapse before 1.9 ends a connection on which it hears a word that it lacks.
            if (
                peer is not exclude
                and not peer.quiet
                and peer.dialect != "2017"
                and peer.grant.operate
            ):
                with suppress(LocalProtocolError):
                    peer.offer(command)

    def knows(self, stream: StreamName) -> bool:
        """Return whether *stream* can be subscribed."""
        return stream in self._registry or any(stream == pair[0] for pair in self.hub.heads)

    def stream_names(self) -> list[StreamName]:
        """Return the streams that there are, sorted."""
        return sorted({pair[0] for pair in self.hub.heads} | set(self._registry.names()))

    # -- rights ------------------------------------------------------------------------

    def granted(self, token: bytes | None, *, vouched: bool) -> Grant | None:
        """Return what the token of a digest grants, None for one that does not hold.

        Args:
            token: The digest; None for who says none.
            vouched: Whether the listener vouches for them.
        """
        if token is not None:
            return self.tokens.grant(token)
        return self._anonymous if vouched else NOTHING

    def publishes(self, grant: Grant) -> bool:
        """Return whether rows can come in from who has *grant*."""
        return self.door.publisher is not None and bool(grant.write)

    def admit(self, tokens: Tokens, anonymous: Grant) -> None:
        """Judge by these from now on, also those who are connected."""
        self.tokens = tokens
        self._anonymous = anonymous
        for peer in list(self._peers.values()):
            peer.reconsider()

    def make_session(self, grant: Grant) -> ServerSession:
        """Return the session of a new connection that begins with *grant*."""
        return ServerSession(
            self.server_name,
            self.reactor.seconds(),
            incarnation=self.hub.incarnation,
            dialect=self._dialect,
            publishing=self.publishes(grant),
            epoch_s=epoch_s(self.reactor),
        )

    # -- peers -------------------------------------------------------------------------

    def accept(self, address: str, *, vouched: bool = True) -> Peer:
        """Return the protocol of a new connection from *address*; *vouched* is as of `listen`."""
        return Peer(self, self.next_conn_id(), address, vouched=vouched)

    def next_conn_id(self) -> int:
        """Return the number of a new connection, of whatever kind."""
        self._last_conn_id += 1
        return self._last_conn_id

    def peer_connected(self, peer: Peer) -> None:
        """Note that *peer* is there; make room for it, or turn it away."""
        self._peers[peer.conn_id] = peer
        self._deadlines.watch(peer)
        log.debug("replication.peer.connected", conn_id=peer.conn_id, peer=peer.address)
        if self._stopping is not None:
            peer.close(CloseReason.SHUTDOWN, "server shutting down")
        elif self._shut is not None:
            peer.close(CloseReason.DRAINED, self._shut)
        elif too_many(self._peers.values(), self.max_connections):
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
        self._deadlines.forget(peer)
        self.renamed(peer.name, "")
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

    def renamed(self, old: str, new: str) -> None:
        """Note that a peer that was called *old* is called *new*; empty is nobody."""
        self._names[old] -= 1
        if self._names[old] <= 0:
            del self._names[old]
        if new:
            self._names[new] += 1

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._peers)

    def connected(self) -> list[Peer]:
        """Return the connections, oldest first."""
        return list(self._peers.values())

    def end(self, conn_id: int, reason: CloseReason, text: str) -> None:
        """Close a connection, of whatever kind, and say why."""
        peer = self._peers.get(conn_id)
        if peer is not None:
            peer.close(reason, text)
        else:
            any(close(conn_id, reason, text) for close in self.closers)

    def hears(self, command: type[Command]) -> bool:
        """Return whether somebody registered for *command*."""
        return command in self._handlers

    def count_received(self, word: str, peer: Peer, count: int) -> None:
        """Count commands that nobody registered for."""
        self._received.add(word, peer.name, self._names, count)

    def dispatch(self, command: Command, peer: Peer) -> None:
        """Hand *command* to whoever registered for it; relay REMOTE_SERVER_UP."""
        self._received.add(command.NAME, peer.name, self._names)
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

    async def _sweep(self) -> None:
        await spread(self.reactor, self._deadlines.work())

    # -- looking -----------------------------------------------------------------------

    def peers(self) -> list[PeerStatus]:
        """Return every connection, oldest first."""
        now = self.reactor.seconds()
        return [peer.status(now) for peer in self._peers.values()] + self._others()

    def _others(self) -> list[PeerStatus]:
        return [status for others in self.others for status in others()]

    def readers(self) -> list[tuple[int, Reader]]:
        """Return what reads, each with its connection's number; on a bus one may have several."""
        found = [(p.conn_id, p.reader) for p in self._peers.values() if p.reader is not None]
        return found + [reader for others in self.other_readers for reader in others()]

    def streams(self) -> list[StreamStatus]:
        """Return every (stream, instance) that is served."""
        return [self._stream(pair) for pair in self.hub.heads]

    def _stream(self, pair: Pair) -> StreamStatus:
        head = self.hub.heads[pair]
        return StreamStatus(*pair, head.token, self.log.floor(*pair), head.rows, head.size_bytes)

    def lags(self, also: Iterable[int]) -> dict[int, float]:
        """Return by how many seconds each connection is behind that is, or is one of *also*."""
        others = self._others()
        there = {other.conn_id for other in others}
        found = {conn_id: 0.0 for conn_id in also if conn_id in self._peers or conn_id in there}
        for peer in self._peers.values():
            if peer.is_behind:
                found[peer.conn_id] = peer.behind_seconds
        found |= {other.conn_id: other.behind_seconds for other in others if other.behind_rows}
        return found

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
            damage=self.log.gaps.damage(),
            database=self.log.database,
        )

    def status_lines(self, grant: Grant = EVERYTHING) -> list[str]:
        """Return what STATUS answers to who has *grant*.

        Of streams and of peers only so many, the slow ones first; of peers nothing to who may
        follow streams only.
        """
        now = self.reactor.seconds()
        most = limits.MAX_STATUS_LINES
        pairs = [p for p in self.hub.heads if grant.looks or p[0] in grant.sees]
        peers = list(self._peers.values()) if grant.looks else []
        behind = [peer for peer in peers if peer.is_behind]
        shown = list(islice(behind, most))
        shown += islice((p for p in peers if not p.is_behind), most - len(shown))
        others = self._others() if grant.looks else []
        status = ServerStatus(
            server_name=self.server_name,
            instance=self.instance,
            uptime_seconds=now - self._started_at,
            streams=[self._stream(pair) for pair in pairs[:most]],
            peers=[peer.status(now) for peer in shown] + others[: most - len(shown)],
            links=self.link_states() if grant.looks else [],
            damage=self.log.gaps.damage() if grant.looks else [],
            database=self.log.database if grant.looks else None,
        )
        return status.lines(
            streams=len(pairs),
            peers=len(peers) + len(others),
            behind=len(behind) + sum(other.state == "behind" for other in others),
        )

    def link_states(self) -> list[LinkStatus]:
        """Return how it goes with each upstream and Redis."""
        return [link() for link in self.links]

    def damaged_ranges(self) -> list[Pair]:
        """Return the pair of each range of rows that cannot be read from the disk."""
        return [pair for pair, _ in self.log.gaps.of(Cause.DAMAGE)]

    def received_commands(self) -> dict[tuple[str, str], int]:
        """Return how many commands came in, by command and name of the peer."""
        return self._received.by_word_and_name()
