"""What the commands that read have in common: where to connect, what to print, when to end."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from zope.interface import implementer

from tcprepl.addresses import Address
from tcprepl.app.connecting import client_endpoint
from tcprepl.cli.formats import Format
from tcprepl.clocks import Reactor
from tcprepl.errors import CloseReason, ConfigError, ConnectionFailed, UnknownStream
from tcprepl.ids import InstanceName, StreamName, Token
from tcprepl.logger import get_logger
from tcprepl.protocol.commands import (
    Command,
    ErrorCommand,
    InfoCommand,
    PositionCommand,
    ReplicateCommand,
    StatusCommand,
    UserIpCommand,
)
from tcprepl.protocol.dialects import DIALECTS, NATIVE, Dialect
from tcprepl.protocol.display import displayable
from tcprepl.protocol.serializing import serialize
from tcprepl.replication.following.client import ReplicationClient
from tcprepl.replication.following.connection import (
    AUTH_REFUSED,
    ClientConnection,
    Ended,
    connect,
)
from tcprepl.replication.serving.rights import NOT_ALLOWED
from tcprepl.streams.codec import Rows
from tcprepl.streams.masking import REDACTED, without_access_tokens
from tcprepl.streams.position_store import MemoryPositionStore

Pair = tuple[StreamName, InstanceName]
#: Makes lines of rows that share a token, without LF.
Render = Callable[[StreamName, InstanceName, Token, Sequence[bytes]], list[bytes]]

log = get_logger(__name__)

#: A server that does not know STATUS has told all positions when it was silent for this long.
QUIET_S = 0.5
#: How long a command that wants one answer waits for the first word.
GREETING_S = 5.0

_NEWEST = DIALECTS["1.22"]


def is_refusal(error: ErrorCommand, *, token_taken: bool) -> bool:
    """Return whether a server says that it will never serve this (protocol.md section 12).

    There is no such stream, or no right to it, or the token does not hold. One that held is
    another matter, *token_taken* on this connection: the next says the token as it is then.
    """
    if error.text.startswith(AUTH_REFUSED):
        return not token_taken
    return error.text.startswith(("unknown stream ", f"{NOT_ALLOWED}: "))


def command_line(command: Command) -> bytes:
    """Return a command as a line of the wire, LF included and access tokens left out."""
    if isinstance(command, UserIpCommand):
        command = replace(command, access_token=REDACTED)
    return serialize(command, _NEWEST)


def row_lines(
    stream: StreamName, instance: InstanceName, token: Token, rows: Sequence[bytes]
) -> list[bytes]:
    """Return the RDATA line of each row, without LF; all but the last of a batch say so."""
    start = f"RDATA {stream} {instance} ".encode()
    last = len(rows) - 1
    return [
        b"%s%s %s"
        % (start, b"batch" if n < last else b"%d" % token, without_access_tokens(stream, row))
        for n, row in enumerate(rows)
    ]


def row_objects(
    stream: StreamName, instance: InstanceName, token: Token, rows: Sequence[bytes]
) -> list[bytes]:
    """Return each row as one JSON object on a line, without LF."""
    start = json.dumps({"stream": stream, "instance": instance, "token": token})[:-1].encode()
    return [b'%s, "row": %s}' % (start, without_access_tokens(stream, row)) for row in rows]


def renderer(as_json: bool, row_format: Format | None) -> Render:
    """Return what makes lines of rows, as the options of a command say."""
    if row_format is not None:
        return row_format.rows
    return row_objects if as_json else row_lines


def refused(address: Address, text: str) -> ConfigError:
    """Return the error of whoever asks a server for what it will not serve."""
    lacks = text.startswith(f"{NOT_ALLOWED}: ") and address.token is None
    advice = "; --token-file names a file with one" if lacks else ""
    return ConfigError(f"{address}: {displayable(text)}{advice}")


async def positions_of(
    reactor: Reactor, address: Address, streams: Collection[StreamName] = ()
) -> dict[Pair, Token]:
    """Ask a server for the position of every stream and instance.

    Args:
        reactor: The reactor.
        address: The server.
        streams: Streams that it has to have.

    Raises:
        ConfigError: it does not have one of *streams*.
        ConnectionFailed: nobody answered, or what answered is no replication server.
    """
    found: dict[Pair, Token] = {}
    done: Deferred[None] = Deferred()
    heard: list[Pair] = []
    knows_status: list[ClientConnection] = []

    def ready(connection: ClientConnection, dialect: Dialect) -> None:
        if not dialect.in_band_resume:
            connection.send(ReplicateCommand())
        elif dialect.rdata_instance:
            connection.send(ReplicateCommand("*", "*", now=True))
            for stream in streams:
                connection.send(ReplicateCommand(stream, "*", now=True))
            knows_status.append(connection)
        else:
            connection.send(ReplicateCommand("ALL", now=True))

    def deliver(events: Sequence[object]) -> None:
        for event in events:
            if isinstance(event, PositionCommand):
                found[event.stream, event.instance] = event.token
                heard.append((event.stream, event.instance))
            elif isinstance(event, InfoCommand):
                finish()
            elif isinstance(event, ErrorCommand) and is_refusal(event, token_taken=False):
                fail(refused(address, event.text))
        if heard and knows_status:
            # All positions were on their way before this is answered.
            knows_status.pop().send(StatusCommand())

    def finish() -> None:
        names = dict.fromkeys(stream for stream, _ in heard)
        for stream in streams:
            # A server of ours says so itself; it has streams without a position, too.
            if stream not in names and connection.dialect.name != NATIVE:
                fail(refused(address, str(UnknownStream(stream, names))))
        if not done.called:
            done.callback(None)

    def fail(error: Exception) -> None:
        if not done.called:
            done.errback(error)

    def end(ended: Ended) -> None:
        if heard:
            finish()
        elif not done.called:
            done.errback(ConnectionFailed(f"{address}: {ended.text}", reason=ended.reason))

    connection = await connect(
        reactor,
        client_endpoint(reactor, address),
        worker_name="tcprepl-positions",
        server_name=address.server_name,
        dialect="auto",
        deliver=deliver,
        ready=ready,
        token=address.token,
    )

    def look(before: int) -> None:
        if heard and len(heard) == before:
            finish()
        elif not heard and reactor.seconds() > patience and not done.called:
            done.errback(
                ConnectionFailed(
                    f"{address}: said nothing for {GREETING_S:g} s; is it a replication port?",
                    reason=CloseReason.HANDSHAKE_TIMEOUT,
                )
            )
        elif not done.called:
            timer[0] = reactor.callLater(QUIET_S, look, len(heard))

    patience = reactor.seconds() + GREETING_S
    timer = [reactor.callLater(QUIET_S, look, 0)]
    _ = connection.lost.addCallback(end)
    try:
        await done
    finally:
        if timer[0].active():
            timer[0].cancel()
        connection.close("done")
    await connection.lost
    return found


@implementer(IStreamClientEndpoint)
class ByName:
    """Where a name leads, looked up anew for each connection, with the token that goes with it.

    Args:
        reactor: The reactor.
        address: Where it leads now, and wherever it cannot be looked up later.
        look_up: Returns where it leads.
    """

    def __init__(self, reactor: Reactor, address: Address, look_up: Callable[[], Address]) -> None:
        self._reactor = reactor
        self._address = address
        self._look_up = look_up

    def token(self) -> str:
        """Look the name up, and return what is said there; empty for nothing."""
        try:
            self._address = self._look_up()
        except ConfigError as error:
            log.warning("context.unusable", reason=str(error), text="the last address holds")
        return "" if self._address.token is None else self._address.token()

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:  # noqa: N803
        """Connect to where `token` is for (Twisted calls this)."""
        return client_endpoint(self._reactor, self._address).connect(protocolFactory)


class Follower:
    """Follows streams and hands on lines, until there is a reason to end.

    Args:
        reactor: The reactor.
        address: The server.
        streams: The streams; None for all.
        write: Called with each group of lines (ended by LF) that one turn brought.
        since: ``now``, ``start`` or a token.
        instances: Whose token that is.
        render: Makes lines of rows.
        commands: Whether to hand on lines of other commands, too.
        count: End after this many rows.
        for_s: End after this many seconds.
        until_head: End when everything is there that was there at the start.
        on_end: Called before the connection is closed.
        name: How the server is to call us.
        look_up: Looks the address up anew for each connection; None for the same one always.

    Attributes:
        connected: Whether there ever was a connection.
    """

    def __init__(
        self,
        reactor: Reactor,
        address: Address,
        streams: Collection[StreamName] | None,
        write: Callable[[bytes], object],
        *,
        since: str | int = "now",
        instances: Collection[InstanceName] = ("master",),
        render: Render,
        commands: bool = False,
        count: int | None = None,
        for_s: float | None = None,
        until_head: bool = False,
        on_end: Callable[[], object] | None = None,
        name: str = "tcprepl-tail",
        look_up: Callable[[], Address] | None = None,
    ) -> None:
        self._look_up = look_up
        self._reactor = reactor
        self._address = address
        self._streams = streams
        self._write = write
        self._since = since
        self._instances = instances
        self._render = render
        self._commands = commands
        self._left = count
        self._for_s = for_s
        self._until_head = until_head
        self._on_end = on_end
        self._name = name
        self._goal: dict[Pair, Token] = {}
        self._pending: list[bytes] = []
        self._flushing = False
        #: Why lines could not be written when the end had come.
        self._unwritten: OSError | None = None
        self.connected = False
        self._client: ReplicationClient | None = None
        self._checked = False
        self._answered = False
        self._done: Deferred[None] = Deferred()

    async def run(self) -> None:
        """Follow until the end; cancelling is an end as well.

        Raises:
            ConfigError: the server does not have one of the streams.
            ConnectionFailed: nobody answered in the time that there was.
        """
        reactor = self._reactor
        if self._until_head:
            heads = await positions_of(reactor, self._address, self._streams or ())
            self.connected = True
            self._goal = {
                pair: token
                for pair, token in heads.items()
                if token > 0 and (self._streams is None or pair[0] in self._streams)
            }
            if not self._goal:
                return
        numbered = isinstance(self._since, int)
        known = (
            {(s, i): int(self._since) for s in self._streams or () for i in self._instances}
            if numbered
            else {}
        )
        by_name = None if self._look_up is None else ByName(reactor, self._address, self._look_up)
        client = self._client = ReplicationClient(
            reactor,
            by_name or client_endpoint(reactor, self._address),
            self._streams,
            self._on_rows,
            positions=MemoryPositionStore(known),
            name=self._name,
            server_name=self._address.server_name,
            token=self._address.token if by_name is None else by_name.token,
            since="now" if numbered else str(self._since),
            on_position=self._on_position,
            on_command=self._on_command,
            on_connected=self._on_connected,
        )
        timer = None
        if self._for_s is not None:
            timer = reactor.callLater(self._for_s, self._end)
        client.startService()
        try:
            await self._done
        finally:
            if timer is not None and timer.active():
                timer.cancel()
            if self._on_end is not None:
                self._on_end()
            trouble = client.last_error
            await client.stopService()
            self._flush()
        if self._unwritten is not None:
            raise self._unwritten
        if not self.connected:
            raise ConnectionFailed(
                trouble or f"{self._address} does not greet: is the line protocol on another port?",
                reason=CloseReason.CONNECTION_LOST,
            )

    def _on_rows(
        self, stream: StreamName, instance: InstanceName, token: Token, rows: Rows
    ) -> None:
        if self._done.called:
            return
        lines = self._render(stream, instance, token, rows.raw)
        if self._left is not None:
            lines = lines[: self._left]
            self._left -= len(lines)
        self._put(lines)
        if self._left == 0:
            self._end()
        self._reached((stream, instance), token)

    def _on_position(self, stream: StreamName, instance: InstanceName, token: Token) -> None:
        if self._commands and not self._done.called:
            self._put([command_line(PositionCommand(stream, instance, token, token))[:-1]])
        self._reached((stream, instance), token)

    async def _on_connected(self, client: ReplicationClient) -> None:
        """Find out whether a server that would not say so has what we follow."""
        self.connected = True
        if self._streams is None or self._checked or client.dialect == NATIVE:
            return
        self._checked = True
        try:
            await positions_of(self._reactor, self._address, self._streams)
        except ConfigError as error:
            self._refuse(error)
        except ConnectionFailed:
            self._checked = False  # asked again with the next connection

    def _refuse(self, error: Exception) -> None:
        if not self._done.called:
            if not self._answered:
                self._pending = []
            self._done.errback(error)

    def _on_command(self, command: Command) -> None:
        taken = self._client is not None and self._client.token_taken
        if isinstance(command, ErrorCommand) and is_refusal(command, token_taken=taken):
            self._refuse(refused(self._address, command.text))
        elif self._commands and not self._done.called:
            self._put([command_line(command)[:-1]], answer=False)

    def _reached(self, pair: Pair, token: Token) -> None:
        if self._goal and token >= self._goal.get(pair, token + 1):
            del self._goal[pair]
            if not self._goal:
                self._end()

    def _put(self, lines: list[bytes], *, answer: bool = True) -> None:
        """Hand on *lines*; what a server says before it has answered waits for its answer."""
        self._pending += lines
        self._answered |= answer
        if self._answered and not self._flushing:
            self._flushing = True
            self._reactor.callLater(0, self._flush)

    def _flush(self) -> None:
        """Write what one turn brought; whoever reads slowly stops our reading by it."""
        self._flushing = False
        pending, self._pending = self._pending, []
        if not pending:
            return
        pending.append(b"")
        try:
            self._write(b"\n".join(pending))
        except OSError as error:
            if self._done.called:
                self._unwritten = self._unwritten or error
            else:
                self._done.errback(error)

    def _end(self) -> None:
        if not self._done.called:
            self._done.callback(None)
