"""Reading requests: bytes in, messages out; no socket, no clock.

The grammar is httptools', which is Node's parser and as strict: what two programs could read in two
ways is refused (RFC 9112). It is given no more than one message at a time, so that what follows a
request stays unread until that is answered.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from tcprepl import limits

_ABSOLUTE = re.compile(rb"https?://([^/?#]+)", re.IGNORECASE)
#: What ends a head, and a body in chunks.
_BLANK_LINE: Final = b"\r\n\r\n"
#: What is read at once of a head or a body in chunks, each of which may be small.
_PIECE_BYTES: Final = 16_384


class Refusal(Exception):
    """A request that is not read to its end, and what it is answered; the connection ends.

    Attributes:
        status: The HTTP status.
        errcode: Which kind of refusal, as for `tcprepl.http.calls.ApiError`.
        message: What is wrong, and what was expected.
    """

    def __init__(self, status: int, errcode: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.errcode = errcode
        self.message = message


@dataclass(frozen=True, slots=True)
class Message:
    """A request that has come whole.

    Attributes:
        method: The method.
        uri: Path and query, as they came; ``*`` asks whether anybody is there.
        version: ``1.1`` or ``1.0``.
        headers: The values of each header, by its name in lower case, without blanks around them.
        body: The whole body.
        last: Whether the client asks for the end of the connection.
    """

    method: bytes
    uri: bytes
    version: str
    headers: dict[bytes, list[bytes]]
    body: bytes
    last: bool


class RequestReader:
    """Reads one request after the other.

    Args:
        admit: Called with the bytes of a body that have come, or are to come, and how many of
            these are new; raises `Refusal` where that is too much.
        go_on: Called when the client waits to be told that its body is welcome.

    Attributes:
        complete: Whether a message is there for `message` to take.
    """

    def __init__(self, admit: Callable[[int, int], None], go_on: Callable[[], None]) -> None:
        self._admit = admit
        self._go_on = go_on
        self._parser: Any = HttpRequestParser(self)
        self._prepare()

    def _prepare(self) -> None:
        self.complete = False
        #: What `Refusal` is made of: one that is kept keeps the frames that it went through.
        self._refusal: tuple[int, str, str] | None = None
        self._uri = b""
        self._headers: dict[bytes, list[bytes]] = {}
        self._header_lines = 0
        #: The last bytes, which may be the first of a blank line.
        self._tail = b""
        #: Bytes of the head, or since the last byte of a body that comes in chunks.
        self._framing_bytes = 0
        self._in_body = False
        #: Bytes of the body to come; None if each chunk says its own.
        self._body_left: int | None = None
        self._body: bytes | bytearray = b""
        self._upgrade = False
        self._last = False

    @property
    def begun(self) -> bool:
        """Whether a part of a message has come."""
        return self._framing_bytes > 0 or self._in_body

    def close(self) -> None:
        """Let go of everything, at once: parser and owner refer to this object."""
        self._prepare()
        self._parser = None
        self._admit = self._go_on = _ask_nobody

    def read(self, data: bytes, at: int) -> int:
        """Take *data* from *at* on, up to the end of one message at the most; return how far.

        Raises:
            Refusal: What came is no request, or too much; nothing may be read any more.
        """
        end = self._end_of_piece(data, at)
        piece = data[at:end]
        if self._in_body and self._body_left is not None:
            if self._upgrade:
                self.on_body(piece)
            else:
                self._feed(piece)
            self._body_left -= len(piece)
            self.complete = not self._body_left
        else:
            self._take_framed(piece)
        if self._refusal is not None:
            raise Refusal(*self._refusal)
        return end

    def message(self) -> Message:
        """Return the message that has come, and be ready for the next.

        Raises:
            Refusal: It asks for what is not here.
        """
        method, version = self._parser.get_method(), self._parser.get_http_version()
        headers, uri, body, last = self._headers, self._uri, bytes(self._body), self._last
        self._prepare()
        absolute = None if uri.startswith(b"/") else _ABSOLUTE.match(uri)
        if absolute is not None:
            # The host of the target counts, whatever the header says (RFC 9112, 3.2.2).
            headers[b"host"] = [absolute[1]]
            uri = uri[absolute.end() :]
            uri = uri if uri.startswith(b"/") else b"/" + uri
        if not uri.startswith(b"/") and (method, uri) != (b"OPTIONS", b"*"):
            raise Refusal(
                400,
                "M_UNRECOGNIZED",
                "the request asks for no path of this server, which is no proxy",
            )
        return Message(method, uri, version, headers, body, last)

    def _end_of_piece(self, data: bytes, at: int) -> int:
        """Return up to where *data* from *at* on holds the end of one message at the most."""
        if self._in_body and self._body_left is not None:
            return min(len(data), at + self._body_left)
        if self._tail:
            begun = self._tail + data[at : at + len(_BLANK_LINE) - 1]
            found = begun.find(_BLANK_LINE)
            if found >= 0:
                return at + found + len(_BLANK_LINE) - len(self._tail)
        found = data.find(_BLANK_LINE, at, at + _PIECE_BYTES)
        return min(len(data), at + _PIECE_BYTES) if found < 0 else found + len(_BLANK_LINE)

    def _take_framed(self, piece: bytes) -> None:
        """Take a piece of a head, or of a body in chunks."""
        self._tail = b"" if piece.endswith(_BLANK_LINE) else (self._tail + piece)[-3:]
        in_body, had = self._in_body, len(self._body)
        self._framing_bytes += len(piece)
        if in_body or self._framing_bytes <= limits.MAX_HTTP_HEADER_BYTES:
            self._feed(piece)
            if self._in_body and (not in_body or len(self._body) > had):
                self._framing_bytes = 0
        if self._framing_bytes > limits.MAX_HTTP_HEADER_BYTES:
            self._refuse(
                431,
                "M_TOO_LARGE",
                f"the request line and headers have more than {limits.MAX_HTTP_HEADER_BYTES} bytes",
            )

    def _feed(self, piece: bytes) -> None:
        try:
            self._parser.feed_data(piece)
        except HttpParserUpgrade:
            return  # nothing else is spoken here; it goes on as it is (RFC 9110, 7.8)
        except HttpParserCallbackError:
            raise
        except HttpParserInvalidMethodError:
            self._refuse(400, "M_UNRECOGNIZED", "this is not an HTTP request")
        except HttpParserError as error:
            self._refuse(400, "M_UNRECOGNIZED", f"this is not an HTTP request: {error}")

    def _refuse(self, status: int, errcode: str, message: str) -> None:
        """Refuse once httptools has returned; the first reason counts."""
        if self._refusal is None:
            self._refusal = status, errcode, message

    # --- what httptools calls ---------------------------------------------------------------------

    def on_url(self, piece: bytes) -> None:
        """Take a piece of the target."""
        self._uri += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; one behind the body says nothing."""
        if self._in_body:
            return
        self._header_lines += 1
        if self._header_lines > limits.MAX_HTTP_HEADERS:
            self._refuse(
                431, "M_TOO_LARGE", f"the request has more than {limits.MAX_HTTP_HEADERS} headers"
            )
        self._headers.setdefault(name.lower(), []).append(value.strip(b" \t"))

    def on_headers_complete(self) -> None:
        """Refuse a declared body that is too large before its first byte."""
        headers, version = self._headers, self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._refuse(400, "M_UNRECOGNIZED", "this is not an HTTP request: expected HTTP/1.1")
            return
        asked = b",".join(headers.get(b"connection", ())).lower().split(b",")
        self._last = (
            version == "1.0"
            or b"close" in (word.strip() for word in asked)
            or not self._parser.should_keep_alive()  # it would read nothing more
        )
        coding = b",".join(headers.get(b"transfer-encoding", ()))
        if coding and coding.lower() != b"chunked":
            self._refuse(400, "M_UNRECOGNIZED", "Transfer-Encoding is not known: expected chunked")
            return
        if len(headers.get(b"host", ())) > 1:
            self._refuse(400, "M_UNRECOGNIZED", "header Host is given twice: expected once")
            return
        chunked = bool(coding)
        length = int(headers[b"content-length"][0]) if b"content-length" in headers else 0
        if not chunked and not length:
            return
        self._in_body = True
        self._body_left = None if chunked else length
        self._upgrade = bool(self._parser.should_upgrade())  # the parser reads no body then
        if self._upgrade and chunked:
            self._refuse(400, "M_UNRECOGNIZED", "a body in chunks cannot come with an upgrade")
            return
        self._ask(length, 0)
        expected = headers.get(b"expect", [b""])[0].lower()
        if self._refusal is None and version == "1.1" and expected == b"100-continue":
            self._go_on()

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        self._ask(len(self._body) + len(data), len(data))
        if self._refusal is not None:
            return
        if not self._body:
            self._body = data
            return
        if isinstance(self._body, bytes):
            self._body = bytearray(self._body)
        self._body += data

    def on_message_complete(self) -> None:
        """Note that the message has come whole."""
        self.complete = not (self._upgrade and self._in_body)

    def _ask(self, body_bytes: int, new_bytes: int) -> None:
        if self._refusal is None:
            try:
                self._admit(body_bytes, new_bytes)
            except Refusal as refusal:
                self._refuse(refusal.status, refusal.errcode, refusal.message)


def _ask_nobody(*_: object) -> None:
    """Stand for the owner of a reader that is closed."""
