"""Asking a writer who it is: the first line of the line protocol."""

from __future__ import annotations

from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import connectProtocol
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tcprepl import limits
from tcprepl.clocks import Reactor
from tcprepl.ids import ServerName
from tcprepl.logger import get_logger

logger = get_logger(__name__)

T = TypeVar("T")

#: How long to wait before a writer that did not say is asked again.
ASK_AGAIN_S = 1.0
#: How long a writer may take to say it once it is connected.
ANSWER_WITHIN_S = 10.0


class _Greeting(Protocol):
    """Reads the first line: SERVER and the homeserver's name."""

    def __init__(self) -> None:
        self.name: Deferred[str] = Deferred()
        self._line = b""
        self._left = False

    def dataReceived(self, data: bytes) -> None:
        """Read until the line is whole (Twisted calls this)."""
        self._line = (self._line + data)[: limits.MAX_LINE_BYTES]
        line, end, _ = self._line.partition(b"\n")
        if end and not self.name.called:
            word, _, name = line.decode("utf-8", "replace").strip().partition(" ")
            self.name.callback(name if word.upper() == "SERVER" else "")
            assert self.transport is not None
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Give up (Twisted calls this)."""
        if not self.name.called:
            self.name.callback("")

    def connectionMade(self) -> None:
        """Go, if nobody waits any more (Twisted calls this)."""
        if self._left:
            self.leave()

    def leave(self) -> None:
        """End the connection, or the one that comes all the same."""
        self._left = True
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()


async def ask_server_name(reactor: Reactor, endpoint: IStreamClientEndpoint) -> ServerName:
    """Return how the writer calls itself; empty if it does not say, after a while."""
    greeting = _Greeting()
    try:
        await _cancelled_at_once(connectProtocol(endpoint, greeting))
        name: str = await greeting.name.addTimeout(ANSWER_WITHIN_S, reactor)
    except CancelledError:
        greeting.leave()
        raise
    except Exception as error:  # noqa: BLE001  # whatever it is, it is tried again
        greeting.leave()
        logger.info("federation.writer.unreachable", error=str(error))
        name = ""
    if not name:
        await deferLater(reactor, ASK_AGAIN_S)
    return name


def _cancelled_at_once(work: Deferred[T]) -> Deferred[T]:
    """Return *work*; when it is cancelled that shows, whatever an endpoint makes of it.

    One that looks a name up says that there is no such name, for example.
    """

    def cancel(outer: Deferred[T]) -> None:
        outer.errback(CancelledError())
        work.cancel()

    def pass_on(result: Any) -> None:
        if not shown.called:
            shown.callback(result)

    shown: Deferred[T] = Deferred(cancel)
    _ = work.addBoth(pass_on)
    return shown
