"""The OpenAPI description of the site, made of its routes (``GET /openapi.json``).

Every route has an entry in `OPERATIONS`; a route without one is a mistake that the unit tests
find. What the site does not serve (a face without its writer) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from tcprepl import __version__, limits
from tcprepl.http.routing import Call, Response, Route
from tcprepl.ids import StreamName
from tcprepl.web.services import WebServices

Json: TypeAlias = dict[str, Any]

_TOKEN: Json = {"type": "integer", "minimum": 0, "maximum": limits.MAX_TOKEN}
_POSITION: Json = {
    "anyOf": [_TOKEN, {"type": "string", "pattern": "^[^,~]+~[0-9]+(,[^,~]+~[0-9]+)*$"}],
    "description": "A number, or instance~number for each writer, joined by commas.",
}
_EMPTY: Json = {"type": "object", "additionalProperties": False}
_TEXT: Json = {"type": "string"}

_SCHEMAS: dict[str, Json] = {
    "Error": {
        "type": "object",
        "required": ["errcode", "error"],
        "properties": {
            "errcode": {"type": "string", "description": "Which kind of refusal."},
            "error": {"type": "string", "description": "What is wrong, and what was expected."},
        },
    },
    "Missing": {
        "type": "object",
        "required": ["errcode", "error", "stream", "instance", "held", "parameter", "position"],
        "properties": {
            "errcode": {"enum": ["TCPREPL_TOKEN_TOO_OLD", "TCPREPL_ROWS_MISSING"]},
            "error": {"type": "string", "description": "Which rows, and why."},
            "stream": _TEXT,
            "instance": {"type": "string", "description": "Whose rows."},
            "held": {**_TOKEN, "description": "Where to go on: behind what is missing."},
            "parameter": {"type": "string", "description": "Whose position is meant."},
            "position": {**_POSITION, "description": "What to ask with instead."},
        },
    },
    "Appended": {
        "type": "object",
        "required": ["stream", "instance", "first", "last"],
        "properties": {"stream": _TEXT, "instance": _TEXT, "first": _TOKEN, "last": _TOKEN},
        "additionalProperties": False,
    },
    "Table": {
        "type": "object",
        "required": ["position", "field_names", "rows"],
        "properties": {
            "position": {"type": ["integer", "string"]},
            "field_names": {"type": "array", "items": _TEXT},
            "rows": {"type": "array", "items": {"type": "array"}},
        },
        "additionalProperties": False,
    },
    "Updates": {
        "type": "object",
        "required": ["updates", "upto_token", "limited"],
        "properties": {
            "updates": {
                "type": "array",
                "items": {"type": "array", "minItems": 2, "maxItems": 2},
                "description": "[token, row], ascending; equal tokens belong together.",
            },
            "upto_token": {"type": "integer"},
            "limited": {
                "type": "boolean",
                "description": "Whether there is more up to the token asked for; ask on.",
            },
            "missing": {
                "type": "array",
                "items": {"type": "integer"},
                "minItems": 2,
                "maxItems": 2,
                "description": "After and up to which token rows are past retention, or in a "
                "gap: the upstream of a relay could not tell them, or began anew.",
            },
        },
        "additionalProperties": False,
    },
    "Health": {
        "type": "object",
        "required": ["live", "ready"],
        "properties": {
            "live": {"type": "boolean"},
            "ready": {"type": "boolean"},
            "reason": _TEXT,
        },
        "additionalProperties": False,
    },
    "Status": {
        "type": "object",
        "required": [
            "server_name",
            "instance",
            "version",
            "ready",
            "streams",
            "peers",
            "closed",
            "destinations",
        ],
        "properties": {
            "server_name": _TEXT,
            "instance": _TEXT,
            "version": _TEXT,
            "ready": {"type": "boolean"},
            "reason": {"type": ["string", "null"]},
            "uptime_seconds": {"type": "number"},
            "rows_per_second": {"type": "number"},
            "streams": {"type": "array", "items": {"type": "object"}},
            "peers": {"type": "array", "items": {"type": "object"}},
            "closed": {"type": "object", "additionalProperties": {"type": "integer"}},
            "destinations": {"type": "array", "items": {"type": "object"}},
            "links": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "kind", "up", "seconds", "reason", "rows", "gaps"],
                    "properties": {
                        "name": _TEXT,
                        "kind": {"enum": ["upstream", "redis"]},
                        "up": {"type": "boolean"},
                        "seconds": {"type": "number", "description": "Up, or away, for so long."},
                        "reason": {"type": ["string", "null"]},
                        "reconnects": {"type": "integer"},
                        "rows": {"type": "integer"},
                        "gaps": {"type": "integer"},
                        "newest_gaps": {"type": "array", "items": _TEXT},
                        "idle_seconds": {
                            "type": ["number", "null"],
                            "description": "How long ago the last row came.",
                        },
                    },
                },
                "description": "The upstream of a relay, and the Redis that is published to.",
            },
        },
    },
}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(description: str, schema: Json, media_type: str = "application/json") -> Json:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _errors(*statuses: int) -> dict[str, Json]:
    meaning = {
        400: "The request is not as described; the error says which part.",
        401: "A secret or a token is needed, or is wrong.",
        403: "Not for this caller.",
        404: "There is no such stream or path.",
        406: "A row cannot be said in MessagePack.",
        409: "The position was never written.",
        413: "Too much for one request.",
        429: "The log cannot keep up: come back after Retry-After.",
        503: "The log cannot be written: come back after Retry-After.",
    }
    return {str(status): _answer(meaning[status], _ref("Error")) for status in statuses}


def _query(name: str, schema: Json, description: str, *, required: bool = False) -> Json:
    return {
        "name": name,
        "in": "query",
        "schema": schema,
        "description": description,
        "required": required,
    }


def _body(schema: Json) -> Json:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


_GUARDED: Json = {"security": [{"secret": []}, {}]}
_CLIENT: Json = {"security": [{"token": []}, {}]}
_TOKEN_QUERY = [_query("access_token", _TEXT, "The token; the header is the better place.")]
_IDENTITY = [
    _query("user_id", _TEXT, "For whom the token speaks, where it may speak for several."),
    *_TOKEN_QUERY,
]
_OBJECTS = {"type": "object", "additionalProperties": _ref("Table")}

#: What is told of each route, by method and path (of the client paths: without their version).
OPERATIONS: dict[tuple[str, str], Json] = {
    ("GET", "/"): {
        "summary": "The status page, for people",
        "responses": {
            "200": _answer("The page.", _TEXT, "text/html; charset=utf-8"),
            **_errors(401, 403),
        },
        **_GUARDED,
    },
    ("GET", "/health"): {
        "summary": "Whether the process lives and can serve",
        "responses": {
            "200": _answer("It can serve.", _ref("Health")),
            "503": _answer("It cannot; the reason says why.", _ref("Health")),
        },
    },
    ("GET", "/metrics"): {
        "summary": "Every metric, in the Prometheus text format",
        "responses": {"200": _answer("The metrics.", _TEXT, "text/plain"), **_errors(401, 403)},
        **_GUARDED,
    },
    ("GET", "/openapi.json"): {
        "summary": "This document",
        "responses": {"200": _answer("The document.", {"type": "object"})},
    },
    ("GET", "/_tcprepl/v1/status"): {
        "summary": "Streams, peers, destinations and links",
        "responses": {"200": _answer("The state now.", _ref("Status")), **_errors(401, 403)},
        **_GUARDED,
    },
    ("GET", "/_tcprepl/v1/events"): {
        "summary": "The parts of the status page, every second, as server-sent events",
        "responses": {
            "200": _answer("Goes on until the client leaves.", _TEXT, "text/event-stream"),
            **_errors(401, 403, 503),
        },
        **_GUARDED,
    },
    ("POST", "/_tcprepl/v1/streams/{stream}/rows"): {
        "summary": "Publish rows: all of them, or none",
        "parameters": [
            _query("batch", {"type": "boolean"}, "Whether all rows share one token."),
            _query(
                "instance",
                {"type": "string", "minLength": 1, "maxLength": limits.MAX_NAME_CHARS},
                "The writing instance, if it is another one.",
            ),
            _query(
                "txn_id",
                {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": limits.MAX_TRANSACTION_ID_CHARS,
                },
                "Makes the request safe to repeat; the header Idempotency-Key says the same.",
            ),
        ],
        "requestBody": _body(
            {"type": "array", "items": {}, "minItems": 1, "maxItems": limits.MAX_INGEST_ROWS}
        ),
        "responses": {
            "200": _answer("The tokens that the rows got.", _ref("Appended")),
            **_errors(400, 401, 403, 404, 413, 429, 503),
        },
        **_GUARDED,
    },
    ("POST", "/_tcprepl/v1/federation_ack"): {
        "summary": "Say that a federation sender holds everything up to a token",
        "requestBody": _body(
            {
                "type": "object",
                "required": ["instance", "token"],
                "properties": {"instance": _TEXT, "token": _TOKEN},
                "additionalProperties": False,
            }
        ),
        "responses": {
            "200": _answer("It counts.", {"type": "object"}),
            **_errors(400, 401, 403, 404, 409, 413),
        },
        **_GUARDED,
    },
    ("GET", "/_synapse/replication"): {
        "summary": "Follow streams: answers as soon as there is a row, or after the timeout",
        "description": (
            "Any stream or table is a parameter too, with the position to read after; "
            "-1 is the start, or behind the last gap of a relay."
        ),
        "parameters": [
            _query(
                "streams",
                {"type": "string", "pattern": "^(-1|[0-9]{1,18}(_[0-9]{1,18})*)$"},
                "-1 for the position of every stream now, or the joined token to wait beyond.",
            ),
            _query("typing", {"type": "integer", "minimum": -1}, "For instance."),
            _query("receipts", {"type": "integer", "minimum": -1}, "For instance."),
            _query(
                "timeout",
                {
                    "type": "integer",
                    "minimum": 0,
                    "default": limits.POLL_TIMEOUT_MS,
                },
                f"How long to wait for a row, in ms; {limits.MAX_POLL_TIMEOUT_MS} at most.",
            ),
            _query(
                "limit",
                {
                    "type": "integer",
                    "minimum": 1,
                    "default": limits.POLL_LIMIT_ROWS,
                },
                f"Most rows of a stream; {limits.MAX_POLL_LIMIT_ROWS} at most.",
            ),
            _query("format", {"enum": ["object", "table"]}, "The shape of the answer."),
        ],
        "responses": {
            "200": {
                "description": "The tables that have rows, or whose position moved.",
                "content": {
                    "application/json": {
                        "schema": {"anyOf": [_OBJECTS, {"type": "array", "items": {}}]}
                    },
                    "application/msgpack": {"schema": {}},
                },
            },
            "410": _answer(
                "Rows after the position are past retention, or it stands in a gap of a relay.",
                _ref("Missing"),
            ),
            **_errors(400, 401, 403, 406, 409),
        },
        **_GUARDED,
    },
    ("GET", "/_synapse/replication/get_repl_stream_updates/{stream}/{txn}"): {
        "summary": "What a Synapse worker missed: whole tokens of (from_token, upto_token]",
        "parameters": [
            _query("from_token", {"type": "integer"}, "Exclusive.", required=True),
            _query("upto_token", {"type": "integer"}, "Inclusive.", required=True),
            _query("instance", {"type": "string", "minLength": 1}, "Whose rows, if not our own."),
        ],
        "responses": {
            "200": _answer("The rows.", _ref("Updates")),
            **_errors(400, 401, 403),
        },
        **_GUARDED,
    },
    ("GET", "/_matrix/client/versions"): {
        "summary": "Which versions of the client-server specification the paths are of",
        "responses": {"200": _answer("The versions.", {"type": "object"}), **_errors(403)},
    },
    ("GET", "/login"): {
        "summary": "How to log in",
        "responses": {"200": _answer("The ways.", {"type": "object"}), **_errors(403)},
    },
    ("POST", "/login"): {
        "summary": "Get a token for one user",
        "requestBody": _body(
            {
                "type": "object",
                "required": ["type"],
                "properties": {
                    "type": {"enum": ["m.login.token", "m.login.application_service"]},
                    "token": _TEXT,
                    "identifier": {
                        "type": "object",
                        "required": ["user"],
                        "properties": {"type": _TEXT, "user": _TEXT},
                    },
                    "device_id": _TEXT,
                },
            }
        ),
        "responses": {
            "200": _answer("The token.", {"type": "object", "required": ["access_token"]}),
            **_errors(400, 401, 403),
        },
        **_CLIENT,
    },
    ("GET", "/account/whoami"): {
        "summary": "For whom a token speaks",
        "parameters": _IDENTITY,
        "responses": {"200": _answer("The user.", {"type": "object"}), **_errors(400, 401, 403)},
        **_CLIENT,
    },
    ("PUT", "/rooms/{room_id}/typing/{user_id}"): {
        "summary": "A user types, or has stopped",
        "parameters": _TOKEN_QUERY,
        "requestBody": _body(
            {
                "type": "object",
                "required": ["typing"],
                "properties": {
                    "typing": {"type": "boolean"},
                    "timeout": {"type": "integer", "minimum": 0},
                },
            }
        ),
        "responses": {"200": _answer("Noted.", _EMPTY), **_errors(400, 401, 403)},
        **_CLIENT,
    },
    ("PUT", "/presence/{user_id}/status"): {
        "summary": "How a user is",
        "parameters": _TOKEN_QUERY,
        "requestBody": _body(
            {
                "type": "object",
                "required": ["presence"],
                "properties": {
                    "presence": {"enum": ["online", "offline", "unavailable", "busy"]},
                    "status_msg": {"type": ["string", "null"]},
                },
            }
        ),
        "responses": {"200": _answer("Noted.", _EMPTY), **_errors(400, 401, 403)},
        **_CLIENT,
    },
    ("GET", "/presence/{user_id}/status"): {
        "summary": "How a user is",
        "parameters": _TOKEN_QUERY,
        "responses": {
            "200": _answer("The state.", {"type": "object", "required": ["presence"]}),
            **_errors(400, 401, 403),
        },
        **_CLIENT,
    },
    ("POST", "/rooms/{room_id}/receipt/{receipt_type}/{event_id}"): {
        "summary": "A user has read up to an event",
        "parameters": _IDENTITY,
        "requestBody": {
            "required": False,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "properties": {"thread_id": {"type": ["string", "null"]}},
                    }
                }
            },
        },
        "responses": {"200": _answer("On disk.", _EMPTY), **_errors(400, 401, 403, 503)},
        **_CLIENT,
    },
    ("PUT", "/sendToDevice/{event_type}/{txn}"): {
        "summary": "Messages for devices; safe to repeat",
        "parameters": _IDENTITY,
        "requestBody": _body(
            {
                "type": "object",
                "required": ["messages"],
                "properties": {
                    "messages": {
                        "type": "object",
                        "additionalProperties": {
                            "type": "object",
                            "additionalProperties": {"type": "object"},
                        },
                    }
                },
            }
        ),
        "responses": {
            "200": _answer("On disk.", _EMPTY),
            **_errors(400, 401, 403, 404, 413, 429, 503),
        },
        **_CLIENT,
    },
}


_HOSTS: Json = {
    "type": "object",
    "required": ["hosts"],
    "properties": {"hosts": {"type": "array", "items": _TEXT}},
}

#: The same of resources that other rooms mount, by method, prefix and path.
MOUNTED: dict[tuple[str, str, str], Json] = {
    ("POST", "/_tcprepl/v1/edus", "/_tcprepl/v1/edus"): {
        "summary": "Queue an EDU for other servers",
        "requestBody": _body(
            {
                "type": "object",
                "required": ["edu_type", "content"],
                "properties": {
                    "destination": _TEXT,
                    "destinations": {"type": "array", "items": _TEXT},
                    "edu_type": _TEXT,
                    "content": {"type": "object"},
                    "key": {"type": "array", "items": {"type": ["string", "integer", "null"]}},
                    "transaction_id": _TEXT,
                },
                "additionalProperties": False,
            }
        ),
        "responses": {
            "200": _answer("On disk.", {"type": "object", "required": ["queued"]}),
            **_errors(400, 401, 403, 413, 429, 503),
        },
        **_GUARDED,
    },
    ("GET", "/_tcprepl/v1/rooms", "/_tcprepl/v1/rooms/{roomId}/hosts"): {
        "summary": "Which servers are in a room",
        "responses": {"200": _answer("The servers.", _HOSTS), **_errors(400, 401, 403, 404)},
        **_GUARDED,
    },
    ("PUT", "/_tcprepl/v1/rooms", "/_tcprepl/v1/rooms/{roomId}/hosts"): {
        "summary": "Tell which servers are in a room",
        "requestBody": _body({**_HOSTS, "additionalProperties": False}),
        "responses": {"200": _answer("The servers.", _HOSTS), **_errors(400, 401, 403, 404, 413)},
        **_GUARDED,
    },
}

#: What the arguments of paths look like.
_ARGUMENTS: dict[str, Json] = {
    "room_id": {"type": "string", "pattern": "^![A-Za-z0-9]{1,32}:[a-z0-9.]{1,32}$"},
    "roomId": {"type": "string", "pattern": "^![A-Za-z0-9]{1,32}:[a-z0-9.]{1,32}$"},
    "event_id": {"type": "string", "pattern": "^[$][A-Za-z0-9_-]{1,64}$"},
    "receipt_type": {"enum": ["m.read", "m.read.private"]},
}


def document(
    routes: Iterable[Route],
    mounts: Collection[str] = (),
    streams: Sequence[StreamName] = (),
    server_name: str = "",
) -> Json:
    """Return the description of *routes*.

    Args:
        routes: What the router serves.
        mounts: The prefixes of other rooms' resources; those in `MOUNTED` are described.
        streams: The names that a path may have for a stream.
        server_name: The server of the users that a path may name.

    Raises:
        KeyError: a route has no entry in `OPERATIONS`.
    """
    served = [(route.method, route.template, operation_of(route)) for route in routes]
    served += [
        (method, path, operation)
        for (method, prefix, path), operation in MOUNTED.items()
        if prefix in mounts
    ]
    shapes = {**_ARGUMENTS, "stream": {"enum": [*streams]}}
    shapes["user_id"] = {
        "type": "string",
        "pattern": f"^@[a-z0-9._=-]{{1,32}}:{re.escape(server_name)}$",
    }
    paths: dict[str, dict[str, Json]] = {}
    for method, path, told in served:
        operation = dict(told)
        arguments = [
            {
                "name": part[1:-1],
                "in": "path",
                "required": True,
                "schema": shapes.get(part[1:-1], {"type": "string", "minLength": 1}),
            }
            for part in path.split("/")
            if part.startswith("{")
        ]
        queries = [
            {**found, "schema": shapes.get(found["name"], found["schema"])}
            for found in operation.get("parameters", ())
        ]
        operation["parameters"] = [*arguments, *queries]
        paths.setdefault(path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tcprepl",
            "version": __version__,
            "description": "The HTTP faces of a replication server; protocol.md section 13.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {
                "secret": {"type": "http", "scheme": "bearer"},
                "token": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def operation_of(route: Route) -> Mapping[str, Any]:
    """Return what is told of *route*."""
    template = route.template
    for version in ("v3", "r0"):
        template = template.removeprefix(f"/_matrix/client/{version}")
    return OPERATIONS[route.method, template]


class Document:
    """Serves the description of *routes*, which may be completed after the route was made."""

    def __init__(self) -> None:
        self._encoded = b""

    def describe(self, routes: Iterable[Route], services: WebServices) -> None:
        """Make the document."""
        names = services.registry.names()
        self._encoded = msgspec.json.encode(
            document(routes, services.mounts.keys(), names, services.server_name)
        )

    def get_document(self, call: Call) -> Response:
        """Answer the document."""
        return Response(200, self._encoded)
