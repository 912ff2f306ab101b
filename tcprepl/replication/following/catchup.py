"""Fetching missed rows over HTTP, where the wire cannot resume (protocol.md section 13).

From Synapse 1.13 on a server sends no missed rows in band: a reader that sees a gap asks
the instance that wrote the stream. `HttpCatchUp` does so for `ReplicationClient`.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

import msgspec
import treq
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.web.client import URI, Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from tcprepl.clocks import Reactor
from tcprepl.errors import CloseReason, ConnectionFailed
from tcprepl.ids import InstanceName, StreamName, Token
from tcprepl.replication.failures import UNIX_URL

#: How long one request may take.
REQUEST_TIMEOUT_S = 30.0
#: Longest answer that is read.
MAX_ANSWER_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CatchUpPage:
    """What one request answered.

    Attributes:
        updates: (token, row as JSON bytes), ascending; equal tokens are a batch.
        upto: The token reached; ask on from here.
        limited: Whether more remain.
        missing: Tokens (after, upto] whose rows are past retention there; None for none.
            Only tcprepl says so.
    """

    updates: list[tuple[Token, bytes]]
    upto: Token
    limited: bool
    missing: tuple[Token, Token] | None = None


class CatchUp(Protocol):
    """Where missed rows can be had."""

    def fetch(
        self, stream: StreamName, instance: InstanceName, after: Token, upto: Token
    ) -> Awaitable[CatchUpPage]:
        """Return rows of *stream* by *instance* in ``(after, upto]``, a page of them."""
        ...


class _Answer(msgspec.Struct):
    updates: list[tuple[int, msgspec.Raw]]
    upto_token: int
    limited: bool
    missing: tuple[int, int] | None = None


@implementer(IAgentEndpointFactory)
class _UnixEndpoint:
    """Leads every request to one Unix socket."""

    def __init__(self, reactor: Reactor, path: str) -> None:
        self._endpoint = UNIXClientEndpoint(reactor, path)

    def endpointForURI(self, uri: URI) -> UNIXClientEndpoint:
        """Return the endpoint (Twisted calls this)."""
        return self._endpoint


class HttpCatchUp:
    """Asks ``get_repl_stream_updates`` of the instance that wrote the stream.

    Args:
        reactor: The reactor.
        urls: Base URL of each instance's HTTP replication listener, or ``http://unix:/PATH`` of
            its socket; ``"*"`` stands for every instance that is not named.
        secret: The shared replication secret, if there is one.
    """

    def __init__(
        self, reactor: Reactor, urls: Mapping[InstanceName, str], secret: str | None = None
    ) -> None:
        self.change(urls, secret)
        self._pool = HTTPConnectionPool(reactor)
        self._client = treq.client.HTTPClient(Agent(reactor, pool=self._pool))
        self._reactor = reactor

    def change(self, urls: Mapping[InstanceName, str], secret: str | None) -> None:
        """Ask there, with that secret, from now on; the arguments are as for the class."""
        self._urls = dict(urls)
        self._secret = secret

    async def fetch(
        self, stream: StreamName, instance: InstanceName, after: Token, upto: Token
    ) -> CatchUpPage:
        """Return a page of ``(after, upto]``.

        Raises:
            ConnectionFailed: The answer was not 200, or not what it should be.
        """
        base = self._urls.get(instance) or self._urls.get("*")
        if base is None:
            raise ConnectionFailed(
                f"no URL is configured for instance {instance}, so rows of {stream} after "
                f"{after} cannot be fetched",
                reason=CloseReason.CONNECTION_LOST,
                transient=False,
            )
        client = self._client
        if base.startswith(UNIX_URL):
            client, base = self._client_of("/" + base.removeprefix(UNIX_URL)), "http://localhost"
        url = (
            f"{base.rstrip('/')}/_synapse/replication/get_repl_stream_updates/"
            f"{quote(stream, safe='')}/{secrets.token_hex(8)}"
        )
        headers = Headers({"Authorization": [f"Bearer {self._secret}"]} if self._secret else {})
        response = await client.get(
            url,
            params={"from_token": str(after), "upto_token": str(upto), "instance": instance},
            headers=headers,
            timeout=REQUEST_TIMEOUT_S,
        )
        body = await self._body(response)
        if response.code != 200:
            raise ConnectionFailed(
                f"{instance} answered {response.code} when asked for {stream} "
                f"({after}, {upto}]: {body[:200].decode('utf-8', 'replace')}",
                reason=CloseReason.CONNECTION_LOST,
                transient=response.code in (408, 429) or response.code >= 500,
            )
        try:
            answer = msgspec.json.decode(body, type=_Answer)
        except msgspec.DecodeError as error:
            raise ConnectionFailed(
                f"{instance} answered something else than updates of {stream}: {error}",
                reason=CloseReason.CONNECTION_LOST,
                transient=False,
            ) from error
        updates = [(token, bytes(row)) for token, row in answer.updates]
        return CatchUpPage(updates, answer.upto_token, answer.limited, answer.missing)

    async def _body(self, response: Any) -> bytes:
        parts: list[bytes] = []
        size = 0

        def collect(part: bytes) -> None:
            nonlocal size
            size += len(part)
            if size <= MAX_ANSWER_BYTES:
                parts.append(part)

        done: Deferred[None] = treq.collect(response, collect)
        await done.addTimeout(REQUEST_TIMEOUT_S, self._reactor)
        if size > MAX_ANSWER_BYTES:
            raise ConnectionFailed(
                f"the answer has {size} bytes; at most {MAX_ANSWER_BYTES} are taken",
                reason=CloseReason.CONNECTION_LOST,
                transient=False,
            )
        return b"".join(parts)

    def _client_of(self, path: str) -> treq.client.HTTPClient:
        """Return a client that reaches the Unix socket *path*, whatever the URL says."""
        return treq.client.HTTPClient(
            Agent.usingEndpointFactory(self._reactor, _UnixEndpoint(self._reactor, path))
        )

    async def close(self) -> None:
        """Close idle connections."""
        await self._pool.closeCachedConnections()
