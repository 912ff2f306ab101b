"""What the bytes meant: the events that a session returns (protocol.md section 5)."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from tcprepl.errors import CloseReason
from tcprepl.ids import InstanceName, StreamName, Token
from tcprepl.protocol.commands import Command
from tcprepl.protocol.dialects import Dialect


class CommandReceived(NamedTuple):
    """The peer sent a command that is legal here; RDATA comes as `RowsReceived` instead."""

    command: Command


class RowsReceived(NamedTuple):
    """A whole batch came: every row of *token*, in order. Clients only."""

    stream: StreamName
    instance: InstanceName
    token: Token
    rows: list[bytes]


class DialectChosen(NamedTuple):
    """The dialect of the connection is known.

    A server learns it from the first REPLICATE. A client may send REPLICATE from here on;
    it hears of a second, older dialect if the server's POSITION has one token.
    """

    dialect: Dialect


class Closing(NamedTuple):
    """The connection ends: write out what is left, then close. Always the last event.

    With `CloseReason.ABORTED` the peer did not drain what was left: abort.
    """

    reason: CloseReason
    text: str


Event: TypeAlias = CommandReceived | RowsReceived | DialectChosen | Closing
