"""Several servers over one database: where a client goes when one is gone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.python.failure import Failure
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
        connected: Deferred[IProtocol]

        def give_up(_: object) -> None:
            # What an endpoint makes of it that is cancelled does not matter: some fail as if
            # nobody had answered.
            connected.errback(CancelledError())
            work.cancel()

        def pass_on(result: IProtocol | Failure) -> None:
            if not connected.called:
                connected.callback(result)

        connected = Deferred(give_up)
        work = Deferred.fromCoroutine(self._connect(protocolFactory, connected))
        _ = work.addBoth(pass_on)
        return connected

    async def _connect(
        self, factory: IProtocolFactory, connected: Deferred[IProtocol]
    ) -> IProtocol:
        left = len(self._endpoints)
        while True:
            endpoint = self._endpoints[0]
            self._endpoints.rotate(-1)
            left -= 1
            try:
                return await endpoint.connect(factory)
            except Exception:
                if not left or connected.called:
                    raise
