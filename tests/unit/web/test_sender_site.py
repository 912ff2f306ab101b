"""The site of a federation sender, without a sender."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from tcprepl import __version__
from tcprepl.federation.sending.commit_queue import OutboxUnavailable
from tcprepl.http.security import Gate
from tcprepl.replication.status import LinkStatus
from tcprepl.web.sender_site import SenderServices, build_sender_site

LINE = {
    "destination": "y.example",
    "state": "waiting",
    "why": "it said \u202e no",
    "queued_edus": 1,
}


def link(*, up: bool) -> LinkStatus:
    return LinkStatus("127.0.0.1:9092", "writer", up, 7.0, "it left", 1, 5)


class Stage:
    """A site whose sender is whatever a test says."""

    def __init__(self, gate: Gate | None = None) -> None:
        self.body = b""
        self.trouble: str | None = None
        self.links = [link(up=True)]
        self.found: Deferred[Any] = succeed([LINE])
        self.site = build_sender_site(
            SenderServices(
                reactor=Clock(),
                gate=gate or Gate(()),
                name="fed1",
                server_name=lambda: "x.example",
                trouble=lambda: self.trouble,
                links=lambda: self.links,
                destinations=lambda: self.found,
            )
        )

    def get(self, path: str, *headers: str) -> tuple[int, Any]:
        """Ask, and return the status and what the JSON says."""
        peer = IPv4Address("TCP", "127.0.0.1", 1)
        channel: Any = self.site.buildProtocol(peer)
        transport: Any = StringTransport(peerAddress=peer)
        channel.makeConnection(transport)
        lines = [f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
        channel.dataReceived("\r\n".join(lines).encode())
        head, _, self.body = transport.value().partition(b"\r\n\r\n")
        is_json = b"Content-Type: application/json" in head
        return int(head.split(b" ")[1]), json.loads(self.body) if is_json else self.body.decode()


def test_it_is_healthy_while_it_sends() -> None:
    assert Stage().get("/health") == (200, {"live": True, "ready": True})


def test_a_writer_that_is_away_degrades_it() -> None:
    """What waits in the outbox leaves all the same."""
    stage = Stage()
    stage.links = [link(up=False)]
    words = "writer 127.0.0.1:9092: away for 7 s (it left)"
    assert stage.get("/health") == (200, {"live": True, "ready": True, "degraded": [words]})


def test_one_that_does_not_send_says_why() -> None:
    stage = Stage()
    stage.trouble = "it stands by"
    stage.links = []
    stage.found = Deferred()  # there is nothing to be asked yet
    answer = {"live": True, "ready": False, "reason": "it stands by"}
    assert stage.get("/health") == (503, answer)
    status, said = stage.get("/_tcprepl/v1/status")
    assert (status, said["ready"], said["reason"]) == (200, False, "it stands by")
    assert said["destinations"] == []


def test_the_status_has_what_waits_for_whom() -> None:
    """What other servers have said does nothing to a terminal."""
    stage = Stage()
    status, said = stage.get("/_tcprepl/v1/status")
    assert status == 200
    assert b"it said \\u202e no" in stage.body
    assert said == {
        "server_name": "x.example",
        "name": "fed1",
        "version": __version__,
        "ready": True,
        "reason": None,
        "links": [
            {
                "name": "127.0.0.1:9092",
                "kind": "writer",
                "up": True,
                "seconds": 7.0,
                "reason": "it left",
                "reconnects": 1,
                "rows": 5,
                "gaps": 0,
                "newest_gaps": [],
                "idle_seconds": None,
                "silent_moves": [],
            }
        ],
        "destinations": [LINE],
    }


def test_an_outbox_that_cannot_be_read_is_the_reason() -> None:
    stage = Stage()
    stage.found = fail(OutboxUnavailable("outbox.sqlite3: disk I/O error"))
    status, said = stage.get("/_tcprepl/v1/status")
    assert (status, said["ready"], said["destinations"]) == (200, False, [])
    assert said["reason"] == "outbox.sqlite3: disk I/O error"


def test_metrics_are_there() -> None:
    status, text = Stage().get("/metrics")
    assert status == 200
    assert "# TYPE tcprepl_outbox_oldest_seconds gauge" in text


def test_everything_is_described() -> None:
    status, said = Stage().get("/openapi.json")
    assert status == 200
    assert set(said["paths"]) == {"/openapi.json", "/health", "/metrics", "/_tcprepl/v1/status"}


@pytest.mark.parametrize("path", ["/metrics", "/_tcprepl/v1/status"])
def test_a_secret_is_asked_for(path: str) -> None:
    """But not of who only asks whether it lives."""
    stage = Stage(Gate(["long enough"]))
    assert stage.get(path)[0] == 401
    assert stage.get(path, "Authorization: Bearer long enough")[0] == 200
    assert stage.get("/health")[0] == 200
