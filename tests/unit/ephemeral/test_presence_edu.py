"""What counts of what a remote server says of presence; `test_presence` has what comes of it."""

from __future__ import annotations

from typing import Any

import pytest

from tcprepl.ephemeral import presence_states as states
from tcprepl.ephemeral.presence_edu import MAX_PUSHES, MAX_STATUS_MSG_CHARS, read_edu
from tcprepl.streams.rows import PresenceRow
from tests.ephemeral_world import BOB, CARL, ELSE

NOW = 10_000


def read(*pushes: object, origin: str = ELSE) -> tuple[list[PresenceRow], int]:
    """Return what counts of an EDU with *pushes*, where nobody is known yet."""
    return read_edu(origin, {"push": list(pushes)}, states.offline, NOW)


def carl(**fields: Any) -> dict[str, Any]:
    """Return what ELSE may say of CARL."""
    return {"user_id": CARL, "presence": states.ONLINE, **fields}


def test_a_state_is_taken_with_what_is_said_of_it() -> None:
    said = carl(last_active_ago=4_000, status_msg="far", currently_active=True)
    assert read(said) == ([PresenceRow(CARL, states.ONLINE, 6_000, NOW, 0, "far", True)], 0)


@pytest.mark.parametrize(
    ("ago", "at"), [(NOW, 0), (NOW + 1, 0), (0, NOW), (-1, 0), ("1", 0), (None, 0)]
)
def test_when_somebody_was_active_is_never_before_time_began(ago: object, at: int) -> None:
    ((row,), _) = read(carl(last_active_ago=ago))
    assert row.last_active_ts == at


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("x" * MAX_STATUS_MSG_CHARS, "x" * MAX_STATUS_MSG_CHARS),
        ("x" * (MAX_STATUS_MSG_CHARS + 1), None),
        (5, None),
    ],
)
def test_a_text_that_is_none_or_too_long_is_left_out(text: object, kept: str | None) -> None:
    ((row,), _) = read(carl(status_msg=text))
    assert row.status_msg == kept


def test_a_server_speaks_of_its_own_users_only_and_of_no_more_than_it_may() -> None:
    assert read({"user_id": BOB, "presence": states.ONLINE}, "nonsense", carl(presence="x")) == (
        [],
        3,
    )
    rows, ignored = read(*[carl()] * (MAX_PUSHES + 2))
    assert (len(rows), ignored) == (MAX_PUSHES, 2)


def test_a_user_who_is_not_to_be_changed_does_not_count() -> None:
    assert read_edu(ELSE, {"push": [carl()]}, lambda _: None, NOW) == ([], 1)


def test_what_is_no_list_is_refused() -> None:
    with pytest.raises(ValueError, match="push: str; expected a list"):
        read_edu(ELSE, {"push": "x"}, states.offline, NOW)
