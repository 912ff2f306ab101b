"""Our own server or worker, in a process of its own, as the other systems are.

``python tcprepl_peer.py server PORT CONTROL (memory|sqlite|postgresql://... [INSTANCE])`` or
``python tcprepl_peer.py worker PORT ROWS``. Rows go in through the Python API as lists of
values, as a homeserver would hand them over, and out over the ordinary listener.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol

from tcprepl.background import run_in_background
from tcprepl.replication.following.client import ReplicationClient
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.codec import Rows
from tcprepl.streams.log import Log
from tcprepl.streams.opening import open_log, open_shared_log
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry
from tcprepl.streams.retention import Bounds, Retention

#: What a stream in memory may hold: as much as is published in a second or two.
_HELD_BYTES = 32 * 1024 * 1024
HERE = Path(__file__).resolve().parent
SERVER_NAME = "bench.example.com"
reactor: Any = global_reactor


def load(path: Path) -> ModuleType:
    """Import a module of the benchmarks by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def make_log(kind: str, registry: Registry, instance: str) -> Log:
    """Return a log in memory, on disk in the current directory, or in a database.

    The one in memory is as it is after a while: as large as it may get. Until then every row
    takes memory that nobody had before, and what a fresh page costs says more of the machine
    (0.1 us on one, 10 us on a nested virtual one) than of any server.
    """
    if kind == "memory":
        return open_log(None, registry, reactor, Retention(durable=Bounds(max_bytes=_HELD_BYTES)))
    if kind != "sqlite":
        return await open_shared_log(kind, instance, registry, reactor)
    return open_log(Path("data"), registry, reactor)


async def serve(port: int, control_port: int, kind: str, instance: str = "master") -> None:
    """Listen; publish what the control port asks for."""
    registry = Registry()
    log = await make_log(kind, registry, instance)
    rows = load(HERE.parent / "rows.py")
    for stream in rows.STREAMS:
        log.ensure(stream, instance)
    server = ReplicationServer(reactor, log, registry, SERVER_NAME)
    publisher = Publisher(log, registry, instance, reactor)

    def publish(stream: str, batch: Sequence[object]) -> None:
        publisher.publish(stream, batch)  # Twisted logs what nobody looks at

    orders = load(HERE / "control.py").Publisher(reactor.callLater, publish, rows)

    class Control(Protocol):
        """One control connection."""

        def dataReceived(self, data: bytes) -> None:
            """Hand the bytes on."""
            orders.received(data)

    await server.listen(TCP4ServerEndpoint(reactor, port, 1024, "127.0.0.1"))
    control = TCP4ServerEndpoint(reactor, control_port, 5, "127.0.0.1")
    await control.listen(Factory.forProtocol(Control))
    print("READY", flush=True)


async def work(port: int, wanted: int) -> None:
    """Follow every stream; say DONE each time *wanted* rows have been handled."""
    seen = 0

    def handle(stream: str, instance: str, token: int, rows: Rows) -> None:
        nonlocal seen
        for _ in rows:  # every row is decoded: the handler can use it
            seen += 1
        if seen >= wanted:
            seen = 0
            print("DONE", flush=True)

    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    client = ReplicationClient(reactor, endpoint, None, handle, dialect="1.22")
    client.startService()
    await Deferred()


def main(arguments: Sequence[str]) -> None:
    """Run the role that the arguments ask for."""
    role, first, second, *rest = arguments
    if role == "server":
        run_in_background(serve, int(first), int(second), *rest)
    else:
        run_in_background(work, int(first), int(second))
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1:])
