"""Fetching missed rows over HTTP under Twisted (protocol.md section 13)."""

from __future__ import annotations

from collections.abc import Mapping

import treq
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from tcprepl.clocks import Reactor
from tcprepl.ids import InstanceName, StreamName, Token
from tcprepl.replication.following import catchup
from tcprepl.replication.following.catchup import REQUEST_TIMEOUT_S, Archive, CatchUpPage


@implementer(IAgentEndpointFactory)
class _UnixEndpoint:
    """Leads every request to one Unix socket."""

    def __init__(self, reactor: Reactor, path: str) -> None:
        self._endpoint = UNIXClientEndpoint(reactor, path)

    def endpointForURI(self, uri: URI) -> UNIXClientEndpoint:
        """Return the endpoint (Twisted calls this)."""
        return self._endpoint


class _Body(Protocol):
    """Reads an answer up to a bound; what is waited for no longer does not come any more.

    Attributes:
        read: Fires with the answer, or with more than it may be.
    """

    def __init__(self) -> None:
        self.read: Deferred[bytes] = Deferred(lambda _: self._end())
        self._parts = bytearray()

    def dataReceived(self, data: bytes) -> None:
        """Take a part (Twisted calls this)."""
        if self.read.called:  # over TLS a peer may go on after it was told to end
            return
        self._parts += data
        if len(self._parts) > catchup.MAX_ANSWER_BYTES:
            self.read.callback(bytes(self._parts[: catchup.MAX_ANSWER_BYTES + 1]))
            self._end()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Take it as it is, unless it broke off (Twisted calls this)."""
        if self.read.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.read.callback(bytes(self._parts))
        else:
            self.read.errback(reason)

    def _end(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()


class HttpCatchUp(Archive):
    """Asks the instance that wrote the stream, for `ReplicationClient`.

    Args:
        reactor: The reactor.
        urls: As for `Archive`.
        secret: As for `Archive`.
    """

    def __init__(
        self, reactor: Reactor, urls: Mapping[InstanceName, str], secret: str | None = None
    ) -> None:
        super().__init__(urls, secret)
        self._pool = HTTPConnectionPool(reactor)
        self._client = treq.client.HTTPClient(Agent(reactor, pool=self._pool))
        self._reactor = reactor

    async def fetch(
        self, stream: StreamName, instance: InstanceName, after: Token, upto: Token
    ) -> CatchUpPage:
        """Return a page of ``(after, upto]``.

        Raises:
            ConnectionFailed: The answer was not 200, or not what it should be.
        """
        question = self.question(stream, instance, after, upto)
        client = self._client if question.socket is None else self._client_of(question.socket)
        headers = Headers({name: [value] for name, value in question.headers.items()})
        response = await client.get(
            question.url, headers=headers, timeout=REQUEST_TIMEOUT_S, unbuffered=True
        )
        body = _Body()
        response.deliverBody(body)
        answer = await body.read.addTimeout(REQUEST_TIMEOUT_S, self._reactor)
        return question.page(response.code, answer)

    def _client_of(self, path: str) -> treq.client.HTTPClient:
        """Return a client that reaches the Unix socket *path*, whatever the URL says."""
        return treq.client.HTTPClient(
            Agent.usingEndpointFactory(self._reactor, _UnixEndpoint(self._reactor, path))
        )

    async def close(self) -> None:
        """Close idle connections."""
        await self._pool.closeCachedConnections()
