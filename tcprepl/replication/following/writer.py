"""Publishing to a server from another process, each row once (protocol.md sections 6.17 and 7.12).

`ReplicationWriter` is a Twisted service. It claims a producer's name, numbers what it is given,
sends it without waiting for answers, and says again what was not answered when the connection was
cut or the server restarted: nothing is lost, and nothing is appended twice.
"""

from __future__ import annotations

import codecs
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Final

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint

from tcprepl import limits
from tcprepl.errors import CloseReason, ConnectionFailed, LogUnavailable, PublishRefused
from tcprepl.ids import InstanceName, ProducerName, ServerName, StreamName
from tcprepl.logger import get_logger
from tcprepl.protocol.commands import (
    Command,
    ErrorCommand,
    ProducerCommand,
    PublishBatchCommand,
    PublishCommand,
    PublishedCommand,
    PublishRowsCommand,
    Reason,
    RefusedCommand,
)
from tcprepl.protocol.dialects import NATIVE, Dialect
from tcprepl.protocol.grammar import is_instance_name, is_name
from tcprepl.replication.following.connection import Ended
from tcprepl.replication.following.connection import Token as AccessToken
from tcprepl.replication.following.reconnecting import Reconnecting
from tcprepl.streams.json_rows import is_json
from tcprepl.streams.log import Appended

log = get_logger(__name__)

#: Appends, and bytes of rows, that a writer holds until they are answered, by default.
MAX_HELD_APPENDS: Final = 2 * limits.MAX_UNANSWERED_APPENDS
MAX_HELD_BYTES: Final = 4 * limits.MAX_UNANSWERED_BYTES
#: The server may take the same rows later.
_PASSING: Final = frozenset({Reason.UNAVAILABLE.value, Reason.HOLE.value})
#: These rows will not do; others may.
_OF_THE_ROWS: Final = frozenset(
    {Reason.ROW.value, Reason.STREAM.value, Reason.OLD.value, Reason.DENIED.value}
)


#: What may stand around a value of JSON, and at the end of a line would not be its own.
_BLANKS: Final = b" \t\r"


def _fault_in(rows: Sequence[object], *, joined: bool) -> tuple[int, str] | None:
    """Return which of *rows* cannot be said on a line as a row of its own, and why; or None.

    Whether it fits its stream the server knows; and whether it is JSON, unless they are *joined*
    to an array.
    """
    if not rows:
        return 0, "there are none; expected one or more"
    for number, row in enumerate(rows):
        if not isinstance(row, bytes):
            return number, f"it is of type {type(row).__name__}; expected JSON as bytes"
        if not row.isascii():
            try:
                row.decode()
            except UnicodeDecodeError as error:
                return number, f"not UTF-8 at byte {error.start + 1}"
            if row.startswith(codecs.BOM_UTF8):
                return number, "it begins with a byte order mark; expected JSON without"
        if not row.strip(_BLANKS):
            return number, "it is empty; expected JSON"
        if joined and not is_json(row):  # it could be more rows than one, or part of one
            return number, "it is not one value of JSON"
    return None


class _Append:
    """What one call publishes."""

    __slots__ = ("answered", "command", "number")

    def __init__(self, command: PublishCommand) -> None:
        self.command = command
        self.answered: Deferred[Appended] = Deferred()
        self.number = 0


class ReplicationWriter(Reconnecting):
    """Publishes to a server for as long as the service runs.

    Invariant: an append whose Deferred has fired with tokens is in the log once; what has not fired
    is held here, in the order of the calls, and is in the log once or not at all.

    A process that is killed forgets what it held. One that has to know what became of it chooses a
    *producer* name of its own, makes its appends in an order that it can find again, and goes on
    after the number that `claimed` tells: so many appends were taken under the name.

    Args:
        reactor: The reactor; it measures time evenly from now on (`tcprepl.clocks`).
        endpoint: Where the server is.
        producer: The name under which appends are numbered; by default one that nobody has. Whoever
            had it before is fenced.
        name: How the server is to call us.
        server_name: The homeserver that it has to be; None takes any.
        token: What the server asks for, or what reads it anew for each connection.
        max_held_appends: Appends that are held until they are answered.
        max_held_bytes: Bytes of their rows.

    Attributes:
        claimed: Fires with the number of the last append that was taken under the name, once the
            server has told it for the first time.
        failed: Fires with the failure if the writer cannot go on: it was fenced, or the server
            takes no rows. All that is held fails with the same.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        endpoint: IStreamClientEndpoint,
        *,
        producer: ProducerName | None = None,
        name: str = "tcprepl",
        server_name: ServerName | None = None,
        token: AccessToken | None = None,
        max_held_appends: int = MAX_HELD_APPENDS,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        if producer is not None and not is_name(producer):
            raise ValueError(f"{producer!r} can be no name of a producer")
        super().__init__(
            reactor, endpoint, "writer", name=name, server_name=server_name, token=token
        )
        self.claimed: Deferred[int] = Deferred()
        self.failed: Deferred[None] = Deferred()
        self._producer = producer or f"writer-{uuid.uuid4()}"
        self._max_held_appends = max_held_appends
        self._max_held_bytes = max_held_bytes
        self._epoch: int | None = None
        self._next_number = 1
        #: Has a number and was sent, on this connection or an earlier one; the rest has not.
        self._sent: deque[_Append] = deque()
        self._unsent: deque[_Append] = deque()
        self._sent_bytes = 0
        self._held_bytes = 0
        #: Answers to come that say of appends behind a refused one that they leave a hole.
        self._holes = 0
        self._room: list[Deferred[None]] = []
        self._ready = False
        self._sending: IDelayedCall | None = None
        self._failure: Exception | None = None

    # -- what callers do -----------------------------------------------------------------------

    def publish(
        self,
        stream: StreamName,
        rows: Sequence[bytes],
        *,
        batch: bool = False,
        instance: InstanceName | None = None,
    ) -> Deferred[Appended]:
        """Append rows, all of them or none; fires with their tokens once they are safe.

        May be called before the service starts, and while there is no connection.

        Args:
            stream: Name of the stream.
            rows: Each as JSON, in bytes; at least one, and together no longer than a line (1 MiB).
            batch: Whether all rows share one token.
            instance: The writing instance, if it is another than the server's own.

        Raises:
            PublishRefused: (in the Deferred) the server does not take these rows, or could not be
                told them; the reason says what is wrong. Those behind them are not concerned.
            LogUnavailable: (in the Deferred) so much is held that no more can be, see `when_room`;
                or the service was stopped before the server answered.
        """
        if self._failure is not None:
            return fail(self._failure)
        if self.full:
            return fail(LogUnavailable("the writer holds all that it may: wait for when_room()"))
        alone = len(rows) == 1 and not batch
        if (fault := _fault_in(rows, joined=not alone)) is not None:
            number, text = fault
            return fail(PublishRefused(stream, Reason.ROW.value, number, text))
        kind: type[PublishCommand] = PublishBatchCommand if batch else PublishRowsCommand
        if alone:
            command = PublishCommand(stream, rows[0].strip(_BLANKS), instance)
        else:
            command = kind(stream, b"[%b]" % b",".join(rows), instance)
        if len(command.rows) > limits.MAX_ROW_BYTES or b"\n" in command.rows:
            text = f"expected one line of at most {limits.MAX_ROW_BYTES} bytes"
            return fail(PublishRefused(stream, Reason.ROW.value, 0, text))
        if not is_name(stream) or not (instance is None or is_instance_name(instance)):
            text = f"{stream!r} or {instance!r} can be no name of a stream or an instance"
            return fail(PublishRefused(stream, Reason.STREAM.value, 0, text))
        append = _Append(command)
        self._unsent.append(append)
        self._held_bytes += len(command.rows)
        self._send_soon()
        return append.answered

    @property
    def connected(self) -> bool:
        """Whether a connection is up on which the server has answered."""
        return self._ready

    @property
    def held(self) -> int:
        """How many appends are held until they are answered."""
        return len(self._sent) + len(self._unsent)

    @property
    def full(self) -> bool:
        """Whether so much is held that `publish` takes no more."""
        return self.held >= self._max_held_appends or self._held_bytes >= self._max_held_bytes

    def when_room(self) -> Deferred[None]:
        """Return what fires once `publish` takes more, or never will: at once, or later."""
        room: Deferred[None] = Deferred()
        self._room.append(room)
        self._tell_room()
        return room

    def _tell_room(self) -> None:
        while self._room and (not self.full or self._failure is not None):
            self._room.pop(0).callback(None)

    # -- life ----------------------------------------------------------------------------------

    def _goes_on(self) -> bool:
        return super()._goes_on() and self._failure is None

    async def _stop(self) -> None:
        ran = self.running
        try:
            await super()._stop()
        finally:  # who gives up waiting for the connection leaves nobody waiting for an answer
            if ran:
                self._give_up(LogUnavailable("the writer was stopped before the server answered"))

    async def _left(self, ended: Ended) -> None:
        if self._ready and not self._sent:  # what is open may be why it ended
            self._failures = 0
        self._ready = False

    def _give_up(self, error: Exception) -> None:
        """Fail for good, with all that is held."""
        self._failure = error
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        if self._connection is not None:
            self._connection.close(str(error))
        held = [*self._sent, *self._unsent]
        self._sent.clear()
        self._unsent.clear()
        self._held_bytes = self._sent_bytes = 0
        for append in held:
            append.answered.errback(error)
        self._tell_room()

    def _fail(self, error: Exception) -> None:
        log.error("replication.writer.failed", producer=self._producer, error=str(error))
        self._failure = error
        self.failed.errback(error)  # whoever publishes on and on hears of it first
        self._give_up(error)

    # -- what is said --------------------------------------------------------------------------

    def _greeted(self, dialect: Dialect) -> None:
        """Say who writes; the greeting is over."""
        self._holes = 0
        if dialect.name != NATIVE:
            self._fail(
                ConnectionFailed(
                    f"the server speaks dialect {dialect.name}: no rows go in there",
                    reason=CloseReason.WRONG_PROTOCOL,
                )
            )
            return
        assert self._connection is not None
        self._connection.send(ProducerCommand(self._producer, self._epoch))

    def _claimed(self, epoch: int, sequence: int) -> None:
        """Say again what was not answered, and go on."""
        self._epoch = epoch
        if not self.claimed.called:
            self.claimed.callback(sequence)
        self._ready = True
        if not self._sent or self._sent[0].number > sequence + 1:
            # Nothing is open, or the server has forgotten: it was restored from a copy, say.
            self._next_number = sequence + 1
            self._take_back()
        elif self._connection is not None:
            self._connection.send_all([self._numbered(append) for append in self._sent])

    def _take_back(self) -> None:
        """Let what was sent be sent anew, under numbers that are given then."""
        while self._sent:
            self._unsent.appendleft(self._sent.pop())
        self._sent_bytes = 0

    def _numbered(self, append: _Append) -> PublishCommand:
        command = append.command
        return type(command)(command.stream, command.rows, command.instance, append.number)

    def _send_soon(self) -> None:
        """Send what this turn brings, in one piece, when it ends."""
        if self._ready and not self._holes and self._sending is None:
            self._sending = self.reactor.callLater(0, self._send)

    def _send(self) -> None:
        self._sending = None
        if not self._ready or self._holes or self._connection is None:
            return
        commands: list[Command] = []
        while (
            self._unsent
            and len(self._sent) < limits.MAX_UNANSWERED_APPENDS
            and self._sent_bytes < limits.MAX_UNANSWERED_BYTES
        ):
            append = self._unsent.popleft()
            append.number = self._next_number
            self._next_number += 1
            self._sent.append(append)
            self._sent_bytes += len(append.command.rows)
            commands.append(self._numbered(append))
        if commands:
            self._connection.send_all(commands)

    # -- what is heard -------------------------------------------------------------------------

    def _take(self, events: Sequence[object]) -> None:
        for event in events:
            if self._failure is not None:
                return
            if isinstance(event, PublishedCommand):
                self._published(event)
            elif isinstance(event, RefusedCommand):
                self._refused(event)
            elif isinstance(event, ProducerCommand):
                self._claimed(event.epoch or 1, event.sequence or 0)
            elif isinstance(event, ErrorCommand) and "unknown command" in event.text:
                text = f"the server takes no rows: {event.text}"
                self._fail(ConnectionFailed(text, reason=CloseReason.WRONG_PROTOCOL))
        self._send_soon()
        self._tell_room()

    def _published(self, answer: PublishedCommand) -> None:
        if self._is_next(answer.number):
            self._failures = 0
            append = self._settle()
            append.answered.callback(
                Appended(answer.stream, answer.instance, answer.first, answer.last)
            )

    def _refused(self, answer: RefusedCommand) -> None:
        if self._holes:
            self._holes -= 1
            return
        error = PublishRefused(answer.subject, answer.reason, answer.value, answer.text)
        claiming = not self._ready
        if answer.reason in _OF_THE_ROWS and not claiming and self._is_next(answer.number):
            append = self._settle()
            if answer.reason != Reason.OLD.value:
                # Its number was not used, and those behind it are refused for that.
                self._next_number = append.number
                self._holes = len(self._sent)
                self._take_back()
            append.answered.errback(error)
        elif answer.reason in _PASSING and self._connection is not None:
            # What is open goes on, in order, with the next connection.
            self._ready = False
            self._connection.close(str(error))
        elif claiming or answer.reason not in _OF_THE_ROWS:
            self._fail(error)

    def _is_next(self, number: int | None) -> bool:
        """Return whether an answer is that of the oldest open append; begin anew if it is not."""
        if self._sent and self._sent[0].number == number:
            return True
        if self._connection is not None:
            self._ready = False
            self._connection.close("an answer to what was not asked")
        return False

    def _settle(self) -> _Append:
        append = self._sent.popleft()
        size = len(append.command.rows)
        self._sent_bytes -= size
        self._held_bytes -= size
        return append
