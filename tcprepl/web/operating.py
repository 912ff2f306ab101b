"""What an operator does to connections over HTTP: kick, and drain (protocol.md section 13.7)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from msgspec import Meta, Struct

from tcprepl import limits
from tcprepl.http.calls import ApiError, Call, Response, json_response
from tcprepl.http.routing import About, Route
from tcprepl.http.security import Gate
from tcprepl.replication.serving.draining import NOT_DRAINED, DrainState, kick, nobody_called
from tcprepl.web.services import WebServices

#: How long a question how far a drain is waits for its end.
WAIT_S = 1.0
#: What peers are told at most.
_Words = Annotated[str, Meta(max_length=limits.MAX_WHY_CHARS)]


class KickAsked(Struct, forbid_unknown_fields=True):
    """Whose connections are to be ended, and why."""

    peer: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=limits.MAX_NAME_CHARS,
            description="The number of a connection, or the name or address of one or more.",
        ),
    ]
    why: Annotated[_Words, Meta(description="What the peer is told.")] = ""


class Kicked(Struct, frozen=True):
    """A connection that was ended."""

    conn_id: int
    name: str
    address: str


class KickAnswer(Struct, frozen=True):
    """The connections that were ended."""

    kicked: Sequence[Kicked]


class DrainAsked(Struct, forbid_unknown_fields=True):
    """How long peers have, and where they are to go."""

    within_seconds: Annotated[float, Meta(ge=0, le=limits.MAX_DRAIN_WITHIN_S)] = (
        limits.DRAIN_WITHIN_S
    )
    to: Annotated[_Words, Meta(description="Where peers are told to go.")] = ""


class Operating:
    """Ends connections for an operator: one of them, or one after the other all.

    Args:
        services: The ports; uses *replication_server*.
    """

    def __init__(self, services: WebServices) -> None:
        self._services = services

    def routes(self, gate: Gate) -> Iterator[Route]:
        """Return the paths."""
        about = About(
            "End the connections of a peer, and tell it why",
            KickAnswer,
            body=KickAsked,
            says="They are being closed.",
            refuses={404: None},
        )
        path = "/_tcprepl/v1/kick"
        yield Route("POST", path, self.post_kick, gate.operating, about, while_shut=True)
        about = About(
            "Take nothing new, let everybody go who has everything, and end",
            DrainState,
            body=DrainAsked,
            says="How far it is: an answer comes when it is over, or after a second. Asking again "
            "changes nothing.",
            refuses={404: None},
        )
        path = "/_tcprepl/v1/drain"
        yield Route("POST", path, self.post_drain, gate.operating, about, while_shut=True)

    def post_kick(self, call: Call) -> Response:
        """End connections."""
        asked = call.json(KickAsked)
        server = self._services.replication_server
        if server is None:
            raise ApiError(404, "M_NOT_FOUND", "this process has no peers")
        kicked = kick(server, asked.peer, asked.why)
        if not kicked:
            raise ApiError(404, "M_NOT_FOUND", nobody_called(server, asked.peer))
        return json_response(KickAnswer([Kicked(p.conn_id, p.name, p.address) for p in kicked]))

    async def post_drain(self, call: Call) -> Response:
        """Begin to drain, if that has not been done, and say how far it is."""
        asked = call.json(DrainAsked)
        server = self._services.replication_server
        begin = None if server is None else server.drain
        if begin is None:
            raise ApiError(404, "M_NOT_FOUND", NOT_DRAINED)
        return json_response(await begin(asked.within_seconds, asked.to).wait(WAIT_S))
