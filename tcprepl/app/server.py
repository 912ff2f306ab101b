"""The composition root of a server: everything from a configuration, started and stopped in order.

Everything below takes what it needs as arguments; here the arguments are made. Starting goes
from the log outward (nobody is let in before positions are known), stopping goes inward
(nobody new, then the peers are told and drained, then the log is flushed and closed).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred

from tcprepl import clocks
from tcprepl.app.opening import open_log_of, room_in_words
from tcprepl.app.reload import ASKING, SERVING, all_of
from tcprepl.app.serving import Serving
from tcprepl.app.settings import (
    client_tokens,
    placed_servers,
    policy_of,
    publishes,
    registry_of,
    trust_of,
)
from tcprepl.clocks import Reactor
from tcprepl.ephemeral.presence import PresenceWriter
from tcprepl.ephemeral.presence_peers import SyncListener
from tcprepl.ephemeral.receipts import ReceiptsWriter
from tcprepl.ephemeral.typing_notifications import TypingWriter
from tcprepl.federation.service import CanonicalPublisher, FederationWriter
from tcprepl.ids import InstanceName, StreamName
from tcprepl.protocol.commands import FederationAckCommand, RemoteServerUpCommand
from tcprepl.replication.bus.redis_writer import RedisWriter
from tcprepl.replication.redis.url import parse_redis_url, redis_endpoint
from tcprepl.replication.serving.peer import Peer
from tcprepl.settings import Config
from tcprepl.streams.publisher import Publisher
from tcprepl.web.destinations import SenderDestinations
from tcprepl.web.services import WebServices


class Server(Serving):
    """A log, the streams in it, the line protocol and the HTTP API, as one thing.

    Example::

        server = Server(reactor, build({"server_name": "example.com"}, "mine").config)
        await server.start()
        await server.publisher.publish("typing", [("!room:example.com", ["@a:example.com"])])
        ...
        await server.stop()

    Attributes:
        publisher: Appends rows as our instance; there once started, as is all below.
        typing: Who is typing.
        presence: Who is online.
        receipts: Takes receipts.
        federation: Queues EDUs for other servers, and takes theirs.
    """

    reloads = SERVING | ASKING | {"federation.senders"}
    publisher: Publisher
    typing: TypingWriter
    presence: PresenceWriter
    receipts: ReceiptsWriter
    federation: FederationWriter

    def __init__(
        self, reactor: Reactor, config: Config, *, wall_ms: Callable[[], int] | None = None
    ) -> None:
        super().__init__(reactor, config, "serve")
        self.registry = registry_of(config)
        self._now_ms = wall_ms or clocks.steady_ms
        self._wall_ms = wall_ms or clocks.wall_ms
        self._redis: RedisWriter | None = None

    async def _start(self) -> None:
        await self._open_log()
        self._build()
        await self._listeners.open_replication(self.replication)
        await self._open_http(self._services())
        self._join_redis()

    def _lacking(self) -> Sequence[InstanceName]:
        return self.federation.send_queue.lacking()

    def _safe(self) -> Deferred[None]:
        self.publisher.flush()
        return self.log.flush()

    def reload(self, config: Config) -> Callable[[], None]:
        """Return what takes up *config*, as far as a server can while it runs (`SERVING`).

        Raises:
            ConfigError: A file that it names is not what it should be.
        """
        federation = config.federation
        certificates, trust, placed = all_of(
            lambda: self._listeners.reload(config),
            lambda: trust_of(federation.ca),
            lambda: placed_servers(federation.resolve),
        )

        def take_up() -> None:
            certificates()
            self._take_up(config)
            if self._drain is None:
                self.replication.door.publisher = self.publisher if publishes(config) else None
            self.federation.send_queue.senders = federation.senders
            self.federation.transport.change(
                trust=trust, policy=policy_of(config), overrides=placed
            )
            self._web.client_tokens = client_tokens(config)

        return take_up

    async def _open_log(self) -> None:
        config = self.config
        self._take_log(await open_log_of(config, self.registry, self._reactor))
        self.publisher = CanonicalPublisher(self.log, self.registry, config.instance, self._reactor)
        self._life.add("log", self._close_log)
        for stream in self.registry.offered():
            self.log.ensure(stream, config.instance)

    def _close_log(self) -> Deferred[None]:
        self.publisher.flush()
        return self.log.close()

    def _build(self) -> None:
        config = self.config
        self.federation = self._make_federation()
        self._life.add("federation", self.federation.close)
        queue = self.federation.send_queue
        hosts = self.federation.hosts
        self.typing = TypingWriter(
            self._reactor,
            self.publisher.publish,
            config.server_name,
            hosts_in_room=hosts,
            send_edu=queue.send_to,
            position=self.log.position("typing", config.instance),
        )
        self.typing.start()
        self._life.add("typing", self.typing.stop)
        self.presence = PresenceWriter(
            self._reactor,
            self.publisher.publish,
            config.server_name,
            hosts_of_user=hosts.of_user,
            send_presence=queue.send_presence,
            position=self.log.position("presence", config.instance),
            wall_ms=self._now_ms,
        )
        self.presence.start()
        self._life.add("presence", self.presence.stop)
        self.receipts = ReceiptsWriter(
            self._wall_ms,
            self.publisher.publish,
            config.server_name,
            hosts_in_room=hosts,
            send_edu=queue.send_to,
        )
        self.federation.handle(
            typing=self.typing.received_edu,
            presence=self.presence.received_edu,
            receipts=self.receipts.received_edu,
        )
        self._make_replication(self.publisher if publishes(config) else None)
        self.replication.on(FederationAckCommand, self._acknowledged)
        syncs = SyncListener(self._reactor, self.replication, self.presence)
        syncs.start()
        self._life.add("syncs", syncs.stop)

    def _make_federation(self) -> FederationWriter:
        config = self.config
        settings = config.federation
        return FederationWriter(
            self._reactor,
            server_name=config.server_name,
            instance=config.instance,
            log=self.log,
            publish_json=self.publisher.publish_json,
            data_directory=config.data_directory,
            signing_key=settings.signing_key,
            senders=settings.senders,
            trust=trust_of(settings.ca),
            policy=policy_of(config),
            overrides=placed_servers(settings.resolve),
            wall_ms=self._wall_ms,
            now_ms=self._now_ms,
            on_origin_up=self._server_is_up,
        )

    def _server_is_up(self, name: str) -> None:
        command = RemoteServerUpCommand(name)
        self.replication.broadcast(command)
        if self._redis is not None:
            self._redis.send(command)

    def _join_redis(self) -> None:
        """Publish our streams over Redis, too, if there is one."""
        settings = self.config.redis
        if settings is None:
            return
        url = parse_redis_url(settings.url.get_secret_value())
        self._redis = RedisWriter(
            self._reactor,
            redis_endpoint(self._reactor, url),
            str(url),
            self.replication,
            server_name=self.config.server_name,
            instance=self.config.instance,
            release=settings.release,
            user=url.user,
            password=url.password,
        )
        self.replication.door.unpublished = self._redis.unpublished
        self._redis.start()
        self._life.add("redis", self._redis.stop)

    def _unpublished(self, stream: StreamName, instance: InstanceName) -> str | None:
        return None if self._redis is None else self._redis.unpublished(stream, instance)

    def _acknowledged(self, command: FederationAckCommand, peer: Peer) -> None:
        self.federation.send_queue.acknowledge(command.instance or peer.name, command.token)

    def _hosts(self) -> tuple[str, ...]:
        """Return the host names of requests; Synapse's workers name the instance they want."""
        return (*super()._hosts(), self.config.instance)

    def _services(self) -> WebServices:
        config = self.config
        destinations = SenderDestinations(self._reactor, config.federation.sender_data)
        destinations.start()
        self._life.add("destinations", destinations.stop)
        return WebServices(
            reactor=self._reactor,
            log=self.log,
            registry=self.registry,
            publisher=self.publisher,
            notifier=self.notifier,
            server_name=config.server_name,
            instance=config.instance,
            replication_server=self.replication,
            typing=self.typing,
            presence=self.presence,
            receipts=self.receipts,
            edus=self.federation.send_queue,
            destinations=destinations,
            acknowledge=self.federation.send_queue.acknowledge,
            unpublished=self._unpublished,
            further=self.federation.routes,
            room=lambda: room_in_words(self.config),
            ready=lambda: self._not_ready or self.log.trouble,
            shut=lambda: None if self._drain is None else self._drain.text,
            guesses=self._guesses,
            client_tokens=client_tokens(config),
            wall_ms=self._now_ms,
        )
