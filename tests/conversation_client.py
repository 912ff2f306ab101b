"""The conversations of protocol.md in which the client is ours and the server is the text.

As in `tests.conversation`, but the parts are turned: lines marked S are fed to a real
`ReplicationClient`, and lines marked C are expected from it, whatever its face (`tests.faces`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IProtocol, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.python.failure import Failure
from zope.interface import implementer

from tcprepl.conformance.notation import Talker, json_values
from tcprepl.conformance.stage import ClientPlayer
from tcprepl.limits import RECONNECT_MAX_S
from tcprepl.replication.following.catchup import CatchUpPage
from tcprepl.streams.codec import Rows
from tcprepl.streams.position_store import MemoryPositionStore
from tests.conversation import SERVER_NAME, START_S, WAIT_S
from tests.faces import face, make_client

INSTANCE = "master"
WORKER = "worker1"


class _Fetches:
    """Answers the client's HTTP requests for missed rows when the conversation says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int, Deferred[CatchUpPage]]] = []

    def fetch(self, stream: str, instance: str, after: int, upto: int) -> Deferred[CatchUpPage]:
        """Note what is asked for."""
        answer: Deferred[CatchUpPage] = Deferred()
        self.asked.append((stream, after, upto, answer))
        return answer


class ClientStage(ClientPlayer):
    """A client, the text as its server, and a clock; subclasses say what is between them."""

    def __init__(self) -> None:
        super().__init__()
        self.clock: Any = face().clock()
        self.clock.rightNow = START_S
        self.fetches = _Fetches()
        self.client: Any = None

    @abstractmethod
    async def endpoint(self) -> IStreamClientEndpoint:
        """Return where the client connects to."""

    @abstractmethod
    async def turn(self) -> bool:
        """Let something happen; return whether more may come by waiting."""

    @abstractmethod
    async def settle(self) -> None:
        """Wait until everything sent so far has been read by the client."""

    async def until(self, condition: Callable[[], bool]) -> bool:
        """Wait for *condition*; return whether it came about."""
        while not condition():
            if not await self.turn():
                return condition()
        return True

    async def start(self) -> None:
        """Start the client, once."""
        if self.client is None:
            self.client = make_client(
                self.clock,
                await self.endpoint(),
                self.streams,
                self._rows,
                positions=MemoryPositionStore(
                    {(stream, INSTANCE): token for stream, token in self.known.items()}
                ),
                name=WORKER,
                server_name=SERVER_NAME,
                since=self.since,
                on_reset=self._reset,
                catch_up=self.fetches,
            )
            self.client.startService()
            assert await self.until(lambda: bool(self.servers)), "the client does not connect"

    def _rows(self, stream: str, instance: str, token: int, rows: Rows) -> None:
        text = " ".join(raw.decode() for raw in rows.raw)
        self.events.append(f"the client gets {stream} {token} {text}")

    def _reset(self, stream: str, instance: str, known: int | None, token: int) -> None:
        self.events.append(f"the client resets {stream} from {known} to {token}")

    async def end(self) -> None:
        """Stop the client; no delayed call may be left."""
        if self.client is not None:
            stopped: list[object] = []
            _ = Deferred.fromCoroutine(self._stop()).addBoth(stopped.append)
            assert await self.until(lambda: bool(stopped)), "the client does not stop"
            assert stopped == [None], stopped
        assert self.clock.getDelayedCalls() == []

    async def _stop(self) -> None:
        assert self.client is not None
        await self.client.stopService()

    # -- directions --------------------------------------------------------------------

    async def do_at(self, token: str, stream: str) -> None:
        """Expect the client to know a position."""
        await self.start()
        client = self.client
        assert client is not None
        await self.until(lambda: client.positions().get((stream, INSTANCE)) == int(token))
        assert client.positions().get((stream, INSTANCE)) == int(token), client.positions()

    async def do_fetch(self, stream: str, after: str, upto: str, rows: str) -> None:
        """Answer the HTTP request of the client for missed rows."""
        await self.until(lambda: bool(self.fetches.asked))
        assert self.fetches.asked, "the client fetches nothing"
        *asked, answer = self.fetches.asked.pop(0)
        assert asked == [stream, int(after), int(upto)], asked
        values = json_values(rows)
        updates = [
            (int(token), row.encode()) for token, row in zip(values[::2], values[1::2], strict=True)
        ]
        answer.callback(CatchUpPage(updates, int(upto), limited=False))

    async def do_after(self, seconds: str) -> None:
        """Let time pass, a second at a time."""
        await self.settle()
        for _ in range(int(seconds)):
            self.clock.advance(1)
            await self.turn()

    async def do_again(self) -> None:
        """Expect the client to connect again, within its longest delay."""
        before = len(self.servers)
        for _ in range(int(RECONNECT_MAX_S * 10) + 1):
            if len(self.servers) > before:
                break
            self.clock.advance(0.1)
            await self.turn()
        await self.until(lambda: len(self.servers) > before)
        assert len(self.servers) == before + 1, "the client does not connect again"


class MemoryClientStage(ClientStage):
    """Without sockets.

    Args:
        cut: Most bytes that reach the client at once; None is no limit.
    """

    def __init__(self, cut: int | None = None) -> None:
        super().__init__()
        self.cut = cut

    async def endpoint(self) -> IStreamClientEndpoint:
        """Return an endpoint of memory."""
        return _MemoryEndpoint(self.servers)

    def send(self, talker: Talker, data: bytes) -> None:
        """Hand *data* to the client, in pieces."""
        wire: Any = talker.transport
        size = self.cut or len(data)
        for start in range(0, len(data), size):
            if not talker.closed:
                wire.protocol.dataReceived(data[start : start + size])

    async def settle(self) -> None:
        """Do nothing: what is sent is read at once."""

    async def turn(self) -> bool:
        """Give the calls of this turn their turn; waiting longer brings nothing."""
        self.clock.advance(0)
        return False


@implementer(IStreamClientEndpoint)
class _MemoryEndpoint:
    def __init__(self, servers: list[Talker]) -> None:
        self._servers = servers

    def connect(self, factory: Any) -> Deferred[Any]:
        client = factory.buildProtocol(None)
        talker = Talker()
        wire = _ClientTransport(client, talker)
        talker.makeConnection(wire)
        self._servers.append(talker)
        client.makeConnection(wire)
        return succeed(client)


class _ClientTransport(StringTransportWithDisconnection):
    """The client's transport: what is written arrives at once."""

    def __init__(self, client: Any, talker: Talker) -> None:
        super().__init__()
        self.protocol: Any = client
        self.talker = talker

    def write(self, data: bytes) -> None:
        """Deliver *data*."""
        if self.connected:
            self.talker.dataReceived(data)

    def loseConnection(self) -> None:
        """Close both ends."""
        if self.connected:
            self.talker.connectionLost()
            super().loseConnection()

    def abortConnection(self) -> None:
        """Close both ends, at once."""
        self.loseConnection()


class SocketClientStage(ClientStage):
    """Real sockets on loopback under the real reactor; only the client's clock is fake."""

    def __init__(self, reactor: Any) -> None:
        super().__init__()
        self.reactor = reactor
        self.arrived = 0
        self._sent = 0
        self._port: Any = None

    async def endpoint(self) -> IStreamClientEndpoint:
        """Listen, and return where."""
        factory = _Servers(self.servers)
        listening = TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1")
        self._port = await listening.listen(factory)
        port = self._port.getHost().port
        return _CountingEndpoint(TCP4ClientEndpoint(self.reactor, "127.0.0.1", port), self)

    def send(self, talker: Talker, data: bytes) -> None:
        """Write *data* to the socket."""
        assert talker.transport is not None
        self._sent += len(data)
        talker.transport.write(data)

    async def settle(self) -> None:
        """Wait until the client has read all that was sent to it."""
        await self.until(lambda: self.arrived >= self._sent)

    async def turn(self) -> bool:
        """Give the reactor a turn; what is awaited may still be on its way."""
        self.clock.advance(0)
        await deferLater(self.reactor, 0)
        return True

    async def until(self, condition: Callable[[], bool]) -> bool:
        """Wait for *condition*, but not for ever."""
        deadline = self.reactor.seconds() + WAIT_S
        while not condition():
            if self.reactor.seconds() > deadline:
                return False
            await self.turn()
        return True

    async def end(self) -> None:
        """Stop the client and the port."""
        try:
            await super().end()
        finally:
            if self._port is not None:
                await self._port.stopListening()
            for talker in self.servers:
                if talker.transport is not None:
                    talker.transport.loseConnection()
            assert await self.until(lambda: all(talker.closed for talker in self.servers))


class _Servers(Factory):
    noisy = False

    def __init__(self, servers: list[Talker]) -> None:
        self._servers = servers

    def buildProtocol(self, addr: Any) -> Talker:
        return _Registering(self._servers)


class _Registering(Talker):
    def __init__(self, servers: list[Talker]) -> None:
        super().__init__()
        self._servers = servers

    def connectionMade(self) -> None:
        """Become the newest server."""
        self._servers.append(self)


@implementer(IStreamClientEndpoint)
class _CountingEndpoint:
    """Connects for the client, and counts what reaches it."""

    def __init__(self, endpoint: IStreamClientEndpoint, stage: SocketClientStage) -> None:
        self._endpoint = endpoint
        self._stage = stage

    def connect(self, factory: Any) -> Any:
        return self._endpoint.connect(_CountingFactory(factory, self._stage))


class _CountingFactory(Factory):
    noisy = False

    def __init__(self, factory: Any, stage: SocketClientStage) -> None:
        self._factory = factory
        self._stage = stage

    def buildProtocol(self, addr: Any) -> Any:
        return _Counting(self._factory.buildProtocol(addr), self._stage)


@implementer(IProtocol)
class _Counting:
    """Passes everything on to the client's connection."""

    def __init__(self, connection: Any, stage: SocketClientStage) -> None:
        self._connection = connection
        self._stage = stage

    def makeConnection(self, transport: Any) -> None:
        self._connection.makeConnection(transport)

    def connectionMade(self) -> None:
        pass

    def dataReceived(self, data: bytes) -> None:
        self._stage.arrived += len(data)
        self._connection.dataReceived(data)

    def connectionLost(self, reason: Failure) -> None:
        self._connection.connectionLost(reason)
