"""The edge of the HTTP server: what a connection may cost before a handler sees it.

A request has a deadline from the moment the connection is ready for it until its last byte, a
size, and a share of a total; connections are counted; and the log has the path only, as a query
may hold an access token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IProtocolNegotiationFactory,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as Connected
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from zope.interface import implementer

from tcprepl import limits
from tcprepl.http.reading import Refusal, RequestReader
from tcprepl.http.request import Request, reason
from tcprepl.logger import get_logger, is_debugging
from tcprepl.metrics import Live
from tcprepl.replication import lingering
from tcprepl.replication.failures import describe_address

logger = get_logger(__name__)

CONNECTIONS = Live("tcprepl_http_connections", "HTTP connections open now")

#: What may come while a request is answered; from who sends more nothing is read for now.
_AHEAD_BYTES: Final = 16_384
#: For how long what one connection has sent is worked on in a turn of the reactor at the most; the
#: rest has its turn when the others have had theirs. Many share the time of the last.
_TURN_S: Final = 0.002
_TURNS_S: Final = 0.01


class Serves(Protocol):
    """What answers requests."""

    def serve(self, request: Request) -> None:
        """Answer *request*, now or later; must not raise."""
        ...


@implementer(IPushProducer, IHalfCloseableProtocol)
class LimitedChannel(Connected):
    """One HTTP connection, within its limits.

    Args:
        site: The site, which counts.

    Attributes:
        persistent: Whether another request may follow.
    """

    transport: Any

    def __init__(self, site: LimitedSite) -> None:
        self._site = site
        self._reader = RequestReader(self._admit, self._welcome)
        self.persistent = True
        self._request: Request | None = None
        self._producer: Any = None
        self._deadline: IDelayedCall | None = None
        self._due_s: float | None = None
        self._turn: IDelayedCall | None = None
        self._send: Callable[[bytes], int] | None = None
        self._refused = False
        self._closing = False
        #: Whether the client has closed its side.
        self._said_all = False
        #: What of an answer had not been taken when that was looked at.
        self._untaken: int | None = None
        self._parsing = False
        #: Whether the peer does not take what was answered.
        self._full = False
        #: Whether nothing is read for now.
        self._held = False
        self._ahead = b""
        self._held_bytes = 0

    def connectionMade(self) -> None:
        """Start waiting for the first request (Twisted calls this)."""
        self._site.open_channels.add(self)
        transport = self.transport
        transport.registerProducer(self, True)
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        if isinstance(transport, Connection) and not transport.TLS:
            self._send = transport.getHandle().send
        self._arm()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Give back what this connection held (Twisted calls this)."""
        self._site.open_channels.discard(self)
        self._closing = True
        self._ahead = b""
        self._due_s = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
            self._site.turns -= 1
        self._release()
        self._reader.close()
        self._producer = None
        request, self._request = self._request, None
        if request is not None:
            request.lost(reason)

    def dataReceived(self, data: bytes) -> None:
        """Take what has come (Twisted calls this)."""
        if self._closing:
            return
        if self._ahead or self._request is not None:
            self._ahead += data
        else:
            self._go_on(data)
        self._bound_ahead()

    def _bound_ahead(self) -> None:
        """Read nothing for now from who has sent much: not for ever, as its end is not heard."""
        if len(self._ahead) > _AHEAD_BYTES:
            self._hold()
            if self._due_s is None:
                self._arm()

    def readConnectionLost(self) -> None:
        """Answer what the client has said, and close: it says no more (Twisted calls this)."""
        self._said_all = True
        self._arm()
        self._close_if_done()

    def writeConnectionLost(self) -> None:
        """Do nothing: our side is not closed by itself (Twisted calls this)."""

    def _close_if_done(self) -> None:
        if self._said_all and self._request is None and not self._ahead:
            self.loseConnection()

    # --- flow control (the transport calls these) -------------------------------------------------

    def pauseProducing(self) -> None:
        """Take no further request: the peer does not take what was answered."""
        self._full = True
        self._hold()
        self._pause_producer()

    def resumeProducing(self) -> None:
        """Go on."""
        self._full = False
        if self._producer is not None:
            if not self._said_all and len(self._ahead) <= _AHEAD_BYTES:
                self._due_s = None
            self._producer.resumeProducing()
        self._read_on()

    def _pause_producer(self) -> None:
        """Let an answer that goes on wait: not for ever, as its client may read nothing of it."""
        if self._producer is not None:
            self._producer.pauseProducing()
            self._untaken = None
            if self._due_s is None:
                self._arm()

    def stopProducing(self) -> None:
        """Do nothing: `connectionLost` follows."""

    def _hold(self) -> None:
        if not self._held and not self._closing:
            self._held = True
            self.transport.pauseProducing()

    def _read_on(self) -> None:
        """Take up what came meanwhile, once the request before it is answered and read."""
        if self._closing or self._turn is not None:
            return
        if self._request is None and self._ahead and not self._full:
            data, self._ahead = self._ahead, b""
            self._go_on(data)
            self._bound_ahead()
        if self._held and not self._full and not self._closing and len(self._ahead) <= _AHEAD_BYTES:
            self._held = False
            if not self._said_all:
                self.transport.resumeProducing()
        self._close_if_done()

    # --- what comes -------------------------------------------------------------------------------

    def _go_on(self, data: bytes) -> None:
        """Take requests from *data*, up to one that is not answered at once."""
        self._parsing = True
        try:
            at = 0
            turn_ends_s: float | None = None
            while at < len(data) and not self._closing:
                if self._request is not None or self._full:
                    self._ahead = data[at:]
                    return
                if turn_ends_s is not None and self._site.reactor.seconds() >= turn_ends_s:
                    self._ahead = data[at:]
                    self._turn = self._site.reactor.callLater(0, self._next_turn)
                    self._site.turns += 1
                    return
                at = self._reader.read(data, at)
                if turn_ends_s is None and at < len(data):
                    turn_s = min(_TURN_S, _TURNS_S / (1 + self._site.turns))
                    turn_ends_s = self._site.reactor.seconds() + turn_s
                if self._reader.complete:
                    self._serve()
        except Refusal as refusal:
            self.refuse(refusal)
        finally:
            self._parsing = False

    def _next_turn(self) -> None:
        self._turn = None
        self._site.turns -= 1
        self._read_on()

    def _serve(self) -> None:
        """Hand over the request, which has no deadline any more."""
        message = self._reader.message()
        if not self._said_all:
            self._due_s = None
        if message.last:
            self.persistent = False
        self._request = request = Request(self, message)
        if message.uri == b"*":
            request.answer(204, b"Server: tcprepl\r\nX-Content-Type-Options: nosniff\r\n", None)
        else:
            self._site.resource.serve(request)

    def _admit(self, body_bytes: int, new_bytes: int) -> None:
        """Account for a body of *body_bytes* so far.

        Raises:
            Refusal: It is too much.
        """
        site = self._site
        if body_bytes > site.max_body_bytes:
            raise Refusal(
                413,
                "M_TOO_LARGE",
                f"the body has more than {site.max_body_bytes} bytes: send fewer rows at a time",
            )
        if site.held_bytes + new_bytes > site.max_bodies_bytes:
            raise Refusal(
                429, "M_LIMIT_EXCEEDED", "other requests fill the server's memory: come back"
            )
        self._held_bytes += new_bytes
        site.held_bytes += new_bytes

    def _welcome(self) -> None:
        self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def refuse(self, refusal: Refusal) -> None:
        """Answer what has not been read to its end, and close."""
        self._refused = True
        body = msgspec.json.encode({"errcode": refusal.errcode, "error": refusal.message})
        later = b"Retry-After: 1\r\n" if refusal.status == 429 else b""
        self.transport.write(
            b"HTTP/1.1 %d %b\r\nServer: tcprepl\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n%bConnection: close\r\n\r\n%b"
            % (refusal.status, reason(refusal.status), len(body), later, body)
        )
        self.loseConnection()
        peer = describe_address(self.transport.getPeer())
        logger.info("http.request.refused", peer=peer, reason=refusal.message)

    # --- what is answered -------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Write *data*: straight to the socket, as long as that has taken everything."""
        if self._send is None:
            self.transport.write(data)
            return
        try:
            sent = self._send(data)
        except OSError:  # it is full, or gone; the transport finds out which
            sent = 0
        if sent < len(data):
            self._send = None
            self.transport.write(data[sent:])

    def stream(self, head: bytes, producer: Any) -> None:
        """Write the head of an answer that goes on; the transport keeps what does not fit."""
        self._send = None
        self._producer = producer
        self.transport.write(head)
        if self._full:
            self._pause_producer()

    def send_on(self, data: bytes) -> None:
        """Write some more of such an answer."""
        self.transport.write(data)

    def request_done(self, request: Request) -> None:
        """Wait for the next request, or close."""
        self._request = self._producer = self._untaken = None
        self._release()
        self._site.log(request)
        if not self.persistent:
            self.loseConnection()
            return
        self._arm()
        if not self._parsing:
            self._read_on()

    def close_when_idle(self) -> None:
        """Close once the request that is there, if any, is answered."""
        self.persistent = False
        if self._request is None and not self._reader.begun and not self._ahead:
            self.loseConnection()

    def loseConnection(self) -> None:
        """Close once everything is written; who does not read it is cut off."""
        if self._closing:
            return
        self._closing = True
        self._ahead = b""
        self.transport.unregisterProducer()
        if self._refused:
            # It may be speaking still, and has a sentence to read.
            lingering.close(self.transport)
            self._arm(limits.HTTP_CLOSE_TIMEOUT_S)
        else:
            self.transport.loseConnection()
            self._arm()

    def _late(self) -> None:
        self._deadline = None
        if self._due_s is None:
            return  # a request is being answered
        left_s = self._due_s - self._site.reactor.seconds()
        if left_s > 0:
            self._deadline = self._site.reactor.callLater(left_s, self._late)
        elif self._takes_answers():
            self._arm()
        elif self._closing or self._request is not None:
            self.transport.abortConnection()
        elif self._reader.begun:
            self.refuse(
                Refusal(
                    408,
                    "M_LIMIT_EXCEEDED",
                    f"the request was not complete after {self._site.request_timeout_s:g} s",
                )
            )
        else:
            self._refused = True
            self.loseConnection()

    def _takes_answers(self) -> bool:
        """Return whether the client has taken some of what waits for it since it was looked at."""
        transport = self.transport
        if not isinstance(transport, Connection):  # TLS hands on what it has to one
            transport = getattr(transport, "transport", None)
        if not isinstance(transport, Connection):
            return False
        before = self._untaken
        self._untaken = len(transport.dataBuffer) - transport.offset + transport._tempDataLen
        return self._untaken > 0 and (before is None or self._untaken < before)

    def _arm(self, delay_s: float | None = None) -> None:
        """Be late after *delay_s*. The timer goes on from request to request, and looks then."""
        site = self._site
        if delay_s is None:
            delay_s = limits.HTTP_HALF_CLOSED_S if self._said_all else site.request_timeout_s
        self._due_s = site.reactor.seconds() + delay_s
        if self._deadline is not None and self._deadline.getTime() > self._due_s:
            self._deadline.cancel()
            self._deadline = None
        if self._deadline is None:
            self._deadline = site.reactor.callLater(delay_s, self._late)

    def _release(self) -> None:
        self._site.held_bytes -= self._held_bytes
        self._held_bytes = 0


@implementer(IProtocolNegotiationFactory)
class LimitedSite(Factory):
    """A site that bounds its connections and their requests, and can be drained.

    Attributes:
        resource: What answers requests.
        reactor: The clock of the deadlines.
        max_body_bytes: Longest request body.
        max_bodies_bytes: Bytes of all bodies held at once.
        max_connections: Connections admitted at once; more are closed at once.
        request_timeout_s: From being ready for a request to having read all of it.
        held_bytes: Bytes of bodies held now.
        turns: Connections of which more is to be worked on in the next turn of the reactor.
        open_channels: The connections open now.
    """

    def __init__(
        self,
        resource: Serves,
        reactor: IReactorTime,
        *,
        max_body_bytes: int = limits.MAX_HTTP_BODY_BYTES,
        max_bodies_bytes: int = limits.MAX_HTTP_BODIES_BYTES,
        max_connections: int = limits.MAX_HTTP_CONNECTIONS,
        request_timeout_s: float = limits.HTTP_REQUEST_TIMEOUT_S,
    ) -> None:
        self.resource = resource
        self.reactor = reactor
        self.max_body_bytes = max_body_bytes
        self.max_bodies_bytes = max_bodies_bytes
        self.max_connections = max_connections
        self.request_timeout_s = request_timeout_s
        self.held_bytes = 0
        self.turns = 0
        self.open_channels: set[LimitedChannel] = set()
        self._start_hooks: list[Callable[[], None]] = []
        self._drain_hooks: list[Callable[[], None]] = []
        self._change_hooks: list[Callable[[], None]] = []
        CONNECTIONS.add_source(self._count)

    def buildProtocol(self, addr: IAddress | None) -> LimitedChannel | None:
        """Return the protocol of a new connection; None closes it."""
        if len(self.open_channels) >= self.max_connections:
            logger.warning("http.too_many_connections", limit=self.max_connections)
            return None
        channel = LimitedChannel(self)
        channel.factory = self
        return channel

    def acceptableProtocols(self) -> list[bytes]:
        """Return what is spoken over TLS with who asks (Twisted calls this)."""
        return [b"http/1.1"]

    def startFactory(self) -> None:
        """Start what runs while the site listens (Twisted calls this)."""
        for hook in self._start_hooks:
            hook()

    def stopFactory(self) -> None:
        """Leave the metrics and answer what waits; what is open goes on (Twisted calls this)."""
        CONNECTIONS.remove_source(self._count)
        self.drain()

    def log(self, request: Request) -> None:
        """Note an answered request; never its query, which may hold an access token."""
        if is_debugging():
            logger.debug(
                "http.request",
                method=request.method.decode("ascii", "replace"),
                path=request.path.decode("utf-8", "replace"),
                status=request.code,
                sent_bytes=request.sent_bytes,
            )

    def on_start(self, hook: Callable[[], None]) -> None:
        """Call *hook* when the site starts to listen."""
        self._start_hooks.append(hook)

    def on_drain(self, hook: Callable[[], None]) -> None:
        """Call *hook* when the site is drained: what waits has to answer now."""
        self._drain_hooks.append(hook)

    def on_change(self, hook: Callable[[], None]) -> None:
        """Call *hook* when the services that the site was built from have changed."""
        self._change_hooks.append(hook)

    def changed(self) -> None:
        """Take up who is let in from now on; whoever changed the services calls this."""
        for hook in self._change_hooks:
            hook()

    def drain(self) -> None:
        """Let what waits answer now, and close every connection once it has."""
        for hook in self._drain_hooks:
            hook()
        for channel in tuple(self.open_channels):
            channel.close_when_idle()

    def _count(self) -> list[tuple[tuple[str, ...], float]]:
        return [((), float(len(self.open_channels)))]
