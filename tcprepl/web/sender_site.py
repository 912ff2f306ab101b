"""The site of a federation sender: for machines that watch it (protocol.md section 13.6).

It serves no log, so it has none of the faces of `tcprepl.web.site` but those that tell how it goes.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, Struct
from twisted.internet.interfaces import IReactorTime

from tcprepl import __version__
from tcprepl.federation.sending.commit_queue import OutboxUnavailable
from tcprepl.http.calls import Call, Response
from tcprepl.http.channel import LimitedSite
from tcprepl.http.routing import About, Route, Router
from tcprepl.http.security import Gate
from tcprepl.ids import InstanceName, ServerName
from tcprepl.protocol.display import displayable
from tcprepl.replication.status import LinkStatus
from tcprepl.web.answers import HealthNow
from tcprepl.web.health import watched
from tcprepl.web.openapi import Document


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderServices:
    """What the site asks of a sender.

    Attributes:
        reactor: Time.
        gate: Guards the paths.
        name: The name of the sender.
        server_name: Returns whose EDUs it sends; empty as long as nobody has said so.
        trouble: Returns why it sends nothing, or None.
        links: Returns the connection to the writer, once there is to be one.
        destinations: Returns what waits for each destination, and why; asked when there is no
            trouble. Raises `OutboxUnavailable` when it cannot be read.
    """

    reactor: IReactorTime
    gate: Gate
    name: InstanceName
    server_name: Callable[[], ServerName]
    trouble: Callable[[], str | None]
    links: Callable[[], Sequence[LinkStatus]]
    destinations: Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]


class SenderStatus(Struct, frozen=True):
    """How a federation sender goes."""

    server_name: str
    name: InstanceName
    version: str
    ready: bool
    reason: str | None
    links: Sequence[LinkStatus]
    destinations: Sequence[Mapping[str, Any]]


def build_sender_site(services: SenderServices) -> LimitedSite:
    """Return the site of a sender; ``listenTCP`` takes it."""
    face = _Face(services)
    description = Document()

    def routes() -> Iterator[Route]:
        about = About("This document", dict[str, Any])
        yield Route("GET", "/openapi.json", description.get_document, services.gate.open, about)
        yield from watched(services.gate, face.health)
        about = About("How the sender goes, and what waits for each server", SenderStatus)
        path = "/_tcprepl/v1/status"
        yield Route("GET", path, face.get_status, services.gate.looking, about)

    served = tuple(routes())
    description.describe(served)
    return LimitedSite(Router(served), services.reactor)


class _Face:
    """Answers for a sender."""

    def __init__(self, services: SenderServices) -> None:
        self._services = services

    def health(self) -> HealthNow:
        """Return whether it sends; a writer that is away degrades, for what waits still leaves."""
        reason = self._services.trouble()
        if reason is not None:
            return HealthNow(live=True, ready=False, reason=displayable(reason))
        troubles = (link.trouble() for link in self._services.links())
        away = [displayable(words) for words in troubles if words is not None]
        return HealthNow(live=True, ready=True, degraded=away or UNSET)

    async def get_status(self, call: Call) -> Response:
        """Answer how it goes."""
        services = self._services
        reason = services.trouble()
        found: Sequence[Mapping[str, Any]] = ()
        if reason is None:
            try:
                found = await services.destinations()
            except OutboxUnavailable as error:
                reason = str(error)
        status = SenderStatus(
            services.server_name(),
            services.name,
            __version__,
            reason is None,
            reason,
            services.links(),
            found,
        )
        # Names and reasons come from other servers; it is to be safe on a terminal.
        text = json.dumps(msgspec.to_builtins(status), ensure_ascii=False, separators=(",", ":"))
        return Response(200, displayable(text).encode())
