"""What strangers and proxies send to a real port is answered, and tells them nothing."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Server

HOST = b"Host: localhost\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server, which has no failure in its log afterwards."""
    where: Path = tmp_path_factory.mktemp("strangers")
    with Server(where) as running:
        yield running
        log = running.process.stdout + running.process.stderr
        assert "Traceback" not in log
        assert "http.request.failed" not in log


def ask(server: Server, request: bytes, *, until: bytes | None = None) -> tuple[int, bytes, bytes]:
    """Send bytes; return the status, the head and the body of what is answered."""
    with socket.create_connection(("127.0.0.1", server.http_port), 20) as connection:
        connection.sendall(request)
        answer = b""
        while until is None or until not in answer:
            piece = connection.recv(65_536)
            if not piece:
                break
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), head, body


def get(target: bytes, *headers: bytes, method: bytes = b"GET", body: bytes = b"") -> bytes:
    """Return a request on a connection of its own."""
    lines = b"".join(header + b"\r\n" for header in headers)
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    head = b"%b %b HTTP/1.1\r\n%bConnection: close\r\n%b%b\r\n"
    return head % (method, target, HOST, length, lines) + body


@pytest.mark.parametrize(
    ("method", "target"),
    [
        (b"PUT", b"/_matrix/federation/v1/send/1"),
        (b"GET", b"/_synapse/replication?streams=-1&timeout=0"),
        (b"GET", b"/_tcprepl/v1/status"),
        (b"GET", b"/"),
        (b"POST", b"/_tcprepl/v1/streams/typing/rows"),
        (b"POST", b"/_tcprepl/v1/edus"),
        (b"PUT", b"/_tcprepl/v1/rooms/!r:x/hosts"),
        (b"GET", b"/_matrix/client/v3/account/whoami"),
        (b"POST", b"/_matrix/client/v3/login"),
    ],
)
@pytest.mark.parametrize(
    "header",
    [
        b'Authorization: X-Matrix origin="b\xe9.example",key="ed25519:a",sig="x"',
        b"Authorization: Bearer \xff\xfe",
        b"Authorization: Basic \xff",
        b"Authorization: Basic =\xc3\xa9=",
        b"Idempotency-Key: \xe9",
        b"Origin: http://[",
        b"Origin: \xe9",
        b"Accept: \xe9",
        b"X-Forwarded-For: \xe9",
    ],
)
def test_bytes_that_are_no_text_are_never_a_failure(
    server: Server, method: bytes, target: bytes, header: bytes
) -> None:
    """Of any header, at any face: refused or ignored, and not logged as a bug."""
    status, _, body = ask(server, get(target, header, method=method, body=b"[]"))
    assert status < 500, body


def test_an_origin_that_is_no_text_is_not_believed(server: Server) -> None:
    """401, as for any other that is not."""
    header = b'Authorization: X-Matrix origin="b\xe9.example",key="ed25519:a",sig="x"'
    target = b"/_matrix/federation/v1/send/1"
    assert ask(server, get(target, header, method=b"PUT", body=b"{}"))[0] == 401


def test_the_absolute_form_is_the_path(server: Server) -> None:
    """As a client says it to a proxy, and some say it to anybody."""
    for target, status in (
        (b"http://localhost/health", 200),
        (b"HTTP://localhost:80/_tcprepl/v1/status?x=1", 200),
        (b"http://localhost", 200),
        (b"http://localhost?x=/health", 200),
        (b"https://evil.example/_tcprepl/v1/status", 403),
        # a URI without a host is to be refused (RFC 9110, 4.2.1), and this server is no proxy
        (b"http:///health", 400),
        (b"ftp://localhost/health", 400),
    ):
        assert ask(server, get(target))[0] == status, target


def test_a_stranger_is_not_told_what_we_asked_and_heard(server: Server) -> None:
    """Which names resolve for us, and which ports answer, is nobody's business."""
    target = b"/_matrix/federation/v1/send/1"
    said = set()
    for origin in (b"127.0.0.1:1", b"no-such-name.invalid", b"169.254.169.254"):
        header = b'Authorization: X-Matrix origin="%b",,key="ed25519:a",sig="eA"' % origin
        status, _, body = ask(server, get(target, header, method=b"PUT", body=b"{}"))
        answer = json.loads(body)
        assert (status, answer["errcode"]) == (401, "M_UNAUTHORIZED")
        said.add(answer["error"].replace(origin.decode(), "ORIGIN"))
    assert said == {"no valid signature of ORIGIN"}


def test_events_are_not_gathered_by_a_proxy(server: Server) -> None:
    """The header that says so to nginx is there."""
    target = b"/_tcprepl/v1/events"
    _, head, _ = ask(server, get(target), until=b"data:")
    assert b"x-accel-buffering: no" in head.lower()


@pytest.mark.parametrize("name", [b"batch", b"42", b"*", b"a%1bb", b"a%c2%9bb"])
def test_an_instance_that_no_line_can_name_is_refused(server: Server, name: bytes) -> None:
    """Or its rows could not be told from a token."""
    target = b"/_tcprepl/v1/streams/typing/rows?instance=" + name
    status, _, body = ask(server, get(target, method=b"POST", body=b'[["!r:x",[]]]'))
    assert (status, json.loads(body)["errcode"]) == (400, "M_INVALID_PARAM")


def test_one_bad_recipient_is_named(server: Server) -> None:
    """And the message of the others is not sent either, so that all of it can be sent again."""
    target = b"/_matrix/client/v3/sendToDevice/m.x/1?user_id=@a:example.com"
    messages = {"@y:b.example.": {"D": {}}, "@k:b.example": {"D": {}}}
    body = json.dumps({"messages": messages}).encode()
    header = b"Authorization: Bearer x"
    status, _, answer = ask(server, get(target, header, method=b"PUT", body=body))
    assert (status, json.loads(answer)["errcode"]) == (400, "M_INVALID_PARAM")
    assert "@y:b.example." in json.loads(answer)["error"]
