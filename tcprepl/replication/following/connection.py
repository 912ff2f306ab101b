"""One connection of a client: its transport, its session, its end (protocol.md section 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import implementer

from tcprepl import limits, metrics
from tcprepl.background import LoopingProcess, looping_background_process
from tcprepl.clocks import epoch_s
from tcprepl.errors import CloseReason, ConfigError, ConnectionFailed
from tcprepl.ids import IncarnationId, ServerName
from tcprepl.logger import get_logger
from tcprepl.protocol.client_session import ClientSession
from tcprepl.protocol.commands import (
    AuthCommand,
    AuthorizedCommand,
    Command,
    ErrorCommand,
    PingCommand,
)
from tcprepl.protocol.dialects import NATIVE, Dialect
from tcprepl.protocol.events import (
    Closing,
    CommandReceived,
    DialectChosen,
    MixedReceived,
    RowsReceived,
    RunReceived,
)
from tcprepl.protocol.grammar import SECRET_SHAPE, is_secret
from tcprepl.replication.failures import close_reason_of, lost_because
from tcprepl.replication.transport import Outlet, make_outlet

log = get_logger(__name__)

#: A token, or what reads it anew for each connection.
Token: TypeAlias = str | Callable[[], str]

#: How often the deadlines of a connection are looked at.
SWEEP_INTERVAL_S = 1.0
#: How the last ERROR begins of a server that does not take our token (protocol.md section 12.3).
AUTH_REFUSED = "AUTH: "
#: What most reads bring.
_ROWS_ONLY = {RowsReceived, RunReceived, MixedReceived}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a connection ended.

    Attributes:
        reason: Which way.
        text: In words; what the server's last ERROR said, if it said one.
        established: Whether the greeting was over: a server of ours was there.
        speaks_2017: Whether the server turned out to speak the dialect of 2017 only.
        token_taken: Whether the server took our token, or there was none to say.
    """

    reason: CloseReason
    text: str
    established: bool
    speaks_2017: bool
    token_taken: bool

    @property
    def served(self) -> bool:
        """Whether a server of ours was there for us, though it may take our token no longer."""
        return self.established and (self.token_taken or not self.text.startswith(AUTH_REFUSED))


@implementer(IProtocol)
class ClientConnection:
    """Feeds a session, hands on its events, keeps its deadlines.

    Attributes:
        lost: Fires with `Ended` when the connection is gone.
        ready: Whether the greeting is over.
        token_taken: Whether the server took our token, or there was none to say.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        make_session: Callable[[], ClientSession],
        deliver: Callable[[Sequence[object]], None],
        ready: Callable[[ClientConnection, Dialect], None],
        token: str | None = None,
    ) -> None:
        self._token = token
        self.token_taken = token is None
        self.lost: Deferred[Ended] = Deferred()
        self.ready = False
        self.transport: Any = None
        self._reactor = reactor
        self._make_session = make_session
        self._session: ClientSession = make_session()
        self._deliver = deliver
        self._on_ready = ready
        self._outlet: Outlet | None = None
        self._sweeper: LoopingProcess | None = None
        self._closing: Closing | None = None
        self._paused = False
        self._last_error = ""
        self._unknown_lines = 0

    @property
    def dialect(self) -> Dialect:
        """The dialect that is spoken."""
        return self._session.dialect

    @property
    def incarnation(self) -> IncarnationId | None:
        """The incarnation of its log that the server named; None if it named none."""
        return self._session.incarnation

    # -- IProtocol ---------------------------------------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """Introduce ourselves (Twisted calls this)."""
        self.transport = transport
        self._outlet = make_outlet(transport, self._drained)
        self._session = self._make_session()
        self._pump()
        self._sweeper = looping_background_process(
            self._reactor, "replication_client_sweep", SWEEP_INTERVAL_S, self._sweep
        )

    def connectionMade(self) -> None:
        """Do nothing: `makeConnection` did it all (Twisted never calls this itself)."""

    def dataReceived(self, data: bytes) -> None:
        """Do what *data* says (Twisted calls this)."""
        now = self._reactor.seconds()
        self._session.receive_data(data, now)
        self._take(self._session.events(now))
        self._pump()
        if self._session.unknown_lines != self._unknown_lines:
            self._count_unknown()

    def _count_unknown(self) -> None:
        """Count lines that a newer server may send; say so once for each connection."""
        if not self._unknown_lines:
            log.warning("replication.client.unknown_command", dialect=self.dialect.name)
        new = self._session.unknown_lines - self._unknown_lines
        metrics.DROPPED.labels("line", "unknown_command").inc(new)
        self._unknown_lines = self._session.unknown_lines

    def connectionLost(self, reason: Failure) -> None:
        """Say how it ended (Twisted calls this)."""
        if self._sweeper is not None:
            _ = self._sweeper.stop()
        self._session.receive_eof(self._reactor.seconds())
        closing = self._closing
        why = closing.reason if closing is not None else close_reason_of(reason)
        text = closing.text if closing is not None else self._last_error or lost_because(reason)
        established = self.ready
        self.ready = False
        self._closing = closing or Closing(why, text)  # there is nothing left to close
        self.lost.callback(
            Ended(
                reason=why,
                text=text,
                established=established,
                speaks_2017=self._session.replicate_refused,
                token_taken=self.token_taken,
            )
        )

    # -- what the session says ---------------------------------------------------------

    def _take(self, events: Sequence[object]) -> None:
        """Hand on rows and commands; keep what concerns the connection."""
        if events and set(map(type, events)) <= _ROWS_ONLY:
            self._deliver(events)
            return
        own: list[object] = []
        for event in events:
            kind = type(event)
            if kind is CommandReceived:
                command = event.command  # type: ignore[attr-defined]  # narrowed by its type
                if type(command) is AuthorizedCommand:
                    self.token_taken = True
                    continue
                if type(command) is PingCommand:
                    continue
                if type(command) is ErrorCommand:
                    self._last_error = command.text
                own.append(command)
            elif kind is DialectChosen:
                if not self.ready:
                    self.ready = True
                    self._authorize()
                    self._on_ready(self, self._session.dialect)
            elif isinstance(event, Closing):
                self._shut(event)
            else:
                own.append(event)
        if own:
            self._deliver(own)

    def _authorize(self) -> None:
        """Say our token: the server is who it has to be, and whether TLS holds is known."""
        if self._token is None:
            return
        if self._session.dialect.name == NATIVE:
            self._session.send(AuthCommand(self._token), self._reactor.seconds())
        else:
            log.warning("replication.client.token_not_said", dialect=self._session.dialect.name)

    def _shut(self, closing: Closing) -> None:
        if closing.reason is CloseReason.ABORTED:
            self.transport.abortConnection()
        elif self._closing is None:
            self._closing = closing
            self._session.close(closing.reason, "", self._reactor.seconds())
            self._pump()
            if self._paused:
                # A transport that is not read does not notice the other end's close.
                self.resume()
            assert self._outlet is not None
            self._outlet.close()

    # -- what we do --------------------------------------------------------------------

    def send(self, command: Command) -> None:
        """Send *command*."""
        if self._closing is None:
            self._session.send(command, self._reactor.seconds())
            self._pump()

    def send_all(self, commands: Iterable[Command]) -> None:
        """Send *commands* in one piece."""
        if self._closing is None:
            now = self._reactor.seconds()
            for command in commands:
                self._session.send(command, now)
            self._pump()

    def close(self, text: str) -> None:
        """Close, without an ERROR: it is we who leave."""
        if self._closing is None and self.transport is not None:
            self._shut(Closing(CloseReason.SHUTDOWN, text))

    def fail(self, text: str) -> None:
        """Close, because of an error of ours."""
        if self._closing is None and self.transport is not None:
            self._shut(Closing(CloseReason.LOCAL_ERROR, text))

    def pause(self) -> None:
        """Stop reading from the socket."""
        if not self._paused:
            self._paused = True
            self.transport.pauseProducing()

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()

    def _pump(self) -> None:
        out = self._session.data_to_send()
        if out and self._outlet is not None:
            self._outlet.write(out)

    def _drained(self) -> None:
        """Nothing waits for the socket to drain: commands are few."""

    def _sweep(self) -> None:
        now = self._reactor.seconds()
        self._session.epoch_s = epoch_s(self._reactor)
        if self._paused:
            # We do not read, so the silence is ours; the server must still hear us.
            self._session.not_reading(now)
        self._take(self._session.tick(now))
        self._pump()


class _Factory(Factory):
    noisy = False

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return self._connection


async def connect(
    reactor: IReactorTime,
    endpoint: IStreamClientEndpoint,
    *,
    worker_name: str,
    server_name: ServerName | None,
    dialect: str,
    deliver: Callable[[Sequence[object]], None],
    ready: Callable[[ClientConnection, Dialect], None],
    token: Token | None = None,
) -> ClientConnection:
    """Connect to *endpoint* and return the connection.

    Args:
        reactor: The reactor.
        endpoint: Where the server is.
        worker_name: What NAME says.
        server_name: The homeserver that SERVER has to name; None takes any.
        dialect: ``auto`` or the name of a dialect.
        deliver: Called with the events of each read.
        ready: Called once the greeting is over, with the connection and its dialect.
        token: What AUTH says before anything else; a server that is not ours does not hear it.

    Raises:
        ConnectionFailed: Nobody answered, or the token cannot be read, or is none.
    """
    try:
        said = (token() if callable(token) else token) or None
    except ConfigError as error:
        raise ConnectionFailed(str(error), reason=CloseReason.NOT_AUTHORIZED) from error
    except Exception as error:  # it is not ours
        why = f"the token cannot be read: {type(error).__name__}: {error}"
        raise ConnectionFailed(why, reason=CloseReason.NOT_AUTHORIZED) from error
    if said is not None and not (isinstance(said, str) and is_secret(said)):
        raise ConnectionFailed(
            f"the token is not {SECRET_SHAPE}, so no server has it",
            reason=CloseReason.NOT_AUTHORIZED,
        )

    def make_session() -> ClientSession:
        return ClientSession(
            reactor.seconds(),
            name=worker_name,
            server_name=server_name,
            dialect=dialect,
            epoch_s=epoch_s(reactor),
            mixes=True,
        )

    connection = ClientConnection(reactor, make_session, deliver, ready, said)
    attempt = endpoint.connect(_Factory(connection))
    try:
        await attempt.addTimeout(limits.HANDSHAKE_TIMEOUT_S, reactor)
    except (CancelledError, ConnectingCancelledError) as error:
        raise ConnectionFailed(
            "given up before there was a connection", reason=CloseReason.CONNECTION_LOST
        ) from error
    except DeferredTimeout as error:
        raise ConnectionFailed(
            f"no connection within {limits.HANDSHAKE_TIMEOUT_S:.0f} s",
            reason=CloseReason.HANDSHAKE_TIMEOUT,
        ) from error
    except Exception as error:
        raise ConnectionFailed(str(error), reason=CloseReason.CONNECTION_LOST) from error
    return connection
