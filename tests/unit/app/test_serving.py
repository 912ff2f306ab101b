"""What a server and a relay have in common."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock

from tcprepl.addresses import parse_address
from tcprepl.app.serving import Serving
from tcprepl.config import build
from tcprepl.errors import LogUnavailable
from tests.unit.app import test_relay, test_server
from tests.unit.app.test_relay import settle


def server(reactor: Any) -> Serving:
    return test_server.made(reactor)


def relay(reactor: Any) -> Serving:
    return test_relay.made(parse_address("127.0.0.1:1"), reactor)


both = pytest.mark.parametrize("make", [server, relay])


@both
def test_what_has_been_drained_is_over(make: Any) -> None:
    """Once its readers have been sent elsewhere."""
    reactor = MemoryReactorClock()
    made = make(reactor)
    settle(reactor, made.start())
    drain = made.drain(30.0, "there:1")
    assert made.drain(1.0) is drain
    assert made.status_line().startswith("the server is being drained; go to there:1: ")
    assert not made.failed.called
    for _ in range(5):
        reactor.advance(0.1)
    assert made.failed.called
    settle(reactor, made.stop())


@both
def test_what_loses_its_log_while_it_is_drained_fails(make: Any) -> None:
    reactor = MemoryReactorClock()
    made = make(reactor)
    settle(reactor, made.start())
    made.drain(30.0)
    made.log.failed.errback(LogUnavailable("taken over"))
    failed: list[Any] = []
    _ = made.failed.addErrback(failed.append)
    assert str(failed[0].value) == "taken over"
    settle(reactor, made.stop())


@both
def test_it_is_ready_from_the_end_of_the_start_until_it_stops(make: Any) -> None:
    reactor = MemoryReactorClock()
    made = make(reactor)
    assert made._not_ready == "starting"
    settle(reactor, made.start())
    assert made._web.ready() is None
    assert made.facts()["replication"] == " ".join(made.replication_addresses)
    assert made.directory is None
    assert made.progress().called
    settle(reactor, made.stop())
    assert made._web.ready()


@both
def test_a_reload_opens_and_closes_both_doors(make: Any) -> None:
    reactor = MemoryReactorClock()
    made = make(reactor)
    settle(reactor, made.start())
    tokens = [{"name": "w1", "token": "a-token-of-sixteen", "write": ["typing"]}]
    raw = {"http": {"max_body_bytes": 9}, "replication": {"tokens": tokens}}
    made.reload(build({"data_directory": None, **raw}, "test").config)()
    assert [token for token, _ in made._web.grants] == ["a-token-of-sixteen"]
    assert made._site.max_body_bytes == 9
    assert not made.replication.granted(None, vouched=True).read
    settle(reactor, made.stop())
