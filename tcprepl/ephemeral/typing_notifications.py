"""Typing: who is typing in which room, on the process that decides it (protocol.md section 7).

A client says "typing, for 30 s" and says it again, or "stopped", or falls silent. Remote
servers say the same of their users in ``m.typing`` EDUs. The writer keeps, for each room with
somebody in it, who types until when; every change publishes the room's whole list of users as
one row of the ``typing`` stream, whose tokens are the log's.

Time takes people off: each has a timer in the wheel for the moment at which the time is up,
and one more, a minute ahead at most, that does not depend on it. A sweep over everybody who
types catches what slips through both. So nobody types for ever, whatever gets lost.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from tcprepl import metrics
from tcprepl.background import (
    LoopingProcess,
    looping_background_process,
    run_in_background,
    spread,
    stop_all,
)
from tcprepl.ephemeral.board import UPDATES_LIMIT, Board, Updates
from tcprepl.ephemeral.follower import Follower
from tcprepl.ephemeral.ports import (
    HostsInRoom,
    Milliseconds,
    Publish,
    SendEdu,
    milliseconds,
    no_hosts,
    server_of,
)
from tcprepl.ephemeral.wheel_timer import WheelTimer
from tcprepl.ids import ServerName, Token
from tcprepl.logger import get_logger
from tcprepl.streams.rows import TypingRow

logger = get_logger(__name__)

STREAM = "typing"
EDU_TYPE = "m.typing"

#: How long a client's "typing" lasts when it does not say.
DEFAULT_TIMEOUT_MS = 30_000
#: The longest that a client may ask for.
MAX_TIMEOUT_MS = 120_000
#: How long a remote server's "typing" lasts.
FEDERATION_TIMEOUT_MS = 60_000
#: How often remote servers are told that somebody still types.
FEDERATION_PING_INTERVAL_MS = 40_000
#: Each user who types is looked at again after this long, whatever other timers say.
PARANOIA_MS = 60_000
#: How often timers are looked at.
TIMER_INTERVAL_S = 5.0
#: How often everybody who types is looked at, and quiet rooms are forgotten.
SWEEP_INTERVAL_S = 60.0
#: A room in which nobody typed for this long is forgotten.
FORGET_AFTER_MS = 600_000
#: Users typing at once in one room; a remote server may not add more.
MAX_USERS_PER_ROOM = 1_000


class _Typist:
    """A user who types in a room: until when, and which timers are pending for it."""

    __slots__ = ("paranoia_ms", "poked_ms", "timer_ms", "until_ms")

    def __init__(self) -> None:
        self.until_ms: Milliseconds = 0
        #: When the pending timer for `until_ms` comes due, at the latest at `until_ms`; -1 if
        #: there is none.
        self.timer_ms: Milliseconds = -1
        #: When the pending timer comes due that does not depend on `until_ms`.
        self.paranoia_ms: Milliseconds = -1
        #: When remote servers were last told that the user types.
        self.poked_ms: Milliseconds | None = None


class TypingWriter:
    """Decides who is typing, publishes each change, tells remote servers of local users.

    Invariant: while no publication of a room is pending or failed, its latest row says who
    types in it. Calls never wait: a change that comes while a row of the same room is on its
    way to the log is published, with all others, once that row has its token.

    Rows that somebody else appends to the stream take tokens, and change nothing here.

    Args:
        clock: Time.
        publish: Appends to the log.
        server_name: The server whose users are ours.
        hosts_in_room: The servers in a room; EDUs go there, and are taken from there only.
        send_edu: Queues an EDU for other servers; None where there is no federation.
        position: The stream's newest token when the writer starts.
        wheel: The timers; given by tests.
    """

    def __init__(
        self,
        clock: IReactorTime,
        publish: Publish,
        server_name: ServerName,
        *,
        hosts_in_room: HostsInRoom = no_hosts,
        send_edu: SendEdu | None = None,
        position: Token = 0,
        wheel: WheelTimer[tuple[str, str]] | None = None,
    ) -> None:
        self._clock = clock
        self._publish = publish
        self._server_name = server_name
        self._hosts_in_room = hosts_in_room
        self._send_edu = send_edu
        self._wheel: WheelTimer[tuple[str, str]] = wheel if wheel is not None else WheelTimer()
        self._typing: dict[str, dict[str, _Typist]] = {}
        self._board: Board[Sequence[str]] = make_board(position - 1)
        #: Rooms with a row on its way -> whether they changed since.
        self._publishing: dict[str, bool] = {}
        #: Rooms whose row the log refused.
        self._unpublished: set[str] = set()
        #: (when, newest token then), oldest first: what is older than `FORGET_AFTER_MS`.
        self._marks: deque[tuple[Milliseconds, Token]] = deque()
        self._published_rows = 0
        self._loops: list[LoopingProcess] = []
        self._sources: list[tuple[metrics.Live, metrics.Source]] = []

    # -- Life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the timers, and show the metrics."""
        self._loops = [
            looping_background_process(
                self._clock, "typing.timers", TIMER_INTERVAL_S, self._check_timers
            ),
            looping_background_process(self._clock, "typing.sweep", SWEEP_INTERVAL_S, self._sweep),
        ]
        self._sources = [
            (metrics.TYPING_USERS, lambda: [((), self.user_count)]),
            (metrics.TYPING_ROOMS, lambda: [((), len(self._board))]),
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

    # -- What clients and remote servers say ------------------------------------------------

    def started_typing(
        self, room_id: str, user_id: str, timeout_ms: Milliseconds = DEFAULT_TIMEOUT_MS
    ) -> None:
        """Note that one of our users types, for *timeout_ms* (at most two minutes).

        Raises:
            ValueError: it is not our user, or the timeout is negative.
        """
        self._check_ours(user_id)
        if timeout_ms < 0:
            raise ValueError(f"timeout_ms {timeout_ms}: expected 0 or more")
        now = self._now()
        if self._extend(room_id, user_id, now + min(timeout_ms, MAX_TIMEOUT_MS), now):
            self._tell_remotes(room_id, user_id, True, now)
            self._changed(room_id)

    def stopped_typing(self, room_id: str, user_id: str) -> None:
        """Note that one of our users stopped.

        Raises:
            ValueError: it is not our user.
        """
        self._check_ours(user_id)
        self._stop_typing(room_id, user_id)

    def user_left_room(self, user_id: str, room_id: str) -> None:
        """Note that a user, ours or not, left a room."""
        self._stop_typing(room_id, user_id)

    def received_edu(self, origin: ServerName, content: Mapping[str, Any]) -> bool:
        """Take an ``m.typing`` EDU of a remote server.

        It counts if the user is the origin's, and both the origin and we are in the room.

        Args:
            origin: The server it came from, authenticated.
            content: ``room_id``, ``user_id``, ``typing``.

        Returns:
            Whether it counted.

        Raises:
            ValueError: the content is not what it should be.
        """
        room_id, user_id = _field(content, "room_id"), _field(content, "user_id")
        typing = content.get("typing")
        if not isinstance(typing, bool):
            raise ValueError(f"typing: {typing!r:.64}; expected true or false")
        if server_of(user_id) != origin:
            return self._ignore("not the origin's user", origin, room_id, user_id)
        hosts = self._hosts_in_room(room_id)
        if self._server_name not in hosts:
            return self._ignore("we are not in the room", origin, room_id, user_id)
        if origin not in hosts:
            return self._ignore("the origin is not in the room", origin, room_id, user_id)
        now = self._now()
        if typing:
            users = self._typing.get(room_id, {})
            if len(users) >= MAX_USERS_PER_ROOM and user_id not in users:
                return self._ignore("too many users type", origin, room_id, user_id)
            self._extend(room_id, user_id, now + FEDERATION_TIMEOUT_MS, now)
        else:
            self._remove(room_id, user_id)
        self._changed(room_id)
        return True

    # -- What others ask --------------------------------------------------------------------

    @property
    def newest(self) -> Token:
        """The token of the latest change."""
        return self._board.newest

    @property
    def user_count(self) -> int:
        """How many users type; one who types in two rooms counts twice."""
        return sum(map(len, self._typing.values()))

    def users_typing(self, room_id: str) -> Sequence[str]:
        """Return who types in a room, by the order in which they started."""
        return list(self._typing.get(room_id, ()))

    def typing(self) -> dict[str, Sequence[str]]:
        """Return the rooms in which somebody types, with their users."""
        return {room_id: list(users) for room_id, users in self._typing.items()}

    def updates(
        self,
        after: Token,
        upto: Token | None = None,
        *,
        limit: int = UPDATES_LIMIT,
        compacted: bool = False,
    ) -> Updates[Sequence[str]]:
        """Return the rooms whose latest row is in ``(after, upto]``: `Board.updates`."""
        return self._board.updates(after, upto, limit=limit, compacted=compacted)

    # -- Inside -----------------------------------------------------------------------------

    def _now(self) -> Milliseconds:
        return milliseconds(self._clock)

    def _is_ours(self, user_id: str) -> bool:
        return server_of(user_id) == self._server_name

    def _check_ours(self, user_id: str) -> None:
        if not self._is_ours(user_id):
            raise ValueError(f"{user_id!r:.64}: expected a user of {self._server_name}")

    def _ignore(self, why: str, origin: ServerName, room_id: str, user_id: str) -> bool:
        metrics.DROPPED.labels(EDU_TYPE, why).inc()
        logger.debug(
            "typing.edu.ignored", reason=why, origin=origin, room_id=room_id, user_id=user_id
        )
        return False

    def _extend(
        self, room_id: str, user_id: str, until_ms: Milliseconds, now: Milliseconds
    ) -> bool:
        """Let a user type until *until_ms*; returns whether it did not type before."""
        users = self._typing.get(room_id)
        if users is None:
            users = self._typing[room_id] = {}
        typist = users.get(user_id)
        is_new = typist is None
        if typist is None:
            typist = users[user_id] = _Typist()
            self._arm_paranoia(room_id, user_id, typist, now)
        typist.until_ms = until_ms
        if not now < typist.timer_ms <= until_ms:
            typist.timer_ms = until_ms
            self._wheel.insert((room_id, user_id), until_ms)
        return is_new

    def _arm_paranoia(self, room_id: str, user_id: str, typist: _Typist, now: Milliseconds) -> None:
        typist.paranoia_ms = now + PARANOIA_MS
        self._wheel.insert((room_id, user_id), typist.paranoia_ms)

    def _remove(self, room_id: str, user_id: str) -> bool:
        users = self._typing.get(room_id)
        if users is None or users.pop(user_id, None) is None:
            return False
        if not users:
            del self._typing[room_id]
        return True

    def _stop_typing(self, room_id: str, user_id: str) -> None:
        if not self._remove(room_id, user_id):
            return
        if self._is_ours(user_id):
            self._tell_remotes(room_id, user_id, False, self._now())
        self._changed(room_id)

    def _tell_remotes(self, room_id: str, user_id: str, typing: bool, now: Milliseconds) -> None:
        if self._send_edu is None:
            return
        if typing:
            self._typing[room_id][user_id].poked_ms = now
            self._wheel.insert((room_id, user_id), now + FEDERATION_PING_INTERVAL_MS)
        run_in_background(self._send, room_id, user_id, typing)

    def _send(self, room_id: str, user_id: str, typing: bool) -> object:
        assert self._send_edu is not None
        hosts = [host for host in self._hosts_in_room(room_id) if host != self._server_name]
        if not hosts:
            return None
        content = {"room_id": room_id, "user_id": user_id, "typing": typing}
        return self._send_edu(hosts, EDU_TYPE, content, (room_id, user_id))

    # -- Publishing -------------------------------------------------------------------------

    def _changed(self, room_id: str) -> None:
        if room_id in self._publishing:
            self._publishing[room_id] = True
        else:
            run_in_background(self._publish_room, room_id)

    async def _publish_room(self, room_id: str) -> None:
        """Publish a room's users, again for as long as they change in the meantime."""
        again = True
        try:
            while again:
                self._publishing[room_id] = False
                users = self.users_typing(room_id)
                appended = await self._publish(STREAM, [[room_id, users]])
                self._board.post(room_id, users, appended.last)
                self._published_rows += 1
                again = self._publishing[room_id]
        except BaseException:
            self._unpublished.add(room_id)
            raise
        finally:
            del self._publishing[room_id]
        self._unpublished.discard(room_id)

    # -- Time -------------------------------------------------------------------------------

    async def _check_timers(self) -> None:
        await spread(self._clock, self._due_work())

    def _due_work(self) -> Iterator[None]:
        """Do what is due, a step for each room or user."""
        for room_id in tuple(self._unpublished):
            self._changed(room_id)
            yield
        due = self._wheel.fetch(self._now())
        due.reverse()
        while due:  # one goes after the other: to let go of all of them at once takes long
            room_id, user_id = due.pop()
            run_in_background(self._check_typist, room_id, user_id, self._now())
            yield

    def _check_typist(self, room_id: str, user_id: str, now: Milliseconds) -> None:
        typist = self._typing.get(room_id, {}).get(user_id)
        if typist is None:
            return
        if typist.paranoia_ms <= now:
            self._arm_paranoia(room_id, user_id, typist, now)
        if typist.until_ms <= now:
            self._stop_typing(room_id, user_id)
            return
        if typist.timer_ms <= now:
            typist.timer_ms = typist.until_ms
            self._wheel.insert((room_id, user_id), typist.until_ms)
        if self._is_ours(user_id) and (
            typist.poked_ms is None or typist.poked_ms + FEDERATION_PING_INTERVAL_MS <= now
        ):
            self._tell_remotes(room_id, user_id, True, now)

    async def _sweep(self) -> None:
        """Look at everybody whose timers must have been lost; forget quiet rooms."""
        await spread(self._clock, self._unwatched())
        now = self._now()
        self._marks.append((now, self._board.newest))
        while self._marks and self._marks[0][0] + FORGET_AFTER_MS <= now:
            await spread(self._clock, self._forgetting(self._marks.popleft()[1]))

    def _forgetting(self, upto: Token) -> Iterator[None]:
        """Forget rooms that have been quiet since *upto*, some a step."""
        while self._board.forget_blank(upto):
            yield

    def _unwatched(self) -> Iterator[None]:
        """Check users whose timers were lost, a step for each room."""
        # A timer comes up to one bucket and one turn of the loop late, and is then done within
        # some turns of the reactor, so "overdue by that much" is lost and not merely late.
        late = round(2 * TIMER_INTERVAL_S * 1000)
        for room_id, users in list(self._typing.items()):
            now = self._now()
            for user_id, typist in list(users.items()):
                if min(typist.until_ms, typist.paranoia_ms) + late < now:
                    logger.warning("typing.timer.lost", room_id=room_id, user_id=user_id)
                    run_in_background(self._check_typist, room_id, user_id, now)
            yield


class TypingFollower(Follower[Sequence[str]]):
    """Who is typing, on a worker.

    Args:
        on_change: Called with (room, users) whenever the users of a room change.
    """

    def __init__(self, on_change: Callable[[str, Sequence[str]], object] | None = None) -> None:
        super().__init__()
        self._on_change = on_change

    def users_typing(self, room_id: str) -> Sequence[str]:
        """Return who types in a room."""
        return self._state_of(room_id)

    def typing(self) -> dict[str, Sequence[str]]:
        """Return the rooms in which somebody types, with their users."""
        return self.states()

    def _make_board(self) -> Board[Sequence[str]]:
        return make_board()

    def _read(self, row: TypingRow) -> tuple[str, Sequence[str]]:
        return row.room_id, row.user_ids

    def _blank(self, key: str) -> Sequence[str]:
        return ()

    def _merge(self, states: Sequence[Sequence[str]]) -> Sequence[str]:
        return list(dict.fromkeys(user_id for users in states for user_id in users))

    def _changed(self, key: str, before: Sequence[str]) -> None:
        if self._on_change is not None:
            users = self._state_of(key)
            if list(users) != list(before):
                self._on_change(key, users)


def make_board(lost: Token = -1) -> Board[Sequence[str]]:
    """Return a board of the users who type in each room."""
    return Board(STREAM, operator.not_, lost)


def _field(content: Mapping[str, Any], name: str) -> str:
    value = content.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 255:
        raise ValueError(f"{name}: {value!r:.64}; expected a text of 1 to 255 characters")
    return value
