"""The exceptions of tcprepl, as one tree (protocol.md section 12).

::

    TcpreplError
      ProtocolError             .close_reason, .wire_text (what ERROR says), .snippet
        LocalProtocolError      our caller asked for something illegal here: a bug
        RemoteProtocolError     the peer did
          LineTooLong  MalformedCommand  UnknownCommand  UnexpectedCommand  BadEncoding
          WrongProtocol  WrongServer  TooManyErrors  LostRow
      ConnectionFailed          .transient drives the reconnect
      StreamError
        UnknownStream  BadRow  TokenTooOld  TokenFromFuture  TokenOrder
        ProducerError
          EpochFenced  EpochTooHigh  SequenceHole  SequenceTooOld  TooManyProducers
        PublishRefused          .reason tells programs why a server did not take rows
        LogError
          LogUnavailable  LogLocked  LogHeld  LogCorrupt  LogTooNew
            LogFenced  WrittenElsewhere
      FederationError
      TokenRefused              .wait_s before another is looked at
      ConfigError               the command line exits with 2

A tree is looked through as a whole, and an exception that is added has to find its place in it: so
this may be longer than other modules.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from enum import Enum

from tcprepl.limits import MAX_TOKEN

#: Names that an error gives where none of them is near.
NAMES_SHOWN = 6


def did_you_mean(name: str, known: Collection[str], shown: int = NAMES_SHOWN) -> str:
    """Return the end of an error: the nearest to *name* of *known*, or else *shown* of them."""
    by_folded = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.7)
    if close:
        return f"; did you mean {by_folded[close[0]]}?"
    if not known or not shown:
        return ""
    more = len(known) - shown
    some = ", ".join(list(known)[:shown])
    return f"; there {'is' if len(known) == 1 else 'are'} {some}" + (
        f" and {more} more" if more > 0 else ""
    )


class TcpreplError(Exception):
    """Base of every exception that tcprepl raises on purpose."""


class CloseReason(Enum):
    """Why a connection ended; one member for each way (logs, metrics and tests use it)."""

    #: The peer closed its end.
    PEER_CLOSED = "peer_closed"
    #: The network failed: reset, unreachable, broken pipe.
    CONNECTION_LOST = "connection_lost"
    #: We are stopping.
    SHUTDOWN = "shutdown"
    #: A line, ended or not, exceeded the limit.
    LINE_TOO_LONG = "line_too_long"
    #: Bytes that are not UTF-8.
    BAD_ENCODING = "bad_encoding"
    #: A command that only the other side may send.
    UNEXPECTED_COMMAND = "unexpected_command"
    #: More bad lines than a connection is allowed.
    TOO_MANY_ERRORS = "too_many_errors"
    #: A row or position from the server that cannot be read or kept: resume on a new connection.
    LOST_ROW = "lost_row"
    #: HTTP, TLS or RESP spoken to this port.
    WRONG_PROTOCOL = "wrong_protocol"
    #: SERVER named another homeserver.
    WRONG_SERVER = "wrong_server"
    #: A peer that had sent PING went silent.
    PING_TIMEOUT = "ping_timeout"
    #: The greeting did not come in time.
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    #: More connections than the server admits.
    TOO_MANY_CONNECTIONS = "too_many_connections"
    #: The token that was said does not hold, or no longer.
    NOT_AUTHORIZED = "not_authorized"
    #: An operator ended the connection.
    KICKED = "kicked"
    #: An operator ends the server; the peer has everything, or its time is over.
    DRAINED = "drained"
    #: The peer did not drain its socket after the close was asked for.
    ABORTED = "aborted"
    #: An error of our side that nobody expected: a bug, or no memory.
    LOCAL_ERROR = "local_error"


class ProtocolError(TcpreplError):
    """A rule of the wire was broken.

    Attributes:
        close_reason: Why the connection has to end, or None where it may go on.
        text: What was wrong, and what was expected; holds no secrets.
        snippet: The offending bytes as they may be shown: escaped, at most a few.
        line_number: Which line of the connection it was, counted from 1; None if unknown.
    """

    close_reason: CloseReason | None = None

    def __init__(self, text: str, *, snippet: str = "", line_number: int | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.snippet = snippet
        self.line_number = line_number

    @property
    def wire_text(self) -> str:
        """What an ERROR line says about it."""
        if self.line_number is None:
            return self.text
        return f"line {self.line_number}: {self.text}"

    def __str__(self) -> str:
        return self.wire_text


class LocalProtocolError(ProtocolError):
    """Our own caller asked for something that is illegal here: a bug."""

    close_reason = CloseReason.LOCAL_ERROR


class RemoteProtocolError(ProtocolError):
    """The peer broke a rule."""


class LineTooLong(RemoteProtocolError):
    """A line, ended or not, exceeds the limit; the rest of the input is lost."""

    close_reason = CloseReason.LINE_TOO_LONG


class MalformedCommand(RemoteProtocolError):
    """A known word with arguments that do not fit it."""


class UnknownCommand(RemoteProtocolError):
    """A line whose first word is no command."""


class UnexpectedCommand(RemoteProtocolError):
    """A command that only the other side may send, or not at this point."""

    close_reason = CloseReason.UNEXPECTED_COMMAND


class BadEncoding(RemoteProtocolError):
    """A line that is not UTF-8."""

    close_reason = CloseReason.BAD_ENCODING


class WrongProtocol(RemoteProtocolError):
    """HTTP, TLS or RESP where replication was expected."""

    close_reason = CloseReason.WRONG_PROTOCOL


class WrongServer(RemoteProtocolError):
    """SERVER named another homeserver than the configured one."""

    close_reason = CloseReason.WRONG_SERVER


class TooManyErrors(RemoteProtocolError):
    """More bad lines than one connection is allowed."""

    close_reason = CloseReason.TOO_MANY_ERRORS


class LostRow(RemoteProtocolError):
    """A row or a position from the server that cannot be read, or kept until its token comes.

    Going on would lose it silently, so the connection ends and a new one resumes.
    """

    close_reason = CloseReason.LOST_ROW


class ConnectionFailed(TcpreplError):
    """A connection could not be made, or ended.

    Attributes:
        reason: Which way it ended.
        transient: Whether trying again may help; drives the reconnect.
    """

    def __init__(self, text: str, *, reason: CloseReason, transient: bool = True) -> None:
        super().__init__(text)
        self.reason = reason
        self.transient = transient


class StreamError(TcpreplError):
    """Base of what can go wrong with a stream, its rows or its log."""


class UnknownStream(StreamError):
    """A stream that the registry does not know.

    Attributes:
        stream: The name that was asked for.
        known: The names that there are.
    """

    def __init__(self, stream: str, known: Collection[str] = ()) -> None:
        self.stream = stream
        self.known = tuple(known)
        super().__init__(f"unknown stream {stream!r}{did_you_mean(stream, self.known)}")


class BadRow(StreamError):
    """A row that does not fit its stream.

    Attributes:
        stream: Name of the stream.
        field: Where in the row, by name (``user_ids[2]``); empty for the row as a whole.
        value: The beginning of the offending value, as JSON.
        expected: What should be there.
        index: Place of the row in its call, from 0.
    """

    def __init__(
        self, stream: str, field: str, value: str, expected: str, index: int | None = None
    ) -> None:
        self.stream = stream
        self.field = field
        self.value = value
        self.expected = expected
        self.index = index
        row = "row" if index is None else f"row {index}"
        place = f", field {field}" if field else ""
        super().__init__(f"stream {stream}, {row}{place}: expected {expected}, got {value}")


class PositionError(StreamError):
    """Base: a token that does not fit where its stream is.

    Attributes:
        stream: Name of the stream.
        instance: Name of the instance.
        token: The token in question.
        held: The nearest token that the stream can serve, or has.
    """

    def __init__(self, stream: str, instance: str, token: int, held: int, text: str) -> None:
        self.stream = stream
        self.instance = instance
        self.token = token
        self.held = held
        super().__init__(f"stream {stream} of {instance}: {text}")


class TokenTooOld(PositionError):
    """A read from before what the log retains; *held* is the oldest token to read from.

    Attributes:
        bound: The setting that bounds what is retained, or what else made the rows go.
    """

    def __init__(
        self, stream: str, instance: str, token: int, held: int, bound: str = "retention"
    ) -> None:
        self.bound = bound
        super().__init__(
            stream,
            instance,
            token,
            held,
            f"token {token} is too old: rows up to {held} are gone ({bound})",
        )


class TokenFromFuture(PositionError):
    """A read from above the position, which is *held*."""

    def __init__(self, stream: str, instance: str, token: int, held: int) -> None:
        super().__init__(
            stream,
            instance,
            token,
            held,
            f"token {token} has not been written; the position is {held}",
        )


class TokenOrder(PositionError):
    """A token to write that is not above *held*, or exceeds the largest token."""

    def __init__(self, stream: str, instance: str, token: int, held: int) -> None:
        super().__init__(
            stream,
            instance,
            token,
            held,
            f"token {token} cannot follow {held}; tokens ascend, up to {MAX_TOKEN}",
        )


class ProducerError(StreamError):
    """Base: an append that its producer may not make, or not now (protocol.md section 7.12).

    Attributes:
        producer: Name of the producer.
    """

    def __init__(self, producer: str, text: str) -> None:
        self.producer = producer
        super().__init__(f"producer {producer}: {text}")


class EpochFenced(ProducerError):
    """Somebody else has claimed the name since: stop, or claim it anew.

    Attributes:
        epoch: The epoch that was said.
        current: The present one; 0 for a name that nobody has claimed.
    """

    def __init__(self, producer: str, epoch: int, current: int) -> None:
        self.epoch = epoch
        self.current = current
        what = f"the current one is {current}" if current else "nobody has claimed the name"
        super().__init__(producer, f"epoch {epoch} is fenced: {what}")


class EpochTooHigh(ProducerError):
    """An epoch that no claim has given out, and beyond which there is no room for more.

    Attributes:
        current: The present one; 0 for a name that nobody has claimed.
    """

    def __init__(self, producer: str, epoch: int, current: int, highest: int) -> None:
        self.current = current
        super().__init__(
            producer, f"epoch {epoch}: expected at most {highest}; without one the next is given"
        )


class SequenceHole(ProducerError):
    """Appends before this one were not taken: go on from *expected*.

    Attributes:
        sequence: The number of the append.
        expected: The number that is next.
    """

    def __init__(self, producer: str, sequence: int, expected: int) -> None:
        self.sequence = sequence
        self.expected = expected
        super().__init__(producer, f"sequence {sequence} leaves a hole: expected {expected}")


class SequenceTooOld(ProducerError):
    """The append was taken, so long ago that its answer is forgotten: go on behind it.

    Attributes:
        sequence: The number of the append.
        expected: The number that is next.
    """

    def __init__(self, producer: str, sequence: int, expected: int) -> None:
        self.sequence = sequence
        self.expected = expected
        super().__init__(
            producer,
            f"sequence {sequence} was taken long ago, its tokens are forgotten: "
            f"expected {expected}",
        )


class TooManyProducers(ProducerError):
    """There is no room for another name.

    Attributes:
        limit: How many there are.
    """

    def __init__(self, producer: str, limit: int) -> None:
        self.limit = limit
        super().__init__(producer, f"there are {limit} producers already: use one of their names")


class PublishRefused(StreamError):
    """A server did not take rows, and will not if they come again.

    Attributes:
        subject: The stream, or the producer.
        reason: Why, as `tcprepl.protocol.commands.Reason` has it.
        value: What goes with the reason.
    """

    def __init__(self, subject: str, reason: str, value: int, text: str) -> None:
        self.subject = subject
        self.reason = reason
        self.value = value
        super().__init__(f"{subject}: refused ({reason}): {text}")


class LogError(StreamError):
    """Base of what can go wrong with the log as a store."""


class LogUnavailable(LogError):
    """The log could not do it now; nothing was published, and a later try may succeed."""


class LogFenced(LogUnavailable):
    """This process may write no more: another one has taken its instance over, for good.

    Attributes:
        writer: The instance.
    """

    def __init__(self, writer: str, text: str) -> None:
        self.writer = writer
        super().__init__(f"instance {writer}: {text}")


class WrittenElsewhere(LogUnavailable):
    """Another server of the same database writes this (stream, instance).

    Attributes:
        stream: Name of the stream.
        instance: Name of the instance.
        writer: Who writes it, as far as is known.
    """

    def __init__(self, stream: str, instance: str, writer: str) -> None:
        self.stream = stream
        self.instance = instance
        self.writer = writer
        super().__init__(
            f"stream {stream} of {instance} is written by {writer}, another server of the same "
            "database: publish there, or as another instance"
        )


class LogLocked(LogError):
    """Another process has the data directory open.

    Attributes:
        directory: The data directory.
        pid: The process that holds it; None when it left no trace.
    """

    def __init__(self, directory: str, pid: int | None) -> None:
        self.directory = directory
        self.pid = pid
        owner = "another process" if pid is None else f"process {pid}"
        super().__init__(
            f"{directory} is in use by {owner}: stop that one, or choose another directory"
        )


class LogHeld(LogError):
    """Another server writes as this instance into the same database.

    Attributes:
        writer: The instance.
        holder: The process that has it: its host and its process id.

    Its *todo* is what to do, where it is not somebody who would write as well that is told.
    """

    def __init__(self, where: str, writer: str, holder: str, todo: str = "") -> None:
        self.writer = writer
        self.holder = holder
        todo = todo or (
            "stop that one, give this one another name (--instance; of a sender --name), or start "
            "it with --standby to take over when that one ends"
        )
        super().__init__(f"{where}: instance {writer} is written by {holder}: {todo}")


class LogCorrupt(LogError):
    """What is stored is not what was written.

    Attributes:
        table: Table of the database; empty when the file as a whole cannot be read.
        stream: Name of the stream; empty when it cannot be told.
        instance: Name of the instance; empty when it cannot be told.
        token: The last token of the damaged block; None when it cannot be told.
    """

    def __init__(
        self,
        text: str,
        *,
        table: str = "",
        stream: str = "",
        instance: str = "",
        token: int | None = None,
    ) -> None:
        self.table = table
        self.stream = stream
        self.instance = instance
        self.token = token
        super().__init__(text)


class LogTooNew(LogError):
    """The database was written by a newer version of tcprepl.

    Attributes:
        path: The database.
        version: Version of its schema.
        supported: The newest version that this program reads.
    """

    def __init__(self, path: str, version: int, supported: int) -> None:
        self.path = path
        self.version = version
        self.supported = supported
        super().__init__(
            f"{path} has schema version {version} and this program reads up to {supported}: "
            f"run the newer tcprepl that wrote it, or start with an empty directory"
        )


class FederationError(TcpreplError):
    """A federation request failed; the rooms above refine it."""


class ConfigError(TcpreplError):
    """The configuration is not usable; the command line exits with 2."""


class TokenRefused(TcpreplError):
    """A token that grants nothing here.

    Attributes:
        wait_s: Seconds until another from there is looked at, where this one was not; else 0.
    """

    def __init__(self, wait_s: float = 0.0) -> None:
        self.wait_s = wait_s
        if wait_s:
            text = f"too many wrong tokens from there; try again in {max(1, round(wait_s))} s"
        else:
            text = "the token is not known here; expected one of replication.tokens"
        super().__init__(text)
