"""A remote that drips: whoever asks it closes the socket when time is up, or nobody waits."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import trustme
from signedjson.key import generate_signing_key
from twisted.internet.defer import Deferred
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from tcprepl.federation.wire.failures import RequestFailed
from tcprepl.federation.wire.signing import Signer
from tcprepl.federation.wire.transport import FederationTransport

#: What the remote says before it begins to drip.
STAGES = {
    "handshake": None,
    "nothing": b"",
    "status": b"HTTP/1.1 20",
    "headers": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n",
    "body": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
}


class Dripper:
    """Listens by TLS; says something, then a byte every 50 ms; notes when a socket is closed."""

    def __init__(self, directory: Path, authority: trustme.CA, start: bytes | None) -> None:
        self.start = start
        self.open = 0
        self.accepted = 0
        self.closed = threading.Event()
        issued = authority.issue_cert("y.example", "127.0.0.1")
        path = directory / "server.pem"
        path.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(path)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.open += 1
            self.accepted += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Any) -> None:
        try:
            if self.start is None:
                while connection.recv(4096):
                    pass
            else:
                connection = self._context.wrap_socket(connection, server_side=True)
                connection.settimeout(0.05)
                connection.sendall(self.start)
                while True:
                    try:
                        if not connection.recv(4096):
                            break
                    except TimeoutError:
                        connection.sendall(b"x")
        except OSError:
            pass
        finally:
            connection.close()
            self.open -= 1
            self.closed.set()

    def close(self) -> None:
        """Listen no more."""
        self._listening.close()


class SocketTests(TestCase):
    """Real sockets on the real reactor."""

    def setUp(self) -> None:
        """Make a transport that has little patience."""
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.authority = trustme.CA()
        self.directory = Path(self.mktemp())
        self.directory.mkdir()

    def make(self, start: bytes | None, timeout_s: float) -> tuple[FederationTransport, Dripper]:
        """Return a transport, and the remote that it asks."""
        dripper = Dripper(self.directory, self.authority, start)
        self.addCleanup(dripper.close)
        pem = Certificate.loadPEM(self.authority.cert_pem.bytes())
        transport = FederationTransport(
            self.reactor,
            Signer("x.example", generate_signing_key("a_1")),
            trust=trustRootFromCertificates([pem]),
            overrides={"y.example": ("127.0.0.1", dripper.port)},
            timeout_s=timeout_s,
        )
        self.addCleanup(lambda: Deferred.fromCoroutine(transport.close()))
        return transport, dripper

    async def seen_closed(self, dripper: Dripper) -> None:
        """Wait until the remote has seen the end of each connection."""
        for _ in range(200):
            if dripper.accepted and not dripper.open:
                return
            await deferLater(self.reactor, 0.02)
        self.fail("the remote still has a connection of ours")

    async def ends(self, start: bytes | None, what: str) -> None:
        """Ask, be dripped on, and see the socket closed with the request."""
        transport, dripper = self.make(start, 0.4)
        body = b'{"edus":[]}'
        asked = (
            transport.fetch("y.example", "/_matrix/key/v2/server")
            if what == "keys"
            else transport.send_transaction("y.example", "t", body)
        )
        with self.assertRaises(RequestFailed):
            await asked
        await self.seen_closed(dripper)
        self.assertEqual(len(transport._connections), 0)

    async def cancelled(self, start: bytes) -> None:
        """Nobody waits any more: the socket is closed at once."""
        transport, dripper = self.make(start, 60)
        asked = Deferred.fromCoroutine(transport.fetch("y.example", "/"))
        asked.addErrback(lambda _: None)
        while not dripper.open:
            await deferLater(self.reactor, 0.02)
        await deferLater(self.reactor, 0.2)
        asked.cancel()
        await self.seen_closed(dripper)


def _add(name: str, test: Any) -> None:
    setattr(SocketTests, name, test)


for _stage, _start in STAGES.items():
    for _what in ("keys", "transaction"):

        def _test(self: SocketTests, start: bytes | None = _start, what: str = _what) -> Any:
            return Deferred.fromCoroutine(self.ends(start, what))

        _add(f"test_{_stage}_{_what}", _test)


def _test_cancelled(self: SocketTests) -> Any:
    return Deferred.fromCoroutine(self.cancelled(STAGES["body"] or b""))


_add("test_cancelled", _test_cancelled)
