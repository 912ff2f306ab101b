"""The composition root of a relay: client, log and server in one.

Starting goes from the log outward and connects last; stopping leaves the upstream first, then
drains the readers, then writes everything out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail

from tcprepl.access import Guesses
from tcprepl.app.connecting import client_endpoint
from tcprepl.app.lifecycle import Lifecycle, end
from tcprepl.app.listening import Listeners, peers_in_words
from tcprepl.app.opening import open_log_of, room_in_words, where_logs_are
from tcprepl.app.reload import SERVING, all_of
from tcprepl.app.settings import anonymous_of, grants_of, http_secrets, retention_of, tokens_of
from tcprepl.clocks import Reactor
from tcprepl.config import Config, read_secret
from tcprepl.ephemeral.presence_peers import SyncsBelow
from tcprepl.http.calls import ApiError
from tcprepl.ids import InstanceName, Token
from tcprepl.protocol.commands import (
    CancelTaskCommand,
    Command,
    FederationAckCommand,
    LockReleasedCommand,
    NewActiveTaskCommand,
    RemoteServerUpCommand,
)
from tcprepl.replication.following.http_catchup import HttpCatchUp
from tcprepl.replication.redis.url import RedisUrl, redis_endpoint
from tcprepl.replication.relaying.intake import RelayIntake, Upstream, relay_registry
from tcprepl.replication.relaying.redis_source import RedisUpstream
from tcprepl.replication.relaying.state import RelayState
from tcprepl.replication.relaying.tcp_source import TcpUpstream
from tcprepl.replication.serving.draining import Drain
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.notifier import Notifier
from tcprepl.values import Address
from tcprepl.web.services import HttpLimits, WebServices
from tcprepl.web.site import build_site

#: What readers may say to those upstream.
UPWARD: tuple[type[Command], ...] = (
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
        failed: Fires with the failure when the log takes no more, or without one once drained.
        drainable: Whether its readers may be sent elsewhere.
        upstream_name: Where the rows come from, without secrets.
        config: The settings.
    """

    drainable = True

    def __init__(
        self,
        reactor: Reactor,
        config: Config,
        upstream: RedisUrl | Address,
        *,
        secret_file: Path | None = None,
        passive: bool = False,
        user_ip: bool = False,
        dialect: str = "auto",
    ) -> None:
        self.failed: Deferred[None] = Deferred()
        self.upstream_name = str(upstream)
        self.config = config
        self._reactor = reactor
        self._where = upstream
        self._secret_file = secret_file
        self._catch_up: HttpCatchUp | None = None
        self._passive = passive
        self._user_ip = user_ip
        self._dialect = dialect
        self._not_ready: str | None = "starting"
        self._drain: Drain | None = None
        self._intake: RelayIntake | None = None
        self._guesses = Guesses()
        self._life = Lifecycle(reactor, "relay")
        self._listeners = Listeners(reactor, config, self._life)

    async def start(self) -> None:
        """Open the log, listen, then connect.

        Raises:
            TcpreplError: Something is in the way; what was started has been stopped again.
        """
        await self._life.start(self._start)
        self._not_ready = None

    async def _start(self) -> None:
        config, reactor = self.config, self._reactor
        state = RelayState(config.data_directory)
        self._life.add("state", state.close)
        registry = relay_registry(state.streams())
        stream_log = await open_log_of(config, registry, reactor, state.gaps)
        self._log = stream_log
        self._life.add("log", stream_log.close)
        self._intake = intake = RelayIntake(reactor, stream_log, registry, state)
        self._life.add("intake", intake.close)
        for failed in (intake.failed, stream_log.failed):  # either may meet it first
            _ = failed.addErrback(lambda failure: end(self.failed, failure))
        self._server = ReplicationServer(
            reactor,
            stream_log,
            registry,
            config.server_name,
            config.instance,
            dialect=config.replication.dialect,
            max_connections=config.replication.max_connections,
            tokens=tokens_of(config, self._guesses),
            anonymous=anonymous_of(config),
        )
        self._life.add("replication", self._server.stop)
        intake.on_pair = self._server.hub.announce
        self._upstream = self._make_upstream(intake, registry)
        self._server.links.append(self._upstream.status)
        for kind in UPWARD:
            self._server.on(kind, self._say_upstream)
        syncs = SyncsBelow(reactor, self._server, self._upstream.send)
        syncs.start()
        self._life.add("syncs", syncs.stop)
        notifier = Notifier()
        notifier.attach(stream_log)
        await self._listeners.open_replication(self._server)
        self._web = WebServices(
            reactor=reactor,
            log=stream_log,
            registry=registry,
            publisher=ReadOnly(),
            notifier=notifier,
            server_name=config.server_name,
            instance=config.instance,
            replication_server=self._server,
            acknowledge=self._acknowledge,
            drain=self.drain if self.drainable else None,
            room=lambda: room_in_words(self.config),
            ready=lambda: self._not_ready or stream_log.trouble or intake.trouble,
            secrets=http_secrets(config),
            grants=grants_of(config),
            guesses=self._guesses,
            hosts=config.http.hosts,
            limits=HttpLimits(max_body_bytes=config.http.max_body_bytes),
        )
        self._site = build_site(self._web)
        await self._listeners.open_http(self._site)
        await self._start_upstream()

    def drain(self, within_s: float, to: str = "") -> Drain:
        """Let everybody go who has everything, and be done then (`failed`).

        Returns:
            The drain; the one that there is already, as it was asked for first.
        """
        if self._drain is None:
            self._drain = Drain(self._server, self._log.flush, within_s, to)
            self._life.add("drain", self._drain.stop)
            self._not_ready = self._drain.text
            _ = self._drain.done.addCallback(lambda _: end(self.failed))
        return self._drain

    async def _start_upstream(self) -> None:
        self._upstream.start()
        self._life.add("upstream", self._upstream.stop)

    def _make_catch_up(self) -> HttpCatchUp | None:
        """Return what fetches missed rows, if the configuration says where."""
        config = self.config
        if config.instances:
            self._catch_up = HttpCatchUp(self._reactor, config.instances, self._secret(config))
            self._life.add("catch_up", self._catch_up.close)
        return self._catch_up

    def _make_upstream(self, intake: RelayIntake, registry: Any) -> Upstream:
        config, where = self.config, self._where
        catch_up = self._make_catch_up()
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
                token=where.token,
            )
        made: Upstream = RedisUpstream(
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

    def _secret(self, config: Config) -> str | None:
        """Return what the instances ask for when rows are fetched from them."""
        if self._secret_file is not None:
            return read_secret(self._secret_file)
        secret = config.http.replication_secret
        return secret.get_secret_value() if secret else None

    @property
    def reloads(self) -> frozenset[str]:
        """What a relay takes up while it runs."""
        return SERVING if self._catch_up is None else SERVING | {"instances"}

    def reload(self, config: Config) -> Callable[[], None]:
        """Return what takes up *config*, as far as a relay can while it runs (`reloads`).

        Raises:
            ConfigError: A file that it names is not what it should be.
        """
        certificates, secret = all_of(
            lambda: self._listeners.reload(config), lambda: self._secret(config)
        )

        def take_up() -> None:
            certificates()
            self._log.retain(retention_of(config))
            self._server.max_connections = config.replication.max_connections
            self._server.admit(tokens_of(config, self._guesses), anonymous_of(config))
            if self._catch_up is not None:
                self._catch_up.change(config.instances, secret)
            self._web.secrets = http_secrets(config)
            self._web.grants = grants_of(config)
            self._web.hosts = config.http.hosts
            self._web.limits = HttpLimits(max_body_bytes=config.http.max_body_bytes)
            self._site.changed()

        return take_up

    def _say_downstream(self, command: Command) -> None:
        """Pass on what readers are to hear of."""
        if isinstance(command, DOWNWARD):
            self._server.broadcast(command)

    def _acknowledge(self, instance: InstanceName, token: Token) -> str | None:
        """Pass on what came over HTTP; the upstream decides whether it counts."""
        sent = self._upstream.send(FederationAckCommand(instance, token))
        return None if sent else "the upstream is not connected"

    def _say_upstream(self, command: Command, peer: Any) -> None:
        """Pass on what a reader said to all who listen up there."""
        if isinstance(command, FederationAckCommand) and command.instance is None and peer.name:
            command = replace(command, instance=peer.name)
        self._upstream.send(command)

    @property
    def replication_addresses(self) -> list[str]:
        """Where the line protocol listens."""
        return self._listeners.replication

    @property
    def http_addresses(self) -> list[str]:
        """Where the HTTP API listens."""
        return self._listeners.http

    def facts(self) -> dict[str, object]:
        """Return what the log says of a relay that is ready."""
        return {
            "server_name": self.config.server_name,
            "upstream": self.upstream_name,
            "replication": " ".join(self.replication_addresses),
            "http": " ".join(self.http_addresses),
            "data": where_logs_are(self.config),
        }

    @property
    def directory(self) -> Path | None:
        """Where it keeps its data; None for in memory."""
        return self.config.data_directory

    def progress(self) -> Deferred[None]:
        """Fire once all that was handed to the disk before has been written, or refused."""
        return self._log.flush()

    def status_line(self) -> str:
        """Return how it goes, in a few words, for systemd."""
        up = "up" if self._upstream.status().up else "away"
        words = f"upstream {up}, {peers_in_words(self._server)}"
        return words if self._drain is None else f"{self._drain.text}: {words}"

    async def stop(self) -> None:
        """Leave the upstream, drain the readers, write everything out."""
        self._not_ready = "stopping"
        if self._intake is not None:
            self._intake.end()
            self._log.wait_no_longer()
        await self._life.stop()
