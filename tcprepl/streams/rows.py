"""The rows of every stream, as typed arrays (protocol.md section 7).

On the wire a row is a JSON array in field order. Each type here reads the shapes that its
stream has had over the years and exposes them under one set of names; a field that a shape
lacks has its default. Rows are immutable. They carry exactly what was read, so a row that
had fewer fields is written with fewer fields again: a trailing `UNSET` field is left out.

Booleans may come as 0 and 1, as some databases give them; compare them by truth.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from msgspec import UNSET, Raw, Struct, UnsetType

#: A JSON boolean; 0 and 1 are read too.
Flag: TypeAlias = bool | Literal[0, 1]


class Row(Struct, array_like=True, forbid_unknown_fields=True, frozen=True, gc=False):
    """Base of the rows: an array, immutable, nothing beyond its fields."""


# --- events and rooms ---------------------------------------------------------------------


class EventData(Row, frozen=True):
    """A new event; *state_key* None means that it is not a state event."""

    event_id: str
    room_id: str
    type: str
    state_key: str | None = None
    redacts: str | None = None
    relates_to: str | None = None
    membership: str | None = None
    rejected: Flag = False
    outlier: Flag = False


class StateData(Row, frozen=True):
    """A change of the current state; *event_id* None means that the entry went."""

    room_id: str
    type: str
    state_key: str
    event_id: str | None = None


class StateAllData(Row, frozen=True):
    """So much of a room's state changed that everything known of it is to be dropped."""

    room_id: str


class EventRow(Row, frozen=True, tag="ev"):
    """``["ev", [...]]``, and the flat form of before 2019."""

    data: EventData


class StateRow(Row, frozen=True, tag="state"):
    """``["state", [...]]``."""

    data: StateData


class StateAllRow(Row, frozen=True, tag="state-all"):
    """``["state-all", [room_id]]``."""

    data: StateAllData


class OtherEventsRow(Row, frozen=True):
    """A row of ``events`` with a type word that this version does not know."""

    type: str
    data: Raw


EventsRow: TypeAlias = EventRow | StateRow | StateAllRow


class BackfillRow(Row, frozen=True):
    """An event from before a room was joined."""

    event_id: str
    room_id: str
    type: str
    state_key: str | None = None
    redacts: str | None = None
    relates_to: str | None = None


class CurrentStateDeltasRow(Row, frozen=True):
    """A change of the current state, until 2019; now part of ``events``."""

    room_id: str
    type: str
    state_key: str
    event_id: str | None = None


class PublicRoomsRow(Row, frozen=True):
    """A change of the room directory, until 2021; *visibility* is a word or a boolean."""

    room_id: str
    visibility: Flag | str
    appservice_id: str | None = None
    network_id: str | None = None


class UnPartialStatedRoomRow(Row, frozen=True):
    """A room whose state is complete now."""

    room_id: str


class UnPartialStatedEventRow(Row, frozen=True):
    """An event whose state is complete now."""

    event_id: str
    rejection_status_changed: Flag


class StickyEventsRow(Row, frozen=True):
    """An event that sticks for a while."""

    room_id: str
    event_id: str


class ThreadSubscriptionsRow(Row, frozen=True):
    """A user's subscription to a thread changed."""

    user_id: str
    room_id: str
    thread_root_event_id: str


class QuarantinedMediaRow(Row, frozen=True):
    """A piece of media was quarantined or released."""

    origin: str
    media_id: str
    quarantined: Flag


class ProfileUpdatesRow(Row, frozen=True):
    """A user's profile changed, or a user joined or left a room and took it along."""

    user_id: str
    action: str
    affected_fields: list[str] | None = None


# --- ephemeral state ----------------------------------------------------------------------


class TypingRow(Row, frozen=True):
    """Everybody who types in a room now."""

    room_id: str
    user_ids: list[str]


class PresenceRow(Row, frozen=True):
    """A user's presence; times in ms since 1970."""

    user_id: str
    state: str
    last_active_ts: int
    last_federation_update_ts: int
    last_user_sync_ts: int
    status_msg: str | None
    currently_active: Flag


class PresenceFederationRow(Row, frozen=True):
    """A user's presence is to be sent to a server."""

    destination: str
    user_id: str


class ReceiptRow(Row, frozen=True):
    """A receipt: five fields, or six with a thread; until 2019 the data was a JSON text."""

    room_id: str
    receipt_type: str
    user_id: str
    event_id: str
    thread_or_data: dict[str, Any] | str | None
    data_after_thread: dict[str, Any] | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Refuse five fields that end in something other than the data."""
        if self.data_after_thread is UNSET and type(self.thread_or_data) is not dict:
            text = self.thread_or_data
            if type(text) is not str or type(_object_or_none(text)) is not dict:
                raise ValueError("Expected `object` as the fifth of five fields (the data)")

    @property
    def thread_id(self) -> str | None:
        """The thread that the receipt is for; None for the whole room."""
        if self.data_after_thread is UNSET or isinstance(self.thread_or_data, dict):
            return None
        return self.thread_or_data

    @property
    def data(self) -> dict[str, Any]:
        """The receipt's content, ``{"ts": ms}``."""
        if self.data_after_thread is not UNSET:
            return self.data_after_thread
        if isinstance(self.thread_or_data, dict):
            return self.thread_or_data
        found: dict[str, Any] = json.loads(self.thread_or_data or "{}")
        return found


class CommonReceiptRow(Row, frozen=True):
    """Receipts as they are nearly always written, with nothing to look at twice."""

    room_id: str
    receipt_type: str
    user_id: str
    event_id: str
    data: dict[str, str | int | bool | None]


def _object_or_none(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


# --- users, devices, account data ---------------------------------------------------------


class PushRulesRow(Row, frozen=True):
    """A user's push rules changed."""

    user_id: str


class PushersRow(Row, frozen=True):
    """A pusher was set or deleted."""

    user_id: str
    app_id: str
    pushkey: str
    deleted: Flag


class DeviceListsRow(Row, frozen=True):
    """A change of device lists, in one of the four shapes that this stream has had.

    ``[user_id, destination?]`` until 2020, ``[entity]`` (a user, or a server to tell),
    ``[entity, is_signature]`` and ``[user_id, is_signature, hosts_calculated]``.
    """

    entity: str
    destination_or_signature: Flag | str | UnsetType | None = UNSET
    calculated: Flag | UnsetType = UNSET

    @property
    def destination(self) -> str | None:
        """The server to tell, in the oldest shape."""
        second = self.destination_or_signature
        return second if isinstance(second, str) else None

    @property
    def is_signature(self) -> bool:
        """Whether cross-signing keys changed, not devices."""
        second = self.destination_or_signature
        return second is not UNSET and not isinstance(second, str) and bool(second)

    @property
    def hosts_calculated(self) -> bool:
        """Whether the servers to tell are known by now, in the newest shape."""
        return self.calculated is not UNSET and bool(self.calculated)


class ToDeviceRow(Row, frozen=True):
    """To-device messages wait for a user, or for a server."""

    entity: str


class UserSignatureRow(Row, frozen=True):
    """A user signed somebody's keys."""

    user_id: str


class TagAccountDataRow(Row, frozen=True):
    """A user's tags of a room; *tags* is a JSON object as a text."""

    user_id: str
    room_id: str
    tags: str


class AccountDataRow(Row, frozen=True):
    """Account data changed; *room_id* None is global; until 2020 the content came along."""

    user_id: str
    room_id: str | None
    data_type: str
    content: Any | UnsetType = UNSET


class GroupsRow(Row, frozen=True):
    """A membership of a group changed, until 2022."""

    group_id: str
    user_id: str
    type: str
    content: Any


class CachesRow(Row, frozen=True):
    """A cache entry is to be dropped; *keys* None means all entries."""

    cache_func: str
    keys: list[Any] | None
    invalidation_ts: int | None


# --- federation ---------------------------------------------------------------------------


class Edu(Struct, frozen=True, gc=False):
    """An ephemeral data unit: the envelope is read, the content stays as it came."""

    edu_type: str
    content: Raw
    origin: str
    destination: str


class PresenceState(Struct, frozen=True, gc=False):
    """A presence state as an object."""

    user_id: str
    state: str
    last_active_ts: int = 0
    last_federation_update_ts: int = 0
    last_user_sync_ts: int = 0
    status_msg: str | None = None
    currently_active: Flag = False


class PresenceDestinations(Struct, frozen=True, gc=False):
    """A presence state and the servers it goes to."""

    state: PresenceState
    dests: list[str]


class KeyedEdu(Struct, frozen=True, gc=False):
    """An EDU that replaces an earlier one with the same key to the same server."""

    key: list[Any]
    edu: Edu


class DeviceDestination(Struct, frozen=True, gc=False):
    """A server that to-device messages or device lists wait for."""

    destination: str


class SendFailure(Struct, frozen=True, gc=False):
    """A failure to be told to a server."""

    destination: str
    failure: Raw


class PresenceFedRow(Row, frozen=True, tag="p"):
    """``["p", state]``, until 2021: presence for every server that is interested."""

    data: PresenceState


class PresenceDestinationsRow(Row, frozen=True, tag="pd"):
    """``["pd", {"state", "dests"}]``."""

    data: PresenceDestinations


class KeyedEduRow(Row, frozen=True, tag="k"):
    """``["k", {"key", "edu"}]``."""

    data: KeyedEdu


class EduRow(Row, frozen=True, tag="e"):
    """``["e", edu]``."""

    data: Edu


class DeviceRow(Row, frozen=True, tag="d"):
    """``["d", {"destination"}]``, until 2020."""

    data: DeviceDestination


class FailureRow(Row, frozen=True, tag="f"):
    """``["f", {"destination", "failure"}]``, until 2018."""

    data: SendFailure


class OtherFederationRow(Row, frozen=True):
    """A row of ``federation`` with a type word that this version does not know."""

    type: str
    data: Raw


FederationRow: TypeAlias = (
    PresenceFedRow | PresenceDestinationsRow | KeyedEduRow | EduRow | DeviceRow | FailureRow
)


def _plain_json(depth: int) -> Any:
    """Return the type of JSON without fractions that has at most *depth* levels."""
    scalar = str | int | bool | None
    found: Any = scalar
    for _ in range(depth):
        found = scalar | dict[str, found] | list[found]
    return found


if TYPE_CHECKING:
    PlainJson: TypeAlias = Any
else:
    #: JSON of EDUs as it nearly always is.
    PlainJson = _plain_json(6)


class CommonEdu(Struct, frozen=True, gc=False):
    """An EDU whose content is such that nothing of it needs a second look."""

    edu_type: str
    content: dict[str, PlainJson]
    origin: str
    destination: str


class CommonKeyedEdu(Struct, frozen=True, gc=False):
    """The same with a key."""

    key: list[str | int]
    edu: CommonEdu


class CommonKeyedEduRow(Row, frozen=True, tag="k"):
    """A keyed EDU as it is nearly always written."""

    data: CommonKeyedEdu


class CommonEduRow(Row, frozen=True, tag="e"):
    """An EDU as it is nearly always written."""

    data: CommonEdu


CommonFederationRow: TypeAlias = CommonKeyedEduRow | CommonEduRow
