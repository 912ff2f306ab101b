"""The composition root: a whole server from a configuration, started and stopped in order.

Everything below takes what it needs as arguments; here the arguments are made. Starting goes
from the log outward (nobody is let in before positions are known), stopping goes inward
(nobody new, then the peers are told and drained, then the log is flushed and closed).
"""

from __future__ import annotations

import importlib
import os
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from OpenSSL import crypto
from twisted.internet import ssl
from twisted.internet.endpoints import (
    SSL4ServerEndpoint,
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    serverFromString,
)
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.web.server import Request

from tcprepl.config import (
    Address,
    Config,
    RetentionSettings,
    TlsSettings,
    parse_address,
)
from tcprepl.ephemeral.presence import PresenceWriter
from tcprepl.ephemeral.presence_peers import SyncListener
from tcprepl.ephemeral.receipts import ReceiptsWriter
from tcprepl.ephemeral.typing_notifications import TypingWriter
from tcprepl.errors import ConfigError, TcpreplError
from tcprepl.federation.receiving.receiver import Refused
from tcprepl.federation.service import OWN_STREAMS, CanonicalPublisher, FederationWriter
from tcprepl.federation.wire.edu import is_server_name
from tcprepl.federation.wire.transport import AddressPolicy, SystemAndFile
from tcprepl.http.routing import ApiError, Call
from tcprepl.http.security import Gate
from tcprepl.protocol.commands import FederationAckCommand, RemoteServerUpCommand
from tcprepl.replication.failures import describe_address
from tcprepl.replication.redis.url import parse_redis_url, redis_endpoint
from tcprepl.replication.serving.server import Peer, ReplicationServer
from tcprepl.streams.log import Log
from tcprepl.streams.notifier import Notifier
from tcprepl.streams.opening import open_log
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.streams.retention import Bounds, Retention
from tcprepl.web.destinations import SenderDestinations
from tcprepl.web.services import HttpLimits, WebServices
from tcprepl.web.site import build_site

if TYPE_CHECKING:
    from tcprepl.replication.bus.redis_writer import RedisWriter

log = structlog.get_logger()

#: Connections that may wait to be accepted: after a restart everybody comes at once.
BACKLOG = 1_024
#: How each certificate of a PEM file begins.
BEGIN = b"-----BEGIN CERTIFICATE-----"


class CannotListen(TcpreplError):
    """An address that cannot be listened on: says which, and why."""


def sd_notify(*states: str) -> bool:
    """Tell systemd a state such as ``READY=1``; return whether it listens at all.

    The protocol is a datagram to the socket that ``NOTIFY_SOCKET`` names (sd_notify(3)).
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    name = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(name)
            sock.sendall("\n".join(states).encode())
        except OSError as error:
            log.warning("systemd.unreachable", error=str(error))
            return False
    return True


def server_endpoint(
    reactor: Any, address: Address, tls: TlsSettings | None
) -> IStreamServerEndpoint:
    """Return the endpoint to listen on.

    Raises:
        ConfigError: Twisted does not understand the endpoint string, or the certificates
            cannot be read.
    """
    if address.host is None or address.port is None:
        try:
            endpoint: IStreamServerEndpoint = serverFromString(reactor, address.text)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ConfigError(f"{address}: not an endpoint to listen on: {error}") from None
        return endpoint
    if tls is not None:
        return SSL4ServerEndpoint(
            reactor, address.port, tls_context(tls), backlog=BACKLOG, interface=address.host
        )
    kind = TCP6ServerEndpoint if ":" in address.host else TCP4ServerEndpoint
    return kind(reactor, address.port, backlog=BACKLOG, interface=address.host)


def tls_context(tls: TlsSettings) -> ssl.CertificateOptions:
    """Return the TLS side of a listener.

    Raises:
        ConfigError: a file cannot be read, or does not hold what it should.
    """
    pem = _read(tls.private_key) + b"\n" + _read(tls.certificate)
    certificate = _certificate(ssl.PrivateCertificate.loadPEM, pem, tls.certificate)
    chain = _read(tls.certificate).split(BEGIN)[2:]
    extra = [
        _certificate(ssl.Certificate.loadPEM, BEGIN + part, tls.certificate).original
        for part in chain
    ]
    trust = None if tls.client_ca is None else trust_root(tls.client_ca)
    return ssl.CertificateOptions(
        privateKey=certificate.privateKey.original,
        certificate=certificate.original,
        extraCertChain=extra,
        trustRoot=trust,
        raiseMinimumTo=ssl.TLSVersion.TLSv1_2,
    )


def trust_root(path: Path) -> Any:
    """Return trust in the certificates of a PEM file.

    Raises:
        ConfigError: the file cannot be read, or does not hold what it should.
    """
    parts = _read(path).split(BEGIN)[1:] or [b""]
    return ssl.trustRootFromCertificates(
        [_certificate(ssl.Certificate.loadPEM, BEGIN + part, path) for part in parts]
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _certificate(load: Callable[[bytes], Any], pem: bytes, path: Path) -> Any:
    try:
        return load(pem)
    except (crypto.Error, ValueError) as error:
        raise ConfigError(f"{path}: expected PEM with a certificate and its key: {error}") from None


def retention_of(config: Config) -> Retention:
    """Return what the logs keep; what is not set is as the logs have it."""
    default = Retention()
    streams = config.streams
    durable = _bounds(default.durable, streams.retention)
    ephemeral = _bounds(default.ephemeral, streams.retention_ephemeral)
    registry = registry_of(config)
    return replace(
        default,
        durable=durable,
        ephemeral=ephemeral,
        streams={
            stream: _bounds(
                durable if stream not in registry or registry.get(stream).durable else ephemeral,
                settings,
            )
            for stream, settings in streams.retention_of.items()
        },
    )


def _bounds(default: Bounds, settings: RetentionSettings) -> Bounds:
    return Bounds(
        max_age_s=default.max_age_s if settings.age is None else settings.age,
        max_bytes=default.max_bytes if settings.bytes is None else settings.bytes,
        max_rows=default.max_rows if settings.rows is None else settings.rows,
    )


def registry_of(config: Config) -> Registry:
    """Return the built-in streams, those of federation and those of the configuration."""
    extra = (StreamDef(s.name, durable=s.durable) for s in config.streams.extra)
    return Registry((*map(StreamDef, OWN_STREAMS), *extra))


def redis_extra(module: str) -> Any:
    """Return a module of ours that needs what the extra ``redis`` installs.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return importlib.import_module(f"tcprepl.replication.{module}")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"redis: {error.name} is not installed; expected: pip install 'tcprepl[redis]'"
        ) from None


def placed_servers(config: Config) -> dict[str, tuple[str, int]]:
    """Return where servers are that the configuration has placed.

    Raises:
        ConfigError: a name or an address is none.
    """
    placed: dict[str, tuple[str, int]] = {}
    for name, text in config.federation.resolve.items():
        try:
            address = parse_address(text)
        except ValueError:
            address = None
        if address is None or address.host is None or not address.port or not is_server_name(name):
            raise ConfigError(f"federation.resolve: {name}: {text!r}; expected HOST:PORT")
        placed[name] = address.host, address.port
    return placed


def _trust(path: Path) -> SystemAndFile:
    try:
        return SystemAndFile(path)
    except (OSError, ValueError, crypto.Error) as error:
        raise ConfigError(f"federation.ca: {error}; expected a PEM file") from None


class Server:
    """A log, the streams in it, the line protocol and the HTTP API, as one thing.

    Example::

        server = Server(reactor, build({"server_name": "example.com"}, "mine").config)
        await server.start()
        await server.publisher.publish("typing", [("!room:example.com", ["@a:example.com"])])
        ...
        await server.stop()

    Attributes:
        config: The settings.
        registry: The streams.
        log: Their rows; there once started, as is all below.
        publisher: Appends rows as our instance.
        notifier: Wakes who waits for a stream.
        replication: The line protocol.
        typing: Who is typing.
        presence: Who is online.
        receipts: Takes receipts.
        federation: Queues EDUs for other servers, and takes theirs.
        replication_addresses: Where the line protocol listens.
        http_addresses: Where the HTTP API listens.
    """

    log: Log
    publisher: Publisher
    notifier: Notifier
    replication: ReplicationServer
    typing: TypingWriter
    presence: PresenceWriter
    receipts: ReceiptsWriter
    federation: FederationWriter

    def __init__(
        self, reactor: Any, config: Config, *, wall_ms: Callable[[], int] | None = None
    ) -> None:
        self.config = config
        self.registry = registry_of(config)
        self.replication_addresses: list[str] = []
        self.http_addresses: list[str] = []
        self._reactor = reactor
        self._wall_ms = wall_ms or (lambda: time.time_ns() // 1_000_000)
        self._not_ready: str | None = "starting"
        self._redis: RedisWriter | None = None
        self._stops: list[tuple[str, Callable[[], object]]] = []

    async def start(self) -> None:
        """Open the log, build everything on it, and listen.

        Raises:
            TcpreplError: something is in the way; what was started has been stopped again.
        """
        try:
            self._open_log()
            self._build()
            await self._listen()
            self._join_redis()
        except BaseException:
            await self.stop()
            raise
        self._not_ready = None

    async def stop(self, reason: str = "server shutting down") -> None:
        """Let nobody in, drain the peers, stop the writers, flush and close the log."""
        self._not_ready = reason
        while self._stops:
            name, stop = self._stops.pop()
            try:
                await done(stop())
            except Exception as error:
                log.exception("serve.stop_failed", what=name, error=str(error))

    def status_line(self) -> str:
        """Return how it goes, in a few words, for systemd."""
        peers = self.replication.peers()
        lag = max((peer.behind_seconds for peer in peers), default=0.0)
        noun = "peer" if len(peers) == 1 else "peers"
        return f"{len(peers)} {noun}, most behind {lag * 1000:.0f} ms"

    def _open_log(self) -> None:
        config = self.config
        self.log = open_log(
            config.data_directory, self.registry, self._reactor, retention_of(config)
        )
        self._stops.append(("log", self.log.close))
        for stream in self.registry.offered():
            self.log.ensure(stream, config.instance)
        self.notifier = Notifier()
        self.notifier.attach(self.log)
        self.publisher = CanonicalPublisher(self.log, self.registry, config.instance)

    def _build(self) -> None:
        config = self.config
        self.federation = self._make_federation()
        self._stops.append(("federation", self.federation.close))
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
        self._stops.append(("typing", self.typing.stop))
        self.presence = PresenceWriter(
            self._reactor,
            self.publisher.publish,
            config.server_name,
            hosts_of_user=hosts.of_user,
            send_presence=queue.send_presence,
            position=self.log.position("presence", config.instance),
            wall_ms=self._wall_ms,
        )
        self.presence.start()
        self._stops.append(("presence", self.presence.stop))
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
        self.replication = ReplicationServer(
            self._reactor,
            self.log,
            self.registry,
            config.server_name,
            config.instance,
            dialect=config.replication.dialect,
            max_connections=config.replication.max_connections,
            epoch_s=time.time() - self._reactor.seconds(),
        )
        self._stops.append(("replication", self.replication.stop))
        self.replication.on(FederationAckCommand, self._acknowledged)
        syncs = SyncListener(self._reactor, self.replication, self.presence)
        syncs.start()
        self._stops.append(("syncs", syncs.stop))

    def _make_federation(self) -> FederationWriter:
        config = self.config
        settings = config.federation
        return FederationWriter(
            self._reactor,
            server_name=config.server_name,
            instance=config.instance,
            log=self.log,
            publish_json=self.publisher.publish_json,
            guard=self._guard,
            data_directory=config.data_directory,
            signing_key=settings.signing_key,
            senders=settings.senders,
            trust=None if settings.ca is None else _trust(settings.ca),
            policy=AddressPolicy(
                settings.allowed_addresses, allow_private=settings.allow_private_addresses
            ),
            overrides=placed_servers(config),
            wall_ms=self._wall_ms,
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
        self._redis = redis_extra("bus.redis_writer").RedisWriter(
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
        self._redis.start()
        self._stops.append(("redis", self._redis.stop))

    def _acknowledged(self, command: FederationAckCommand, peer: Peer) -> None:
        self.federation.send_queue.acknowledge(command.instance or peer.name, command.token)

    def _guard(self, request: Request) -> None:
        """Let only our own processes queue EDUs."""
        try:
            Gate(self._secrets(), self._hosts()).machine(Call(request, {}))
        except ApiError as error:
            raise Refused(error.status, error.errcode, error.message) from None

    def _hosts(self) -> tuple[str, ...]:
        """Return the host names of requests; Synapse's workers name the instance they want."""
        return (*self.config.http.hosts, self.config.instance)

    def _secrets(self) -> list[str]:
        http = self.config.http
        return [s.get_secret_value() for s in (http.token, http.replication_secret) if s]

    def _services(self) -> WebServices:
        config = self.config
        http = config.http
        destinations = SenderDestinations(self._reactor, config.federation.sender_data)
        destinations.start()
        self._stops.append(("destinations", destinations.stop))
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
            mounts=self.federation.resources(),
            ready=lambda: self._not_ready,
            secrets=self._secrets(),
            client_tokens={t.token.get_secret_value(): t.user_id for t in http.client_tokens},
            hosts=self._hosts(),
            limits=HttpLimits(max_body_bytes=http.max_body_bytes),
            wall_ms=self._wall_ms,
        )

    async def _listen(self) -> None:
        config = self.config
        for address in config.replication.listen:
            endpoint = server_endpoint(self._reactor, address, config.replication.tls)
            port = await listened(self.replication.listen(endpoint), "replication", address)
            self.replication_addresses.append(describe_address(port.getHost()))
        site = build_site(self._services())
        for address in config.http.listen:
            endpoint = server_endpoint(self._reactor, address, config.http.tls)
            port = await listened(endpoint.listen(site), "http", address)
            self._stops.append(("http", port.stopListening))
            self.http_addresses.append(describe_address(port.getHost()))


async def listened(
    listening: Awaitable[IListeningPort], section: str, address: Address
) -> IListeningPort:
    """Return the port that *listening* brings.

    Raises:
        CannotListen: the address is taken, or is not ours.
    """
    try:
        return await listening
    except CannotListenError as error:
        reason = getattr(error.socketError, "strerror", None) or str(error.socketError)
        raise CannotListen(f"{section}.listen: cannot listen on {address}: {reason}") from None


async def done(result: object) -> None:
    """Wait for *result* if it is something to wait for."""
    if isinstance(result, Awaitable):
        await result
