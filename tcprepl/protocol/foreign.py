"""Recognises those who meant another port: HTTP, TLS and RESP (protocol.md section 12).

The caller is told what this port is in a form that its own tools show.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from tcprepl.protocol.state import Role

_PURPOSE: Final = "this port speaks the replication line protocol"
_HTTP_REQUEST = re.compile(rb"[A-Z]{3,7} \S+ HTTP/[0-9.]+")
_RESP_REQUEST = re.compile(rb"\*[0-9]+")
_RESP_ANSWER = re.compile(rb"[-+](?:ERR|NOAUTH|DENIED|WRONGPASS|OK|PONG)\b")
#: Types of the TLS records that either side begins with: alert, handshake.
_TLS_RECORDS: Final = (0x15, 0x16)


class Foreign(NamedTuple):
    """Somebody else's protocol.

    Attributes:
        text: What to say about it.
        answer: What to send instead of an ERROR line; None for an ERROR line.
    """

    text: str
    answer: bytes | None


def _http_answer() -> bytes:
    body = f"This is not HTTP: {_PURPOSE}. HTTP has a port of its own.\n".encode()
    head = (
        "HTTP/1.1 400 Bad Request\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


def recognise_start(first_byte: int, role: Role) -> Foreign | None:
    """Return whose protocol a connection speaks that starts with *first_byte*, if not ours."""
    if first_byte not in _TLS_RECORDS:
        return None
    if role is Role.SERVER:
        return Foreign(f"this looks like TLS: {_PURPOSE} without TLS", None)
    return Foreign("the server speaks TLS, and this connection does not", b"")


def recognise_line(line: bytes, role: Role) -> Foreign | None:
    """Return whose protocol an unknown *line* is, as far as it can be told."""
    if role is Role.SERVER:
        if _HTTP_REQUEST.fullmatch(line):
            return Foreign(f"this looks like HTTP: {_PURPOSE}", _http_answer())
        if _RESP_REQUEST.fullmatch(line):
            text = f"this looks like RESP: {_PURPOSE}, it is not a Redis server"
            return Foreign(text, f"-ERR {text}\r\n".encode())
        return None
    if line.startswith(b"HTTP/"):
        return Foreign("the server speaks HTTP, not replication", b"")
    if _RESP_ANSWER.match(line):
        return Foreign("the server speaks RESP (Redis), not replication", b"")
    return None
