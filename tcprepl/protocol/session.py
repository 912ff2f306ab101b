"""What both ends of a connection share, sans-I/O (protocol.md sections 5, 9 and 12).

A session turns bytes into events and commands into bytes, keeps the connection alive and
ends it when a rule is broken. Its adapter owns the socket: it feeds what it read to
`receive_data`, pulls what that meant with `next_event` until there is no more, writes
`data_to_send`, keeps one timer on `next_deadline`, and closes after a `Closing` event. An
adapter that cannot go on stops pulling: the rest waits, as bytes.

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
    RemoteProtocolError,
    TooManyErrors,
    UnexpectedCommand,
    UnknownCommand,
    WrongProtocol,
)
from tcprepl.limits import CLOSE_TIMEOUT_S, MAX_BAD_LINES, PING_INTERVAL_S, PING_TIMEOUT_S
from tcprepl.protocol.commands import Command, ErrorCommand, PingCommand, ProducerCommand
from tcprepl.protocol.dialects import Dialect
from tcprepl.protocol.display import printable
from tcprepl.protocol.events import ClaimUnread, Closing, CommandReceived, Event
from tcprepl.protocol.foreign import Foreign, recognise_line, recognise_start
from tcprepl.protocol.framing import LineBuffer
from tcprepl.protocol.parsing import parse_line, word_of
from tcprepl.protocol.serializing import ping_line, serialize
from tcprepl.protocol.specs import COMMANDS
from tcprepl.protocol.state import TRANSITIONS, Role, State, Way

#: What an ERROR ends with that is the last line.
ENDS_CONNECTION: Final = "; this ends the connection"
#: Characters that an ERROR is cut to, but for that.
_ERROR_CHARS: Final = 1_000


class Session(ABC):
    """What both ends share: see `tcprepl.protocol.server_session` and `client_session`.

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

    __slots__ = (
        "_armed",
        "_began",
        "_buffer",
        "_close_deadline",
        "_events",
        "_handshake_deadline",
        "_handshake_timeout_s",
        "_last_received",
        "_last_sent",
        "_line_number",
        "_out",
        "_unread",
        "bad_lines",
        "close_reason",
        "close_text",
        "dialect",
        "dialect_chosen",
        "epoch_s",
        "state",
    )

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
        self._unread = b""
        #: What was read and not pulled, the last one first (an empty deque takes 760 bytes).
        self._events: list[Event] = []
        self._out: list[bytes] = []
        #: What to add to *now* to get seconds since 1970; may be put right at any time.
        self.epoch_s = epoch_s
        self._line_number = 0
        self._began = False
        self._last_sent = now
        self._last_received = now
        self._armed = False
        self._handshake_timeout_s = handshake_timeout_s
        self._handshake_deadline = (
            None if handshake_timeout_s is None else now + handshake_timeout_s
        )
        #: There is one once it closes.
        self._close_deadline: float

    # -- in ------------------------------------------------------------------------------

    def receive_data(self, data: bytes, now: float) -> None:
        """Take what was read; `next_event` tells what it meant."""
        if self._open:
            self._unread = self._unread + data if self._unread else data

    def next_event(self, now: float) -> Event | None:
        """Return what came next; None when more has to be read first.

        What is read from the peer changes nothing before it is pulled: neither the state,
        nor what there is to send. So answers come in the order of the questions, and a
        session from which nobody pulls keeps bytes and does no work.
        """
        if not self._events:
            self._events = self._read(now)[::-1]
        return self._events.pop() if self._events else None

    def events(self, now: float) -> list[Event]:
        """Return all that there is to pull, in one piece."""
        found = self._unpulled()
        while more := self._read(now):
            found += more
        return found

    def _unpulled(self) -> list[Event]:
        """Return what was read and not pulled, which is pulled then."""
        found, self._events = self._events[::-1], []
        return found

    def _read(self, now: float) -> list[Event]:
        """Return the events of the next lines; none when more has to be read first."""
        events: list[Event] = []
        if self._open:
            try:
                if self._unread and not self._began:
                    self._began = True
                    self._refuse(recognise_start(self._unread[0], self.role))
                self._read_lines(now, events)
            except RemoteProtocolError as error:
                events.append(self._fail(error, now))
        return events

    @abstractmethod
    def _read_lines(self, now: float, events: list[Event]) -> None:
        """Read on, at least until there is an event or no whole line is left."""

    def _check_length(self) -> None:
        """Raise if the line that comes next is longer than the limit, ended or not."""
        overlong = self._buffer.overlong
        if overlong is not None:
            word = word_of(overlong)
            raise LineTooLong(
                f"{f'{word}: ' if word else ''}the line is longer than {len(overlong)} bytes",
                line_number=self._line_number + 1,
            )

    def receive_eof(self, now: float, reason: CloseReason = CloseReason.PEER_CLOSED) -> list[Event]:
        """Note that the connection is gone; *reason* tells an orderly end from a failure."""
        events: list[Event] = []
        if self._open:
            self.close_reason = reason
            events.append(Closing(reason, ""))
        self._forget_input()
        self._incident("eof")
        self._out.clear()
        return events

    def _forget_input(self) -> None:
        """Throw away what was read and not pulled."""
        self._unread = b""

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
            self._answer(error, now)
            if self.role is Role.SERVER and word_of(line) == ProducerCommand.NAME:
                events.append(ClaimUnread())

    def _answer(self, error: RemoteProtocolError, now: float) -> None:
        """Answer a bad line with ERROR; raise when there have been too many."""
        self.bad_lines += 1
        if self.bad_lines >= MAX_BAD_LINES:
            raise TooManyErrors(
                f"{MAX_BAD_LINES} bad lines are enough; the last: {error.text}",
                snippet=error.snippet,
                line_number=error.line_number,
            ) from error
        self._write(ErrorCommand(_shown(error)), now)

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

    def _fail(self, error: RemoteProtocolError, now: float) -> Closing:
        """End the connection for *error*; return the event that says so."""
        reason = error.close_reason
        assert reason is not None, "an error that lets the connection live is answered earlier"
        text = _shown(error)
        answer = error.answer if isinstance(error, _ForeignProtocolError) else None
        self.close(reason, f"{text}{ENDS_CONNECTION}" if answer is None else "", now)
        self.close_text = text
        if answer is not None:
            self._out.append(answer)
        return Closing(reason, text)

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

    def send_lines(self, lines: bytes, now: float) -> None:
        """Queue whole lines that are as they have to be, and change no state."""
        self._out.append(lines)
        self._last_sent = now

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
        self._forget_input()
        if text:
            self._write(ErrorCommand(printable(text)[: _ERROR_CHARS + len(ENDS_CONNECTION)]), now)
        self.close_reason = reason
        self.close_text = text
        self._close_deadline = now + CLOSE_TIMEOUT_S
        self._incident("close")

    def _write(self, command: Command, now: float) -> None:
        self._out.append(serialize(command, self.dialect))
        self._last_sent = now

    def _ping_text(self, now: float) -> str:
        return str(self._wall_ms(now))

    def _wall_ms(self, now: float) -> int:
        return int((now + self.epoch_s) * 1000)

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
            awaited = self._awaited()
            text = f"handshake timeout: no {awaited} in {waited:g} seconds"
            if awaited == "SERVER":  # every server of ours, and every Synapse, says it at once
                text += "; is this the port of the line protocol?"
            self.close(CloseReason.HANDSHAKE_TIMEOUT, text, now)
            events.append(Closing(CloseReason.HANDSHAKE_TIMEOUT, text))
        elif now >= self._last_sent + PING_INTERVAL_S:
            self.send_lines(ping_line(self._wall_ms(now)), now)
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


def _shown(error: RemoteProtocolError) -> str:
    return printable(error.wire_text)[:_ERROR_CHARS]


class _ForeignProtocolError(WrongProtocol):
    """Another protocol, and how to answer it in its own words."""

    def __init__(self, foreign: Foreign) -> None:
        super().__init__(foreign.text)
        self.answer = foreign.answer
