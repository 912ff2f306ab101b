"""What the bytes meant: the events that a session returns (protocol.md section 5)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias, TypeVar, cast

from tcprepl.errors import CloseReason
from tcprepl.ids import InstanceName, Pair, StreamName, Token
from tcprepl.protocol.commands import Command, PublishCommand
from tcprepl.protocol.dialects import Dialect


class CommandReceived(NamedTuple):
    """The peer sent a command that is legal here.

    RDATA comes as `RowsReceived` or `RunReceived` instead.
    """

    command: Command


class RowsReceived(NamedTuple):
    """A whole batch came: every row of *token*, in order. Clients only."""

    stream: StreamName
    instance: InstanceName
    token: Token
    rows: list[bytes]


class RunReceived(NamedTuple):
    """Batches of one row each came one after the other: *tokens* are those of *rows*.

    It stands for as many `RowsReceived`, and costs a client half of what they would. How
    batches fall into runs depends on how the bytes fell into reads; `in_batches` undoes it.
    """

    stream: StreamName
    instance: InstanceName
    tokens: list[Token]
    rows: list[bytes]


class MixedReceived(NamedTuple):
    """Batches of one row each came one after the other, of several pairs: a run of each row.

    It stands for as many `RowsReceived` as there are rows, in this order, and costs a client a
    quarter of what they would. Only a session that was asked for it returns it.
    """

    pairs: Sequence[Pair]
    tokens: Sequence[Token]
    rows: Sequence[bytes]


class PublishRun(NamedTuple):
    """Numbered PUBLISH lines of one stream came one after the other. Servers only.

    It stands for as many commands, and costs a server a tenth of what they would. How lines fall
    into runs depends on how the bytes fell into reads.

    Attributes:
        stream: The stream.
        numbers: The number of each line, in digits.
        rows: The row of each line, ended by LF.
    """

    stream: StreamName
    numbers: Sequence[bytes]
    rows: bytes

    def commands(self) -> Iterator[PublishCommand]:
        """Yield the commands one by one."""
        for number, row in zip(self.numbers, self.rows.split(b"\n"), strict=False):
            yield PublishCommand(self.stream, row, None, int(number))


class DialectChosen(NamedTuple):
    """The dialect of the connection is known.

    A server learns it from the first REPLICATE. A client may send REPLICATE from here on;
    it hears of a second, older dialect if the server's POSITION has one token.
    """

    dialect: Dialect


class ClaimUnread(NamedTuple):
    """A PRODUCER that is no command was answered with ERROR: what follows has no producer.

    Server only.
    """


class LinesPassed(NamedTuple):
    """Lines that ask nothing of the adapter: blank, or answered with an ERROR. Servers only.

    They cost time all the same, and whoever shares out time counts them.
    """

    lines: int


class Closing(NamedTuple):
    """The connection ends: write out what is left, then close. Always the last event.

    With `CloseReason.ABORTED` the peer did not drain what was left: abort.
    """

    reason: CloseReason
    text: str


Event: TypeAlias = (
    CommandReceived
    | RowsReceived
    | RunReceived
    | MixedReceived
    | PublishRun
    | DialectChosen
    | LinesPassed
    | ClaimUnread
    | Closing
)

E = TypeVar("E")


def in_batches(
    events: Iterable[E | RunReceived | MixedReceived],
) -> Iterator[E | RowsReceived]:
    """Yield *events* with a `RowsReceived` for each batch of a run."""
    for event in unmixed(events):
        if isinstance(event, RunReceived):
            stream, instance, tokens, rows = event
            for token, row in zip(tokens, rows, strict=True):
                yield RowsReceived(stream, instance, token, [row])
        else:
            yield cast("E | RowsReceived", event)


def unmixed(events: Iterable[E | MixedReceived]) -> Iterator[E | RowsReceived]:
    """Yield *events* with a `RowsReceived` for each row that came among those of other pairs."""
    for event in events:
        if type(event) is MixedReceived:
            for (stream, instance), token, row in zip(*event, strict=True):
                yield RowsReceived(stream, instance, token, [row])
        else:
            yield cast("E", event)
