"""A server on a network in memory, and those who call it."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.log import Log
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry, StreamDef
from tests.wire import Network, Wire


def make_registry() -> Registry:
    """Return the streams of a world."""
    return Registry([StreamDef("alpha")])


class Caller(Protocol):
    """The far end: keeps what it is told."""

    def __init__(self) -> None:
        self.received = b""
        self.over = False

    def dataReceived(self, data: bytes) -> None:
        """Keep *data*."""
        self.received += data

    def connectionLost(self, reason: Any = None) -> None:
        """Note the end."""
        self.over = True

    def say(self, *lines: str) -> None:
        """Send *lines*."""
        assert self.transport is not None
        self.transport.write("".join(line + "\n" for line in lines).encode())

    def lines(self) -> list[str]:
        """Return the lines since the last call, keep-alives left out."""
        out, self.received = self.received, b""
        return [line for line in out.decode().splitlines() if not line.startswith("PING")]


class World:
    """A server on a network in memory."""

    def __init__(
        self, network: Network | None = None, log: Log | None = None, **options: Any
    ) -> None:
        self.network = network or Network()
        self.registry = make_registry()
        self.log = log or MemoryLog(self.registry, lambda: 0)
        self.log.ensure("alpha", "master")
        self.publisher = Publisher(self.log, self.registry, "master")
        self.server = ReplicationServer(
            self.network.clock,
            self.log,
            self.registry,
            "example.com",
            publisher=self.publisher,
            **options,
        )
        self.port = Deferred.fromCoroutine(self.server.listen(self.network.server_endpoint()))
        self._callers = 0

    def call(self, *lines: str) -> Caller:
        """Connect somebody who says *lines*."""
        caller = Caller()
        self._callers += 1
        name = f"c{self._callers}"
        assert self.network.client_endpoint(name).connect(Factory.forProtocol(lambda: caller))
        caller.say(*lines)
        self.network.settle()
        return caller

    def wire(self) -> Wire:
        """Return the newest wire."""
        return self.network.wires[f"c{self._callers}"]

    def stop(self) -> Deferred[None]:
        """Stop the server."""
        stopped = Deferred.fromCoroutine(self.server.stop())
        self.network.settle()
        return stopped
