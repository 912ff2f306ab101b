"""Samples, the status, and who watches."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from tcprepl import limits
from tcprepl.replication.status import LinkStatus, PeerStatus, ServerStatus
from tcprepl.web.plots import SPARK_POINTS as HISTORY
from tests.web_site import Exchange, Stage


class Server:
    """A replication server that tells what the test wants."""

    def __init__(self) -> None:
        self.behind = {1: 10}
        self.links: list[LinkStatus] = []

    def status(self) -> ServerStatus:
        """Return the peers."""
        peers = [
            PeerStatus(number, "w", "here", "1.22", "behind", rows, 0, 1.0, None, 0.0, 0, 0, 0, 1.0)
            for number, rows in self.behind.items()
        ]
        return ServerStatus("example.com", "master", 5.0, [], peers, links=self.links)

    def lags(self, also: Iterable[int]) -> dict[int, int]:
        """Return who is behind, and of the others those that are asked for."""
        asked = set(also)
        return {number: rows for number, rows in self.behind.items() if rows or number in asked}


@pytest.fixture
def stage() -> Any:
    """A site that listens, checked for leftovers."""
    stage = Stage()
    stage.site.startFactory()
    yield stage
    stage.close()


def events(exchange: Exchange) -> list[dict[str, str]]:
    """Return the events that have come."""
    body = exchange.transport.value().partition(b"\r\n\r\n")[2].decode()
    return [
        json.loads(line[6:])
        for line in body.replace("\r\n", "\n").split("\n")
        if line.startswith("data: ")
    ]


def test_status_has_positions_and_rates(stage: Stage) -> None:
    """Rates are those of the last second."""
    stage.clock.advance(1)
    stage.publish("audit", 1, 2, 3)
    stage.clock.advance(1)
    found = stage.get("/_tcprepl/v1/status").json
    assert (found["server_name"], found["instance"], found["ready"]) == (
        "example.com",
        "master",
        True,
    )
    assert found["rows_per_second"] == 3.0
    assert found["streams"] == [
        {
            "stream": "audit",
            "instance": "master",
            "position": 3,
            "floor": 0,
            "rows": 3,
            "bytes": len(b"RDATA audit master 1 1\n") * 3,
            "rows_per_second": 3.0,
        }
    ]
    stage.clock.advance(1)
    assert stage.get("/_tcprepl/v1/status").json["rows_per_second"] == 0.0


def test_status_has_the_peers_of_the_server_and_the_destinations() -> None:
    """What the line protocol and the sender tell."""
    stage = Stage(replication_server=Server(), destinations=lambda: iter([{"destination": "d"}]))
    found = stage.get("/_tcprepl/v1/status").json
    assert found["peers"][0]["behind_rows"] == 10
    assert found["destinations"] == [{"destination": "d"}]
    stage.close()


def test_links_are_in_the_status_the_page_and_each_sample() -> None:
    """Also when they come to be while somebody watches, and when they go away."""
    server = Server()
    stage = Stage(replication_server=server)
    stage.site.startFactory()
    watching = stage.open("GET", "/_tcprepl/v1/events")
    link = LinkStatus("redis://h", "upstream", True, 5.0, None, 0, 7, 1, ["a gap"], 2.0)
    server.links = [link]
    found = stage.get("/_tcprepl/v1/status").json["links"]
    assert (found[0]["up"], found[0]["idle_seconds"], found[0]["newest_gaps"]) == (
        True,
        2.0,
        ["a gap"],
    )
    assert b"<li>a gap</li>" in stage.get("/").body
    stage.clock.advance(1)
    server.links = [replace(link, up=False, reason="cut")]
    stage.clock.advance(1)
    first, second, third = events(watching)
    assert first["links"] == ""
    assert "a gap" in second["links"]
    assert "away" not in second["state"]
    assert "upstream away" in third["state"]
    assert "cut" in third["links"]
    watching.leave()
    stage.close()


def test_the_page_is_complete_at_once(stage: Stage) -> None:
    """Without a sample, without a script."""
    stage.publish("typing", ["!r:x", ["@a:x"]])
    answer = stage.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert b"<code>typing</code>" in answer.body


def test_who_watches_gets_each_sample(stage: Stage) -> None:
    """The present state at once, then one event a second."""
    exchange = stage.open("GET", "/_tcprepl/v1/events")
    assert b"Content-Type: text/event-stream" in exchange.transport.value()
    assert len(events(exchange)) == 1
    stage.publish("typing", ["!r:x", ["@a:x"]])
    stage.clock.advance(1)
    first, second = events(exchange)
    assert "typing" not in first["streams"].partition("Not written")[0]
    assert "<code>typing</code>" in second["streams"]
    exchange.leave()
    stage.clock.advance(1)


def test_a_slow_viewer_misses_samples(stage: Stage) -> None:
    """Nothing is buffered for it."""
    exchange = stage.open("GET", "/_tcprepl/v1/events")
    exchange.channel.pauseProducing()
    stage.clock.advance(1)
    assert len(events(exchange)) == 1
    exchange.channel.resumeProducing()
    stage.clock.advance(1)
    assert len(events(exchange)) == 2
    exchange.channel.pauseProducing()
    stage.clock.advance(1)
    assert len(events(exchange)) == 2
    exchange.leave()


def test_viewers_are_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is told to come back."""
    monkeypatch.setattr(limits, "MAX_STATUS_VIEWERS", 1)
    first = stage.open("GET", "/_tcprepl/v1/events")
    second = stage.open("GET", "/_tcprepl/v1/events")
    assert second.answer.error[:2] == (503, "M_LIMIT_EXCEEDED")
    first.leave()
    third = stage.open("GET", "/_tcprepl/v1/events")
    assert third.answer.status == 200
    for exchange in (second, third):
        exchange.leave()


def test_nobody_begins_to_watch_a_server_that_ends(stage: Stage) -> None:
    """Whoever does would not be told of its end."""
    stage.site.drain()
    answer = stage.get("/_tcprepl/v1/events")
    assert answer.error[:2] == (503, "M_LIMIT_EXCEEDED")
    assert answer.headers["retry-after"] == "10"


def test_head_of_the_events_ends(stage: Stage) -> None:
    """It would go on for ever."""
    assert stage.ask("HEAD", "/_tcprepl/v1/events").status == 200


def test_a_stop_ends_the_events(stage: Stage) -> None:
    """The page comes back by itself."""
    exchange = stage.open("GET", "/_tcprepl/v1/events")
    stage.site.drain()
    assert exchange.transport.value().endswith(b"0\r\n\r\n")
    exchange.leave()


def test_lag_has_a_history_while_the_peer_is_there() -> None:
    """Of two minutes; a peer that left is forgotten."""
    server = Server()
    stage = Stage(replication_server=server)
    stage.site.startFactory()
    stage.clock.pump([1.0] * 130)
    page = stage.get("/").body.decode()
    plots = [part.count(" ") for part in page.split('<polyline points="')[1:]]
    assert plots
    assert "lag of w" in page
    server.behind = {}
    stage.clock.advance(1)
    assert "lag of w" not in stage.get("/").body.decode()
    stage.close()


def test_who_was_never_behind_has_no_history() -> None:
    """Ten thousand who have nothing to do cost nothing; who caught up is shown for two minutes."""
    server = Server()
    server.behind = {1: 0, 2: 7}
    stage = Stage(replication_server=server)
    stage.site.startFactory()

    def curves() -> int:
        peers = stage.get("/").body.decode().partition('id="peers"')[2]
        return peers.count("<polyline")

    stage.clock.pump([1.0] * 5)
    assert curves() == 1
    server.behind = {1: 3, 2: 0}
    stage.clock.advance(1)
    assert curves() == 2
    server.behind = {1: 0, 2: 0}
    stage.clock.pump([1.0] * (HISTORY - 1))
    assert curves() == 1
    stage.clock.pump([1.0] * 2)
    assert curves() == 0
    stage.close()


def test_what_a_peer_is_called_can_be_shown_on_a_terminal() -> None:
    """The same JSON, whoever prints it."""
    destinations = [{"destination": "x", "why": "a\u202eb\x9b2J\ud800"}]
    stage = Stage(destinations=lambda: destinations)
    answer = stage.get("/_tcprepl/v1/status")
    assert answer.json["destinations"] == destinations
    assert b"a\\u202eb\\u009b2J\\ud800" in answer.body
    stage.close()
