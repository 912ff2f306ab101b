"""Coroutines of workers that run on Twisted's asyncio reactor.

A coroutine that Twisted drives may await Deferreds and nothing else; one that asyncio drives may
await futures and nothing else. `settled` lets a worker's coroutine await both where there is a
loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Generator
from types import CoroutineType, coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")


async def settled(work: Awaitable[T]) -> T:
    """Wait for *work*, which a worker's function returned.

    Under an asyncio reactor a coroutine becomes a task of its loop: it may await what asyncio
    knows (``asyncio.sleep``, ``asyncio.timeout``, libraries built on them) as well as Deferreds.
    Elsewhere Twisted drives it.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return await work
    if not isinstance(work, CoroutineType):
        return await work
    done: Deferred[T] = Deferred.fromFuture(loop.create_task(_task(work, loop)))
    return await done


async def _task(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    return await _with_deferreds(work, loop)


@coroutine
def _with_deferreds(
    work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop
) -> Generator[Any, Any, T]:
    """Drive *work*; hand on the futures that it awaits, and wait for its Deferreds with our own."""
    thrown: BaseException | None = None
    while True:
        try:
            awaited = work.send(None) if thrown is None else work.throw(thrown)
        except StopIteration as stop:
            result: T = stop.value
            return result
        thrown = None
        try:
            if isinstance(awaited, Deferred):
                yield from _fired(awaited, loop)
            else:
                yield awaited
        except BaseException as error:  # noqa: BLE001  # it is raised where the work waits
            thrown = error


def _fired(deferred: Deferred[Any], loop: asyncio.AbstractEventLoop) -> Generator[Any, Any, None]:
    """Wait until *deferred* has fired; its result stays in it for who awaits it."""
    future: asyncio.Future[None] = loop.create_future()

    def fire(result: object) -> object:
        if not future.done():
            future.set_result(None)
        return result

    _ = deferred.addBoth(fire)
    yield from future
