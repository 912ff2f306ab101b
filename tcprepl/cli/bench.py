"""``tcprepl bench``: what a running server does in a second, and how long it takes for one row."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from typing import Any

import click

from tcprepl.addresses import Address
from tcprepl.cli import Group, logs
from tcprepl.cli.arguments import SECONDS, from_option
from tcprepl.cli.arguments import STREAM as STREAM_NAME
from tcprepl.cli.benching import (
    STREAM,
    Follow,
    Latency,
    Measured,
    Publish,
    refuse_in_use,
    row_of,
)
from tcprepl.cli.output import write_out
from tcprepl.cli.progress import Progress
from tcprepl.cli.publish import NotJson
from tcprepl.cli.running import run_until_done
from tcprepl.clocks import Reactor
from tcprepl.protocol.display import counted
from tcprepl.web.amounts import size


class RateType(click.FloatRange):
    """Rows a second; what is no number at all is below no bound, and would pass a range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number."""
        rate: float = super().convert(value, param, ctx)
        if math.isnan(rate):
            self.fail(f"{value!r}: expected a number of rows a second", param, ctx)
        return rate


@click.group("bench", cls=Group)
def command() -> None:
    """Measure a running server, from here: the network and this machine are in the figures.

    Rows are written as an instance that nobody has, of a user that nobody is; all who follow their
    stream get them, though. Where there are rows already nothing is written, unless --yes says
    that this is meant. What is left behind is said.

    \b
    Example:
      $ tcprepl bench publish --rows 20000
      $ tcprepl bench latency --rate 200 --yes
      $ tcprepl bench follow
    """


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
        found["left"] = f"{counted(measured.rows, 'row')} of {left}, until retention lets them go"
    return found


def _words(found: dict[str, Any]) -> str:
    data, rate = (
        size(found[name]).replace("\u202f", " ") for name in ("bytes", "bytes_per_second")
    )
    rows = counted(found["rows"], "row", f"{found['rows']:,}")
    lines = [
        f"{found['bench']:9} {rows}, {data}, in {found['seconds']:.2f} s: "
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
    try:
        return row_of(row, size_bytes)
    except NotJson as error:
        raise click.UsageError(str(error)) from None


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
@click.argument("stream", nargs=-1, type=STREAM_NAME)
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
    "--rate", type=RateType(0.1, 10_000), default=100.0, show_default=True, help="Rows/s."
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
