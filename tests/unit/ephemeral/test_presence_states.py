"""The tables of presence: each deadline and each comparison at t-1, t, t+1."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tcprepl.ephemeral import presence_states as states
from tcprepl.ephemeral.presence_states import (
    BUSY,
    BUSY_UNSTABLE,
    DEADLINES,
    OFFLINE,
    ONLINE,
    UNAVAILABLE,
    PresenceTimers,
    after_time,
    decide,
    next_deadline,
    notifies,
)
from tcprepl.streams.rows import PresenceRow

TIMERS = PresenceTimers()
NOW = 100_000_000
MINUTE = 60_000


def row(state: str = ONLINE, **fields: Any) -> PresenceRow:
    """Return a state in which everything has just happened, but for *fields*."""
    base = PresenceRow("@a:x", state, NOW, NOW, NOW, None, state == ONLINE)
    return replace(base, **fields)


#: (what, the state, ours, syncing, the limit, what it becomes)
CASES = [
    ("idle", row(last_active_ts=0, currently_active=False), True, True, 5 * MINUTE, UNAVAILABLE),
    ("granularity", row(last_active_ts=0, last_user_sync_ts=0), True, True, MINUTE, ONLINE),
    (
        "ping",
        row(UNAVAILABLE, last_federation_update_ts=0),
        True,
        True,
        25 * MINUTE,
        UNAVAILABLE,
    ),
    ("ping busy", row(BUSY, last_federation_update_ts=0), True, True, 25 * MINUTE, BUSY),
    (
        "silent",
        row(UNAVAILABLE, last_active_ts=0, last_user_sync_ts=0),
        True,
        False,
        30_000,
        OFFLINE,
    ),
    (
        "silent online",
        row(last_active_ts=0, last_user_sync_ts=0, currently_active=False),
        True,
        False,
        30_000,
        OFFLINE,
    ),
    ("silent busy", row(BUSY, last_active_ts=0, last_user_sync_ts=0), True, False, None, OFFLINE),
    ("remote", row(last_federation_update_ts=0), False, False, 30 * MINUTE, OFFLINE),
    (
        "remote busy",
        row(BUSY_UNSTABLE, last_federation_update_ts=0),
        False,
        False,
        30 * MINUTE,
        OFFLINE,
    ),
]


@pytest.mark.parametrize("past_ms", [-1, 0, 1])
@pytest.mark.parametrize(
    ("before", "ours", "syncing", "limit_ms", "becomes"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_deadline_has_passed_only_after_its_limit(
    before: PresenceRow, ours: bool, syncing: bool, limit_ms: int, becomes: str, past_ms: int
) -> None:
    limit_ms = limit_ms or TIMERS.busy_offline_timeout_ms
    # The other times are set so far ahead that this deadline comes first.
    ahead = {
        name: limit_ms
        for name in ("last_active_ts", "last_federation_update_ts", "last_user_sync_ts")
        if getattr(before, name)
    }
    before = replace(before, **ahead)
    assert next_deadline(before, ours, syncing, TIMERS) == limit_ms
    after = after_time(before, ours, syncing, limit_ms + past_ms, TIMERS)
    if past_ms <= 0:
        assert after is None
    else:
        assert after is not None
        assert after.state == becomes


@pytest.mark.parametrize(
    ("state", "ours", "syncing"),
    [(OFFLINE, True, False), (OFFLINE, False, False)],
)
def test_nothing_happens_to_who_is_offline(state: str, ours: bool, syncing: bool) -> None:
    old = PresenceRow("@a:x", state, 0, 0, 0, None, False)
    assert next_deadline(old, ours, syncing, TIMERS) is None
    assert after_time(old, ours, syncing, NOW, TIMERS) is None


@pytest.mark.parametrize("state", sorted(states.STATES - {OFFLINE}))
@pytest.mark.parametrize("ours", [True, False])
def test_everybody_else_has_a_deadline(state: str, ours: bool) -> None:
    for syncing in (True, False):
        assert next_deadline(row(state), ours, syncing, TIMERS) is not None


@pytest.mark.parametrize("state", [ONLINE, UNAVAILABLE, BUSY, BUSY_UNSTABLE])
def test_open_sync_keeps_online(state: str) -> None:
    old = row(state, last_user_sync_ts=0, last_active_ts=0, currently_active=False)
    after = after_time(old, True, True, NOW, TIMERS)
    assert after is None or after.state != OFFLINE
    gone = after_time(old, True, False, NOW, TIMERS)
    assert gone is not None
    assert gone.state == OFFLINE


def test_activity_counts_as_having_been_heard() -> None:
    old = row(UNAVAILABLE, last_user_sync_ts=0, last_active_ts=NOW)
    assert after_time(old, True, False, NOW + 30_000, TIMERS) is None
    assert after_time(old, True, False, NOW + 30_001, TIMERS) is not None


def test_who_idles_and_is_silent_is_offline_at_once() -> None:
    old = row(last_active_ts=0, last_user_sync_ts=0, currently_active=False)
    after = after_time(old, True, False, NOW, TIMERS)
    assert after is not None
    assert after.state == OFFLINE


@pytest.mark.parametrize(("ago_ms", "active"), [(59_999, True), (60_000, False), (60_001, False)])
def test_currently_active_is_within_the_granularity(ago_ms: int, active: bool) -> None:
    decision = decide(row(), row(last_active_ts=NOW - ago_ms), True, NOW, TIMERS)
    assert decision.row.currently_active is active


@pytest.mark.parametrize("state", [UNAVAILABLE, OFFLINE, BUSY])
def test_only_who_is_online_is_currently_active(state: str) -> None:
    for ours in (True, False):
        decision = decide(row(), row(state, currently_active=True), ours, NOW, TIMERS)
        assert decision.row.currently_active is False


@pytest.mark.parametrize(("ago_ms", "ping"), [(-1, False), (0, False), (1, True)])
def test_ping_is_due_after_its_interval(ago_ms: int, ping: bool) -> None:
    old = row(last_federation_update_ts=NOW - 25 * MINUTE - ago_ms)
    decision = decide(old, old, True, NOW, TIMERS)
    assert (decision.ping, decision.notify) == (ping, False)
    assert (decision.row.last_federation_update_ts == NOW) == ping


def test_news_make_a_ping_needless() -> None:
    old = row(last_federation_update_ts=0)
    decision = decide(old, row(BUSY, last_federation_update_ts=0), True, NOW, TIMERS)
    assert (decision.ping, decision.notify) == (False, True)
    assert decision.row.last_federation_update_ts == NOW


@pytest.mark.parametrize("ours", [False, True])
def test_who_goes_offline_is_not_pinged(ours: bool) -> None:
    old = row(OFFLINE, last_federation_update_ts=0)
    assert not decide(old, old, ours, NOW, TIMERS).ping


#: (old, new, whether others are told)
CHANGES = [
    (row(), row(), False),
    (row(), row(status_msg="here"), True),
    (row(status_msg="here"), row(), True),
    (row(), row(UNAVAILABLE), True),
    (row(), row(currently_active=False), True),
    (row(currently_active=False), row(), True),
    (row(currently_active=1), row(currently_active=True), False),
    (row(UNAVAILABLE), row(UNAVAILABLE, currently_active=True), False),
    (row(), row(last_user_sync_ts=NOW + 10**9), False),
    (row(), row(last_federation_update_ts=NOW + 10**9), False),
    # Activity moves: online and active says it all already.
    (row(), row(last_active_ts=NOW + 10**9), False),
    *(
        (
            row(state, currently_active=False),
            row(state, currently_active=False, last_active_ts=NOW + moved_ms),
            moved_ms > MINUTE,
        )
        for state in (ONLINE, UNAVAILABLE, OFFLINE, BUSY)
        for moved_ms in (MINUTE - 1, MINUTE, MINUTE + 1)
    ),
]


@pytest.mark.parametrize(("old", "new", "told"), CHANGES)
def test_others_are_told_of_news(old: PresenceRow, new: PresenceRow, told: bool) -> None:
    assert notifies(old, new, TIMERS) == told
    assert notifies(new, new, TIMERS) is False


def test_names_of_the_tables_are_unique() -> None:
    for names in ([d.name for d in DEADLINES], [name for name, _ in states.NOTIFIES]):
        assert len(set(names)) == len(names)


def test_unknown_user_is_offline_and_blank() -> None:
    unknown = states.offline("@a:x")
    assert states.is_blank(unknown)
    assert not states.is_blank(row())
    assert unknown.user_id == "@a:x"
