"""The bus: a listener in Redis's place, and an upstream whose rows are published there.

What processes publish on the homeserver's channel goes into the log first, as a relay's rows do,
and then to those who subscribed; every other channel is plain pub/sub (protocol.md section 15).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory

from tcprepl import clocks, metrics
from tcprepl.background import LoopingProcess, looping_background_process, run_in_background
from tcprepl.clocks import Reactor
from tcprepl.errors import CloseReason, LocalProtocolError, ProtocolError
from tcprepl.ids import InstanceName, Pair, ServerName, StreamName, Token
from tcprepl.logger import get_logger
from tcprepl.protocol.commands import (
    Command,
    FederationAckCommand,
    ReplicateCommand,
    UserIpCommand,
)
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.parsing import parse_line, word_of
from tcprepl.protocol.serializing import serialize
from tcprepl.replication.bus.cache import Cache
from tcprepl.replication.bus.channels import Channels
from tcprepl.replication.bus.commands import COMMANDS
from tcprepl.replication.bus.connection import BusConnection
from tcprepl.replication.bus.info import Facts, info
from tcprepl.replication.bus.measuring import sources
from tcprepl.replication.bus.passwords import NO_PASSWORDS, Passwords
from tcprepl.replication.bus.places import Places, Replayed
from tcprepl.replication.bus.processes import Bounds, Processes
from tcprepl.replication.bus.published import PublishedLines
from tcprepl.replication.bus.replies import error
from tcprepl.replication.bus.silent import SilentMoves
from tcprepl.replication.bus.subscribers import Subscribers
from tcprepl.replication.failures import describe_address, too_many
from tcprepl.replication.following.catchup import CatchUp
from tcprepl.replication.relaying.intake import RelayIntake
from tcprepl.replication.relaying.lines import Followers
from tcprepl.replication.serving.measuring import OTHERS, CommandCounts
from tcprepl.replication.serving.readers import EVERYTHING, Reader
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.replication.status import LinkStatus, PeerStatus, ProcessStatus, process_status
from tcprepl.streams.registry import Registry

log = get_logger(__name__)

#: Shortest time between two REPLICATEs of ours, by which writers say where they are.
ASK_INTERVAL_S: Final = 0.25
#: How often connections and the cache are looked at.
SWEEP_INTERVAL_S: Final = 1.0
#: How long connections may take to go when the bus stops.
STOP_WITHIN_S: Final = 1.0
#: The channel that carries USER_IP, after the name of the server.
USER_IP_CHANNEL: Final = "USER_IP"

_REDIS: Final = DIALECTS["redis"]
_REPLICATE: Final = b"REPLICATE"


class _Clients(Factory):
    noisy = False

    def __init__(self, bus: BusListener) -> None:
        self._bus = bus

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return self._bus.accept(describe_address(addr))


class BusListener:
    """Everything behind the bus's own port; the upstream of its relay.

    Args:
        reactor: The reactor.
        server: Who serves the same log over the line protocol.
        intake: Where rows go.
        registry: The streams.
        server_name: The homeserver, which is the name of the channel.
        patterns: Which pairs subscribers of that channel are told of.
        catch_up: Where rows are fetched that were not published.
        on_command: Called with each command that is published.
        passwords: Who may come in.
        max_connections: How many at a time.
        places: Where known processes stand that are away; in memory by default.
        bounds: What is replayed to them at most.

    Attributes:
        cache: What SET keeps.
        channels: Who subscribed which channel.
        commands: How often each command was used.
        processes: The known processes.
        passwords: As given; may be changed at any time.
        max_connections: Likewise.
    """

    def __init__(
        self,
        reactor: Reactor,
        server: ReplicationServer,
        intake: RelayIntake,
        registry: Registry,
        *,
        server_name: ServerName,
        patterns: Iterable[Pair] = (EVERYTHING,),
        catch_up: CatchUp | None = None,
        on_command: Callable[[Command], object] | None = None,
        passwords: Passwords = NO_PASSWORDS,
        max_connections: int = 10_000,
        places: Places | None = None,
        bounds: Bounds = Bounds(),  # noqa: B008 - it is immutable
    ) -> None:
        self.reactor = reactor
        self.hub = server.hub
        self.turns = server.turns
        self.cache = Cache()
        self.passwords = passwords
        self.max_connections = max_connections
        self.channel = server_name.encode()
        self.subscribers = Subscribers(reactor, self.hub, intake, self.channel, patterns)
        self.processes = Processes(
            reactor,
            server.log,
            self.hub,
            intake,
            self.subscribers,
            places or Places(None, reactor.seconds),
            bounds,
        )
        self.processes.on_given = self._given
        self.channels = Channels()
        self._did = CommandCounts()
        self._user_ip = f"{server_name}/{USER_IP_CHANNEL}".encode()
        self._server = server
        self._intake = intake
        self._followers = Followers(
            reactor, intake, registry, catch_up, self._resume, self._position
        )
        self._waits_for_room = False
        self._silent = SilentMoves()
        self._on_command = on_command
        self._connections: dict[int, BusConnection] = {}
        self.commands: Counter[str] = Counter()
        self._ports: list[IListeningPort] = []
        self._addresses: list[str] = []
        self._ask_call: Any = None
        self._asked_at = float("-inf")
        self._changed_at: float = reactor.seconds()
        self._started_at: float = reactor.seconds()
        self._accepted = 0
        self._rejected = 0
        self._writers = 0
        self._lost_writers = 0
        self._last_reason: str | None = None
        self._sweeper: LoopingProcess | None = None
        self._stopping: Deferred[None] | None = None
        self._sources: list[tuple[metrics.Live, metrics.Source]] = []
        server.others.append(self.peers)
        server.closers.append(self._close)
        server.other_readers.append(self.readers)

    # -- life --------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to count and to watch; `listen` lets clients in."""
        self._followers.start()
        self._sweeper = looping_background_process(
            self.reactor, "bus_sweep", SWEEP_INTERVAL_S, self._sweep
        )
        self._sources = [(live, live.add_source(source)) for live, source in sources(self)]

    async def listen(self, endpoint: IStreamServerEndpoint) -> IListeningPort:
        """Listen on *endpoint* and return the port."""
        port = await endpoint.listen(_Clients(self))
        self._ports.append(port)
        self._addresses.append(describe_address(port.getHost()))
        log.info("bus.listening", address=self._addresses[-1])
        return port

    async def stop(self) -> None:
        """Let nobody in, give subscribers what was published so far, and close."""
        ports, self._ports = self._ports, []
        for port in ports:
            await maybeDeferred(port.stopListening)
        if self._ask_call is not None:
            self._ask_call.cancel()
            self._ask_call = None
        await self._followers.stop()
        await self._intake.settled()
        self.hub.flush()
        for connection in list(self._connections.values()):
            connection.close(CloseReason.SHUTDOWN)
        await self._until_gone()
        if self._sweeper is not None:
            await self._sweeper.stop()
        self.processes.close()
        for live, source in self._sources:
            live.remove_source(source)
        self._sources.clear()

    async def _until_gone(self) -> None:
        if not self._connections:
            return
        self._stopping = Deferred()
        overdue = self.reactor.callLater(STOP_WITHIN_S, self._abort_all)
        try:
            await self._stopping
        except CancelledError:
            self._abort_all()
        finally:
            if overdue.active():
                overdue.cancel()

    def _abort_all(self) -> None:
        for connection in list(self._connections.values()):
            connection.transport.abortConnection()

    def _sweep(self) -> None:
        now = self.reactor.seconds()
        self.cache.sweep(now)
        for connection in list(self._connections.values()):
            connection.sweep(now)
        self.processes.sweep()

    # -- connections -------------------------------------------------------------------

    @property
    def guarded(self) -> bool:
        """Whether a password is asked for."""
        return self.passwords.any

    @property
    def full(self) -> bool:
        """Whether so much waits for the log, or for pages, that nobody may publish."""
        if self._intake.full and not self._waits_for_room:
            self._waits_for_room = True
            self._intake.when_room(self._has_room)
        return self._waits_for_room or self._followers.full

    def _has_room(self) -> None:
        self._waits_for_room = False
        self._resume()

    def accept(self, address: str) -> BusConnection:
        """Return the protocol of a new connection from *address*."""
        return BusConnection(self, self._server.next_conn_id(), address)

    def connected(self, connection: BusConnection) -> None:
        """Note that *connection* is there, or turn it away."""
        self._connections[connection.conn_id] = connection
        if too_many(self._connections.values(), self.max_connections):
            self._rejected += 1
            connection.write(error("ERR max number of clients reached"))
            connection.close(CloseReason.TOO_MANY_CONNECTIONS)
        else:
            self._accepted += 1
            self.reactor.callLater(ASK_INTERVAL_S, self._look_at, connection)

    def _look_at(self, connection: BusConnection) -> None:
        """Ask writers where they are if *connection* may be that of one, who is back."""
        here = connection.conn_id in self._connections and connection.closing is None
        if here and connection.lines is None and not connection.subscriptions:
            self._ask()

    def lost(self, connection: BusConnection, reason: CloseReason) -> None:
        """Note that *connection* is gone."""
        self._connections.pop(connection.conn_id, None)
        metrics.CLOSE_REASON.labels(reason.value).inc()
        lines = connection.lines
        if lines is not None:
            self._writers -= 1
            self._lost_writers += 1
            self._last_reason = f"{connection.label}: {reason.value}"
            if not self._writers:
                self._changed_at = self.reactor.seconds()
            if lines.held_rows:
                log.warning("bus.batch.cut_off", rows=lines.held_rows, client=connection.label)
        log.debug("bus.client.closed", client=connection.label, reason=reason.value)
        if not self._connections and self._stopping is not None:
            stopping, self._stopping = self._stopping, None
            stopping.callback(None)

    def _close(self, conn_id: int, reason: CloseReason, text: str) -> bool:
        connection = self._connections.get(conn_id)
        if connection is None:
            return False
        connection.write(error(f"ERR {text}"))
        connection.close(reason)
        return True

    def counts_of(self, process: str) -> Counter[str]:
        """Return what is counted of *process*; of one that nobody knows, for itself."""
        if not process:
            return Counter()
        return self._did.of(process, {one.process for one in self._connections.values()})

    def _given(self, process: str, given: Replayed) -> None:
        self.counts_of(process)["replays"] += given is Replayed.LINES

    def by_process(self) -> list[tuple[str, ProcessStatus]]:
        """Return what each process did whose name is known."""
        out = Counter[str]()
        for connection in self._connections.values():
            out[connection.process] += sum(one.rows for one in connection.subscribers)
        return [
            (name, process_status(counts, out[name]))
            for name, counts in self._did.by_name().items()
            if name != OTHERS or counts
        ]

    def _resume(self) -> None:
        for connection in list(self._connections.values()):
            connection.go_on()

    # -- what is published -------------------------------------------------------------

    def published(self, connection: BusConnection, payloads: list[bytes]) -> int:
        """Take what a connection publishes on the homeserver's channel; return to how many."""
        lines = connection.lines
        met = lines is not None
        if lines is None:
            lines = PublishedLines(
                self._followers,
                self._other,
                self._say,
                lambda pair: self.processes.speaks(connection.process, pair, connection),
                lambda pair: self.processes.said.alone(pair, self.now()),
                self._silent,
            )
            connection.lines = lines
            self._writers += 1
            if self._writers == 1:
                self._changed_at = self.reactor.seconds()
            self._ask()
        self.commands["publish"] += len(payloads)
        connection.counts["rows_in"] += sum([one.startswith(b"RDATA ") for one in payloads])
        # What comes first waits for a turn: everybody is asked where they are before it.
        with self._intake.gathering() if met else nullcontext():
            lines.take(payloads)
        return len(self.subscribers)

    def publish(self, channel: bytes, payload: bytes) -> int:
        """Publish on another channel; return to how many."""
        reached = self.channels.reached(channel)
        if channel == self._user_ip:
            # It carries an access token: it is counted, and goes to those who subscribed it.
            metrics.USER_IP_CACHE.inc()
            self._intake.after(partial(self.channels.push, channel, payload), len(payload))
        else:
            self.channels.push(channel, payload)
        return reached

    def _other(self, line: bytes) -> None:
        """Pass on what is neither a row nor a position: to everybody, and to our readers."""
        self._say(line)
        try:
            command = parse_line(line, _REDIS)
        except ProtocolError as fault:
            # It may be of a release that is newer than we are; they may know it.
            log.info("bus.line.unknown", word=word_of(line), reason=str(fault))
            return
        if isinstance(command, FederationAckCommand) and command.instance is not None:
            self.processes.acknowledge(command.instance, command.token)
        if isinstance(command, UserIpCommand):
            metrics.USER_IP_CACHE.inc()
        elif self._on_command is not None and not isinstance(command, ReplicateCommand):
            run_in_background(self._on_command, command)

    def _say(self, line: bytes) -> None:
        self.subscribers.say(line, keep=not line.startswith(_REPLICATE))

    def _position(self, stream: StreamName, instance: InstanceName, token: Token) -> None:
        """Take a position; one that does not move the log is told all the same."""
        pair = (stream, instance)
        known = self._intake.known(pair)
        self._intake.position(stream, instance, token)
        if token == (known or 0):
            self._intake.after(partial(self.subscribers.say_position, pair))

    def _ask(self) -> None:
        """Ask writers soon where they are: one that was away may have published to nobody."""
        if self._ask_call is None:
            wait = self._asked_at + ASK_INTERVAL_S - self.reactor.seconds()
            self._ask_call = self.reactor.callLater(max(0.0, wait), self._ask_now)

    def _ask_now(self) -> None:
        self._ask_call = None
        self._asked_at = self.reactor.seconds()
        self._say(serialize(ReplicateCommand(), _REDIS)[:-1])

    def send(self, command: Command) -> bool:
        """Tell the processes *command*; return whether there are any."""
        try:
            line = serialize(command, _REDIS)[:-1]
        except LocalProtocolError as fault:
            metrics.DROPPED.labels("command", "not_in_dialect").inc()
            log.info("redis.command.dropped", command=command.NAME, reason=str(fault))
            return False
        if not self.subscribers:
            return False
        self._intake.after(partial(self._say, line), len(line))
        return True

    # -- what commands ask for ---------------------------------------------------------

    def now(self) -> float:
        """Return seconds that only grow."""
        seconds: float = self.reactor.seconds()
        return seconds

    def wall_ms(self) -> int:
        """Return the time of day."""
        return clocks.wall_ms()

    def count(self, word: str) -> None:
        """Count a command."""
        self.commands[word if word in COMMANDS else "(unknown)"] += 1

    def log_in(self, user: str | None, password: str) -> str | None:
        """Return the name of who says *password*; None if it is wrong."""
        return self.passwords.name_of(user, password)

    def clients(self) -> Sequence[BusConnection]:
        """Return every connection."""
        return list(self._connections.values())

    def info(self, asked: Iterable[str] = ()) -> str:
        """Return what INFO says of sections."""
        connections = self._connections.values()
        facts = Facts(
            addresses=self._addresses,
            uptime_s=self.reactor.seconds() - self._started_at,
            connections=len(connections),
            max_connections=self.max_connections,
            received=self._accepted,
            rejected=self._rejected,
            listening=sum(1 for one in connections if one.subscriptions),
            channels=len(self.channels.by_name),
            patterns=len(self.channels.by_pattern),
            commands=self.commands,
            cache=self.cache,
            trouble=self._server.log.trouble or self._intake.trouble,
        )
        return info(facts, asked)

    # -- looking -----------------------------------------------------------------------

    def peers(self) -> list[PeerStatus]:
        """Return every connection that listens on the homeserver's channel."""
        now = self.reactor.seconds()
        found = (connection.status(now) for connection in self._connections.values())
        return [status for status in found if status is not None]

    def readers(self) -> list[tuple[int, Reader]]:
        """Return what reads for each connection, with its number."""
        return [
            (connection.conn_id, one.reader)
            for connection in self._connections.values()
            for one in connection.subscribers
        ]

    def status(self) -> LinkStatus:
        """Return how it goes with those who publish."""
        return LinkStatus(
            name=f"redis {' '.join(self._addresses)}".strip(),
            kind="upstream",
            up=self._writers > 0,
            seconds=self.reactor.seconds() - self._changed_at,
            reason=self._last_reason or "nobody has published yet",
            reconnects=self._lost_writers,
            rows=self._intake.rows_taken,
            idle_seconds=self._intake.idle_seconds(),
            silent_moves=self._silent.words(),
            **self._intake.gap_status(),
        )
