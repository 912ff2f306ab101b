"""Our own server as a process, and a remote homeserver that notes what it is sent."""

from __future__ import annotations

import json
import secrets
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trustme

from tests.interop.environments import REPOSITORY
from tests.interop.processes import Child, Restartable, accepts
from tests.interop.synapse import request
from tests.ports import free_port


class Serve(Restartable):
    """``tcprepl serve`` in a directory of its own; started and stopped any number of times.

    Attributes:
        port: The replication listener.
        http_port: The HTTP listener.
    """

    def __init__(self, server_name: str, directory: Path, *options: str) -> None:
        super().__init__(directory / "serve.log")
        self.server_name = server_name
        self.port = free_port()
        self.http_port = free_port()
        self._directory = directory
        self._options = options

    def start(self) -> None:
        """Start, with the data that an earlier start left, and wait until it listens."""
        command: list[str | Path] = [sys.executable, "-m", "tcprepl", "serve"]
        command += ["--server-name", self.server_name, "--data", self._directory / "data"]
        command += ["--listen", f"127.0.0.1:{self.port}", "--http", f"127.0.0.1:{self.http_port}"]
        self._child = Child(
            [*command, *self._options], self.log_path, cwd=REPOSITORY, starts_warm=True
        )
        self._child.wait_ready(
            "tcprepl listens", lambda: accepts(self.port) and accepts(self.http_port)
        )

    def publish(self, stream: str, *rows: object) -> int:
        """Publish rows over HTTP and return the last one's token."""
        answer = request(self.http_port, "POST", f"/_tcprepl/v1/streams/{stream}/rows", list(rows))
        return int(answer["last"])

    def updates(self, stream: str, after: int, upto: int) -> list[tuple[int, Any]]:
        """Return what the catch-up endpoint holds of *stream* in ``(after, upto]``."""
        path = f"/_synapse/replication/get_repl_stream_updates/{stream}/{secrets.token_hex(5)}"
        answer = request(self.http_port, "GET", f"{path}?from_token={after}&upto_token={upto}")
        return [(token, row) for token, row in answer["updates"]]

    def status(self) -> Any:
        """Return the status document."""
        return request(self.http_port, "GET", "/_tcprepl/v1/status")


class RemoteServer:
    """A homeserver that takes transactions over HTTPS, notes them, and can be made to fail."""

    def __init__(self, directory: Path) -> None:
        certificate = trustme.CA().issue_cert("127.0.0.1")
        pem = directory / "remote.pem"
        certificate.private_key_and_cert_chain_pem.write_to_path(str(pem))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        #: (transaction id, body) of each transaction received, in order.
        self.transactions: list[tuple[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            """One request."""

            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.transactions.append((self.path.rstrip("/").rpartition("/")[2], body))
                answer = b'{"pdus":{}}'
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # inherited
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.server_name = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def edus(self) -> list[Any]:
        """Return the EDUs received, in order."""
        return [edu for _, body in list(self.transactions) for edu in body.get("edus", ())]
