"""Commands to lines, exactly as each dialect says (protocol.md sections 4 and 6)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Final

from tcprepl.errors import LocalProtocolError
from tcprepl.ids import InstanceName, StreamName, Token
from tcprepl.limits import MAX_SAID_INCARNATIONS, MAX_TOKEN
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
    PublishCommand,
    PublishedCommand,
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
from tcprepl.protocol.dialects import Dialect
from tcprepl.protocol.display import snippet
from tcprepl.protocol.grammar import (
    LABEL_SHAPE,
    NAME_SHAPE,
    PATTERNS,
    SECRET_SHAPE,
    TOKEN_RANGE,
    is_instance_name,
    is_label,
    is_secret,
)
from tcprepl.protocol.specs import COMMANDS

_LF: Final = b"\n"
_BATCH: Final = "batch"
_EVERY: Final = "*"
_is_name = PATTERNS["name"].fullmatch
_is_reason = PATTERNS["reason"].fullmatch


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
            if not is_label(name):
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
            if not is_secret(token):
                raise LocalProtocolError(f"a token is not {SECRET_SHAPE}")
            return token
        case AuthorizedCommand(name, text):
            return f"{_word(name)} {text}"
        case HelpCommand(topic):
            return topic
        case StatusCommand():
            return ""
        case KickCommand(peer, why):
            return f"{_word(peer)} {why}" if why else _word(peer)
        case DrainCommand(within_s, to):
            if within_s is None:
                if to:
                    raise LocalProtocolError("DRAIN: where to go needs how long peers have")
                return ""
            return f"{_number(within_s)} {_word(to)}" if to else str(_number(within_s))
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


def ping_line(now_ms: int) -> bytes:
    """Return the PING line that says a time; it is the same in every dialect that has it."""
    return b"PING %d\n" % now_ms


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
