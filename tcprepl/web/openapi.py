"""The OpenAPI description of the site, made of its routes (``GET /openapi.json``).

What a route reads and writes is told by the types of its handler (`tcprepl.http.routing.About`),
whose schemas are msgspec's. What the site does not serve (a face without its writer) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import msgspec

from tcprepl import __version__
from tcprepl.http.calls import JSON, Call, Response
from tcprepl.http.parameters import parameters_of
from tcprepl.http.routing import Route
from tcprepl.http.security import Gate
from tcprepl.ids import StreamName
from tcprepl.web.answers import Error

Json: TypeAlias = dict[str, Any]

_MEANINGS = {
    400: "The request is not as described; the error says which part.",
    401: "A secret, a token or a signature is needed, or is wrong.",
    403: "Not for this caller.",
    404: "There is no such stream or path.",
    406: "A row cannot be said in MessagePack.",
    409: "The position was never written, or another server writes this instance.",
    410: "Rows after the position are past retention, or it stands in a gap.",
    413: "Too much for one request.",
    429: "The server cannot keep up: come back after Retry-After.",
    503: "Not now: come back after Retry-After.",
}
#: What the arguments of paths look like.
_ARGUMENTS: dict[str, Json] = {
    "room_id": {"type": "string", "pattern": "^![A-Za-z0-9]{1,32}:[a-z0-9.]{1,32}$"},
    "roomId": {"type": "string", "pattern": "^![A-Za-z0-9]{1,32}:[a-z0-9.]{1,32}$"},
    "event_id": {"type": "string", "pattern": "^[$][A-Za-z0-9_-]{1,64}$"},
    "receipt_type": {"enum": ["m.read", "m.read.private"]},
}


def document(
    routes: Iterable[Route], streams: Sequence[StreamName] = (), server_name: str = ""
) -> Json:
    """Return the description of *routes*.

    Args:
        routes: What the site serves.
        streams: The names that a path may have for a stream.
        server_name: The server of the users that a path may name.
    """
    routes = list(routes)
    types = [type_ for route in routes for type_ in _types(route)]
    found, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    schemas = dict(zip(map(repr, types), found, strict=True))
    shapes = {**_ARGUMENTS, "stream": {"enum": [*streams]}}
    shapes["user_id"] = {
        "type": "string",
        "pattern": f"^@[a-z0-9._=-]{{1,32}}:{re.escape(server_name)}$",
    }
    paths: dict[str, Json] = {}
    for route in routes:
        methods = paths.setdefault(route.template, {})
        methods[route.method.lower()] = _operation(route, schemas, components, shapes)
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
            "schemas": components,
            "securitySchemes": {"secret": {"type": "http", "scheme": "bearer"}},
        },
    }


def _types(route: Route) -> Iterator[Any]:
    about = route.about
    yield Error
    yield from (t for t in (about.answer, about.query, about.body) if t is not None)
    yield from (type_ for type_ in about.refuses.values() if type_ is not None)
    yield from about.media.values()


def _operation(
    route: Route, schemas: dict[str, Json], components: Json, shapes: dict[str, Json]
) -> Json:
    about = route.about
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": shapes.get(name, _SOME_TEXT)}
        for name in route.arguments
    ]
    if about.query is not None:
        described = components[about.query.__name__]["properties"]
        parameters += [
            {
                "name": one.name,
                "in": "query",
                "required": one.required,
                "schema": _present(shapes.get(one.name, described[one.name])),
            }
            for one in parameters_of(about.query)
        ]
    answer = {"type": "object", "additionalProperties": False}
    if about.answer is not None:
        answer = schemas[repr(about.answer)]
    media = {kind: schemas[repr(type_)] for kind, type_ in about.media.items()} or {JSON: answer}
    refusals: dict[int, Any] = {**dict.fromkeys(_implied(route)), **about.refuses}
    operation: Json = {
        "summary": about.summary,
        "description": about.description or about.summary,
        "parameters": parameters,
        "responses": {"200": _response(about.says, media)}
        | {
            str(status): _response(
                _MEANINGS[status], {JSON: schemas[repr(refusals[status] or Error)]}
            )
            for status in sorted(refusals)
        },
    }
    if about.body is not None:
        body = {JSON: {"schema": schemas[repr(about.body)]}}
        operation["requestBody"] = {"required": about.needs_body, "content": body}
    if not _is_open(route):
        operation["security"] = [{"secret": []}, {}]
    return operation


_SOME_TEXT: Json = {"type": "string", "minLength": 1}


def _implied(route: Route) -> Iterator[int]:
    """Yield the statuses of refusals that the kit itself makes."""
    if route.about.query is not None or route.about.body is not None or route.arguments:
        yield 400
    if route.about.body is not None:
        yield from (413, 429)
    if not _is_open(route):
        yield from (401, 403, 429)


def _is_open(route: Route) -> bool:
    return getattr(route.guard, "__func__", None) is Gate.open


def _response(description: str, media: dict[str, Json]) -> Json:
    content = {kind: {"schema": schema} for kind, schema in media.items()}
    return {"description": description, "content": content}


def _present(schema: Json) -> Json:
    """Return the schema of a parameter that is there: None is one that is not."""
    if any(kind == {"type": "null"} for kind in schema.get("anyOf", ())):
        return next(kind for kind in schema["anyOf"] if kind != {"type": "null"})
    return schema


class Document:
    """Serves the description of the routes, which is made once all of them are known."""

    def __init__(self) -> None:
        self._encoded = b""

    def describe(
        self, routes: Iterable[Route], streams: Sequence[StreamName] = (), server_name: str = ""
    ) -> None:
        """Make the document; the arguments are those of `document`."""
        self._encoded = msgspec.json.encode(document(routes, streams, server_name))

    def get_document(self, call: Call) -> Response:
        """Answer the document."""
        return Response(200, self._encoded)
