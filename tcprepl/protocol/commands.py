"""The commands: one class for each word of the wire (protocol.md section 6).

A command is a value: two that would go out as the same line are equal. Fields are ``str``
and ``int``, except for the row of RDATA, which stays the bytes that it came as. Secrets do
not show in a ``repr``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, TypeAlias

from tcprepl.ids import (
    IncarnationId,
    InstanceName,
    ProducerName,
    ServerName,
    StreamName,
    Token,
)

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
class KickCommand(Command):
    """An operator ends the connections of a peer: a number, a name or an address; says why."""

    NAME: ClassVar[str] = "KICK"
    peer: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class DrainCommand(Command):
    """An operator ends a server, without taking anything from anybody.

    Attributes:
        within_s: How long peers have; None is the server's default.
        to: Where they are told to go; empty for nowhere.
    """

    NAME: ClassVar[str] = "DRAIN"
    within_s: int | None = None
    to: str = ""


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
