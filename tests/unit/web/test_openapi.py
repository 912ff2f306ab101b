"""The description of the API is that of the site."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import tcprepl
from tcprepl.replication.status import LinkStatus
from tests.unit.web.test_client_api import World
from tests.web_site import Stage


def described() -> Any:
    """Return the document of a site with every face."""
    world = World()
    found = world.get("/openapi.json").json
    world.queue.close()
    world.close()
    return found


def test_every_route_is_described() -> None:
    """With its method, by its template."""
    world = World()
    router: Any = world.site.resource
    served = {(route.template, route.method.lower()) for route in router.routes}
    world.queue.close()
    world.close()
    paths = described()["paths"]
    assert served == {(path, method) for path, methods in paths.items() for method in methods}


def test_types_become_parameters_bodies_and_answers() -> None:
    """What may be left out is not null, and the kit's own refusals are told."""
    rows = described()["paths"]["/_tcprepl/v1/streams/{stream}/rows"]["post"]
    shapes = {one["name"]: (one["required"], one["schema"]) for one in rows["parameters"]}
    assert shapes["stream"][0]
    assert shapes["batch"][1]["type"] == "boolean"
    assert shapes["instance"][1]["maxLength"] == 255
    body = rows["requestBody"]["content"]["application/json"]["schema"]
    assert (body["type"], body["minItems"]) == ("array", 1)
    refusals = {"400", "401", "403", "404", "409", "413", "429", "503"}
    assert rows["responses"].keys() == {"200", *refusals}
    reference = rows["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    assert reference == "#/components/schemas/Published"
    health = described()["paths"]["/health"]["get"]
    assert "security" not in health
    assert health["responses"].keys() == {"200", "503"}


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
    """Each member by its name, in each kind."""
    schema = described()["components"]["schemas"]["Missing"]
    stage = Stage()
    stage.publish("audit", 1)
    stage.log.trim("audit", "master", 1)
    stage.lose("audit", 4)
    kinds = []
    for position, headers in ((0, {}), (1, {}), (4, {"Tcprepl-Incarnation": "another"})):
        answer = stage.ask("GET", f"/_synapse/replication?audit={position}", headers=headers)
        assert answer.status == 410
        assert answer.json.keys() == set(schema["required"]) == schema["properties"].keys()
        kinds.append(answer.json["errcode"])
    assert sorted(kinds) == sorted(schema["properties"]["errcode"]["enum"])
    stage.close()


def test_links_are_described() -> None:
    """All that the status says of one."""
    schemas = described()["components"]["schemas"]
    links = schemas["Status"]["properties"]["links"]["items"]["$ref"]
    told = schemas[links.rpartition("/")[2]]["properties"].keys()
    assert told == {field.name for field in fields(LinkStatus)}


def test_the_page_on_http_names_our_paths() -> None:
    """Those of Matrix, of which there are many, in one line."""
    told = (Path(tcprepl.__file__).parent / "docs" / "http.md").read_text(encoding="utf-8")
    ours = {path for path in described()["paths"] if not path.startswith("/_matrix/")}
    assert {path for path in ours if path not in told} == set()
