"""What this room needs from others, as small ports that `tcprepl.app.server` fills in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from tcprepl.ids import ServerName, StreamName
from tcprepl.streams.log import Appended
from tcprepl.streams.rows import PresenceRow

#: Whole milliseconds since 1970.
Milliseconds: TypeAlias = int


class Publish(Protocol):
    """Append rows to a stream (`tcprepl.streams.publisher.Publisher.publish`)."""

    def __call__(
        self, stream: StreamName, rows: Sequence[object], *, batch: bool = False
    ) -> Deferred[Appended]:
        """Return a Deferred of the tokens that the rows got."""
        ...


class SendEdu(Protocol):
    """Queue an EDU for other servers; a later one with the same key replaces it."""

    def __call__(
        self,
        destinations: Collection[ServerName],
        edu_type: str,
        content: Mapping[str, Any],
        key: Sequence[str],
    ) -> object:
        """Take the EDU; may return a Deferred that fires when it is safe."""
        ...


class SendPresence(Protocol):
    """Queue a user's presence for other servers; a later one of the user replaces it."""

    def __call__(self, row: PresenceRow, destinations: Collection[ServerName], /) -> object:
        """Take the state; may return a Deferred that fires when it is safe."""
        ...


class HostsInRoom(Protocol):
    """Which servers have users in a room, ours included if it has."""

    def __call__(self, room_id: str, /) -> Collection[ServerName]:
        """Return the servers; none for a room that is not known."""
        ...


class HostsOfUser(Protocol):
    """Which other servers are to hear of a user: those that share a room with it."""

    def __call__(self, user_id: str, /) -> Collection[ServerName]:
        """Return the servers."""
        ...


def no_hosts(_: str) -> Collection[ServerName]:
    """Return no servers: what a process without rooms or federation uses as a port."""
    return ()


def milliseconds(clock: IReactorTime) -> Milliseconds:
    """Return what *clock* shows, in whole milliseconds."""
    return round(clock.seconds() * 1000)


def server_of(user_id: str) -> ServerName:
    """Return the server part of ``@localpart:server``; empty for what is no user ID."""
    if not user_id.startswith("@"):
        return ""
    return user_id.partition(":")[2]
