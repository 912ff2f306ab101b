"""How a request is answered."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from tcprepl.http.reading import Message
from tcprepl.http.request import Request, reason


class Outlet:
    """A connection that notes what is written to it."""

    def __init__(self, *, persistent: bool = True) -> None:
        self.transport: Any = None
        self.persistent = persistent
        self.written = b""
        self.producer: Any = None
        self.done: list[Request] = []

    def send(self, data: bytes) -> None:
        """Take an answer."""
        self.written += data

    send_on = send

    def stream(self, head: bytes, producer: Any) -> None:
        """Take the head of one that goes on."""
        self.written += head
        self.producer = producer

    def request_done(self, request: Request) -> None:
        """Note the end."""
        self.done.append(request)


def asked(method: bytes = b"GET", version: str = "1.1") -> Message:
    """Return a request."""
    return Message(method, b"/a?b", version, {}, b"", version == "1.0")


def test_an_answer_is_one_piece() -> None:
    outlet = Outlet()
    request = Request(outlet, asked())
    told = request.finished()
    request.answer(200, b"Server: x\r\n", b"body")
    head, _, body = outlet.written.partition(b"\r\n\r\n")
    first, date, *headers = head.split(b"\r\n")
    assert (first, headers, body) == (
        b"HTTP/1.1 200 OK",
        [b"Server: x", b"Content-Length: 4"],
        b"body",
    )
    assert date.startswith(b"Date: ")
    assert date.endswith(b" GMT")
    assert (request.path, request.code, request.sent_bytes) == (b"/a", 200, 4)
    assert outlet.done == [request]
    assert told.called


@pytest.mark.parametrize(
    ("method", "body", "end"),
    [
        (b"HEAD", b"body", b"Content-Length: 4\r\n\r\n"),
        (b"GET", b"", b"Content-Length: 0\r\n\r\n"),
        (b"GET", None, b" GMT\r\n\r\n"),
    ],
)
def test_an_answer_without_a_body(method: bytes, body: bytes | None, end: bytes) -> None:
    outlet = Outlet()
    Request(outlet, asked(method)).answer(200, b"", body)
    assert outlet.written.endswith(end)


@pytest.mark.parametrize(("version", "told"), [("1.1", True), ("1.0", False)])
def test_the_end_of_the_connection_is_told(version: str, told: bool) -> None:
    """To who does not expect it."""
    outlet = Outlet(persistent=False)
    Request(outlet, asked(version=version)).answer(200, b"", b"")
    assert outlet.written.startswith(b"HTTP/%b 200 OK\r\n" % version.encode())
    assert (b"Connection: close\r\n" in outlet.written) == told


def test_an_answer_that_goes_on_is_in_chunks() -> None:
    """None of them is empty, which would be the end."""
    outlet = Outlet()
    request, producer = Request(outlet, asked()), object()
    request.begin(200, b"Server: x\r\n", producer)
    for piece in (b"a" * 20, b"", b"b"):
        request.write(piece)
    request.finish()
    head, _, body = outlet.written.partition(b"\r\n\r\n")
    assert head.endswith(b"Server: x\r\nTransfer-Encoding: chunked")
    assert body == b"14\r\n" + b"a" * 20 + b"\r\n1\r\nb\r\n0\r\n\r\n"
    assert (outlet.producer, request.sent_bytes) == (producer, 21)


def test_nothing_is_written_when_nobody_is_there() -> None:
    """Whoever waits for the end is told why."""
    outlet = Outlet()
    request = Request(outlet, asked())
    failures: list[Failure] = []
    request.begin(200, b"", None)
    before = outlet.written
    request.finished().addErrback(failures.append)
    request.lost(Failure(ConnectionDone()))
    request.write(b"more")
    request.finish()
    assert (outlet.written, outlet.done) == (before, [])
    assert [failure.type for failure in failures] == [ConnectionDone]


def test_reasons_are_those_of_the_rfc() -> None:
    """Where Python has older words, depending on its release (RFC 9110, 15)."""
    assert (reason(200), reason(413)) == (b"OK", b"Content Too Large")
