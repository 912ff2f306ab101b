"""Closing a connection so that its last words arrive (protocol.md section 5.5).

A socket that is closed while there is something to read resets the connection, and the reset
overtakes what was written: whoever is turned away while it speaks would hear "connection
reset" in the place of the reason. So the end comes in two steps, as RFC 9112, 9.6, has it for
HTTP: our side is shut, and what the peer still says is read and thrown away, until it closes
too or has had enough.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from zope.interface import implementer

from tcprepl.limits import LINGER_BYTES, LINGER_S

#: Connections that linger at once, in this process; when there are more, the oldest is closed.
MAX_LINGERING: Final = 1_000

_lingering: dict[_Lingering, None] = {}


@implementer(IHalfCloseableProtocol)
class _Lingering:
    """Takes the place of the protocol of a connection that ends."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._protocol = transport.protocol
        self._bytes_left = LINGER_BYTES
        self._overdue: IDelayedCall | None = None
        transport.protocol = self
        transport.resumeProducing()
        _lingering[self] = None
        if len(_lingering) > MAX_LINGERING:
            next(iter(_lingering))._end()

    def dataReceived(self, data: bytes) -> None:
        """Throw *data* away (Twisted calls this)."""
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            self._end()

    def writeConnectionLost(self) -> None:
        """Give the peer a moment: it has been told everything (Twisted calls this)."""
        self._overdue = self._transport.reactor.callLater(LINGER_S, self._end)

    def readConnectionLost(self) -> None:
        """Close: the peer has no more to say (Twisted calls this)."""
        self._end()

    def connectionLost(self, reason: Failure) -> None:
        """Tell the protocol (Twisted calls this)."""
        _lingering.pop(self, None)
        if self._overdue is not None and self._overdue.active():
            self._overdue.cancel()
        self._protocol.connectionLost(reason)

    def _end(self) -> None:
        _lingering.pop(self, None)
        self._transport.loseConnection()


def hear_out(transport: Any) -> None:
    """Throw away what *transport* reads from now on; `close` has to follow."""
    if not isinstance(transport.protocol, _Lingering):
        _Lingering(transport)


def close(transport: Any) -> None:
    """Close *transport* once it has written what it holds, so that the peer gets all of it.

    The protocol hears nothing any more but `connectionLost`. TLS has an end of its own, for
    which Twisted waits in the same way.
    """
    if isinstance(transport, Connection) and not transport.TLS:
        hear_out(transport)
        transport.loseWriteConnection()
    else:
        transport.loseConnection()
