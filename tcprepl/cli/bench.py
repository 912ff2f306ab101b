"""``tcprepl bench``: what a running server does in a second, and how long it takes for one row."""

from __future__ import annotations

import json
import math
import secrets
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import click
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from tcprepl.app.connecting import client_endpoint
from tcprepl.cli import Group, logs
from tcprepl.cli.arguments import SECONDS, from_option
from tcprepl.cli.following import positions_of
from tcprepl.cli.output import write_out
from tcprepl.cli.progress import Progress
from tcprepl.cli.publish import check_row
from tcprepl.cli.running import run_until_done
from tcprepl.clocks import Reactor
from tcprepl.errors import CloseReason, ConfigError, ConnectionFailed
from tcprepl.replication.following.client import ReplicationClient
from tcprepl.replication.following.writer import ReplicationWriter
from tcprepl.streams.codec import Rows
from tcprepl.streams.position_store import MemoryPositionStore
from tcprepl.values import Address
from tcprepl.web.elements import size

#: Where rows are written when nothing else is said: a durable stream whose row is a user's name,
#: and no user of a homeserver is called as ours is.
STREAM = "push_rules"
#: How long a server may take for the first answer.
GREETING_S = 10.0


@click.group("bench", cls=Group)
def command() -> None:
    """Measure a running server, from here: the network and this machine are in the figures.

    Rows are written as an instance that nobody has, of a user that nobody is; all who follow their
    stream get them, though. Where there are rows already nothing is written, unless --yes says
    that this is meant. What is left behind is said.

    \b
    Example:
      $ tcprepl bench publish --rows 20000
      $ tcprepl bench latency --rate 200
      $ tcprepl bench follow
    """


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


def measure(
    what: str,
    address: Address,
    measured: Measured,
    *,
    as_json: bool,
    total: int | None = None,
    yes: bool = True,
    left: str = "",
) -> int:
    """Measure, and print what was found.

    Args:
        what: The name of it.
        address: The server.
        measured: What is done.
        as_json: Whether an object is printed.
        total: How many rows there will be, for the progress.
        yes: Whether it may be done where rows are already.
        left: What it leaves behind, as far as rows were written.
    """
    logs.configure("error")

    found: dict[str, Any] = {}

    async def main(reactor: Reactor) -> int:
        if not yes:
            await refuse_in_use(reactor, address)
        began = reactor.seconds()
        try:
            with Progress("rows", total) as progress:
                await measured.run(reactor, progress)
        finally:
            found.update(_result(what, measured, reactor.seconds() - began, left))
        return 0

    try:
        return run_until_done(main)
    finally:
        if found and (measured.rows or sys.exc_info()[0] is None):
            write_out((json.dumps(found) if as_json else _words(found)).encode() + b"\n")


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


def _result(what: str, measured: Measured, seconds: float, left: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "bench": what,
        "rows": measured.rows,
        "bytes": measured.bytes,
        "seconds": round(seconds, 3),
        "rows_per_second": round(measured.rows / max(seconds, 1e-6), 1),
        "bytes_per_second": round(measured.bytes / max(seconds, 1e-6), 1),
        "ms": {name: timings.ms() for name, timings in measured.took.items()},
    }
    if left and measured.rows:
        found["left"] = f"{measured.rows} rows of {left}, until retention lets them go"
    return found


def _words(found: dict[str, Any]) -> str:
    data, rate = (
        size(found[name]).replace("\u202f", " ") for name in ("bytes", "bytes_per_second")
    )
    lines = [
        f"{found['bench']:9} {found['rows']:,} rows, {data}, in {found['seconds']:.2f} s: "
        f"{found['rows_per_second']:,.0f} rows/s, {rate}/s"
    ]
    for name, ms in found["ms"].items():
        shown = "  ".join(f"{word} {value:.2f}" for word, value in ms.items())
        lines.append(f"{name:9} {shown or 'nothing came'}" + ("  ms" if shown else ""))
    if "left" in found:
        lines.append(f"{'left':9} {found['left']}")
    return "\n".join(lines)


def written_options(function: Any) -> Any:
    """Add what concerns the rows that are written."""
    options: tuple[Callable[[Any], Any], ...] = (
        click.option("--json", "as_json", is_flag=True, help="Print a JSON object."),
        click.option("--yes", is_flag=True, help="Write where rows are already."),
        click.option("--row", metavar="JSON", help="The row; it has to fit the stream."),
        click.option(
            "--size",
            "size_bytes",
            type=click.IntRange(20, 15_000),
            default=100,
            show_default=True,
            help="Bytes of a row.",
        ),
        click.option("--stream", default=STREAM, show_default=True, help="Where to write."),
        from_option,
    )
    for option in options:
        function = option(function)
    return function


def _row(stream: str, row: str | None, size_bytes: int) -> bytes:
    if row is None and stream != STREAM:
        raise click.UsageError(f"--stream {stream} needs a --row that fits it")
    return row_of(row, size_bytes)


@command.command("publish")
@written_options
@click.option(
    "--rows",
    type=click.IntRange(1, 10_000_000),
    default=10_000,
    show_default=True,
    help="How many.",
)
@click.option(
    "--in-flight",
    "flight",
    type=click.IntRange(1, 100_000),
    default=256,
    show_default=True,
    help="Rows on their way on each connection.",
)
@click.option(
    "--clients", type=click.IntRange(1, 256), default=1, show_default=True, help="Connections."
)
def publish(
    source: Address,
    stream: str,
    size_bytes: int,
    row: str | None,
    yes: bool,
    as_json: bool,
    rows: int,
    flight: int,
    clients: int,
) -> int:
    """Publish rows, each by a line of its own, and measure until they are answered.

    \b
    Example:
      $ tcprepl bench publish
      publish   10,000 rows, 1.0 MB, in 0.55 s: 18,132 rows/s, 1.8 MB/s
      answer    p50 9.51  p90 14.02  p99 22.10  p99.9 22.50  min 2.10  max 22.52  ms
      left      10000 rows of push_rules by bench-9f86d081, until retention lets them go
    """
    measured = Publish(source, stream, _row(stream, row, size_bytes), rows, flight, clients)
    left = f"{stream} by {measured.instance}"
    return measure("publish", source, measured, as_json=as_json, total=rows, yes=yes, left=left)


@command.command("follow")
@click.argument("stream", nargs=-1)
@from_option
@click.option(
    "--clients", type=click.IntRange(1, 256), default=1, show_default=True, help="Connections."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def follow(stream: tuple[str, ...], source: Address, clients: int, as_json: bool) -> int:
    """Read all that a server holds of each STREAM (all by default), and measure that.

    Nothing is written. Other readers are served meanwhile.

    \b
    Example:
      $ tcprepl bench follow
      follow    240,000 rows, 24.0 MB, in 1.20 s: 200,000 rows/s, 20.0 MB/s
    """
    return measure("follow", source, Follow(source, stream, clients), as_json=as_json)


@command.command("latency")
@written_options
@click.option(
    "--rate", type=click.FloatRange(0.1, 10_000), default=100.0, show_default=True, help="Rows/s."
)
@click.option("--for", "for_s", type=SECONDS, default=5.0, show_default=True, help="How long.")
def latency(
    source: Address,
    stream: str,
    size_bytes: int,
    row: str | None,
    yes: bool,
    as_json: bool,
    rate: float,
    for_s: float,
) -> int:
    """Publish at a steady rate, and measure until the answer, and until a reader has the row.

    \b
    Example:
      $ tcprepl bench latency
      latency   500 rows, 50.0 kB, in 5.03 s: 99 rows/s, 9.9 kB/s
      answer    p50 0.61  p90 0.90  p99 2.31  p99.9 3.02  min 0.44  max 3.02  ms
      delivery  p50 0.66  p90 0.97  p99 2.40  p99.9 3.11  min 0.47  max 3.11  ms
      left      500 rows of push_rules by bench-9f86d081, until retention lets them go
    """
    measured = Latency(source, stream, _row(stream, row, size_bytes), rate, for_s)
    left = f"{stream} by {measured.instance}"
    return measure(
        "latency", source, measured, as_json=as_json, total=round(rate * for_s), yes=yes, left=left
    )
