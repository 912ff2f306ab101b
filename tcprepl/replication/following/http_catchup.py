"""Fetching missed rows over HTTP under Twisted (protocol.md section 13)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import treq
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.web.client import URI, Agent, HTTPConnectionPool
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
        response = await client.get(question.url, headers=headers, timeout=REQUEST_TIMEOUT_S)
        return question.page(response.code, await self._body(response))

    async def _body(self, response: Any) -> bytes:
        body = bytearray()

        def collect(part: bytes) -> None:
            if len(body) <= catchup.MAX_ANSWER_BYTES:
                body.extend(part)

        done: Deferred[None] = treq.collect(response, collect)
        await done.addTimeout(REQUEST_TIMEOUT_S, self._reactor)
        return bytes(body)

    def _client_of(self, path: str) -> treq.client.HTTPClient:
        """Return a client that reaches the Unix socket *path*, whatever the URL says."""
        return treq.client.HTTPClient(
            Agent.usingEndpointFactory(self._reactor, _UnixEndpoint(self._reactor, path))
        )

    async def close(self) -> None:
        """Close idle connections."""
        await self._pool.closeCachedConnections()
