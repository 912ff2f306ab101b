"""Every face on its path."""

from __future__ import annotations

from typing import Any

from twisted.web.resource import Resource

from tests.web_site import Stage


class Elsewhere(Resource):
    """A face of another room."""

    def render_GET(self, request: Any) -> bytes:
        """Answer something."""
        return b"elsewhere"


def test_the_faces_are_there() -> None:
    """Each answers on its path."""
    stage = Stage()
    for path in ("/", "/health", "/metrics", "/openapi.json", "/_tcprepl/v1/status"):
        assert stage.get(path).status == 200
    assert stage.get("/_synapse/replication", streams=-1).status == 200
    assert stage.get("/_synapse").status == 404
    stage.close()


def test_other_rooms_bring_faces_of_their_own() -> None:
    """By prefix; they have the same bounds."""
    stage = Stage(mounts={"/_matrix/key/v2/server": Elsewhere()})
    assert stage.get("/_matrix/key/v2/server").body == b"elsewhere"
    assert stage.get("/_matrix/key/v2/other").status == 404
    assert stage.get("/health").status == 200
    stage.close()
