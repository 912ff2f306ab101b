"""What ``tcprepl bench`` does at a server, and what of it is measured."""

from __future__ import annotations

import math
import secrets
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from tcprepl.addresses import Address
from tcprepl.app.connecting import client_endpoint
from tcprepl.cli.following import positions_of
from tcprepl.cli.progress import Progress
from tcprepl.cli.publish import check_row
from tcprepl.clocks import Reactor
from tcprepl.errors import CloseReason, ConfigError, ConnectionFailed
from tcprepl.replication.following.client import ReplicationClient
from tcprepl.replication.following.writer import ReplicationWriter
from tcprepl.streams.codec import Rows
from tcprepl.streams.position_store import MemoryPositionStore

#: Where rows are written when nothing else is said: a durable stream whose row is a user's name,
#: and no user of a homeserver is called as ours is.
STREAM = "push_rules"
#: How long a server may take for the first answer.
GREETING_S = 10.0


class Timings:
    """How long each of many took.

    Attributes:
        seconds: Each, in the order in which they ended.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def ms(self) -> dict[str, float]:
        """Return the percentiles in ms; empty without any."""
        ordered = sorted(self.seconds)
        if not ordered:
            return {}
        last = len(ordered) - 1
        found = {
            f"p{percent:g}": ordered[min(last, math.ceil(len(ordered) * percent / 100) - 1)]
            for percent in (50, 90, 99, 99.9)
        }
        found |= {"min": ordered[0], "max": ordered[-1]}
        return {name: round(seconds * 1000, 3) for name, seconds in found.items()}


class Measured(Protocol):
    """One of the three, at work."""

    rows: int
    bytes: int
    took: dict[str, Timings]

    async def run(self, reactor: Reactor, progress: Progress) -> None:
        """Do it; when this is cancelled, what has been done by then counts."""
        ...


class Publish:
    """Publishes rows, many on their way at a time."""

    def __init__(
        self, address: Address, stream: str, row: bytes, rows: int, flight: int, clients: int
    ) -> None:
        self.rows = self.bytes = 0
        self.took = {"answer": Timings()}
        self.instance = instance_name()
        self._address = address
        self._stream = stream
        self._row = row
        self._left = rows
        self._flight = flight
        self._clients = clients

    async def run(self, reactor: Reactor, progress: Progress) -> None:
        """Publish all of them."""
        writers = [writer_of(reactor, self._address, self._flight) for _ in range(self._clients)]
        try:
            for writer in writers:
                await first_answer(reactor, writer, self._address)
            pushing = [Deferred.fromCoroutine(self._push(reactor, w, progress)) for w in writers]
            await all_of(pushing)
        finally:
            for writer in writers:
                await writer.stopService()

    async def _push(self, reactor: Reactor, writer: ReplicationWriter, progress: Progress) -> None:
        last: Deferred[Any] | None = None
        failed: list[Failure] = []

        def taken(_: object, began: float) -> None:
            self.took["answer"].seconds.append(reactor.seconds() - began)
            self.rows += 1
            self.bytes += len(self._row)
            progress.add()

        while self._left > 0 and not failed:
            self._left -= 1
            await writer.when_room()
            last = writer.publish(self._stream, [self._row], instance=self.instance)
            _ = last.addCallback(taken, reactor.seconds()).addErrback(failed.append)
        if last is not None and not failed:
            await last  # answers come in order
        if failed:
            failed[0].raiseException()


class Follow:
    """Reads what a server holds, from the start to where it is."""

    def __init__(self, address: Address, streams: Sequence[str], clients: int) -> None:
        self.rows = self.bytes = 0
        self.took: dict[str, Timings] = {}
        self._address = address
        self._streams = streams
        self._clients = clients

    async def run(self, reactor: Reactor, progress: Progress) -> None:
        """Read all of it, with each client."""
        heads = await positions_of(reactor, self._address, self._streams)
        goal = {
            pair: token
            for pair, token in heads.items()
            if token > 0 and (not self._streams or pair[0] in self._streams)
        }
        if goal:
            await all_of(
                [
                    Deferred.fromCoroutine(self._read(reactor, dict(goal), progress))
                    for _ in range(self._clients)
                ]
            )

    async def _read(
        self, reactor: Reactor, goal: dict[tuple[str, str], int], progress: Progress
    ) -> None:
        done: Deferred[None] = Deferred()

        def reached(stream: str, instance: str, token: int) -> None:
            if token >= goal.get((stream, instance), token + 1):
                del goal[stream, instance]
                if not goal and not done.called:
                    done.callback(None)

        def take(stream: str, instance: str, token: int, rows: Rows) -> None:
            if not done.called:
                self.rows += len(rows.raw)
                self.bytes += sum(map(len, rows.raw))
                progress.at(self.rows)
                reached(stream, instance, token)

        client = ReplicationClient(
            reactor,
            client_endpoint(reactor, self._address),
            self._streams or None,
            take,
            name="tcprepl-bench",
            server_name=self._address.server_name,
            token=self._address.token,
            since="start",
            on_position=reached,
        )
        client.startService()
        try:
            await done
        finally:
            await client.stopService()


class Latency:
    """Publishes row after row, and follows them: until the answer, and until they are here."""

    def __init__(
        self, address: Address, stream: str, row: bytes, rate: float, for_s: float
    ) -> None:
        self.rows = self.bytes = 0
        self.took = {"answer": Timings(), "delivery": Timings()}
        self.instance = instance_name()
        self._address = address
        self._stream = stream
        self._row = row
        self._rate = rate
        self._for_s = for_s
        self._sent: deque[float] = deque()

    async def run(self, reactor: Reactor, progress: Progress) -> None:
        """Publish at the rate for the time; then wait for what is on its way."""
        writer = writer_of(reactor, self._address, 10_000)
        ready: Deferred[None] = Deferred()
        over: Deferred[None] = Deferred()
        count = max(1, round(self._rate * self._for_s))
        failed: list[Failure] = []

        def take(stream: str, instance: str, token: int, rows: Rows) -> None:
            if instance != self.instance:
                return
            for _ in rows.raw:
                self.took["delivery"].seconds.append(reactor.seconds() - self._sent.popleft())
                progress.at(len(self.took["delivery"].seconds))
            look()

        def look() -> None:
            done = min(len(timings.seconds) for timings in self.took.values())
            if (done == count or failed) and not over.called:
                over.callback(None)

        async def here(_: object) -> None:
            if not ready.called:
                ready.callback(None)

        client = ReplicationClient(
            reactor,
            client_endpoint(reactor, self._address),
            [self._stream],
            take,
            # from its first row on, also if one is there before we have asked
            positions=MemoryPositionStore({(self._stream, self.instance): 0}),
            name="tcprepl-bench",
            server_name=self._address.server_name,
            token=self._address.token,
            since="now",
            on_connected=here,
        )

        def answered(_: object, began: float) -> None:
            self.took["answer"].seconds.append(reactor.seconds() - began)
            self.rows += 1
            self.bytes += len(self._row)
            look()

        def refused(failure: Failure) -> None:
            failed.append(failure)
            look()

        def send() -> None:
            if len(self._sent) + len(self.took["delivery"].seconds) >= count:
                sending.stop()
                return
            now = reactor.seconds()
            self._sent.append(now)
            publishing = writer.publish(self._stream, [self._row], instance=self.instance)
            _ = publishing.addCallback(answered, now).addErrback(refused)

        sending = LoopingCall(send)
        sending.clock = reactor
        client.startService()
        try:
            await first_answer(reactor, writer, self._address)
            await ready
            _ = sending.start(1 / self._rate).addErrback(refused)
            await over
        finally:
            if sending.running:
                sending.stop()
            await client.stopService()
            await writer.stopService()
        if failed:
            failed[0].raiseException()


def instance_name() -> str:
    """Return the name of an instance that nobody has."""
    return f"bench-{secrets.token_hex(4)}"


def row_of(text: str | None, size_bytes: int) -> bytes:
    """Return the row that is published: *text*, or one of so many bytes for `STREAM`."""
    if text is not None:
        return check_row(text.encode(), "--row")
    empty = '["@:bench.invalid"]'
    return f'["@{"x" * max(1, size_bytes - len(empty))}:bench.invalid"]'.encode()


def writer_of(reactor: Reactor, address: Address, flight: int) -> ReplicationWriter:
    """Return what publishes, started."""
    writer = ReplicationWriter(
        reactor,
        client_endpoint(reactor, address),
        name="tcprepl-bench",
        server_name=address.server_name,
        token=address.token,
        max_held_appends=flight,
    )
    writer.startService()
    return writer


async def first_answer(reactor: Reactor, writer: ReplicationWriter, address: Address) -> None:
    """Wait until the server has said that it takes rows.

    Raises:
        ConnectionFailed: Nobody does.
        TcpreplError: It takes none from us.
    """
    done: Deferred[None] = Deferred()
    late: list[bool] = []

    def told(result: Any) -> None:
        if not done.called:
            done.callback(result)

    def give_up() -> None:
        late.append(True)
        told(None)

    for one in (writer.claimed, writer.failed):
        _ = one.addBoth(told)
    timer = reactor.callLater(GREETING_S, give_up)
    try:
        await done
    finally:
        if timer.active():
            timer.cancel()
    if late:
        raise ConnectionFailed(
            writer.last_error or f"{address}: no answer within {GREETING_S:g} s",
            reason=CloseReason.CONNECTION_LOST,
        )


async def all_of(work: Sequence[Deferred[Any]]) -> None:
    """Wait for all; the first that fails, or a cancel, ends the others."""
    try:
        await gatherResults(work, consumeErrors=True)
    except FirstError as error:
        for one in work:
            one.cancel()
        error.subFailure.raiseException()


async def refuse_in_use(reactor: Reactor, address: Address) -> None:
    """Refuse to write where there are rows already.

    Raises:
        ConfigError: There are.
    """
    held = sorted({pair[0] for pair, at in (await positions_of(reactor, address)).items() if at})
    if held:
        names = ", ".join(held[:5]) + (f" and {len(held) - 5} more" if len(held) > 5 else "")
        raise ConfigError(
            f"{address} has rows of {names}, and all who follow it would get those of bench; --yes "
            "says that this is meant"
        )
