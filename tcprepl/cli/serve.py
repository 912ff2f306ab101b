"""``tcprepl serve``: run a server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from tcprepl.addresses import DEFAULT_HTTP, Address
from tcprepl.app.checking import faults_for_serve
from tcprepl.app.opening import where_logs_are
from tcprepl.app.server import Server
from tcprepl.cli import logs
from tcprepl.cli.arguments import ADDRESS, DATA, data_settings
from tcprepl.cli.serving import run_process
from tcprepl.config import Loaded, loader


@click.command("serve")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A configuration file (YAML); the options below are stronger.",
)
@click.option("--server-name", help="The homeserver's name.  [default: localhost]")
@click.option("--instance", help="The name to write streams under.  [default: master]")
@click.option(
    "--listen",
    type=ADDRESS,
    multiple=True,
    help="Where the line protocol listens; again for each address.  [default: 127.0.0.1:9092]",
)
@click.option(
    "--http",
    type=ADDRESS,
    multiple=True,
    help="Where HTTP listens; again for each address.  [default: 127.0.0.1:9093]",
)
@click.option(
    "--data",
    type=DATA,
    help="The directory for the logs, or postgresql://...  [default: ./tcprepl-data]",
)
@click.option(
    "--standby",
    is_flag=True,
    help="Wait until nobody writes as this instance into the database, and take over then.",
)
@click.option(
    "--dialect",
    type=click.Choice(["auto", "1.13", "1.22"]),
    help="Which POSITION a bare REPLICATE gets.  [default: auto]",
)
@click.option(
    "--redis",
    metavar="URL",
    envvar="TCPREPL_REDIS",
    help="Publish the streams over this Redis, too: redis://HOST:PORT, rediss:// or unix:/PATH.",
)
def command(**options: Any) -> int:
    """Run a server: streams over TCP to any number of readers, and the HTTP API to publish.

    Without options it listens on this machine only, and keeps its logs in ./tcprepl-data.
    SIGTERM and Ctrl-C tell every peer, close, and write everything out.

    \b
    Example:
      $ tcprepl serve --server-name example.com
      tcprepl is running as "example.com".
    """
    read = settings_of(**options)
    loaded = read()
    logs.configure(loaded.config.log.level, loaded.config.log.format)
    logs.warn_of_spelling(loaded.warnings)
    return run_process(
        lambda reactor: Server(reactor, loaded.config),
        "serve",
        welcome,
        None if options["config_file"] is None else read,
    )


def settings_of(
    *,
    config_file: Path | None,
    server_name: str | None,
    instance: str | None,
    listen: Sequence[Address],
    http: Sequence[Address],
    data: Path | str | None,
    standby: bool,
    dialect: str | None,
    redis: str | None,
) -> Callable[[], Loaded]:
    """Return what reads the settings that the options of the command make."""
    overrides = {
        "server_name": server_name,
        "instance": instance,
        "replication.listen": [str(address) for address in listen] or None,
        "http.listen": [str(address) for address in http] or None,
        **data_settings(data),
        "standby": standby or None,
        "replication.dialect": dialect,
        "redis.url": redis,
    }
    return loader(config_file, overrides, faults_for_serve)


def welcome(server: Server) -> str:
    """Return what to type next."""
    config = server.config
    lines = [f'tcprepl is running as "{config.server_name}".', ""]
    replication = next((a for a in server.replication_addresses if ":" in a), "")
    http = next((a for a in server.http_addresses if not a.startswith("unix:")), "")
    source = "" if replication == "127.0.0.1:9092" else f" --from {replication}"
    if config.replication.tls is not None:  # a certificate is for a name, not for an address
        source = f" --from tls:HOST:{replication.rpartition(':')[2]}"
    if config.replication.tokens:
        source += " --token-file FILE"
    url = f"http{'' if config.http.tls is None else 's'}://{http}"
    target = "" if url == f"http://{DEFAULT_HTTP}" else f" --to {url}"
    if config.replication.tokens or config.http.token:
        target += " --token-file FILE"
    command = sys.argv[0] if sys.argv[0].endswith("/tcprepl") else "tcprepl"
    if "/" in command and Path(command).is_absolute():
        try:
            command = str(Path(command).relative_to(Path.cwd()))
            if Path.cwd() == Path("/"):  # where services begin
                command = "tcprepl"
        except ValueError:
            command = "tcprepl"
    if replication and not replication.startswith("unix:") and config.replication.tls is None:
        host, _, port = replication.rpartition(":")
        lines += [
            "See it with your own eyes, in another terminal:",
            f"  nc {host.strip('[]')} {port}          then type REPLICATE, or HELP",
            "",
        ]
    lines += [
        "Publish a row:",
        f'  {command} publish{target} typing \'["!room:example.com", ["@alice:example.com"]]\'',
        "",
        "Follow every stream:",
        f"  {command} tail{source}",
        "",
    ]
    if http:
        lines += [f"A page to look at:  {url}/", ""]
    where = where_logs_are(config)
    if where == "memory":
        lines += ["Everything is kept in memory only. Ctrl-C stops it.", ""]
    else:
        lines += [f"The logs are in {where}. Ctrl-C stops it.", ""]
    return "\n".join(lines)
