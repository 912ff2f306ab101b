"""Requests to other servers: connections, TLS, signatures, bounds (protocol.md section 14).

One `FederationTransport` per process. It finds the destination, connects (to public addresses
only, unless told otherwise), verifies the certificate, signs the request, and reads an answer
that is bounded in size and time. Connections are kept for reuse, up to a bound.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import structlog
from OpenSSL import SSL, crypto
from service_identity import VerificationError
from twisted.internet import error
from twisted.internet._sslverify import IOpenSSLTrustRoot
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.ssl import (
    Certificate,
    optionsForClientTLS,
    platformTrust,
)
from twisted.names import client as dns_client
from twisted.names import dns
from twisted.names.error import DNSNameError
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool, RedirectAgent, ResponseFailed
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

import tcprepl
from tcprepl.clocks import Reactor
from tcprepl.errors import FederationError
from tcprepl.federation.wire.answer import Answer, retry_after_ms
from tcprepl.federation.wire.discovery import (
    CACHE_ENTRIES,
    WELL_KNOWN_MAX_BYTES,
    Discovery,
    NotFound,
    SrvRecord,
    Target,
    WellKnownAnswer,
)
from tcprepl.federation.wire.signing import Signer
from tcprepl.ids import ServerName

logger = structlog.get_logger()

#: How long a request may take from beginning to end.
REQUEST_TIMEOUT_S = 60.0
#: How long one attempt to connect may take.
CONNECT_TIMEOUT_S = 10.0
#: Largest answer that is read.
MAX_ANSWER_BYTES = 1024 * 1024
#: How long an unused connection is kept.
IDLE_CONNECTION_S = 30
#: Connections beyond which none is kept for reuse.
MAX_KEPT_CONNECTIONS = 500
#: Most redirects that a .well-known may make.
MAX_REDIRECTS = 5

_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class NotReached(FederationError):
    """The destination did not get the request: no name, no address, no connection, no TLS."""


class RequestFailed(FederationError):
    """There was no answer; the destination may have acted on the request all the same."""


class ConnectionDropped(RequestFailed):
    """The connection ended before there was an answer."""


class AddressPolicy:
    """Which addresses we connect to: public ones, and those that an operator allows."""

    def __init__(self, allowed: Iterable[str] = (), *, allow_private: bool = False) -> None:
        """Make the policy.

        Args:
            allowed: Ranges that are allowed too, for instance ``10.0.0.0/8``.
            allow_private: Whether every address is allowed.

        Raises:
            ValueError: One of *allowed* is not a range.
        """
        self._allowed: list[Network] = [ipaddress.ip_network(text) for text in allowed]
        self._allow_private = allow_private

    def permits(self, address: str) -> bool:
        """Whether we may connect to *address*."""
        if self._allow_private:
            return True
        parsed = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        if any(parsed in network for network in self._allowed):
            return True
        return parsed.is_global and not parsed.is_multicast


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


class _Counted(WrappingFactory):
    """Counts the connections that are open."""

    def __init__(self, wrapped: Any, count: Callable[[int], None]) -> None:
        super().__init__(wrapped)  # type: ignore[no-untyped-call]
        self._count = count
        self.noisy = False

    def registerProtocol(self, p: Any) -> None:
        """One more."""
        super().registerProtocol(p)  # type: ignore[no-untyped-call]
        self._count(1)

    def unregisterProtocol(self, p: Any) -> None:
        """One less."""
        super().unregisterProtocol(p)  # type: ignore[no-untyped-call]
        self._count(-1)


@implementer(IStreamClientEndpoint)
class _CountedEndpoint:
    def __init__(self, wrapped: IStreamClientEndpoint, count: Callable[[int], None]) -> None:
        self._wrapped = wrapped
        self._count = count

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect, and count the connection for as long as it is open."""
        factory = _Counted(protocolFactory, self._count)
        connected: Deferred[Any] = self._wrapped.connect(factory)
        return connected.addCallback(lambda wrapper: wrapper.wrappedProtocol)


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Makes the endpoint of a request whose host is a key of *targets*."""

    def __init__(self, transport: FederationTransport) -> None:
        self._transport = transport

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Return the endpoint for the target that the request was made for."""
        return self._transport.endpoint(self._transport.target_of(uri))


@implementer(IAgentEndpointFactory)
class _WebEndpoints:
    """Makes endpoints for plain https URLs, with the address policy."""

    def __init__(self, transport: FederationTransport) -> None:
        self._transport = transport

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Return the endpoint for a URL; only https is spoken."""
        if uri.scheme != b"https":
            raise NotReached("a .well-known has to be fetched by https")
        host = uri.host.decode("ascii").strip("[]")
        return self._transport.endpoint(Target(host, uri.port, host, host))


@implementer(IBodyProducer)
class _Body:
    """A request's body: bytes that exist already."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.length = len(content)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        """Write it all (Twisted calls this)."""
        consumer.write(self._content)
        return succeed(None)

    def stopProducing(self) -> None:
        """Do nothing: it is written already."""

    def pauseProducing(self) -> None:
        """Do nothing: it is written already."""

    def resumeProducing(self) -> None:
        """Do nothing: it is written already."""


class _BoundedBody(TwistedProtocol):
    """Reads an answer's body up to a bound."""

    def __init__(self, done: Deferred[bytes], max_bytes: int) -> None:
        self._done = done
        self._left = max_bytes
        self._parts: list[bytes] = []

    def dataReceived(self, data: bytes) -> None:
        """Take a part; give up if it is too much."""
        self._left -= len(data)
        if self._left < 0:
            self._finish(RequestFailed("the answer is too long"))
            assert self.transport is not None
            self.transport.loseConnection()
        else:
            self._parts.append(data)

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Answer; a body whose length was not told ends with its connection."""
        if reason is not None and reason.check(ResponseFailed):
            self._finish(RequestFailed("the connection ended within the answer"))
        else:
            self._finish(b"".join(self._parts))

    def _finish(self, result: bytes | RequestFailed) -> None:
        if self._done.called:
            return
        if isinstance(result, bytes):
            self._done.callback(result)
        else:
            self._done.errback(result)


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


class FederationTransport:
    """Asks other servers.

    Attributes:
        discovery: Where they are.
    """

    def __init__(
        self,
        reactor: Reactor,
        signer: Signer,
        *,
        trust: Any = None,
        policy: AddressPolicy | None = None,
        overrides: Mapping[ServerName, tuple[str, int]] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
        lookup_srv: Callable[[str], Deferred[list[SrvRecord]]] | None = None,
    ) -> None:
        """Make the transport.

        Args:
            reactor: The reactor.
            signer: Signs the requests.
            trust: Who vouches for certificates; the platform's authorities by default.
            policy: Which addresses we connect to; public ones by default.
            overrides: Where destinations are that an operator has placed.
            timeout_s: How long a request may take.
            lookup_srv: Looks up SRV records; in DNS by default.
        """
        self._reactor = reactor
        self._clock: IReactorTime = reactor
        self._signer = signer
        self._trust = platformTrust() if trust is None else trust
        self._policy = policy or AddressPolicy()
        self._timeout_s = timeout_s
        self._targets: OrderedDict[bytes, Target] = OrderedDict()
        self._open = 0
        self._pool = HTTPConnectionPool(reactor)
        self._pool.cachedConnectionTimeout = IDLE_CONNECTION_S
        self._pool.maxPersistentPerHost = 1
        self._agent = Agent.usingEndpointFactory(reactor, _Endpoints(self), self._pool)
        self._single = Agent.usingEndpointFactory(reactor, _Endpoints(self))
        web = Agent.usingEndpointFactory(reactor, _WebEndpoints(self))
        self._web = RedirectAgent(web, MAX_REDIRECTS)
        self._resolver: Any = None
        self.discovery = Discovery(
            self._clock.seconds,
            self._fetch_well_known,
            lookup_srv or self._lookup_srv,
            overrides,
        )

    def change(
        self,
        *,
        trust: Any,
        policy: AddressPolicy,
        overrides: Mapping[ServerName, tuple[str, int]],
    ) -> None:
        """Take up other settings, which are as for the class, for connections made from now on."""
        self._trust = platformTrust() if trust is None else trust
        self._policy = policy
        self.discovery.place(overrides)

    # -- asking -------------------------------------------------------------------------------

    async def send_transaction(
        self, destination: ServerName, transaction_id: str, body: bytes
    ) -> Answer:
        """Send a transaction, whose body is canonical JSON.

        Old servers know the path only with a slash at its end: one that does not know it
        without is asked again with it.

        Raises:
            NotReached: The destination did not get it.
            RequestFailed: There was no answer.
        """
        uri = f"/_matrix/federation/v1/send/{quote(transaction_id, safe='')}"
        dropped: ConnectionDropped | None = None
        try:
            try:
                answer = await self.request(destination, "PUT", uri, body)
            except ConnectionDropped as failed:
                # Most often the other end closed a kept connection just as we used it. The
                # transaction id makes it safe to send again.
                dropped = failed
                answer = await self.request(destination, "PUT", uri, body)
            if answer.status == 400 and answer.errcode == "M_UNRECOGNIZED":
                answer = await self.request(destination, "PUT", uri + "/", body)
        except NotReached:
            if dropped is None:
                raise
            # This try did not get there, but the one before may have.
            raise dropped from None
        return answer if dropped is None else replace(answer, repeated=True)

    async def request(
        self, destination: ServerName, method: str, uri: str, content: bytes | None = None
    ) -> Answer:
        """Make one signed request.

        Args:
            destination: Who is asked.
            method: The HTTP method.
            uri: Path and query.
            content: The body as canonical JSON, if any.

        Raises:
            NotReached: The destination did not get it.
            RequestFailed: There was no answer.
        """
        authorization = self._signer.authorization(destination, method, uri, content)
        asked = Deferred.fromCoroutine(self._ask(destination, method, uri, content, authorization))
        return await asked.addTimeout(self._timeout_s, self._clock, onTimeoutCancel=self._timed_out)

    async def fetch(self, destination: ServerName, uri: str) -> Answer:
        """Make one GET request without a signature, as for keys."""
        asked = Deferred.fromCoroutine(self._ask(destination, "GET", uri, None, None))
        return await asked.addTimeout(self._timeout_s, self._clock, onTimeoutCancel=self._timed_out)

    def _timed_out(self, result: Any, timeout_s: float) -> Any:
        raise RequestFailed(f"no answer within {timeout_s:g} s")

    async def _ask(
        self,
        destination: ServerName,
        method: str,
        uri: str,
        content: bytes | None,
        authorization: bytes | None,
    ) -> Answer:
        try:
            targets = await self.discovery.resolve(destination)
        except NotFound as failed:
            raise NotReached(str(failed)) from failed
        for target in targets[:-1]:
            try:
                return await self._ask_target(
                    target, destination, method, uri, content, authorization
                )
            except NotReached as failed:
                logger.debug("federation.target.failed", host=target.host, error=str(failed))
        return await self._ask_target(targets[-1], destination, method, uri, content, authorization)

    async def _ask_target(
        self,
        target: Target,
        destination: ServerName,
        method: str,
        uri: str,
        content: bytes | None,
        authorization: bytes | None,
    ) -> Answer:
        headers = Headers(
            {
                b"Host": [target.host_header.encode("ascii")],
                b"User-Agent": [f"tcprepl/{tcprepl.__version__}".encode()],
            }
        )
        if authorization is not None:
            headers.addRawHeader(b"Authorization", authorization)
        if content is not None:
            headers.addRawHeader(b"Content-Type", b"application/json")
        agent = self._agent if self._open < MAX_KEPT_CONNECTIONS else self._single
        try:
            response: IResponse = await agent.request(
                method.encode("ascii"),
                b"https://" + self._label(target) + uri.encode("ascii"),
                headers,
                None if content is None else _Body(content),
            )
            body = await self._read(response, MAX_ANSWER_BYTES)
        except CancelledError:
            raise
        except FederationError:
            raise
        except Exception as failed:
            raise _classify(failed) from failed

        def header(name: bytes) -> str:
            found: list[bytes] = response.headers.getRawHeaders(name, [b""])
            return found[-1].decode("latin-1")

        wait_ms = retry_after_ms(
            response.code, header(b"retry-after"), header(b"date"), body, self._clock.seconds()
        )
        return Answer(response.code, body, wait_ms, header(b"content-type"))

    async def _read(self, response: IResponse, max_bytes: int) -> bytes:
        done: Deferred[bytes] = Deferred()
        response.deliverBody(_BoundedBody(done, max_bytes))
        return await done

    # -- connections --------------------------------------------------------------------------

    def _label(self, target: Target) -> bytes:
        """Return a host name that stands for *target* in URLs.

        The pool keeps connections by the host and port of the URL. They may be shared by
        destinations only if address and certificate name are the same, so the name is made
        of all of them.
        """
        words = f"{target.host} {target.port} {target.tls_name} {target.pinned}"
        label = sha256(words.encode("utf-8")).hexdigest()[:40].encode("ascii")
        self._targets[label] = target
        self._targets.move_to_end(label)
        while len(self._targets) > CACHE_ENTRIES:
            self._targets.popitem(last=False)
        return label

    def target_of(self, uri: URI) -> Target:
        """Return the target that the host of *uri* stands for."""
        return self._targets[uri.host]

    def endpoint(self, target: Target) -> IStreamClientEndpoint:
        """Return an endpoint that connects to *target* by TLS and verifies who it is."""
        policy = None if target.pinned else self._policy
        plain = _CountedEndpoint(
            GuardedEndpoint(self._reactor, target.host, target.port, policy), self._count
        )
        options = optionsForClientTLS(target.tls_name, trustRoot=self._trust)
        endpoint: IStreamClientEndpoint = wrapClientTLS(options, plain)
        return endpoint

    def _count(self, change: int) -> None:
        self._open += change

    @property
    def open_connections(self) -> int:
        """How many connections are open, in use or kept."""
        return self._open

    def close(self) -> Deferred[None]:
        """Close the connections that are kept."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed

    # -- discovery ----------------------------------------------------------------------------

    async def _fetch_well_known(self, host: str) -> WellKnownAnswer:
        url = f"https://{host}/.well-known/matrix/server".encode("ascii")
        asked: Deferred[IResponse] = self._web.request(b"GET", url)
        response = await asked.addTimeout(self._timeout_s / 2, self._clock)
        body = await self._read(response, WELL_KNOWN_MAX_BYTES)

        def header(name: bytes) -> str:
            return b",".join(response.headers.getRawHeaders(name, [])).decode("latin-1")

        return WellKnownAnswer(response.code, body, header(b"cache-control"), header(b"expires"))

    async def _lookup_srv(self, name: str) -> list[SrvRecord]:
        if self._resolver is None:
            self._resolver = dns_client.Resolver("/etc/resolv.conf", reactor=self._reactor)
        try:
            answers, _, _ = await self._resolver.lookupService(name, timeout=(2, 5))
        except DNSNameError:
            return []
        return [
            SrvRecord(
                header.payload.priority,
                header.payload.weight,
                header.payload.port,
                header.payload.target.name.decode("ascii", "replace"),
                header.ttl,
            )
            for header in answers
            if header.type == dns.SRV
        ]


def _classify(failed: Exception) -> FederationError:
    """Return what a failure of the network means: not reached, dropped, or no answer."""
    if isinstance(failed, (error.ConnectError, error.DNSLookupError, VerificationError)):
        return NotReached(_text(failed))
    reasons = [reason.value for reason in getattr(failed, "reasons", [])] or [failed]
    for reason in reasons:
        text = _text(reason)
        if isinstance(reason, (error.ConnectError, VerificationError)) or (
            isinstance(reason, SSL.Error) and "certificate" in text
        ):
            return NotReached(f"TLS: {text}")
    if any(isinstance(reason, (error.ConnectionDone, error.ConnectionLost)) for reason in reasons):
        return ConnectionDropped(_text(reasons[0]))
    return RequestFailed(_text(reasons[0]))


def _text(failed: BaseException) -> str:
    return f"{type(failed).__name__}: {failed}"[:200]
