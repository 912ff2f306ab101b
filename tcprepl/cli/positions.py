"""``tcprepl positions``: where every stream is."""

from __future__ import annotations

import json

import click

from tcprepl.cli import logs
from tcprepl.cli.arguments import from_option
from tcprepl.cli.following import positions_of
from tcprepl.cli.running import run_until_done
from tcprepl.clocks import Reactor
from tcprepl.config import Address


@click.command("positions")
@from_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each position.")
def command(source: Address, as_json: bool) -> int:
    """Print "STREAM INSTANCE TOKEN" for every stream and instance of a server.

    \b
    Example:
      $ tcprepl positions
      events master 1042
      typing master 17
    """
    logs.configure("warning")

    async def main(reactor: Reactor) -> int:
        positions = await positions_of(reactor, source)
        for (stream, instance), token in positions.items():
            if as_json:
                click.echo(json.dumps({"stream": stream, "instance": instance, "token": token}))
            else:
                click.echo(f"{stream} {instance} {token}")
        return 0

    return run_until_done(main)
