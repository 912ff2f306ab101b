"""Our sender with a real outbox, real signatures and TLS, against a sink in another process.

``python edu_https_peer.py COUNT`` prints a JSON object: EDUs and transactions a second, and how
many EDUs went in a transaction. ``python edu_https_peer.py sink PORT KEY CERTIFICATE`` is the sink.
"""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import structlog
import trustme
from signedjson.key import generate_signing_key
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.internet.task import deferLater, react
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from tcprepl.federation.sending.outbox import Outbox
from tcprepl.federation.sending.sender import FederationSender
from tcprepl.federation.wire.connections import SystemAndFile
from tcprepl.federation.wire.signing import Signer
from tcprepl.federation.wire.transport import FederationTransport

ORIGIN = "matrix.example.com"
HERE = Path(__file__).resolve().parent


def load(path: Path) -> ModuleType:
    """Import a module of the benchmarks by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Sink(Resource):
    """Takes every transaction."""

    isLeaf = True  # noqa: N815  # Twisted's name

    def render_PUT(self, request: Request) -> bytes:
        """Take one."""
        request.setHeader(b"Content-Type", b"application/json")
        return b'{"pdus":{}}'


def sink(port: int, key: str, certificate: str) -> None:
    """Serve until killed."""
    reactor: Any = global_reactor
    context = DefaultOpenSSLContextFactory(key, certificate)
    reactor.listenSSL(port, Site(Sink()), context, interface="127.0.0.1")
    print("READY", flush=True)
    reactor.run()


class Counting:
    """Counts what goes through a transport."""

    def __init__(self, transport: FederationTransport) -> None:
        self.transport = transport
        self.transactions = 0

    async def send_transaction(self, destination: str, transaction_id: str, body: bytes) -> Any:
        """Send one."""
        answer = await self.transport.send_transaction(destination, transaction_id, body)
        self.transactions += 1
        return answer


class Rows:
    """Rows as the client delivers them."""

    def __init__(self, raw: list[bytes]) -> None:
        self.raw = raw


async def measure(reactor: Any, directory: Path, port: int, count: int) -> None:
    """Send *count* EDUs and print how fast that was."""
    module = load(HERE.parent / "edu_lines.py")
    rows = [line.split(b" ", 4)[4][:-1] for line in module.lines(count)]
    placed = {f"remote{n}.example.org": ("127.0.0.1", port) for n in range(module.DESTINATIONS)}
    transport = FederationTransport(
        reactor,
        Signer(ORIGIN, generate_signing_key("a")),
        trust=SystemAndFile(directory / "ca.pem"),
        overrides=placed,
    )
    counting = Counting(transport)
    pool = ThreadPool(0, 1)
    pool.start()
    outbox = Outbox(
        directory / "outbox.sqlite", lambda work: deferToThreadPool(reactor, pool, work)
    )
    sender = FederationSender(reactor, outbox, counting, ORIGIN)
    sender.start()
    sender.intake.canonical = True
    began = time.monotonic()
    for start in range(0, count, 500):
        waiting: Deferred[None] | None = None
        for number, row in enumerate(rows[start : start + 500], start + 1):
            waiting = sender.intake.handle_rows("federation", "master", number, Rows([row]))
        await (waiting or deferLater(reactor, 0))
    while sender.pending() or not counting.transactions:
        await deferLater(reactor, 0.005)
    took = time.monotonic() - began
    await sender.stop()
    await outbox.close()
    await transport.close()
    pool.stop()
    figures = {
        "edus_per_s": count / took,
        "transactions_per_s": counting.transactions / took,
        "edus_per_transaction": count / counting.transactions,
    }
    print(json.dumps(figures))


def main(arguments: Sequence[str]) -> None:
    """Be the sink, or start one and measure."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    if arguments[0] == "sink":
        sink(int(arguments[1]), arguments[2], arguments[3])
        return
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(directory / "ca.pem"))
        issued = authority.issue_cert(*(f"remote{n}.example.org" for n in range(100)))
        issued.private_key_pem.write_to_path(str(directory / "key.pem"))
        issued.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [sys.executable, __file__, "sink", str(port)]
        files = [str(directory / "key.pem"), str(directory / "cert.pem")]
        with subprocess.Popen([*command, *files], stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                process.stdout.readline()
                react(measure, (directory, port, int(arguments[0])))
            finally:
                process.kill()


if __name__ == "__main__":
    main(sys.argv[1:])
