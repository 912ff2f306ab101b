"""The HTTP faces of federation, as resources that `tcprepl.web` mounts.

To other servers: transactions, our keys, our version. To our own processes: EDUs to queue, and
the servers of a room (protocol.md sections 13 and 14).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import parse_qs, unquote

import msgspec
import structlog
from msgspec import Raw, Struct
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request

import tcprepl
from tcprepl.background import run_in_background
from tcprepl.errors import BadRow, FederationError, LogUnavailable
from tcprepl.federation.receiving.receiver import Outcome, Refused, TransactionReceiver
from tcprepl.federation.wire.edu import canonicalise, is_server_name
from tcprepl.federation.wire.signing import Signer
from tcprepl.federation.writing.room_hosts import RoomHosts
from tcprepl.federation.writing.send_queue import SendQueue
from tcprepl.ids import idempotency_key
from tcprepl.limits import MAX_TRANSACTION_ID_CHARS

logger = structlog.get_logger()

#: Destinations of one request.
MAX_DESTINATIONS = 10_000

#: Raises `Refused` unless a request may use what only our own processes may.
Guard: TypeAlias = Callable[[Request], None]


@dataclass(frozen=True, slots=True)
class FederationServices:
    """What the resources need; a part that is None has no resource.

    Attributes:
        now_ms: Returns wall-clock time in ms.
        guard: Checks who uses the part for our own processes.
        signer: Our key, for the key document.
        receiver: Takes transactions.
        send_queue: Queues EDUs.
        hosts: The servers of rooms.
    """

    now_ms: Callable[[], int]
    guard: Guard
    signer: Signer | None = None
    receiver: TransactionReceiver | None = None
    send_queue: SendQueue | None = None
    hosts: RoomHosts | None = None


def federation_resources(services: FederationServices) -> dict[str, IResource]:
    """Return the resources by the prefix of their path."""
    found: dict[str, IResource] = {"/_matrix/federation/v1/version": Version()}
    if services.signer is not None:
        found["/_matrix/key/v2/server"] = Keys(services.signer, services.now_ms)
    if services.receiver is not None:
        found["/_matrix/federation/v1/send"] = Send(services.receiver)
    if services.send_queue is not None:
        found["/_tcprepl/v1/edus"] = Edus(services.send_queue, services.guard)
    if services.hosts is not None:
        found["/_tcprepl/v1/rooms"] = Rooms(services.hosts, services.guard)
    return found


class JsonResource(Resource):
    """A resource whose `answer` is an async function; every path below it is its own."""

    isLeaf = True
    methods: tuple[bytes, ...] = (b"GET",)

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def render(self, request: Request) -> int:
        """Answer (Twisted calls this)."""
        answer = Deferred.fromCoroutine(self._answer(request))
        gone: list[Failure] = []

        def went_away(reason: Failure) -> None:
            gone.append(reason)

        def finish(outcome: Outcome) -> None:
            if gone:
                return
            status, body = outcome
            request.setResponseCode(status)
            request.setHeader(b"Content-Type", b"application/json")
            request.setHeader(b"Content-Length", str(len(body)).encode())
            if status in (429, 503):
                request.setHeader(b"Retry-After", b"1")
            if status == 405:
                request.setHeader(b"Allow", b", ".join(self.methods))
            request.write(body)
            request.finish()

        _ = request.notifyFinish().addErrback(went_away)
        run_in_background(answer.addCallback, finish)
        return NOT_DONE_YET

    async def _answer(self, request: Request) -> Outcome:
        try:
            if request.method not in self.methods:
                raise Refused(405, "M_UNRECOGNIZED", "this path knows no such method")
            return await self.answer(request)
        except Refused as error:
            return error.status, error.body()
        except (FederationError, BadRow) as error:
            return 400, Refused(400, "M_INVALID_PARAM", str(error)).body()
        except LogUnavailable as error:
            return 503, Refused(503, "M_UNKNOWN", f"not now: {error}").body()
        except Exception as error:
            logger.exception("federation.request.failed", path=request.path, error=str(error))
            return 500, Refused(500, "M_UNKNOWN", "internal error").body()

    async def answer(self, request: Request) -> Outcome:
        """Return status and body; what is not granted is raised."""
        raise NotImplementedError


def body_of(request: Request) -> bytes:
    """Return the body of a request."""
    content = request.content
    assert content is not None
    content.seek(0)
    body: bytes = content.read()
    return body


class Version(JsonResource):
    """``GET /_matrix/federation/v1/version``."""

    async def answer(self, request: Request) -> Outcome:
        """Say what we are."""
        return 200, msgspec.json.encode(
            {"server": {"name": "tcprepl", "version": tcprepl.__version__}}
        )


class Keys(JsonResource):
    """``GET /_matrix/key/v2/server``: our key, signed with itself."""

    def __init__(self, signer: Signer, now_ms: Callable[[], int]) -> None:
        super().__init__()
        self._signer = signer
        self._now_ms = now_ms

    async def answer(self, request: Request) -> Outcome:
        """Return the key document."""
        return 200, self._signer.key_document(self._now_ms())


class Send(JsonResource):
    """``PUT /_matrix/federation/v1/send/{txnId}``: a transaction of another server."""

    methods = (b"PUT",)

    def __init__(self, receiver: TransactionReceiver) -> None:
        super().__init__()
        self._receiver = receiver

    async def answer(self, request: Request) -> Outcome:
        """Verify who sent it, and take it."""
        segments = [segment for segment in request.postpath or [] if segment]
        if len(segments) != 1:
            raise Refused(404, "M_UNRECOGNIZED", "expected one transaction id in the path")
        body = body_of(request)
        headers = list(request.requestHeaders.getRawHeaders("Authorization") or ())
        origin = await self._receiver.authenticate(
            "PUT", request.uri.decode("ascii", "replace"), headers, body
        )
        transaction_id = unquote(segments[0].decode("ascii", "replace"))
        return await self._receiver.receive(origin, transaction_id, body)


class _NewEdu(Struct, forbid_unknown_fields=True):
    edu_type: str
    content: Raw
    destination: str | None = None
    destinations: list[str] | None = None
    key: list[str | int | None] | None = None
    transaction_id: str | None = None


class Edus(JsonResource):
    """``POST /_tcprepl/v1/edus``: queue an EDU for one server or several."""

    methods = (b"POST",)

    def __init__(self, queue: SendQueue, guard: Guard) -> None:
        super().__init__()
        self._queue = queue
        self._guard = guard

    async def answer(self, request: Request) -> Outcome:
        """Queue it; the answer comes once it is on disk."""
        self._guard(request)
        given = _decode(body_of(request), _NewEdu)
        if (given.destination is None) == (given.destinations is None):
            raise Refused(400, "M_BAD_JSON", "expected either destination or destinations")
        destinations = given.destinations or [given.destination or ""]
        if len(destinations) > MAX_DESTINATIONS:
            raise Refused(
                413,
                "M_TOO_LARGE",
                f"destinations: {len(destinations)}; expected at most {MAX_DESTINATIONS}",
            )
        for destination in destinations:
            if not is_server_name(destination):
                raise Refused(
                    400, "M_INVALID_PARAM", f"{destination[:64]!r}; expected a server name"
                )
        content = canonicalise(given.content) or bytes(given.content)
        if not content.startswith(b"{"):
            raise Refused(400, "M_BAD_JSON", "content: expected an object")
        appended = await self._queue.send_to(
            destinations,
            given.edu_type,
            content,
            given.key,
            transaction_id=_transaction_id(request, given.transaction_id),
        )
        if appended is None:
            return 200, b'{"queued":0}'
        return 200, msgspec.json.encode(
            {
                "queued": appended.last - appended.first + 1,
                "stream": appended.stream,
                "instance": appended.instance,
                "first": appended.first,
                "last": appended.last,
            }
        )


class _Hosts(Struct, forbid_unknown_fields=True):
    hosts: list[str]


class Rooms(JsonResource):
    """``PUT`` and ``GET /_tcprepl/v1/rooms/{roomId}/hosts``: the servers of a room."""

    methods = (b"GET", b"PUT")

    def __init__(self, hosts: RoomHosts, guard: Guard) -> None:
        super().__init__()
        self._hosts = hosts
        self._guard = guard

    async def answer(self, request: Request) -> Outcome:
        """Take or tell the servers."""
        self._guard(request)
        segments = request.postpath or []
        if len(segments) != 2 or segments[1] != b"hosts" or not segments[0]:
            raise Refused(404, "M_UNRECOGNIZED", "expected rooms/{roomId}/hosts")
        room_id = unquote(segments[0].decode("ascii", "replace"))
        if not room_id.startswith("!") or len(room_id) > 255:
            raise Refused(400, "M_INVALID_PARAM", f"{room_id[:64]!r}; expected a room ID")
        if request.method == b"PUT":
            self._hosts.put(room_id, _decode(body_of(request), _Hosts).hosts)
        return 200, msgspec.json.encode({"hosts": sorted(self._hosts(room_id))})


def _decode(body: bytes, type_: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, "M_BAD_JSON", str(error)) from error


def _transaction_id(request: Request, in_body: str | None) -> str | None:
    """Return the transaction id of the query, the header or the body."""
    query = parse_qs(request.uri.partition(b"?")[2].decode("ascii", "replace"))
    header = request.getHeader("Idempotency-Key")
    given = {
        *query.get("txn_id", ()),
        *((header,) if header else ()),
        *((in_body,) if in_body else ()),
    }
    if len(given) > 1:
        raise Refused(400, "M_INVALID_PARAM", "several transaction ids")
    for found in given:
        if len(found) > MAX_TRANSACTION_ID_CHARS:
            raise Refused(
                400, "M_INVALID_PARAM", f"expected at most {MAX_TRANSACTION_ID_CHARS} characters"
            )
    return next((idempotency_key("edus", found) for found in given), None)
