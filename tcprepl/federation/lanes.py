"""The lanes of a destination: what waits in memory, by kind (protocol.md section 14).

EDUs of one kind must not hold back another: to-device messages carry keys without which people
cannot read, and presence comes in floods. So each kind has a lane with a share of every
transaction; what a lane leaves of its share goes to the others, in order of importance.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

from tcprepl.federation.edu import (
    DEVICE_LIST,
    PRESENCE,
    RECEIPT,
    SIGNING_KEYS,
    TO_DEVICE,
    TYPING,
    Edu,
    EduKey,
)
from tcprepl.federation.transaction import edu_bytes


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


class LaneQueue:
    """What waits for one destination in memory; one place for each key."""

    __slots__ = ("_lanes", "_turn")

    def __init__(self) -> None:
        self._lanes: tuple[dict[_Ident, Entry], ...] = tuple({} for _ in Lane)
        self._turn = 0

    def __len__(self) -> int:
        """Return how many EDUs wait."""
        return sum(map(len, self._lanes))

    def counts(self) -> dict[Lane, int]:
        """Return how many EDUs wait in each lane that has any."""
        return {lane: len(self._lanes[lane]) for lane in Lane if self._lanes[lane]}

    def add(self, entry: Entry) -> bool:
        """Add *entry*, in the place of the one with its key if there is one.

        Returns:
            Whether it is one more.
        """
        edu = entry[2]
        lane = self._lanes[LANES.get(edu.edu_type, Lane.OTHER)]
        ident: _Ident = entry[0] if edu.key is None else (edu.edu_type, edu.key)
        more = ident not in lane
        lane[ident] = entry
        return more

    def discard(self, edu: Edu) -> bool:
        """Forget the EDU with the type and key of *edu*; returns whether there was one."""
        if edu.key is None:
            return False
        lane = self._lanes[lane_of(edu.edu_type)]
        return lane.pop((edu.edu_type, edu.key), None) is not None

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
        filled = [lane for lane in Lane if self._lanes[lane]]
        if not filled:
            return []
        taken: list[list[Entry]] = [[] for _ in Lane]
        room = [max_edus, max_bytes]
        if len(filled) > 1:
            self._turn += 1
            start = self._turn % len(filled)
            for lane in filled[start:] + filled[:start]:
                share = SHARES[lane]
                self._draw(
                    lane,
                    taken,
                    room,
                    max(1, max_edus * share // 100),
                    max_bytes * share // 100,
                    now_ms,
                    expired,
                )
        for lane in filled:
            self._draw(lane, taken, room, max_edus, max_bytes, now_ms, expired)
        return [entry for entries in taken for entry in entries]

    def _draw(
        self,
        lane: Lane,
        taken: list[list[Entry]],
        room: list[int],
        quota_edus: int,
        quota_bytes: int,
        now_ms: int,
        expired: list[Entry],
    ) -> None:
        """Move entries of *lane* to *taken* within its quota and the *room* that is left."""
        waiting = self._lanes[lane]
        mine = taken[lane]
        room_edus, room_bytes = room
        first_of_all = not any(taken)
        first_of_lane = not mine
        done: list[_Ident] = []
        for ident, entry in waiting.items():
            if entry[1] and entry[1] <= now_ms:
                expired.append(entry)
                done.append(ident)
                continue
            if room_edus <= 0 or quota_edus <= 0:
                break
            size = edu_bytes(entry[2])
            if not first_of_all and (
                size > room_bytes or (size > quota_bytes and not first_of_lane)
            ):
                break
            mine.append(entry)
            done.append(ident)
            first_of_all = first_of_lane = False
            room_edus -= 1
            quota_edus -= 1
            room_bytes -= size
            quota_bytes -= size
        room[0] = room_edus
        room[1] = room_bytes
        if len(done) == len(waiting):
            waiting.clear()
        else:
            for ident in done:
                del waiting[ident]
