"""The client library under asyncio, with a handler: all of `tests.client_kit`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
from twisted.application.service import Service

from tcprepl import aio
from tcprepl.replication.following.client import FollowOptions, ReplicationClient
from tests.client_kit import *  # noqa: F403
from tests.client_kit import World
from tests.faces import ASYNCIO, using


@pytest.fixture(autouse=True)
def face() -> Iterator[None]:
    """Use it."""
    with using(ASYNCIO):
        yield


#: How each begins and ends, and what is for the rest of the package.
LIFE = {"start", "stop", "run", "wait", "ended", "failed", "on_connected", *dir(Service)}
LIFE |= {"pause", "resume", "call_later", "fail", "give_up", "catching_up", "waiting"}
#: Attributes of the one under Twisted.
THEIRS = {"reconnects", "last_error"}
INNER = {"reactor", "endpoint", "streams", "handler", "on_connected", "passed_over", "on_run"}


def test_it_takes_all_that_the_one_under_twisted_takes() -> None:
    """So that a missing half is seen."""
    theirs = inspect.signature(ReplicationClient).parameters
    assert FollowOptions.__annotations__.keys() == theirs.keys() - INNER
    assert (public(ReplicationClient) | THEIRS) - LIFE == public(aio.ReplicationClient) - LIFE


def test_a_stop_ends_the_run_that_it_was_called_in_and_no_later_one(world: World) -> None:
    """Who waits for the later one waits on."""
    client = world.client().outer
    waiting, stopped = client.ended, client.stop()
    client.start()
    assert client.ended is not waiting
    world.network.run(1)
    assert waiting.done()
    assert stopped.done()
    assert not client.ended.done()
    world.publish("alpha", [1])
    assert [token for _, _, token, _ in world.seen] == [1]


def test_what_was_never_started_can_be_stopped(world: World) -> None:
    client = aio.ReplicationClient("127.0.0.1:1", None, world.handle)
    stopped = client.stop()
    world.network.settle()
    assert stopped.done()


def public(kind: type) -> set[str]:
    """Return what a class has for its users."""
    return {name for name in dir(kind) if not name.startswith("_")}
