"""``tcprepl relay``: a server whose streams come from an upstream."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import structlog
from twisted.internet.defer import CancelledError, Deferred, fail

from tcprepl.app.server import done, listened, redis_extra, retention_of, sd_notify, server_endpoint
from tcprepl.cli import logs
from tcprepl.cli.arguments import ADDRESS
from tcprepl.cli.following import client_endpoint
from tcprepl.cli.running import run_until_done
from tcprepl.config import Address, Config, Loaded, build, load, parse_address
from tcprepl.errors import TcpreplError
from tcprepl.http.routing import ApiError
from tcprepl.protocol.commands import (
    CancelTaskCommand,
    ClearUserSyncCommand,
    Command,
    FederationAckCommand,
    LockReleasedCommand,
    NewActiveTaskCommand,
    RemoteServerUpCommand,
    UserSyncCommand,
)
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.replication.failures import describe_address
from tcprepl.replication.following.catchup import HttpCatchUp
from tcprepl.replication.redis.url import RedisUrl, is_redis_url, parse_redis_url, redis_endpoint
from tcprepl.replication.relaying.intake import Intake, Upstream, relay_registry
from tcprepl.replication.relaying.state import RelayState
from tcprepl.replication.relaying.tcp_source import TcpUpstream
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.notifier import Notifier
from tcprepl.streams.opening import open_log
from tcprepl.web.services import HttpLimits, WebServices
from tcprepl.web.site import build_site

log = structlog.get_logger()

DEFAULT_DATA = "./tcprepl-relay"
#: What readers may say to those upstream.
UPWARD: tuple[type[Command], ...] = (
    UserSyncCommand,
    ClearUserSyncCommand,
    FederationAckCommand,
    RemoteServerUpCommand,
    LockReleasedCommand,
    NewActiveTaskCommand,
    CancelTaskCommand,
)
#: What those upstream may say to readers, besides rows and positions.
DOWNWARD: tuple[type[Command], ...] = (
    RemoteServerUpCommand,
    LockReleasedCommand,
    NewActiveTaskCommand,
    CancelTaskCommand,
)


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


class InstanceType(click.ParamType[tuple[str, str]]):
    """NAME=URL of an instance's HTTP replication listener."""

    name = "NAME=URL"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return name and URL; Synapse calls its main process master on the wire."""
        if isinstance(value, tuple):
            return value
        name, _, url = value.partition("=")
        if not name or not url.startswith(("http://", "https://")):
            self.fail(f"{value!r}: expected NAME=http://HOST:PORT", param, ctx)
        return ("master" if name == "main" else name), url.rstrip("/")


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
    type=click.Path(path_type=Path, file_okay=False),
    help=f"The directory for the logs.  [default: {DEFAULT_DATA}]",
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
def command(
    upstream: RedisUrl | Address,
    server_name: str | None,
    config_file: Path | None,
    listen: Address | None,
    http: Address | None,
    data: Path | None,
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
        "data_directory": data or (None if config_file else Path(DEFAULT_DATA)),
        "instances": dict(instances) or None,
    }
    loaded = load(config_file, overrides) if config_file else build({}, "command line", overrides)
    if "server_name" not in loaded.config.model_fields_set:
        raise click.UsageError("--server-name is missing: whose streams are they?")
    if isinstance(upstream, Address) and user_ip:
        raise click.UsageError("--user-ip is of Redis only")
    logs.configure(loaded.config.log.level, loaded.config.log.format)
    secret = None if secret_file is None else secret_file.read_text(encoding="utf-8").strip()

    def make(reactor: Any) -> Relay:
        return Relay(
            reactor,
            loaded.config,
            upstream,
            secret=secret,
            passive=passive,
            user_ip=user_ip,
            dialect=dialect,
        )

    return run_until_done(lambda reactor: serve(make(reactor), loaded))


class ReadOnly:
    """The publisher of a relay: rows come from upstream only."""

    def publish_json(self, *_: object, **__: object) -> Deferred[Any]:
        """Refuse."""
        return fail(
            ApiError(
                403,
                "TCPREPL_RELAY",
                "this is a relay, its rows come from its upstream: publish there",
            )
        )


class Relay:
    """Client, log and server in one, started and stopped in order.

    Attributes:
        failed: Fires with the failure when the log takes no more.
        upstream_name: Where the rows come from, without secrets.
        replication_addresses: Where the line protocol listens.
        http_addresses: Where the HTTP API listens.
    """

    def __init__(
        self,
        reactor: Any,
        config: Config,
        upstream: RedisUrl | Address,
        *,
        secret: str | None = None,
        passive: bool = False,
        user_ip: bool = False,
        dialect: str = "auto",
    ) -> None:
        self.failed: Deferred[None] = Deferred()
        self.upstream_name = str(upstream)
        self.replication_addresses: list[str] = []
        self.http_addresses: list[str] = []
        self._reactor = reactor
        self._config = config
        self._where = upstream
        self._secret = secret
        self._passive = passive
        self._user_ip = user_ip
        self._dialect = dialect
        self._not_ready: str | None = "starting"
        self._stops: list[Callable[[], object]] = []

    async def start(self) -> None:
        """Open the log, listen, then connect.

        Raises:
            TcpreplError: Something is in the way; what was started has been stopped again.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        self._not_ready = None

    async def _start(self) -> None:
        config, reactor = self._config, self._reactor
        state = RelayState(config.data_directory)
        self._stops.append(state.close)
        registry = relay_registry(state.streams())
        stream_log = open_log(
            config.data_directory, registry, reactor, retention_of(config), gaps=state.gaps
        )
        self._stops.append(stream_log.close)
        intake = Intake(reactor, stream_log, registry, state)
        self._stops.append(intake.close)
        self.failed = intake.failed
        self._server = ReplicationServer(
            reactor,
            stream_log,
            registry,
            config.server_name,
            config.instance,
            dialect=config.replication.dialect,
            max_connections=config.replication.max_connections,
            epoch_s=time.time() - reactor.seconds(),
        )
        self._stops.append(self._server.stop)
        intake.on_pair = self._server.hub.announce
        self._upstream = self._make_upstream(intake, registry)
        self._server.links.append(self._upstream.status)
        for kind in UPWARD:
            self._server.on(kind, self._say_upstream)
        notifier = Notifier()
        notifier.attach(stream_log)
        await self._listen(
            WebServices(
                reactor=reactor,
                log=stream_log,
                registry=registry,
                publisher=ReadOnly(),
                notifier=notifier,
                server_name=config.server_name,
                instance=config.instance,
                replication_server=self._server,
                acknowledge=lambda instance, token: self._upstream.send(
                    FederationAckCommand(instance, token)
                ),
                ready=lambda: self._not_ready,
                secrets=[
                    s.get_secret_value()
                    for s in (config.http.token, config.http.replication_secret)
                    if s
                ],
                hosts=config.http.hosts,
                limits=HttpLimits(max_body_bytes=config.http.max_body_bytes),
            )
        )
        self._upstream.start()
        self._stops.append(self._upstream.stop)

    def _make_upstream(self, intake: Intake, registry: Any) -> Upstream:
        config, where = self._config, self._where
        catch_up = None
        if config.instances:
            secret = config.http.replication_secret
            own = secret.get_secret_value() if secret else None
            catch_up = HttpCatchUp(self._reactor, config.instances, self._secret or own)
            self._stops.append(catch_up.close)
        if isinstance(where, Address):
            return TcpUpstream(
                self._reactor,
                client_endpoint(self._reactor, where),
                str(where),
                intake,
                registry,
                server_name=config.server_name,
                dialect=self._dialect,
                catch_up=catch_up,
                on_command=self._say_downstream,
                passive=self._passive,
            )
        made: Upstream = redis_extra("relaying.redis_source").RedisUpstream(
            self._reactor,
            redis_endpoint(self._reactor, where),
            str(where),
            intake,
            registry,
            server_name=config.server_name,
            user=where.user,
            password=where.password,
            catch_up=catch_up,
            on_command=self._say_downstream,
            passive=self._passive,
            user_ip=self._user_ip,
        )
        return made

    def _say_downstream(self, command: Command) -> None:
        """Pass on what readers are to hear of."""
        if isinstance(command, DOWNWARD):
            self._server.broadcast(command)

    def _say_upstream(self, command: Command, peer: Any) -> None:
        """Pass on what a reader said to all who listen up there."""
        if isinstance(command, FederationAckCommand) and command.instance is None and peer.name:
            command = replace(command, instance=peer.name)
        self._upstream.send(command)

    async def _listen(self, services: WebServices) -> None:
        config = self._config
        for address in config.replication.listen:
            endpoint = server_endpoint(self._reactor, address, config.replication.tls)
            port = await listened(self._server.listen(endpoint), "replication", address)
            self.replication_addresses.append(describe_address(port.getHost()))
        site = build_site(services)
        for address in config.http.listen:
            endpoint = server_endpoint(self._reactor, address, config.http.tls)
            port = await listened(endpoint.listen(site), "http", address)
            self._stops.append(port.stopListening)
            self.http_addresses.append(describe_address(port.getHost()))

    async def stop(self) -> None:
        """Leave the upstream, drain the readers, write everything out."""
        self._not_ready = "stopping"
        while self._stops:
            stop = self._stops.pop()
            try:
                await done(stop())
            except TcpreplError as error:
                log.error("relay.stop_failed", error=str(error))


async def serve(relay: Relay, loaded: Loaded) -> int:
    """Run a relay until cancelled, or until its log takes no more."""
    for warning in loaded.warnings:
        log.warning("config.spelling", text=warning)
    await relay.start()
    log.info(
        "relay.ready",
        server_name=loaded.config.server_name,
        upstream=relay.upstream_name,
        replication=" ".join(relay.replication_addresses),
        http=" ".join(relay.http_addresses),
        data=str(loaded.config.data_directory or "memory"),
    )
    sys.stdout.write(welcome(relay, loaded.config))
    sys.stdout.flush()
    sd_notify("READY=1")
    try:
        await relay.failed
    except CancelledError:
        log.info("relay.stopping")
    finally:
        sd_notify("STOPPING=1")
        await relay.stop()
        log.info("relay.stopped")
    return 0


def welcome(relay: Relay, config: Config) -> str:
    """Return what to type next."""
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
    lines += [f"The logs are in {config.data_directory or 'memory'}. Ctrl-C stops it.", ""]
    return "\n".join(lines)
