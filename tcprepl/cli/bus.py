"""``tcprepl bus``: in the place of the Redis of an unmodified Synapse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from tcprepl.addresses import Address
from tcprepl.app.bus import Bus
from tcprepl.app.opening import where_logs_are
from tcprepl.cli.arguments import ADDRESS
from tcprepl.cli.relaying import by_hand, load, relaying_options
from tcprepl.cli.serving import run_process
from tcprepl.clocks import Reactor

DEFAULT_DATA = "./tcprepl-bus"


class UserType(click.ParamType[tuple[str, str]]):
    """NAME:FILE of somebody who may come in."""

    name = "NAME:FILE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return the name and the file with the password."""
        if isinstance(value, tuple):
            return value
        name, _, file = value.partition(":")
        if not name or not file:
            self.fail(f"{value!r}: expected NAME:FILE", param, ctx)
        return name, file


@click.command("bus")
@click.option(
    "--listen-redis",
    type=ADDRESS,
    multiple=True,
    help="Where Synapse's processes connect; also unix:PATH.  [default: 127.0.0.1:6379]",
)
@click.option(
    "--password-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file with the password that AUTH has to say.",
)
@click.option(
    "--user",
    "users",
    type=UserType(),
    multiple=True,
    help="A name, and a file with the password that is its own. May be given several times.",
)
@relaying_options(DEFAULT_DATA)
def command(
    listen_redis: Sequence[Address],
    password_file: Path | None,
    users: Sequence[tuple[str, str]],
    secret_file: Path | None,
    **shared: Any,
) -> int:
    """Be the Redis of an unmodified Synapse, and keep every row of its replication.

    Point the redis section of Synapse's configuration here. Every process gets every row,
    however slow it is; all of them can be read with nc, tail, by long poll and on the page.

    \b
    Example:
      $ tcprepl bus --server-name example.com
      $ nc 127.0.0.1 9092
      REPLICATE
    """
    own: dict[str, object] = {
        "bus.listen": [str(address) for address in listen_redis] or None,
        "bus.password_file": password_file,
        "bus.users": dict(users) or None,
    }
    loaded, read = load(shared, DEFAULT_DATA, own)

    def make(reactor: Reactor) -> Bus:
        return Bus(reactor, loaded.config, secret_file=secret_file)

    return run_process(make, "bus", welcome, read)


def welcome(bus: Bus) -> str:
    """Return what to type next."""
    config = bus.config
    lines = [f'tcprepl is the Redis of "{config.server_name}".', ""]
    for address in bus.bus_addresses:
        lines.append("In homeserver.yaml, and in the file of every worker that has the section:")
        if address.startswith("unix:"):
            lines.append(f"  redis: {{enabled: true, path: {address.removeprefix('unix:')}}}")
        else:
            host, _, port = address.rpartition(":")
            lines.append(f"  redis: {{enabled: true, host: {host.strip('[]')}, port: {port}}}")
        lines.append("")
        break
    lines += by_hand(bus.replication_addresses)
    lines += [f"The logs are in {where_logs_are(config)}. Ctrl-C stops it.", ""]
    return "\n".join(lines)
