"""Requests in, responses out: a router for plain functions, on twisted.web.

A handler takes a `Call` and returns a `Response`, or is an ``async def`` that does. What it
refuses it raises as `ApiError`, which becomes ``{"errcode", "error"}`` with the right status.
When the client goes away the handler is cancelled. Anything else that a handler raises is
logged where it happened and answered with 500.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TypeAlias, TypeVar, cast
from urllib.parse import parse_qsl

import msgspec
import structlog
from prometheus_client import Counter
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request

from tcprepl.background import run_in_background
from tcprepl.metrics import REGISTRY

logger = structlog.get_logger()

REQUESTS = Counter(
    "tcprepl_http_requests",
    "HTTP requests answered, by route, method and status",
    ["route", "method", "status"],
    registry=REGISTRY,
)

JSON = "application/json"

T = TypeVar("T")


class ApiError(Exception):
    """An answer that refuses: a status, a code for programs and a sentence for people.

    Attributes:
        status: The HTTP status.
        errcode: Which kind of refusal; a Matrix ``M_...`` code, or one of ours.
        message: What is wrong, where, and what was expected.
        headers: Further response headers.
        extra: Further members of the JSON object.
    """

    def __init__(
        self,
        status: int,
        errcode: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.errcode = errcode
        self.message = message
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    def response(self) -> Response:
        """Return what goes to the client."""
        return json_response(
            {"errcode": self.errcode, "error": self.message, **self.extra},
            status=self.status,
            headers=self.headers,
        )


def missing(name: str, expectation: str) -> ApiError:
    """Return the refusal of a request that lacks the parameter *name*."""
    return ApiError(
        400, "M_MISSING_PARAM", f"parameter {name!r} is missing: expected {expectation}"
    )


def invalid(name: str, value: object, expectation: str) -> ApiError:
    """Return the refusal of *value* for *name*."""
    return ApiError(
        400,
        "M_INVALID_PARAM",
        f"{name} is {excerpt(value)}: expected {expectation}",
    )


def excerpt(value: object, length: int = 80) -> str:
    """Return *value* quoted for a message, shortened, without line ends."""
    text = ascii(value)
    return text if len(text) <= length else text[: length - 3] + "..."


@dataclass(slots=True)
class Response:
    """What a handler answers.

    Attributes:
        status: The HTTP status.
        body: The whole body.
        content_type: Its media type.
        headers: Further headers.
        stream: For an answer that goes on: called with the request once the headers are
            set; it writes and finishes. *body* is ignored then.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: Callable[[Request], None] | None = None


def json_response(
    value: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return *value* as a JSON response."""
    return Response(status, msgspec.json.encode(value), JSON, headers or {})


class Call:
    """One request, as handlers see it.

    Attributes:
        request: The request of twisted.web.
        path_args: The arguments of its path.
        caller: Whose transaction ids its own are among; the guard that let it in says so.
    """

    __slots__ = ("_query", "caller", "path_args", "request")

    def __init__(self, request: Request, path_args: Mapping[str, str]) -> None:
        self.request = request
        self.path_args = path_args
        self.caller = ""
        self._query: list[tuple[str, str]] | None = None

    @property
    def method(self) -> str:
        """The method, upper case."""
        return self.request.method.decode("ascii", "replace")

    @property
    def body(self) -> bytes:
        """The whole request body."""
        content: IO[bytes] = cast("IO[bytes]", self.request.content)
        content.seek(0)
        return content.read()

    @property
    def query(self) -> Sequence[tuple[str, str]]:
        """The query's (name, value) pairs, decoded, in order."""
        if self._query is None:
            raw = self.request.uri.partition(b"?")[2]
            try:
                self._query = parse_qsl(
                    raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=200
                )
            except ValueError as error:
                raise ApiError(
                    400, "M_INVALID_PARAM", f"the query is not percent-encoded UTF-8: {error}"
                ) from None
        return self._query

    def param(self, name: str) -> str | None:
        """Return the query parameter *name*; None when absent; refuse it when given twice."""
        found = [value for key, value in self.query if key == name]
        if len(found) > 1:
            raise invalid(name, found, "it once")
        return found[0] if found else None

    def integer(
        self, name: str, default: int | None = None, *, low: int = 0, high: int = 2**63 - 1
    ) -> int:
        """Return the query parameter *name* as an integer within [low, high].

        Args:
            name: Name of the parameter.
            default: What to return when it is absent; None makes it mandatory.
            low: Least value allowed.
            high: Greatest value allowed.
        """
        text = self.param(name)
        expectation = f"an integer from {low} to {high}"
        if text is None:
            if default is None:
                raise missing(name, expectation)
            return default
        if not re.fullmatch(r"-?[0-9]{1,20}", text) or not low <= int(text) <= high:
            raise invalid(name, text, expectation)
        return int(text)

    def flag(self, name: str) -> bool:
        """Return the query parameter *name* as a boolean (``1``/``true``, ``0``/``false``)."""
        text = self.param(name)
        if text in (None, "0", "false"):
            return False
        if text in ("1", "true"):
            return True
        raise invalid(name, text, "1 or 0")

    def header(self, name: str) -> str | None:
        """Return the header *name*; None when absent; refuse it when given twice."""
        values = self.request.requestHeaders.getRawHeaders(name)
        if not values:
            return None
        if len(values) > 1:
            raise ApiError(400, "M_INVALID_PARAM", f"header {name} is given twice: expected once")
        return values[0]

    def json(self, type_: type[T]) -> T:
        """Return the body decoded as *type_*; refuse it with the place that is wrong."""
        body = self.body
        try:
            body.decode("utf-8")
            return msgspec.json.decode(body, type=type_)
        except UnicodeDecodeError as error:
            raise ApiError(
                400, "M_NOT_JSON", f"the body is not UTF-8 at byte {error.start}"
            ) from None
        except msgspec.ValidationError as error:
            raise ApiError(400, "M_BAD_JSON", f"the body does not fit: {error}") from None
        except (msgspec.DecodeError, RecursionError) as error:
            raise ApiError(400, "M_NOT_JSON", f"the body is not JSON: {error}") from None


Handler: TypeAlias = Callable[[Call], Response | Awaitable[Response]]
#: Raises `ApiError` when the call is not allowed.
Guard: TypeAlias = Callable[[Call], None]


@dataclass(frozen=True, slots=True)
class Route:
    """One method on one path.

    Attributes:
        method: The method; a GET route answers HEAD as well.
        template: The path; a segment in braces is an argument.
        handler: What answers.
        guard: What is asked first.
        cors: Whether scripts of other origins may use it (the Matrix client paths).
    """

    method: str
    template: str
    handler: Handler
    guard: Guard
    cors: bool = False

    @property
    def segments(self) -> tuple[str, ...]:
        """The path as segments."""
        return tuple(self.template[1:].split("/"))


_CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, PUT, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
}


class Router(Resource):
    """The leaf under which every route lives."""

    isLeaf = True

    def __init__(self, routes: Sequence[Route]) -> None:
        super().__init__()
        self.routes = tuple(routes)
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._by_length: dict[int, list[Route]] = {}
        for route in self.routes:
            self._by_length.setdefault(len(route.segments), []).append(route)

    def render(self, request: Request) -> int:
        """Answer *request*, now or later."""
        run_in_background(self._serve, request)
        return NOT_DONE_YET

    def find(self, method: str, segments: Sequence[str]) -> tuple[Route, dict[str, str]]:
        """Return the route for *method* and the path, and its arguments.

        Raises:
            ApiError: 404 when no route has this path, 405 when none has the method.
        """
        allowed: dict[str, None] = {}
        cors = False
        for route in self._by_length.get(len(segments), ()):
            arguments = _match(route.segments, segments)
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
        gone: list[Failure] = []
        work: list[Deferred[Response]] = []

        def finished(failure: Failure) -> None:
            gone.append(failure)
            for deferred in work:
                deferred.cancel()

        _ = request.notifyFinish().addErrback(finished)
        template = ""
        try:
            segments = _segments(request)
            method = request.method.decode("ascii", "replace")
            route, arguments = self.find(method, segments)
            template = route.template
            call = Call(request, arguments)
            route.guard(call)
            answer = route.handler(call)
            if not isinstance(answer, Response):
                deferred = _to_deferred(answer)
                work.append(deferred)
                answer = await deferred
            response = answer
            if route.cors:
                response.headers = {**response.headers, **_CORS_HEADERS}
        except _Preflight:
            response = Response(204, headers=_CORS_HEADERS)
        except ApiError as error:
            response = error.response()
            if template.startswith("/_matrix/client"):
                response.headers = {**response.headers, **_CORS_HEADERS}
        except CancelledError:
            if not gone:
                raise
            return
        except Exception:
            logger.exception("http.request.failed", route=template)
            response = ApiError(
                500, "M_UNKNOWN", "the server failed on this request; its log says why"
            ).response()
        if gone:
            return
        self._counted(template or "none", _known(request.method), response.status).inc()
        write_response(request, response)


class _Preflight(Exception):
    """A CORS preflight for a path that allows it."""


async def _awaited(answer: Awaitable[Response]) -> Response:
    return await answer


def _to_deferred(answer: Awaitable[Response]) -> Deferred[Response]:
    if isinstance(answer, Deferred):
        return answer
    return Deferred.fromCoroutine(_awaited(answer))


def _known(method: bytes) -> str:
    known = method in (b"GET", b"HEAD", b"POST", b"PUT", b"OPTIONS", b"DELETE")
    return method.decode("ascii") if known else "other"


def _segments(request: Request) -> list[str]:
    try:
        return [
            part.decode("utf-8") for part in (*(request.prepath or ()), *(request.postpath or ()))
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


def write_response(request: Request, response: Response) -> None:
    """Send *response* as the answer to *request*, and finish it unless it streams."""
    request.setResponseCode(response.status)
    headers = request.responseHeaders
    headers.setRawHeaders("Server", ["tcprepl"])
    headers.setRawHeaders("Cache-Control", ["no-store"])
    headers.setRawHeaders("X-Content-Type-Options", ["nosniff"])
    if response.status != 204:
        headers.setRawHeaders("Content-Type", [response.content_type])
    for name, value in response.headers.items():
        headers.setRawHeaders(name, [value])
    if response.stream is not None and request.method != b"HEAD":
        response.stream(request)
        return
    if response.status != 204:
        headers.setRawHeaders("Content-Length", [str(len(response.body))])
        request.write(response.body)
    request.finish()


class Root(Resource):
    """The top: a request goes to the mounted resource whose prefix it has, or to the router."""

    def __init__(self, router: Router, mounts: Mapping[str, IResource]) -> None:
        super().__init__()
        self._router = router
        self._mounts = {
            tuple(prefix.strip("/").encode().split(b"/")): resource
            for prefix, resource in mounts.items()
        }

    def getChildWithDefault(self, path: bytes, request: Request) -> IResource:
        """Return the resource for *request*, whose first segment is *path*."""
        segments = (path, *(request.postpath or ()))
        for prefix, resource in self._candidates(segments):
            taken = len(prefix) - 1
            request.prepath = [*(request.prepath or ()), *prefix[1:]]
            request.postpath = list(segments[1 + taken :])
            return resource
        return self._router

    def _candidates(
        self, segments: tuple[bytes, ...]
    ) -> Iterator[tuple[tuple[bytes, ...], IResource]]:
        for length in range(len(segments), 0, -1):
            resource = self._mounts.get(segments[:length])
            if resource is not None:
                yield segments[:length], resource
