"""Presence on a worker: who is there, and what of it is news (protocol.md section 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tcprepl.ephemeral import presence_states as states
from tcprepl.ephemeral.board import Board
from tcprepl.ephemeral.follower import Follower
from tcprepl.ephemeral.presence_states import PresenceTimers
from tcprepl.ids import Token
from tcprepl.streams.rows import PresenceRow

STREAM = "presence"


class PresenceFollower(Follower[PresenceRow]):
    """Who is online, on a worker.

    Not every row is news: some only bring times up to date. `on_change` hears of those that
    are, by the rule that the writer goes by.

    Args:
        on_change: Called with (before, after) when others are to be told of a change.
        timers: How long things last; the writer's.
    """

    def __init__(
        self,
        on_change: Callable[[PresenceRow, PresenceRow], object] | None = None,
        timers: PresenceTimers | None = None,
    ) -> None:
        super().__init__()
        self._on_change = on_change
        self._timers = timers or PresenceTimers()

    def get_state(self, user_id: str) -> PresenceRow:
        """Return the present state of a user: offline when nothing is known."""
        return self._state_of(user_id)

    def _make_board(self) -> Board[PresenceRow]:
        return make_board()

    def _read(self, row: PresenceRow) -> tuple[str, PresenceRow]:
        return row.user_id, row

    def _blank(self, key: str) -> PresenceRow:
        return states.offline(key)

    def _merge(self, rows: Sequence[PresenceRow]) -> PresenceRow:
        return max(rows, key=lambda row: row.last_federation_update_ts)

    def _changed(self, key: str, before: PresenceRow) -> None:
        if self._on_change is not None:
            after = self._state_of(key)
            if states.notifies(before, after, self._timers):
                self._on_change(before, after)


def make_board(lost: Token = -1) -> Board[PresenceRow]:
    """Return a board of the presence of users."""
    return Board(STREAM, states.is_blank, lost)
