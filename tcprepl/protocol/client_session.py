"""The client's end of a connection, sans-I/O (protocol.md sections 5.3 and 15.2)."""

from __future__ import annotations

from typing import Final

from tcprepl.errors import LostRow, MalformedCommand, WrongProtocol, WrongServer
from tcprepl.ids import IncarnationId, ServerName
from tcprepl.limits import HANDSHAKE_TIMEOUT_S, MAX_NATIVE_LINE_BYTES
from tcprepl.protocol.batches import BatchAssembler
from tcprepl.protocol.commands import (
    Command,
    ErrorCommand,
    NameCommand,
    PingCommand,
    PositionCommand,
    ReplicateCommand,
    ServerCommand,
)
from tcprepl.protocol.dialects import DIALECTS, NATIVE, NATIVE_TAG, Dialect
from tcprepl.protocol.display import snippet
from tcprepl.protocol.events import DialectChosen, Event
from tcprepl.protocol.foreign import recognise_line
from tcprepl.protocol.grammar import PATTERNS
from tcprepl.protocol.parsing import word_of
from tcprepl.protocol.session import Session
from tcprepl.protocol.state import Role, State

#: How a 2017 server answers a REPLICATE without arguments.
_REFUSALS: Final = ("failed to parse line", "invalid command")


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
        mixes: Whether rows of several pairs may come as `MixedReceived`.

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
        mixes: bool = False,
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
        self._batches = BatchAssembler(spoken, mixes=mixes)
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

    def events(self, now: float) -> list[Event]:
        """Return all that there is to pull, in one piece."""
        found = self._unpulled()
        found += self._read(now)  # which leaves nothing that could be read a second time
        return found

    def _read_lines(self, now: float, events: list[Event]) -> None:
        """Read all that there is: rows come in runs, and are cheap together."""
        data, self._unread = self._unread, b""
        lines = self._buffer.feed(data)
        first_line_number = self._line_number + 1
        self._line_number += len(lines)
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
        self._check_length()

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
                self._choose(DIALECTS[NATIVE if native else "1.22"], events)

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
    # Few lines are not ASCII, and only those have to be decoded.
    others = [line for line in lines if not line.isascii()]
    try:
        b"\n".join(others).decode("utf-8")
    except UnicodeDecodeError as error:
        first = others[error.object.count(b"\n", 0, error.start)]
        return next(index for index, line in enumerate(lines) if line is first)
    return len(lines)
