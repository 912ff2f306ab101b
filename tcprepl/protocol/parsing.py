"""Lines to commands (protocol.md sections 4 and 6).

Reading is tolerant wherever the arguments tell the forms apart. What an error quotes is escaped,
short and never from a command that carries secrets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

from tcprepl.errors import BadEncoding, UnknownCommand
from tcprepl.limits import MAX_DRAIN_WITHIN_S, MAX_SAID_INCARNATIONS, MAX_WHY_CHARS
from tcprepl.protocol.arguments import Arguments
from tcprepl.protocol.commands import (
    AuthCommand,
    AuthorizedCommand,
    CacheKey,
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
from tcprepl.protocol.dialects import DEFAULT_INSTANCE, Dialect
from tcprepl.protocol.display import snippet
from tcprepl.protocol.grammar import LABEL_SHAPE, PATTERNS, SECRET_SHAPE, is_secret

_SP: Final = b" "
_BATCH: Final = "batch"
#: How many words REPLICATE has that says 1 to 8 incarnations.
_INCARNATION_COUNTS: Final = tuple(range(4, 4 + 2 * MAX_SAID_INCARNATIONS, 2))
_EVERY: Final = "*"
_is_label = PATTERNS["label"].fullmatch
_is_reason = PATTERNS["reason"].fullmatch


def _one_name(make: Callable[[str], Command], what: str) -> Callable[[Arguments, Dialect], Command]:
    """Return what reads a command whose one argument is the name of *what*."""

    def read(arguments: Arguments, dialect: Dialect) -> Command:
        arguments.split(1)
        return make(arguments.name(0, what))

    return read


def _rdata(arguments: Arguments, dialect: Dialect) -> Command:
    count = 4 if dialect.rdata_instance else 3
    arguments.split_at_most(count)
    stream = arguments.name(0, "stream")
    instance = arguments.name(1, "instance") if dialect.rdata_instance else DEFAULT_INSTANCE
    token = None if arguments.values[-2] == _BATCH else arguments.token(count - 2)
    row = arguments.values[-1]
    if not row:
        raise arguments.wrong("the row is empty")
    return RdataCommand(stream, instance, token, row.encode())


def _position(arguments: Arguments, dialect: Dialect) -> Command:
    count = arguments.split(2, 3, 4)
    stream = arguments.name(0, "stream")
    instance = arguments.name(1, "instance") if count > 2 else DEFAULT_INSTANCE
    prev = arguments.token(2, "prev") if count > 3 else None
    return PositionCommand(stream, instance, prev, arguments.token(count - 1))


def _error(arguments: Arguments, dialect: Dialect) -> Command:
    return ErrorCommand(arguments.rest)


def _ping(arguments: Arguments, dialect: Dialect) -> Command:
    return PingCommand(arguments.rest)


def _name(arguments: Arguments, dialect: Dialect) -> Command:
    name = arguments.rest.strip(" ")
    if not _is_label(name):
        raise arguments.wrong(f"name{{}} is not {LABEL_SHAPE}", name)
    return NameCommand(name)


def _replicate(arguments: Arguments, dialect: Dialect) -> Command:
    count = arguments.split(
        *(0, 2, 3, *_INCARNATION_COUNTS), wanted="0 or 2 or 3, or 4 and more in twos"
    )
    if count == 0:
        return ReplicateCommand()
    stream = arguments.name(0, "stream")
    if count == 2 and stream.upper() == "ALL":
        stream = _EVERY
    instance = arguments.name(1, "instance") if count >= 3 else None
    if count > 3:
        places = tuple(
            (arguments.token(index), arguments.name(index + 1, "incarnation"))
            for index in range(2, count, 2)
        )
        return ReplicateCommand(stream, instance, places[0][0], incarnations=places)
    if arguments.values[-1].upper() == "NOW":
        return ReplicateCommand(stream, instance, None, now=True)
    return ReplicateCommand(stream, instance, arguments.asked_token(count - 1))


def _user_sync(arguments: Arguments, dialect: Dialect) -> Command:
    count = arguments.split(3, 4, 5)
    last_sync_ms = arguments.time_ms(count - 1)
    edge = arguments.values[count - 2]
    if edge.lower() not in ("start", "end"):
        raise arguments.wrong("the word{} is neither start nor end", edge)
    device_id = arguments.name(2, "device") if count == 5 else None
    return UserSyncCommand(
        arguments.name(0, "instance id") if count > 3 else None,
        arguments.name(1 if count > 3 else 0, "user"),
        None if device_id == "None" else device_id,
        edge.lower() == "start",
        last_sync_ms,
    )


def _federation_ack(arguments: Arguments, dialect: Dialect) -> Command:
    count = arguments.split(1, 2)
    instance = arguments.name(0, "instance") if count == 2 else None
    return FederationAckCommand(instance, arguments.asked_token(count - 1))


def _remove_pusher(arguments: Arguments, dialect: Dialect) -> Command:
    arguments.split(3)
    return RemovePusherCommand(
        arguments.name(0, "app id"), arguments.name(1, "push key"), arguments.name(2, "user")
    )


def _invalidate_cache(arguments: Arguments, dialect: Dialect) -> Command:
    arguments.split_at_most(2)
    cache_func = arguments.name(0, "cache")
    keys = arguments.json(1)
    if not all(key is None or isinstance(key, str | int) for key in keys):
        raise arguments.wrong("a key is neither a string, a whole number, a boolean nor null")
    return InvalidateCacheCommand(cache_func, cast(tuple[CacheKey, ...], tuple(keys)))


def _user_ip(arguments: Arguments, dialect: Dialect) -> Command:
    arguments.split_at_most(2)
    user_id = arguments.name(0, "user")
    if not arguments.values[1].startswith("["):
        # 0.22 only: access token, address, device, time and then the user agent.
        arguments.split_at_most(6)
        return UserIpCommand(
            user_id,
            arguments.name(1, "access token"),
            arguments.name(2, "address"),
            arguments.values[5],
            arguments.name(3, "device"),
            arguments.time_ms(4),
        )
    match arguments.json(1):
        case [
            str(access_token),
            str(ip),
            str(user_agent),
            str() | None as device_id,
            int(last_seen_ms),
        ] if not isinstance(last_seen_ms, bool):
            return UserIpCommand(user_id, access_token, ip, user_agent, device_id, last_seen_ms)
    raise arguments.wrong("the array is not 3 strings, a string or null, and a whole number")


def _sync(arguments: Arguments, dialect: Dialect) -> Command:
    return SyncCommand(arguments.rest)


def _lock_released(arguments: Arguments, dialect: Dialect) -> Command:
    arguments.split_at_most(1)
    match arguments.json(0):
        case [str(instance), str(lock_name), str(lock_key)]:
            return LockReleasedCommand(instance, lock_name, lock_key)
    raise arguments.wrong("the array is not 3 strings")


def _help(arguments: Arguments, dialect: Dialect) -> Command:
    return HelpCommand(arguments.rest.strip(" "))


def _status(arguments: Arguments, dialect: Dialect) -> Command:
    arguments.split(0)
    return StatusCommand()


def _kick(arguments: Arguments, dialect: Dialect) -> Command:
    peer, _, why = arguments.rest.strip(" ").partition(" ")
    arguments.values = [peer]
    if len(why) > MAX_WHY_CHARS:
        raise arguments.wrong(f"why is longer than {MAX_WHY_CHARS} characters")
    return KickCommand(arguments.name(0, "peer"), why)


def _drain(arguments: Arguments, dialect: Dialect) -> Command:
    count = arguments.split(0, 1, 2)
    return DrainCommand(
        arguments.seconds(0, MAX_DRAIN_WITHIN_S) if count else None,
        arguments.name(1, "place") if count > 1 else "",
    )


def _publish(make: type[PublishCommand]) -> Callable[[Arguments, Dialect], Command]:
    """Return what reads a command with rows."""

    def read(arguments: Arguments, dialect: Dialect) -> Command:
        arguments.split_at_most(2)
        stream = arguments.name(0, "stream")
        instance = arguments.take_instance(1)
        number = arguments.take_number(1)
        rows = arguments.values[1]
        if not rows:
            raise arguments.wrong("the row is empty" if make is PublishCommand else "no rows")
        return make(stream, rows.encode(), instance, number)

    return read


def _published(arguments: Arguments, dialect: Dialect) -> Command:
    count = arguments.split(4, 5)
    number = arguments.take_number(4) if count > 4 else None
    if count > 4 and number is None:
        raise arguments.wrong("the number{} does not begin with #", arguments.values[4])
    return PublishedCommand(
        arguments.name(0, "stream"),
        arguments.name(1, "instance"),
        arguments.token(2, "first"),
        arguments.token(3, "last"),
        number,
    )


def _refused(arguments: Arguments, dialect: Dialect) -> Command:
    arguments.split_at_most(2)
    subject = arguments.name(0, "subject")
    number = arguments.take_number(1)
    arguments.values[1:] = (*arguments.values[1].split(" ", 2), "", "")[:3]
    reason = arguments.values[1]
    if not _is_reason(reason):
        raise arguments.wrong("reason{} is not small letters", reason)
    return RefusedCommand(subject, reason, arguments.token(2, "value"), arguments.values[3], number)


def _producer(arguments: Arguments, dialect: Dialect) -> Command:
    count = arguments.split(1, 2, 3)
    epoch = arguments.token(1, "epoch") if count > 1 else None
    if epoch == 0:
        raise arguments.wrong("epochs begin at 1")
    return ProducerCommand(
        arguments.name(0, "name"),
        epoch,
        arguments.token(2, "sequence") if count > 2 else None,
    )


def _auth(arguments: Arguments, dialect: Dialect) -> Command:
    arguments.split(1)
    token = arguments.values[0]
    if not is_secret(token):
        raise arguments.wrong(f"the token is not {SECRET_SHAPE}")
    return AuthCommand(token)


def _authorized(arguments: Arguments, dialect: Dialect) -> Command:
    arguments.split_at_most(2)
    return AuthorizedCommand(arguments.name(0, "name"), arguments.values[1])


def _info(arguments: Arguments, dialect: Dialect) -> Command:
    return InfoCommand(arguments.rest)


_PARSERS: Final[dict[str, Callable[[Arguments, Dialect], Command]]] = {
    "SERVER": _one_name(ServerCommand, "server name"),
    "RDATA": _rdata,
    "POSITION": _position,
    "ERROR": _error,
    "PING": _ping,
    "NAME": _name,
    "REPLICATE": _replicate,
    "USER_SYNC": _user_sync,
    "CLEAR_USER_SYNC": _one_name(ClearUserSyncCommand, "instance id"),
    "FEDERATION_ACK": _federation_ack,
    "REMOVE_PUSHER": _remove_pusher,
    "INVALIDATE_CACHE": _invalidate_cache,
    "USER_IP": _user_ip,
    "REMOTE_SERVER_UP": _one_name(RemoteServerUpCommand, "server"),
    "SYNC": _sync,
    "LOCK_RELEASED": _lock_released,
    "NEW_ACTIVE_TASK": _one_name(NewActiveTaskCommand, "task id"),
    "CANCEL_TASK": _one_name(CancelTaskCommand, "task id"),
    "HELP": _help,
    "STATUS": _status,
    "KICK": _kick,
    "DRAIN": _drain,
    "INFO": _info,
    "PUBLISH": _publish(PublishCommand),
    "PUBLISH_ROWS": _publish(PublishRowsCommand),
    "PUBLISH_BATCH": _publish(PublishBatchCommand),
    "PUBLISHED": _published,
    "REFUSED": _refused,
    "PRODUCER": _producer,
    "AUTH": _auth,
    "AUTHORIZED": _authorized,
}


def word_of(line: bytes) -> str | None:
    """Return the command word that *line* starts with, in upper case; None if there is none."""
    word = line.partition(_SP)[0].upper().decode("utf-8", "replace")
    return word if word in _PARSERS else None


def parse_line(line: bytes, dialect: Dialect) -> Command:
    """Return the command that *line*, without its delimiter, stands for.

    Args:
        line: One line; blank ones are the caller's to skip.
        dialect: Decides how RDATA is read; every other command is told by its arguments.

    Raises:
        BadEncoding: It is not UTF-8.
        UnknownCommand: Its first word is no command.
        MalformedCommand: The arguments do not fit the word.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        word = word_of(line)
        raise BadEncoding(
            f"{f'{word}: ' if word else ''}byte {error.start + 1} of the line "
            f"(0x{line[error.start]:02x}) is not UTF-8"
        ) from None
    word, _, rest = text.partition(" ")
    # Only ASCII letters change their case: U+017F would become an S.
    name = word.upper() if word.isascii() else word
    parser = _PARSERS.get(name)
    if parser is None:
        shown = snippet(word)
        raise UnknownCommand(
            f'unknown command "{shown}"; HELP lists the commands'
            if word
            else "a space where a command should stand; HELP lists the commands",
            snippet=shown,
        )
    return parser(Arguments(name, rest), dialect)
