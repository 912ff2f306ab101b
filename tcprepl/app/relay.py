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

from tcprepl.addresses import Address
from tcprepl.app.connecting import client_endpoint
from tcprepl.app.lifecycle import end
from tcprepl.app.opening import open_log_of, room_in_words
from tcprepl.app.reload import SERVING, all_of
from tcprepl.app.serving import Serving
from tcprepl.clocks import Reactor
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
from tcprepl.secret_files import read_secret
from tcprepl.settings import Config
from tcprepl.web.services import WebServices

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


class Relay(Serving):
    """Client, log and server in one, started and stopped in order.

    Attributes:
        upstream_name: Where the rows come from, without secrets.
    """

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
        super().__init__(reactor, config, "relay")
        self.upstream_name = str(upstream)
        self._where = upstream
        self._secret_file = secret_file
        self._catch_up: HttpCatchUp | None = None
        self._passive = passive
        self._user_ip = user_ip
        self._dialect = dialect
        self._intake: RelayIntake | None = None

    async def _start(self) -> None:
        config, reactor = self.config, self._reactor
        state = RelayState(config.data_directory)
        self._life.add("state", state.close)
        self.registry = relay_registry(state.streams())
        self._take_log(await open_log_of(config, self.registry, reactor, state.gaps))
        self._life.add("log", self.log.close)
        self._intake = intake = RelayIntake(reactor, self.log, self.registry, state)
        self._life.add("intake", intake.close)
        _ = intake.failed.addErrback(lambda failure: end(self.failed, failure))
        self._make_replication()
        intake.on_pair = self.replication.hub.announce
        self._upstream = self._make_upstream(intake)
        self.replication.links.append(self._upstream.status)
        for kind in UPWARD:
            self.replication.on(kind, self._say_upstream)
        syncs = SyncsBelow(reactor, self.replication, self._upstream.send)
        syncs.start()
        self._life.add("syncs", syncs.stop)
        await self._listeners.open_replication(self.replication)
        await self._open_http(
            WebServices(
                reactor=reactor,
                log=self.log,
                registry=self.registry,
                publisher=ReadOnly(),
                notifier=self.notifier,
                server_name=config.server_name,
                instance=config.instance,
                replication_server=self.replication,
                acknowledge=self._acknowledge,
                room=lambda: room_in_words(self.config),
                ready=lambda: self._not_ready or self.log.trouble or intake.trouble,
                guesses=self._guesses,
            )
        )
        await self._start_upstream()

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

    def _make_upstream(self, intake: RelayIntake) -> Upstream:
        config, where = self.config, self._where
        catch_up = self._make_catch_up()
        if isinstance(where, Address):
            return TcpUpstream(
                self._reactor,
                client_endpoint(self._reactor, where),
                str(where),
                intake,
                self.registry,
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
            self.registry,
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
            self._take_up(config)
            if self._catch_up is not None:
                self._catch_up.change(config.instances, secret)

        return take_up

    def _say_downstream(self, command: Command) -> None:
        """Pass on what readers are to hear of."""
        if isinstance(command, DOWNWARD):
            self.replication.broadcast(command)

    def _acknowledge(self, instance: InstanceName, token: Token) -> str | None:
        """Pass on what came over HTTP; the upstream decides whether it counts."""
        sent = self._upstream.send(FederationAckCommand(instance, token))
        return None if sent else "the upstream is not connected"

    def _say_upstream(self, command: Command, peer: Any) -> None:
        """Pass on what a reader said to all who listen up there."""
        if isinstance(command, FederationAckCommand) and command.instance is None and peer.name:
            command = replace(command, instance=peer.name)
        self._upstream.send(command)

    def facts(self) -> dict[str, object]:
        """Return what the log says of a relay that is ready."""
        facts = super().facts()
        del facts["instance"]
        return {"server_name": facts.pop("server_name"), "upstream": self.upstream_name} | facts

    def _in_words(self) -> str:
        up = "up" if self._upstream.status().up else "away"
        return f"upstream {up}, {super()._in_words()}"

    async def stop(self, reason: str = "stopping") -> None:
        """Leave the upstream, drain the readers, write everything out."""
        if self._intake is not None:
            self._intake.end()
            self.log.wait_no_longer()
        await super().stop(reason)
