"""Connections to other servers: where to, whom to trust, and how they end.

Every connection has an end that needs nothing of the other side: one that was asked to close is
aborted after a while, and `Grip` aborts the one that a request uses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable
from pathlib import Path
from typing import Any
from weakref import ref

from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address
from twisted.internet import error
from twisted.internet._sslverify import IOpenSSLTrustRoot
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHostnameResolver,
    IHostResolution,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.internet.ssl import Certificate, CertificateOptions, platformTrust
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import HTTPConnectionPool
from zope.interface import implementer

from tcprepl.clocks import Reactor
from tcprepl.federation.wire.addresses import AddressPolicy

#: How long one attempt to connect may take.
CONNECT_TIMEOUT_S = 10.0
#: How long a connection that was asked to close may linger before it is aborted.
LINGER_S = 5.0

_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"


@implementer(IResolutionReceiver)
class _Addresses:
    """Collects what a name resolves to."""

    def __init__(self, done: Deferred[list[str]]) -> None:
        self._done = done
        self._found: list[str] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """Twisted says that it begins."""

    def addressResolved(self, address: IAddress) -> None:
        """Take one address."""
        if isinstance(address, (IPv4Address, IPv6Address)):
            self._found.append(address.host)

    def resolutionComplete(self) -> None:
        """Answer."""
        if not self._done.called:
            self._done.callback(self._found)


@implementer(IStreamClientEndpoint)
class GuardedEndpoint:
    """Connects to a host, to permitted addresses only, one after the other."""

    def __init__(
        self, reactor: Reactor, host: str, port: int, policy: AddressPolicy | None
    ) -> None:
        """Make the endpoint; without a *policy* every address is permitted."""
        self._reactor = reactor
        self._host = host
        self._port = port
        self._policy = policy

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect (Twisted calls this)."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        addresses = await self._resolve()
        if not addresses:
            raise error.DNSLookupError(f"no address for {self._host}")
        permitted = [
            address for address in addresses if not self._policy or self._policy.permits(address)
        ]
        if not permitted:
            raise error.ConnectError(
                string=f"{addresses[0]} is not a public address; it would have to be allowed"
            )
        last: Exception | None = None
        for address in permitted:
            make = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
            endpoint = make(self._reactor, address, self._port, CONNECT_TIMEOUT_S)
            try:
                return await endpoint.connect(factory)
            except error.ConnectError as failed:
                last = failed
        assert last is not None
        raise last

    def _resolve(self) -> Deferred[list[str]]:
        try:
            ipaddress.ip_address(self._host)
        except ValueError:
            done: Deferred[list[str]] = Deferred()
            resolver: IHostnameResolver = self._reactor.nameResolver
            resolver.resolveHostName(_Addresses(done), self._host, self._port)
            return done
        return succeed([self._host])


class _Connection(ProtocolWrapper):
    """One connection; ends some time after it was asked to, whatever the other side does."""

    _aborting: IDelayedCall | None = None

    def loseConnection(self) -> None:
        """Close, and abort if that takes too long: TLS waits for the other side's consent."""
        super().loseConnection()  # type: ignore[no-untyped-call]
        factory: Connections = self.factory
        if self._aborting is None and self in factory.protocols:
            self._aborting = factory.clock.callLater(LINGER_S, self.abort)

    def abort(self) -> None:
        """Close at once, without a word to the other side."""
        transport: Any = self.transport
        transport.abortConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """It is closed."""
        if self._aborting is not None and self._aborting.active():
            self._aborting.cancel()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]


class Connections(WrappingFactory):
    """The connections of one endpoint, noted in *all_of_them* while they are open."""

    protocol: Any = _Connection

    def __init__(self, wrapped: Any, clock: IReactorTime, all_of_them: set[_Connection]) -> None:
        super().__init__(wrapped)  # type: ignore[no-untyped-call]
        self.clock = clock
        self.noisy = False
        self._all = all_of_them

    def registerProtocol(self, p: Any) -> None:
        """One more."""
        super().registerProtocol(p)  # type: ignore[no-untyped-call]
        self._all.add(p)

    def unregisterProtocol(self, p: Any) -> None:
        """One less."""
        super().unregisterProtocol(p)  # type: ignore[no-untyped-call]
        self._all.discard(p)


@implementer(IStreamClientEndpoint)
class EndingEndpoint:
    """Connects as another endpoint does; the connections are noted and end (`_Connection`)."""

    def __init__(
        self, wrapped: IStreamClientEndpoint, clock: IReactorTime, all_of_them: set[_Connection]
    ) -> None:
        """Make the endpoint; *all_of_them* holds its connections while they are open."""
        self._wrapped = wrapped
        self._clock = clock
        self._all = all_of_them

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect (Twisted calls this)."""
        factory = Connections(protocolFactory, self._clock, self._all)
        connected: Deferred[Any] = self._wrapped.connect(factory)
        return connected.addCallback(lambda wrapper: wrapper.wrappedProtocol)


class Grip:
    """A hold on the connection that one request uses, in order to end it."""

    def __init__(self) -> None:
        self._connection: Any = None
        self._ended = False

    def take(self, connection: Any) -> Any:
        """Note which connection it is."""
        self._connection = connection
        if self._ended:
            self.end()
        return connection

    def end(self) -> None:
        """Abort the connection, or abort it as soon as there is one."""
        self._ended = True
        if self._connection is not None:
            _ = self._connection.abort()


class GrippedPool(HTTPConnectionPool):
    """A pool that says which connection a request gets.

    Attributes:
        grip: Takes the connection of the request that is made next, within this turn.
    """

    grip: Grip | None = None

    def __init__(self, reactor: Reactor, *, persistent: bool) -> None:
        """Make the pool; connections are kept for reuse if it is *persistent*."""
        super().__init__(reactor, persistent=persistent)  # type: ignore[no-untyped-call]

    def close_kept(self) -> Deferred[None]:
        """Close the connections that are kept."""
        closed: Deferred[None] = self.closeCachedConnections()  # type: ignore[no-untyped-call]
        return closed

    def getConnection(self, key: Hashable, endpoint: IStreamClientEndpoint) -> Deferred[Any]:
        """Supply a connection (Twisted's agent calls this as it begins a request)."""
        grip, self.grip = self.grip, None
        found: Deferred[Any] = super().getConnection(key, endpoint)
        return found if grip is None else found.addCallback(grip.take)


@implementer(IOpenSSLTrustRoot)
class SystemAndFile:
    """Trusts the authorities of the platform, and the certificates in a PEM file.

    A certificate in the file need not be an authority's: a server's own is trusted for what it
    says, which is how a self-signed one is pinned.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            OSError: It cannot be read.
            ValueError: There is no certificate in it.
        """
        blocks = path.read_bytes().split(_CERTIFICATE)[1:]
        if not blocks:
            raise ValueError(f"{path}: expected certificates in PEM form")
        self._certificates = [Certificate.loadPEM(_CERTIFICATE + block) for block in blocks]

    def _addCACertsToContext(self, context: SSL.Context) -> None:
        """Set up an OpenSSL context (Twisted calls this)."""
        context.set_default_verify_paths()
        store = context.get_cert_store()
        assert store is not None
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        for certificate in self._certificates:
            store.add_cert(certificate.original)


class TlsClients:
    """Makes the TLS ends of connections to servers, which have to prove who they are.

    All of them share one OpenSSL context: to load the authorities of a platform takes 4 ms and
    0.8 MiB, which a context for each connection would take each time.
    """

    def __init__(self, trust: Any = None) -> None:
        """Make it; *trust* vouches for certificates, by default the platform's authorities."""
        self._options = CertificateOptions(trustRoot=platformTrust() if trust is None else trust)

    def to(self, name: str) -> IOpenSSLClientConnectionCreator:
        """Return what makes the end of a connection to *name*, a host name or an address."""
        return _TlsClient(self._options.getContext(), name)


@implementer(IOpenSSLClientConnectionCreator)
class _TlsClient:
    """Makes the end of a connection to one server."""

    def __init__(self, context: SSL.Context, name: str) -> None:
        self._context = context
        self._name = name
        self._verify: Any = verify_certificate_ip_address
        try:
            ipaddress.ip_address(name)
        except ValueError:
            self._verify = verify_certificate_hostname

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """Return the end, for Twisted's TLS."""
        connection = SSL.Connection(self._context)
        if self._verify is verify_certificate_hostname:  # an address must not be sent
            connection.set_tlsext_host_name(self._name.encode("ascii"))
        told = ref(tlsProtocol)

        def verify(_: SSL.Connection, found: crypto.X509, __: int, depth: int, good: int) -> bool:
            if depth:
                return bool(good)
            try:
                self._verify(found.to_cryptography(), self._name)
            except (VerificationError, CertificateError, ValueError) as failed:
                if (protocol := told()) is not None:
                    protocol.failVerification(Failure(failed))
                return False
            return bool(good)

        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        return connection
