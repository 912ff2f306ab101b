"""Callers that meant another port."""

from __future__ import annotations

import pytest

from tcprepl.protocol.foreign import recognise_line, recognise_start
from tcprepl.protocol.state import Role


@pytest.mark.parametrize(
    ("role", "line", "word"),
    [
        (Role.SERVER, b"GET / HTTP/1.1", "HTTP"),
        (Role.SERVER, b"PRI * HTTP/2.0", "HTTP"),
        (Role.SERVER, b"OPTIONS /x HTTP/1.0", "HTTP"),
        (Role.SERVER, b"*3", "RESP"),
        (Role.CLIENT, b"HTTP/1.1 400 Bad Request", "HTTP"),
        (Role.CLIENT, b"-ERR unknown command", "RESP"),
        (Role.CLIENT, b"-NOAUTH Authentication required.", "RESP"),
        (Role.CLIENT, b"+PONG", "RESP"),
    ],
)
def test_known_protocols_are_named(role: Role, line: bytes, word: str) -> None:
    foreign = recognise_line(line, role)
    assert foreign is not None
    assert word in foreign.text


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize(
    "line", [b"GET", b"get / http/1.1", b"* 3", b"*x", b"+OKAY", b"-ERROR", b"hello"]
)
def test_other_lines_are_not(role: Role, line: bytes) -> None:
    assert recognise_line(line, role) is None


def test_http_is_answered_in_http_and_resp_in_resp() -> None:
    http = recognise_line(b"GET / HTTP/1.1", Role.SERVER)
    assert http is not None
    assert http.answer is not None
    head, _, body = http.answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"Connection: close" in head
    resp = recognise_line(b"*1", Role.SERVER)
    assert resp is not None
    assert resp.answer == b"-ERR " + resp.text.encode() + b"\r\n"


@pytest.mark.parametrize("first", [0x15, 0x16])
def test_tls_is_known_by_its_first_byte(first: int) -> None:
    to_server = recognise_start(first, Role.SERVER)
    to_client = recognise_start(first, Role.CLIENT)
    assert to_server is not None
    assert "TLS" in to_server.text
    assert to_server.answer is None
    assert to_client is not None
    assert to_client.answer == b""
    assert recognise_start(ord("R"), Role.SERVER) is None
