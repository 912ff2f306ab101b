"""The commands: one class for each word of the wire (protocol.md section 6).

A command is a value: two that would go out as the same line are equal. Fields are ``str``
and ``int``, except for the row of RDATA, which stays the bytes that it came as. Secrets do
not show in a ``repr``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import ClassVar, Final, TypeAlias

from tcprepl.ids import (
    IncarnationId,
    InstanceName,
    ProducerName,
    ServerName,
    StreamName,
    Token,
)
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.protocol.state import Role

#: What a cache key may be.
CacheKey: TypeAlias = str | int | bool | None


@dataclass(frozen=True, slots=True)
class Command:
    """One line. Its class says which word it starts with."""

    NAME: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class ServerCommand(Command):
    """The first line of a server: whose it is."""

    NAME: ClassVar[str] = "SERVER"
    server_name: ServerName


@dataclass(frozen=True, slots=True)
class RdataCommand(Command):
    """One row; *token* is None while more rows of the same token follow (``batch``)."""

    NAME: ClassVar[str] = "RDATA"
    stream: StreamName
    instance: InstanceName
    token: Token | None
    row: bytes


@dataclass(frozen=True, slots=True)
class PositionCommand(Command):
    """*instance* wrote nothing in ``(prev, token]``; *prev* is None where the form has none."""

    NAME: ClassVar[str] = "POSITION"
    stream: StreamName
    instance: InstanceName
    prev: Token | None
    token: Token


@dataclass(frozen=True, slots=True)
class ErrorCommand(Command):
    """Something is wrong, in words; the sender may close after it."""

    NAME: ClassVar[str] = "ERROR"
    text: str


@dataclass(frozen=True, slots=True)
class PingCommand(Command):
    """I am alive; the text is free and no answer is due."""

    NAME: ClassVar[str] = "PING"
    text: str = ""


@dataclass(frozen=True, slots=True)
class NameCommand(Command):
    """What to call the client in logs."""

    NAME: ClassVar[str] = "NAME"
    name: str


@dataclass(frozen=True, slots=True)
class ReplicateCommand(Command):
    """Start sending: everything, or a stream from a token on.

    Attributes:
        stream: The stream; ``*`` is every stream; None in the bare form.
        instance: The instance; ``*`` is every instance; None in the forms without it.
        token: The last token that the client holds; None for the bare form and ``NOW``.
        now: Whether ``NOW`` stood for the token.
        incarnations: In which incarnation the client got *token*; after it, where an earlier
            one ended for it, newest first: (token, incarnation). Empty if it does not say.
    """

    NAME: ClassVar[str] = "REPLICATE"
    stream: StreamName | None = None
    instance: InstanceName | None = None
    token: Token | None = None
    now: bool = False
    incarnations: tuple[tuple[Token, IncarnationId], ...] = ()


@dataclass(frozen=True, slots=True)
class UserSyncCommand(Command):
    """A user began or ended syncing at this process.

    Attributes:
        instance_id: The process, by a string that is new at each start; None in 2017.
        user_id: The user.
        device_id: The device; None if unknown.
        syncing: Whether it began.
        last_sync_ms: When, in ms since 1970.
    """

    NAME: ClassVar[str] = "USER_SYNC"
    instance_id: str | None
    user_id: str
    device_id: str | None
    syncing: bool
    last_sync_ms: int


@dataclass(frozen=True, slots=True)
class ClearUserSyncCommand(Command):
    """Nobody syncs at this process any more."""

    NAME: ClassVar[str] = "CLEAR_USER_SYNC"
    instance_id: str


@dataclass(frozen=True, slots=True)
class FederationAckCommand(Command):
    """The sender *instance* holds everything of the federation stream up to *token*."""

    NAME: ClassVar[str] = "FEDERATION_ACK"
    instance: InstanceName | None
    token: Token


@dataclass(frozen=True, slots=True)
class RemovePusherCommand(Command):
    """A pusher turned out to be gone."""

    NAME: ClassVar[str] = "REMOVE_PUSHER"
    app_id: str
    push_key: str = field(repr=False)
    user_id: str


@dataclass(frozen=True, slots=True)
class InvalidateCacheCommand(Command):
    """Forget a cache entry."""

    NAME: ClassVar[str] = "INVALIDATE_CACHE"
    cache_func: str
    keys: tuple[CacheKey, ...]


@dataclass(frozen=True, slots=True)
class UserIpCommand(Command):
    """A user was seen from an address."""

    NAME: ClassVar[str] = "USER_IP"
    user_id: str
    access_token: str = field(repr=False)
    ip: str
    user_agent: str
    device_id: str | None
    last_seen_ms: int


@dataclass(frozen=True, slots=True)
class RemoteServerUpCommand(Command):
    """A remote server is reachable again."""

    NAME: ClassVar[str] = "REMOTE_SERVER_UP"
    server: ServerName


@dataclass(frozen=True, slots=True)
class SyncCommand(Command):
    """A marker that the earliest servers sent in their tests."""

    NAME: ClassVar[str] = "SYNC"
    text: str = ""


@dataclass(frozen=True, slots=True)
class LockReleasedCommand(Command):
    """An instance released a lock that others may wait for."""

    NAME: ClassVar[str] = "LOCK_RELEASED"
    instance: InstanceName
    lock_name: str
    lock_key: str


@dataclass(frozen=True, slots=True)
class NewActiveTaskCommand(Command):
    """A background task was put up to be run."""

    NAME: ClassVar[str] = "NEW_ACTIVE_TASK"
    task_id: str


@dataclass(frozen=True, slots=True)
class CancelTaskCommand(Command):
    """A background task is to stop."""

    NAME: ClassVar[str] = "CANCEL_TASK"
    task_id: str


@dataclass(frozen=True, slots=True)
class HelpCommand(Command):
    """A person asks what there is, or about one word."""

    NAME: ClassVar[str] = "HELP"
    topic: str = ""


@dataclass(frozen=True, slots=True)
class StatusCommand(Command):
    """A person asks for positions, peers and who is behind."""

    NAME: ClassVar[str] = "STATUS"


@dataclass(frozen=True, slots=True)
class InfoCommand(Command):
    """One line of an answer to HELP or STATUS."""

    NAME: ClassVar[str] = "INFO"
    text: str


class Reason(Enum):
    """Why something is refused; the number that goes with it says more."""

    #: A row does not fit its stream; its place in the line, from 0.
    ROW = "row"
    #: There is no such stream.
    STREAM = "stream"
    #: Somebody else has claimed the producer's name since; the present epoch.
    FENCED = "fenced"
    #: Appends before this one were not taken; the number that is expected.
    HOLE = "hole"
    #: It was taken, so long ago that its tokens are forgotten; the number that is expected.
    OLD = "old"
    #: Who has claimed a producer's name numbers its appends.
    NUMBER = "number"
    #: There is no room for another producer; how many there are.
    PRODUCERS = "producers"
    #: The log cannot do it now; a later try may succeed.
    UNAVAILABLE = "unavailable"
    #: Rows are not published here.
    READ_ONLY = "read_only"
    #: The right to write them is lacking.
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class PublishCommand(Command):
    """Append one row.

    Attributes:
        stream: The stream.
        rows: The row as JSON.
        instance: The writing instance; None is the server's own.
        number: Comes again with the answer; the sequence number of a producer.
    """

    NAME: ClassVar[str] = "PUBLISH"
    stream: StreamName
    rows: bytes = field(repr=False)
    instance: InstanceName | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class PublishRowsCommand(PublishCommand):
    """Append the rows of a JSON array, each with a token of its own: all of them, or none."""

    NAME: ClassVar[str] = "PUBLISH_ROWS"


@dataclass(frozen=True, slots=True)
class PublishBatchCommand(PublishCommand):
    """Append the rows of a JSON array, which share one token: all of them, or none."""

    NAME: ClassVar[str] = "PUBLISH_BATCH"


@dataclass(frozen=True, slots=True)
class PublishedCommand(Command):
    """Rows were taken: the tokens of the first and the last, and the number of the question."""

    NAME: ClassVar[str] = "PUBLISHED"
    stream: StreamName
    instance: InstanceName
    first: Token
    last: Token
    number: int | None = None


@dataclass(frozen=True, slots=True)
class RefusedCommand(Command):
    """Rows, or a claim, were not taken.

    Attributes:
        subject: The stream, or the producer.
        reason: Why, as `Reason` has it; others may come to be.
        value: What goes with the reason.
        text: In words.
        number: The number of the question.
    """

    NAME: ClassVar[str] = "REFUSED"
    subject: str
    reason: str
    value: int
    text: str = ""
    number: int | None = None


@dataclass(frozen=True, slots=True)
class ProducerCommand(Command):
    """A client claims a producer's name; the server says with which epoch, and how far it is.

    Attributes:
        name: The producer.
        epoch: The epoch; None asks for a new one.
        sequence: The last number that was taken; None where a client asks.
    """

    NAME: ClassVar[str] = "PRODUCER"
    name: ProducerName
    epoch: int | None = None
    sequence: int | None = None


@dataclass(frozen=True, slots=True)
class AuthCommand(Command):
    """A token that grants rights, said before anything that needs one."""

    NAME: ClassVar[str] = "AUTH"
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class AuthorizedCommand(Command):
    """The token holds: whom it was given to, and what it allows, in words."""

    NAME: ClassVar[str] = "AUTHORIZED"
    name: str
    text: str = ""


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
