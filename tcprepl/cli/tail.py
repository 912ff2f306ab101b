"""``tcprepl tail``: follow streams and print their rows."""

from __future__ import annotations

from typing import Any

import click

from tcprepl.addresses import Address
from tcprepl.cli import logs
from tcprepl.cli.arguments import SECONDS, STREAM, from_option, looking_up
from tcprepl.cli.following import Follower, renderer
from tcprepl.cli.formats import Format, output_options, writer_for
from tcprepl.cli.running import run_until_done
from tcprepl.clocks import Reactor
from tcprepl.limits import MAX_TOKEN


class SinceType(click.ParamType[str | int]):
    """SINCE: ``now``, ``start`` or a token."""

    name = "now|start|TOKEN"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | int:
        """Return the word or the number."""
        if value in ("now", "start") or isinstance(value, int):
            return value if isinstance(value, int) else str(value)
        if value.isascii() and value.isdigit() and int(value) <= MAX_TOKEN:
            return int(value)
        return self.fail(f"{value!r}: expected now, start or a token", param, ctx)


SINCE = SinceType()


@click.command("tail")
@click.argument("stream", nargs=-1, type=STREAM)
@from_option
@click.option(
    "--since",
    type=SINCE,
    metavar="now|start|TOKEN",
    default="now",
    show_default=True,
    help="Where to begin: with what comes now, with everything held, or after TOKEN.",
)
@click.option(
    "--instance",
    "instances",
    multiple=True,
    default=["master"],
    show_default=True,
    help="Whose token TOKEN is; may be given several times.",
)
@click.option("--count", type=click.IntRange(min=1), help="End after this many rows.")
@click.option("--for", "for_s", type=SECONDS, help="End after this many seconds.")
@click.option("--until-head", is_flag=True, help="End when all that is there now was printed.")
@output_options("row")
@click.option(
    "--follow-name",
    is_flag=True,
    help="Look the context up again for each connection: it may name another server by then.",
)
@click.option("--commands", is_flag=True, help="Print POSITION and the other commands, too.")
@click.option("--verbose", "-v", is_flag=True, help="Log more about the connection.")
def command(
    stream: tuple[str, ...],
    source: Address,
    since: str | int,
    instances: tuple[str, ...],
    count: int | None,
    for_s: float | None,
    until_head: bool,
    as_json: bool,
    row_format: Format | None,
    follow_name: bool,
    commands: bool,
    verbose: bool,
) -> int:
    """Follow each STREAM (all of them by default) and print their rows.

    Lines are those of the wire: RDATA STREAM INSTANCE TOKEN ROW; rows that share a token have
    the word "batch" for it, but for the last. Access tokens are left out. A connection that
    is lost is made again, and goes on where it was. Ctrl-C ends.

    \b
    Example:
      $ tcprepl tail typing receipts --since start --count 1
      RDATA typing master 1 ["!room:example.com",["@alice:example.com"]]
      $ tcprepl tail events --since 1200 --json | jq .row
    """
    if isinstance(since, int) and not stream:
        raise click.UsageError("--since TOKEN needs a STREAM: each has tokens of its own")
    if commands and (as_json or row_format):
        raise click.UsageError("--commands prints lines of the wire: no --json, no --format")
    logs.configure("debug" if verbose else "info")

    async def main(reactor: Reactor) -> int:
        follower = Follower(
            reactor,
            source,
            stream or None,
            writer_for(row_format),
            since=since,
            instances=instances,
            render=renderer(as_json, row_format),
            commands=commands,
            count=count,
            for_s=for_s,
            until_head=until_head,
            on_end=logs.only_warnings,
            look_up=looking_up() if follow_name else None,
        )
        await follower.run()
        return 0

    return run_until_done(main)
