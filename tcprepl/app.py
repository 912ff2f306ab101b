"""The composition root: a whole server from a configuration, started and stopped in order.

Everything below takes what it needs as arguments; here the arguments are made. Starting goes
from the log outward (nobody is let in before positions are known), stopping goes inward
(nobody new, then the peers are told and drained, then the log is flushed and closed).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

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

from tcprepl.config import Address, Config, RetentionSettings, TlsSettings
from tcprepl.ephemeral.presence import PresenceWriter
from tcprepl.ephemeral.presence_peers import SyncListener
from tcprepl.ephemeral.receipts import ReceiptsWriter
from tcprepl.ephemeral.typing_notifications import TypingWriter
from tcprepl.errors import ConfigError, TcpreplError
from tcprepl.replication.failures import describe_address
from tcprepl.replication.server import ReplicationServer
from tcprepl.streams.log import Log
from tcprepl.streams.notifier import Notifier
from tcprepl.streams.opening import open_log
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.streams.retention import Bounds, Retention
from tcprepl.web.services import HttpLimits, WebServices
from tcprepl.web.site import build_site

log = structlog.get_logger()

#: Connections that may wait to be accepted: after a restart everybody comes at once.
BACKLOG = 1_024


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
    chain = _read(tls.certificate).split(b"-----BEGIN CERTIFICATE-----")[2:]
    extra = [
        _certificate(
            ssl.Certificate.loadPEM, b"-----BEGIN CERTIFICATE-----" + part, tls.certificate
        ).original
        for part in chain
    ]
    trust = None
    if tls.client_ca is not None:
        trust = ssl.trustRootFromCertificates(
            [_certificate(ssl.Certificate.loadPEM, _read(tls.client_ca), tls.client_ca)]
        )
    return ssl.CertificateOptions(
        privateKey=certificate.privateKey.original,
        certificate=certificate.original,
        extraCertChain=extra,
        trustRoot=trust,
        raiseMinimumTo=ssl.TLSVersion.TLSv1_2,
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
    """Return the built-in streams and those of the configuration."""
    return Registry(StreamDef(s.name, durable=s.durable) for s in config.streams.extra)


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
                await _done(stop())
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
        self.publisher = Publisher(self.log, self.registry, config.instance)

    def _build(self) -> None:
        config = self.config
        self.typing = TypingWriter(
            self._reactor,
            self.publisher.publish,
            config.server_name,
            position=self.log.position("typing", config.instance),
        )
        self.typing.start()
        self._stops.append(("typing", self.typing.stop))
        self.presence = PresenceWriter(
            self._reactor,
            self.publisher.publish,
            config.server_name,
            position=self.log.position("presence", config.instance),
            wall_ms=self._wall_ms,
        )
        self.presence.start()
        self._stops.append(("presence", self.presence.stop))
        self.receipts = ReceiptsWriter(self._wall_ms, self.publisher.publish, config.server_name)
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
        syncs = SyncListener(self._reactor, self.replication, self.presence)
        syncs.start()
        self._stops.append(("syncs", syncs.stop))

    def _services(self) -> WebServices:
        config = self.config
        http = config.http
        secrets = [s.get_secret_value() for s in (http.token, http.replication_secret) if s]
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
            ready=lambda: self._not_ready,
            secrets=secrets,
            client_tokens={t.token.get_secret_value(): t.user_id for t in http.client_tokens},
            hosts=http.hosts,
            limits=HttpLimits(max_body_bytes=http.max_body_bytes),
            wall_ms=self._wall_ms,
        )

    async def _listen(self) -> None:
        config = self.config
        for address in config.replication.listen:
            endpoint = server_endpoint(self._reactor, address, config.replication.tls)
            port = await _listen(self.replication.listen(endpoint), "replication", address)
            self.replication_addresses.append(describe_address(port.getHost()))
        site = build_site(self._services())
        for address in config.http.listen:
            endpoint = server_endpoint(self._reactor, address, config.http.tls)
            port = await _listen(endpoint.listen(site), "http", address)
            self._stops.append(("http", port.stopListening))
            self.http_addresses.append(describe_address(port.getHost()))


async def _listen(
    listening: Awaitable[IListeningPort], section: str, address: Address
) -> IListeningPort:
    try:
        return await listening
    except CannotListenError as error:
        reason = getattr(error.socketError, "strerror", None) or str(error.socketError)
        raise CannotListen(f"{section}.listen: cannot listen on {address}: {reason}") from None


async def _done(result: object) -> None:
    if isinstance(result, Awaitable):
        await result
