"""A worker's coroutine awaits what asyncio knows and what Twisted knows, where there is a loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from tcprepl.replication.following.asyncio_bridge import bridged, future_of, settled


def run(work: Any) -> Any:
    """Return what *work* comes to in a loop, driven by Twisted as a handler is."""

    async def main() -> Any:
        return await Deferred.fromCoroutine(settled(work)).asFuture(asyncio.get_running_loop())

    return asyncio.run(main())


async def both() -> list[str]:
    """Await this and that."""
    loop = asyncio.get_running_loop()
    later: Deferred[str] = Deferred()
    loop.call_later(0.001, later.callback, "later")
    seen = [await succeed("at once"), await later]
    async with asyncio.timeout(5):
        await asyncio.sleep(0.001)
    try:
        await fail(ValueError("told"))
    except ValueError as error:
        seen.append(str(error))
    broken = loop.create_future()
    loop.call_soon(broken.set_exception, KeyError("future"))
    try:
        await broken
    except KeyError as error:
        seen.append(error.args[0])
    return seen


def test_both_worlds_are_awaited() -> None:
    assert run(both()) == ["at once", "later", "told", "future"]


def test_a_failure_is_that_of_the_work() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise RuntimeError("not yet")

    with pytest.raises(RuntimeError, match="not yet"):
        run(fails())


def test_a_task_that_is_cancelled_while_it_waits_for_a_deferred() -> None:
    never: Deferred[None] = Deferred()

    async def cancels() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        await never

    with pytest.raises(asyncio.CancelledError):
        run(cancels())
    never.callback(None)  # whom it would have told is gone


def test_what_is_no_coroutine_and_what_has_no_loop_is_awaited_as_ever() -> None:
    async def work() -> str:
        return await succeed("done")

    for awaitable in (work(), succeed("done")):
        found: list[object] = []
        Deferred.fromCoroutine(settled(awaitable)).addCallback(found.append)
        assert found == ["done"]


def test_futures_and_whatever_can_be_awaited() -> None:
    """A handler may return what it began."""

    class Slow:
        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            return "slow"

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(future.set_result, "future")
        task = loop.create_task(asyncio.sleep(0, "task"))
        works: list[Any] = [future, task, Slow(), succeed("deferred")]
        return [await future_of(Deferred.fromCoroutine(settled(work))) for work in works]

    assert asyncio.run(main()) == ["future", "task", "slow", "deferred"]


def test_what_nobody_waits_for_may_await_both() -> None:
    """And is called with what it should be, and keeps its name."""

    async def notes(word: str) -> str:
        await asyncio.sleep(0)
        return word

    def returns(word: str) -> str:
        return word

    async def main() -> None:
        bridge = bridged(notes)
        assert bridge.__qualname__ == notes.__qualname__  # type: ignore[attr-defined]
        work: Any = bridge("later")
        assert await future_of(Deferred.fromCoroutine(work)) == "later"
        assert bridged(returns)("at once") == "at once"
        waiting: Any = bridged(both)()
        assert len(await future_of(Deferred.fromCoroutine(waiting))) == 4
        deferred: Deferred[str] = Deferred()
        assert bridged(lambda: deferred)() is deferred

    asyncio.run(main())


def test_who_stops_waiting_for_a_deferred_changes_nothing() -> None:
    async def main() -> None:
        deferred: Deferred[str] = Deferred()
        for outcome in ("done", RuntimeError("told")):
            deferred = Deferred()
            waiting, cancelled = future_of(deferred), future_of(Deferred())
            cancelled.cancel()
            if isinstance(outcome, str):
                deferred.callback(outcome)
                assert await waiting == outcome
            else:
                deferred.errback(outcome)
                with pytest.raises(RuntimeError, match="told") as raised:
                    await waiting
                assert raised.value is outcome
        deferred = Deferred()
        future_of(deferred).cancel()
        deferred.callback("whom it would have told is gone")

    asyncio.run(main())


PROGRAM = """
import asyncio
from twisted.internet import asyncioreactor
asyncioreactor.install()
from twisted.internet import endpoints, reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from tcprepl.replication.following.client import ReplicationClient
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry

registry = Registry()
log = MemoryLog(registry, lambda: 0)
publisher = Publisher(log, registry, "master")
server = ReplicationServer(reactor, log, registry, "example.com")
fails = [True]

async def handler(stream, instance, token, rows):
    async with asyncio.timeout(5):
        await asyncio.sleep(0.001)
    await deferLater(reactor, 0.001)
    if fails:
        raise RuntimeError(fails.pop())
    print("row", token, [row.user_id for row in rows], flush=True)
    if token == 3:
        third_is_here.callback(None)
        await client_stops

async def main():
    port = await server.listen(endpoints.TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"))
    endpoint = endpoints.TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    client = ReplicationClient(reactor, endpoint, ["push_rules"], handler, since="start")
    client.startService()
    await publisher.publish("push_rules", [["@a:x"], ["@b:x"], ["@c:x"]])
    await third_is_here
    stopping = client.stopService()
    client_stops.callback(None)
    await stopping
    print("row", client.positions(), flush=True)
    await server.stop()
    reactor.stop()

client_stops, third_is_here = Deferred(), Deferred()
reactor.callWhenRunning(Deferred.fromCoroutine, main())
reactor.callLater(20, reactor.stop)
reactor.run()
"""


def test_a_worker_on_the_asyncio_reactor() -> None:
    """With a failure that is tried again, and a stop while its handler runs."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("row ")] == [
        "row 1 ['@a:x']",
        "row 2 ['@b:x']",
        "row 3 ['@c:x']",
        "row {('push_rules', 'master'): 3}",
    ], done.stdout + done.stderr
