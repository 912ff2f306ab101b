"""The server's end of a connection, sans-I/O (protocol.md sections 5.2 and 15.2)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from tcprepl.errors import MalformedCommand, RemoteProtocolError
from tcprepl.ids import IncarnationId, ServerName
from tcprepl.limits import MAX_LINE_BYTES, MAX_NATIVE_LINE_BYTES
from tcprepl.protocol.commands import (
    Command,
    NameCommand,
    PingCommand,
    ReplicateCommand,
    ServerCommand,
)
from tcprepl.protocol.dialects import DIALECTS, NATIVE_TAG
from tcprepl.protocol.events import DialectChosen, Event, LinesPassed, PublishRun
from tcprepl.protocol.framing import LineBuffer
from tcprepl.protocol.session import Session
from tcprepl.protocol.state import Role

#: Bytes that are cut into lines at a time: what waits to be pulled waits as bytes.
_PIECE_BYTES: Final = 4_096
#: How the lines begin that carry rows.
_LONG_WORD: Final = b"PUBLISH"
#: How a numbered PUBLISH begins, as programs write it.
_PUBLISH: Final = re.compile(rb"PUBLISH ([!-~]{1,255}) #(?=[0-9])")
#: A run of such lines has at most so many bytes and about so many rows (what fits a block of the
#: log), and begins with so many lines in so few bytes.
_RUN_BYTES: Final = 131_072
_RUN_ROWS: Final = 900
_RUN_LINES: Final = 4
_PEEK_BYTES: Final = 16_384
#: Lines without a command that one event may stand for.
MAX_PASSED: Final = 64


@lru_cache(maxsize=256)
def _separator(begin: bytes) -> re.Pattern[bytes]:
    """Return what is between the rows of lines that begin with *begin*, and has their number."""
    # A pattern that begins with a literal is searched for with the speed of memory.
    return re.compile(rb"%b([0-9]{1,18}) " % re.escape(b"\n" + begin))


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
        publishing: Whether rows may be published, and so whether a line that begins with
            PUBLISH may be as long as the native dialect's.
    """

    __slots__ = ("_bare", "_lines", "_publishing", "peer_name")

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
        publishing: bool = False,
    ) -> None:
        bare = DIALECTS["1.22" if dialect == "auto" else dialect]
        if bare.in_band_resume or not bare.over_tcp:
            raise ValueError(f"dialect {dialect} has no REPLICATE without arguments over TCP")
        super().__init__(bare, max_line_bytes, now, epoch_s, handshake_timeout_s)
        self._buffer = LineBuffer(max_line_bytes, max_long_bytes=MAX_NATIVE_LINE_BYTES)
        self.take_rows(publishing)
        self._bare = bare
        #: Lines that were cut and not pulled, the last one first.
        self._lines: list[bytes] = []
        #: What the peer calls itself.
        self.peer_name = ""
        self.send(ServerCommand(server_name), now)
        greeting = (self._ping_text(now), NATIVE_TAG, *filter(None, [incarnation]))
        self.send(PingCommand(" ".join(greeting)), now)

    def take_rows(self, publishing: bool) -> None:
        """Let lines that begin with PUBLISH be as long as the native dialect's, or not."""
        self._publishing = publishing
        self._buffer.long_word = _LONG_WORD if publishing else b""

    def refuse(self, text: str, now: float) -> None:
        """Answer the command pulled last with an ERROR: it counts as a bad line."""
        if self._open:
            try:
                self._answer(MalformedCommand(text), now)
            except RemoteProtocolError as error:
                self._events.insert(0, self._fail(error, now))

    def _read_lines(self, now: float, events: list[Event]) -> None:
        """Read up to the first command; count the lines that are passed on the way to it."""
        buffer = self._buffer
        if not (self._unread or self._lines or buffer.pending_bytes or buffer.overlong):
            return
        if self._publishing and not self._lines and (run := self._take_run(now)) is not None:
            events.append(run)
            return
        passed = 0
        while not events and passed < MAX_PASSED and (self._lines or self._cut()):
            self._line_number += 1
            self._receive_line(self._lines.pop(), self._line_number, now, events)
            passed += not events
        if passed:
            events.insert(0, LinesPassed(passed))

    def _cut(self) -> bool:
        """Cut the next piece of input into lines; return whether there are any."""
        while self._unread:
            if not self._buffer.pending_bytes and self._begins_run():
                return False  # the rest of the line comes with the next ones
            self._check_length()
            # Whole lines where there are any, so that a run may begin behind them.
            size = self._unread.rfind(b"\n", 0, _PIECE_BYTES) + 1 or self._unread.find(b"\n") + 1
            piece = self._unread[: size or None]
            self._unread = self._unread[len(piece) :]
            self._lines = self._buffer.feed(piece)
            if self._lines:
                self._lines.reverse()
                return True
        self._check_length()
        return False

    def _begins_run(self) -> bool:
        """Whether what is read is the beginning of a PUBLISH line, and not too long for one."""
        unread = self._unread
        return (
            self._publishing
            and len(unread) < _PIECE_BYTES
            and unread.startswith(_LONG_WORD)
            and b"\n" not in unread
        )

    def _take_run(self, now: float) -> PublishRun | None:
        """Take PUBLISH lines that follow one another; None where each has to be looked at.

        What is unusual about one of them is for `_receive_line` to find, and to answer.
        """
        unread = self._unread
        begin = None if self._buffer.pending_bytes else _PUBLISH.match(unread)
        if begin is None:
            return None
        lines = unread.count(b"\n" + begin[0], 0, _PEEK_BYTES)
        if lines < _RUN_LINES:
            return None
        # Lines are taken to be as long further on.
        end = unread.rfind(b"\n", 0, min(_RUN_BYTES, _PEEK_BYTES * _RUN_ROWS // lines))
        parts = _separator(begin[0]).split(b"\n" + unread[:end])
        before, numbers, rows = parts[0], parts[1::2], parts[2::2]
        together = b"".join(rows)
        if b"\n" in together:  # something else among them ends the run
            stop = next(index for index, row in enumerate(rows) if b"\n" in row)
            numbers, rows = numbers[:stop], rows[:stop]
            together = b"".join(rows)
        if before or not (numbers and all(rows)) or b"\r" in together:
            return None
        try:
            _ = together.isascii() or together.decode()
        except UnicodeDecodeError:
            return None
        size = len(together) + len(b"".join(numbers)) + len(numbers) * (len(begin[0]) + 2)
        self._unread = unread[size:]
        self._line_number += len(numbers)
        self._last_received = now
        return PublishRun(begin[1].decode(), numbers, b"\n".join((*rows, b"")))

    def _forget_input(self) -> None:
        super()._forget_input()
        self._lines.clear()

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
