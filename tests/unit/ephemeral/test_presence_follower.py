"""A worker's copy of presence: the states, and who hears of which change."""

from __future__ import annotations

from typing import Any

from tcprepl.ephemeral.presence_follower import PresenceFollower
from tcprepl.ephemeral.presence_states import BUSY, OFFLINE, ONLINE
from tcprepl.streams.rows import PresenceRow
from tests.ephemeral_world import ALICE, BOB


def row(user_id: str, state: str, **fields: Any) -> PresenceRow:
    base = {"last_active_ts": 0, "last_federation_update_ts": 0, "last_user_sync_ts": 0}
    rest = {"status_msg": None, "currently_active": False}
    return PresenceRow(user_id, state, **(base | rest | fields))


def test_follower_has_the_states_and_hears_of_news() -> None:
    news: list[tuple[str, str, str]] = []
    follower = PresenceFollower(
        lambda before, after: news.append((after.user_id, before.state, after.state))
    )
    follower.handle_rows("presence", "master", 1, [row(ALICE, ONLINE), row(BOB, BUSY)])
    follower.handle_rows("presence", "master", 2, [row(ALICE, ONLINE, last_user_sync_ts=7)])
    assert follower.get_state(ALICE).last_user_sync_ts == 7
    assert news == [(ALICE, OFFLINE, ONLINE), (BOB, OFFLINE, BUSY)]
    follower.handle_rows("presence", "master", 3, [row(ALICE, OFFLINE)])
    assert follower.states() == {BOB: row(BOB, BUSY)}
    follower.on_reset("presence", "master", 3, 0)
    assert follower.get_state(BOB).state == OFFLINE
    assert news[2:] == [(ALICE, ONLINE, OFFLINE), (BOB, BUSY, OFFLINE)]


def test_follower_of_several_instances_takes_the_newest() -> None:
    follower = PresenceFollower()
    follower.handle_rows("presence", "one", 9, [row(ALICE, ONLINE, last_federation_update_ts=5)])
    follower.handle_rows("presence", "two", 1, [row(ALICE, BUSY, last_federation_update_ts=6)])
    assert follower.get_state(ALICE).state == BUSY
    assert follower.get_state(BOB).state == OFFLINE
    assert list(follower.states()) == [ALICE]
