"""What the commands share that keep the streams of others: ``relay`` and ``bus``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from tcprepl.cli import logs
from tcprepl.cli.arguments import ADDRESS, DATA, InstanceType, data_settings
from tcprepl.config import Loaded, loader

F = TypeVar("F", bound=Callable[..., Any])


def relaying_options(default_data: str) -> Callable[[F], F]:
    """Return what adds the shared options to a command; `load` takes them as they come."""
    options = (
        click.option("--server-name", help="The homeserver's name; on Redis, the channel."),
        click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="A configuration file (YAML), as of serve; the options here are stronger.",
        ),
        click.option(
            "--listen",
            type=ADDRESS,
            multiple=True,
            help="Where the line protocol listens; again for each address.  "
            "[default: 127.0.0.1:9092]",
        ),
        click.option(
            "--http",
            type=ADDRESS,
            multiple=True,
            help="Where HTTP listens; again for each address.  [default: 127.0.0.1:9093]",
        ),
        click.option(
            "--data",
            type=DATA,
            help="The directory for the logs, or postgresql://...; none keeps them in memory.  "
            f"[default: {default_data}]",
        ),
        click.option(
            "--instance",
            "instances",
            type=InstanceType(),
            multiple=True,
            help="Where missed rows of an instance can be fetched: its HTTP replication listener; "
            "* is every other. May be given several times.",
        ),
        click.option(
            "--secret-file",
            type=click.Path(path_type=Path, dir_okay=False, exists=True),
            help="A file with the secret of these listeners (worker_replication_secret).",
        ),
    )

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def load(
    shared: Mapping[str, Any], default_data: str, more: Mapping[str, object] | None = None
) -> tuple[Loaded, Callable[[], Loaded] | None]:
    """Return the settings, and what reads them again if they have a file; logging follows them.

    Args:
        shared: What `relaying_options` were given.
        default_data: Where the logs are if nothing says so.
        more: Settings that only this command has options for.

    Raises:
        ConfigError: The settings are not what they should be.
        click.UsageError: Nothing says whose streams they are.
    """
    config_file = shared["config_file"]
    overrides: dict[str, object] = {
        "server_name": shared["server_name"],
        "replication.listen": [str(address) for address in shared["listen"]] or None,
        "http.listen": [str(address) for address in shared["http"]] or None,
        **data_settings(shared["data"], None if config_file else default_data),
        "instances": dict(shared["instances"]) or None,
        **(more or {}),
    }
    read = loader(config_file, overrides)
    loaded = read()
    if "server_name" not in loaded.config.model_fields_set:
        raise click.UsageError("--server-name is missing: whose streams are they?")
    logs.configure(loaded.config.log.level, loaded.config.log.format)
    logs.warn_of_spelling(loaded.warnings)
    return loaded, None if config_file is None else read


def by_hand(addresses: Iterable[str]) -> list[str]:
    """Return how to see the lines with one's own eyes, if that can be done by TCP."""
    for address in addresses:
        host, _, port = address.rpartition(":")
        if host and not host.startswith("unix"):
            return [
                "See it with your own eyes, in another terminal:",
                f"  nc {host.strip('[]')} {port}          then type REPLICATE, or STATUS",
                "",
            ]
    return []
