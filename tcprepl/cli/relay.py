"""``tcprepl relay``: a server whose streams come from an upstream."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from tcprepl.app.opening import where_logs_are
from tcprepl.app.relay import Relay
from tcprepl.cli import logs
from tcprepl.cli.arguments import ADDRESS, DATA, InstanceType, data_settings, saying_token
from tcprepl.cli.running import run_process
from tcprepl.clocks import Reactor
from tcprepl.config import loader
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.replication.redis.url import RedisUrl, is_redis_url, parse_redis_url
from tcprepl.values import Address, parse_address

DEFAULT_DATA = "./tcprepl-relay"


class UpstreamType(click.ParamType[RedisUrl | Address]):
    """URL of a Redis, or where a server of the line protocol is."""

    name = "URL"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> RedisUrl | Address:
        """Return the parsed upstream; the value may hold a password and is not quoted."""
        if isinstance(value, RedisUrl | Address):
            return value
        try:
            return parse_redis_url(value) if is_redis_url(value) else parse_address(value)
        except ValueError as error:
            return self.fail(f"{error}, or HOST:PORT of a server", param, ctx)


@click.command("relay")
@click.option(
    "--upstream",
    type=UpstreamType(),
    required=True,
    envvar="TCPREPL_UPSTREAM",
    show_envvar=True,
    help="Where the streams come from: redis://HOST:PORT, rediss://..., unix:/PATH (Redis), or "
    "HOST:PORT of tcprepl or of a Synapse up to 1.66.",
)
@click.option("--server-name", help="The homeserver's name; on Redis, the channel.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A configuration file (YAML), as of serve; the options here are stronger.",
)
@click.option(
    "--listen", type=ADDRESS, help="Where the line protocol listens.  [default: 127.0.0.1:9092]"
)
@click.option("--http", type=ADDRESS, help="Where HTTP listens.  [default: 127.0.0.1:9093]")
@click.option(
    "--data",
    type=DATA,
    help=f"The directory for the logs, or postgresql://...  [default: {DEFAULT_DATA}]",
)
@click.option(
    "--instance",
    "instances",
    type=InstanceType(),
    multiple=True,
    help="Where missed rows of an instance can be fetched: its HTTP replication listener; * is "
    "every other. May be given several times.",
)
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A file with the secret of these listeners (worker_replication_secret).",
)
@click.option("--passive", is_flag=True, help="Never say anything upstream; only listen.")
@click.option("--user-ip", is_flag=True, help="On Redis, hear USER_IP too, to count it.")
@click.option(
    "--dialect",
    type=click.Choice(["auto", *(d.name for d in DIALECTS.values() if d.over_tcp)]),
    default="auto",
    show_default=True,
    help="What an upstream at HOST:PORT speaks.",
)
@partial(saying_token, "upstream")
def command(
    upstream: RedisUrl | Address,
    server_name: str | None,
    config_file: Path | None,
    listen: Address | None,
    http: Address | None,
    data: Path | str | None,
    instances: Sequence[tuple[str, str]],
    secret_file: Path | None,
    passive: bool,
    user_ip: bool,
    dialect: str,
) -> int:
    """Follow an upstream, keep its streams, and serve them to any number of readers.

    Readers come to the relay as they come to a server: over TCP, by long poll, with tail, from
    a token of theirs. The upstream has one connection, however many they are. When it is
    away, readers stay connected; STATUS says why, and for how long.

    \b
    Example:
      $ tcprepl relay --upstream redis://127.0.0.1:6379 --server-name example.com
      $ nc 127.0.0.1 9092
      REPLICATE
    """
    overrides: dict[str, object] = {
        "server_name": server_name,
        "replication.listen": listen and str(listen),
        "http.listen": http and str(http),
        **data_settings(data, None if config_file else DEFAULT_DATA),
        "instances": dict(instances) or None,
    }
    read = loader(config_file, overrides)
    loaded = read()
    if "server_name" not in loaded.config.model_fields_set:
        raise click.UsageError("--server-name is missing: whose streams are they?")
    if isinstance(upstream, Address) and user_ip:
        raise click.UsageError("--user-ip is of Redis only")
    logs.configure(loaded.config.log.level, loaded.config.log.format)
    logs.warn_of_spelling(loaded.warnings)

    def make(reactor: Reactor) -> Relay:
        return Relay(
            reactor,
            loaded.config,
            upstream,
            secret_file=secret_file,
            passive=passive,
            user_ip=user_ip,
            dialect=dialect,
        )

    return run_process(make, "relay", welcome, None if config_file is None else read)


def welcome(relay: Relay) -> str:
    """Return what to type next."""
    config = relay.config
    lines = [f'tcprepl relays "{config.server_name}" from {relay.upstream_name}.', ""]
    for address in relay.replication_addresses:
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
