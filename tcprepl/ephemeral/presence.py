"""Presence: who is there, on the process that decides it (protocol.md section 7).

A user is online because a client said so, or because some process holds a sync of theirs
open; and goes offline when neither has been true for a while. What the rules are is data in
`tcprepl.ephemeral.presence_states`; here they meet the world: timers, processes that come and
go, the log, other servers.

Each step is about what the one before has left to be done about a user: so this may be longer than
other modules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from msgspec import Struct
from msgspec.structs import replace
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime

from tcprepl import metrics
from tcprepl.background import (
    LoopingProcess,
    looping_background_process,
    run_in_background,
    spread,
    stop_all,
)
from tcprepl.ephemeral import presence_states as states
from tcprepl.ephemeral.board import UPDATES_LIMIT, Board, Updates
from tcprepl.ephemeral.ports import (
    HostsOfUser,
    Milliseconds,
    Publish,
    SendPresence,
    milliseconds,
    no_hosts,
    server_of,
)
from tcprepl.ephemeral.presence_edu import EDU_TYPE, MAX_ID_CHARS, MAX_STATUS_MSG_CHARS, read_edu
from tcprepl.ephemeral.presence_follower import STREAM, make_board
from tcprepl.ephemeral.presence_states import PresenceTimers
from tcprepl.ephemeral.presence_syncs import OpenSyncs
from tcprepl.ephemeral.wheel_timer import WheelTimer
from tcprepl.errors import LogError
from tcprepl.ids import ServerName, Token
from tcprepl.logger import get_logger
from tcprepl.streams.rows import PresenceRow

logger = get_logger(__name__)

FEDERATION_STREAM = "presence_federation"

#: How often timers are looked at.
TIMER_INTERVAL_S = 5.0
#: How often changes that nobody was told of are published.
FLUSH_INTERVAL_S = 60.0
#: A user who has been offline for this long is forgotten.
FORGET_AFTER_MS = 86_400_000
#: Most users held; a remote server may not add more.
MAX_USERS = 1_000_000
#: Most processes whose syncs are held, and most syncs of all of them together.
MAX_PROCESSES = 10_000
MAX_SYNCS = 1_000_000
#: Users that are looked at, or published, in one step of what may be due for all of them.
USERS_A_STEP = 50


class _User(Struct, gc=False):
    """A user's present state, and what is still to be done about it.

    Attributes:
        row: The state.
        timer_ms: When the pending timer comes due; -1 if there is none.
    """

    row: PresenceRow
    timer_ms: Milliseconds = -1


class PresenceWriter:
    """Decides who is online, publishes it, tells remote servers of local users.

    Invariant: every user that is not offline has a timer at or before its next deadline.
    The newest published row of a user is its present state, but for what the next flush
    brings: changes that nobody has to be told of at once.

    Args:
        clock: Time, for the loops.
        publish: Appends to the log.
        server_name: The server whose users are ours.
        hosts_of_user: The servers that are to hear of a user.
        send_presence: Queues presence for other servers; None where there is no federation.
        timers: How long things last.
        position: The stream's newest token when the writer starts.
        wall_ms: Returns the time in ms since 1970, by a clock that never jumps; by default
            the clock's.
        wheel: The timers; given by tests.
    """

    def __init__(
        self,
        clock: IReactorTime,
        publish: Publish,
        server_name: ServerName,
        *,
        hosts_of_user: HostsOfUser = no_hosts,
        send_presence: SendPresence | None = None,
        timers: PresenceTimers | None = None,
        position: Token = 0,
        wall_ms: Callable[[], Milliseconds] | None = None,
        wheel: WheelTimer[str] | None = None,
    ) -> None:
        self._clock = clock
        self._now = wall_ms or partial(milliseconds, clock)
        self._publish = publish
        self._server_name = server_name
        self._hosts_of_user = hosts_of_user
        self._send_presence = send_presence
        self._timers = timers or PresenceTimers()
        self._wheel: WheelTimer[str] = wheel if wheel is not None else WheelTimer()
        self._users: dict[str, _User] = {}
        self._by_state: Counter[str] = Counter()
        self._syncs = OpenSyncs()
        self._board: Board[PresenceRow] = make_board(position - 1)
        #: Users whose state is not in the log: nobody had to be told.
        self._quiet: set[str] = set()
        #: Users whose row the log refused.
        self._refused: set[str] = set()
        #: Users of whom the disk refused to queue for other servers.
        self._untold: set[str] = set()
        self._published_rows = 0
        self._loops: list[LoopingProcess] = []
        self._sources: list[tuple[metrics.Live, metrics.Source]] = []

    # -- Life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the timers, and show the metrics."""
        self._loops = [
            looping_background_process(
                self._clock, "presence.timers", TIMER_INTERVAL_S, self._check_timers
            ),
            looping_background_process(
                self._clock, "presence.flush", FLUSH_INTERVAL_S, self._sweep
            ),
        ]
        self._sources = [
            (
                metrics.PRESENCE_USERS,
                lambda: [((state,), count) for state, count in self._by_state.items()],
            ),
            (metrics.TIMERS_PENDING, lambda: [((STREAM,), len(self._wheel))]),
            (metrics.EPHEMERAL_CHANGES, lambda: [((STREAM,), self._published_rows)]),
        ]
        for live, source in self._sources:
            live.add_source(source)

    def stop(self) -> Deferred[None]:
        """Stop the timers; fires once nothing runs any more."""
        for live, source in self._sources:
            live.remove_source(source)
        loops, self._loops, self._sources = self._loops, [], []
        return stop_all(loops)

    # -- What clients say -------------------------------------------------------------------

    def set_state(self, user_id: str, state: str, status_msg: str | None = None) -> None:
        """Set what the client of one of our users says.

        Whoever says something is there: it counts as a sync, too.

        Args:
            user_id: The user.
            state: ``online``, ``unavailable``, ``offline`` or ``busy``.
            status_msg: A text to show; None clears it.

        Raises:
            ValueError: it is not our user, there is no such state, the text is too long.
        """
        if server_of(user_id) != self._server_name:
            raise ValueError(f"{user_id!r:.64}: expected a user of {self._server_name}")
        if state not in states.STATES:
            raise ValueError(f"state {state!r:.64}: expected one of {sorted(states.STATES)}")
        if status_msg is not None and len(status_msg) > MAX_STATUS_MSG_CHARS:
            raise ValueError(
                f"status_msg: {len(status_msg)} characters; at most {MAX_STATUS_MSG_CHARS}"
            )
        now = self._now()
        row = replace(self._row(user_id), state=state, status_msg=status_msg)
        if state in states.PRESENT:
            row = replace(row, last_active_ts=now)
        if state != states.OFFLINE:
            row = replace(row, last_user_sync_ts=now)
        self._update([row], now)

    def user_active(self, user_id: str) -> None:
        """Note that one of our users has just done something, like sending a message."""
        if not self._is_ours(user_id):
            return
        now = self._now()
        row = replace(self._row(user_id), last_active_ts=now)
        if row.state == states.UNAVAILABLE:
            row = replace(row, state=states.ONLINE)
        self._update([row], now)

    # -- What processes say of the syncs they hold open -------------------------------------

    def user_syncing(
        self,
        process_id: str,
        user_id: str,
        syncing: bool,
        last_sync_ms: Milliseconds,
        device_id: str | None = None,
    ) -> None:
        """Note that a process began or ended to hold a sync of a user open (USER_SYNC).

        Saying "began" again is harmless, and keeps the process from being forgotten.

        Args:
            process_id: The process; for peers that do not name one, the connection.
            user_id: The user.
            syncing: Whether the sync began or ended.
            last_sync_ms: When; a time in the future is taken for now.
            device_id: The device, from peers that tell devices apart: those set the state by
                another way, and here only say that the sync is open.
        """
        if syncing and not self._may_sync(process_id, user_id):
            metrics.DROPPED.labels("USER_SYNC", "not our user, or too many").inc()
            logger.info("presence.sync.ignored", sync_process=process_id[:64], user=user_id[:64])
            return
        now = self._now()
        heard = min(last_sync_ms, now)
        known = self._syncs.is_open(process_id, user_id, device_id)
        if not syncing and not known:
            self.process_alive(process_id)
            return
        self._syncs.process_alive(process_id, now)
        if syncing:
            self._syncs.began(process_id, user_id, device_id)
        else:
            self._syncs.ended(process_id, user_id, device_id)
        row = self._row(user_id)
        if syncing and device_id is not None:
            self._arm(user_id)
            return
        row = replace(row, last_user_sync_ts=max(heard, row.last_user_sync_ts))
        if syncing and not known and row.state == states.OFFLINE:
            row = replace(row, state=states.ONLINE, last_active_ts=heard)
        self._update([row], now)

    def _may_sync(self, process_id: str, user_id: str) -> bool:
        """Return whether a process may speak of a user, and whether there is room for it."""
        return (
            self._is_ours(user_id)
            and max(len(user_id), len(process_id)) <= MAX_ID_CHARS
            and (user_id in self._users or len(self._users) < MAX_USERS)
            and len(self._syncs) < MAX_SYNCS
            and (
                process_id in self._syncs.processes()
                or len(self._syncs.processes()) < MAX_PROCESSES
            )
        )

    def clear_process(self, process_id: str) -> None:
        """Note that a process ended, and with it all its syncs (CLEAR_USER_SYNC)."""
        run_in_background(spread, self._clock, self._end_syncs(process_id))

    def _end_syncs(self, process_id: str) -> Iterator[None]:
        for users in in_steps(self._syncs.clear(process_id)):
            run_in_background(self._syncs_ended, users)
            yield

    def _syncs_ended(self, user_ids: Iterable[str]) -> None:
        now = self._now()
        self._update([replace(self._row(user), last_user_sync_ts=now) for user in user_ids], now)

    def process_alive(self, process_id: str) -> None:
        """Note that a process lives, so that its syncs are not taken to have ended."""
        if process_id in self._syncs.processes():
            self._syncs.process_alive(process_id, self._now())

    # -- What remote servers say ------------------------------------------------------------

    def received_edu(self, origin: ServerName, content: Mapping[str, Any]) -> int:
        """Take an ``m.presence`` EDU of a remote server; it may speak of its own users only.

        Args:
            origin: The server it came from, authenticated.
            content: ``push``, a list of states.

        Returns:
            How many of the states counted.

        Raises:
            ValueError: the content is not what it should be.
        """
        now = self._now()
        rows, ignored = read_edu(origin, content, self._row_if_room, now)
        if ignored:
            metrics.DROPPED.labels(EDU_TYPE, "not a state of a user of the origin").inc(ignored)
            logger.info("presence.edu.ignored", origin=origin, pushes=ignored)
        self._update(rows, now)
        return len(rows)

    def _row_if_room(self, user_id: str) -> PresenceRow | None:
        """Return the present state of a remote user; None if there is no room for another."""
        if self._is_ours(user_id) or (user_id not in self._users and len(self._users) >= MAX_USERS):
            return None
        return self._row(user_id)

    # -- What others ask --------------------------------------------------------------------

    def get_state(self, user_id: str) -> PresenceRow | None:
        """Return the present state of a user, None when it is not known."""
        user = self._users.get(user_id)
        return None if user is None else user.row

    def states(self) -> dict[str, PresenceRow]:
        """Return the state of everybody who is not offline."""
        return {
            user_id: user.row
            for user_id, user in self._users.items()
            if user.row.state != states.OFFLINE
        }

    @property
    def newest(self) -> Token:
        """The token of the latest change that was published."""
        return self._board.newest

    def updates(
        self,
        after: Token,
        upto: Token | None = None,
        *,
        limit: int = UPDATES_LIMIT,
        compacted: bool = False,
    ) -> Updates[PresenceRow]:
        """Return the users whose newest row is in ``(after, upto]``: `Board.updates`."""
        return self._board.updates(after, upto, limit=limit, compacted=compacted)

    # -- Inside -----------------------------------------------------------------------------

    def _row(self, user_id: str) -> PresenceRow:
        user = self._users.get(user_id)
        return states.offline(user_id) if user is None else user.row

    def _is_ours(self, user_id: str) -> bool:
        return server_of(user_id) == self._server_name

    def _update(self, rows: Iterable[PresenceRow], now: Milliseconds) -> None:
        """Take new states, complete them, and publish those that others are told of."""
        notify: list[PresenceRow] = []
        ping: list[PresenceRow] = []
        for new in rows:
            user_id = new.user_id
            user = self._users.get(user_id)
            old = states.offline(user_id) if user is None else user.row
            decision = states.decide(old, new, self._is_ours(user_id), now, self._timers)
            row = decision.row
            if row == old:
                self._arm(user_id)
                continue
            if user is None:
                self._users[user_id] = _User(row)
            else:
                self._by_state[old.state] -= 1
                user.row = row
            self._by_state[row.state] += 1
            self._arm(user_id)
            if decision.notify:
                notify.append(row)
            else:
                self._quiet.add(user_id)
            if decision.ping:
                ping.append(row)
        if notify:
            run_in_background(self._publish_rows, notify)
            self._tell_remotes(notify, ping=False)
        if ping:
            self._tell_remotes(ping, ping=True)

    async def _publish_rows(self, rows: Sequence[PresenceRow]) -> None:
        for row in rows:
            self._quiet.discard(row.user_id)
            self._refused.discard(row.user_id)
        try:
            appended = await self._publish(STREAM, rows)
        except BaseException:
            self._refused.update(row.user_id for row in rows)
            raise
        self._published_rows += len(rows)
        for token, row in enumerate(rows, start=appended.first):
            self._board.post(row.user_id, row, token)

    def _publish_users(self, user_ids: Iterable[str]) -> None:
        rows = [self._row(user_id) for user_id in user_ids]
        if rows:
            run_in_background(self._publish_rows, rows)

    def _tell_remotes(self, rows: Iterable[PresenceRow], *, ping: bool) -> None:
        asked: list[tuple[ServerName, str]] = []
        for row in rows:
            if not self._is_ours(row.user_id):
                continue
            hosts = sorted(set(self._hosts_of_user(row.user_id)) - {self._server_name})
            if not hosts:
                continue
            if ping:
                asked += [(host, row.user_id) for host in hosts]
            if self._send_presence is not None:
                run_in_background(self._send, self._send_presence, row, hosts)
        if asked:
            # Senders of Synapse look the states up themselves; they know of changes from the
            # presence stream, and of pings from here.
            run_in_background(self._publish, FEDERATION_STREAM, asked, batch=True)

    async def _send(
        self, send_presence: SendPresence, row: PresenceRow, hosts: Sequence[ServerName]
    ) -> None:
        self._untold.discard(row.user_id)
        try:
            await maybeDeferred(send_presence, row, hosts)
        except LogError:
            self._untold.add(row.user_id)
            raise

    def _tell_again(self, user_ids: Iterable[str]) -> None:
        run_in_background(self._tell_remotes, list(map(self._row, user_ids)), ping=False)

    # -- Time -------------------------------------------------------------------------------

    def _arm(self, user_id: str) -> None:
        user = self._users.get(user_id)
        if user is None:
            return
        due = states.next_deadline(
            user.row, self._is_ours(user_id), self._syncs.is_syncing(user_id), self._timers
        )
        if due is not None and not self._now() < user.timer_ms <= due:
            user.timer_ms = due
            self._wheel.insert(user_id, due)

    async def _check_timers(self) -> None:
        await spread(self._clock, self._due_work())

    def _due_work(self) -> Iterator[None]:
        """Do what is due, some users a step."""
        refused, self._refused = self._refused, set()
        yield from map(self._publish_users, in_steps(refused))
        untold, self._untold = self._untold, set()
        yield from map(self._tell_again, in_steps(untold))
        expired = self._syncs.expire(self._now(), self._timers.process_expiry_ms)
        yield from map(self._check_apart, in_steps(expired))
        yield from map(self._check_apart, in_steps(self._wheel.fetch(self._now())))

    def _check_apart(self, user_ids: Iterable[str]) -> None:
        """Check some users; what goes wrong with them is not for the others to bear."""
        run_in_background(self._check, user_ids)

    def _check(self, user_ids: Iterable[str]) -> None:
        now = self._now()
        changed: list[PresenceRow] = []
        for user_id in dict.fromkeys(user_ids):
            user = self._users.get(user_id)
            if user is None:
                continue
            row = states.after_time(
                user.row,
                self._is_ours(user_id),
                self._syncs.is_syncing(user_id),
                now,
                self._timers,
            )
            if row is None:
                self._arm(user_id)
            else:
                changed.append(row)
        self._update(changed, now)

    async def _sweep(self) -> None:
        """Publish what nobody had to be told of; catch lost timers; forget the long offline."""
        await spread(self._clock, self._sweep_work())

    def _sweep_work(self) -> Iterator[None]:
        late = round(2 * TIMER_INTERVAL_S * 1000)
        for user_ids in in_steps(list(self._users)):
            now = self._now()
            lost: list[str] = []
            for user_id in user_ids:
                user = self._users.get(user_id)
                if user is None:
                    continue
                if user.row.state != states.OFFLINE:
                    if user.timer_ms + late < now:
                        lost.append(user_id)
                elif now - user.row.last_federation_update_ts > FORGET_AFTER_MS:
                    # What it was last is told before it is forgotten.
                    if user_id in self._quiet:
                        self._publish_users([user_id])
                    del self._users[user_id]
                    self._by_state[states.OFFLINE] -= 1
            if lost:
                logger.warning("presence.timers.lost", users=len(lost), first=lost[0])
                self._check_apart(lost)
            yield
        quiet, self._quiet = self._quiet, set()
        yield from map(self._publish_users, in_steps(quiet))


def in_steps(user_ids: Iterable[str]) -> Iterator[list[str]]:
    """Yield *user_ids* some at a time, as many as one step may look at; of a list each once."""
    known: set[str] = set()
    rest = iter(user_ids)
    while some := list(islice(rest, USERS_A_STEP)):
        if isinstance(user_ids, list):
            some = [user_id for user_id in dict.fromkeys(some) if user_id not in known]
            known.update(some)
        yield some
