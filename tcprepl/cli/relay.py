"""``tcprepl relay``: a server whose streams come from an upstream."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from tcprepl.addresses import Address, parse_address
from tcprepl.app.opening import where_logs_are
from tcprepl.app.relay import Relay
from tcprepl.cli.arguments import saying_token
from tcprepl.cli.relaying import by_hand, load, relaying_options
from tcprepl.cli.serving import run_process
from tcprepl.clocks import Reactor
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.replication.redis.url import RedisUrl, is_redis_url, parse_redis_url

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
@relaying_options(DEFAULT_DATA)
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
    passive: bool,
    user_ip: bool,
    dialect: str,
    secret_file: Path | None,
    **shared: Any,
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
    loaded, read = load(shared, DEFAULT_DATA)
    if isinstance(upstream, Address) and user_ip:
        raise click.UsageError("--user-ip is of Redis only")

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

    return run_process(make, "relay", welcome, read)


def welcome(relay: Relay) -> str:
    """Return what to type next."""
    config = relay.config
    lines = [f'tcprepl relays "{config.server_name}" from {relay.upstream_name}.', ""]
    lines += by_hand(relay.replication_addresses)
    lines += [f"The logs are in {where_logs_are(config)}. Ctrl-C stops it.", ""]
    return "\n".join(lines)
