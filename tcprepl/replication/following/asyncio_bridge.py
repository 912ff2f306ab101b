"""Where Deferreds meet asyncio: under its loop, with or without Twisted's reactor on top.

A coroutine that Twisted drives may await Deferreds and nothing else; one that asyncio drives may
await futures and nothing else. `settled` lets a worker's coroutine await both where there is a
loop, and `future_of` lets asyncio wait for a Deferred.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import wraps
from types import CoroutineType, coroutine
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

P = ParamSpec("P")
T = TypeVar("T")


async def settled(work: Awaitable[T]) -> T:
    """Wait for *work*, which a worker's function returned.

    Under a loop of asyncio it becomes a task: a coroutine may await what asyncio knows
    (``asyncio.sleep``, ``asyncio.timeout``, libraries built on them) as well as Deferreds, and
    futures may be returned. Elsewhere Twisted drives it.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return await work
    if isinstance(work, Deferred):
        result: T = await work
        return result
    if not isinstance(work, CoroutineType):
        work = _awaiting(work)
    done: Deferred[T] = Deferred.fromFuture(loop.create_task(_task(work, loop)))
    return await done


def bridged(f: Callable[P, object]) -> Callable[P, object]:
    """Return *f* for `run_in_background`: what it returns may await both, as `settled` says."""

    @wraps(f)
    def call(*args: P.args, **kwargs: P.kwargs) -> object:
        result = f(*args, **kwargs)
        if result is None or isinstance(result, Deferred) or not isinstance(result, Awaitable):
            return result
        return settled(result)

    return call


def future_of(deferred: Deferred[T]) -> asyncio.Future[T]:
    """Return a future of the running loop with what comes of *deferred*.

    Who cancels it only stops waiting.
    """
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def fire(result: T | Failure) -> None:
        if future.done():
            return
        if isinstance(result, Failure):
            future.set_exception(result.value or RuntimeError(result.getErrorMessage()))
        else:
            future.set_result(result)

    _ = deferred.addBoth(fire)
    return future


async def _awaiting(work: Awaitable[T]) -> T:
    return await work


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
