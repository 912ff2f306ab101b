"""``tcprepl bus``: in the place of the Redis of an unmodified Synapse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from tcprepl.app.bus import Bus
from tcprepl.app.opening import where_logs_are
from tcprepl.cli import logs
from tcprepl.cli.arguments import ADDRESS, InstanceType, data_settings
from tcprepl.cli.running import run_process
from tcprepl.clocks import Reactor
from tcprepl.config import loader
from tcprepl.values import Address

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
@click.option("--server-name", help="The homeserver's name, which is its channel.")
@click.option(
    "--listen-redis",
    type=ADDRESS,
    multiple=True,
    help="Where Synapse's processes connect; also unix:PATH.  [default: 127.0.0.1:6379]",
)
@click.option(
    "--listen", type=ADDRESS, help="Where the line protocol listens.  [default: 127.0.0.1:9092]"
)
@click.option("--http", type=ADDRESS, help="Where HTTP listens.  [default: 127.0.0.1:9093]")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"The directory for the logs; none keeps them in memory.  [default: {DEFAULT_DATA}]",
)
@click.option(
    "--instance",
    "instances",
    type=InstanceType(),
    multiple=True,
    help="Where rows of an instance can be fetched that it published to nobody: its HTTP "
    "replication listener; * is every other. May be given several times.",
)
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A file with the secret of these listeners (worker_replication_secret).",
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
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A configuration file (YAML), as of serve; the options here are stronger.",
)
def command(
    server_name: str | None,
    listen_redis: Sequence[Address],
    listen: Address | None,
    http: Address | None,
    data: Path | str | None,
    instances: Sequence[tuple[str, str]],
    secret_file: Path | None,
    password_file: Path | None,
    users: Sequence[tuple[str, str]],
    config_file: Path | None,
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
    overrides: dict[str, object] = {
        "server_name": server_name,
        "bus.listen": [str(address) for address in listen_redis] or None,
        "bus.password_file": password_file,
        "bus.users": dict(users) or None,
        "replication.listen": listen and str(listen),
        "http.listen": http and str(http),
        **data_settings(data, None if config_file else DEFAULT_DATA),
        "instances": dict(instances) or None,
    }
    read = loader(config_file, overrides)
    loaded = read()
    if "server_name" not in loaded.config.model_fields_set:
        raise click.UsageError("--server-name is missing: whose streams are they?")
    logs.configure(loaded.config.log.level, loaded.config.log.format)
    logs.warn_of_spelling(loaded.warnings)

    def make(reactor: Reactor) -> Bus:
        return Bus(reactor, loaded.config, secret_file=secret_file)

    return run_process(make, "bus", welcome, None if config_file is None else read)


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
    for address in bus.replication_addresses:
        host, _, port = address.rpartition(":")
        if host and not host.startswith("unix"):
            lines += [
                "See it with your own eyes, in another terminal:",
                f"  nc {host.strip('[]')} {port}          then type REPLICATE, or STATUS",
                "",
            ]
            break
    lines += [f"The logs are in {where_logs_are(config)}. Ctrl-C stops it.", ""]
    return "\n".join(lines)
