"""What the server does now, and did in the last two minutes: for people and for programs.

The `Board` takes a sample every second while the site listens. ``GET /_tcprepl/v1/status`` is
its newest state as JSON, ``GET /`` the same as a page (`tcprepl.web.page`), and
``GET /_tcprepl/v1/events`` goes on sending the parts of the page as server-sent events: the
page has one renderer, and a sample is rendered once for all who watch.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import msgspec
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from tcprepl import __version__, limits
from tcprepl.background import LoopingProcess, looping_background_process
from tcprepl.http.calls import ApiError, Begin, Call, Response
from tcprepl.http.request import Request
from tcprepl.http.routing import About, Route
from tcprepl.http.security import Gate
from tcprepl.ids import InstanceName, Pair, StreamName
from tcprepl.protocol.display import displayable, few
from tcprepl.replication.status import ServerStatus, StreamStatus
from tcprepl.streams.gaps import Gap
from tcprepl.streams.log import Block
from tcprepl.web import page
from tcprepl.web.answers import Status
from tcprepl.web.plots import SPARK_POINTS
from tcprepl.web.services import WebServices
from tcprepl.web.trends import Trends

#: Time between samples.
SAMPLE_INTERVAL_S = 1.0


class Series:
    """The newest values of something that is sampled, as many as a sparkline shows."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: deque[float] = deque(maxlen=SPARK_POINTS)

    @property
    def last(self) -> float:
        """The newest value; 0 before the first sample."""
        return self.values[-1] if self.values else 0.0


class Board:
    """Samples the server and keeps two minutes of it.

    Args:
        services: The ports; uses *log*, *replication_server*, *destinations*, *reactor*.
        why_not_ready: Returns why the process cannot serve, or None.
    """

    def __init__(self, services: WebServices, why_not_ready: Callable[[], str | None]) -> None:
        self._services = services
        self._why_not_ready = why_not_ready
        self._reactor = services.reactor
        self._started = self._reactor.seconds()
        self._rows: dict[tuple[StreamName, InstanceName], int] = {}
        self._bytes: dict[tuple[StreamName, InstanceName], int] = {}
        self._sampled: dict[tuple[StreamName, InstanceName], int] = {}
        self._sampled_at = self._started
        self.row_rates: dict[tuple[StreamName, InstanceName], Series] = {}
        self.trends = Trends()
        self.lags: dict[int, Series] = {}
        self._stopped = False
        self._viewers: dict[Viewer, None] = {}
        self._loop: LoopingProcess | None = None
        services.log.add_listener(self._count)

    def routes(self, gate: Gate) -> Iterator[Route]:
        """Return the paths."""
        shown = About("The status page, for people", media={"text/html; charset=utf-8": str})
        yield Route("GET", "/", self.get_page, gate.looking, shown)
        state = About("Streams, peers, destinations and links", Status, says="The state now.")
        yield Route("GET", "/_tcprepl/v1/status", self.get_status, gate.looking, state)
        events = About(
            "The parts of the status page, every second, as server-sent events",
            media={"text/event-stream": str},
            says="Goes on until the client leaves.",
            refuses={503: None},
        )
        yield Route("GET", "/_tcprepl/v1/events", self.get_events, gate.looking, events)

    def start(self) -> None:
        """Take samples from now on."""
        self._sampled_at = self._reactor.seconds()
        self._loop = looping_background_process(
            self._reactor, "web_status", SAMPLE_INTERVAL_S, self.sample
        )

    def stop(self) -> None:
        """Take no more samples, and say goodbye to who watches and who would."""
        self._stopped = True
        if self._loop is not None:
            _ = self._loop.stop()
            self._loop = None
        self.dismiss()

    def dismiss(self) -> None:
        """Say goodbye to who watches: a browser comes back by itself, if it may."""
        for viewer in tuple(self._viewers):
            viewer.end()

    def _count(self, block: Block) -> None:
        pair = (block.stream, block.instance)
        self._rows[pair] = self._rows.get(pair, 0) + len(block.tokens)
        self._bytes[pair] = self._bytes.get(pair, 0) + len(block.lines)

    def sample(self) -> None:
        """Take a sample and show it to who watches."""
        now = self._reactor.seconds()
        elapsed = max(now - self._sampled_at, 0.001)
        self._sampled_at = now
        total = 0.0
        for pair, rows in self._rows.items():
            rate = (rows - self._sampled.get(pair, 0)) / elapsed
            self._sampled[pair] = rows
            self.row_rates.setdefault(pair, Series()).values.append(rate)
            total += rate
        self.trends.add(total, self._sample_lags())
        if self._viewers:
            event = b"data: %b\n\n" % msgspec.json.encode(self.parts(self.server_status()))
            for viewer in tuple(self._viewers):
                viewer.send(event)

    def _sample_lags(self) -> float:
        """Go on with the history of those who are, or were, behind; the others have none.

        Returns:
            The largest lag, in seconds.
        """
        server = self._services.replication_server
        behind = server.lags(self.lags) if server is not None else {}
        before = len(self.trends.all[0].rates)
        for conn_id, seconds in behind.items():
            series = self.lags.get(conn_id)
            if series is None:
                series = self.lags[conn_id] = Series()
                series.values.extend([0.0] * before)
            series.values.append(seconds)
        for conn_id, series in list(self.lags.items()):
            if conn_id not in behind or not any(series.values):
                del self.lags[conn_id]
        return max(behind.values(), default=0.0)

    def server_status(self) -> ServerStatus:
        """Return who is connected and what is held."""
        services = self._services
        if services.replication_server is not None:
            return services.replication_server.status()
        streams = [
            StreamStatus(
                stream,
                instance,
                services.log.position(stream, instance),
                services.log.floor(stream, instance),
                self._rows.get((stream, instance), 0),
                self._bytes.get((stream, instance), 0),
            )
            for stream, instance in services.log.pairs()
        ]
        return ServerStatus(
            services.server_name,
            services.instance,
            self._reactor.seconds() - self._started,
            streams,
            damage=services.log.gaps.damage(),
            database=services.log.database,
        )

    def destinations(self) -> Sequence[Mapping[str, Any]]:
        """Return what the federation sender says of each destination."""
        found = self._services.destinations
        return list(found()) if found is not None else []

    def snapshot(self) -> dict[str, Any]:
        """Return everything as plain values."""
        status = self.server_status()
        reason = self._why_not_ready()
        streams = [
            {
                **asdict(stream),
                "rows_per_second": self._rate(stream.stream, stream.instance),
            }
            for stream in status.streams
        ]
        return {
            **status.as_dict(),
            "version": __version__,
            "ready": reason is None,
            "reason": reason,
            "rows_per_second": rates[-1] if (rates := self.trends.all[0].rates) else 0.0,
            "streams": streams,
            "destinations": self.destinations(),
        }

    def _rate(self, stream: StreamName, instance: InstanceName) -> float:
        series = self.row_rates.get((stream, instance))
        return series.last if series is not None else 0.0

    def drawn_lags(self) -> dict[int, list[float]]:
        """Return the lags of those who are, or were, behind, as the tables of peers draw them."""
        return {peer: list(series.values) for peer, series in self.lags.items()}

    def parts(self, status: ServerStatus) -> dict[str, str]:
        """Return the changing parts of the page, by the id of their element."""
        return page.parts(
            page.View(
                status=status,
                reason=self._why_not_ready(),
                destinations=self.destinations(),
                rates={pair: list(series.values) for pair, series in self.row_rates.items()},
                trends=self.trends.all,
                log=self._of_log(),
                lags=self.drawn_lags(),
                now_ms=self._services.now_ms(),
            )
        )

    def _of_log(self) -> dict[str, str]:
        """Return what an operator wants to know of the log."""
        services = self._services
        history = services.log.history
        gaps = few(list(services.log.gaps)[::-1], say=_gap, most=10)
        said = {
            "Incarnation": f"{history.current}, {len(history.incarnations)} remembered",
            "Gaps": "; ".join(gaps) or "none",
        }
        if services.room is not None:
            said |= services.room()
        database = services.log.database
        if database is not None:
            first, *holders = database.lines()
            said["Database"] = first.removeprefix("database ")
            said["Instances"] = "; ".join(words.removeprefix("instance ") for words in holders)
        return said

    def get_status(self, call: Call) -> Response:
        """Answer the state as JSON."""
        # The same JSON, and safe to show on a terminal: names and reasons come from peers.
        text = json.dumps(self.snapshot(), ensure_ascii=False, separators=(",", ":"))
        return Response(200, displayable(text).encode())

    def get_page(self, call: Call) -> Response:
        """Answer the page, complete without scripts."""
        status = self.server_status()
        return Response(
            200,
            page.document(status.server_name, self.parts(status)),
            "text/html; charset=utf-8",
            page.HEADERS,
        )

    def get_events(self, call: Call) -> Response:
        """Answer with the parts of the page, again and again."""
        if self._stopped:
            raise ApiError(
                503, "M_LIMIT_EXCEEDED", "the server is ending", headers={"Retry-After": "10"}
            )
        if len(self._viewers) >= limits.MAX_STATUS_VIEWERS:
            raise ApiError(
                503,
                "M_LIMIT_EXCEEDED",
                f"{limits.MAX_STATUS_VIEWERS} people watch already",
                headers={"Retry-After": "10"},
            )
        # A proxy that gathers what is small before it passes it on would show an old picture.
        headers = {"X-Accel-Buffering": "no"}
        return Response(200, content_type="text/event-stream", headers=headers, stream=self._watch)

    def _watch(self, request: Request, begin: Begin) -> None:
        viewer = Viewer(request)
        begin(viewer)
        self._viewers[viewer] = None
        _ = request.finished().addBoth(lambda _: self._viewers.pop(viewer, None))
        viewer.send(
            b"retry: 1000\ndata: %b\n\n" % msgspec.json.encode(self.parts(self.server_status()))
        )


def _gap(found: tuple[Pair, Gap]) -> str:
    (stream, instance), gap = found
    return f"{stream} of {instance}: {gap.words()}"


@implementer(IPushProducer)
class Viewer:
    """Somebody who watches the page; one whose connection is slow misses samples."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._paused = False

    def send(self, event: bytes) -> None:
        """Send *event*, unless the last ones are still on their way."""
        if not self._paused:
            self._request.write(event)

    def end(self) -> None:
        """Finish the response; the page comes back by itself."""
        self._request.finish()

    def pauseProducing(self) -> None:
        """Send nothing for now."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Send again."""
        self._paused = False

    def stopProducing(self) -> None:
        """Send nothing any more; the connection is gone."""
        self._paused = True
