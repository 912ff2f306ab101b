"""Messages out of bytes, and what is refused."""

from __future__ import annotations

import pytest

from tcprepl import limits
from tcprepl.http.reading import Message, Refusal, RequestReader

GET = b"GET /a?b HTTP/1.1\r\n\r\n"


class Read:
    """A reader, and what it asked for.

    Attributes:
        asked: How much of a body it wanted to hold, and how much of that was new.
        waiting: How often a client waited to be told to go on.
        messages: What has come.
    """

    def __init__(self, most: int = 100) -> None:
        self._most = most
        self.asked: list[tuple[int, int]] = []
        self.waiting = 0
        self.messages: list[Message] = []
        self.reader = RequestReader(self._admit, self._go_on)

    def _admit(self, body_bytes: int, new_bytes: int) -> None:
        self.asked.append((body_bytes, new_bytes))
        if body_bytes > self._most:
            raise Refusal(413, "M_TOO_LARGE", "too much")

    def _go_on(self) -> None:
        self.waiting += 1

    def take(self, data: bytes) -> Read:
        """Read all of *data*."""
        at = 0
        while at < len(data):
            at = self.reader.read(data, at)
            if self.reader.complete:
                self.messages.append(self.reader.message())
        return self

    def dribble(self, data: bytes) -> None:
        """Read *data* byte by byte."""
        for at in range(len(data)):
            self.take(data[at : at + 1])


def test_a_message_is_all_that_was_said() -> None:
    """Names in lower case, values without the blanks around them, in order."""
    read = Read().take(
        b"PUT /a%20b?c=d&e HTTP/1.1\r\nHost: x\r\nx-A:  1 \t\r\nX-a: 2\r\n"
        b"Content-Length: 3\r\n\r\n[1]"
    )
    (message,) = read.messages
    assert (message.method, message.uri, message.version) == (b"PUT", b"/a%20b?c=d&e", "1.1")
    assert message.headers == {b"host": [b"x"], b"x-a": [b"1", b"2"], b"content-length": [b"3"]}
    assert (message.body, message.last) == (b"[1]", False)
    assert read.asked == [(3, 0), (3, 3)]
    assert not read.reader.begun


def test_a_reader_that_is_closed_holds_nothing() -> None:
    """However often it is."""
    read = Read().take(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n[")
    assert read.reader.begun
    for _ in range(2):
        read.reader.close()
        assert not read.reader.begun


def test_no_byte_of_the_next_message_is_read() -> None:
    """Whoever reads takes one, and decides."""
    reader = Read().reader
    data = b"\r\n" + GET + GET
    at = 0
    while not reader.complete:
        at = reader.read(data, at)
    assert at == len(data) - len(GET)
    assert reader.message().uri == b"/a?b"
    assert not reader.complete


@pytest.mark.parametrize(
    ("lines", "version", "last"),
    [
        (b"", b"1.1", False),
        (b"Connection: keep-alive\r\n", b"1.1", False),
        (b"Connection: closed\r\n", b"1.1", False),
        (b"Connection: close\r\n", b"1.1", True),
        (b"Connection: TE ,\tClose\r\nTE: trailers\r\n", b"1.1", True),
        (b"Connection: TE\r\nConnection: close\r\n", b"1.1", True),
        (b"Proxy-Connection: close\r\n", b"1.1", True),
        (b"", b"1.0", True),
        (b"Connection: keep-alive\r\n", b"1.0", True),
    ],
)
def test_who_asks_for_the_end(lines: bytes, version: bytes, last: bool) -> None:
    """A client of HTTP/1.0 expects it."""
    read = Read().take(b"GET / HTTP/%b\r\n%b\r\n" % (version, lines))
    assert [message.last for message in read.messages] == [last]


def test_a_client_that_waits_is_told_before_its_body() -> None:
    """Not where there is none, or too much is announced."""
    head = b"POST / HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: %d\r\n\r\n"
    read = Read().take(head % 2)
    assert (read.waiting, read.messages) == (1, [])
    read.take(b"{}" + head % 0)
    assert (read.waiting, len(read.messages)) == (1, 2)
    read.take(head.replace(b"1.1", b"1.0") % 2 + b"{}")  # RFC 9110, 10.1.1
    assert (read.waiting, len(read.messages)) == (1, 3)
    read = Read()
    with pytest.raises(Refusal, match="too much"):
        read.take(head % 101)
    assert read.waiting == 0


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (b"REPLICATE\r\n", "this is not an HTTP request"),
        (b"FETCH / HTTP/1.1\r\n", "this is not an HTTP request"),
        (b"GET / HTTP/1.1\n\n", "this is not an HTTP request: Expected CRLF after version"),
        (b"GET / HTTP/2.0\r\n\r\n", "this is not an HTTP request: expected HTTP/1.1"),
        (b"GET /\r\n\r\n", "this is not an HTTP request: expected HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nX : a\r\n\r\n", "not an HTTP request: Invalid header token"),
        (b"GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n", "not an HTTP request: Unexpected whitespace"),
        (b"GET ftp://x/ HTTP/1.1\r\n\r\n", "the request asks for no path of this server"),
        (b"CONNECT x:80 HTTP/1.1\r\n\r\n", "the request asks for no path of this server"),
        (
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "Transfer-Encoding can't be present with Content-Length",
        ),
        (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "Transfer-Encoding is not known: expected chunked",
        ),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "header Host is given twice"),
        (
            b"POST / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n",
            "a body in chunks cannot come with an upgrade",
        ),
    ],
)
def test_what_is_no_request_is_refused_with_the_reason(request_: bytes, reason: str) -> None:
    """Whole, or byte by byte."""
    with pytest.raises(Refusal, match=reason) as whole:
        Read().take(request_)
    with pytest.raises(Refusal, match=reason):
        Read().dribble(request_)
    assert (whole.value.status, whole.value.errcode) == (400, "M_UNRECOGNIZED")


def test_the_absolute_form_names_the_host() -> None:
    """The header of that name does not count (RFC 9112, 3.2.2)."""
    (message,) = Read().take(b"GET HTTP://a.example?b HTTP/1.1\r\nHost: c\r\n\r\n").messages
    assert (message.uri, message.headers[b"host"]) == (b"/?b", [b"a.example"])


def test_the_first_reason_counts() -> None:
    """Not what goes wrong behind it."""
    lines = b"X: y\r\n" * (limits.MAX_HTTP_HEADERS + 1)
    with pytest.raises(Refusal, match=f"more than {limits.MAX_HTTP_HEADERS} headers") as refused:
        Read().take(b"POST / HTTP/1.1\r\n" + lines + b"Content-Length: 101\r\n\r\n")
    assert refused.value.status == 431


def test_a_body_of_many_pieces_is_one() -> None:
    """Each byte in a chunk of its own."""
    body = bytes(range(50)) + b"\r\n\r\n"
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    read = Read().take(
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n" + GET
    )
    assert [message.body for message in read.messages] == [body, b""]
    assert read.asked[-1] == (len(body), 1)


def test_a_piece_is_small_however_much_has_come() -> None:
    """Whoever reads may look at the clock between two of them."""
    reader = Read(10**6).reader
    at = reader.read(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 0)
    chunks = b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n"
    at = pieces = 0
    while not reader.complete:
        before, at = at, reader.read(chunks, at)
        assert 0 < at - before <= 16_384
        pieces += 1
    assert (at, pieces) == (len(chunks), -(-len(chunks) // 16_384))
    assert reader.message().body == b"x" * 20_000
