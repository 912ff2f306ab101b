"""The conversations of protocol.md, made to run (its section 8 defines the notation).

The steps are those of `tcprepl.conformance`; a `Stage` here acts them out against a real
`ReplicationServer`: over memory transports, whole or byte by byte, or over real sockets.
Time is a fake clock on every stage, so half a minute of silence costs nothing.
"""

from __future__ import annotations

import socket
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.interfaces import IProtocol, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.python.failure import Failure
from zope.interface import implementer

from tcprepl.access import NOTHING, Grant, Streams, Tokens
from tcprepl.conformance.notation import Talker
from tcprepl.conformance.stage import ServerPlayer
from tcprepl.protocol.specs import COMMANDS
from tcprepl.replication.serving.draining import Drain
from tcprepl.replication.serving.peer import Peer
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.log import Log
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.opening import open_log
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry

SERVER_NAME = "example.com"
INSTANCE = "master"
#: The wall clock of a stage when it begins, in seconds since 1970.
START_S = 1_661_000_000.0
#: How long a stage with real sockets waits for what has to come.
WAIT_S = 10.0


class Stage(ServerPlayer):
    """A server, its clients and its clock; subclasses say what is between them."""

    def __init__(self, streams: Sequence[str], dialect: str) -> None:
        super().__init__()
        self.clock = Clock()
        self.clock.rightNow = START_S
        self.registry = Registry()
        self.streams = streams
        self.dialect = dialect
        self.heard: list[str] = []
        self.open_server()

    def open_server(self) -> None:
        """Open the log and make a server on it."""
        self.log = self.open_log()
        for stream in self.streams:
            self.log.ensure(stream, INSTANCE)
        self.server = self.make_server()

    @abstractmethod
    def open_log(self) -> Log:
        """Return the log."""

    def wall_ms(self) -> int:
        """Return the time of the fake clock in ms since 1970."""
        return int(self.clock.seconds() * 1000)

    def make_server(self) -> ReplicationServer:
        """Return a server on the log."""
        server = ReplicationServer(
            self.clock,
            self.log,
            self.registry,
            SERVER_NAME,
            INSTANCE,
            dialect=self.dialect,
            publisher=Publisher(self.log, self.registry, INSTANCE),
        )
        drain: list[Drain] = []

        def begin_to_drain(within_s: float, to: str) -> Drain:
            if not drain:
                drain.append(Drain(server, self.log.flush, within_s, to))
            return drain[0]

        server.drain = begin_to_drain
        for spec in COMMANDS.values():
            server.on(spec.command, lambda command, peer: self.heard.append(command.NAME))
        return server

    @abstractmethod
    def pause(self, talker: Talker) -> None:
        """Stop reading."""

    @abstractmethod
    def resume(self, talker: Talker) -> None:
        """Read on."""

    @abstractmethod
    async def end(self) -> None:
        """Take everything down; nothing may be left over."""

    # -- directions --------------------------------------------------------------------

    async def do_streams(self, names: str) -> None:
        """Check that the stage was built with what the first line says."""
        assert names.split(", ") == list(self.streams)

    async def append(
        self, stream: str, rows: list[bytes], *, instance: str | None = None, batch: bool = False
    ) -> None:
        """Append rows."""
        checked = self.registry.check_json_rows(stream, rows) if len(rows) < 100 else rows
        await self.log.append(stream, instance or INSTANCE, checked, batch=batch)
        self.clock.advance(0)
        await self.settle()

    async def do_trim(self, stream: str, token: str) -> None:
        """Forget rows."""
        self.log.trim(stream, INSTANCE, int(token))

    async def do_advance(self, stream: str, token: str) -> None:
        """Move a position without rows."""
        await self.log.advance(stream, INSTANCE, int(token))
        self.clock.advance(0)
        await self.settle()

    async def do_after(self, seconds: str) -> None:
        """Let time pass, a second at a time."""
        await self.settle()
        for _ in range(int(seconds)):
            self.clock.advance(1)
            await self.settle()

    async def do_pause(self) -> None:
        """The first client stops reading."""
        self.pause(self.talkers[1])

    async def do_behind(self) -> None:
        """The server knows that the first client is behind, and keeps little for it."""
        await self.settle()
        peer = self.server.peers()[0]
        assert peer.state == "behind", peer
        assert peer.behind_rows > 0, peer
        assert peer.buffered_bytes < 1_048_576, peer

    async def do_resume(self) -> None:
        """The first client reads on."""
        self.resume(self.talkers[1])

    async def do_stop(self) -> None:
        """The server stops."""
        _ = Deferred.fromCoroutine(self.server.stop())
        await self.settle()

    async def do_open(self) -> None:
        """Nothing else came, and the connection is open."""
        await super().do_open()
        assert all(peer.state != "closing" for peer in self.server.peers())

    async def do_restart(self) -> None:
        """The server starts again on the same log."""
        raise AssertionError("only over sockets, where the log is on a disk")

    async def do_token(self, token: str, name: str, rights: str) -> None:
        """A token is made that allows to read streams, and nothing goes without one."""
        grant = Grant(name, read=Streams(frozenset(rights.removeprefix("read ").split(", "))))
        self.server.admit(Tokens([(token, grant)]), NOTHING)

    async def do_no_token(self) -> None:
        """All tokens are taken back."""
        self.server.admit(Tokens(), NOTHING)
        await self.settle()

    async def do_heard(self, word: str, count: str) -> None:
        """The server handed a command to its application."""
        await self.settle()
        assert self.heard.count(word) == int(count), self.heard

    async def do_acked(self, name: str, token: str) -> None:
        """The server knows an acknowledgement."""
        await self.settle()
        (peer,) = [peer for peer in self.server.peers() if peer.name == name]
        assert peer.acked == int(token), peer

    async def do_dialect(self, name: str) -> None:
        """The server took the first client for this dialect."""
        await self.settle()
        assert self.server.peers()[0].dialect == name, self.server.peers()[0]


class MemoryStage(Stage):
    """Everything in one process and one thread, without sockets.

    Args:
        streams: The streams offered.
        dialect: The dialect of the listener.
        cut: Most bytes that reach the server at once; None is no limit.
    """

    def __init__(self, streams: Sequence[str], dialect: str, cut: int | None = None) -> None:
        super().__init__(streams, dialect)
        self.cut = cut
        self.server.start()
        self._peers: dict[Talker, Peer] = {}

    def open_log(self) -> Log:
        """Return a log in memory."""
        return MemoryLog(self.registry, self.wall_ms)

    async def connect(self) -> Talker:
        """Make a connection of memory."""
        talker = Talker()
        peer = self.server.accept("memory")
        down = _MemoryTransport(peer, talker)
        self._peers[talker] = peer
        talker.makeConnection(down)
        peer.makeConnection(down)
        return talker

    def send(self, talker: Talker, data: bytes) -> None:
        """Hand *data* to the server, in pieces."""
        size = self.cut or len(data)
        for start in range(0, len(data), size):
            if not talker.closed:
                self._peers[talker].dataReceived(data[start : start + size])

    async def settle(self) -> None:
        """Give the calls of this turn their turn."""
        self.clock.advance(0)

    async def wait(self, talker: Talker) -> bool:
        """Do nothing: all that happens has happened."""
        before = len(talker.received)
        self.clock.advance(0)
        return len(talker.received) > before or talker.closed

    def pause(self, talker: Talker) -> None:
        """Say that the buffer is full."""
        _wire(talker).pause()

    def resume(self, talker: Talker) -> None:
        """Say that it has drained."""
        _wire(talker).resume()

    async def end(self) -> None:
        """Stop the server; no delayed call may be left."""
        await self.server.stop()
        await self.log.close()
        assert self.clock.getDelayedCalls() == []


class _MemoryTransport(StringTransportWithDisconnection):
    """The server's transport: what is written arrives at once, unless the client is paused."""

    def __init__(self, peer: Peer, talker: Talker) -> None:
        super().__init__()
        self.protocol: Any = peer
        self.talker = talker
        self._paused = False
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Deliver *data*, or hold it while the client reads nothing."""
        if self._paused:
            self._held.append(data)
            self.producer.pauseProducing()
        elif self.connected:
            self.talker.dataReceived(data)

    def pause(self) -> None:
        """Stop taking anything."""
        self._paused = True

    def resume(self) -> None:
        """Deliver what was held and ask for more."""
        self._paused = False
        held, self._held = self._held, []
        self.talker.dataReceived(b"".join(held))
        self.producer.resumeProducing()

    def loseConnection(self) -> None:
        """Close both ends."""
        if self.connected:
            self.talker.connectionLost()
            super().loseConnection()

    def abortConnection(self) -> None:
        """Close both ends, at once."""
        self.loseConnection()


def _wire(talker: Talker) -> _MemoryTransport:
    assert isinstance(talker.transport, _MemoryTransport)
    return talker.transport


class SocketStage(Stage):
    """Real sockets on loopback under the real reactor; only the server's clock is fake."""

    def __init__(self, reactor: Any, streams: Sequence[str], dialect: str, directory: str) -> None:
        self.reactor = reactor
        self.arrived = 0
        self.open = 0
        self._directory = directory
        self._port: Any = None
        super().__init__(streams, dialect)

    def open_log(self) -> Log:
        """Open the log on the disk."""
        return open_log(self._directory, self.registry, self.reactor, clock_ms=self.wall_ms)

    async def do_restart(self) -> None:
        """Stop the server and its log, and start both again."""
        await self._stop()
        self.open_server()

    async def connect(self) -> Talker:
        """Make a connection; the first one starts the server."""
        if self._port is None:
            endpoint = TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1")
            self._port = await self.server.listen(_CountingEndpoint(endpoint, self))
        port = self._port.getHost().port
        talker: Talker = await connectProtocol(
            TCP4ClientEndpoint(self.reactor, "127.0.0.1", port), Talker()
        )
        return talker

    def send(self, talker: Talker, data: bytes) -> None:
        """Write *data* to the socket."""
        assert talker.transport is not None
        talker.sent += len(data)
        talker.transport.write(data)

    async def settle(self) -> None:
        """Wait until the server has read all that was sent to it."""
        await self._until(
            lambda: self.arrived >= sum(talker.sent for talker in self.everybody) or self._gone()
        )
        for _ in range(3):
            await self._turn()

    async def wait(self, talker: Talker) -> bool:
        """Wait for news on *talker*."""
        before = len(talker.received)
        return await self._until(lambda: len(talker.received) > before or talker.closed)

    async def _turn(self) -> None:
        self.clock.advance(0)
        await deferLater(self.reactor, 0)

    async def _until(self, condition: Callable[[], bool]) -> bool:
        deadline = self.reactor.seconds() + WAIT_S
        while not condition():
            if self.reactor.seconds() > deadline:
                return False
            await self._turn()
        return True

    def _gone(self) -> bool:
        return all(peer.state == "closing" for peer in self.server.peers())

    def pause(self, talker: Talker) -> None:
        """Stop reading from the socket, and make its buffer small."""
        transport: Any = talker.transport
        transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        transport.pauseProducing()

    def resume(self, talker: Talker) -> None:
        """Read on."""
        transport: Any = talker.transport
        transport.resumeProducing()

    async def end(self) -> None:
        """Close everything; no connection and no delayed call may be left."""
        await self._stop()
        assert self.clock.getDelayedCalls() == []

    async def _stop(self) -> None:
        for talker in self.everybody:
            self.resume(talker)
            if talker.transport is not None:
                talker.transport.loseConnection()
        assert await self._until(lambda: self.open == 0), "a connection did not end"
        await self.server.stop()
        await self.log.close()
        assert await self._until(lambda: all(talker.closed for talker in self.everybody))
        self.talkers.clear()
        self._port = None


@implementer(IStreamServerEndpoint)
class _CountingEndpoint:
    """Listens for the server, and counts what reaches it."""

    def __init__(self, endpoint: IStreamServerEndpoint, stage: SocketStage) -> None:
        self._endpoint = endpoint
        self._stage = stage

    def listen(self, factory: Any) -> Any:
        return self._endpoint.listen(_CountingFactory(factory, self._stage))


class _CountingFactory(Factory):
    noisy = False

    def __init__(self, factory: Any, stage: SocketStage) -> None:
        self._factory = factory
        self._stage = stage

    def buildProtocol(self, addr: Any) -> Any:
        return _Counting(self._factory.buildProtocol(addr), self._stage)


@implementer(IProtocol)
class _Counting:
    """Passes everything on to a peer."""

    def __init__(self, peer: Peer, stage: SocketStage) -> None:
        self._peer = peer
        self._stage = stage

    def makeConnection(self, transport: Any) -> None:
        self._stage.open += 1
        transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        self._peer.makeConnection(transport)

    def connectionMade(self) -> None:
        pass

    def dataReceived(self, data: bytes) -> None:
        self._stage.arrived += len(data)
        self._peer.dataReceived(data)

    def connectionLost(self, reason: Failure) -> None:
        self._stage.open -= 1
        self._peer.connectionLost(reason)
