"""What is true of each command, whatever its values: who may send it, where, with what right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from tcprepl.protocol.commands import (
    AuthCommand,
    AuthorizedCommand,
    CancelTaskCommand,
    ClearUserSyncCommand,
    Command,
    DrainCommand,
    ErrorCommand,
    FederationAckCommand,
    HelpCommand,
    InfoCommand,
    InvalidateCacheCommand,
    KickCommand,
    LockReleasedCommand,
    NameCommand,
    NewActiveTaskCommand,
    PingCommand,
    PositionCommand,
    ProducerCommand,
    PublishBatchCommand,
    PublishCommand,
    PublishedCommand,
    PublishRowsCommand,
    RdataCommand,
    RefusedCommand,
    RemoteServerUpCommand,
    RemovePusherCommand,
    ReplicateCommand,
    ServerCommand,
    StatusCommand,
    SyncCommand,
    UserIpCommand,
    UserSyncCommand,
)
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.state import Role


class Right(Enum):
    """What a client needs so that a command of its is obeyed (protocol.md section 16.1)."""

    #: Nothing: whoever connects may say it.
    NONE = "-"
    #: May read the streams that it asks for, in full or masked.
    READ = "read"
    #: May append to the streams that it names.
    WRITE = "write"
    #: May read some stream, or look at everything.
    LOOK = "look"
    #: May speak as a worker of the homeserver.
    OPERATE = "operate"


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """What is true of a command apart from its values.

    Attributes:
        command: Its class.
        sent_by: The ends that may send it over TCP.
        dialects: The names of the dialects that have it.
        usage: Its arguments in the newest form, for people.
        summary: What it says, in a few words, for HELP.
        secret: Whether its arguments are never to be quoted.
        right: What a client needs that sends it: the most, unless it is said.
    """

    command: type[Command]
    sent_by: frozenset[Role]
    dialects: frozenset[str]
    usage: str
    summary: str
    secret: bool = False
    right: Right = Right.OPERATE

    @property
    def syntax(self) -> str:
        """The whole line, for people."""
        return f"{self.command.NAME} {self.usage}".rstrip()


_S: Final = frozenset({Role.SERVER})
_C: Final = frozenset({Role.CLIENT})
_BOTH: Final = _S | _C
_ALL: Final = frozenset(DIALECTS)
_TCP: Final = _ALL - {"redis"}
_2017: Final = frozenset({"2017"})
_SINCE_1_13: Final = _ALL - _2017
_REDIS_ERA: Final = frozenset({"redis", "tcprepl"})
#: Every command by its word.
COMMANDS: Final[Mapping[str, CommandSpec]] = MappingProxyType(
    {
        spec.command.NAME: spec
        for spec in (
            CommandSpec(ServerCommand, _S, _TCP, "<server name>", "whose server this is"),
            CommandSpec(
                RdataCommand, _S, _ALL, "<stream> <instance> <token|batch> <row>", "one row"
            ),
            CommandSpec(
                PositionCommand,
                _S,
                _ALL,
                "<stream> <instance> <prev> <token>",
                "no rows between prev and token",
            ),
            CommandSpec(
                ErrorCommand, _BOTH, _TCP, "<text>", "something is wrong", right=Right.NONE
            ),
            CommandSpec(PingCommand, _BOTH, _TCP, "<anything>", "I am alive", right=Right.NONE),
            CommandSpec(NameCommand, _C, _TCP, "<text>", "what to call you", right=Right.NONE),
            CommandSpec(
                AuthCommand,
                _C,
                _TCP,
                "<token>",
                "a token that lets you do more, before all else",
                secret=True,
                right=Right.NONE,
            ),
            CommandSpec(AuthorizedCommand, _S, _TCP, "<name> <text>", "your token holds"),
            CommandSpec(
                ReplicateCommand,
                _C,
                _ALL,
                "[<stream> [<instance>] <token|NOW> [<incarnation>]]",
                "send me rows: all from now on, or one stream from a token on",
                right=Right.READ,
            ),
            CommandSpec(
                UserSyncCommand,
                _C,
                _ALL,
                "<instance id> <user> <device|None> start|end <ms>",
                "a user began or ended syncing",
            ),
            CommandSpec(
                ClearUserSyncCommand, _C, _SINCE_1_13, "<instance id>", "nobody syncs here"
            ),
            CommandSpec(
                FederationAckCommand,
                _C,
                _ALL,
                "[<instance>] <token>",
                "the federation stream is safe here up to token",
            ),
            CommandSpec(
                RemovePusherCommand,
                _C,
                _ALL - _REDIS_ERA,
                "<app id> <push key> <user>",
                "a pusher is gone",
                secret=True,
            ),
            CommandSpec(
                InvalidateCacheCommand,
                _C,
                frozenset({"2017", "1.13"}),
                "<cache> <json array>",
                "forget a cache entry",
            ),
            CommandSpec(
                UserIpCommand,
                _C,
                _ALL,
                "<user> [<token>,<ip>,<user agent>,<device>,<ms>]",
                "a user was seen",
                secret=True,
            ),
            CommandSpec(RemoteServerUpCommand, _BOTH, _ALL, "<server>", "a server is back"),
            CommandSpec(SyncCommand, _S, _2017, "<anything>", "a marker"),
            CommandSpec(
                LockReleasedCommand,
                _BOTH,
                _REDIS_ERA,
                '["<instance>","<name>","<key>"]',
                "a lock is free",
            ),
            CommandSpec(NewActiveTaskCommand, _BOTH, _REDIS_ERA, "<task id>", "a task is due"),
            CommandSpec(CancelTaskCommand, _BOTH, _REDIS_ERA, "<task id>", "a task is to stop"),
            CommandSpec(HelpCommand, _C, _TCP, "[<command>]", "what there is", right=Right.NONE),
            CommandSpec(
                StatusCommand, _C, _TCP, "", "positions, peers, who is behind", right=Right.LOOK
            ),
            CommandSpec(
                KickCommand,
                _C,
                _TCP,
                "<number|name|address> [<why>]",
                "end the connections of a peer",
            ),
            CommandSpec(
                DrainCommand,
                _C,
                _TCP,
                "[<seconds> [<where to go>]]",
                "let everybody go who has everything, then end the server",
            ),
            CommandSpec(InfoCommand, _S, _TCP, "<text>", "a line of an answer"),
            CommandSpec(
                PublishCommand,
                _C,
                _TCP,
                "<stream> [@<instance>] [#<number>] <row>",
                "append a row, JSON, to a stream",
                right=Right.WRITE,
            ),
            CommandSpec(
                PublishRowsCommand,
                _C,
                _TCP,
                "<stream> [@<instance>] [#<number>] <json array>",
                "append many rows, all or none",
                right=Right.WRITE,
            ),
            CommandSpec(
                PublishBatchCommand,
                _C,
                _TCP,
                "<stream> [@<instance>] [#<number>] <json array>",
                "append rows that share a token",
                right=Right.WRITE,
            ),
            CommandSpec(
                PublishedCommand,
                _S,
                _TCP,
                "<stream> <instance> <first> <last> [#<number>]",
                "rows were taken",
            ),
            CommandSpec(
                RefusedCommand,
                _S,
                _TCP,
                "<stream|producer> [#<number>] <reason> <value> <text>",
                "rows were not taken",
            ),
            CommandSpec(
                ProducerCommand,
                _BOTH,
                _TCP,
                "<name> [<epoch> [<sequence>]]",
                "number your appends, so that each is taken once",
                right=Right.WRITE,
            ),
        )
    }
)
