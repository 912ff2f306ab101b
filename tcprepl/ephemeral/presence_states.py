"""Presence as a state machine, written as data (protocol.md section 7): no I/O, no clock.

`DEADLINES` says what time does to a state, `NOTIFIES` which changes others are told of. The
functions only walk these tables. A state is a row of the ``presence`` stream (`PresenceRow`):
what is decided here is what goes out.

All comparisons are strict: at exactly its limit nothing has expired yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from msgspec.structs import replace

from tcprepl.ephemeral.ports import Milliseconds
from tcprepl.streams.rows import PresenceRow

ONLINE = "online"
UNAVAILABLE = "unavailable"
OFFLINE = "offline"
#: A client may ask not to be disturbed; such a user does not idle. MSC3026, in both spellings.
BUSY = "busy"
BUSY_UNSTABLE = "org.matrix.msc3026.busy"

#: Every state that a client or a remote server may name.
STATES = frozenset({ONLINE, UNAVAILABLE, OFFLINE, BUSY, BUSY_UNSTABLE})
_IS_BUSY = frozenset({BUSY, BUSY_UNSTABLE})
_NOT_OFFLINE = STATES - {OFFLINE}
#: The states in which a user is there, so that something has just been done.
PRESENT = _IS_BUSY | {ONLINE}


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceTimers:
    """How long things last, in ms."""

    #: How precisely "last active" is told: somebody active within it is "currently active".
    last_active_granularity_ms: int = 60_000
    #: Silence after which a user without an open sync is offline.
    sync_online_timeout_ms: int = 30_000
    #: Inactivity after which an online user is unavailable.
    idle_ms: int = 300_000
    #: As `sync_online_timeout_ms`, for a busy user.
    busy_offline_timeout_ms: int = 3_600_000
    #: Silence after which a remote user is taken to be offline.
    federation_timeout_ms: int = 1_800_000
    #: How often remote servers are told that a user is still there.
    federation_ping_interval_ms: int = 1_500_000
    #: Silence after which a process that reported syncs is forgotten.
    process_expiry_ms: int = 300_000


class Deadline(NamedTuple):
    """Something that time does to a state.

    Attributes:
        name: What it is.
        ours: Whether it concerns users of our own server, or those of others.
        states: The states that it concerns.
        unless_syncing: Whether an open sync keeps it away.
        while_active: Whether it concerns only those that are "currently active".
        since: When the time began to run.
        limit_ms: How long it runs.
        becomes: The state afterwards; None for a state that is only looked at again.
    """

    name: str
    ours: bool
    states: frozenset[str]
    unless_syncing: bool
    while_active: bool
    since: Callable[[PresenceRow], Milliseconds]
    limit_ms: Callable[[PresenceTimers], Milliseconds]
    becomes: str | None

    def applies(self, row: PresenceRow, ours: bool, syncing: bool) -> bool:
        """Return whether time runs for *row*."""
        return (
            self.ours is ours
            and row.state in self.states
            and not (self.unless_syncing and syncing)
            and not (self.while_active and not row.currently_active)
        )


def last_heard_ms(row: PresenceRow) -> Milliseconds:
    """Return when the user was last heard of: in a sync, or by doing something."""
    return max(row.last_user_sync_ts, row.last_active_ts)


DEADLINES: tuple[Deadline, ...] = (
    Deadline(
        name="idle",
        ours=True,
        states=frozenset({ONLINE}),
        unless_syncing=False,
        while_active=False,
        since=lambda row: row.last_active_ts,
        limit_ms=lambda timers: timers.idle_ms,
        becomes=UNAVAILABLE,
    ),
    Deadline(
        name="no longer currently active",
        ours=True,
        states=frozenset({ONLINE}),
        unless_syncing=False,
        while_active=True,
        since=lambda row: row.last_active_ts,
        limit_ms=lambda timers: timers.last_active_granularity_ms,
        becomes=None,
    ),
    Deadline(
        name="federation ping",
        ours=True,
        states=_NOT_OFFLINE,
        unless_syncing=False,
        while_active=False,
        since=lambda row: row.last_federation_update_ts,
        limit_ms=lambda timers: timers.federation_ping_interval_ms,
        becomes=None,
    ),
    Deadline(
        name="silent",
        ours=True,
        states=frozenset({ONLINE, UNAVAILABLE}),
        unless_syncing=True,
        while_active=False,
        since=last_heard_ms,
        limit_ms=lambda timers: timers.sync_online_timeout_ms,
        becomes=OFFLINE,
    ),
    Deadline(
        name="silent though busy",
        ours=True,
        states=_IS_BUSY,
        unless_syncing=True,
        while_active=False,
        since=last_heard_ms,
        limit_ms=lambda timers: timers.busy_offline_timeout_ms,
        becomes=OFFLINE,
    ),
    Deadline(
        name="remote silent",
        ours=False,
        states=_NOT_OFFLINE,
        unless_syncing=False,
        while_active=False,
        since=lambda row: row.last_federation_update_ts,
        limit_ms=lambda timers: timers.federation_timeout_ms,
        becomes=OFFLINE,
    ),
)


def offline(user_id: str) -> PresenceRow:
    """Return the state of a user of whom nothing is known."""
    return PresenceRow(user_id, OFFLINE, 0, 0, 0, None, False)


def is_blank(row: PresenceRow) -> bool:
    """Return whether a state says no more than that the user is not there."""
    return row.state == OFFLINE


def next_deadline(
    row: PresenceRow, ours: bool, syncing: bool, timers: PresenceTimers
) -> Milliseconds | None:
    """Return the time after which `after_time` will have something to do, if any."""
    return min(
        (
            deadline.since(row) + deadline.limit_ms(timers)
            for deadline in DEADLINES
            if deadline.applies(row, ours, syncing)
        ),
        default=None,
    )


def after_time(
    row: PresenceRow, ours: bool, syncing: bool, now: Milliseconds, timers: PresenceTimers
) -> PresenceRow | None:
    """Return what time has made of *row*, for `decide`; None if no deadline has passed."""
    passed = False
    for deadline in DEADLINES:
        if deadline.applies(row, ours, syncing) and (
            now - deadline.since(row) > deadline.limit_ms(timers)
        ):
            passed = True
            if deadline.becomes is not None:
                row = replace(row, state=deadline.becomes)
    return row if passed else None


#: When a change is told to others: (before, after, granularity in ms) -> whether.
NOTIFIES: tuple[tuple[str, Callable[[PresenceRow, PresenceRow, Milliseconds], bool]], ...] = (
    ("status_msg", lambda old, new, _: old.status_msg != new.status_msg),
    ("state", lambda old, new, _: old.state != new.state),
    (
        "currently_active",
        lambda old, new, _: (
            new.state == ONLINE and bool(old.currently_active) != bool(new.currently_active)
        ),
    ),
    (
        "last_active",
        lambda old, new, granularity_ms: (
            new.last_active_ts - old.last_active_ts > granularity_ms
            and not (new.state == ONLINE and new.currently_active)
        ),
    ),
)


def notifies(old: PresenceRow, new: PresenceRow, timers: PresenceTimers) -> bool:
    """Return whether others are told of the change from *old* to *new*."""
    granularity_ms = timers.last_active_granularity_ms
    return any(differs(old, new, granularity_ms) for _, differs in NOTIFIES)


class Decision(NamedTuple):
    """What follows from a change.

    Attributes:
        row: The new state, complete.
        notify: Whether it is published now; otherwise it is with the next flush.
        ping: Whether remote servers hear that the user is still there, and nothing else.
    """

    row: PresenceRow
    notify: bool
    ping: bool


def decide(
    old: PresenceRow, new: PresenceRow, ours: bool, now: Milliseconds, timers: PresenceTimers
) -> Decision:
    """Complete the change from *old* to *new*, and say who hears of it."""
    ping_due = False
    if ours:
        active = (
            new.state == ONLINE and now - new.last_active_ts < timers.last_active_granularity_ms
        )
        new = replace(new, currently_active=active)
        ping_due = (
            new.state != OFFLINE
            and now - new.last_federation_update_ts > timers.federation_ping_interval_ms
        )
    elif new.state != ONLINE and new.currently_active:
        new = replace(new, currently_active=False)
    notify = notifies(old, new, timers)
    if ping_due or notify:
        new = replace(new, last_federation_update_ts=now)
    return Decision(new, notify, ping_due and not notify)
