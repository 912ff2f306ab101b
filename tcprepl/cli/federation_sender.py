"""``tcprepl federation-sender``: send EDUs to other servers."""

from __future__ import annotations

from pathlib import Path

import click

from tcprepl.addresses import Address
from tcprepl.app.connecting import client_endpoint
from tcprepl.app.sender import FederationWorker
from tcprepl.app.settings import trust_of
from tcprepl.cli import logs
from tcprepl.cli.arguments import ADDRESS, DATA, SECONDS, from_option
from tcprepl.cli.serving import run_process
from tcprepl.clocks import Reactor
from tcprepl.config import loader
from tcprepl.errors import ConfigError
from tcprepl.federation.sending.backoff import BackoffPolicy
from tcprepl.federation.sending.sender import MAX_CONCURRENT_REQUESTS
from tcprepl.federation.wire.edu import is_server_name
from tcprepl.federation.wire.transaction import (
    MAX_EDUS,
    MAX_TRANSACTION_BYTES,
    MIN_TRANSACTION_BYTES,
    TransactionLimits,
)

DEFAULT_DATA = "./tcprepl-sender"


def placed_servers(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """Return what the ``--resolve NAME=HOST:PORT`` options say."""
    placed: dict[str, str] = {}
    for value in values:
        name, _, where = value.partition("=")
        host, _, port = where.rpartition(":")
        if not is_server_name(name) or not host or not port.isdigit() or int(port) > 65_535:
            raise click.BadParameter(f"{value!r}: expected NAME=HOST:PORT")
        placed[name] = where
    return placed


@click.command("federation-sender")
@from_option
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A configuration file (YAML), as of serve: its server_name, federation and log, and who "
    "may ask by its http; the options here are stronger.",
)
@click.option(
    "--data",
    type=DATA,
    help=f"The directory for the outbox, or postgresql://...  [default: {DEFAULT_DATA}]",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="The directory for all else where the outbox is in a database: signing key, control "
    f"socket.  [default: {DEFAULT_DATA}]",
)
@click.option(
    "--standby",
    is_flag=True,
    help="Wait until no sender of this name has the outbox in the database, and take over then.",
)
@click.option("--name", default="fed1", show_default=True, help="The name of this sender.")
@click.option("--senders", help="All senders, A,B,C: the same list for each of them.")
@click.option("--server-name", help="The homeserver's name.  [default: what the writer says]")
@click.option(
    "--signing-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The homeserver's signing key.  [default: signing.key in the data directory]",
)
@click.option(
    "--ca",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A PEM file with certificates to trust besides the system's.",
)
@click.option(
    "--resolve",
    multiple=True,
    metavar="NAME=HOST:PORT",
    callback=placed_servers,
    help="Where a server is, instead of looking for it; again for each.",
)
@click.option("--allow-private", is_flag=True, help="Connect to private addresses too.")
@click.option(
    "--allow-range",
    multiple=True,
    metavar="CIDR",
    help="Connect to this range too; again for each.",
)
@click.option(
    "--http",
    type=ADDRESS,
    multiple=True,
    help="Where /health, /metrics and the status are, 127.0.0.1:9094 for example; again for each.  "
    "[default: nowhere]",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 10_000),
    default=MAX_CONCURRENT_REQUESTS,
    show_default=True,
    help="Requests under way at once.",
)
@click.option(
    "--max-edus",
    type=click.IntRange(1, MAX_EDUS),
    default=MAX_EDUS,
    show_default=True,
    help="Most EDUs in a transaction.",
)
@click.option(
    "--max-bytes",
    type=click.IntRange(MIN_TRANSACTION_BYTES),
    default=MAX_TRANSACTION_BYTES,
    show_default=True,
    help="Largest transaction.",
)
@click.option(
    "--retry-first",
    type=SECONDS,
    help="The wait after the first failure; more follow, doubling.  [default: 4 s, 16 s, "
    "eight times 60 s, then 10 minutes, doubling]",
)
@click.option("--retry-cap", type=SECONDS, help="The longest wait.  [default: a week]")
@click.option(
    "--dialect", default="auto", show_default=True, help="The dialect that the writer speaks."
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="What is logged on stderr.  [default: info]",
)
def command(
    source: Address,
    config_file: Path | None,
    data: Path | str | None,
    directory: Path | None,
    standby: bool,
    name: str,
    senders: str | None,
    server_name: str | None,
    signing_key: Path | None,
    ca: Path | None,
    resolve: dict[str, str],
    allow_private: bool,
    allow_range: tuple[str, ...],
    http: tuple[Address, ...],
    concurrency: int,
    max_edus: int,
    max_bytes: int,
    retry_first: float | None,
    retry_cap: float | None,
    dialect: str,
    log_level: str | None,
) -> int:
    """Send the EDUs of a server to the servers they are for.

    What is read is kept in an outbox on disk until the other server has accepted it, so
    nothing is lost when this process, the writer or the other server goes away. In a database
    another machine can go on with it. The signing key has to be the one that the homeserver
    publishes.

    \b
    Example:
      $ tcprepl federation-sender --from 127.0.0.1:9092 --signing-key tcprepl-data/signing.key
      tcprepl sends the EDUs of "example.com" as fed1.
    """
    database = data if isinstance(data, str) else None
    if database is None and (standby or directory is not None):
        raise click.UsageError("--standby and --directory go with --data postgresql://...")
    overrides = {
        "server_name": server_name,
        "federation.senders": senders and [w for w in map(str.strip, senders.split(",")) if w],
        "federation.signing_key": signing_key,
        "federation.ca": ca,
        "federation.resolve": resolve or None,
        "federation.allowed_addresses": allow_range or None,
        "federation.allow_private_addresses": allow_private or None,
        "http.listen": [str(address) for address in http] or None,
        "log.level": log_level,
    }
    read = loader(config_file, overrides)
    loaded = read()
    settings = loaded.config.federation
    if settings.senders and name not in settings.senders:
        raise ConfigError(f"--name {name}: expected one of --senders {','.join(settings.senders)}")
    trust_of(settings.ca)  # said before anything is begun
    logs.configure(loaded.config.log.level, loaded.config.log.format)
    logs.warn_of_spelling(loaded.warnings)

    def make(reactor: Reactor) -> FederationWorker:
        return FederationWorker(
            reactor,
            client_endpoint(reactor, source),
            data if isinstance(data, Path) else directory or Path(DEFAULT_DATA),
            loaded.config,
            name=name,
            database=database,
            standby=standby,
            limits=TransactionLimits(edus=max_edus, max_bytes=max_bytes),
            backoff=backoff_policy(retry_first, retry_cap),
            max_concurrent=concurrency,
            dialect=dialect,
            token=source.token,
            source=", ".join(map(str, source.all)),
            http=bool(http),
        )

    return run_process(make, "federation", welcome, None if config_file is None else read)


def welcome(worker: FederationWorker) -> str:
    """Return whose EDUs it sends, and where it may be asked how it goes."""
    scheme = "http" if worker.config.http.tls is None else "https"
    urls = [f"{scheme}://{a}" for a in worker.http_addresses if not a.startswith("unix:")]
    asked = "".join(f"Ask how it goes: {url}/_tcprepl/v1/status\n" for url in urls)
    return f'tcprepl sends the EDUs of "{worker.server_name}" as {worker.name}.\n{asked}'


def backoff_policy(first_s: float | None, cap_s: float | None) -> BackoffPolicy:
    """Return the policy that the options ask for."""
    policy = BackoffPolicy()
    cap_ms = policy.cap_ms if cap_s is None else int(cap_s * 1000)
    if first_s is None:
        return BackoffPolicy(cap_ms=cap_ms)
    return BackoffPolicy(quick_ms=(), first_ms=max(1, int(first_s * 1000)), cap_ms=cap_ms)
