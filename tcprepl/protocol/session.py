"""The two ends of a connection, sans-I/O (protocol.md sections 5, 9 and 12).

A session turns bytes into events and commands into bytes, keeps the connection alive and
ends it when a rule is broken. Its adapter owns the socket: it feeds what it read, writes
`data_to_send`, keeps one timer on `next_deadline`, and closes after a `Closing` event.
Times are seconds of one clock that never goes back; *epoch_s* is what to add to them to get
seconds since 1970.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Final

from tcprepl.errors import (
    BadEncoding,
    CloseReason,
    LineTooLong,
    LocalProtocolError,
    LostRow,
    MalformedCommand,
    RemoteProtocolError,
    TooManyErrors,
    UnexpectedCommand,
    UnknownCommand,
    WrongProtocol,
    WrongServer,
)
from tcprepl.ids import IncarnationId, ServerName
from tcprepl.limits import (
    CLOSE_TIMEOUT_S,
    HANDSHAKE_TIMEOUT_S,
    MAX_BAD_LINES,
    MAX_LINE_BYTES,
    MAX_NATIVE_LINE_BYTES,
    PING_INTERVAL_S,
    PING_TIMEOUT_S,
)
from tcprepl.protocol.batches import BatchAssembler
from tcprepl.protocol.codec import parse_line, printable, serialize, snippet, word_of
from tcprepl.protocol.commands import (
    COMMANDS,
    Command,
    ErrorCommand,
    NameCommand,
    PingCommand,
    PositionCommand,
    ReplicateCommand,
    ServerCommand,
)
from tcprepl.protocol.dialects import DIALECTS, NATIVE_TAG, Dialect
from tcprepl.protocol.events import (
    Closing,
    CommandReceived,
    DialectChosen,
    Event,
    RowsReceived,
    RunReceived,
)
from tcprepl.protocol.foreign import Foreign, recognise_line, recognise_start
from tcprepl.protocol.framing import LineBuffer
from tcprepl.protocol.grammar import PATTERNS
from tcprepl.protocol.state import TRANSITIONS, Role, State, Way

__all__ = [
    "ClientSession",
    "Closing",
    "CommandReceived",
    "DialectChosen",
    "Event",
    "RowsReceived",
    "RunReceived",
    "ServerSession",
    "Session",
]

#: Characters that an ERROR is cut to.
_ERROR_CHARS: Final = 1_000
#: How a 2017 server answers a REPLICATE without arguments.
_REFUSALS: Final = ("failed to parse line", "invalid command")


class Session(ABC):
    """What both ends share; use `ServerSession` or `ClientSession`.

    After a `Closing` event, or `close`, input is ignored and nothing but what
    `data_to_send` still holds goes out.

    Attributes:
        role: Which end this is.
        state: Where the connection is in its life.
        dialect: The dialect spoken; until it is chosen, the one that is assumed.
        dialect_chosen: Whether it was chosen.
        close_reason: The first reason to end the connection; None while it goes on.
        close_text: What was said about it.
        bad_lines: Lines that were answered with an ERROR.
    """

    role: ClassVar[Role]

    def __init__(
        self,
        dialect: Dialect,
        max_line_bytes: int,
        now: float,
        epoch_s: float,
        handshake_timeout_s: float | None,
    ) -> None:
        self.state = State.CONNECTED
        self.dialect = dialect
        self.dialect_chosen = False
        self.close_reason: CloseReason | None = None
        self.close_text = ""
        self.bad_lines = 0
        self._buffer = LineBuffer(max_line_bytes)
        self._out: list[bytes] = []
        self._epoch_s = epoch_s
        self._line_number = 0
        self._began = False
        self._last_sent = now
        self._last_received = now
        self._armed = False
        self._handshake_timeout_s = handshake_timeout_s
        self._handshake_deadline = (
            None if handshake_timeout_s is None else now + handshake_timeout_s
        )
        self._close_deadline = now

    # -- in ------------------------------------------------------------------------------

    def receive_data(self, data: bytes, now: float) -> list[Event]:
        """Return everything that *data* meant; bound the size of a read to bound the answer."""
        events: list[Event] = []
        if not self._open or not data:
            return events
        try:
            if not self._began:
                self._began = True
                self._refuse(recognise_start(data[0], self.role))
            lines = self._buffer.feed(data)
            first_line_number = self._line_number + 1
            try:
                self._receive_lines(lines, data, now, events)
            finally:
                self._line_number = first_line_number + len(lines) - 1
            if self._open and self._buffer.overlong is not None:
                word = word_of(self._buffer.overlong)
                raise LineTooLong(
                    f"{f'{word}: ' if word else ''}the line is longer than "
                    f"{self._buffer.max_line_bytes} bytes",
                    line_number=self._line_number + 1,
                )
        except RemoteProtocolError as error:
            self._fail(error, now, events)
        return events

    def receive_eof(self, now: float, reason: CloseReason = CloseReason.PEER_CLOSED) -> list[Event]:
        """Note that the connection is gone; *reason* tells an orderly end from a failure."""
        events: list[Event] = []
        if self._open:
            self.close_reason = reason
            events.append(Closing(reason, ""))
        self._incident("eof")
        self._out.clear()
        return events

    def _receive_lines(
        self, lines: list[bytes], data: bytes, now: float, events: list[Event]
    ) -> None:
        first_line_number = self._line_number + 1
        for index, line in enumerate(lines):
            self._receive_line(line, first_line_number + index, now, events)

    def _receive_line(self, line: bytes, line_number: int, now: float, events: list[Event]) -> None:
        """Receive one line; raise what ends the connection, answer what does not."""
        if not line.strip(b" "):
            return
        try:
            command = self._parse(line)
            self._receive_command(command, now, events)
        except RemoteProtocolError as error:
            error.line_number = line_number
            if error.close_reason is not None:
                raise
            self.bad_lines += 1
            if self.bad_lines >= MAX_BAD_LINES:
                raise TooManyErrors(
                    f"{MAX_BAD_LINES} bad lines are enough; the last: {error.text}",
                    snippet=error.snippet,
                    line_number=line_number,
                ) from error
            self._write(ErrorCommand(printable(error.wire_text)[:_ERROR_CHARS]), now)

    def _parse(self, line: bytes) -> Command:
        """Return the command of *line* if it is legal here."""
        word = word_of(line)
        if word is not None and self._next_state(Way.RECEIVED, word) is None:
            raise UnexpectedCommand(self._unexpected(word), snippet=word)
        try:
            return parse_line(line, self.dialect)
        except (UnknownCommand, BadEncoding):
            self._refuse(recognise_line(line, self.role))
            raise

    def _unexpected(self, word: str) -> str:
        if self.role.peer not in COMMANDS[word].sent_by:
            return f"{word} is for a {self.role.value} to send, not for a {self.role.peer.value}"
        if self.state is State.CONNECTED:
            return f"{word} before SERVER; the first line of a server is SERVER <server name>"
        return f"{word} a second time"

    def _receive_command(self, command: Command, now: float, events: list[Event]) -> None:
        """Act on a legal command and tell the adapter."""
        self._advance(Way.RECEIVED, command.NAME)
        self._last_received = now
        if isinstance(command, PingCommand):
            self._armed = True
        events.append(CommandReceived(command))

    def _refuse(self, foreign: Foreign | None) -> None:
        if foreign is not None:
            raise _ForeignProtocolError(foreign)

    def _fail(self, error: RemoteProtocolError, now: float, events: list[Event]) -> None:
        reason = error.close_reason
        assert reason is not None, "an error that lets the connection live is answered earlier"
        text = printable(error.wire_text)[:_ERROR_CHARS]
        answer = error.answer if isinstance(error, _ForeignProtocolError) else None
        if answer is None:
            self.close(reason, text, now)
        else:
            self.close(reason, "", now)
            self.close_text = text
            self._out.append(answer)
        events.append(Closing(reason, text))

    @property
    def pinged(self) -> bool:
        """Whether the peer has sent PING: programs do at once, people hardly ever."""
        return self._armed

    # -- out -----------------------------------------------------------------------------

    def send(self, command: Command, now: float) -> None:
        """Queue *command*.

        Raises:
            LocalProtocolError: It is not ours to send, not now, or not in this dialect, or
                the line would be longer than the peer accepts.
        """
        if self._next_state(Way.SENT, command.NAME) is None:
            raise LocalProtocolError(
                f"a {self.role.value} cannot send {command.NAME} while {self.state.value}"
            )
        self._write(command, now)
        self._advance(Way.SENT, command.NAME)

    def sent_elsewhere(self, now: float) -> None:
        """Note that the adapter wrote whole lines past this session."""
        self._last_sent = now

    def not_reading(self, now: float) -> None:
        """Note that the adapter has stopped reading: silence is not the peer's fault."""
        self._last_received = now

    def data_to_send(self) -> bytes:
        """Return what has to be written, and forget it."""
        out = b"".join(self._out)
        self._out.clear()
        return out

    def close(self, reason: CloseReason, text: str, now: float) -> None:
        """Begin the end: queue ERROR with *text*, unless it is empty, and ignore all input."""
        if not self._open:
            return
        if text:
            self._write(ErrorCommand(printable(text)[:_ERROR_CHARS]), now)
        self.close_reason = reason
        self.close_text = text
        self._close_deadline = now + CLOSE_TIMEOUT_S
        self._incident("close")

    def _write(self, command: Command, now: float) -> None:
        self._out.append(serialize(command, self.dialect))
        self._last_sent = now

    def _ping_text(self, now: float) -> str:
        return str(int((now + self._epoch_s) * 1000))

    # -- time ----------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Return when `tick` has to be called at the latest; None for never."""
        if self.state is State.CLOSED:
            return None
        if self.state is State.CLOSING:
            return self._close_deadline
        deadline = self._last_sent + PING_INTERVAL_S
        if self._armed:
            deadline = min(deadline, self._last_received + PING_TIMEOUT_S)
        if self._handshake_deadline is not None:
            deadline = min(deadline, self._handshake_deadline)
        return deadline

    def tick(self, now: float) -> list[Event]:
        """Do what is due at *now*: keep alive, give up on the silent, abort the stuck."""
        events: list[Event] = []
        if self.state is State.CLOSING:
            if now >= self._close_deadline:
                self._incident("abort")
                events.append(Closing(CloseReason.ABORTED, self.close_text))
            return events
        if self.state is State.CLOSED:
            return events
        if self._armed and now >= self._last_received + PING_TIMEOUT_S:
            text = f"ping timeout: nothing came for {PING_TIMEOUT_S:g} seconds"
            self.close(CloseReason.PING_TIMEOUT, text, now)
            events.append(Closing(CloseReason.PING_TIMEOUT, text))
        elif self._handshake_deadline is not None and now >= self._handshake_deadline:
            waited = self._handshake_timeout_s
            text = f"handshake timeout: no {self._awaited()} in {waited:g} seconds"
            self.close(CloseReason.HANDSHAKE_TIMEOUT, text, now)
            events.append(Closing(CloseReason.HANDSHAKE_TIMEOUT, text))
        elif now >= self._last_sent + PING_INTERVAL_S:
            self._write(PingCommand(self._ping_text(now)), now)
        return events

    @abstractmethod
    def _awaited(self) -> str:
        """Return what the handshake waits for."""

    # -- state ---------------------------------------------------------------------------

    @property
    def _open(self) -> bool:
        return self.state is not State.CLOSING and self.state is not State.CLOSED

    def _next_state(self, way: Way, word: str) -> State | None:
        return TRANSITIONS.get((self.role, self.state, way, word))

    def _advance(self, way: Way, word: str) -> None:
        self.state = TRANSITIONS[self.role, self.state, way, word]

    def _incident(self, word: str) -> None:
        state = self._next_state(Way.INCIDENT, word)
        if state is not None:
            self.state = state


class _ForeignProtocolError(WrongProtocol):
    """Another protocol, and how to answer it in its own words."""

    def __init__(self, foreign: Foreign) -> None:
        super().__init__(foreign.text)
        self.answer = foreign.answer


class ServerSession(Session):
    """The server's end: greets, learns the dialect from the first REPLICATE.

    Args:
        server_name: Name of the homeserver, for SERVER.
        now: The time.
        incarnation: The incarnation of the log, for the first PING; None says none.
        dialect: What a REPLICATE without arguments means; ``auto`` is ``1.22``.
        epoch_s: What to add to *now* to get seconds since 1970.
        max_line_bytes: Longest line taken, delimiter excluded.
        handshake_timeout_s: Close a connection that asked for nothing in this time; None,
            the default, lets a person think.
    """

    role = Role.SERVER

    def __init__(
        self,
        server_name: ServerName,
        now: float,
        *,
        incarnation: IncarnationId | None = None,
        dialect: str = "auto",
        epoch_s: float = 0.0,
        max_line_bytes: int = MAX_LINE_BYTES,
        handshake_timeout_s: float | None = None,
    ) -> None:
        bare = DIALECTS["1.22" if dialect == "auto" else dialect]
        if bare.in_band_resume or not bare.over_tcp:
            raise ValueError(f"dialect {dialect} has no REPLICATE without arguments over TCP")
        super().__init__(bare, max_line_bytes, now, epoch_s, handshake_timeout_s)
        self._bare = bare
        #: What the peer calls itself.
        self.peer_name = ""
        self.send(ServerCommand(server_name), now)
        greeting = (self._ping_text(now), NATIVE_TAG, *filter(None, [incarnation]))
        self.send(PingCommand(" ".join(greeting)), now)

    def _receive_command(self, command: Command, now: float, events: list[Event]) -> None:
        if isinstance(command, ReplicateCommand):
            self._choose(command, events)
        elif isinstance(command, NameCommand):
            self.peer_name = command.name
        super()._receive_command(command, now, events)

    def _choose(self, command: ReplicateCommand, events: list[Event]) -> None:
        """Learn the dialect from the first REPLICATE; hold later ones to it."""
        if command.stream is None:
            asked = self._bare
        else:
            asked = DIALECTS["2017" if command.instance is None else "tcprepl"]
        if not self.dialect_chosen:
            self.dialect = asked
            self.dialect_chosen = True
            self._handshake_deadline = None
            events.append(DialectChosen(asked))
        elif self.dialect is not asked:
            raise MalformedCommand(
                f"REPLICATE: this is the form of dialect {asked.name}, and the first REPLICATE "
                f"of this connection chose dialect {self.dialect.name}"
            )

    def _awaited(self) -> str:
        return "REPLICATE"


class ClientSession(Session):
    """The client's end: names itself, checks the server, assembles batches.

    Args:
        now: The time.
        name: What to call us, for NAME; None sends none.
        server_name: The homeserver that has to be there; None takes any.
        dialect: ``auto`` learns it from the greeting; else the name of a dialect.
        epoch_s: What to add to *now* to get seconds since 1970.
        max_line_bytes: Longest line taken, delimiter excluded.
        handshake_timeout_s: How long to wait for the greeting.

    Attributes:
        server_name: What SERVER said; None before it.
        incarnation: Which incarnation of its log the greeting named; None if it named none.
        replicate_refused: Whether the server answered a bare REPLICATE with the ERROR of a
            2017 server, before any POSITION: reconnect, and speak ``2017``.
        unknown_lines: Lines with a word that this release does not know, passed over: a
            newer server may have more to say.
    """

    role = Role.CLIENT

    def __init__(
        self,
        now: float,
        *,
        name: str | None = None,
        server_name: ServerName | None = None,
        dialect: str = "auto",
        epoch_s: float = 0.0,
        max_line_bytes: int = MAX_NATIVE_LINE_BYTES,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ) -> None:
        spoken = DIALECTS["1.22" if dialect == "auto" else dialect]
        if not spoken.over_tcp:
            raise ValueError(f"dialect {dialect} is not spoken over TCP")
        super().__init__(spoken, max_line_bytes, now, epoch_s, handshake_timeout_s)
        self._auto = dialect == "auto"
        self._expected_server = server_name
        self.server_name: ServerName | None = None
        self.incarnation: IncarnationId | None = None
        self.replicate_refused = False
        self.unknown_lines = 0
        self._awaiting_answer = False
        self._batches = BatchAssembler(spoken)
        if name is not None:
            self.send(NameCommand(name), now)
        self.send(PingCommand(self._ping_text(now)), now)

    @property
    def dropped_rows(self) -> int:
        """Rows that did not count: not announced by POSITION, or of a batch cut off by one."""
        return self._batches.dropped_rows

    @property
    def held_rows(self) -> int:
        """Rows held back until their batch is whole."""
        return self._batches.held_rows

    def send(self, command: Command, now: float) -> None:
        """Queue *command*, as `Session.send` does; REPLICATE also starts its stream anew."""
        super().send(command, now)
        if isinstance(command, ReplicateCommand):
            self._batches.replicate(command.stream)
            self._awaiting_answer = command.stream is None

    def _receive_lines(
        self, lines: list[bytes], data: bytes, now: float, events: list[Event]
    ) -> None:
        first_line_number = self._line_number + 1
        valid = len(lines)
        if lines and not (data.isascii() and lines[0].isascii()):
            valid = _valid_lines(lines)
        # The rows of the lines that are UTF-8 take the fast way; the line after them ends it.
        good = lines if valid == len(lines) else lines[:valid]
        index = 0
        while index < valid:
            line = good[index]
            if self._takes_rows and line[:6].upper() == b"RDATA ":
                good[index] = b"RDATA " + line[6:]
                self._choose_late(events)
                index = self._batches.read(good, index, first_line_number, events)
                self._last_received = now
            else:
                self._receive_line(line, first_line_number + index, now, events)
                index += 1
        if valid < len(lines):
            self._receive_line(lines[valid], first_line_number + valid, now, events)

    def _receive_line(self, line: bytes, line_number: int, now: float, events: list[Event]) -> None:
        if self._takes_rows and line.strip(b" ") and word_of(line) is None and _valid_lines([line]):
            self.unknown_lines += 1
            self._last_received = now
            return
        super()._receive_line(line, line_number, now, events)

    @property
    def _takes_rows(self) -> bool:
        return self.state is State.GREETED or self.state is State.REPLICATING

    def _parse(self, line: bytes) -> Command:
        if self.state is State.CONNECTED and word_of(line) is None:
            self._refuse(recognise_line(line, self.role))
            raise WrongProtocol(
                f'"{snippet(line)}" is no line of a replication server, '
                "which begins with SERVER <server name>",
                snippet=snippet(line),
            )
        try:
            return super()._parse(line)
        except MalformedCommand as error:
            word = word_of(line)
            if word == "POSITION":
                raise LostRow(error.text, snippet=error.snippet) from error
            if word == "SERVER":
                raise WrongServer(error.text, snippet=error.snippet) from error
            raise

    def _receive_command(self, command: Command, now: float, events: list[Event]) -> None:
        match command:
            case ServerCommand(server_name):
                self._check_server(server_name)
            case PositionCommand():
                self._receive_position(command, events)
            case PingCommand(text) if self.incarnation is None:
                self.incarnation = _incarnation(text)
            case ErrorCommand(text) if self._awaiting_answer:
                self.replicate_refused |= any(refusal in text for refusal in _REFUSALS)
        super()._receive_command(command, now, events)
        match command:
            case ServerCommand() if not self._auto:
                self._choose(self.dialect, events)
            case PingCommand(text) if self._auto and not self.dialect_chosen:
                native = NATIVE_TAG in text.split()
                self._choose(DIALECTS["tcprepl" if native else "1.22"], events)

    def _receive_position(self, command: PositionCommand, events: list[Event]) -> None:
        self._awaiting_answer = False
        self._choose_late(events)
        if self._auto and command.prev is None and self.dialect.position_tokens == 2:
            self._choose(DIALECTS["1.13"], events)
        self._batches.position(command, events, 0)

    def _check_server(self, server_name: ServerName) -> None:
        if self._expected_server not in (None, server_name):
            raise WrongServer(
                f'Wrong remote: the server is "{snippet(server_name)}", '
                f'expected "{snippet(str(self._expected_server))}"',
                snippet=snippet(server_name),
            )
        self.server_name = server_name

    def _choose(self, dialect: Dialect, events: list[Event]) -> None:
        self.dialect = dialect
        self.dialect_chosen = True
        self._batches.dialect = dialect
        self._handshake_deadline = None
        events.append(DialectChosen(dialect))

    def _choose_late(self, events: list[Event]) -> None:
        """A server that sends rows before any PING is no tcprepl."""
        if not self.dialect_chosen:
            self._choose(self.dialect, events)

    def _awaited(self) -> str:
        return "SERVER" if self.state is State.CONNECTED else "PING"


def _incarnation(text: str) -> IncarnationId | None:
    """Return the incarnation that the first PING of a tcprepl server names."""
    _, _, said = f" {text} ".partition(f" {NATIVE_TAG} ")
    name = said.partition(" ")[0]
    return name if PATTERNS["name"].fullmatch(name) else None


def _valid_lines(lines: list[bytes]) -> int:
    """Return how many of *lines*, from the first on, are UTF-8."""
    joined = b"\n".join(lines)
    try:
        joined.decode("utf-8")
    except UnicodeDecodeError as error:
        return joined.count(b"\n", 0, error.start)
    return len(lines)
