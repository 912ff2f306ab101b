"""A request as handlers see it, and how it is answered."""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure

from tcprepl.clocks import wall_seconds
from tcprepl.http.reading import Message

#: When the header Date was written last, and what it is.
_dated: list[Any] = [0, b""]
#: What answers are called, by status, where Python has an older name.
_reasons: dict[int, bytes] = {
    413: b"Content Too Large",
    416: b"Range Not Satisfiable",
    422: b"Unprocessable Content",
}


class Outlet(Protocol):
    """The connection that a request came on."""

    transport: Any
    persistent: bool

    def send(self, data: bytes) -> None:
        """Write an answer, or its last part."""
        ...

    def stream(self, head: bytes, producer: Any) -> None:
        """Write the head of an answer that goes on."""
        ...

    def send_on(self, data: bytes) -> None:
        """Write more of it."""
        ...

    def request_done(self, request: Request) -> None:
        """Go on with the next request, or close."""
        ...


class Request:
    """A request that has come whole, and its answer.

    Attributes:
        method: The method.
        uri: Path and query, as they came.
        path: The path, as it came.
        version: ``1.1`` or ``1.0``.
        headers: The values of each header, by its name in lower case, without blanks around them.
        body: The whole body.
        code: The status of the answer, once there is one.
        sent_bytes: Bytes of the answer's body.
        gone: Whether the connection was lost before the answer was finished.
    """

    __slots__ = (
        "_chunked",
        "_ends",
        "_outlet",
        "body",
        "code",
        "gone",
        "headers",
        "method",
        "path",
        "sent_bytes",
        "uri",
        "version",
    )

    def __init__(self, outlet: Outlet, message: Message) -> None:
        self._outlet = outlet
        self._chunked = False
        self._ends: list[Deferred[None]] = []
        self.method = message.method
        self.uri = message.uri
        self.path = message.uri.partition(b"?")[0]
        self.version = message.version
        self.headers = message.headers
        self.body = message.body
        self.code = 0
        self.sent_bytes = 0
        self.gone = False

    @property
    def client(self) -> IAddress:
        """The address that it came from."""
        address: IAddress = self._outlet.transport.getPeer()
        return address

    def finished(self) -> Deferred[None]:
        """Return what fires once the answer is finished, or fails when the connection is lost."""
        self._ends.append(Deferred())
        return self._ends[-1]

    def answer(self, status: int, headers: bytes, body: bytes | None) -> None:
        """Answer with all there is, in one piece, and finish.

        Args:
            status: The status.
            headers: Lines of the head, each ended by CR LF.
            body: The body; None for an answer that has none.
        """
        head = self._head(status, headers)
        if body is None:
            self._outlet.send(head + b"\r\n")
        elif self.method == b"HEAD":
            self._outlet.send(b"%bContent-Length: %d\r\n\r\n" % (head, len(body)))
        else:
            self.sent_bytes = len(body)
            self._outlet.send(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body))
        self.finish()

    def begin(self, status: int, headers: bytes, producer: Any) -> None:
        """Begin an answer that goes on; `write` and `finish` follow.

        Args:
            status: The status.
            headers: Lines of the head, each ended by CR LF.
            producer: An ``IPushProducer``: told to pause while the connection takes no more.
        """
        self._chunked = self.version != "1.0"  # an old client reads up to the close
        coding = b"Transfer-Encoding: chunked\r\n\r\n" if self._chunked else b"\r\n"
        self._outlet.stream(self._head(status, headers) + coding, producer)

    def write(self, data: bytes) -> None:
        """Send more of an answer that goes on; a no-op when nobody is there any more."""
        if data and not self.gone:
            self.sent_bytes += len(data)
            self._outlet.send_on(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def finish(self) -> None:
        """Finish the answer; a no-op when nobody is there any more."""
        if self.gone:
            return
        if self._chunked:
            self._outlet.send_on(b"0\r\n\r\n")
        self._outlet.request_done(self)
        for end in self._ends:
            end.callback(None)

    def lost(self, reason: Failure) -> None:
        """Note that nobody waits for the answer any more."""
        self.gone = True
        for end in self._ends:
            end.errback(reason)

    def _head(self, status: int, headers: bytes) -> bytes:
        self.code = status
        # A client that speaks 1.0 expects the end.
        end = b"" if self._outlet.persistent or self.version == "1.0" else b"Connection: close\r\n"
        version = self.version.encode()
        return b"HTTP/%b %d %b\r\n%b%b%b" % (
            *(version, status, reason(status)),
            *(_date(), headers, end),
        )


def _date() -> bytes:
    """Return the header Date; it says seconds."""
    now_s = int(wall_seconds())
    if _dated[0] != now_s:
        _dated[:] = now_s, f"Date: {formatdate(now_s, usegmt=True)}\r\n".encode()
    line: bytes = _dated[1]
    return line


def reason(status: int) -> bytes:
    """Return the words beside *status*."""
    words = _reasons.get(status)
    if words is None:
        words = _reasons[status] = HTTPStatus(status).phrase.encode()
    return words
