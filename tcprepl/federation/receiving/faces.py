"""The HTTP faces of federation.

To other servers: transactions, our keys, our version. To our own processes: EDUs to queue, and
the servers of a room (protocol.md sections 13 and 14).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct
from twisted.internet.defer import Deferred

import tcprepl
from tcprepl import limits
from tcprepl.errors import BadRow, FederationError
from tcprepl.federation.receiving.receiver import TransactionReceiver
from tcprepl.federation.wire.edu import canonicalise, is_server_name
from tcprepl.federation.wire.signing import Signer
from tcprepl.federation.writing.room_hosts import RoomHosts
from tcprepl.federation.writing.send_queue import SendQueue
from tcprepl.federation.writing.server_acl import ServerAcl
from tcprepl.http.calls import (
    ApiError,
    Call,
    Response,
    TransactionId,
    idempotency_key_of,
    invalid,
    json_response,
    other_request,
    to_the_end,
)
from tcprepl.http.routing import About, Route
from tcprepl.http.security import Gate
from tcprepl.ids import InstanceName, ServerName, StreamName, Token
from tcprepl.protocol.display import counted

#: Destinations of one request.
MAX_DESTINATIONS = 10_000


class Software(Struct):
    """A program."""

    name: str
    version: str


class Version(Struct):
    """What we are."""

    server: Software


class Taken(Struct):
    """What became of the PDUs of a transaction: nothing."""

    pdus: dict[str, Any]


class EdusQuery(Struct):
    """The parameters of a request with an EDU."""

    txn_id: TransactionId | None = None


class NewEdu(Struct, forbid_unknown_fields=True):
    """An EDU for one server or several."""

    edu_type: str
    content: Annotated[Raw, Meta(extra_json_schema={"type": "object"})]
    destination: str | None = None
    destinations: list[str] | None = None
    key: list[str | int | None] | None = None
    transaction_id: str | None = None


class Queued(Struct, omit_defaults=True):
    """How many EDUs were queued, and where they are."""

    queued: int
    stream: StreamName | None = None
    instance: InstanceName | None = None
    first: Token | None = None
    last: Token | None = None


class Hosts(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The servers of a room, and which of them it lets in, where that is known."""

    hosts: list[ServerName]
    acl: ServerAcl | None = None


@dataclass(frozen=True, slots=True)
class FederationServices:
    """What the faces need; a part that is None has none.

    Attributes:
        now_ms: Returns wall-clock time in ms.
        signer: Our key, for the key document.
        receiver: Takes transactions.
        send_queue: Queues EDUs.
        hosts: The servers of rooms.
    """

    now_ms: Callable[[], int]
    signer: Signer | None = None
    receiver: TransactionReceiver | None = None
    send_queue: SendQueue | None = None
    hosts: RoomHosts | None = None


def federation_routes(services: FederationServices, gate: Gate) -> Iterator[Route]:
    """Yield the routes of those parts that there are."""
    base = "/_matrix/federation/v1"
    yield Route("GET", f"{base}/version", get_version, gate.open, About("What we are", Version))
    if services.signer is not None:
        keys = Keys(services.signer, services.now_ms)
        about = About("Our keys, signed with themselves", dict[str, Any])
        for path in ("", "/", "/{key_id}"):
            yield Route("GET", f"/_matrix/key/v2/server{path}", keys.get_keys, gate.open, about)
    if services.receiver is not None:
        about = About(
            "A transaction of another server",
            Taken,
            None,
            dict[str, Any],
            says="Taken, now or before.",
            refuses={401: None, 403: None, 429: None, 503: None},
        )
        send = Send(services.receiver)
        yield Route("PUT", f"{base}/send/{{txn}}", send.put_transaction, gate.open, about)
    if services.send_queue is not None:
        about = About(
            "Queue an EDU for other servers",
            Queued,
            EdusQuery,
            NewEdu,
            says="On disk.",
            refuses={409: None, 503: None},
        )
        edus = Edus(services.send_queue)
        yield Route("POST", "/_tcprepl/v1/edus", edus.post_edu, gate.operating, about)
    if services.hosts is not None:
        rooms = Rooms(services.hosts)
        path = "/_tcprepl/v1/rooms/{roomId}/hosts"
        about = About("Which servers are in a room", Hosts)
        yield Route("GET", path, rooms.get_hosts, gate.operating, about)
        about = About("Tell which servers are in a room", Hosts, body=Hosts, refuses={503: None})
        yield Route("PUT", path, rooms.put_hosts, gate.operating, about)


def get_version(call: Call) -> Response:
    """Say what we are."""
    return json_response(Version(Software("tcprepl", tcprepl.__version__)))


class Keys:
    """``GET /_matrix/key/v2/server``: our key, signed with itself."""

    def __init__(self, signer: Signer, now_ms: Callable[[], int]) -> None:
        self._signer = signer
        self._now_ms = now_ms

    def get_keys(self, call: Call) -> Response:
        """Answer the key document."""
        return Response(200, self._signer.key_document(self._now_ms()))


class Send:
    """``PUT /_matrix/federation/v1/send/{txnId}``: a transaction of another server."""

    def __init__(self, receiver: TransactionReceiver) -> None:
        self._receiver = receiver

    async def put_transaction(self, call: Call) -> Response:
        """Verify who sent it, and take it: to its end, for who left will come again with it."""
        return await to_the_end(Deferred.fromCoroutine(self._take(call)))

    async def _take(self, call: Call) -> Response:
        try:
            headers = call.header_values("Authorization")
        except ApiError as error:
            raise ApiError(401, "M_UNAUTHORIZED", error.message) from None
        uri = call.request.uri.decode("ascii", "replace")
        body = call.body
        origin = await self._receiver.authenticate(call.method, uri, headers, body)
        return Response(200, await self._receiver.receive(origin, call.path_args["txn"], body))


class Edus:
    """``POST /_tcprepl/v1/edus``: queue an EDU for one server or several."""

    def __init__(self, queue: SendQueue) -> None:
        self._queue = queue

    async def post_edu(self, call: Call) -> Response:
        """Queue it; the answer comes once it is on disk."""
        asked = call.parameters(EdusQuery, closed=True)
        given = call.json(NewEdu)
        if (given.destination is None) == (given.destinations is None):
            raise ApiError(400, "M_BAD_JSON", "expected either destination or destinations")
        destinations = given.destinations or [given.destination or ""]
        if len(destinations) > MAX_DESTINATIONS:
            raise ApiError(
                413,
                "M_TOO_LARGE",
                f"destinations: {len(destinations)}; expected at most {MAX_DESTINATIONS}",
            )
        for destination in destinations:
            if not is_server_name(destination):
                raise invalid("destination", destination, "a server name")
        try:
            content = canonicalise(given.content) or bytes(given.content)
            if not content.startswith(b"{"):
                raise ApiError(400, "M_BAD_JSON", "content: expected an object")
            if len(content) + len(given.edu_type) + _AROUND > limits.MAX_EDU_BYTES:
                raise ApiError(
                    413,
                    "M_TOO_LARGE",
                    f"content: {len(content)} bytes as canonical JSON; an EDU has at most "
                    f"{limits.MAX_EDU_BYTES}, and no server takes a longer one",
                )
            appended = await self._queue.send_to(
                destinations,
                given.edu_type,
                content,
                given.key,
                transaction_id=idempotency_key_of(call, "edus", asked.txn_id, given.transaction_id),
            )
        except (FederationError, BadRow) as error:
            raise ApiError(400, "M_INVALID_PARAM", str(error)) from None
        if appended is None:
            return json_response(Queued(0))
        count = appended.last - appended.first + 1
        others = set(destinations) - {self._queue.server_name}
        if count != len(others):
            what = counted(len(others), "destination")
            raise other_request(what, msgspec.structs.asdict(appended))
        return json_response(
            Queued(count, appended.stream, appended.instance, appended.first, appended.last)
        )


#: What an EDU has beside its content and its type.
_AROUND = len(b'{"content":,"edu_type":""}')


class Rooms:
    """``PUT`` and ``GET /_tcprepl/v1/rooms/{roomId}/hosts``: the servers of a room."""

    def __init__(self, hosts: RoomHosts) -> None:
        self._hosts = hosts

    def get_hosts(self, call: Call) -> Response:
        """Tell the servers."""
        return self._tell(_room(call))

    def put_hosts(self, call: Call) -> Response:
        """Take the servers; they are on disk when this answers."""
        room_id = _room(call)
        try:
            asked = call.json(Hosts)
            self._hosts.put(room_id, asked.hosts, asked.acl)
        except FederationError as error:
            raise ApiError(400, "M_INVALID_PARAM", str(error)) from None
        return self._tell(room_id)

    def _tell(self, room_id: str) -> Response:
        return json_response(Hosts(sorted(self._hosts.all_of(room_id)), self._hosts.acl(room_id)))


def _room(call: Call) -> str:
    room_id = call.path_args["roomId"]
    if not room_id.startswith("!") or len(room_id) > 255:
        raise invalid("roomId", room_id, "a room ID, at most 255 characters")
    return room_id
