"""Who is typing in each room, as published: what the writer and each follower both hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tcprepl.ephemeral.change_cache import StreamChangeCache
from tcprepl.errors import TokenTooOld
from tcprepl.ids import Token

#: Most rows that one call of `TypingBoard.updates` returns, unless told otherwise.
UPDATES_LIMIT = 100
#: Rooms in which nobody types that are held beyond those that changed lately.
MAX_QUIET_ROOMS = 10_000


class RoomTyping(NamedTuple):
    """Everybody who types in a room, from one token on."""

    token: Token
    room_id: str
    user_ids: Sequence[str]


class TypingUpdates(NamedTuple):
    """What `TypingBoard.updates` answers.

    Attributes:
        rooms: One entry for each room that changed, with the latest state, by token.
        upto: The token reached; ask on from here.
        limited: Whether more rooms changed up to the token that was asked for.
    """

    rooms: list[RoomTyping]
    upto: Token
    limited: bool


class TypingBoard:
    """The users who type in each room, the token of each room's latest row, what changed.

    Invariant: a room that changed after `lost` is held, with its latest row. Rooms in which
    nobody types are forgotten in time, which moves `lost` up; those with somebody never.

    Args:
        lost: The token at or before which a reader cannot go on, only begin anew.
        max_size: Most rooms in the change cache.
    """

    __slots__ = ("_cache", "_lost", "_quiet", "_rooms", "_users")

    def __init__(self, lost: Token = -1, *, max_size: int = 10_000) -> None:
        self._rooms: dict[str, tuple[Token, Sequence[str]]] = {}
        self._cache = StreamChangeCache(lost, max_size=max_size)
        self._lost = lost
        self._users = 0
        self._quiet = 0

    def __len__(self) -> int:
        """Return how many rooms are held, quiet ones included."""
        return len(self._rooms)

    @property
    def user_count(self) -> int:
        """How many users type; one who types in two rooms counts twice."""
        return self._users

    @property
    def newest(self) -> Token:
        """The token of the latest change."""
        return self._cache.newest

    @property
    def lost(self) -> Token:
        """The token at or before which a reader cannot go on, only begin anew."""
        return self._lost

    def post(self, room_id: str, user_ids: Sequence[str], token: Token) -> None:
        """Replace the users of a room by those of its row at *token*."""
        rooms = self._rooms
        held = rooms.pop(room_id, None)
        if held is not None:
            self._users -= len(held[1])
            self._quiet -= not held[1]
        rooms[room_id] = (token, user_ids)
        self._users += len(user_ids)
        self._quiet += not user_ids
        self._cache.entity_has_changed(room_id, token)
        if self._quiet > 2 * MAX_QUIET_ROOMS:
            self.forget_quiet(self._cache.earliest)

    def users(self, room_id: str) -> Sequence[str]:
        """Return who types in a room."""
        held = self._rooms.get(room_id)
        return held[1] if held is not None else ()

    def token_of(self, room_id: str) -> Token | None:
        """Return the token of a room's latest row; None for a room that is not held."""
        held = self._rooms.get(room_id)
        return held[0] if held is not None else None

    def typing(self) -> dict[str, Sequence[str]]:
        """Return the rooms in which somebody types, with their users."""
        return {room_id: users for room_id, (_, users) in self._rooms.items() if users}

    def updates(
        self,
        after: Token,
        upto: Token | None = None,
        *,
        limit: int = UPDATES_LIMIT,
        compacted: bool = False,
    ) -> TypingUpdates:
        """Return the rooms whose latest row is in ``(after, upto]``, by token.

        A room that changed often in between appears once, with its latest users; one that
        changed again after *upto* does not appear.

        Args:
            after: Exclusive lower bound; 0 is the start.
            upto: Inclusive upper bound; by default the latest change.
            limit: Most rooms to return; exceeded only to finish a token.
            compacted: The reader began at 0 with nothing, and so does not miss the last row
                of a room that has fallen quiet and was forgotten.

        Raises:
            TokenTooOld: *after* is not above `lost`, and not *compacted*: forget
                everything and ask from 0 with *compacted*.
        """
        if after <= self._lost and not compacted:
            raise TokenTooOld("typing", "*", after, self._lost + 1)
        newest = self._cache.newest
        reached = newest if upto is None or upto > newest else upto
        rooms = self._rooms
        changed: list[RoomTyping] = []
        changes = self._cache.changes_since(after)
        if changes is None:
            changed = [
                RoomTyping(token, room_id, users)
                for room_id, (token, users) in rooms.items()
                if after < token <= reached
            ]
            changed.sort(key=_token_of)
        else:
            for room_id, token in changes:
                # The cache may know rooms that were forgotten here.
                if token <= reached and (held := rooms.get(room_id)) is not None:
                    changed.append(RoomTyping(token, room_id, held[1]))
        if len(changed) <= limit:
            return TypingUpdates(changed, max(reached, after), False)
        end = limit
        while 0 < end < len(changed) and changed[end].token == changed[end - 1].token:
            end += 1
        limited = end < len(changed)
        del changed[end:]
        return TypingUpdates(changed, changed[-1].token if changed else after, limited)

    def forget_quiet(self, upto: Token) -> int:
        """Forget rooms in which nobody has typed since *upto*; returns how many they were."""
        quiet: list[str] = []
        last = self._lost
        for room_id, (token, users) in self._rooms.items():
            if token > upto:
                break
            if not users:
                quiet.append(room_id)
                last = max(last, token - 1)
        for room_id in quiet:
            del self._rooms[room_id]
        self._quiet -= len(quiet)
        self._lost = last
        return len(quiet)

    def reset(self, lost: Token) -> None:
        """Forget everything; whoever is at or before *lost* has to begin anew."""
        self._rooms.clear()
        self._cache.reset(lost)
        self._lost = lost
        self._users = self._quiet = 0


def _token_of(room: RoomTyping) -> Token:
    return room.token
