"""Every face on its path."""

from __future__ import annotations

from tcprepl.http.calls import Call, Response
from tcprepl.http.routing import About, Route
from tcprepl.http.security import Gate
from tcprepl.web.services import HttpLimits
from tests.web_site import Stage


def test_the_faces_are_there() -> None:
    """Each answers on its path."""
    stage = Stage()
    for path in ("/", "/health", "/metrics", "/openapi.json", "/_tcprepl/v1/status"):
        assert stage.get(path).status == 200
    assert stage.get("/_synapse/replication", streams=-1).status == 200
    assert stage.get("/_synapse").status == 404
    stage.close()


def test_other_rooms_bring_faces_of_their_own() -> None:
    """They have the same guards, headers and description."""

    def elsewhere(gate: Gate) -> list[Route]:
        def answer(call: Call) -> Response:
            return Response(200, b"elsewhere", "text/plain")

        return [Route("GET", "/else/where", answer, gate.operating, About("Somewhere else"))]

    stage = Stage(further=elsewhere)
    answer = stage.get("/else/where")
    assert answer.body == b"elsewhere"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert stage.ask("GET", "/else/where", headers={"Host": "evil.example"}).status == 403
    assert stage.get("/openapi.json").json["paths"]["/else/where"]["get"]["summary"]
    stage.close()


def test_who_is_let_in_may_change_while_it_serves() -> None:
    """Secrets, tokens of clients, and the longest body; whoever changed them says so."""
    stage = Stage(secrets=("old",), client_tokens={"client": "@a:example.com"})

    def status(token: str, path: str = "/metrics") -> int:
        return stage.ask("GET", path, headers={"Authorization": f"Bearer {token}"}).status

    whoami = "/_matrix/client/v3/account/whoami"
    assert status("old") == status("client", whoami) == 200
    stage.services.secrets = ("new",)
    stage.services.client_tokens = {"other": "@a:example.com"}
    stage.services.limits = HttpLimits(max_body_bytes=7)
    assert status("old") == 200
    stage.site.changed()
    assert status("old") == status("client", whoami) == 401
    assert status("new") == status("other", whoami) == 200
    assert stage.site.max_body_bytes == 7
    stage.close()
