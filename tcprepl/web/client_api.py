"""The Matrix client paths that an application or a reverse proxy forwards.

Typing, presence, receipts and to-device messages, as the client-server specification has them,
for bearer tokens that are configured (`tcprepl.web.client_tokens`). What is sent goes to the
writers of `tcprepl.ephemeral` and, for other servers, into the federation stream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from tcprepl import limits
from tcprepl.access import ALL
from tcprepl.errors import FederationError
from tcprepl.federation.wire.edu import TO_DEVICE, BadEdu, canonical_json, is_server_name
from tcprepl.http.calls import ApiError, Call, Response, excerpt, invalid, json_response
from tcprepl.http.routing import About, Guard, Handler, Route
from tcprepl.http.security import bearer
from tcprepl.ids import idempotency_key
from tcprepl.web.client_tokens import ClientTokens
from tcprepl.web.ingest import Ingest
from tcprepl.web.services import WebServices

#: The versions of the client-server API under which the paths are served.
VERSIONS = ("v3", "r0")
#: The extra stream that takes the content of to-device messages for our own users.
LOCAL_MESSAGES = "to_device_messages"
#: How to log in.
LOGIN_TYPES = ("m.login.token", "m.login.application_service")
_RECEIPT_TYPES = ("m.read", "m.read.private")
_MAX_MESSAGES = 10_000

#: Messages by user and device.
ByUser: TypeAlias = dict[str, dict[str, dict[str, Any]]]


class TokenQuery(msgspec.Struct):
    """Who asks, where a header cannot be set."""

    access_token: Annotated[str, Meta(description="The token; the header is better.")] | None = None


class SpeakerQuery(TokenQuery):
    """For whom a request speaks."""

    user_id: (
        Annotated[str, Meta(description="For whom, where the token may speak for several.")] | None
    ) = None
    device_id: Annotated[str, Meta(description="Of which device.")] | None = None


class Versions(msgspec.Struct):
    """Versions of the client-server specification."""

    versions: list[str]


class Flow(msgspec.Struct):
    """A way to log in."""

    type: str


class Flows(msgspec.Struct):
    """The ways to log in."""

    flows: list[Flow]


class Identifier(msgspec.Struct):
    """Who logs in."""

    user: str


class Login(msgspec.Struct):
    """A wish for a token."""

    type: Annotated[str, Meta(extra_json_schema={"enum": [*LOGIN_TYPES]})]
    token: str | None = None
    user: str | None = None
    identifier: Identifier | None = None
    device_id: str | None = None


class LoggedIn(msgspec.Struct):
    """A token for one device of one user."""

    user_id: str
    access_token: str
    device_id: str
    home_server: str


class Whoami(msgspec.Struct, omit_defaults=True):
    """For whom a token speaks."""

    user_id: str
    device_id: str | None = None


class Typing(msgspec.Struct):
    """Whether a user types, and for how many ms."""

    typing: bool
    timeout: Annotated[int, Meta(ge=0)] = 30_000


class Presence(msgspec.Struct):
    """How a user wants to be seen."""

    presence: Literal["online", "offline", "unavailable", "busy"]
    status_msg: str | None = None


class PresenceNow(msgspec.Struct, omit_defaults=True):
    """How a user is."""

    presence: str
    last_active_ago: int | None = None
    status_msg: str | None = None
    currently_active: bool | None = None


class Receipt(msgspec.Struct):
    """More of a receipt than its path says."""

    thread_id: str | None = None


class Messages(msgspec.Struct):
    """Messages by user and device."""

    messages: ByUser


class ClientApi:
    """Answers the client paths.

    Args:
        services: The ports; uses *typing*, *presence*, *receipts*, *edus*, *registry*,
            *client_tokens* and *server_name*.
        ingest: Publishes to-device rows.
    """

    def __init__(self, services: WebServices, ingest: Ingest) -> None:
        self._services = services
        self._ingest = ingest
        self.admit()

    def admit(self) -> None:
        """Take the tokens from the services, at first and when they have changed."""
        services = self._services
        # Who may publish any row may also speak for any user.
        secrets = [*services.secrets, *(t for t, grant in services.grants if grant.write == ALL)]
        tokens = {**dict.fromkeys(secrets), **services.client_tokens}
        asks = bool(tokens or services.grants)
        self._tokens = ClientTokens(tokens, services.server_name, asks=asks)

    def routes(self, guard: Guard) -> Iterator[Route]:
        """Return the paths; each checks its token itself."""
        services = self._services
        busy: dict[int, None] = {503: None}
        versions = About("Which versions of the specification the paths are of", Versions)
        path = "/_matrix/client/versions"
        yield Route("GET", path, self.get_versions, guard, versions, cors=True)

        def face(method: str, path: str, handler: Handler, about: About) -> Iterator[Route]:
            for version in VERSIONS:
                template = f"/_matrix/client/{version}/{path}"
                yield Route(method, template, handler, guard, about, cors=True)

        about = About("How to log in", Flows)
        yield from face("GET", "login", self.get_login, about)
        about = About("Get a token for one device of one user", LoggedIn, TokenQuery, Login)
        yield from face("POST", "login", self.post_login, about)
        about = About("For whom a token speaks", Whoami, SpeakerQuery)
        yield from face("GET", "account/whoami", self.get_whoami, about)
        if services.typing is not None:
            about = About("A user types, or has stopped", None, SpeakerQuery, Typing, refuses=busy)
            yield from face("PUT", "rooms/{room_id}/typing/{user_id}", self.put_typing, about)
        if services.presence is not None:
            about = About("Say how a user is", None, SpeakerQuery, Presence, refuses=busy)
            yield from face("PUT", "presence/{user_id}/status", self.put_presence, about)
            about = About("How a user is", PresenceNow, SpeakerQuery)
            yield from face("GET", "presence/{user_id}/status", self.get_presence, about)
        if services.receipts is not None:
            about = About(
                "A user has read up to an event", None, SpeakerQuery, Receipt,
                says="On disk.", refuses=busy, needs_body=False,
            )  # fmt: skip
            path = "rooms/{room_id}/receipt/{receipt_type}/{event_id}"
            yield from face("POST", path, self.post_receipt, about)
        about = About(
            "Messages for devices; safe to repeat", None, SpeakerQuery, Messages,
            says="On disk.", refuses={404: None, **busy},
        )  # fmt: skip
        yield from face("PUT", "sendToDevice/{event_type}/{txn}", self.put_to_device, about)

    def get_versions(self, call: Call) -> Response:
        """Say which versions of the specification the paths are of."""
        return json_response(Versions(["r0.6.1", *(f"v1.{minor}" for minor in range(1, 12))]))

    def get_login(self, call: Call) -> Response:
        """Say how to log in."""
        return json_response(Flows(list(map(Flow, LOGIN_TYPES))))

    def post_login(self, call: Call) -> Response:
        """Give a token for one user to who shows a configured one."""
        asked = call.json(Login)
        if asked.type == "m.login.token":
            token = asked.token
        elif asked.type == "m.login.application_service":
            token = bearer(call) or call.parameters(TokenQuery).access_token
        else:
            raise ApiError(
                400, "M_UNKNOWN", f"login type {excerpt(asked.type)}: expected m.login.token"
            )
        if not token:
            raise ApiError(401, "M_MISSING_TOKEN", f"{asked.type} needs a token")
        user = asked.identifier.user if asked.identifier is not None else asked.user
        user_id, device_id, access_token = self._tokens.login(token, user, asked.device_id)
        return json_response(LoggedIn(user_id, access_token, device_id, self._services.server_name))

    def get_whoami(self, call: Call) -> Response:
        """Say for whom a token speaks."""
        speaker = self._tokens.speaker_of(call)
        return json_response(Whoami(speaker.user_id, speaker.device_id))

    async def put_typing(self, call: Call) -> Response:
        """Note that a user types, or stopped."""
        user = self._tokens.speaker_of(call, call.path_args["user_id"]).user_id
        room_id = _room(call)
        asked = call.json(Typing)
        typing = self._services.typing
        assert typing is not None
        if asked.typing:
            await _told(lambda: typing.started_typing(room_id, user, asked.timeout))
        else:
            await _told(lambda: typing.stopped_typing(room_id, user))
        return json_response({})

    async def put_presence(self, call: Call) -> Response:
        """Set a user's presence."""
        user = self._tokens.speaker_of(call, call.path_args["user_id"]).user_id
        asked = call.json(Presence)
        presence = self._services.presence
        assert presence is not None
        await _told(lambda: presence.set_state(user, asked.presence, asked.status_msg))
        return json_response({})

    def get_presence(self, call: Call) -> Response:
        """Say how a user is; who is not known is offline."""
        self._tokens.speaker_of(call)
        presence = self._services.presence
        assert presence is not None
        row = presence.get_state(call.path_args["user_id"])
        if row is None:
            return json_response(PresenceNow("offline"))
        ago = max(0, self._services.now_ms() - row.last_active_ts) if row.last_active_ts else None
        active = bool(row.currently_active) if row.state == "online" else None
        return json_response(PresenceNow(row.state, ago, row.status_msg, active))

    async def post_receipt(self, call: Call) -> Response:
        """Take a receipt; answers once it is on disk."""
        user = self._tokens.speaker_of(call).user_id
        room_id = _room(call)
        receipt_type = call.path_args["receipt_type"]
        if receipt_type not in _RECEIPT_TYPES:
            raise invalid("receiptType", receipt_type, " or ".join(_RECEIPT_TYPES))
        asked = call.json(Receipt) if call.body.strip() else Receipt()
        data = {} if asked.thread_id is None else {"thread_id": asked.thread_id}
        receipts = self._services.receipts
        assert receipts is not None
        event_id = call.path_args["event_id"]
        await _told(lambda: receipts.receive(room_id, receipt_type, user, event_id, data))
        return json_response({})

    async def put_to_device(self, call: Call) -> Response:
        """Send messages to devices; safe to repeat with the same transaction id.

        Messages for other servers become an EDU each, those for our own users rows of the
        stream ``to_device_messages``, where it is configured; ``to_device`` tells of them.
        """
        user, _, scope = self._tokens.speaker_of(call)
        event_type, txn = call.path_args["event_type"], call.path_args["txn"]
        messages = call.json(Messages).messages
        if sum(map(len, messages.values())) > _MAX_MESSAGES:
            raise ApiError(
                413, "M_TOO_LARGE", f"messages for more than {_MAX_MESSAGES} devices: split them"
            )
        by_server: dict[str, ByUser] = {}
        for target, devices in messages.items():
            server = target.partition(":")[2]
            if not target.startswith("@") or not is_server_name(server):
                raise invalid("messages", target, "user IDs as keys")
            by_server.setdefault(server, {})[target] = devices
        # The same request has the same id, whenever it is repeated; another device's has not.
        key = idempotency_key("to_device", user, *scope, event_type, txn)
        envelope = {"sender": user, "type": event_type}
        ours = by_server.pop(self._services.server_name, {})
        self._check_reach(bool(ours), by_server.keys())
        # All of them are made before the first is sent: a refusal sends none.
        edus = [
            (server, {**envelope, "message_id": _message_id(key, number), "messages": part})
            for server, theirs in by_server.items()
            for number, part in enumerate(_parcels(envelope, theirs))
        ]
        if ours:
            await self._send_here(ours, {**envelope, "message_id": _message_id(key)}, key)
        for server, content in edus:
            assert self._services.edus is not None
            queue = partial(
                self._services.edus.build_and_send_edu,
                server,
                TO_DEVICE,
                content,
                transaction_id=idempotency_key(key, server, str(content["message_id"])),
            )
            await _told(queue)
        return json_response({})

    def _check_reach(self, ours: bool, servers: object) -> None:
        if servers and self._services.edus is None:
            raise ApiError(
                404, "M_UNRECOGNIZED", "this process sends nothing to other servers: not configured"
            )
        if ours and LOCAL_MESSAGES not in self._services.registry:
            raise ApiError(
                404,
                "M_UNRECOGNIZED",
                "nothing here keeps to-device messages for users of this server: configure the "
                f"extra stream {LOCAL_MESSAGES}",
            )

    async def _send_here(
        self, messages: ByUser, envelope: dict[str, str], transaction_id: str
    ) -> None:
        rows = [
            msgspec.json.encode(
                {**envelope, "user_id": target, "device_id": device, "content": content}
            )
            for target, devices in messages.items()
            for device, content in devices.items()
        ]
        if rows:
            await self._ingest.publish(LOCAL_MESSAGES, rows, transaction_id=transaction_id)
            await self._ingest.publish(
                "to_device",
                [msgspec.json.encode([target]) for target, found in messages.items() if found],
                transaction_id=transaction_id,
            )


def _message_id(key: str, number: int = 0) -> str:
    """Return the id of a message; of the further parts of one that is too large, others."""
    return (idempotency_key(key, str(number)) if number else key)[:16]


def _parcels(envelope: dict[str, str], messages: ByUser) -> Iterator[ByUser]:
    """Yield *messages* in parts, each of which fits into an EDU; always the same ones.

    Raises:
        ApiError: 413, one message alone does not fit; 400, one is not JSON as federation has it.
    """
    empty = {**envelope, "message_id": "x" * 16, "messages": {}}
    room = limits.MAX_EDU_BYTES - len(canonical_json({"content": empty, "edu_type": TO_DEVICE}))
    part: ByUser = {}
    left = room
    for target, devices in messages.items():
        for device, content in devices.items():
            try:
                size = len(canonical_json({target: {device: content}}))
            except BadEdu as error:
                raise ApiError(400, "M_BAD_JSON", f"messages of {target}: {error}") from None
            if size > room:
                raise ApiError(
                    413,
                    "M_TOO_LARGE",
                    f"the message for {excerpt(target)}, device {excerpt(device)} makes an EDU of "
                    f"more than {limits.MAX_EDU_BYTES} bytes, which no server takes",
                )
            if size > left:
                yield part
                part, left = {}, room
            part.setdefault(target, {})[device] = content
            left -= size
    if part:
        yield part


def _room(call: Call) -> str:
    room_id = call.path_args["room_id"]
    if not room_id.startswith("!") or len(room_id) > 255 or any(c.isspace() for c in room_id):
        raise invalid("roomId", room_id, "a room ID, at most 255 characters")
    return room_id


async def _told(tell: Callable[[], object]) -> None:
    """Call a writer, and wait for it if it answers later."""
    try:
        answer = tell()
        if isinstance(answer, Awaitable):
            await answer
    except (ValueError, FederationError) as error:
        raise ApiError(400, "M_INVALID_PARAM", str(error)) from None
