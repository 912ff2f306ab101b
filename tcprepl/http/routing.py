"""Requests in, responses out: a router for plain functions.

A handler takes a `Call` and returns a `Response`, or is an ``async def`` that does. What it
refuses it raises as `ApiError`, which becomes ``{"errcode", "error"}`` with the right status.
When the client goes away the handler is cancelled. A store that cannot be written is answered
with 503; anything else that a handler raises is logged where it happened and answered with 500.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

from msgspec import Struct
from prometheus_client import Counter
from twisted.internet.defer import CancelledError, Deferred

from tcprepl.background import run_in_background, started
from tcprepl.errors import LogError
from tcprepl.http.calls import ApiError, Call, Response, busy, excerpt
from tcprepl.http.request import Request
from tcprepl.logger import get_logger
from tcprepl.metrics import REGISTRY

logger = get_logger(__name__)

REQUESTS = Counter(
    "tcprepl_http_requests",
    "HTTP requests answered, by route, method and status",
    ["route", "method", "status"],
    registry=REGISTRY,
)

#: Methods and paths whose routes are remembered, and how long such a path may be.
_KNOWN_PATHS: Final = 1_000
_KNOWN_PATH_BYTES: Final = 200

Handler: TypeAlias = Callable[[Call], Response | Awaitable[Response]]
#: Raises `ApiError` when the call is not allowed.
Guard: TypeAlias = Callable[[Call], None]


@dataclass(frozen=True, slots=True)
class About:
    """What is told of a route; the types are those that its handler reads and writes.

    Attributes:
        summary: What it is for, in a few words.
        answer: The type of the JSON that it answers with 200; None for an empty object.
        query: The type of its query parameters.
        body: The type of the JSON body; None when there is none.
        says: What an answer with 200 means.
        description: More than the summary.
        refuses: Statuses of refusals beside those that follow from guard, query and body; each
            with the type of its JSON, or None for the usual one.
        media: The type of what is answered, by media type, where that is not JSON alone.
        needs_body: Whether a request without body is refused.
    """

    summary: str
    answer: Any = None
    query: type[Struct] | None = None
    body: Any = None
    says: str = "Done."
    description: str = ""
    refuses: Mapping[int, Any] = field(default_factory=dict)
    media: Mapping[str, Any] = field(default_factory=dict)
    needs_body: bool = True


@dataclass(frozen=True, slots=True)
class Route:
    """One method on one path.

    Attributes:
        method: The method; a GET route answers HEAD as well.
        template: The path; a segment in braces is an argument.
        handler: What answers.
        guard: What is asked first.
        about: What is told of it.
        cors: Whether scripts of other origins may use it (the Matrix client paths).
        while_shut: Whether it is served while nothing is written any more, though it is no GET.
    """

    method: str
    template: str
    handler: Handler
    guard: Guard
    about: About
    cors: bool = False
    while_shut: bool = False

    @property
    def segments(self) -> tuple[str, ...]:
        """The path as segments."""
        return tuple(self.template[1:].split("/"))

    @property
    def arguments(self) -> list[str]:
        """The names of the path's arguments."""
        return [part[1:-1] for part in self.segments if part.startswith("{")]


_ALWAYS = {
    "Server": "tcprepl",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}
_CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, PUT, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
}


class Router:
    """Finds the route of a request, and answers with what its handler does."""

    def __init__(
        self,
        routes: Sequence[Route],
        headers: Mapping[str, str] | None = None,
        shut: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Route requests.

        Args:
            routes: What there is.
            headers: What every answer says besides.
            shut: Returns why nothing is written any more, or None.
        """
        self.routes = tuple(routes)
        self._headers = dict(headers or {})
        self._shut = shut
        self._always = header_lines({**_ALWAYS, **self._headers})
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._known_paths: dict[tuple[bytes, bytes], tuple[Route, Mapping[str, str]]] = {}
        self._by_length: dict[int, list[tuple[tuple[str, ...], Route]]] = {}
        for route in self.routes:
            segments = route.segments
            self._by_length.setdefault(len(segments), []).append((segments, route))

    def serve(self, request: Request) -> None:
        """Answer *request*, now or later."""
        run_in_background(self._begin, request)

    def _begin(self, request: Request) -> Deferred[None] | None:
        """Answer *request*; when that takes its time, whoever goes away ends it."""
        work = started(self._serve(request))
        if work is not None:
            _ = request.finished().addErrback(lambda _: work.cancel())
        return work

    def _found(self, request: Request) -> tuple[Route, Mapping[str, str]]:
        """Return what `find` does; whoever publishes asks for the same path again and again."""
        asked = request.method, request.path
        found = self._known_paths.get(asked)
        if found is None:
            found = self.find(request.method.decode("ascii", "replace"), _segments(request))
            if len(request.path) <= _KNOWN_PATH_BYTES:
                if len(self._known_paths) >= _KNOWN_PATHS:
                    self._known_paths.clear()
                self._known_paths[asked] = found
        return found

    def find(self, method: str, segments: Sequence[str]) -> tuple[Route, Mapping[str, str]]:
        """Return the route for *method* and the path, and its arguments.

        Raises:
            ApiError: 404 when no route has this path, 405 when none has the method.
        """
        allowed: dict[str, None] = {}
        cors = False
        for template, route in self._by_length.get(len(segments), ()):
            arguments = _match(template, segments)
            if arguments is None:
                continue
            if route.method == method or (method == "HEAD" and route.method == "GET"):
                return route, arguments
            allowed[route.method] = None
            cors = cors or route.cors
        path = "/" + "/".join(segments)
        if not allowed:
            raise ApiError(404, "M_UNRECOGNIZED", f"no such path: {excerpt(path)}")
        if "GET" in allowed:
            allowed["HEAD"] = None
        if method == "OPTIONS" and cors:
            raise _Preflight
        raise ApiError(
            405,
            "M_UNRECOGNIZED",
            f"{excerpt(path)} takes {', '.join(allowed)}, not {excerpt(method)}",
            headers={"Allow": ", ".join(allowed)},
        )

    def _counted(self, route: str, method: str, status: int) -> Counter:
        key = (route, method, status)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = REQUESTS.labels(route, method, str(status))
        return counter

    async def _serve(self, request: Request) -> None:
        template = ""
        try:
            route, arguments = self._found(request)
            template = route.template
            call = Call(request, arguments)
            route.guard(call)
            if route.method != "GET" and not route.while_shut:
                why = self._shut()
                if why is not None:
                    raise busy(503, why)
            answer = route.handler(call)
            response = answer if isinstance(answer, Response) else await answer
            if route.cors:
                response.headers = {**response.headers, **_CORS_HEADERS}
        except _Preflight:
            response = Response(204, headers=_CORS_HEADERS)
        except ApiError as error:
            response = error.response()
            if template.startswith("/_matrix/client"):
                response.headers = {**response.headers, **_CORS_HEADERS}
        except LogError as error:
            logger.warning("http.request.unavailable", route=template, reason=str(error))
            response = busy(503, str(error)).response()
        except CancelledError:
            if not request.gone:
                raise
            return
        except Exception:
            logger.exception("http.request.failed", route=template)
            response = ApiError(
                500, "M_UNKNOWN", "the server failed on this request; its log says why"
            ).response()
        if request.gone:
            return
        self._counted(template or "none", _known(request.method), response.status).inc()
        self._write(request, response)

    def _write(self, request: Request, response: Response) -> None:
        """Send *response* as the answer to *request*, and finish it unless it streams."""
        lines = self._always
        if response.headers:
            lines = header_lines({**_ALWAYS, **self._headers, **response.headers})
        if response.status == 204:
            request.answer(204, lines, None)
            return
        lines += b"Content-Type: %b\r\n" % response.content_type.encode()
        if response.stream is None or request.method == b"HEAD":
            request.answer(response.status, lines, response.body)
        else:
            response.stream(request, partial(request.begin, response.status, lines))


class _Preflight(Exception):
    """A CORS preflight for a path that allows it."""


def _known(method: bytes) -> str:
    known = method in (b"GET", b"HEAD", b"POST", b"PUT", b"OPTIONS", b"DELETE")
    return method.decode("ascii") if known else "other"


def _segments(request: Request) -> list[str]:
    try:
        return [
            unquote(part, errors="strict") if "%" in part else part
            for part in request.path[1:].decode("utf-8").split("/")
        ]
    except UnicodeDecodeError:
        raise ApiError(400, "M_INVALID_PARAM", "the path is not percent-encoded UTF-8") from None


def _match(template: Sequence[str], segments: Sequence[str]) -> dict[str, str] | None:
    arguments: dict[str, str] = {}
    for expected, given in zip(template, segments, strict=True):
        if expected.startswith("{"):
            if not given:
                return None
            arguments[expected[1:-1]] = given
        elif expected != given:
            return None
    return arguments


def header_lines(headers: Mapping[str, str]) -> bytes:
    """Return *headers* as lines; no value makes more than one."""
    return "".join(
        f"{name}: {' '.join(value.splitlines())}\r\n" for name, value in headers.items()
    ).encode("utf-8")
