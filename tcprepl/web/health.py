"""``GET /health`` and ``GET /metrics``, for machines that watch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec import UNSET

from tcprepl import metrics
from tcprepl.errors import TcpreplError
from tcprepl.http.calls import Call, Response, json_response
from tcprepl.http.routing import About, Route
from tcprepl.http.security import Gate
from tcprepl.protocol.display import displayable
from tcprepl.web.answers import HealthNow
from tcprepl.web.ingest import Ingest
from tcprepl.web.services import WebServices


class Health:
    """Says whether this process lives and can serve.

    Args:
        services: The ports; uses *log*, *ready* and *replication_server*.
        ingest: Knows whether the log can be written.
    """

    def __init__(self, services: WebServices, ingest: Ingest) -> None:
        self._services = services
        self._ingest = ingest

    def now(self) -> HealthNow:
        """Return whether positions are known and the log can be written.

        Damage on the disk does not end service: readers are told what they miss. Neither does an
        upstream, or a Redis, that is away: what is held is served, and the rest follows.
        """
        reason = self.reason()
        if reason is None:
            degraded = [*self._away(), *self._services.log.gaps.damage()] or UNSET
            return HealthNow(live=True, ready=True, degraded=degraded)
        return HealthNow(live=True, ready=False, reason=reason)

    def _away(self) -> Iterator[str]:
        server = self._services.replication_server
        for link in () if server is None else server.link_states():
            if (trouble := link.trouble()) is not None:
                yield displayable(trouble)

    def reason(self) -> str | None:
        """Return why this process cannot serve, or None."""
        ready = self._services.ready
        try:
            reason = ready() if ready is not None else None
            if reason is None:
                for stream, instance in self._services.log.pairs():
                    self._services.log.position(stream, instance)
        except TcpreplError as error:
            return str(error)
        return reason or self._ingest.trouble


def watched(gate: Gate, health: Callable[[], HealthNow]) -> Iterator[Route]:
    """Return the paths for who watches a process.

    Args:
        gate: Guards them.
        health: Returns how the process is now.
    """

    def get_health(call: Call) -> Response:
        now = health()
        return json_response(now, status=200 if now.ready else 503)

    def get_metrics(call: Call) -> Response:
        return Response(200, metrics.render(), metrics.CONTENT_TYPE)

    about = About("Whether the process lives and can serve", HealthNow, refuses={503: HealthNow})
    yield Route("GET", "/health", get_health, gate.open, about)
    numbers = About("Every metric, in the Prometheus text format", media={"text/plain": str})
    yield Route("GET", "/metrics", get_metrics, gate.looking, numbers)
