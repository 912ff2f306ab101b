"""Where a process listens: the line protocol and HTTP, on the addresses of its configuration."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

from twisted.internet.endpoints import (
    SSL4ServerEndpoint,
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    serverFromString,
)
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.protocols.haproxy import proxyEndpoint

from tcprepl import metrics
from tcprepl.addresses import HAPROXY, Address
from tcprepl.app.lifecycle import Lifecycle
from tcprepl.app.reload import all_of
from tcprepl.app.tls import Certificates, tls_context
from tcprepl.background import looping_background_process
from tcprepl.clocks import Reactor
from tcprepl.errors import ConfigError, TcpreplError
from tcprepl.logger import get_logger
from tcprepl.replication.bus.listener import BusListener
from tcprepl.replication.failures import describe_address
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.settings import Config, TlsSettings, is_vouched

log = get_logger(__name__)

#: Connections that may wait to be accepted: after a restart everybody comes at once.
BACKLOG = 1_024
#: How often it is looked whether the files of certificates have changed.
LOOK_AT_FILES_S = 30.0
#: What there is of each file of a certificate.
Fingerprint: TypeAlias = dict[str, tuple[int, ...] | None]


class CannotListen(TcpreplError):
    """An address that cannot be listened on: says which, and why."""


class Listeners:
    """The listeners of a process.

    Attributes:
        replication: Where the line protocol listens.
        http: Where HTTP listens.
        bus: Where the bus listens in Redis's place.
    """

    def __init__(self, reactor: Reactor, config: Config, life: Lifecycle) -> None:
        self.replication: list[str] = []
        self.http: list[str] = []
        self.bus: list[str] = []
        self._reactor = reactor
        self._config = config
        self._life = life
        #: Per TLS listener: its section, what it serves, and its address if that has them.
        self._certificates: list[tuple[str, Certificates, Address]] = []
        self._seen: Fingerprint = {}

    async def open_replication(self, server: ReplicationServer) -> None:
        """Listen for the line protocol; *server* closes what this opens.

        Raises:
            ConfigError: An address is none, or certificates cannot be read.
            CannotListen: An address is taken, or is not ours.
        """
        for address in self._config.replication.listen:
            endpoint = self._endpoint("replication", address, self._config.replication.tls)
            vouched = is_vouched(address, self._config.replication.tls)
            listening = server.listen(endpoint, vouched=vouched)
            port = await listened(listening, "replication", address)
            self.replication.append(describe_address(port.getHost()))

    async def open_bus(self, bus: BusListener) -> None:
        """Listen in Redis's place; *bus* closes what this opens.

        Raises:
            ConfigError: An address is none, or certificates cannot be read.
            CannotListen: An address is taken, or is not ours.
        """
        for address in self._config.bus.listen:
            endpoint = self._endpoint("bus", address, self._config.bus.tls)
            port = await listened(bus.listen(endpoint), "bus", address)
            self.bus.append(describe_address(port.getHost()))

    async def open_http(self, site: Factory) -> None:
        """Listen for HTTP.

        Raises:
            ConfigError: An address is none, or certificates cannot be read.
            CannotListen: An address is taken, or is not ours.
        """
        for address in self._config.http.listen:
            endpoint = self._endpoint("http", address, self._config.http.tls)
            port = await listened(endpoint.listen(site), "http", address)
            self._life.add("http", port.stopListening)
            self.http.append(describe_address(port.getHost()))

    def reload(self, config: Config) -> Callable[[], None]:
        """Read the certificates again, from where *config* says.

        Returns:
            What puts them in use for new connections.

        Raises:
            ConfigError: They cannot be read; says everything that is wrong with them.
        """

        def read(section: str, address: Address) -> Any:
            tls = getattr(config, section).tls
            from_string = tls is None or address.host is None
            return context_of(self._reactor, address) if from_string else tls_context(tls)

        fresh = all_of(
            *(partial(read, section, address) for section, _, address in self._certificates)
        )

        def use() -> None:
            for (_, certificates, _), options in zip(self._certificates, fresh, strict=True):
                certificates.use(options)
            self._config = config
            self._seen = self._fingerprint()
            log.info("reload.certificates", listeners=len(fresh))

        return use

    def _watch(self) -> None:
        """Look at the certificates' files from now on, and tell when they end."""
        looping = looping_background_process(
            self._reactor, "certificates", LOOK_AT_FILES_S, self._look
        )
        self._life.add("certificates", looping.stop)
        source = metrics.CERTIFICATE_END.add_source(self._ends)
        self._life.add("metrics", partial(metrics.CERTIFICATE_END.remove_source, source))

    def _look(self) -> None:
        """Take up files that have changed; half-written ones are looked at again."""
        seen = self._fingerprint()
        if seen == self._seen:
            return
        try:
            self.reload(self._config)()
        except ConfigError as error:
            self._seen = seen
            log.warning("certificates.not_taken", reason=str(error), text="the old ones hold")

    def _fingerprint(self) -> Fingerprint:
        files: set[str] = set()
        for section, _, address in self._certificates:
            tls = getattr(self._config, section).tls
            if address.endpoint is not None:
                files |= set(map(str, address.endpoint.files().values()))
            elif tls is not None:
                given = (tls.certificate, tls.private_key, tls.client_ca)
                files |= {str(path) for path in given if path is not None}
        return {name: _state_of(name) for name in files}

    def _ends(self) -> Iterator[tuple[tuple[str], float]]:
        for section, certificates, address in self._certificates:
            if certificates.end_s is not None:
                yield (f"{section} {address}",), certificates.end_s

    def _endpoint(
        self, section: str, address: Address, tls: TlsSettings | None
    ) -> IStreamServerEndpoint:
        endpoint, certificates = server_endpoint(self._reactor, address, tls)
        try:
            clear_stale(address)
        except CannotListen as error:
            raise CannotListen(f"{section}.listen: {error}") from None
        if certificates is not None:
            self._certificates.append((section, certificates, address))
            if len(self._certificates) == 1:
                self._watch()
            self._seen = self._fingerprint()
        return endpoint


def _state_of(name: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(name)
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def server_endpoint(
    reactor: Reactor, address: Address, tls: TlsSettings | None
) -> tuple[IStreamServerEndpoint, Certificates | None]:
    """Return the endpoint to listen on, and its certificates if it has any.

    Raises:
        ConfigError: Twisted does not understand the endpoint string, or the certificates
            cannot be read.
    """
    if address.host is None or address.port is None:
        text = address.text.removeprefix(HAPROXY)
        endpoint = _from_string(reactor, address, text)
        certificates = None
        if isinstance(endpoint, SSL4ServerEndpoint):
            certificates = Certificates(endpoint._sslContextFactory)
            endpoint._sslContextFactory = certificates
        return (proxyEndpoint(endpoint) if text != address.text else endpoint), certificates
    if tls is not None:
        certificates = Certificates(tls_context(tls))
        endpoint = SSL4ServerEndpoint(
            reactor, address.port, certificates, backlog=BACKLOG, interface=address.host
        )
        return endpoint, certificates
    kind = TCP6ServerEndpoint if ":" in address.host else TCP4ServerEndpoint
    return kind(reactor, address.port, backlog=BACKLOG, interface=address.host), None


def context_of(reactor: Reactor, address: Address) -> Any:
    """Return the TLS side that an endpoint string describes, its files read anew."""
    endpoint = _from_string(reactor, address, address.text.removeprefix(HAPROXY))
    assert isinstance(endpoint, SSL4ServerEndpoint)
    return endpoint._sslContextFactory


def clear_stale(address: Address) -> None:
    """Remove a Unix socket at which nobody listens, and Twisted's lock beside it.

    The lock names the process that made it. Whoever has that number now may be another, which in
    a container is so after every kill -9: the lock alone tells nothing.

    Raises:
        CannotListen: Somebody listens there.
    """
    given = address.endpoint
    if given is None or given.kind != "unix":
        return
    path = given.named.get("address") or next(iter(given.words), "")
    with suppress(OSError):  # who listens is told why it cannot be
        if os.path.lexists(path):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                return
            if _is_listened_at(path):
                raise CannotListen(f"cannot listen on {address}: somebody listens there")
        for name in (path, f"{path}.lock"):
            with suppress(FileNotFoundError):
                os.unlink(name)


def _is_listened_at(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.setblocking(False)
        try:
            connection.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True  # it has as many waiting as it takes
        return True


def _from_string(reactor: Reactor, address: Address, text: str) -> IStreamServerEndpoint:
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, text)
    except OSError as error:
        raise ConfigError(f"{address}: {error.filename}: {error.strerror}") from None
    except LookupError as error:
        if not text.startswith("systemd:"):
            raise ConfigError(f"{address}: not an endpoint to listen on: {error!r}") from None
        # Twisted alone knows what was passed: it takes LISTEN_FDS from the environment.
        raise ConfigError(
            f"{address}: not an endpoint to listen on: systemd has passed no socket "
            f"{text.rpartition(':')[2]} to this process; expected to be started by a .socket unit "
            "that has it"
        ) from None
    except Exception as error:  # noqa: BLE001  # parsers are plugins, and raise whatever comes up
        reason = f"{type(error).__name__}: {error}" if not str(error).strip() else str(error)
        raise ConfigError(f"{address}: not an endpoint to listen on: {reason}") from None
    return endpoint


def peers_in_words(server: ReplicationServer) -> str:
    """Return how many peers there are and how far behind, for systemd."""
    peers = server.peers()
    lag = max((peer.behind_seconds for peer in peers), default=0.0)
    noun = "peer" if len(peers) == 1 else "peers"
    return f"{len(peers)} {noun}, most behind {lag * 1000:.0f} ms"


async def listened(
    listening: Awaitable[IListeningPort], section: str, address: Address
) -> IListeningPort:
    """Return the port that *listening* brings.

    Raises:
        CannotListen: The address is taken, or is not ours.
    """
    try:
        return await listening
    except CannotListenError as error:
        reason = getattr(error.socketError, "strerror", None) or str(error.socketError)
    except OSError as error:
        reason = error.strerror or str(error)
    raise CannotListen(f"{section}.listen: cannot listen on {address}: {reason}")
