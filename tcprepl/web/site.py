"""The site: every face on its path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tcprepl.http.channel import LimitedSite
from tcprepl.http.routing import About, Route, Router
from tcprepl.http.security import Gate
from tcprepl.web.acknowledgements import Acknowledgements
from tcprepl.web.catchup import CatchUp
from tcprepl.web.client_api import ClientApi
from tcprepl.web.health import Health, watched
from tcprepl.web.incarnations import INCARNATION_HEADER
from tcprepl.web.ingest import Ingest
from tcprepl.web.longpoll import LongPoll
from tcprepl.web.openapi import Document
from tcprepl.web.operating import Operating
from tcprepl.web.pages import Pages
from tcprepl.web.services import WebServices
from tcprepl.web.status import Board


def build_site(services: WebServices) -> LimitedSite:
    """Return the site that serves *services*; ``listenTCP`` takes it."""
    gate = Gate(
        services.secrets,
        services.hosts,
        client_tokens=services.client_tokens,
        grants=services.grants,
        guesses=services.guesses,
        now=services.reactor.seconds,
    )
    ingest = Ingest(services)
    health = Health(services, ingest)
    polls = LongPoll(services)
    catch_up = CatchUp(services)
    acknowledgements = Acknowledgements(services)
    clients = ClientApi(services, ingest)
    board = Board(services, health.reason)
    description = Document()

    def routes() -> Iterator[Route]:
        about = About("This document", dict[str, Any])
        yield Route("GET", "/openapi.json", description.get_document, gate.open, about)
        yield from watched(gate, health.now)
        yield from board.routes(gate)
        yield from Pages(services, board).routes(gate)
        yield from polls.routes(gate)
        yield from catch_up.routes(gate)
        yield from ingest.routes(gate)
        yield from clients.routes(gate.client)
        yield from acknowledgements.routes(gate)
        yield from Operating(services).routes(gate)
        yield from services.further(gate)

    served = tuple(routes())
    description.describe(served, services.registry.names(), services.server_name)
    bounds = services.limits
    site = LimitedSite(
        Router(served, {INCARNATION_HEADER: services.log.history.current}, services.shut),
        services.reactor,
        max_body_bytes=bounds.max_body_bytes,
        max_bodies_bytes=bounds.max_bodies_bytes,
        max_connections=bounds.max_connections,
        request_timeout_s=bounds.request_timeout_s,
    )

    def take_up_changes() -> None:
        gate.admit(
            services.secrets,
            services.hosts,
            client_tokens=services.client_tokens,
            grants=services.grants,
        )
        clients.admit()
        services.notifier.notify_all()
        board.dismiss()
        site.max_body_bytes = services.limits.max_body_bytes

    site.on_change(take_up_changes)
    site.on_start(board.start)
    site.on_drain(polls.drain)
    site.on_drain(board.stop)
    site.on_drain(ingest.close)
    return site
