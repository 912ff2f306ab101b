"""The client library under asyncio, with a handler: all of `tests.client_kit`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
from twisted.application.service import Service

from tcprepl import aio
from tcprepl.replication.following.client import FollowOptions, ReplicationClient
from tests.client_kit import *  # noqa: F403
from tests.faces import ASYNCIO, using


@pytest.fixture(autouse=True)
def face() -> Iterator[None]:
    """Use it."""
    with using(ASYNCIO):
        yield


#: How each begins and ends, and what is for the rest of the package.
LIFE = {"start", "stop", "run", "wait", "ended", "failed", "on_connected", *dir(Service)}
LIFE |= {"pause", "resume", "call_later", "give_up", "catching_up", "waiting"}
#: Attributes of the one under Twisted.
THEIRS = {"reconnects", "last_error"}
INNER = {"reactor", "endpoint", "streams", "handler", "on_connected", "passed_over", "on_run"}


def test_it_takes_all_that_the_one_under_twisted_takes() -> None:
    """So that a missing half is seen."""
    theirs = inspect.signature(ReplicationClient).parameters
    assert FollowOptions.__annotations__.keys() == theirs.keys() - INNER
    assert (public(ReplicationClient) | THEIRS) - LIFE == public(aio.ReplicationClient) - LIFE


def public(kind: type) -> set[str]:
    """Return what a class has for its users."""
    return {name for name in dir(kind) if not name.startswith("_")}
