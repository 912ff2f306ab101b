"""A remote homeserver that a test programs: real HTTPS, in threads of the test's own process."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import trustme

#: Status, body, headers; None cuts the wire.
Reply: TypeAlias = tuple[int, bytes, dict[str, str]] | None

OK: Reply = (200, b'{"pdus":{}}', {"Content-Type": "application/json"})


def matrix_error(status: int, errcode: str = "M_UNKNOWN") -> Reply:
    """Return the answer of a Matrix server that refuses."""
    body = json.dumps({"errcode": errcode, "error": "no"}).encode()
    return status, body, {"Content-Type": "application/json"}


def page(status: int) -> Reply:
    """Return a page, as a proxy or a lapsed domain gives it."""
    return status, b"<html><body>hello</body></html>", {"Content-Type": "text/html"}


class HttpsRemote:
    """Takes transactions, and answers as *reply* says; a context manager.

    Attributes:
        reply: Called with transaction id and EDUs; what it answers is sent.
        seen: Transaction id and EDUs of each request, in order.
        taken: EDUs of the transactions that were accepted, each transaction once.
    """

    def __init__(self, directory: Path, name: str, authority: trustme.CA, port: int) -> None:
        self.name = name
        self.port = port
        self.reply: Callable[[str, list[Any]], Reply] = lambda transaction_id, edus: OK
        self.seen: list[tuple[str, list[Any]]] = []
        self.taken: list[Any] = []
        self._ids: set[str] = set()
        remote = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                length = int(self.headers["Content-Length"])
                edus = json.loads(self.rfile.read(length)).get("edus", [])
                remote.answer(self, self.path.rpartition("/")[2], edus)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        issued = authority.issue_cert(name, "127.0.0.1")
        pem = directory / f"{name}.pem"
        pem.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def answer(self, handler: BaseHTTPRequestHandler, transaction_id: str, edus: list[Any]) -> None:
        """Answer one transaction."""
        self.seen.append((transaction_id, edus))
        reply = self.reply(transaction_id, edus)
        if reply is not None and reply == OK:
            self.take(transaction_id, edus)
        if reply is None:
            handler.close_connection = True
            return
        status, body, headers = reply
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def take(self, transaction_id: str, edus: list[Any]) -> None:
        """Act on a transaction, once."""
        if transaction_id not in self._ids:
            self._ids.add(transaction_id)
            self.taken += edus

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
