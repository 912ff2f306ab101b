"""``tcprepl positions``: where every stream is."""

from __future__ import annotations

import json

import click

from tcprepl.addresses import Address
from tcprepl.cli import logs
from tcprepl.cli.arguments import STREAM, from_option
from tcprepl.cli.following import positions_of
from tcprepl.cli.running import run_until_done
from tcprepl.clocks import Reactor


@click.command("positions")
@click.argument("stream", nargs=-1, type=STREAM)
@from_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each position.")
def command(stream: tuple[str, ...], source: Address, as_json: bool) -> int:
    """Print "STREAM INSTANCE TOKEN" for each STREAM (all by default) and instance of a server.

    \b
    Example:
      $ tcprepl positions
      events master 1042
      typing master 17
    """
    logs.configure("warning")

    async def main(reactor: Reactor) -> int:
        positions = await positions_of(reactor, source, stream)
        for (name, instance), token in positions.items():
            if stream and name not in stream:
                continue
            if as_json:
                click.echo(json.dumps({"stream": name, "instance": instance, "token": token}))
            else:
                click.echo(f"{name} {instance} {token}")
        return 0

    return run_until_done(main)
