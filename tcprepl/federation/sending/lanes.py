"""The lanes of a destination: what waits in memory, by kind (protocol.md section 14).

EDUs of one kind must not hold back another: to-device messages carry keys without which people
cannot read, and presence comes in floods. So each kind has a lane with a share of every
transaction; what a lane leaves of its share goes to the others, in order of importance.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import TypeAlias

from msgspec import Raw

from tcprepl.federation.wire.edu import (
    DEVICE_LIST,
    PRESENCE,
    RECEIPT,
    SIGNING_KEYS,
    TO_DEVICE,
    TYPING,
    Edu,
    EduKey,
)
from tcprepl.federation.wire.transaction import edu_bytes


class Lane(IntEnum):
    """A kind of EDU, most important first; the values are kept on disk."""

    TO_DEVICE = 0
    DEVICE_LISTS = 1
    RECEIPTS = 2
    TYPING = 3
    PRESENCE = 4
    OTHER = 5


LANES: dict[str, Lane] = {
    TO_DEVICE: Lane.TO_DEVICE,
    DEVICE_LIST: Lane.DEVICE_LISTS,
    SIGNING_KEYS: Lane.DEVICE_LISTS,
    RECEIPT: Lane.RECEIPTS,
    TYPING: Lane.TYPING,
    PRESENCE: Lane.PRESENCE,
}

#: Per cent of a transaction that a lane may count on, in the order of `Lane`.
SHARES = (40, 20, 15, 10, 10, 5)

#: How long an EDU is worth sending, in ms; what is not here never expires.
EXPIRY_MS: dict[str, int] = {TYPING: 60_000, PRESENCE: 600_000}

#: An EDU that waits: its id in the outbox, when it expires (0 for never), and the EDU itself.
Entry: TypeAlias = tuple[int, int, Edu]

_Ident: TypeAlias = int | tuple[str, EduKey]


def lane_of(edu_type: str) -> Lane:
    """Return the lane of EDUs of *edu_type*."""
    return LANES.get(edu_type, Lane.OTHER)


#: Later than anything expires.
_NEVER_MS = 1 << 62

#: The lane of a type, and what is around the content of such an EDU in a body.
_kinds: dict[str, tuple[int, int]] = {}
#: Types that are remembered.
_MAX_KINDS = 1_024


def _kind_of(edu_type: str) -> tuple[int, int]:
    """Return the lane of *edu_type*, and the bytes around the content."""
    kind = int(lane_of(edu_type)), edu_bytes(Edu(Raw(b""), "", edu_type, ""))
    if len(_kinds) < _MAX_KINDS:
        _kinds[edu_type] = kind
    return kind


class LaneQueue:
    """What waits for one destination in memory; one place for each key.

    Attributes:
        length: How many EDUs wait.
        size_bytes: An upper bound of what all of it takes in a body.
    """

    __slots__ = ("_first_expiry_ms", "_lanes", "_turn", "length", "size_bytes")

    def __init__(self) -> None:
        self._lanes: tuple[dict[_Ident, Entry], ...] = ({}, {}, {}, {}, {}, {})  # as `Lane` has
        self._turn = 0
        #: Before then nothing expires.
        self._first_expiry_ms = _NEVER_MS
        self.length = 0
        self.size_bytes = 0

    def __len__(self) -> int:
        """Return how many EDUs wait."""
        return self.length

    def counts(self) -> dict[Lane, int]:
        """Return how many EDUs wait in each lane that has any."""
        return {lane: len(self._lanes[lane]) for lane in Lane if self._lanes[lane]}

    def add(self, entry: Entry) -> int:
        """Add *entry*, in the place of the one with its key if there is one.

        Returns:
            How many more wait: 1, or 0.
        """
        return self.extend((entry,))

    def extend(self, entries: Iterable[Entry]) -> int:
        """Add *entries* in their order, as `add` does each; returns how many more wait."""
        lanes = self._lanes
        size_bytes = self.size_bytes
        first_expiry_ms = self._first_expiry_ms
        more = 0
        for entry in entries:
            _, expires_ms, edu = entry
            if 0 < expires_ms < first_expiry_ms:
                first_expiry_ms = expires_ms
            edu_type = edu.edu_type
            number, around_bytes = _kinds.get(edu_type) or _kind_of(edu_type)
            lane = lanes[number]
            size_bytes += len(edu.content) + around_bytes
            key = edu.key
            if key is None:
                lane[entry[0]] = entry
                more += 1
            else:
                before = len(lane)
                lane[edu_type, key] = entry
                more += len(lane) - before
        self.size_bytes = size_bytes
        self._first_expiry_ms = first_expiry_ms
        self.length += more
        return more

    def discard(self, edu: Edu) -> bool:
        """Forget the EDU with the type and key of *edu*; returns whether there was one."""
        if edu.key is None:
            return False
        lane = self._lanes[lane_of(edu.edu_type)]
        if lane.pop((edu.edu_type, edu.key), None) is None:
            return False
        self.length -= 1
        return True

    def take(self, max_edus: int, max_bytes: int, now_ms: int, expired: list[Entry]) -> list[Entry]:
        """Remove and return what goes into the next transaction, in the order of the lanes.

        First every lane gets its share of the places and of the bytes, and one EDU in any
        case if it fits; then the rest is filled. Within a lane the order is kept. The first
        EDU is taken even if it is larger than *max_bytes*.

        Args:
            max_edus: Most EDUs to take.
            max_bytes: Most bytes to take (`edu_bytes`).
            now_ms: Wall-clock time in ms.
            expired: Takes the entries that were not worth sending any more.
        """
        if self.length <= max_edus and self.size_bytes <= max_bytes:
            return self._take_all(now_ms, expired)
        selections = [
            _Selection(lane, share) for lane, share in zip(self._lanes, SHARES, strict=True) if lane
        ]
        room = _Room(max_edus, max_bytes)
        if len(selections) > 1:
            self._turn += 1
            start = self._turn % len(selections)
            for selection in selections[start:] + selections[:start]:
                quota = max(1, max_edus * selection.share // 100)
                selection.take(room, quota, max_bytes * selection.share // 100, now_ms, expired)
        for selection in selections:
            selection.take(room, max_edus, max_bytes, now_ms, expired)
        self.length = sum(map(len, self._lanes))
        self.size_bytes = self.size_bytes - (max_bytes - room.size_bytes) if self.length else 0
        return [entry for selection in selections for entry in selection.taken]

    def _take_all(self, now_ms: int, expired: list[Entry]) -> list[Entry]:
        """Take everything: the usual case, without looking at the size of each."""
        found: list[Entry] = []
        for lane in self._lanes:
            if lane:
                found += lane.values()
                lane.clear()
        if self._first_expiry_ms <= now_ms:
            expired += [entry for entry in found if 0 < entry[1] <= now_ms]
            found = [entry for entry in found if not 0 < entry[1] <= now_ms]
        self._first_expiry_ms = _NEVER_MS
        self.length = 0
        self.size_bytes = 0
        return found


class _Room:
    """What is left of a transaction."""

    __slots__ = ("edus", "empty", "size_bytes")

    def __init__(self, edus: int, size_bytes: int) -> None:
        self.edus = edus
        self.size_bytes = size_bytes
        self.empty = True


class _Selection:
    """What one lane gives to one transaction."""

    __slots__ = ("lane", "share", "taken")

    def __init__(self, lane: dict[_Ident, Entry], share: int) -> None:
        self.lane = lane
        self.share = share
        self.taken: list[Entry] = []

    def take(
        self, room: _Room, quota_edus: int, quota_bytes: int, now_ms: int, expired: list[Entry]
    ) -> None:
        """Take entries within a quota and the *room* that is left."""
        done: list[_Ident] = []
        for ident, entry in self.lane.items():
            if 0 < entry[1] <= now_ms:
                expired.append(entry)
                done.append(ident)
                continue
            if room.edus <= 0 or quota_edus <= 0:
                break
            size = edu_bytes(entry[2])
            if not room.empty and (
                size > room.size_bytes or (size > quota_bytes and bool(self.taken))
            ):
                break
            self.taken.append(entry)
            done.append(ident)
            room.empty = False
            room.edus -= 1
            room.size_bytes -= size
            quota_edus -= 1
            quota_bytes -= size
        for ident in done:
            del self.lane[ident]
