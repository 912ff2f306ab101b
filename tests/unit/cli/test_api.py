"""The commands' HTTP client: retries, refusals in words, tokens of rows."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
import trustme

from tcprepl.cli import api as api_module
from tcprepl.cli import run
from tcprepl.cli.api import Api, ApiFailed
from tcprepl.errors import ConfigError
from tcprepl.web.incarnations import INCARNATION_HEADER
from tests.ports import free_port


class Script(HTTPServer):
    """An HTTP server that answers what it is told to, and keeps what it was asked."""

    def __init__(self, answers: list[tuple[int, dict[str, str], bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One connection to a script."""

    protocol_version = "HTTP/1.1"
    server: Script

    def answer(self) -> None:
        """Answer with the next of the script."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.command, self.path, dict(self.headers), body))
        status, headers, text = self.server.answers.pop(0)
        if not status:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def __getattr__(self, name: str) -> Any:
        """Answer every method alike."""
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def scripted(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[Script]:
    """Run a server in a thread."""
    server = Script(list(answers))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def published(first: int, last: int) -> tuple[int, dict[str, str], bytes]:
    """Return the answer to rows."""
    answer = {"stream": "typing", "instance": "master", "first": first, "last": last}
    return 200, {}, json.dumps(answer).encode()


def post(api: Api, *, batch: bool = False, instance: str | None = None) -> tuple[str, list[int]]:
    """Publish two rows."""
    return api.post_rows(
        "a/b", [b"[1]", b"[2]"], batch=batch, instance=instance, transaction_id="t 1"
    )


def test_the_file_with_the_authorities_of_a_context_has_to_be_good(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(ca)
    with click.Context(click.Command("x")) as ctx:
        ctx.meta["tcprepl.ca"] = str(ca)
        Api("https://h").close()
        ca.write_text("nothing")
        with pytest.raises(ConfigError, match=r"ca\.pem: expected PEM with certificates"):
            Api("https://h")
        ca.unlink()
        with pytest.raises(ConfigError, match=r"ca\.pem: cannot be read: No such file"):
            Api("https://h")
        Api("http://h").close()


def test_rows_are_posted_and_get_their_tokens() -> None:
    """The path, the query, the token of each row; a batch shares one."""
    with scripted(published(5, 6), published(7, 7)) as server:
        with contextlib.closing(Api(server.url, "s3cret")) as api:
            assert post(api) == ("master", [5, 6])
            assert post(api, batch=True, instance="w1") == ("master", [7, 7])
        method, path, headers, body = server.asked[0]
        assert (method, path, body) == (
            "POST",
            "/_tcprepl/v1/streams/a%2Fb/rows?txn_id=t+1",
            b"[[1],[2]]",
        )
        assert headers["Authorization"] == "Bearer s3cret"
        assert server.asked[1][1].endswith("?txn_id=t+1&batch=1&instance=w1")


def test_the_incarnation_is_heard_and_said() -> None:
    """Under the name that the server's own module gives the header; said only when it is known."""
    assert api_module.INCARNATION_HEADER == INCARNATION_HEADER
    answers = [(status, {INCARNATION_HEADER: "abc"}, b"{}") for status in (200, 410)]
    with scripted(*answers) as server, contextlib.closing(Api(server.url)) as api:
        api.get("/x")
        assert (api.incarnation, api.heard) == (None, "abc")
        api.incarnation, api.heard = "def", None
        with pytest.raises(ApiFailed):
            api.get("/x")
        assert (api.incarnation, api.heard) == ("def", "abc")
        assert [headers.get(INCARNATION_HEADER) for _, _, headers, _ in server.asked] == [
            None,
            "def",
        ]


def test_who_will_not_hear_of_rows_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, however many requests are answered so."""
    answer = {"stream": "a", "instance": "w1", "first": 1, "last": 2, "warning": "not there"}
    told = (200, {}, json.dumps(answer).encode())
    with scripted(told, told) as server, contextlib.closing(Api(server.url)) as api:
        post(api)
        post(api)
    assert capsys.readouterr().err == "warning: not there\n"


def test_busy_and_broken_servers_are_asked_again() -> None:
    """429, 503 and a cut connection are repeated until the time is up."""
    busy = (503, {"Retry-After": "0.01"}, b"{}")
    with (
        scripted(
            (429, {"Retry-After": "soon"}, b"{}"), busy, (0, {}, b""), published(1, 2)
        ) as server,
        contextlib.closing(Api(server.url, retry_s=30.0)) as api,
    ):
        assert post(api) == ("master", [1, 2])
        assert len(server.asked) == 4
    with (
        scripted((503, {"Retry-After": "3600"}, b"{}")) as server,
        contextlib.closing(Api(server.url, retry_s=1.0)) as api,
        pytest.raises(ApiFailed, match="answered 503"),
    ):
        api.get("/health")


def test_who_waits_for_long_is_told_once_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A restart is not worth a word; a wrong port looks like one at first."""
    busy = [(503, {}, b'{"error": "full"}')] * 3
    with scripted(*busy, published(1, 2)) as server:
        with contextlib.closing(Api(server.url, retry_s=30.0)) as api:
            post(api)
        assert capsys.readouterr().err == ""
    monkeypatch.setattr(api_module, "SILENT_S", 0.0)
    with (
        scripted(*busy, published(1, 2)) as server,
        contextlib.closing(Api(server.url, retry_s=30.0)) as api,
    ):
        post(api)
        said = f"{server.url} answered 503: full; trying again for "
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"errcode": "X", "error": "row 1: no"}', "answered 400: row 1: no"),
        (b"plain words", "answered 400: plain words"),
        (b'["listed"]', 'answered 400: ["listed"]'),
        (b"", "answered 400: nothing more"),
    ],
)
def test_refusals_are_told_and_not_repeated(body: bytes, text: str) -> None:
    """What the server said is what the person reads."""
    with (
        scripted((400, {}, body)) as server,
        contextlib.closing(Api(server.url, retry_s=60.0)) as api,
        pytest.raises(ApiFailed) as caught,
    ):
        api.get("/x", {"a": "b"})
    assert str(caught.value) == f"{server.url} {text}"
    assert caught.value.status == 400
    assert caught.value.refusal == (json.loads(body) if body.startswith(b"{") else {})
    assert server.asked[0][1] == "/x?a=b"


def test_nobody_there() -> None:
    """A closed port is said to be one; https is understood."""
    for scheme in ("http", "https"):
        url = f"{scheme}://127.0.0.1:{free_port()}"
        with (
            contextlib.closing(Api(url)) as api,
            pytest.raises(ApiFailed, match="connection refused; is `tcprepl serve` running"),
        ):
            api.get("/health")


def test_a_server_that_hangs() -> None:
    """It takes the connection and says nothing: that is no firewall, and not waited for long."""
    with (
        socket.create_server(("127.0.0.1", 0)) as hanging,
        contextlib.closing(
            Api(f"http://127.0.0.1:{hanging.getsockname()[1]}", timeout_s=0.05)
        ) as api,
        pytest.raises(ApiFailed, match=r"within 0\.05 s; it hangs, or has too much to do$"),
    ):
        api.get("/health")


def test_a_server_that_hangs_on_a_unix_socket(tmp_path: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX) as hanging,
        contextlib.closing(Api(f"http://unix:{tmp_path}/s", timeout_s=0.05)) as api,
    ):
        hanging.bind(f"{tmp_path}/s")
        hanging.listen()
        with pytest.raises(ApiFailed, match="it hangs, or has too much to do"):
            api.get("/health")


def test_the_line_protocol_is_recognised() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(b"SERVER example.com\n")

        thread = threading.Thread(target=greet)
        thread.start()
        where = f"127.0.0.1:{listener.getsockname()[1]}"
        said = pytest.raises(ApiFailed, match="that is the line protocol, no HTTP")
        with contextlib.closing(Api(f"http://{where}")) as api, said as caught:
            api.get("/health")
        thread.join()
    assert caught.value.lines_at == where


REFUSED: tuple[int, dict[str, str], bytes] = (401, {}, b'{"error": "the token is not known here"}')


def said(server: Script) -> list[str | None]:
    """Return what each request showed."""
    return [headers.get("Authorization") for _, _, headers, _ in server.asked]


def test_a_token_that_was_taken_is_read_anew_when_it_is_refused() -> None:
    """So that it can be exchanged while a command runs; the request is made again."""
    tokens = iter(["old", "new"])
    with (
        scripted((200, {}, b"{}"), REFUSED, (200, {}, b'{"a": 1}')) as server,
        contextlib.closing(Api(server.url, lambda: next(tokens))) as api,
    ):
        api.get("/x")
        assert api.get("/x") == {"a": 1}
        assert said(server) == ["Bearer old", "Bearer old", "Bearer new"]


def test_a_token_that_is_refused_at_the_beginning_is_refused() -> None:
    """Also the one that is read anew: it is asked once with each."""
    tokens = iter(["old", "newer", "newest"])
    with (
        scripted(REFUSED, (200, {}, b"{}"), REFUSED, REFUSED) as server,
        contextlib.closing(Api(server.url, lambda: next(tokens))) as api,
    ):
        with pytest.raises(ApiFailed, match="answered 401: the token is not known here"):
            api.get("/x")
        api.get("/x")
        with pytest.raises(ApiFailed, match="answered 401"):
            api.get("/x")
        assert said(server) == ["Bearer old", "Bearer old", "Bearer old", "Bearer newer"]


def test_who_shows_no_token_has_none_to_read_anew() -> None:
    with (
        scripted((200, {}, b"{}"), REFUSED) as server,
        contextlib.closing(Api(server.url)) as api,
    ):
        api.get("/x")
        with pytest.raises(ApiFailed, match="answered 401"):
            api.get("/x")


def test_poll_outlives_a_change_of_tokens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """What it reads is the file, and not what was in it when it began."""
    file = tmp_path / "token"
    file.write_text("old")
    answer = Handler.answer

    def exchanging(handler: Handler) -> None:
        if handler.server.answers[0] is REFUSED:
            file.write_text("new")
        answer(handler)

    monkeypatch.setattr(Handler, "answer", exchanging)
    present = {"streams": {"rows": [["typing", 1]], "position": "1"}}
    names = ["position", "room_id", "user_ids"]
    rows = {"typing": {"rows": [[2, "!r:x", []]], "field_names": names, "position": "2"}}
    first, last = ((200, {}, json.dumps(found).encode()) for found in (present, rows))
    with scripted(first, REFUSED, last) as server:
        asked = ["poll", "typing", "--count", "1", "--url", server.url, "--token-file", str(file)]
        assert run(asked) == 0
        assert said(server) == ["Bearer old", "Bearer old", "Bearer new"]
    assert capsysbinary.readouterr().out == b'typing 2 ["!r:x",[]]\n'
