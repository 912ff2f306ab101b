"""One connection of a server: its transport, its session and its place in the hub.

What a peer asks for is done in turns (`tcprepl.replication.serving.turns`), and not at all
while it does not take the answers: input waits then, read or not (protocol.md 10.3). One that
closes its side is still answered what it asked (5.5).

There is one object for each of thousands of connections, and all of it works on the same session,
outlet and reader: so this may be longer than other modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from tcprepl import metrics
from tcprepl.access import NOTHING, Grant, digest
from tcprepl.clocks import epoch_s
from tcprepl.errors import CloseReason, TokenRefused, UnknownStream
from tcprepl.ids import InstanceName, Pair, StreamName, Token
from tcprepl.limits import DRAIN_WITHIN_S, HALF_CLOSED_S, MAX_REPLY_BYTES, MAX_SUBSCRIPTIONS
from tcprepl.logger import get_logger
from tcprepl.protocol.commands import (
    AuthCommand,
    AuthorizedCommand,
    Command,
    DrainCommand,
    FederationAckCommand,
    HelpCommand,
    InfoCommand,
    KickCommand,
    NameCommand,
    PingCommand,
    ProducerCommand,
    PublishCommand,
    RemoteServerUpCommand,
    ReplicateCommand,
    StatusCommand,
)
from tcprepl.protocol.dialects import NATIVE
from tcprepl.protocol.events import (
    ClaimUnread,
    Closing,
    CommandReceived,
    Event,
    LinesPassed,
    PublishRun,
)
from tcprepl.protocol.server_session import ServerSession
from tcprepl.protocol.specs import COMMANDS, Right
from tcprepl.replication.failures import close_reason_of
from tcprepl.replication.serving.draining import NOT_DRAINED, in_words, kick, nobody_called
from tcprepl.replication.serving.help import help_lines
from tcprepl.replication.serving.publishing import Publishing
from tcprepl.replication.serving.readers import ANY, Reader
from tcprepl.replication.serving.rendering import WireForm
from tcprepl.replication.serving.rights import lacking
from tcprepl.replication.serving.turns import Worked
from tcprepl.replication.status import PeerStatus
from tcprepl.replication.transport import Outlet, make_outlet, read_more

if TYPE_CHECKING:
    from tcprepl.replication.serving.server import ReplicationServer

log = get_logger(__name__)

#: What a command costs that is handed to others, in lines.
_DISPATCH_LINES: Final = 4
#: Pairs that are gone through at the cost of a line.
_PER_LINE: Final = 16
#: Rows of one run that show that more are on their way.
_FLOOD_BYTES: Final = 32_768


@implementer(IHalfCloseableProtocol)
class Peer:
    """One connection: joins its transport, its session and its place in the hub.

    Attributes:
        conn_id: Number of the connection, counted from 1.
        name: What NAME said.
        address: Where it comes from, for people.
        acked: The newest FEDERATION_ACK, or None.
        grant: What it may do.
        vouched: Whether whoever connects there has what is granted without a token.
        closing: Why it is being closed, or None.
        step: When its deadlines are looked at (`Deadlines`).
    """

    __slots__ = (
        "_connected_at",
        "_ends_at",
        "_last_sent",
        "_outlet",
        "_paused",
        "_publishing",
        "_reader",
        "_server",
        "_session",
        "_token",
        "_used",
        "_waiting_bytes",
        "acked",
        "address",
        "closing",
        "conn_id",
        "grant",
        "name",
        "step",
        "transport",
        "vouched",
    )

    def __init__(
        self, server: ReplicationServer, conn_id: int, address: str, *, vouched: bool = True
    ) -> None:
        self._server = server
        self.vouched = vouched
        #: The digest of the token that it said.
        self._token: bytes | None = None
        self.grant: Grant = server.granted(None, vouched=vouched) or NOTHING
        #: Whether it has asked for something that needs a right.
        self._used = False
        self.conn_id = conn_id
        self.address = address
        self.name = ""
        self.acked: Token | None = None
        self.closing: CloseReason | None = None
        self.transport: Any = None
        self._connected_at = server.reactor.seconds()
        self._session: ServerSession = server.make_session(self.grant)
        self._outlet: Outlet | None = None
        self._reader: Reader | None = None
        self._paused = False
        self._publishing: Publishing | None = None
        #: Of what was said past the hub, the bytes that the socket has not taken.
        self._waiting_bytes = 0
        #: When it ends at the latest that has closed its side; None as long as it has not.
        self._ends_at: float | None = None
        self._last_sent = 0.0
        self.step = 0

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
    def reader(self) -> Reader | None:
        """What reads for it; None as long as it has asked for nothing."""
        return self._reader

    @property
    def is_behind(self) -> bool:
        """Whether it has not been sent everything that it asked for."""
        return self._reader is not None and self._reader.backlog is not None

    @property
    def unanswered(self) -> bool:
        """Whether it published something that is not answered yet."""
        return self._publishing is not None and self._publishing.waiting

    @property
    def behind_seconds(self) -> float:
        """The age of the oldest row that it asked for and has not been sent."""
        return 0.0 if self._reader is None else self._server.hub.lag(self._reader).seconds

    @property
    def quiet(self) -> bool:
        """Whether it has neither named itself nor asked for anything, or may ask for nothing."""
        asked = self.name or self._reader is not None or self._publishing is not None
        return not (asked and self.grant)

    # -- IHalfCloseableProtocol --------------------------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """Greet: SERVER is the very first line (Twisted calls this)."""
        self.transport = transport
        self._outlet = make_outlet(transport, self._drained)
        self._pump()
        self._server.peer_connected(self)

    def connectionMade(self) -> None:
        """Do nothing: `makeConnection` did it all (Twisted never calls this itself)."""

    def dataReceived(self, data: bytes) -> None:
        """Do what *data* says, in turns (Twisted calls this)."""
        self._session.receive_data(data, self._server.reactor.seconds())
        self._server.turns.serve(self)

    def readConnectionLost(self) -> None:
        """End, after the answers that it still has to get: it has closed its side, or all of it.

        Which of the two cannot be told before something is written (Twisted calls this).
        """
        answered = self._answered and (self._waiting_bytes == 0 or self._only_reads)
        if answered or self.closing is not None:
            self._hang_up()
        else:
            self._ends_at = self._server.reactor.seconds() + HALF_CLOSED_S
            self._end_if_answered()

    def writeConnectionLost(self) -> None:
        """Do nothing: whoever closes our side has taken our place (Twisted does not call this)."""

    def connectionLost(self, reason: Failure) -> None:
        """Forget the peer (Twisted calls this)."""
        self._server.turns.forget(self)
        if self._publishing is not None:
            self._publishing.close()
        if self._reader is not None:
            self._server.hub.unsubscribe(self._reader)
        why = self.closing or close_reason_of(reason)
        if self.closing is None and self._ends_at is not None:
            why = CloseReason.PEER_CLOSED
        self._session.receive_eof(self._server.reactor.seconds(), why)
        self._server.peer_lost(self, why)

    # -- what the session says ---------------------------------------------------------

    def work(self, lines: int, ends_at: float) -> Worked:
        """Do what the peer said, as far as share and time go and while it takes the answers."""
        done = 0
        event: Event | None = None
        now = self._server.reactor.seconds()
        while done < lines and not self._full:
            event = self._session.next_event(now)
            if event is None:
                break
            done += self._handle(event)
            self._pump()
            now = self._server.reactor.seconds()
            if now >= ends_at:
                break
        self._catch_up()
        full = self._full
        more = event is not None and not full
        self._read_on(not more and not full)
        if not more:
            self._end_if_answered()
        return Worked(done, more)

    @property
    def _full(self) -> bool:
        """Whether it is not listened to: for what it is to be told, or what it published."""
        return self._owes or (self._publishing is not None and self._publishing.full)

    @property
    def _owes(self) -> bool:
        """Whether it does not take what is said to it."""
        return self._waiting_bytes > MAX_REPLY_BYTES

    def _read_on(self, reading: bool) -> None:
        """Read from the socket, or do not: what is not read, the peer cannot send for ever."""
        if reading is self._paused and self.closing is None:
            self._paused = not reading
            if self._ends_at is not None:
                return  # there is nothing more to read
            if reading:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()

    def _handle(self, event: Event) -> int:
        """Act on *event*; return what that costs, in lines."""
        if isinstance(event, CommandReceived):
            return self._command(event.command)
        if isinstance(event, PublishRun):
            return self._publish_run(event)
        if isinstance(event, ClaimUnread):
            return self._in.unclaim()
        if isinstance(event, Closing):
            self._close_transport(event.reason, event.text)
        return event.lines if isinstance(event, LinesPassed) else 0

    def _command(self, command: Command) -> int:
        reason = lacking(self.grant, command)
        self._used |= COMMANDS[command.NAME].right is not Right.NONE
        if reason is not None:
            return self._deny(command, reason)
        if isinstance(command, AuthCommand):
            return self._authorize(command)
        if isinstance(command, ReplicateCommand):
            return self._replicate(command)
        if isinstance(command, PublishCommand | ProducerCommand):
            return self._publish(command)
        if isinstance(command, HelpCommand):
            return self.tell(help_lines(command.topic))
        if isinstance(command, StatusCommand):
            return self.tell(self._server.status_lines(self.grant))
        if isinstance(command, KickCommand):
            return self._kick(command)
        if isinstance(command, DrainCommand):
            return self._drain(command)
        if isinstance(command, PingCommand):
            self._server.dispatch(command, self)
            return 1
        if isinstance(command, NameCommand):
            self._server.renamed(self.name, command.name)
            self.name = command.name
            if self._reader is not None:
                self._reader.label = self.label
            return 1
        if isinstance(command, FederationAckCommand):
            self.acked = command.token
        self._server.dispatch(command, self)
        if isinstance(command, RemoteServerUpCommand):
            return _DISPATCH_LINES + self._server.connections  # each is written to
        return _DISPATCH_LINES

    # -- the end -----------------------------------------------------------------------

    @property
    def _answered(self) -> bool:
        """Whether all that it said is worked off, and what it published is answered."""
        return not (self._paused or self.unanswered or self._server.turns.awaits(self))

    @property
    def _only_reads(self) -> bool:
        """Whether what waits for its socket is rows, and hardly anything else."""
        return self._reader is not None and self._publishing is None

    def _end_if_answered(self) -> None:
        """End if it has closed its side and has all its answers, or will have by the end."""
        if self._ends_at is not None and self._answered:
            self.close(CloseReason.PEER_CLOSED, "")

    def _hang_up(self) -> None:
        """End at once, as if it had been the peer alone."""
        self.transport.connectionLost(Failure(ConnectionDone()))

    # -- rights ------------------------------------------------------------------------

    def _deny(self, command: Command, reason: str) -> int:
        """Say that *command* is not obeyed; in its turn, if it publishes."""
        right = COMMANDS[command.NAME].right.value
        metrics.REFUSED_ACCESS.labels("line", right if self.grant else "no_token").inc()
        if isinstance(command, PublishCommand | ProducerCommand):
            return self._in.deny(command, reason)
        self._session.refuse(reason, self._server.reactor.seconds())
        return 1

    def _authorize(self, command: AuthCommand) -> int:
        """Take a token; one that does not hold ends the connection."""
        server = self._server
        now = server.reactor.seconds()
        if self._token is not None or self._used:
            text = "AUTH comes once, before anything that needs a right: connect again"
            self._session.refuse(text, now)
        elif not server.tokens:
            self._used = True
            text = f"no token is asked for here: whoever connects {self.grant}"
            self._session.send(AuthorizedCommand("anonymous", text), now)
        else:
            host = getattr(self.transport.getPeer(), "host", "unix")
            try:
                self.grant = server.tokens.admit(command.token, host, now)
            except TokenRefused as error:
                why = "waiting" if error.wait_s else "unknown_token"
                metrics.REFUSED_ACCESS.labels("line", why).inc()
                self.close(CloseReason.NOT_AUTHORIZED, f"AUTH: {error}")
                return _DISPATCH_LINES
            self._token = digest(command.token)
            self._session.take_rows(server.publishes(self.grant))
            self._session.send(AuthorizedCommand(self.grant.name, str(self.grant)), now)
        return _DISPATCH_LINES

    def reconsider(self) -> None:
        """End the connection if what it may do is not what it was when it began."""
        grant = self._server.granted(self._token, vouched=self.vouched)
        if grant is None:
            text = f"AUTH: the token of {self.grant.name} does not hold any more"
            self.close(CloseReason.NOT_AUTHORIZED, text)
        elif grant != self.grant:
            whose = self.grant.name or "who says no token"
            text = f"AUTH: what {whose} may do has changed: connect again"
            self.close(CloseReason.NOT_AUTHORIZED, text)

    # -- what an operator asks for -----------------------------------------------------

    def _kick(self, command: KickCommand) -> int:
        """End connections; who is among them hears that alone."""
        server = self._server
        ended = kick(server, command.peer, command.why)
        if not ended:
            self._session.refuse(nobody_called(server, command.peer), server.reactor.seconds())
        elif self.closing is None:
            self.tell([in_words(one) for one in ended])
        return _DISPATCH_LINES + server.connections  # each is looked at

    def _drain(self, command: DrainCommand) -> int:
        """Begin to drain, if that has not been done, and tell how far it is."""
        server = self._server
        if server.drain is None:
            self._session.refuse(NOT_DRAINED, server.reactor.seconds())
        else:
            within_s = DRAIN_WITHIN_S if command.within_s is None else command.within_s
            server.drain(within_s, command.to).watch(self)
        return _DISPATCH_LINES + server.connections

    # -- rows in -----------------------------------------------------------------------

    def _publish(self, command: PublishCommand | ProducerCommand) -> int:
        self._server.dispatch(command, self)
        if isinstance(command, ProducerCommand):
            return self._in.claim(command, self.grant.name)
        return self._in.publish(command)

    def _publish_run(self, run: PublishRun) -> int:
        if self._server.hears(PublishCommand) or lacking(
            self.grant, PublishCommand(run.stream, b"")
        ):
            return sum(map(self._command, run.commands()))
        self._used = True
        if len(run.rows) >= _FLOOD_BYTES:
            read_more(self.transport)
        self._server.count_received(PublishCommand.NAME, self, len(run.numbers))
        return self._in.publish_run(run)

    @property
    def _in(self) -> Publishing:
        if self._publishing is None:
            self._publishing = Publishing(self._server.door, self._answer)
        return self._publishing

    def _answer(self, answers: Sequence[Command | bytes]) -> None:
        """Send answers to what was published; there is room for more then."""
        if self.closing is None:
            now = self._server.reactor.seconds()
            for answer in answers:
                if isinstance(answer, bytes):
                    self._session.send_lines(answer, now)
                else:
                    self._session.send(answer, now)
            self._pump()
            if self._paused and not self._full:
                self._server.turns.serve(self)
            self._end_if_answered()

    def _replicate(self, command: ReplicateCommand) -> int:
        hub = self._server.hub
        if self._reader is None:
            assert self._outlet is not None
            self._reader = Reader(self._outlet, self.label, self)
        form = WireForm.of(
            self._session.dialect, words=not self.is_synapse, unmasked=self.grant.unmasked
        )
        patterns = self._patterns(command)
        cost = _DISPATCH_LINES + len(patterns) * (1 + len(hub.heads) // _PER_LINE)
        refusal = self._refusal(command, patterns)
        if refusal is not None:
            self._session.refuse(refusal, self._server.reactor.seconds())
            return cost
        for pattern in patterns:
            hub.subscribe(
                self._reader,
                form,
                pattern,
                None if command.stream is None else command.token,
                places=command.incarnations,
                only_instance=None if form.rdata_instance else hub.instance,
            )
        if command.stream and command.instance and not self.is_synapse:
            self._say_where(command.stream, command.instance)
        return cost

    def _say_where(self, stream: StreamName, instance: InstanceName) -> None:
        """Say who serves a pair that was named, if it is another server alone."""
        writer = self._server.log.elsewhere((stream, instance))
        if writer is not None:
            words = (
                f"{stream} of {instance} is in the memory of the server that writes as {writer}, "
                "and not served here: follow that server, too"
            )
            self._session.send(InfoCommand(words), self._server.reactor.seconds())

    def _patterns(self, command: ReplicateCommand) -> list[Pair]:
        """Return which pairs *command* asks for."""
        stream, instance = command.stream or ANY, command.instance or ANY
        if not self._session.dialect.rdata_instance:
            instance = self._server.hub.instance
        if command.stream is None and self.is_synapse:
            # Of a stream that its release does not have a Synapse must not hear.
            streams = [s for s in self._server.synapse_streams if s in self.grant.sees]
        elif stream == ANY and self.grant.sees.names is not None:
            streams = sorted(self.grant.sees.names)
        else:
            streams = [stream]
        if not self._session.dialect.rdata_instance:  # who is told in pairs, of those there are
            streams = [
                s for s in streams if s == ANY or command.stream == s or self._server.knows(s)
            ]
        return [(s, instance) for s in streams]

    def _refusal(self, command: ReplicateCommand, patterns: list[Pair]) -> str | None:
        """Return why *patterns* cannot be subscribed; None when they can."""
        assert self._reader is not None
        stream = command.stream
        if stream not in (None, ANY) and not self._server.knows(stream):
            names = [name for name in self._server.stream_names() if name in self.grant.sees]
            return str(UnknownStream(stream, names))
        held = self._reader.subscription.patterns
        if len(held) + len(patterns) > MAX_SUBSCRIPTIONS and not held >= set(patterns):
            return (
                f"more than {MAX_SUBSCRIPTIONS} REPLICATE on one connection; "
                "name streams, or instances, by *"
            )
        return None

    @property
    def label(self) -> str:
        """The name it goes by in logs."""
        return f"{self.conn_id}:{self.name or self.address}"

    # -- what goes out -----------------------------------------------------------------

    def offer(self, command: Command) -> None:
        """Send *command*, which it may miss, unless it does not take what it is sent."""
        if self._owes:
            metrics.DROPPED.labels("command", "peer_full").inc()
        else:
            self.send(command)

    def send(self, command: Command) -> None:
        """Send *command*; nothing happens once the connection is closing."""
        if self.closing is None and self.transport is not None:
            self._session.send(command, self._server.reactor.seconds())
            self._pump()

    def tell(self, lines: Sequence[str]) -> int:
        """Answer a person with INFO lines; return how many there are."""
        now = self._server.reactor.seconds()
        for line in lines:
            self._session.send(InfoCommand(line), now)
        return len(lines)

    def close(self, reason: CloseReason, text: str) -> None:
        """Say why in an ERROR line, then close once it has been written."""
        if self.closing is None:
            self._session.close(reason, text, self._server.reactor.seconds())
            self._close_transport(reason, text)

    def failed(self) -> None:
        """Close: something that nobody expected kept it from being served, and was logged."""
        self.close(CloseReason.LOCAL_ERROR, "the server failed, its log says how; connect again")

    def _pump(self) -> None:
        out = self._session.data_to_send()
        if out:
            self._write(out)

    def _write(self, lines: bytes) -> None:
        outlet = self._outlet
        assert outlet is not None
        if not outlet.write(lines):
            self._waiting_bytes += len(lines)

    def _drained(self) -> None:
        self._waiting_bytes = 0
        if self._paused:
            self._server.turns.serve(self)
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

    def sweep(self, now: float) -> float | None:
        """Look at the deadlines: keep-alive, silence, an end that takes too long.

        Returns:
            When there is the next one; None if there is none any more.
        """
        ends_at = self._ends_at
        if ends_at is None:
            return self._tick(now)
        if now >= ends_at:
            self._hang_up()
            return None
        self._session.not_reading(now)  # it has said that it says no more
        deadline = self._tick(now)
        return None if deadline is None else min(deadline, ends_at)

    def _tick(self, now: float) -> float | None:
        reader = self._reader
        group = reader.group if reader is not None else None
        if group is not None and group.written_at > self._last_sent:
            self._last_sent = group.written_at
            self._session.sent_elsewhere(group.written_at)
        elif self._outlet is not None and self._outlet.busy:
            self._session.sent_elsewhere(now)  # it has not taken what it was sent
        if self._paused:
            self._session.not_reading(now)  # the silence is ours
        deadline = self._session.next_deadline()
        if deadline is None or now < deadline:
            return deadline
        self._session.epoch_s = epoch_s(self._server.reactor)
        for event in self._session.tick(now):
            self._handle(event)
        self._pump()
        self._last_sent = now
        return self._session.next_deadline()

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
