"""protocol.md as data: its sections, tables and blocks, and what the code would write there.

The tests compare the two. A table may have more columns than the code knows: those are for
people, and are not compared.
"""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from msgspec import UNSET
from signedjson.key import decode_signing_key_base64
from unpaddedbase64 import encode_base64

from tcprepl.conformance import document
from tcprepl.conformance.document import Block
from tcprepl.ephemeral import presence_states, typing_notifications
from tcprepl.ephemeral.presence_states import PresenceTimers
from tcprepl.federation.sending.backoff import BackoffPolicy
from tcprepl.federation.sending.lanes import EXPIRY_MS, LANES, SHARES, Lane
from tcprepl.federation.sending.sharding import responsible_sender
from tcprepl.federation.wire.edu import edu_from_bytes
from tcprepl.federation.wire.signing import Signer, request_bytes
from tcprepl.federation.wire.transaction import MAX_PRESENCE_USERS, TransactionLimits, build_body
from tcprepl.protocol.dialects import DIALECTS, Dialect
from tcprepl.protocol.grammar import ABNF
from tcprepl.protocol.specs import COMMANDS
from tcprepl.protocol.state import TRANSITIONS, Role, State, Way
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.streams.rows import PresenceRow
from tcprepl.web.tables import feeds

ROOT = Path(__file__).parent.parent
PROTOCOL_MD = ROOT / "protocol.md"

_OPEN_STATES = (State.CONNECTED, State.GREETED, State.REPLICATING)


@dataclass(frozen=True)
class Table:
    """A table: cells are text without the blanks around them."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, name: str) -> list[str]:
        """Return the cells below *name*."""
        index = self.header.index(name)
        return [row[index] for row in self.rows]

    def by_first(self) -> dict[str, tuple[str, ...]]:
        """Return the rows by their first cell, which has to be unique."""
        rows = {row[0]: row for row in self.rows}
        assert len(rows) == len(self.rows), f"repeated first cells below {self.header}"
        return rows


class Section(document.Section):
    """A section with its tables."""

    def tables(self) -> list[Table]:
        """Return the tables."""
        tables = []
        group: list[str] = []
        for line in (*self.lines, ""):
            if line.startswith("|"):
                group.append(line)
            elif group:
                header, _, *rows = (_cells(row) for row in group)
                assert all(len(row) == len(header) for row in rows), group
                tables.append(Table(header, tuple(rows)))
                group = []
        return tables

    def table(self, first_header: str) -> Table:
        """Return the table whose first column is *first_header*."""
        (found,) = [table for table in self.tables() if table.header[0] == first_header]
        return found


def _cells(row: str) -> tuple[str, ...]:
    parts = re.split(r"(?<!\\)\|", row.strip().strip("|"))
    return tuple(part.strip().replace("\\|", "|") for part in parts)


class Document:
    """A Markdown file with numbered headings."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sections = {
            one.number: Section(one.number, one.title, one.lines, one.first)
            for one in document.sections(text)
        }

    @classmethod
    def load(cls) -> Document:
        """Read protocol.md."""
        return cls(PROTOCOL_MD.read_text(encoding="utf-8"))

    def under(self, number: str) -> list[Section]:
        """Return section *number* and those below it, in order."""
        return [
            section
            for key, section in self.sections.items()
            if key == number or key.startswith(f"{number}.")
        ]

    def blocks(self, kind: str) -> list[Block]:
        """Return every block of one kind."""
        return [block for section in self.sections.values() for block in section.blocks(kind)]


def plain(cell: str) -> str:
    """Return a cell without the marks of code and emphasis."""
    return cell.replace("`", "").replace("**", "")


# -- what the code would write ---------------------------------------------------------


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def abnf() -> list[str]:
    """Return the grammar."""
    return ABNF.splitlines()


def diagram(role: Role) -> list[str]:
    """Return the state diagram of one end: every way from a state to another one."""
    edges: dict[tuple[State, State], list[str]] = {}
    for (end, state, way, word), after in TRANSITIONS.items():
        if end is role and after is not state:
            label = word if way is Way.INCIDENT else f"{way.value} {word}"
            edges.setdefault((state, after), []).append(label)
    lines = ["stateDiagram-v2", f"    [*] --> {State.CONNECTED.value}"]
    lines += [
        f"    {before.value} --> {after.value} : {', '.join(labels)}"
        for (before, after), labels in edges.items()
    ]
    return [*lines, f"    {State.CLOSED.value} --> [*]"]


def loops(role: Role) -> list[tuple[str, str, str]]:
    """Return (state, what it sends, what it receives) of the words that change no state."""
    rows = []
    for state in _OPEN_STATES:
        words: dict[Way, list[str]] = {Way.SENT: [], Way.RECEIVED: []}
        for (end, before, way, word), after in TRANSITIONS.items():
            if end is role and before is after is state:
                words[way].append(f"`{word}`")
        rows.append(
            (
                f"`{state.value}`",
                " ".join(words[Way.SENT]) or "-",
                " ".join(words[Way.RECEIVED]) or "-",
            )
        )
    return rows


def _legal(role: Role, word: str) -> str:
    states = [state for state in _OPEN_STATES if (role, state, Way.SENT, word) in TRANSITIONS]
    names = [f"`{state.value}`" for state in states]
    if states == list(_OPEN_STATES[-len(states) :]) and len(states) > 1:
        return f"{names[0]} on"
    return ", ".join(names) or "-"


def command_row(word: str) -> tuple[str, str, str, str]:
    """Return name, sent by, legal in, and dialects of a command."""
    spec = COMMANDS[word]
    ends = [role for role in Role if role in spec.sent_by]
    legal = {role: _legal(role, word) for role in ends}
    where = (
        legal[ends[0]]
        if len(set(legal.values())) == 1
        else "; ".join(f"{role.value[0].upper()} {text}" for role, text in legal.items())
    )
    names = [name for name in DIALECTS if name in spec.dialects]
    missing = [name for name in DIALECTS if name not in spec.dialects]
    if not missing:
        dialects = "all"
    elif len(missing) < len(names):
        dialects = "all but " + ", ".join(missing)
    else:
        dialects = ", ".join(names)
    return f"`{word}`", " ".join(role.value[0].upper() for role in ends), where, dialects


class _Probe:
    """Answers every attribute with its name: tells which field a key function looks at."""

    def __getattr__(self, name: str) -> str:
        return name


def row_shape(row: Any) -> str:
    """Return the fields of a row type, or of each of its alternatives."""
    if get_origin(row) in (Union, types.UnionType):
        return " ".join(f"`{_shape(kind)}`" for kind in get_args(row))
    return f"`{_shape(row)}`"


def _shape(row: Any) -> str:
    hints = get_type_hints(row)
    fields = [
        name + _mark(hints[name], optional=default is UNSET)
        for name, default in zip(row.__struct_fields__, _defaults(row), strict=True)
    ]
    if row.__struct_config__.tag:
        fields.insert(0, f'"{row.__struct_config__.tag}"')
    return f"[{', '.join(fields)}]"


def _defaults(row: Any) -> list[object]:
    given = list(row.__struct_defaults__)
    return [None] * (len(row.__struct_fields__) - len(given)) + given


def _mark(hint: Any, *, optional: bool) -> str:
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if any(get_origin(kind) is list for kind in kinds):
        text = "[...]"
    elif any(get_origin(kind) is dict for kind in kinds) or hasattr(hint, "__struct_fields__"):
        text = "{...}" if not _is_array(hint) else "[...]"
    else:
        text = ""
    if type(None) in kinds:
        text += "?"
    return text + ("*" if optional else "")


def _is_array(hint: Any) -> bool:
    config = getattr(hint, "__struct_config__", None)
    return config is not None and bool(config.array_like)


def stream_row(stream: StreamDef) -> tuple[str, str, str, str, str]:
    """Return name, row, kind, key and whether it is offered, of a stream."""
    key = stream.key(_Probe()) if stream.key is not None else "-"
    return (
        f"`{stream.name}`",
        row_shape(stream.row_type),
        "durable" if stream.durable else "ephemeral",
        f"`{key}`" if stream.key is not None else "-",
        "yes" if stream.offered_by_default else "no",
    )


def dialect_row(dialect: Dialect) -> tuple[str, ...]:
    """Return what the code knows of a dialect."""
    if dialect.in_band_resume:
        asks = "stream, instance, token" if dialect.rdata_instance else "stream, token"
    else:
        asks = "bare"
    return (
        f"`{dialect.name}`",
        asks,
        "yes" if dialect.rdata_instance else "no",
        str(dialect.position_tokens),
        str(dialect.user_sync_arguments),
        "yes" if dialect.ack_instance else "no",
        str(dialect.max_line_bytes),
    )


def feed_rows() -> list[tuple[str, str, str]]:
    """Return parameter, table and columns of everything that a long poll can ask for."""
    return [
        (f"`{parameter}`", f"`{table.name}`", ", ".join(table.columns))
        for parameter, feed in feeds(Registry()).items()
        for table in feed.tables
    ]


_UNITS = {"BYTES": "bytes", "ROWS": "rows", "MS": "ms", "S": "s", "CHARS": "characters"}


def unit_of(limit: str) -> str:
    """Return the unit that the name of a limit ends in; ``-`` for a count."""
    return _UNITS.get(limit.rpartition("_")[2], "-")


def shard_rows() -> list[tuple[str, str]]:
    """Return which of three senders is responsible for some destinations."""
    names = ("matrix.org", "b.example", "c.example:8448", "[::1]:8448")
    return [(f"`{name}`", f"`{responsible_sender(name, ('a', 'b', 'c'))}`") for name in names]


def lane_rows() -> list[tuple[str, str, str, str]]:
    """Return what waits in each lane, its share, and when it expires."""
    rows = []
    for lane, share in zip(Lane, SHARES, strict=True):
        types = [edu_type for edu_type, where in LANES.items() if where is lane]
        ages = {EXPIRY_MS[edu_type] // 60_000 for edu_type in types if edu_type in EXPIRY_MS}
        rows.append(
            (
                lane.name.lower().replace("_", " "),
                ", ".join(f"`{edu_type}`" for edu_type in types) or "all others",
                f"{share} %",
                f"{ages.pop()} min" if ages else "never",
            )
        )
    return rows


def transaction_rows() -> list[tuple[str, str]]:
    """Return what bounds a transaction."""
    bounds = TransactionLimits()
    return [
        ("EDUs", str(bounds.edus)),
        ("PDUs", str(bounds.pdus)),
        ("bytes of the body, configurable", str(bounds.max_bytes)),
        ("users in one presence EDU", str(MAX_PRESENCE_USERS)),
        ("transactions in flight for one destination", "1"),
    ]


def worked_example() -> dict[str, str]:
    """Return the body, the signed bytes and the header of the example in section 14.3."""
    key = decode_signing_key_base64("ed25519", "1", encode_base64(bytes(32)))
    typing = b'{"room_id":"!r:a.example","typing":true,"user_id":"@a:a.example"}'
    body = build_body(
        "a.example",
        1_661_000_000_000,
        [edu_from_bytes("a.example", "b.example", "m.typing", typing)],
    )
    uri = "/_matrix/federation/v1/send/1661000000000"
    signer = Signer("a.example", key)
    return {
        "transaction": body.decode(),
        "signed": request_bytes("PUT", uri, "a.example", "b.example", body).decode(),
        "authorization": signer.authorization("b.example", "PUT", uri, body).decode(),
    }


def backoff_words() -> dict[str, str]:
    """Return the numbers of the back-off as section 14.4 says them."""
    policy = BackoffPolicy()
    *first, last = policy.quick_ms
    repeats = sum(wait == last for wait in policy.quick_ms)
    words = ", ".join(f"{wait // 1_000} s" for wait in dict.fromkeys(first) if wait != last)
    return {
        "QUICK": f"{words}, then {repeats} times {last // 1_000} s",
        "FIRST": f"{policy.first_ms // 60_000} min",
        "FACTOR": f"{policy.factor:g} times",
        "CAP": f"{policy.cap_ms // 86_400_000} days",
        "JLOW": f"{policy.jitter[0]:g}",
        "JHIGH": f"{policy.jitter[1]:g}",
    }


_STATE_ORDER = (
    presence_states.ONLINE,
    presence_states.UNAVAILABLE,
    presence_states.BUSY,
    presence_states.OFFLINE,
)


def typing_rows() -> list[tuple[str, str]]:
    """Return the times that the writer of typing goes by."""
    times = {
        'a client\'s "typing", unless it says': typing_notifications.DEFAULT_TIMEOUT_MS,
        "the longest that a client may say": typing_notifications.MAX_TIMEOUT_MS,
        'a remote server\'s "typing"': typing_notifications.FEDERATION_TIMEOUT_MS,
        "remote servers are told again after": typing_notifications.FEDERATION_PING_INTERVAL_MS,
        "everybody who types is looked at again after": typing_notifications.PARANOIA_MS,
        "a room in which nobody types is forgotten after": typing_notifications.FORGET_AFTER_MS,
        "timers are looked at every": int(typing_notifications.TIMER_INTERVAL_S * 1_000),
    }
    return [(what, _span(ms)) for what, ms in times.items()]


def deadline_rows() -> list[tuple[str, str, str, str, str, str]]:
    """Return what time does to a presence state."""
    timers = PresenceTimers()
    probe = PresenceRow("", "", 3, 1, 2, None, True)
    since = {3: "last activity", 1: "last word to or from remote servers"}
    heard = presence_states.last_heard_ms
    return [
        (
            deadline.name,
            "local" if deadline.ours else "remote",
            ", ".join(f"`{state}`" for state in _STATE_ORDER if state in deadline.states),
            "last sync or activity" if deadline.since is heard else since[deadline.since(probe)],
            _span(deadline.limit_ms(timers)),
            f"`{deadline.becomes}`" if deadline.becomes else "looked at again",
        )
        for deadline in presence_states.DEADLINES
    ]


def _span(ms: int) -> str:
    return f"{ms // 60_000} min" if ms % 60_000 == 0 else f"{ms / 1_000:g} s"
