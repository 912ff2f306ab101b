"""Several servers over one database: where a client goes when one is gone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from zope.interface import implementer


@implementer(IStreamClientEndpoint)
class AnyOf:
    """Several places where the same is served: each connection goes to the next that answers.

    Whoever connects anew has lost the connection before, so that the server of that comes last.

    Args:
        endpoints: The places, one at least; the first connection tries the first one first.
    """

    def __init__(self, endpoints: Sequence[IStreamClientEndpoint]) -> None:
        self._endpoints = deque(endpoints)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect (Twisted calls this); if nobody answers, it fails as the last one did."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        left = len(self._endpoints)
        while True:
            endpoint = self._endpoints[0]
            self._endpoints.rotate(-1)
            left -= 1
            try:
                return await endpoint.connect(factory)
            except CancelledError:
                raise
            except Exception:
                if not left:
                    raise
