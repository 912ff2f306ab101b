"""Rows of streams as tables with named columns (protocol.md section 13).

A query parameter of the long poll selects a *feed*: a stream, and how its rows become rows of
one or more tables. The tables and columns that the API of 2016 had keep their names; every
other stream has one table with the names of its own fields. Cells are JSON as it came: nothing
is decoded that is not looked into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import msgspec
from msgspec import Raw

from tcprepl.ids import StreamName
from tcprepl.streams.json_rows import rows_in

if TYPE_CHECKING:
    from tcprepl.streams.registry import Registry, StreamDef

#: A cell, as JSON.
Cell: TypeAlias = bytes
#: A row without its position: the place of its table in the feed, and its cells.
Placed: TypeAlias = tuple[int, list[Cell]]
#: Turns the elements of a stream's row into a row of a table; None when the feed has no
#: interest in it.
Convert: TypeAlias = Callable[[list[Cell]], Placed | None]

NULL: Cell = b"null"

_decode = msgspec.json.Decoder(list[Raw]).decode


def _elements(array: bytes) -> list[Cell]:
    """Return the elements of a JSON array.

    Raises:
        ValueError: It is none.
    """
    try:
        return [bytes(cell) for cell in _decode(array)]
    except (msgspec.MsgspecError, RecursionError):
        return [bytes(cell) for cell in rows_in(array)]  # it takes more, and is slower


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its name, and its columns without ``position``."""

    name: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Feed:
    """What a query parameter selects.

    Attributes:
        parameter: Its name.
        stream: The stream that is read.
        tables: Where its rows go; the first is answered when there are no rows.
        convert: How.
    """

    parameter: str
    stream: StreamName
    tables: tuple[Table, ...]
    convert: Convert

    def place(self, row: bytes) -> Placed | None:
        """Return the table and the cells of a row of the stream.

        A row whose shape is not the table's loses nothing: missing cells are null, and of
        surplus ones nobody has told what they are, so that they are left out.
        """
        if self.convert is _whole:
            return 0, [row]
        cells = [row]
        try:
            cells = _elements(row)
            placed = self.convert(cells)
        except (ValueError, IndexError):  # of another version, perhaps
            placed = 0, cells
        if placed is None:
            return None
        table, cells = placed
        return table, fit(cells, len(self.tables[table].columns))


def fit(cells: list[Cell], width: int) -> list[Cell]:
    """Return *cells* with exactly *width* of them."""
    return [*cells, *[NULL] * (width - len(cells))][:width]


def as_text(cell: Cell) -> Cell:
    """Return JSON as a JSON string that holds it; a string is taken as holding it already."""
    return cell if cell[:1] == b'"' else msgspec.json.encode(cell.decode("utf-8"))


def _whole(cells: list[Cell]) -> Placed:
    return 0, cells


def _as_is(cells: list[Cell]) -> Placed:
    return 0, cells


def _events(cells: list[Cell]) -> Placed:
    word, data = (*cells, NULL)[:2]
    if len(cells) > 2:  # the flat rows of before 2019
        return 0, cells
    if word == b'"ev"':
        return 0, _elements(data)
    if word == b'"state"':
        return 1, _elements(data)
    if word == b'"state-all"':
        return 1, _elements(data)[:1]
    return 2, [word, as_text(data)]


def _typing(cells: list[Cell]) -> Placed:
    return 0, [*cells[:1], *map(as_text, cells[1:2])]


def _receipts(cells: list[Cell]) -> Placed:
    *key, last = cells
    thread = [key.pop()] if len(cells) > 5 else []
    return 0, [*key, as_text(last), *thread]


def _federation(cells: list[Cell]) -> Placed:
    return 0, [*cells[:1], *map(as_text, cells[1:2])]


def _pushers(cells: list[Cell]) -> Placed:
    deleted = cells[3:4] in ([b"true"], [b"1"])
    return int(deleted), cells[:3]


def _device_lists(cells: list[Cell]) -> Placed:
    entity, *rest = cells
    if rest and rest[0] not in (b"true", b"false", b"0", b"1"):
        return 0, [entity, rest[0]]  # user and destination, until 2020
    server = not entity.startswith(b'"@')
    return 0, [NULL, entity, *rest] if server else [entity, NULL, *rest]


def _global_account_data(cells: list[Cell]) -> Placed | None:
    user, room, *rest = cells
    return (0, [user, *rest]) if room == NULL else None


def _room_account_data(cells: list[Cell]) -> Placed | None:
    return None if cells[1] == NULL else (0, cells)


_EVENT = ("event_id", "room_id", "type", "state_key", "redacts", "relates_to")

#: Parameter -> (stream, tables, conversion), where it is not one table of the stream's fields.
_SPECIAL: dict[str, tuple[StreamName, tuple[Table, ...], Convert]] = {
    "events": (
        "events",
        (
            Table("events", (*_EVENT, "membership", "rejected", "outlier")),
            Table("current_state_deltas", ("room_id", "type", "state_key", "event_id")),
            Table("other_events", ("type", "data")),
        ),
        _events,
    ),
    "typing": ("typing", (Table("typing", ("room_id", "typing")),), _typing),
    "receipts": (
        "receipts",
        (
            Table(
                "receipts", ("room_id", "receipt_type", "user_id", "event_id", "data", "thread_id")
            ),
        ),
        _receipts,
    ),
    "pushers": (
        "pushers",
        (
            Table("pushers", ("user_id", "app_id", "pushkey")),
            Table("deleted_pushers", ("user_id", "app_id", "pushkey")),
        ),
        _pushers,
    ),
    "federation": ("federation", (Table("federation", ("type", "content")),), _federation),
    "device_lists": (
        "device_lists",
        (Table("device_lists", ("user_id", "destination", "is_signature", "hosts_calculated")),),
        _device_lists,
    ),
    "user_account_data": (
        "account_data",
        (Table("user_account_data", ("user_id", "type", "content")),),
        _global_account_data,
    ),
    "room_account_data": (
        "account_data",
        (Table("room_account_data", ("user_id", "room_id", "type", "content")),),
        _room_account_data,
    ),
}


def feeds(registry: Registry) -> dict[str, Feed]:
    """Return every feed that *registry* makes possible, by parameter."""
    found: dict[str, Feed] = {}
    for name in registry.names():
        found[name] = _feed_of(registry.get(name))
    for parameter, (stream, tables, convert) in _SPECIAL.items():
        if stream in registry and registry.get(stream).row_type is not None:
            found[parameter] = Feed(parameter, stream, tables, convert)
    return found


def _feed_of(stream: StreamDef) -> Feed:
    if stream.row_type is None:
        return Feed(stream.name, stream.name, (Table(stream.name, ("row",)),), _whole)
    columns = (
        tuple(field.name for field in msgspec.structs.fields(stream.row_type))
        if isinstance(stream.row_type, type)
        else ("type", "data")
    )
    return Feed(stream.name, stream.name, (Table(stream.name, columns),), _as_is)


#: Which streams each place of the ``streams`` token counts, in the order that the places got
#: theirs between 2016 and 2017. The ninth was for state groups, which nobody streams.
OLD_SLOTS: tuple[tuple[StreamName, ...], ...] = (
    ("events",),
    ("presence",),
    ("typing",),
    ("receipts",),
    ("account_data", "tag_account_data"),
    ("backfill",),
    ("push_rules",),
    ("pushers",),
    (),
    ("caches",),
    ("to_device",),
    ("public_rooms",),
    ("federation",),
    ("device_lists",),
)

#: The parameters under which a stream is listed, where it is not its name alone.
_LISTED_AS = {"account_data": ("user_account_data", "room_account_data")}


def slots(registry: Registry) -> tuple[tuple[StreamName, ...], ...]:
    """Return the places of the ``streams`` token: the old ones, then one per further stream."""
    old = {name for slot in OLD_SLOTS for name in slot}
    known = [tuple(name for name in slot if name in registry) for slot in OLD_SLOTS]
    return (*known, *((name,) for name in registry.names() if name not in old))


def listed_as(streams: Iterable[StreamName]) -> Sequence[tuple[str, StreamName]]:
    """Return (parameter, stream) of each row that the ``streams`` table has for *streams*."""
    return [
        (parameter, stream) for stream in streams for parameter in _LISTED_AS.get(stream, (stream,))
    ]
