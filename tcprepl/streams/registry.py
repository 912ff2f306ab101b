"""Which streams there are, and what is known of each (protocol.md section 7)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from tcprepl.errors import UnknownStream
from tcprepl.ids import StreamName
from tcprepl.protocol.grammar import INSTANCE_SHAPE, NAME_SHAPE, is_instance_name, is_name
from tcprepl.streams import rows
from tcprepl.streams.codec import Reader, RowCodec, Rows


def never(row: Any) -> bool:
    """Say that no row is blank."""
    return False


class StreamDef:
    """What is known of a stream; immutable.

    Attributes:
        name: Its name on the wire.
        codec: JSON in and out for its rows.
        row_type: Type of a row; None when rows are opaque JSON.
        durable: Whether its rows outlive the process.
        key: For a stream of states, gives the key of a row: of an ephemeral stream the
            newest row of each key is kept past retention, for readers that start anew.
            None for a stream of happenings.
        key_is_first_field: Whether the key is the text that a row begins with, which is
            cheaper to read than the row.
        blank: Whether a row says no more than that its key has no state any longer.
        offered_by_default: Whether a server of Synapse 1.66 has it.
    """

    __slots__ = (
        "blank",
        "codec",
        "durable",
        "key",
        "key_is_first_field",
        "name",
        "offered_by_default",
        "row_type",
    )

    def __init__(
        self,
        name: StreamName,
        row_type: Any = None,
        *,
        durable: bool = True,
        key: Callable[[Any], object] | None = None,
        key_is_first_field: bool = False,
        blank: Callable[[Any], bool] = never,
        offered_by_default: bool = False,
        reader: Reader | None = None,
        common: Any = None,
    ) -> None:
        check_name("stream", name)
        self.name = name
        self.row_type = row_type
        self.durable = durable
        self.key = key
        self.key_is_first_field = key_is_first_field
        self.blank = blank
        self.offered_by_default = offered_by_default
        self.codec = RowCodec(
            name, Any if row_type is None else row_type, reader, common, keyed=key_is_first_field
        )

    @property
    def keyed(self) -> bool:
        """Whether rows are states, each replacing the earlier one with the same key."""
        return self.key is not None

    def __repr__(self) -> str:
        kind = "durable" if self.durable else "ephemeral"
        return f"<StreamDef {self.name} {kind}{' keyed' if self.keyed else ''}>"


def check_name(what: str, name: str) -> None:
    """Raise `ValueError` unless *name* can stand as a word on a line.

    Args:
        what: What it names, for the error: ``stream`` or ``instance``.
        name: The name.
    """
    instance = what == "instance"
    if not (is_instance_name(name) if instance else is_name(name)):
        expected = INSTANCE_SHAPE if instance else NAME_SHAPE
        raise ValueError(f"{what} name {name[:64]!r}: expected {expected}")


def _read_events(value: Any) -> Any:
    """Read what is neither a known type word with its fields: flat rows, unknown words."""
    if isinstance(value, list) and 3 <= len(value) <= 5:
        return rows.EventRow(msgspec.convert(value, rows.EventData))
    found = msgspec.convert(value, tuple[str, list[Any] | dict[str, Any]])
    if found[0] in ("ev", "state", "state-all"):
        raise msgspec.ValidationError("Expected the fields of this type word")
    return rows.OtherEventsRow(found[0], _raw(found[1]))


def _raw(value: Any) -> Raw:
    return Raw(json.dumps(value, separators=(",", ":")).encode())


def _read_federation(value: Any) -> Any:
    found = msgspec.convert(value, tuple[str, dict[str, Any]])
    if found[0] in ("p", "pd", "k", "e", "d", "f"):
        raise msgspec.ValidationError("Expected the object of this type word")
    return rows.OtherFederationRow(found[0], _raw(found[1]))


#: The streams of Synapse, from 0.21 to 1.163, in the order in which they are listed.
BUILT_IN: tuple[StreamDef, ...] = (
    StreamDef(
        "events",
        rows.EventsRow,
        offered_by_default=True,
        reader=_read_events,
    ),
    StreamDef("backfill", rows.BackfillRow, offered_by_default=True),
    StreamDef(
        "presence",
        rows.PresenceRow,
        durable=False,
        key=lambda row: row.user_id,
        key_is_first_field=True,
        offered_by_default=True,
    ),
    StreamDef("presence_federation", rows.PresenceFederationRow, offered_by_default=True),
    StreamDef(
        "typing",
        rows.TypingRow,
        durable=False,
        key=lambda row: row.room_id,
        key_is_first_field=True,
        blank=lambda row: not row.user_ids,
        offered_by_default=True,
    ),
    StreamDef("receipts", rows.ReceiptRow, offered_by_default=True, common=rows.CommonReceiptRow),
    StreamDef("push_rules", rows.PushRulesRow, offered_by_default=True),
    StreamDef("pushers", rows.PushersRow, offered_by_default=True),
    StreamDef("caches", rows.CachesRow, offered_by_default=True),
    StreamDef("device_lists", rows.DeviceListsRow, offered_by_default=True),
    StreamDef("to_device", rows.ToDeviceRow, offered_by_default=True),
    StreamDef(
        "federation",
        rows.FederationRow,
        offered_by_default=True,
        reader=_read_federation,
        common=rows.CommonFederationRow,
    ),
    StreamDef("tag_account_data", rows.TagAccountDataRow, offered_by_default=True),
    StreamDef("account_data", rows.AccountDataRow, offered_by_default=True),
    StreamDef("user_signature", rows.UserSignatureRow, offered_by_default=True),
    StreamDef("public_rooms", rows.PublicRoomsRow),
    StreamDef("groups", rows.GroupsRow),
    StreamDef("current_state_deltas", rows.CurrentStateDeltasRow),
    StreamDef("sticky_events", rows.StickyEventsRow),
    StreamDef("thread_subscriptions", rows.ThreadSubscriptionsRow),
    StreamDef("un_partial_stated_room", rows.UnPartialStatedRoomRow),
    StreamDef("un_partial_stated_event", rows.UnPartialStatedEventRow),
    StreamDef("quarantined_media", rows.QuarantinedMediaRow),
    StreamDef("profile_updates", rows.ProfileUpdatesRow),
)


class Registry:
    """The streams of one process, by name: the built-in ones and those of the configuration."""

    def __init__(self, extra: Iterable[StreamDef] = ()) -> None:
        """Set up the built-in streams, then *extra*; an extra one replaces its namesake."""
        self._streams = {stream.name: stream for stream in BUILT_IN}
        for stream in extra:
            self.add(stream)

    def add(self, stream: StreamDef) -> None:
        """Know *stream* from now on; it replaces its namesake."""
        self._streams[stream.name] = stream

    def get(self, name: StreamName) -> StreamDef:
        """Return the stream called *name*.

        Raises:
            UnknownStream: there is none.
        """
        try:
            return self._streams[name]
        except KeyError:
            raise UnknownStream(name, self._streams) from None

    def __contains__(self, name: object) -> bool:
        return name in self._streams

    def __len__(self) -> int:
        return len(self._streams)

    def names(self) -> list[StreamName]:
        """Return the names of all streams, built-in ones first."""
        return list(self._streams)

    def offered(self) -> list[StreamName]:
        """Return the names of the streams that a server announces without being told to."""
        return [
            stream.name
            for stream in self._streams.values()
            if stream.offered_by_default or stream.row_type is None
        ]

    def encode_rows(self, stream: StreamName, rows: Sequence[object]) -> Sequence[bytes]:
        """Return each row as one line of JSON, validated.

        Raises:
            UnknownStream: there is no such stream.
            BadRow: a row does not fit it.
        """
        return self.get(stream).codec.encode(rows)

    def check_json_rows(self, stream: StreamName, rows: Sequence[bytes | Raw]) -> Sequence[bytes]:
        """Return rows that are JSON already as single lines, validated.

        Raises:
            UnknownStream: there is no such stream.
            BadRow: a row does not fit it.
        """
        return self.get(stream).codec.check(rows)

    def decode_row(self, stream: StreamName, row: bytes | Raw) -> Any:
        """Return one row as the type of its stream.

        Raises:
            UnknownStream: there is no such stream.
            BadRow: it does not fit.
        """
        return self.get(stream).codec.decode(row)

    def rows(self, stream: StreamName, raw: Sequence[bytes]) -> Rows:
        """Return *raw* as a sequence that is decoded when looked at.

        A stream that is not known here gives opaque JSON values.
        """
        return Rows(self.codec(stream), raw)

    def codec(self, stream: StreamName) -> RowCodec:
        """Return JSON in and out for *stream*; opaque when it is not known here."""
        known = self._streams.get(stream)
        return known.codec if known else RowCodec(stream, Any)
