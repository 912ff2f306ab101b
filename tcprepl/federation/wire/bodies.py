"""Bodies of requests and answers, and a grip on the connection that they take."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface import implementer

from tcprepl.federation.wire.failures import RequestFailed


@implementer(IBodyProducer)
class BytesBody:
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


class _BoundedBody(Protocol):
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
        else:
            self._parts.append(data)

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Answer; a body whose length was not told ends with its connection."""
        if reason is not None and reason.check(ResponseFailed):
            self._finish(RequestFailed("the connection ended within the answer"))
        else:
            self._finish(b"".join(self._parts))

    def _finish(self, result: bytes | RequestFailed) -> None:
        self._parts = []
        if self._done.called:
            return
        if isinstance(result, bytes):
            self._done.callback(result)
        else:
            self._done.errback(result)


async def read_body(response: IResponse, max_bytes: int) -> bytes:
    """Return the body of *response*.

    Whoever calls this has to end the connection if it fails or is cancelled: what still comes
    is read and thrown away.

    Raises:
        RequestFailed: It is longer than *max_bytes*, or breaks off.
    """
    done: Deferred[bytes] = Deferred()
    response.deliverBody(_BoundedBody(done, max_bytes))
    return await done
