"""The edge of the HTTP server: what a connection may cost before a handler sees it.

twisted.web takes bodies of any size, lets a client dribble for ever, and writes query strings
(with their access tokens) to the log. Here a request has a deadline from the moment the
connection is ready for it until its last byte, a size, and a share of a total; connections
are counted; and the access log has the path only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from twisted.web.http import RESPONSES, HTTPChannel, datetimeToString
from twisted.web.http import Request as HTTPRequest
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from tcprepl import limits
from tcprepl.clocks import wall_seconds
from tcprepl.logger import get_logger
from tcprepl.metrics import Live
from tcprepl.replication import lingering

logger = get_logger(__name__)

CONNECTIONS = Live("tcprepl_http_connections", "HTTP connections open now")

_ABSOLUTE = re.compile(rb"https?://([^/?#]+)", re.IGNORECASE)

#: When the header Date was written last, and what it is.
_dated: list[Any] = [0, b""]

_REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    413: "Content Too Large",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
}


class LimitedRequest(Request):
    """A request whose body is bounded and kept in memory.

    Attributes:
        body: What has come of the body.
    """

    channel: LimitedChannel

    def __init__(self, channel: LimitedChannel, *args: Any, **kwargs: Any) -> None:
        kwargs["parsePOSTFormSubmission"] = False
        super().__init__(channel, *args, **kwargs)
        self.body = BytesIO()

    def process(self) -> None:
        """Hand the request to the router, if that is what the site serves."""
        if self.path == b"*":  # OPTIONS, which asks whether anybody is there
            self.answer(204, b"Server: tcprepl\r\nX-Content-Type-Options: nosniff\r\n", None)
            return
        serve = getattr(self.channel.site.resource, "serve", None)
        if serve is None:
            super().process()
            return
        self.prepath: list[bytes] = []
        self.postpath = [unquote_to_bytes(part) for part in self.path[1:].split(b"/")]
        serve(self)

    def answer(self, status: int, headers: bytes, body: bytes | None) -> None:
        """Answer with all there is, in one piece, and finish.

        twisted.web puts a head together from objects, and writes it apart from the body.

        Args:
            status: The status.
            headers: Lines of the head, each ended by CR LF.
            body: The body; None for an answer that has none.
        """
        self.code = status
        self.startedWriting = 1
        parts = [b"%b %d %b\r\n" % (self.clientproto, status, _reason(status)), _date(), headers]
        if self.responseHeaders.hasHeader(b"Connection"):  # what came asks for it
            parts.append(b"Connection: close\r\n")
        if body is None:
            parts.append(b"\r\n")
        else:
            parts.append(b"Content-Length: %d\r\n\r\n" % len(body))
            if self.method != b"HEAD":
                parts.append(body)
                self.sentLength = len(body)
        self.channel.send(b"".join(parts))
        self.finish()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Take a request in the absolute form, as one that came through a proxy has it, too."""
        absolute = _ABSOLUTE.match(path)
        if absolute is not None:
            # The host of the target counts, whatever the header says (RFC 9112, 3.2.2).
            self.requestHeaders.setRawHeaders(b"Host", [absolute[1]])
            path = path[absolute.end() :]
            path = path if path.startswith(b"/") else b"/" + path
        if not path.startswith(b"/") and (command, path) != (b"OPTIONS", b"*"):
            self.channel.refuse(
                400,
                "M_UNRECOGNIZED",
                "the request asks for no path of this server, which is no proxy",
            )
            return
        super().requestReceived(command, path, version)

    def gotLength(self, length: int | None) -> None:
        """Prepare for a body; twisted.web would write a large one to a temporary file."""
        self.content = self.body

    def handleContentChunk(self, data: bytes) -> None:
        """Take a piece of the body."""
        if self.channel.admit(self.body.tell() + len(data), len(data)):
            self.body.write(data)


class LimitedChannel(HTTPChannel):
    """One HTTP connection, within its limits.

    Attributes:
        site: The site, which counts.
    """

    site: LimitedSite
    transport: Any
    MAX_LENGTH = limits.MAX_HTTP_HEADER_BYTES
    totalHeadersSize = 2 * limits.MAX_HTTP_HEADER_BYTES  # ours is found first
    maxHeaders = 2 * limits.MAX_HTTP_HEADERS
    _deadline: IDelayedCall | None = None
    _refused = False
    _closing = False
    _due_s: float | None = None
    _send: Callable[[bytes], int] | None = None
    _held_bytes = 0
    _head_bytes = 0
    _head_lines = 0

    def connectionMade(self) -> None:
        """Start waiting for the first request."""
        self.site.open_channels.add(self)
        super().connectionMade()
        transport = self.transport
        if isinstance(transport, Connection) and not transport.TLS:
            self._send = transport.getHandle().send
        self._arm()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Give back what this connection held."""
        self.site.open_channels.discard(self)
        self._disarm()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._release()
        super().connectionLost(reason)

    def allHeadersReceived(self) -> None:
        """Refuse a declared body that is too large before its first byte."""
        self._head_bytes = self._head_lines = 0
        if self.length is None or self.admit(self.length, 0):
            super().allHeadersReceived()

    def rawDataReceived(self, data: bytes) -> None:
        """Take bytes of a body, unless it was refused."""
        if not self._refused:
            super().rawDataReceived(data)

    def lineReceived(self, line: bytes) -> None:
        """Take a line of the head, unless the request was refused."""
        if self._refused:
            return
        self._head_bytes += len(line) + 2
        self._head_lines += 1
        if self._head_bytes > limits.MAX_HTTP_HEADER_BYTES:
            self.lineLengthExceeded(line)
        elif self._head_lines > limits.MAX_HTTP_HEADERS + 2:  # the request line and the last
            self.refuse(
                431, "M_TOO_LARGE", f"the request has more than {limits.MAX_HTTP_HEADERS} headers"
            )
        else:
            super().lineReceived(line)

    def lineLengthExceeded(self, line: bytes) -> None:
        """Refuse a request whose head is too large."""
        if not self._refused:
            self.refuse(
                431,
                "M_TOO_LARGE",
                f"the request line and headers have more than {limits.MAX_HTTP_HEADER_BYTES} bytes",
            )

    def allContentReceived(self) -> None:
        """Hand over the request, which has no deadline any more."""
        if not self._refused:
            self._disarm()
            super().allContentReceived()

    def requestDone(self, request: HTTPRequest) -> None:
        """Wait for the next request."""
        self._release()
        self._arm()
        super().requestDone(request)

    def admit(self, body_bytes: int, new_bytes: int) -> bool:
        """Account for a body of *body_bytes* so far; answer and close when it is too much."""
        if self._refused:
            return False
        site = self.site
        if body_bytes > site.max_body_bytes:
            self.refuse(
                413,
                "M_TOO_LARGE",
                f"the body has more than {site.max_body_bytes} bytes: send fewer rows at a time",
            )
            return False
        if site.held_bytes + new_bytes > site.max_bodies_bytes:
            self.refuse(
                429, "M_LIMIT_EXCEEDED", "other requests fill the server's memory: come back"
            )
            return False
        self._held_bytes += new_bytes
        site.held_bytes += new_bytes
        return True

    def loseConnection(self) -> None:
        """Close once everything is written; who does not read it is cut off."""
        if not self._closing:
            self._closing = True
            if self._refused:
                # It may be speaking still, and has a sentence to read.
                self.transport.unregisterProducer()
                lingering.close(self.transport)
                self._arm(limits.HTTP_CLOSE_TIMEOUT_S)
            else:
                super().loseConnection()
                self._arm()

    def _respondToBadRequestAndDisconnect(self) -> None:  # what twisted.web calls
        if not self._refused:
            self.refuse(400, "M_UNRECOGNIZED", "this is not an HTTP request")

    def refuse(self, status: int, errcode: str, message: str) -> None:
        """Answer what has not been read to its end, and close."""
        self._refused = True
        body = msgspec.json.encode({"errcode": errcode, "error": message})
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nServer: tcprepl\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"{'Retry-After: 1' + chr(13) + chr(10) if status == 429 else ''}"
            "Connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.loseConnection()
        logger.info("http.request.refused", peer=str(self.getPeer()), reason=message)

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

    def write(self, data: bytes) -> None:
        """Write a part of an answer that goes on; the transport keeps what does not fit."""
        self._send = None
        super().write(data)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Write some more of such an answer."""
        self._send = None
        super().writeSequence(iovec)

    def writeHeaders(self, *args: Any) -> None:
        """Write the head of such an answer."""
        self._send = None
        super().writeHeaders(*args)

    def _late(self) -> None:
        self._deadline = None
        if self._due_s is None:
            return  # a request is being answered
        left_s = self._due_s - self.site.reactor.seconds()
        if left_s > 0:
            self._deadline = self.callLater(left_s, self._late)
        elif self._closing:
            self.transport.abortConnection()
        elif self.requests:
            self.refuse(
                408,
                "M_LIMIT_EXCEEDED",
                f"the request was not complete after {self.site.request_timeout_s:g} s",
            )
        else:
            self._refused = True
            self.loseConnection()

    def _arm(self, delay_s: float | None = None) -> None:
        """Be late after *delay_s*. The timer goes on from request to request, and looks then."""
        delay_s = self.site.request_timeout_s if delay_s is None else delay_s
        self._due_s = self.site.reactor.seconds() + delay_s
        if self._deadline is not None and self._deadline.getTime() > self._due_s:
            self._deadline.cancel()
            self._deadline = None
        if self._deadline is None:
            self._deadline = self.callLater(delay_s, self._late)

    def _disarm(self) -> None:
        self._due_s = None

    def _release(self) -> None:
        self.site.held_bytes -= self._held_bytes
        self._held_bytes = 0


class LimitedSite(Site):
    """A site that bounds its connections and their requests, and can be drained.

    Attributes:
        max_body_bytes: Longest request body.
        max_bodies_bytes: Bytes of all bodies held at once.
        max_connections: Connections admitted at once; more are closed at once.
        request_timeout_s: From being ready for a request to having read all of it.
        held_bytes: Bytes of bodies held now.
        open_channels: The connections open now.
    """

    requestFactory = LimitedRequest

    def __init__(
        self,
        resource: IResource,
        reactor: IReactorTime,
        *,
        max_body_bytes: int = limits.MAX_HTTP_BODY_BYTES,
        max_bodies_bytes: int = limits.MAX_HTTP_BODIES_BYTES,
        max_connections: int = limits.MAX_HTTP_CONNECTIONS,
        request_timeout_s: float = limits.HTTP_REQUEST_TIMEOUT_S,
    ) -> None:
        super().__init__(resource, reactor=reactor, timeout=None)
        self.max_body_bytes = max_body_bytes
        self.max_bodies_bytes = max_bodies_bytes
        self.max_connections = max_connections
        self.request_timeout_s = request_timeout_s
        self.held_bytes = 0
        self.open_channels: set[LimitedChannel] = set()
        self._start_hooks: list[Callable[[], None]] = []
        self._drain_hooks: list[Callable[[], None]] = []
        self._change_hooks: list[Callable[[], None]] = []
        CONNECTIONS.add_source(self._count)

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Return the protocol of a new connection; None closes it."""
        if len(self.open_channels) >= self.max_connections:
            logger.warning("http.too_many_connections", limit=self.max_connections)
            return None
        channel: Any = LimitedChannel()
        channel.factory = self
        channel.requestFactory = self.requestFactory
        channel.site = self
        channel.callLater = self.reactor.callLater
        channel.timeOut = None
        return channel

    def startFactory(self) -> None:
        """Start what runs while the site listens; twisted.web's access log does not."""
        for hook in self._start_hooks:
            hook()

    def stopFactory(self) -> None:
        """Leave the metrics and answer what waits; connections that are open go on."""
        CONNECTIONS.remove_source(self._count)
        self.drain()

    def log(self, request: HTTPRequest) -> None:
        """Note an answered request; never its query, which may hold an access token."""
        logger.debug(
            "http.request",
            method=request.method.decode("ascii", "replace"),
            path=request.path.decode("utf-8", "replace"),
            status=request.code,
            sent_bytes=request.sentLength,
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
            channel.persistent = 0
            if not channel.requests:
                channel.loseConnection()

    def _count(self) -> list[tuple[tuple[str, ...], float]]:
        return [((), float(len(self.open_channels)))]


def _date() -> bytes:
    """Return the header Date; it says seconds."""
    now_s = int(wall_seconds())
    if _dated[0] != now_s:
        _dated[:] = now_s, b"Date: %b\r\n" % datetimeToString(now_s)
    line: bytes = _dated[1]
    return line


def _reason(status: int) -> bytes:
    return RESPONSES.get(status, b"Unknown")
