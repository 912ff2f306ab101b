"""The Matrix client paths that an application or a reverse proxy forwards.

Typing, presence, receipts and to-device messages, as the client-server specification has them,
for bearer tokens that are configured (`tcprepl.web.client_tokens`). What is sent goes to the
writers of `tcprepl.ephemeral` and, for other servers, into the federation stream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Literal

import msgspec

from tcprepl.errors import LogUnavailable
from tcprepl.http.routing import (
    ApiError,
    Call,
    Guard,
    Response,
    Route,
    excerpt,
    invalid,
    json_response,
)
from tcprepl.http.security import bearer
from tcprepl.ids import idempotency_key
from tcprepl.web.client_tokens import ClientTokens
from tcprepl.web.ingest import Ingest, busy
from tcprepl.web.services import WebServices

#: The versions of the client-server API under which the paths are served.
VERSIONS = ("v3", "r0")
#: The extra stream that takes the content of to-device messages for our own users.
LOCAL_MESSAGES = "to_device_messages"
_RECEIPT_TYPES = ("m.read", "m.read.private")
_MAX_MESSAGES = 10_000


class _Typing(msgspec.Struct):
    typing: bool
    timeout: int = 30_000


class _Presence(msgspec.Struct):
    presence: Literal["online", "offline", "unavailable", "busy"]
    status_msg: str | None = None


class _Receipt(msgspec.Struct):
    thread_id: str | None = None


class _Messages(msgspec.Struct):
    messages: dict[str, dict[str, dict[str, Any]]]


class _Identifier(msgspec.Struct):
    user: str


class _Login(msgspec.Struct):
    type: str
    token: str | None = None
    user: str | None = None
    identifier: _Identifier | None = None
    device_id: str | None = None


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
        tokens = {**dict.fromkeys(services.secrets), **services.client_tokens}
        self._tokens = ClientTokens(tokens, services.server_name)

    def routes(self, guard: Guard) -> Iterator[Route]:
        """Return the paths; each checks its token itself."""
        route = partial(Route, guard=guard, cors=True)
        yield route("GET", "/_matrix/client/versions", self.get_versions)
        for version in VERSIONS:
            base = f"/_matrix/client/{version}"
            yield route("GET", f"{base}/login", self.get_login)
            yield route("POST", f"{base}/login", self.post_login)
            yield route("GET", f"{base}/account/whoami", self.get_whoami)
            if self._services.typing is not None:
                yield route("PUT", f"{base}/rooms/{{room_id}}/typing/{{user_id}}", self.put_typing)
            if self._services.presence is not None:
                yield route("PUT", f"{base}/presence/{{user_id}}/status", self.put_presence)
                yield route("GET", f"{base}/presence/{{user_id}}/status", self.get_presence)
            if self._services.receipts is not None:
                yield route(
                    "POST",
                    f"{base}/rooms/{{room_id}}/receipt/{{receipt_type}}/{{event_id}}",
                    self.post_receipt,
                )
            yield route("PUT", f"{base}/sendToDevice/{{event_type}}/{{txn}}", self.put_to_device)

    def get_versions(self, call: Call) -> Response:
        """Say which versions of the specification the paths are of."""
        return json_response({"versions": ["r0.6.1", *(f"v1.{minor}" for minor in range(1, 12))]})

    def get_login(self, call: Call) -> Response:
        """Say how to log in."""
        flows = ("m.login.token", "m.login.application_service")
        return json_response({"flows": [{"type": flow} for flow in flows]})

    def post_login(self, call: Call) -> Response:
        """Give a token for one user to who shows a configured one."""
        asked = call.json(_Login)
        if asked.type == "m.login.token":
            token = asked.token
        elif asked.type == "m.login.application_service":
            token = bearer(call) or call.param("access_token")
        else:
            raise ApiError(
                400, "M_UNKNOWN", f"login type {excerpt(asked.type)}: expected m.login.token"
            )
        if not token:
            raise ApiError(401, "M_MISSING_TOKEN", f"{asked.type} needs a token")
        user = asked.identifier.user if asked.identifier is not None else asked.user
        user_id, device_id, access_token = self._tokens.login(token, user, asked.device_id)
        return json_response(
            {
                "user_id": user_id,
                "access_token": access_token,
                "device_id": device_id,
                "home_server": self._services.server_name,
            }
        )

    def get_whoami(self, call: Call) -> Response:
        """Say for whom a token speaks."""
        speaker = self._tokens.speaker_of(call)
        device = {} if speaker.device_id is None else {"device_id": speaker.device_id}
        return json_response({"user_id": speaker.user_id, **device})

    async def put_typing(self, call: Call) -> Response:
        """Note that a user types, or stopped."""
        user = self._tokens.speaker_of(call, call.path_args["user_id"]).user_id
        room_id = _room(call)
        asked = call.json(_Typing)
        typing = self._services.typing
        assert typing is not None
        if asked.typing:
            if asked.timeout < 0:
                raise invalid("timeout", asked.timeout, "milliseconds, 0 or more")
            await _told(lambda: typing.started_typing(room_id, user, asked.timeout))
        else:
            await _told(lambda: typing.stopped_typing(room_id, user))
        return json_response({})

    async def put_presence(self, call: Call) -> Response:
        """Set a user's presence."""
        user = self._tokens.speaker_of(call, call.path_args["user_id"]).user_id
        asked = call.json(_Presence)
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
            return json_response({"presence": "offline"})
        answer: dict[str, Any] = {"presence": row.state}
        if row.last_active_ts:
            answer["last_active_ago"] = max(0, self._services.now_ms() - row.last_active_ts)
        if row.status_msg is not None:
            answer["status_msg"] = row.status_msg
        if row.state == "online":
            answer["currently_active"] = bool(row.currently_active)
        return json_response(answer)

    async def post_receipt(self, call: Call) -> Response:
        """Take a receipt; answers once it is on disk."""
        user = self._tokens.speaker_of(call).user_id
        room_id = _room(call)
        receipt_type = call.path_args["receipt_type"]
        if receipt_type not in _RECEIPT_TYPES:
            raise invalid("receiptType", receipt_type, " or ".join(_RECEIPT_TYPES))
        asked = call.json(_Receipt) if call.body.strip() else _Receipt()
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
        messages = call.json(_Messages).messages
        if sum(map(len, messages.values())) > _MAX_MESSAGES:
            raise ApiError(
                413, "M_TOO_LARGE", f"messages for more than {_MAX_MESSAGES} devices: split them"
            )
        by_server: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
        for target, devices in messages.items():
            server = target.partition(":")[2]
            if not target.startswith("@") or not server:
                raise invalid("messages", target, "user IDs as keys")
            by_server.setdefault(server, {})[target] = devices
        # The same request has the same id, whenever it is repeated; another device's has not.
        key = idempotency_key("to_device", user, *scope, event_type, txn)
        envelope = {"sender": user, "type": event_type, "message_id": key[:16]}
        ours = by_server.pop(self._services.server_name, {})
        self._check_reach(bool(ours), by_server.keys())
        if ours:
            await self._send_here(ours, envelope, key)
        edus = self._services.edus
        for server, theirs in by_server.items():
            assert edus is not None
            content = {**envelope, "messages": theirs}
            queue = partial(
                edus.build_and_send_edu,
                server,
                "m.direct_to_device",
                content,
                transaction_id=idempotency_key(key, server),
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
        self,
        messages: dict[str, dict[str, dict[str, Any]]],
        envelope: dict[str, str],
        transaction_id: str,
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
    except LogUnavailable as error:
        raise busy(503, str(error)) from error
    except ValueError as error:
        raise ApiError(400, "M_INVALID_PARAM", str(error)) from None
