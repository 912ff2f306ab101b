"""The description of the API is that of the site."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from tcprepl.http.routing import Call, Response, Route
from tcprepl.replication.status import LinkStatus
from tcprepl.web.openapi import MOUNTED, OPERATIONS, document, operation_of
from tests.unit.web.test_client_api import World
from tests.web_site import Stage


def described() -> Any:
    """Return the document of a site with every face."""
    world = World()
    found = world.get("/openapi.json").json
    world.queue.close()
    world.close()
    return found


def nothing(call: Call) -> Response:
    """Answer nothing."""
    return Response()


def test_every_operation_is_served_and_described() -> None:
    """No entry without a route, no route without an entry."""
    paths = described()["paths"]
    served = {
        (method.upper(), path.removeprefix("/_matrix/client/v3").removeprefix("/_matrix/client/r0"))
        for path, methods in paths.items()
        for method in methods
    }
    assert served == OPERATIONS.keys()


def test_every_path_argument_is_a_parameter() -> None:
    """And every reference leads somewhere."""
    found = described()
    schemas = found["components"]["schemas"]
    for path, methods in found["paths"].items():
        for operation in methods.values():
            told = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert told == {part[1:-1] for part in path.split("/") if part.startswith("{")}
            assert operation["summary"]
            assert operation["responses"]
    references = [
        part.split('"')[0]
        for part in repr(found).replace("'", '"').split("#/components/schemas/")[1:]
    ]
    assert set(references) <= schemas.keys()


def test_a_refusal_for_missing_rows_is_as_described() -> None:
    """Each member by its name, in both kinds."""
    schema = described()["components"]["schemas"]["Missing"]
    stage = Stage()
    stage.publish("audit", 1)
    stage.log.trim("audit", "master", 1)
    stage.lose("audit", 4)
    kinds = []
    for position in (0, 1):
        answer = stage.get("/_synapse/replication", audit=position)
        assert answer.status == 410
        assert answer.json.keys() == set(schema["required"]) == schema["properties"].keys()
        kinds.append(answer.json["errcode"])
    assert kinds == schema["properties"]["errcode"]["enum"]
    stage.close()


def test_links_are_described() -> None:
    """All that the status says of one."""
    status = described()["components"]["schemas"]["Status"]["properties"]
    told = status["links"]["items"]["properties"].keys()
    assert told == {field.name for field in fields(LinkStatus)}


def test_resources_of_other_rooms_are_described_where_they_are_mounted() -> None:
    """And only there."""
    paths = document([], ["/_tcprepl/v1/rooms"])["paths"]
    assert {path: sorted(methods) for path, methods in paths.items()} == {
        "/_tcprepl/v1/rooms/{roomId}/hosts": ["get", "put"]
    }
    assert len(document([], [prefix for _, prefix, _ in MOUNTED])["paths"]) == 2


def test_a_route_without_an_entry_is_a_mistake() -> None:
    """Found when the site is built."""
    route = Route("GET", "/forgotten", nothing, nothing)  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        document([route])
    known = Route("GET", "/_matrix/client/r0/login", nothing, nothing)  # type: ignore[arg-type]
    assert operation_of(known)["summary"] == "How to log in"
