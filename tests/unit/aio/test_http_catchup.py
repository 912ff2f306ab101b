"""Fetching over HTTP under asyncio, from a small server on a Unix socket."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tcprepl.aio import http_catchup
from tcprepl.aio.http_catchup import HttpCatchUp
from tcprepl.errors import ConnectionFailed
from tcprepl.replication.following import catchup
from tcprepl.replication.following.catchup import CatchUpPage
from tests.asyncio_servers import serving

PAGE = b'{"updates": [[2, ["!r:x", []]], [3, [1]]], "upto_token": 3, "limited": true}'


def fetch(
    directory: Path, answer: bytes, *, secret: str | None = None, asked: list[bytes] | None = None
) -> Any:
    """Return what comes of *answer*, which is all that the server says."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if asked is not None:
            asked.append(request)
        writer.write(answer)
        writer.close()

    async def main() -> CatchUpPage:
        path = str(directory / "s")
        async with serving(path, serve):
            catch_up = HttpCatchUp({"*": f"http://unix:{path}"}, secret)
            return await catch_up.fetch("typing", "master", 1, 9)

    return asyncio.run(main())


def http(body: bytes, status: str = "200 OK") -> bytes:
    """Return an answer."""
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(body), body)


def test_a_page_and_what_was_asked(socket_directory: Path) -> None:
    asked: list[bytes] = []
    page = fetch(socket_directory, http(PAGE), secret="s3cret", asked=asked)
    assert page == CatchUpPage([(2, b'["!r:x", []]'), (3, b"[1]")], 3, limited=True)
    (request,) = asked
    assert request.startswith(b"GET /_synapse/replication/get_repl_stream_updates/typing/")
    assert b"?from_token=1&upto_token=9&instance=master HTTP/1.1\r\n" in request
    assert b"\r\nHost: localhost\r\n" in request
    assert b"\r\nAuthorization: Bearer s3cret\r\n" in request


def test_an_answer_without_end_is_not_taken(
    socket_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catchup, "MAX_ANSWER_BYTES", 10)
    with pytest.raises(ConnectionFailed, match="more than 10 bytes"):
        fetch(socket_directory, http(bytes(100)))


@pytest.mark.parametrize(
    ("answer", "words", "transient"),
    [
        (http(b"no", "401 Unauthorized"), "answered 401", False),
        (http(b"", "502 Bad Gateway"), "answered 502", True),
        (b"SERVER example.com\n", "does not answer when asked for typing", True),
        (b"", "does not answer when asked for typing", True),
        (http(PAGE)[:-1], "does not answer when asked for typing", True),
    ],
)
def test_an_answer_that_will_not_do(
    socket_directory: Path, answer: bytes, words: str, transient: bool
) -> None:
    with pytest.raises(ConnectionFailed, match=words) as raised:
        fetch(socket_directory, answer)
    assert raised.value.transient is transient


def test_an_answer_that_takes_too_long(
    socket_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However steadily it comes."""
    times = iter([0.0, 31.0])
    monkeypatch.setattr(http_catchup, "time", SimpleNamespace(monotonic=lambda: next(times)))
    with pytest.raises(ConnectionFailed, match="no connection in time"):
        fetch(socket_directory, http(PAGE))


def test_an_answer_that_is_given_up_leaves_no_connection(
    socket_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor of a server that closes behind it, though who keeps the error keeps all it came by."""
    times = iter([0.0, 31.0])
    monkeypatch.setattr(http_catchup, "time", SimpleNamespace(monotonic=lambda: next(times)))
    answer = http(bytes(100_000)).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConnectionFailed) as raised:
        fetch(socket_directory, answer)
    assert len(os.listdir("/proc/self/fd")) == before
    assert raised.value.__traceback__ is not None


@pytest.mark.parametrize("own", [False, True])
def test_tls(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the certificates of the system, or as told."""
    used: list[Any] = []

    class Connection:
        def __init__(self, host: str, **options: Any) -> None:
            used.append((host, options["context"]))

        def request(self, *_: Any, **__: Any) -> None:
            raise OSError("enough")

        def close(self) -> None:
            used.append("closed")

    monkeypatch.setattr(http_catchup.http.client, "HTTPSConnection", Connection)
    context = ssl.create_default_context()
    catch_up = HttpCatchUp({"*": "https://main:9093"}, tls=context if own else None)
    with pytest.raises(ConnectionFailed, match=r"master at main:9093 does not answer .*: enough"):
        asyncio.run(catch_up.fetch("typing", "master", 1, 9))
    ((host, took), closed) = used
    assert (host, closed) == ("main:9093", "closed")
    assert (took is context) is own
