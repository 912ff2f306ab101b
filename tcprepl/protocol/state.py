"""What is legal when: the states of a connection and the ways between them, as data.

protocol.md section 5 draws its diagrams from `TRANSITIONS`, the sessions obey it, and a
test walks every state, command and role. What is not in the table is illegal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final


class Role(Enum):
    """Which end of the TCP connection a process is."""

    SERVER = "server"
    CLIENT = "client"

    @property
    def peer(self) -> Role:
        """The other end."""
        return Role.CLIENT if self is Role.SERVER else Role.SERVER


class State(Enum):
    """Where a connection is in its life."""

    #: The socket is there; the server has not named itself.
    CONNECTED = "connected"
    #: SERVER was said; nothing was asked for.
    GREETED = "greeted"
    #: REPLICATE was said; rows flow.
    REPLICATING = "replicating"
    #: We asked for the end: what is left goes out, what comes in is ignored.
    CLOSING = "closing"
    #: Over.
    CLOSED = "closed"


class Way(Enum):
    """What moves a connection from one state to the next."""

    RECEIVED = "received"
    SENT = "sent"
    #: Nothing on the wire: ``close``, ``eof`` and ``abort``.
    INCIDENT = "incident"


_TO_SERVER: Final = (
    "NAME PING ERROR USER_SYNC CLEAR_USER_SYNC FEDERATION_ACK REMOVE_PUSHER INVALIDATE_CACHE "
    "USER_IP REMOTE_SERVER_UP LOCK_RELEASED NEW_ACTIVE_TASK CANCEL_TASK HELP STATUS KICK DRAIN "
    "PUBLISH PUBLISH_ROWS PUBLISH_BATCH PRODUCER AUTH"
)
_TO_CLIENT_ALWAYS: Final = (
    "PING ERROR INFO REMOTE_SERVER_UP SYNC PRODUCER PUBLISHED REFUSED AUTHORIZED"
)
_TO_CLIENT_LIVE: Final = (
    "PING ERROR INFO REMOTE_SERVER_UP SYNC PRODUCER PUBLISHED REFUSED AUTHORIZED RDATA POSITION "
    "LOCK_RELEASED NEW_ACTIVE_TASK CANCEL_TASK"
)

#: (role, from, way, words, to); words that stay in a state are listed together.
_ROWS: Final = (
    (Role.SERVER, State.CONNECTED, Way.SENT, "SERVER", State.GREETED),
    (Role.SERVER, State.CONNECTED, Way.SENT, "ERROR", State.CONNECTED),
    (Role.SERVER, State.GREETED, Way.SENT, _TO_CLIENT_ALWAYS, State.GREETED),
    (Role.SERVER, State.GREETED, Way.RECEIVED, _TO_SERVER, State.GREETED),
    (Role.SERVER, State.GREETED, Way.RECEIVED, "REPLICATE", State.REPLICATING),
    (Role.SERVER, State.REPLICATING, Way.SENT, _TO_CLIENT_LIVE, State.REPLICATING),
    (Role.SERVER, State.REPLICATING, Way.RECEIVED, _TO_SERVER, State.REPLICATING),
    (Role.SERVER, State.REPLICATING, Way.RECEIVED, "REPLICATE", State.REPLICATING),
    (Role.CLIENT, State.CONNECTED, Way.SENT, "NAME PING ERROR", State.CONNECTED),
    (Role.CLIENT, State.CONNECTED, Way.RECEIVED, "ERROR", State.CONNECTED),
    (Role.CLIENT, State.CONNECTED, Way.RECEIVED, "SERVER", State.GREETED),
    (Role.CLIENT, State.GREETED, Way.SENT, _TO_SERVER, State.GREETED),
    (Role.CLIENT, State.GREETED, Way.SENT, "REPLICATE", State.REPLICATING),
    # A Synapse server sends RDATA and POSITION to everybody, asked or not.
    (Role.CLIENT, State.GREETED, Way.RECEIVED, _TO_CLIENT_LIVE, State.GREETED),
    (Role.CLIENT, State.REPLICATING, Way.SENT, _TO_SERVER, State.REPLICATING),
    (Role.CLIENT, State.REPLICATING, Way.SENT, "REPLICATE", State.REPLICATING),
    (Role.CLIENT, State.REPLICATING, Way.RECEIVED, _TO_CLIENT_LIVE, State.REPLICATING),
)


def _transitions() -> Iterator[tuple[tuple[Role, State, Way, str], State]]:
    for role, state, way, words, to in _ROWS:
        for word in words.split():
            yield (role, state, way, word), to
    for role in Role:
        for state in (State.CONNECTED, State.GREETED, State.REPLICATING):
            yield (role, state, Way.INCIDENT, "close"), State.CLOSING
            yield (role, state, Way.INCIDENT, "eof"), State.CLOSED
        yield (role, State.CLOSING, Way.INCIDENT, "eof"), State.CLOSED
        yield (role, State.CLOSING, Way.INCIDENT, "abort"), State.CLOSED


#: (role, state, way, word of a command or incident) -> the next state.
TRANSITIONS: Final[Mapping[tuple[Role, State, Way, str], State]] = MappingProxyType(
    dict(_transitions())
)
