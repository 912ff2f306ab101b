"""Shared Hypothesis strategies: names, tokens, rows, commands of a dialect, cut-up bytes."""

from __future__ import annotations

import functools
import itertools
import json

from hypothesis import strategies as st

from tcprepl.limits import MAX_DRAIN_WITHIN_S, MAX_TOKEN
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
    Reason,
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
from tcprepl.protocol.dialects import DEFAULT_INSTANCE, DIALECTS, Dialect
from tcprepl.protocol.grammar import PATTERNS, is_instance_name
from tcprepl.protocol.serializing import serialize
from tcprepl.protocol.specs import COMMANDS

#: Characters of a name: the grammar's name-char, surrogates apart.
NAME_CHARS = st.one_of(
    st.sampled_from("abcXYZ019!@$:._-%{}[]\"'\\"),
    st.characters(min_codepoint=0xA1, blacklist_categories=("Cs",)),
)
#: Characters of a text: everything that fits on a line.
TEXT_CHARS = st.characters(blacklist_categories=("Cs",), blacklist_characters="\n\r")
#: Any JSON value that a row may hold.
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=("Cs",)), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(blacklist_categories=("Cs",)), max_size=6), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@functools.cache
def names() -> st.SearchStrategy[str]:
    """Return a strategy for names of streams, instances, users and the like."""
    return st.text(NAME_CHARS, min_size=1, max_size=24)


@functools.cache
def words() -> st.SearchStrategy[str]:
    """Return a strategy for names that no form of a command gives another meaning."""
    return names().filter(
        lambda name: (
            name.upper() not in ("ALL", "NOW", "NONE")
            and not name.startswith("-")
            and not name.isdigit()
            and name not in ("*", "batch")
        )
    )


@functools.cache
def texts() -> st.SearchStrategy[str]:
    """Return a strategy for free text on a line."""
    return st.text(TEXT_CHARS, max_size=60)


@functools.cache
def tokens() -> st.SearchStrategy[int]:
    """Return a strategy for tokens, the ends of their range included."""
    return st.one_of(st.integers(0, 100), st.integers(0, MAX_TOKEN), st.just(MAX_TOKEN))


@functools.cache
def times_ms() -> st.SearchStrategy[int]:
    """Return a strategy for times in ms since 1970, those before it included."""
    return st.integers(-(10**15), 10**15)


@functools.cache
def rows() -> st.SearchStrategy[bytes]:
    """Return a strategy for rows: JSON in the spacings and escapes that are in use."""
    return st.builds(
        lambda value, ascii_only, compact: json.dumps(
            value, ensure_ascii=ascii_only, separators=(",", ":") if compact else None
        ).encode(),
        JSON,
        st.booleans(),
        st.booleans(),
    )


@functools.cache
def commands(dialect: Dialect, *types: type[Command]) -> st.SearchStrategy[Command]:
    """Return a strategy for what *dialect* can say, of *types* or of any type."""
    chosen = [
        strategy
        for kind, strategy in _builders(dialect).items()
        if dialect.name in COMMANDS[kind.NAME].dialects and (not types or kind in types)
    ]
    return st.one_of(chosen)


@functools.cache
def _builders(dialect: Dialect) -> dict[type[Command], st.SearchStrategy[Command]]:
    """Return for each class a strategy limited to the fields that *dialect* carries."""
    instances = words() if dialect.rdata_instance else st.just(DEFAULT_INSTANCE)
    asked_tokens = st.one_of(tokens().map(lambda token: (token, False)), st.just((None, True)))
    streams = words() | st.just("*")
    of_stream = st.builds(
        lambda stream, instance, asked: ReplicateCommand(stream, instance, *asked),
        streams,
        streams if dialect.rdata_instance else st.none(),
        asked_tokens,
    )
    if dialect.rdata_instance:
        places = st.lists(st.tuples(tokens(), words()), min_size=1, max_size=8).map(tuple)
        of_stream |= st.builds(
            lambda stream, instance, places: ReplicateCommand(
                stream, instance, places[0][0], incarnations=places
            ),
            streams,
            streams,
            places,
        )
    bare = st.just(ReplicateCommand())
    if not dialect.in_band_resume:
        replicate = bare
    elif dialect.rdata_instance:
        replicate = bare | of_stream
    else:
        replicate = of_stream
    keys = st.lists(names() | st.integers() | st.booleans() | st.none(), max_size=4).map(tuple)
    writers = names().filter(is_instance_name)
    numbers = st.none() | tokens()
    return {
        ServerCommand: st.builds(ServerCommand, names()),
        RdataCommand: st.builds(RdataCommand, words(), instances, st.none() | tokens(), rows()),
        PositionCommand: st.builds(
            PositionCommand,
            words(),
            instances,
            tokens() if dialect.rdata_instance and dialect.position_tokens == 2 else st.none(),
            tokens(),
        ),
        ErrorCommand: st.builds(ErrorCommand, texts()),
        PingCommand: st.builds(PingCommand, texts()),
        NameCommand: st.builds(NameCommand, names()),
        ReplicateCommand: replicate,
        UserSyncCommand: st.builds(
            UserSyncCommand,
            words() if dialect.user_sync_arguments > 3 else st.none(),
            words(),
            st.none() | words() if dialect.user_sync_arguments > 4 else st.none(),
            st.booleans(),
            times_ms(),
        ),
        ClearUserSyncCommand: st.builds(ClearUserSyncCommand, names()),
        FederationAckCommand: st.builds(
            FederationAckCommand, words() if dialect.ack_instance else st.none(), tokens()
        ),
        RemovePusherCommand: st.builds(RemovePusherCommand, names(), names(), names()),
        InvalidateCacheCommand: st.builds(InvalidateCacheCommand, names(), keys),
        UserIpCommand: st.builds(
            UserIpCommand,
            names(),
            st.text(max_size=12),
            st.text(max_size=12),
            st.text(max_size=12),
            st.none() | st.text(max_size=12),
            times_ms(),
        ),
        RemoteServerUpCommand: st.builds(RemoteServerUpCommand, names()),
        SyncCommand: st.builds(SyncCommand, texts()),
        LockReleasedCommand: st.builds(
            LockReleasedCommand, st.text(max_size=8), st.text(max_size=8), st.text(max_size=8)
        ),
        NewActiveTaskCommand: st.builds(NewActiveTaskCommand, names()),
        CancelTaskCommand: st.builds(CancelTaskCommand, names()),
        **{
            kind: st.builds(kind, names(), rows(), st.none() | writers, numbers)
            for kind in (PublishCommand, PublishRowsCommand, PublishBatchCommand)
        },
        PublishedCommand: st.builds(
            PublishedCommand, names(), names(), tokens(), tokens(), numbers
        ),
        RefusedCommand: st.builds(
            RefusedCommand,
            names(),
            st.sampled_from([reason.value for reason in Reason]),
            tokens(),
            texts(),
            numbers,
        ),
        ProducerCommand: st.builds(
            lambda name, given: ProducerCommand(name, *given),
            names(),
            st.just(())
            | st.tuples(st.integers(1, MAX_TOKEN))
            | st.tuples(st.integers(1, 9), tokens()),
        ),
        AuthCommand: st.builds(AuthCommand, st.from_regex(PATTERNS["secret"], fullmatch=True)),
        AuthorizedCommand: st.builds(AuthorizedCommand, names(), texts()),
        HelpCommand: st.builds(HelpCommand, st.just("") | names()),
        StatusCommand: st.just(StatusCommand()),
        KickCommand: st.builds(KickCommand, names(), texts().map(lambda why: why.rstrip(" "))),
        DrainCommand: st.just(DrainCommand())
        | st.builds(DrainCommand, st.integers(0, MAX_DRAIN_WITHIN_S), st.just("") | names()),
        InfoCommand: st.builds(InfoCommand, texts()),
    }


def junk_lines() -> st.SearchStrategy[bytes]:
    """Return a strategy for lines that are wrong in some way, or nearly right."""
    return st.one_of(
        st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"")),
        st.builds(
            lambda word, rest: word.encode() + b" " + rest,
            st.sampled_from(sorted(COMMANDS)),
            st.binary(max_size=24).map(lambda raw: raw.replace(b"\n", b"")),
        ),
        st.builds(
            lambda word, rest: f"{word.lower()} {' '.join(rest)}".encode(),
            st.sampled_from(sorted(COMMANDS)),
            st.lists(
                st.sampled_from(["a", "*", "7", "NOW", "batch", "start", "[]", ""]), max_size=5
            ),
        ),
        st.sampled_from(
            [
                b"",
                b"\r",
                b" ",
                b"GET / HTTP/1.1",
                b"*1",
                b"$4",
                b"\x16\x03\x01",
                b"-ERR no",
                b"%s%n",
            ]
        ),
    )


@functools.cache
def streams_of_bytes(*types: type[Command]) -> st.SearchStrategy[bytes]:
    """Return a strategy for what may come over a socket: good lines, bad lines, any bytes."""
    line = st.one_of(
        *(
            commands(dialect, *types).map(
                lambda command, dialect=dialect: serialize(command, dialect)
            )
            for dialect in DIALECTS.values()
        ),
        st.builds(lambda line, end: line + end, junk_lines(), st.sampled_from([b"\n", b"\r\n"])),
    )
    return st.builds(
        lambda lines, rest: b"".join(lines) + rest,
        st.lists(line, max_size=12),
        st.just(b"") | st.binary(max_size=20),
    )


@st.composite
def cuts(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Cut *data* into pieces, some of them empty."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=20)))
    edges = [0, *places, len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]
