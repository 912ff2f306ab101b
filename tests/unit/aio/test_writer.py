"""The writer under asyncio: all of `tests.writer_kit`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator

import pytest
from twisted.application.service import Service

from tcprepl import aio
from tcprepl.errors import LogUnavailable
from tcprepl.replication.following.writer import ReplicationWriter
from tests.faces import ASYNCIO, using
from tests.writer_kit import *  # noqa: F403
from tests.writer_kit import Desk


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


def test_several_that_wait_for_room_all_get_in() -> None:
    """They are woken together, and the first may fill it up again."""
    desk = Desk(max_held_appends=1)
    writer = desk.writer.outer
    desk.publish(0)

    async def publish(number: int) -> aio.Appended:
        await writer.when_room()
        done: aio.Appended = await writer.publish("alpha", [b"%d" % number])
        return done

    tasks = [asyncio.ensure_future(publish(number)) for number in (1, 2, 3)]
    desk.start()
    desk.network.run(1)
    assert [task.result().last for task in tasks] == [2, 3, 4]
    desk.end()


def test_who_waits_for_the_claim_is_told_though_nobody_waits_for_the_stop() -> None:
    desk = Desk()
    writer = desk.writer.outer
    desk.writer.startService()
    claimed = asyncio.ensure_future(writer.claimed())
    stopping = asyncio.ensure_future(writer.stop())
    desk.network.clock.loop.call_soon(stopping.cancel)
    desk.network.settle()
    assert isinstance(claimed.exception(), LogUnavailable)
    assert stopping.cancelled()
    desk.end()


#: How each begins and ends.
LIFE = {"start", "stop", "claimed", "failed", *dir(Service)}
#: Attributes of the one under Twisted.
THEIRS = {"reconnects", "last_error"}


def public(kind: type) -> set[str]:
    """Return what a class has for its users."""
    return {name for name in dir(kind) if not name.startswith("_")}
