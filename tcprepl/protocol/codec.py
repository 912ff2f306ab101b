"""Lines to commands and commands to lines (protocol.md sections 4 and 6).

Reading is tolerant wherever the arguments tell the forms apart; writing is exactly what the
dialect says. What an error quotes is escaped, short and never from a command that carries
secrets.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Final, cast

from tcprepl.errors import BadEncoding, LocalProtocolError, UnknownCommand
from tcprepl.ids import InstanceName, StreamName, Token
from tcprepl.limits import MAX_SAID_INCARNATIONS, MAX_TOKEN
from tcprepl.protocol.arguments import Arguments
from tcprepl.protocol.commands import (
    AuthCommand,
    AuthorizedCommand,
    CacheKey,
    CancelTaskCommand,
    ClearUserSyncCommand,
    Command,
    ErrorCommand,
    FederationAckCommand,
    HelpCommand,
    InfoCommand,
    InvalidateCacheCommand,
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
from tcprepl.protocol.grammar import (
    LABEL_SHAPE,
    NAME_SHAPE,
    PATTERNS,
    SECRET_SHAPE,
    TOKEN_RANGE,
    is_instance_name,
)
from tcprepl.protocol.specs import COMMANDS

_LF: Final = b"\n"
_SP: Final = b" "
_BATCH: Final = "batch"
#: How many words REPLICATE has that says 1 to 8 incarnations.
_INCARNATION_COUNTS: Final = tuple(range(4, 4 + 2 * MAX_SAID_INCARNATIONS, 2))
_EVERY: Final = "*"
_is_name = PATTERNS["name"].fullmatch
_is_label = PATTERNS["label"].fullmatch
_is_token = PATTERNS["token"].fullmatch
_is_time = PATTERNS["time"].fullmatch
_is_reason = PATTERNS["reason"].fullmatch
_is_secret = PATTERNS["secret"].fullmatch


# -- reading ---------------------------------------------------------------------------------


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
    if not _is_secret(token):
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


# -- writing ---------------------------------------------------------------------------------


def _word(value: str) -> str:
    """Return *value*, which has to be one word, lest the line mean something else."""
    if not _is_name(value):
        raise LocalProtocolError(f'"{snippet(value)}" is not {NAME_SHAPE}')
    return value


def _number(token: int) -> int:
    """Return *token*, which has to be in range."""
    if not 0 <= token <= MAX_TOKEN:
        raise LocalProtocolError(f"{token} is not {TOKEN_RANGE}")
    return token


def _hash(number: int | None, before: str = "", after: str = "") -> str:
    """Return a number that ties an answer to a question, if there is one."""
    return "" if number is None else f"{before}#{_number(number)}{after}"


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _replicate_arguments(command: ReplicateCommand, dialect: Dialect) -> str:
    if command.stream is None:
        if dialect.in_band_resume and not dialect.rdata_instance:
            raise LocalProtocolError(f"dialect {dialect.name} has no bare REPLICATE")
        return ""
    if not dialect.in_band_resume:
        raise LocalProtocolError(f"dialect {dialect.name} has no REPLICATE of a stream")
    stream = _word(command.stream)
    token = "NOW" if command.now or command.token is None else _number(command.token)
    if dialect.rdata_instance:
        instance = _word(command.instance or _EVERY)
        said = command.incarnations[:MAX_SAID_INCARNATIONS]
        if said and command.token == said[0][0]:
            places = [f"{_number(place)} {_word(incarnation)}" for place, incarnation in said]
            return " ".join((stream, instance, *places))
        return f"{stream} {instance} {token}"
    return f"{'ALL' if stream == _EVERY else stream} {token}"


def _user_sync_arguments(command: UserSyncCommand, dialect: Dialect) -> str:
    user_id = _word(command.user_id)
    tail = f"{'start' if command.syncing else 'end'} {command.last_sync_ms}"
    if dialect.user_sync_arguments == 3:
        return f"{user_id} {tail}"
    if command.instance_id is None:
        raise LocalProtocolError(f"USER_SYNC of dialect {dialect.name} needs an instance id")
    instance_id = _word(command.instance_id)
    if dialect.user_sync_arguments == 4:
        return f"{instance_id} {user_id} {tail}"
    return f"{instance_id} {user_id} {_word(command.device_id or 'None')} {tail}"


def _position_arguments(command: PositionCommand, dialect: Dialect) -> str:
    stream, token = _word(command.stream), _number(command.token)
    if not dialect.rdata_instance:
        return f"{stream} {token}"
    instance = _word(command.instance)
    if dialect.position_tokens == 1:
        return f"{stream} {instance} {token}"
    return f"{stream} {instance} {token if command.prev is None else _number(command.prev)} {token}"


def _arguments(command: Command, dialect: Dialect) -> str:
    """Return everything after the word and its space; RDATA's row is not part of it."""
    match command:
        case RdataCommand(stream, instance, token):
            place = _word(stream) + (f" {_word(instance)}" if dialect.rdata_instance else "")
            return f"{place} {_BATCH if token is None else _number(token)} "
        case PositionCommand():
            return _position_arguments(command, dialect)
        case ErrorCommand(text) | PingCommand(text) | SyncCommand(text) | InfoCommand(text):
            return text
        case NameCommand(name):
            if not _is_label(name) or name != name.strip(" "):
                raise LocalProtocolError(f'"{snippet(name)}" is not {LABEL_SHAPE}')
            return name
        case (
            ServerCommand(name)
            | RemoteServerUpCommand(name)
            | ClearUserSyncCommand(name)
            | NewActiveTaskCommand(name)
            | CancelTaskCommand(name)
        ):
            return _word(name)
        case ReplicateCommand():
            return _replicate_arguments(command, dialect)
        case UserSyncCommand():
            return _user_sync_arguments(command, dialect)
        case FederationAckCommand(instance, token):
            if not dialect.ack_instance:
                return str(_number(token))
            if instance is None:
                raise LocalProtocolError(
                    f"FEDERATION_ACK of dialect {dialect.name} needs an instance"
                )
            return f"{_word(instance)} {_number(token)}"
        case RemovePusherCommand(app_id, push_key, user_id):
            return f"{_word(app_id)} {_word(push_key)} {_word(user_id)}"
        case InvalidateCacheCommand(cache_func, keys):
            return f"{_word(cache_func)} {_compact(keys)}"
        case UserIpCommand(user_id, access_token, ip, user_agent, device_id, last_seen_ms):
            seen = (access_token, ip, user_agent, device_id, last_seen_ms)
            return f"{_word(user_id)} {_compact(seen)}"
        case LockReleasedCommand(instance, lock_name, lock_key):
            return _compact((instance, lock_name, lock_key))
        case PublishCommand(stream, _, instance, number):
            if instance is not None and not is_instance_name(instance):
                raise LocalProtocolError(f'"{snippet(instance)}" is no name of an instance')
            writer = "" if instance is None else f"@{instance} "
            return f"{_word(stream)} {writer}{_hash(number, '', ' ')}"
        case PublishedCommand(stream, instance, first, last, number):
            place = f"{_word(stream)} {_word(instance)} {_number(first)} {_number(last)}"
            return place + _hash(number, " ")
        case RefusedCommand(subject, reason, value, text, number):
            if not _is_reason(reason):
                raise LocalProtocolError(f'"{snippet(reason)}" is not small letters')
            return f"{_word(subject)} {_hash(number, '', ' ')}{reason} {_number(value)} {text}"
        case ProducerCommand(name, epoch, sequence):
            given = itertools.takewhile(lambda value: value is not None, (epoch, sequence))
            return " ".join((_word(name), *(str(_number(value or 0)) for value in given)))
        case AuthCommand(token):
            if not _is_secret(token):
                raise LocalProtocolError(f"a token is not {SECRET_SHAPE}")
            return token
        case AuthorizedCommand(name, text):
            return f"{_word(name)} {text}"
        case HelpCommand(topic):
            return topic
        case StatusCommand():
            return ""
    raise LocalProtocolError(f"{type(command).__name__} is no command of the wire")


def published_lines(
    stream: StreamName, instance: InstanceName, first: Token, numbers: Sequence[bytes]
) -> bytes:
    """Return the PUBLISHED lines of single rows that got the tokens from *first* on.

    Args:
        stream: The stream.
        instance: Whose tokens they are.
        first: The token of the first row.
        numbers: The number of each question, in digits.
    """
    place = f"PUBLISHED {_word(stream)} {_word(instance)} ".encode().replace(b"%", b"%%")
    tokens = range(first, first + len(numbers))
    words = tuple(itertools.chain.from_iterable(zip(tokens, tokens, numbers, strict=True)))
    return (place + b"%d %d #%b\n") * len(numbers) % words


def published_line(
    stream: StreamName, instance: InstanceName, first: Token, last: Token, number: int | None
) -> bytes:
    """Return the PUBLISHED line of rows that got the tokens from *first* to *last*."""
    words = f"{_word(stream)} {_word(instance)} {first} {last}{_hash(number, ' ')}"
    return f"PUBLISHED {words}\n".encode()


def serialize(command: Command, dialect: Dialect) -> bytes:
    """Return the line of *command*, LF included, exactly as *dialect* writes it.

    Raises:
        LocalProtocolError: The dialect has no such command, a value does not fit on a line,
            or the line is longer than the peer accepts.
    """
    word = command.NAME
    if word in COMMANDS and dialect.name not in COMMANDS[word].dialects:
        raise LocalProtocolError(f"dialect {dialect.name} has no {word}")
    try:
        line = f"{word} {_arguments(command, dialect)}".encode()
    except UnicodeEncodeError:
        raise LocalProtocolError(f"{word}: a lone surrogate cannot be written") from None
    if isinstance(command, RdataCommand):
        line += command.row
    elif isinstance(command, PublishCommand):
        line += command.rows
    if _LF in line or line.endswith(b"\r"):
        raise LocalProtocolError(f"{word}: a line break cannot be written")
    if len(line) > dialect.max_line_bytes:
        raise LocalProtocolError(
            f"{word}: a line of {len(line)} bytes; dialect {dialect.name} "
            f"takes {dialect.max_line_bytes}"
        )
    return line + _LF
