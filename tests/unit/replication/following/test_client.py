"""The client library under Twisted: all of `tests.client_kit`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tcprepl import metrics
from tcprepl.replication.following.client import ReplicationClient
from tests.client_kit import *  # noqa: F403
from tests.client_kit import World
from tests.faces import TWISTED, using


@pytest.fixture(autouse=True)
def face() -> Iterator[None]:
    """Use it."""
    with using(TWISTED):
        yield


def test_nothing_is_said_of_a_connection_that_is_gone(world: World) -> None:
    client = world.client()
    assert client.dialect == "tcprepl"
    assert client.incarnation == world.log.history.current
    world.crash()
    assert (client.connected, client.dialect, client.incarnation) == (False, None, None)
    world.start()


def test_what_fires_when_it_fails_is_the_same_until_it_has_failed(world: World) -> None:
    def handler(*_: Any) -> None:
        raise RuntimeError("never")

    client = world.client(handler, max_attempts=1)
    failed = client.failed
    assert client.stopService() is not None
    world.network.run(1)
    client.startService()
    world.network.settle()
    assert client.failed is failed
    failed.addErrback(lambda _: None)
    world.publish("alpha", [1])
    world.network.run(1)
    assert failed.called
    client.startService()
    assert client.failed is not failed
    client.failed.addErrback(lambda _: None)
    assert not client.failed.called


def test_a_start_during_the_stop_hands_nothing_over_twice(world: World) -> None:
    """The handler that still runs counts; its batch is not read anew beside it."""
    held: list[Deferred[None]] = []

    def handler(stream: str, instance: str, token: int, rows: Any) -> Deferred[None] | None:
        world.handle(stream, instance, token, rows)
        if token > 1:
            return None
        held.append(Deferred())
        return held[-1]

    client = world.client(handler)
    world.publish("alpha", [1], [2])
    assert len(held) == 1
    stopped = client.stopService()
    client.startService()
    world.network.run(1)
    assert [token for _, _, token, _ in world.seen] == [1]
    held[0].callback(None)
    assert stopped.called
    world.network.run(1)
    assert [token for _, _, token, _ in world.seen] == [1, 2]
    assert len(world.server._peers) == 1


def test_a_connection_that_comes_after_the_stop_is_closed(world: World) -> None:
    """By who makes it at least: an endpoint may not know how to give up."""
    made: list[Any] = []

    class Late:
        def connect(self, factory: Any) -> Deferred[Any]:
            def stop_first(protocol: Any) -> Any:
                made.append(client.stopService())
                return protocol

            return world.network.connect(factory, "late").addCallback(stop_first)

    client = ReplicationClient(world.network.clock, Late(), ["alpha"], world.handle)  # type: ignore[arg-type]
    client.startService()
    world.network.settle()
    (stopped,) = made
    assert stopped.called
    assert not world.network.wires["late"].alive
    assert not client.connected


def test_what_has_come_is_counted_for_as_long_as_it_follows(world: World) -> None:
    def counted() -> float:
        (metric,) = metrics.INBOUND_RDATA.collect()
        return sum(one.value for one in metric.samples if one.labels["stream_name"] == "alpha")

    before, sources = counted(), len(metrics.COMMAND_QUEUE._sources)
    client = world.client()
    assert len(metrics.COMMAND_QUEUE._sources) == sources + 1
    for number in (1, 2):
        world.publish("alpha", [number])
    world.network.run(1)
    assert counted() == before + 2
    assert client.stopService() is not None
    world.network.run(1)
    assert len(metrics.COMMAND_QUEUE._sources) == sources
    assert counted() == before + 2


def test_what_is_to_be_called_later_can_be_called_off(world: World) -> None:
    call = world.client().call_later(5, lambda: None)
    assert call.active()
    call.cancel()
