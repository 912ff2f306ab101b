"""A network in memory on a fake clock: wires that fragment, stall, fill up and are cut.

`Network` joins listeners to clients without a socket. Nothing moves by itself: a test says
how many bytes of which wire arrive, so that every schedule can be replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IListeningPort,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
    ITransport,
)
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

#: What one end may have in flight before its producer is told to stop.
WINDOW_BYTES = 2_048


@implementer(ITransport)
class End:
    """One end of a wire: the transport of the protocol there.

    Attributes:
        protocol: Who reads here.
        outgoing: What was written here and has not arrived at the other end.
        reading: Whether the protocol wants to be read to.
        closing: Whether the end is to close once everything has been written.
    """

    def __init__(self, wire: Wire, port: int) -> None:
        self.wire = wire
        self.protocol: Any = None
        self.outgoing = bytearray()
        self.reading = True
        self.closing = False
        self.closed = False
        self._ended = False
        self._producer: Any = None
        self._paused = False
        self._port = port

    @property
    def other(self) -> End:
        """The end across."""
        return self.wire.ends[1] if self.wire.ends[0] is self else self.wire.ends[0]

    # -- what protocols call -----------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self.closed or self.closing:
            return
        self.outgoing += data
        if len(self.outgoing) > self.wire.window_bytes and self._producer and not self._paused:
            self._paused = True
            self._producer.pauseProducing()

    def writeSequence(self, data: list[bytes]) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        self.closing = True

    def abortConnection(self) -> None:
        self.wire.cut()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def connectionLost(self, reason: Failure) -> None:
        self.wire.end(self)

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", self._port)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 9092)

    # -- what tests call ---------------------------------------------------------------

    def arrive(self, count: int | None = None) -> int:
        """Let up to *count* bytes that wait for this end arrive; return how many did."""
        source = self.other
        if self.closed or not self.reading or not source.outgoing:
            return int(source.end_if_due())
        data = bytes(source.outgoing[:count])
        del source.outgoing[: len(data)]
        self.protocol.dataReceived(data)
        if source._paused and not source.outgoing and not source.closed:
            source._paused = False
            if source._producer is not None:
                source._producer.resumeProducing()
        source.end_if_due()
        return len(data)

    def half_close(self) -> None:
        """Say no more, and still listen; the other end hears of it after what was written."""
        self._ended = True

    def end_if_due(self) -> bool:
        """End what is to end; return whether the other end heard that there is no more to read."""
        if self.closing and not self.outgoing and not self.closed:
            self.wire.end(self)
        other = self.other
        if not self._ended or self.outgoing or other.closed or not other.reading:
            return False
        other.reading = False  # who reads on hears it again
        if IHalfCloseableProtocol.providedBy(other.protocol):
            other.protocol.readConnectionLost()
        else:
            self.wire.end(other)
        return True

    def lost(self, failure: Failure) -> None:
        if not self.closed:
            self.closed = True
            self.outgoing.clear()
            if self._producer is not None:
                self._producer.stopProducing()
            self.protocol.connectionLost(failure)


class Wire:
    """A connection: two ends."""

    def __init__(self, client: Any, server: Any, port: int, window_bytes: int) -> None:
        self.window_bytes = window_bytes
        self.ends = (End(self, port), End(self, port))
        self.client, self.server = self.ends
        self.client.protocol = client
        self.server.protocol = server

    @property
    def alive(self) -> bool:
        """Whether either end has not heard of the end."""
        return not (self.client.closed and self.server.closed)

    def cut(self) -> None:
        """Cut it: what is in flight is lost, both ends hear of it."""
        for end in self.ends:
            end.lost(Failure(ConnectionLost()))

    def end(self, first: End) -> None:
        """End it in order: *first* closed."""
        first.lost(Failure(ConnectionDone()))
        first.other.lost(Failure(ConnectionDone()))


@implementer(IListeningPort)
class _Port:
    def __init__(self, network: Network) -> None:
        self._network = network

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 9092)

    def startListening(self) -> None:
        """Nothing to do: it listens from the beginning."""

    def stopListening(self) -> Deferred[None]:
        self._network.factory = None
        return succeed(None)


@implementer(IStreamServerEndpoint)
class _ServerEndpoint:
    def __init__(self, network: Network) -> None:
        self._network = network

    def listen(self, factory: Any) -> Deferred[Any]:
        self._network.factory = factory
        return succeed(_Port(self._network))


@implementer(IStreamClientEndpoint)
class _ClientEndpoint:
    def __init__(self, network: Network, name: str) -> None:
        self._network = network
        self._name = name

    def connect(self, factory: Any) -> Deferred[Any]:
        return self._network.connect(factory, self._name)


class Network:
    """One server, any number of named clients, on one fake clock.

    Attributes:
        clock: The clock; stands for the reactor.
        wires: The wire of each client that has connected, the newest one.
        factory: Who listens; None for nobody.
    """

    def __init__(self, clock: Clock | None = None, window_bytes: int = WINDOW_BYTES) -> None:
        self.clock = clock or Clock()
        self.wires: dict[str, Wire] = {}
        self.factory: Any = None
        self._window_bytes = window_bytes
        self._last_port = 40_000
        # also those whose client has another by now, and which have not ended yet
        self._open: list[Wire] = []

    def server_endpoint(self) -> Any:
        """Return where a server listens."""
        return _ServerEndpoint(self)

    def client_endpoint(self, name: str) -> Any:
        """Return where a client called *name* connects to."""
        return _ClientEndpoint(self, name)

    def connect(self, factory: Any, name: str) -> Deferred[Any]:
        """Join a client to whoever listens."""
        if self.factory is None:
            return fail(ConnectionRefusedError())
        self._last_port += 1
        address = IPv4Address("TCP", "127.0.0.1", self._last_port)
        server = self.factory.buildProtocol(address)
        client = factory.buildProtocol(None)
        wire = self.wires[name] = Wire(client, server, self._last_port, self._window_bytes)
        self._open.append(wire)
        server.makeConnection(wire.server)
        client.makeConnection(wire.client)
        return succeed(client)

    def turn(self) -> None:
        """Let one turn of the reactor pass."""
        self.clock.advance(0)

    def settle(self, rounds: int = 10_000) -> None:
        """Let everything arrive, at once and on every wire, until nothing moves any more."""
        for _ in range(rounds):
            self.clock.advance(0)
            moved = 0
            self._open = [wire for wire in self._open if wire.alive]
            for wire in self._open:
                for end in wire.ends:
                    moved += end.arrive()
            if not moved and not self._due():
                return
        raise AssertionError("the network does not come to rest")

    def run(self, seconds: float, step: float = 0.5) -> None:
        """Let *seconds* pass, everything arriving as it goes."""
        for _ in range(round(seconds / step)):
            self.settle()
            self.clock.advance(step)
        self.settle()

    def _due(self) -> bool:
        calls: list[Any] = self.clock.getDelayedCalls()
        return any(call.getTime() <= self.clock.seconds() for call in calls)


def one_turn(clock: Clock) -> None:
    """Make the calls that are due now, and none that they add: one turn of a reactor."""
    calls: list[Any] = list(clock.getDelayedCalls())
    for call in calls:
        if call.active() and call.getTime() <= clock.seconds():
            clock.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


def run_until(network: Network, condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Let time pass until *condition* holds."""
    for _ in range(round(seconds / 0.5)):
        network.settle()
        if condition():
            return
        network.clock.advance(0.5)
    raise AssertionError("it did not come to pass")
