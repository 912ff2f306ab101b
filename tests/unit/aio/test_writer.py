"""The writer under asyncio: all of `tests.writer_kit`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
from twisted.application.service import Service

from tcprepl import aio
from tcprepl.replication.following.writer import ReplicationWriter
from tests.faces import ASYNCIO, using
from tests.writer_kit import *  # noqa: F403


@pytest.fixture(autouse=True)
def face() -> Iterator[None]:
    """Use it."""
    with using(ASYNCIO):
        yield


def test_it_takes_all_that_the_one_under_twisted_takes() -> None:
    """So that a missing half is seen."""
    ours = inspect.signature(aio.ReplicationWriter).parameters
    theirs = inspect.signature(ReplicationWriter).parameters
    assert ours.keys() - {"where", "tls"} == theirs.keys() - {"reactor", "endpoint"}
    assert public(aio.ReplicationWriter) - LIFE == (public(ReplicationWriter) | THEIRS) - LIFE


#: How each begins and ends.
LIFE = {"start", "stop", "claimed", "failed", *dir(Service)}
#: Attributes of the one under Twisted.
THEIRS = {"reconnects", "last_error"}


def public(kind: type) -> set[str]:
    """Return what a class has for its users."""
    return {name for name in dir(kind) if not name.startswith("_")}
