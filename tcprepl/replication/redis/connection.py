"""One connection to Redis: commands and their replies, messages, signs of life, its role."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from tcprepl.clocks import Reactor
from tcprepl.errors import CloseReason, ConnectionFailed
from tcprepl.logger import get_logger
from tcprepl.protocol.display import snippet
from tcprepl.replication.failures import close_reason_of, lost_because
from tcprepl.replication.redis.resp import BadReply, ErrorReply, Message, RespReader, encode
from tcprepl.replication.transport import Outlet, make_outlet

log = get_logger(__name__)

#: A connection is asked for a sign of life after this long without one.
PING_AFTER_S: Final = 10.0
#: A connection that has given no sign of life for this long is dead.
DEAD_AFTER_S: Final = 25.0

_PING: Final = encode(b"PING")
_ROLE: Final = encode(b"ROLE")
#: What ROLE begins with where publishing reaches nobody else.
_NOT_PRIMARY: Final = {
    b"slave": "it is a replica: what is published there reaches nobody else",
    b"sentinel": "it is a Sentinel, which only tells where Redis is",
}


class RedisConnection(Protocol):
    """A connection; who uses it decides what for.

    Attributes:
        gone: Fires with the reason, in words, when the connection has ended.
        heard_at: When the last byte came (seconds of the reactor).
        ended: Why it ended, in words; None while it lives.
        asks_role: Whether to ask for the role of the server now and then, and to end the
            connection when that is not the primary.
        outlet: Where to write what is not `ask`ed.
    """

    def __init__(
        self,
        reactor: Reactor,
        channel: bytes,
        take: Callable[[list[bytes]], None],
        drained: Callable[[], None],
    ) -> None:
        self.gone: Deferred[str] = Deferred()
        self.ended: str | None = None
        self.heard_at: float = reactor.seconds()
        self.asks_role = False
        self.outlet: Outlet | None = None
        self._reactor = reactor
        self._reader = RespReader(channel)
        self._take = take
        self._drained = drained
        #: Who waits for the replies that come next, in order.
        self._questions: deque[Deferred[object]] = deque()
        self._asked_at: float = reactor.seconds()
        self._transport: Any = None
        self._reason: str | None = None

    # -- Protocol ----------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Note that we are connected (Twisted calls this)."""
        transport: Any = self.transport
        self._transport = transport
        if hasattr(transport, "setTcpKeepAlive"):
            transport.setTcpKeepAlive(True)
        self.outlet = make_outlet(transport, self._drained)

    def dataReceived(self, data: bytes) -> None:
        """Hand on messages, answer questions (Twisted calls this)."""
        self.heard_at = self._reactor.seconds()
        try:
            payloads, others = self._reader.feed(data)
        except BadReply as error:
            self.abort(str(error))
            return
        for value in others:
            if isinstance(value, Message):
                payloads.append(value.payload)
            elif self._questions:
                self._questions.popleft().callback(value)
            elif isinstance(value, ErrorReply):
                self.abort(f"Redis refuses: {value}")
                return
            elif self.asks_role and isinstance(value, list) and value:
                wrong = _NOT_PRIMARY.get(value[0])
                if wrong is not None:
                    self.abort(wrong)
        if payloads:
            self._take(payloads)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Say why it ended (Twisted calls this)."""
        self.ended = self._reason or f"{close_reason_of(reason).value}: {lost_because(reason)}"
        while self._questions:
            self._questions.popleft().errback(_lost(self.ended))
        self.gone.callback(self.ended)

    # -- what users may do -------------------------------------------------------------

    async def ask(self, *words: bytes) -> object:
        """Send one command, and return the reply to it.

        Nothing whose reply is not waited for may have been written before.

        Raises:
            ConnectionFailed: Redis refuses, or the connection is gone.
        """
        if self.ended is not None:
            raise _lost(self.ended)
        reply: Deferred[object] = Deferred()
        self._questions.append(reply)
        self.write(encode(*words))
        answer = await reply
        if isinstance(answer, ErrorReply):
            text = f"Redis refuses: {snippet(str(answer).strip())}"
            raise ConnectionFailed(text, reason=CloseReason.PEER_CLOSED, transient=False)
        return answer

    async def check_role(self) -> None:
        """See to it that this is the primary, now and from now on, as far as one may ask.

        Raises:
            ConnectionFailed: It is not.
        """
        try:
            role = await self.ask(b"ROLE")
        except ConnectionFailed as error:
            if error.transient:
                raise
            log.info("redis.role_unknown", reason=str(error))  # an ACL, or no real Redis
            return
        wrong = _NOT_PRIMARY.get(role[0]) if isinstance(role, list) and role else None
        if wrong is not None:
            raise ConnectionFailed(wrong, reason=CloseReason.PEER_CLOSED)
        self.asks_role = True

    def abort(self, reason: str) -> None:
        """End the connection at once, for *reason*."""
        if self._reason is None:
            self._reason = reason
            self._transport.abortConnection()

    def pause(self) -> None:
        """Read no further for now."""
        self._transport.pauseProducing()

    def resume(self) -> None:
        """Read on."""
        self._transport.resumeProducing()

    def write(self, data: bytes) -> bool:
        """Write *data*; return whether the socket is ready for more."""
        assert self.outlet is not None
        return self.outlet.write(data)

    def look(self, now: float) -> None:
        """Ask for a sign of life, or give the connection up for want of one."""
        silence = now - self.heard_at
        if silence >= DEAD_AFTER_S:
            self.abort(f"no sign of life for {silence:.0f} s")
        elif self.asks_role and now - self._asked_at >= PING_AFTER_S:
            self._asked_at = now
            self.write(_ROLE)
        elif now - max(self.heard_at, self._asked_at) >= PING_AFTER_S:
            self._asked_at = now
            self.write(_PING)


def _lost(reason: str) -> ConnectionFailed:
    return ConnectionFailed(reason, reason=CloseReason.CONNECTION_LOST)
