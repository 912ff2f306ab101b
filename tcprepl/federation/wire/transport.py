"""Requests to other servers: connections, TLS, signatures, bounds (protocol.md section 14).

One `FederationTransport` per process. It finds the destination, connects (to public addresses
only, unless told otherwise), verifies the certificate, signs the request, and reads an answer
that is bounded in size and time. Connections are kept for reuse, up to a bound.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any, TypeVar
from urllib.parse import quote, urljoin

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.web.client import URI, Agent
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IResponse
from zope.interface import implementer

import tcprepl
from tcprepl.clocks import Reactor, wall_seconds
from tcprepl.errors import FederationError
from tcprepl.federation.wire.addresses import AddressPolicy
from tcprepl.federation.wire.answer import Answer, retry_after_ms
from tcprepl.federation.wire.bodies import BytesBody, read_body
from tcprepl.federation.wire.connections import (
    EndingEndpoint,
    Grip,
    GrippedPool,
    GuardedEndpoint,
    TlsClients,
)
from tcprepl.federation.wire.discovery import (
    CACHE_ENTRIES,
    WELL_KNOWN_MAX_BYTES,
    Discovery,
    NotFound,
    SrvRecord,
    Target,
    WellKnownAnswer,
)
from tcprepl.federation.wire.failures import (
    ConnectionDropped,
    NotReached,
    RequestFailed,
    classify,
)
from tcprepl.federation.wire.names import SrvResolver
from tcprepl.federation.wire.signing import Signer
from tcprepl.ids import ServerName
from tcprepl.logger import get_logger

T = TypeVar("T")

logger = get_logger(__name__)

#: How long a request may take from beginning to end.
REQUEST_TIMEOUT_S = 60.0
#: Largest answer that is read.
MAX_ANSWER_BYTES = 1024 * 1024
#: How long an unused connection is kept.
IDLE_CONNECTION_S = 30
#: Connections beyond which none is kept for reuse.
MAX_KEPT_CONNECTIONS = 500
#: How long a .well-known may take from beginning to end.
WELL_KNOWN_TIMEOUT_S = 30.0
#: Most redirects that a .well-known may make.
MAX_REDIRECTS = 5

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_USER_AGENT = f"tcprepl/{tcprepl.__version__}".encode()


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
        self._tls = TlsClients(trust)
        self._policy = policy or AddressPolicy()
        self._timeout_s = timeout_s
        self._targets: OrderedDict[bytes, Target] = OrderedDict()
        self._connections: set[Any] = set()
        self._pool = GrippedPool(reactor, persistent=True)
        self._pool.cachedConnectionTimeout = IDLE_CONNECTION_S
        self._pool.maxPersistentPerHost = 1
        # A request that may be repeated is repeated by us, who know whether it may.
        self._pool.retryAutomatically = False
        self._single_pool = GrippedPool(reactor, persistent=False)
        self._web_pool = GrippedPool(reactor, persistent=False)
        self._agent = Agent.usingEndpointFactory(reactor, _Endpoints(self), self._pool)
        self._single = Agent.usingEndpointFactory(reactor, _Endpoints(self), self._single_pool)
        self._web = Agent.usingEndpointFactory(reactor, _WebEndpoints(self), self._web_pool)
        self._resolver = SrvResolver(reactor)
        self.discovery = Discovery(
            self._clock.seconds,
            self._fetch_well_known,
            lookup_srv or self._resolver.lookup,
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
        self._tls = TlsClients(trust)
        self._policy = policy
        self.discovery.place(overrides)

    # -- asking -------------------------------------------------------------------------------

    async def send_transaction(
        self, destination: ServerName, transaction_id: str, body: bytes
    ) -> Answer:
        """Send a transaction, whose body is canonical JSON.

        Old servers know the path only with a slash at its end: one that does not know it
        without is asked again with it. All of it has one deadline.

        Raises:
            NotReached: The destination did not get it.
            RequestFailed: There was no answer.
        """
        uri = f"/_matrix/federation/v1/send/{quote(transaction_id, safe='')}"
        return await self._in_time(self._send(destination, uri, body))

    async def _send(self, destination: ServerName, uri: str, body: bytes) -> Answer:
        dropped: ConnectionDropped | None = None
        try:
            try:
                answer = await self._put(destination, uri, body)
            except ConnectionDropped as failed:
                # Most often the other end closed a kept connection just as we used it. The
                # transaction id makes it safe to send again.
                dropped = failed
                answer = await self._put(destination, uri, body)
            if answer.status == 400 and answer.errcode == "M_UNRECOGNIZED":
                answer = await self._put(destination, uri + "/", body)
        except NotReached:
            if dropped is None:
                raise
            # This try did not get there, but the one before may have.
            raise dropped from None
        return answer if dropped is None else replace(answer, repeated=True)

    async def _put(self, destination: ServerName, uri: str, body: bytes) -> Answer:
        authorization = self._signer.authorization(destination, "PUT", uri, body)
        return await self._ask(destination, "PUT", uri, body, authorization)

    async def fetch(self, destination: ServerName, uri: str) -> Answer:
        """Make one GET request without a signature, as for keys.

        Raises:
            NotReached: The destination did not get it.
            RequestFailed: There was no answer.
        """
        return await self._in_time(self._get(destination, uri))

    async def _get(self, destination: ServerName, uri: str) -> Answer:
        try:
            return await self._ask(destination, "GET", uri, None, None)
        except ConnectionDropped:
            return await self._ask(destination, "GET", uri, None, None)

    def _in_time(self, work: Awaitable[T], timeout_s: float | None = None) -> Deferred[T]:
        """Do *work* within the time for a request; at its end whatever is open is closed."""
        timeout_s = self._timeout_s if timeout_s is None else timeout_s

        def too_late(result: object, _: float) -> T:
            raise RequestFailed(f"no answer within {timeout_s:g} s")

        begun: Deferred[T] = Deferred.fromCoroutine(work)  # type: ignore[arg-type]
        return begun.addTimeout(timeout_s, self._clock, onTimeoutCancel=too_late)

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
                b"User-Agent": [_USER_AGENT],
            }
        )
        if authorization is not None:
            headers.addRawHeader(b"Authorization", authorization)
        if content is not None:
            headers.addRawHeader(b"Content-Type", b"application/json")
        kept = len(self._connections) < MAX_KEPT_CONNECTIONS
        response, body = await self._exchange(
            self._agent if kept else self._single,
            self._pool if kept else self._single_pool,
            method,
            b"https://" + self._label(target) + uri.encode("ascii"),
            headers,
            content,
            MAX_ANSWER_BYTES,
        )
        wait_ms = retry_after_ms(
            response.code,
            _header(response, b"retry-after"),
            _header(response, b"date"),
            body,
            wall_seconds(),
        )
        return Answer(response.code, body, wait_ms, _header(response, b"content-type"))

    async def _exchange(
        self,
        agent: Agent,
        pool: GrippedPool,
        method: str,
        url: bytes,
        headers: Headers,
        content: bytes | None,
        max_bytes: int,
    ) -> tuple[IResponse, bytes]:
        """Make one request, and read its answer.

        However this ends, without a whole answer the connection ends with it.

        Raises:
            NotReached: The destination did not get it.
            RequestFailed: There was no answer, or it was too long.
        """
        grip = Grip()
        whole = False
        try:
            pool.grip = grip
            response: IResponse = await agent.request(
                method.encode("ascii"),
                url,
                headers,
                None if content is None else BytesBody(content),
            )
            body = await read_body(response, max_bytes)
            whole = True
        except (CancelledError, FederationError):
            raise
        except Exception as failed:
            raise classify(failed) from failed
        finally:
            pool.grip = None
            if not whole:
                grip.end()
        return response, body

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
        plain = GuardedEndpoint(self._reactor, target.host, target.port, policy)
        tls = wrapClientTLS(self._tls.to(target.tls_name), plain)
        return EndingEndpoint(tls, self._clock, self._connections)

    async def close(self) -> None:
        """End every connection at once; requests that are under way fail."""
        for connection in list(self._connections):
            connection.abort()
        await self._pool.close_kept()

    # -- discovery ----------------------------------------------------------------------------

    async def _fetch_well_known(self, host: str) -> WellKnownAnswer:
        url = f"https://{host}/.well-known/matrix/server"
        return await self._in_time(self._follow(url), min(self._timeout_s, WELL_KNOWN_TIMEOUT_S))

    async def _follow(self, url: str) -> WellKnownAnswer:
        """Fetch *url*, following redirects; only https is spoken."""
        for _ in range(MAX_REDIRECTS + 1):
            response, body = await self._exchange(
                self._web,
                self._web_pool,
                "GET",
                url.encode("ascii"),
                Headers({b"User-Agent": [_USER_AGENT]}),
                None,
                WELL_KNOWN_MAX_BYTES,
            )
            location = _header(response, b"location")
            if response.code not in _REDIRECTS or not location:
                caching = [_header(response, name) for name in (b"cache-control", b"expires")]
                return WellKnownAnswer(response.code, body, *caching)
            try:
                url = urljoin(url, location)
                url.encode("ascii")
            except ValueError as failed:
                raise RequestFailed("a redirect to something that is no URL") from failed
        raise RequestFailed("too many redirects")


def _header(response: IResponse, name: bytes) -> str:
    """Return all lines of a header, as one."""
    found: list[bytes] = response.headers.getRawHeaders(name, [])
    return b", ".join(found).decode("latin-1")
