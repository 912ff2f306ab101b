"""What a remote server says of its users' presence, as rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from tcprepl.ephemeral import presence_states as states
from tcprepl.ephemeral.ports import Milliseconds, server_of
from tcprepl.ids import ServerName
from tcprepl.streams.rows import PresenceRow

EDU_TYPE = "m.presence"
#: Most users in one EDU.
MAX_PUSHES = 1_000
#: Longest user or process ID, in characters.
MAX_ID_CHARS = 255
#: Longest status message, in characters.
MAX_STATUS_MSG_CHARS = 4_096


def read_edu(
    origin: ServerName,
    content: Mapping[str, Any],
    before: Callable[[str], PresenceRow | None],
    now: Milliseconds,
) -> tuple[list[PresenceRow], int]:
    """Return the new states that an ``m.presence`` EDU tells, and how many did not count.

    Args:
        origin: The server it came from, authenticated: it may speak of its own users only.
        content: ``push``, a list of states.
        before: Returns the state of a user so far; None if it is not to be changed.
        now: The time.

    Raises:
        ValueError: The content is not what it should be.
    """
    pushes = content.get("push")
    if not isinstance(pushes, list):
        raise ValueError(f"push: {type(pushes).__name__}; expected a list")
    found = (_row_of_push(origin, push, before, now) for push in pushes[:MAX_PUSHES])
    rows = [row for row in found if row is not None]
    return rows, len(pushes) - len(rows)


def _row_of_push(
    origin: ServerName,
    push: object,
    before: Callable[[str], PresenceRow | None],
    now: Milliseconds,
) -> PresenceRow | None:
    if not isinstance(push, dict):
        return None
    user_id, state = push.get("user_id"), push.get("presence")
    if not isinstance(user_id, str) or len(user_id) > MAX_ID_CHARS or server_of(user_id) != origin:
        return None
    if not isinstance(state, str) or state not in states.STATES:
        return None
    row = before(user_id)
    if row is None:
        return None
    ago, status_msg = push.get("last_active_ago"), push.get("status_msg")
    if isinstance(ago, int) and ago >= 0:
        row = replace(row, last_active_ts=max(now - ago, 0))
    if not isinstance(status_msg, str) or len(status_msg) > MAX_STATUS_MSG_CHARS:
        status_msg = None
    return replace(
        row,
        state=state,
        status_msg=status_msg,
        currently_active=push.get("currently_active") is True,
        last_federation_update_ts=now,
    )
