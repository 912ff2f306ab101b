"""Kick and drain over HTTP: who may, what is asked for, what is refused meanwhile."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import succeed

from tcprepl.replication.serving.draining import Drain
from tests.serving_world import World
from tests.web_site import Answer, Stage


class Both:
    """A site, and a server of the line protocol on the same clock."""

    def __init__(self, **services: Any) -> None:
        self.drain: Drain | None = None
        self.world = World()
        self.stage = Stage(
            replication_server=self.world.server,
            shut=lambda: None if self.drain is None else self.drain.text,
            **services,
        )
        self.world.server.drain = self.begin

    def begin(self, within_s: float, to: str) -> Drain:
        """Begin to drain."""
        if self.drain is None:
            self.drain = Drain(self.world.server, lambda: succeed(None), within_s, to)
        return self.drain

    def post(self, what: str, body: object, **headers: str) -> Answer:
        """Ask for something."""
        path, text = f"/_tcprepl/v1/{what}", json.dumps(body).encode()
        waiting = self.stage.open("POST", path, body=text, headers=headers)
        if not waiting.answered:
            self.world.network.clock.pump([0.1] * 12)
        return waiting.answer


@pytest.fixture
def both() -> Any:
    """Both, closed in the end."""
    made = Both()
    yield made
    assert made.world.stop().called
    made.stage.close()


def test_a_peer_is_kicked(both: Both) -> None:
    caller = both.world.call("NAME worker3")
    answer = both.post("kick", {"peer": "worker3", "why": "it is time"})
    assert answer.status == 200
    assert [one["name"] for one in answer.json["kicked"]] == ["worker3"]
    both.world.network.settle()
    assert caller.lines()[-1] == "ERROR disconnected by an operator: it is time"


def test_nobody_of_that_name(both: Both) -> None:
    both.world.call("NAME worker3")
    answer = both.post("kick", {"peer": "worker4"})
    assert answer.error == (
        404,
        "M_NOT_FOUND",
        "no peer is called worker4: expected what it calls itself, its address with the port, or "
        "the number of its connection, as STATUS shows them; did you mean worker3?",
    )


@pytest.mark.parametrize("body", [{}, {"peer": ""}, {"peer": "a", "why": "x" * 201}, []])
def test_what_is_no_kick(both: Both, body: object) -> None:
    assert both.post("kick", body).status == 400


def test_a_drain_is_asked_for_once_and_told_again(both: Both) -> None:
    both.world.call("REPLICATE")
    answer = both.post("drain", {"within_seconds": 5, "to": "there:1"})
    assert answer.status == 200
    assert (answer.json["to"], answer.json["peers"]) == ("there:1", 0)
    assert both.post("drain", {"within_seconds": 500, "to": "elsewhere"}).json["to"] == "there:1"


def test_nothing_is_written_meanwhile_but_what_an_operator_says(both: Both) -> None:
    stage = both.stage
    assert stage.ask("POST", "/_tcprepl/v1/streams/audit/rows", body=b"[[1]]").status == 200
    both.begin(9.0, "there:1")
    refused = stage.ask("POST", "/_tcprepl/v1/streams/audit/rows", body=b"[[1]]")
    assert refused.error == (
        503,
        "TCPREPL_LOG_UNAVAILABLE",
        "not now: the server is being drained; go to there:1",
    )
    assert stage.ask("GET", "/_tcprepl/v1/status").status == 200
    assert both.post("kick", {"peer": "x"}).status == 404
    assert stage.log.position("audit", "master") == 1


@pytest.mark.parametrize("what", ["kick", "drain"])
def test_only_who_may_operate(what: str) -> None:
    both = Both(secrets=["s"])
    assert both.post(what, {"peer": "x"}).status == 401
    assert both.drain is None
    both.stage.close()
    assert both.world.stop().called


def test_where_there_is_nobody_to_kick_and_nothing_to_drain() -> None:
    stage = Stage()
    for what, body in (("kick", b'{"peer": "x"}'), ("drain", b"{}")):
        assert stage.ask("POST", f"/_tcprepl/v1/{what}", body=body).status == 404
    stage.close()
