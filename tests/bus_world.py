"""A bus in memory: clients without sockets, a fake clock, a log to look into."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from tcprepl.replication.bus.connection import BusConnection
from tcprepl.replication.bus.listener import STOP_WITHIN_S, BusListener
from tcprepl.replication.redis.resp import Message, RespReader, encode
from tcprepl.replication.relaying.intake import RelayIntake, relay_registry
from tcprepl.replication.relaying.state import RelayState
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.memory import MemoryLog

SERVER_NAME = "example.com"


class BusTransport(StringTransport):
    """A connection that can be full, and whose end is told."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None

    def loseConnection(self) -> None:
        """Close."""
        self.end()

    def abortConnection(self) -> None:
        """Close at once."""
        self.end()

    def connectionLost(self, reason: Failure) -> None:
        """End, as Twisted does when the other side has."""
        self.end()

    def end(self) -> None:
        """Tell the connection that it has ended, once."""
        if not self.disconnecting:
            self.disconnecting = True
            self.protocol.connectionLost(Failure(ConnectionDone()))


class BusClient:
    """A client of the bus, as a test has it."""

    def __init__(self, world: BusWorld) -> None:
        self.world = world
        self.connection: BusConnection = world.bus.accept("127.0.0.1:5000")
        self.transport = BusTransport()
        self.transport.protocol = self.connection
        self.connection.makeConnection(self.transport)

    def raw(self, data: bytes) -> bytes:
        """Send *data*; return the bytes that come."""
        self.transport.clear()
        self.connection.dataReceived(data)
        self.world.settle()
        return self.transport.value()

    def ask(self, *words: str | bytes) -> bytes:
        """Send one request; return the bytes that come."""
        return self.raw(encode(*(w.encode() if isinstance(w, str) else w for w in words)))

    def publish(self, *lines: str) -> bytes:
        """Publish lines on the channel, all in one piece."""
        return self.raw(b"".join(encode(b"PUBLISH", SERVER_NAME.encode(), one.encode())
                                 for one in lines))  # fmt: skip

    def heard(self) -> list[str]:
        """Return the payloads that came since the last look, by name or by pattern."""
        payloads, others = RespReader(SERVER_NAME.encode()).feed(self.transport.value())
        found = [payload.decode() for payload in payloads]
        for value in others:
            if isinstance(value, Message):
                found.append(value.payload.decode())
            elif isinstance(value, list) and value[0] == b"pmessage":
                found.append(value[3].decode())
        self.transport.clear()
        return found

    def full(self) -> None:
        """Take no more."""
        assert self.transport.producer is not None
        self.transport.producer.pauseProducing()

    def drain(self) -> None:
        """Take everything again."""
        assert self.transport.producer is not None
        self.transport.producer.resumeProducing()
        self.world.settle()

    def leave(self) -> None:
        """End the connection."""
        self.transport.end()
        self.world.settle()


class BusWorld:
    """A bus, its log, its server.

    Args:
        after: A bus that has ended, and whose log this one goes on with.
        options: For the listener.
    """

    def __init__(self, after: BusWorld | None = None, **options: Any) -> None:
        if after is None:
            self.clock = Clock()
            self.registry = relay_registry()
            self.state = RelayState(None)
            self.log = MemoryLog(self.registry, lambda: 0, gaps=self.state.gaps)
        else:
            after.server.hub.close()
            assert after.bus._sweeper is not None
            after.bus._sweeper.stop()
            self.clock, self.registry = after.clock, after.registry
            self.state, self.log = after.state, after.log
        self.intake = RelayIntake(self.clock, self.log, self.registry, self.state)
        self.server = ReplicationServer(self.clock, self.log, self.registry, SERVER_NAME)
        self.intake.on_pair = self.server.hub.announce
        self.commands: list[Any] = []
        self.bus = BusListener(
            self.clock,
            self.server,
            self.intake,
            self.registry,
            server_name=SERVER_NAME,
            on_command=self.commands.append,
            **options,
        )
        self.bus.start()

    def client(self) -> BusClient:
        """Return a new client."""
        return BusClient(self)

    def subscriber(self) -> BusClient:
        """Return a client that listens on the channel."""
        client = self.client()
        client.ask("SUBSCRIBE", SERVER_NAME)
        client.transport.clear()
        return client

    def settle(self) -> None:
        """Let everything happen that is to happen at once."""
        for _ in range(8):
            self.clock.advance(0)

    def close(self) -> None:
        """Stop bus and server; nothing of them is left."""
        for stop in (self.bus.stop, self.server.stop):
            stopped = Deferred.fromCoroutine(stop())
            self.clock.advance(STOP_WITHIN_S)
            assert stopped.called

    def rows(self, stream: str, instance: str) -> list[tuple[int, bytes]]:
        """Return what the log holds of a pair."""
        floor, position = self.log.floor(stream, instance), self.log.position(stream, instance)
        return list(self.log.read(stream, instance, floor, position).rows())
