"""Time, processes and a network for a simulated world: one thread, and no chance but the seed's.

A `Universe` is a clock with everything that is to happen on it. A `Process` is what code of ours
takes for its reactor: it can be killed (nothing of it happens any more, nobody is told) or frozen
(as by SIGSTOP). A `Network` carries bytes between processes, with delays and in pieces; its
connections can be cut, half closed and frozen, and machines parted.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any
from zlib import crc32

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import (
    AlreadyCalled,
    AlreadyCancelled,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
)
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IListeningPort,
    IReactorTime,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
    ITransport,
)
from twisted.python.failure import Failure
from zope.interface import implementer

START_S = 1_700_000_000.0
#: What one end may have under way before its producer is told to stop.
WINDOW_BYTES = 4_096
#: What a socket takes for a process that does not read.
SOCKET_BYTES = 2_048


@implementer(IDelayedCall)
class Call:
    """Something that will happen."""

    __slots__ = ("args", "due", "f", "kwargs", "process", "state", "universe")

    def __init__(self, universe: Universe, due: float, process: Process | None, f: Any) -> None:
        self.universe = universe
        self.due = due
        self.process = process
        self.f = f
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.state = "waits"

    def getTime(self) -> float:
        return self.due + (0.0 if self.process is None else self.process.ahead_s)

    def active(self) -> bool:
        return self.state == "waits"

    def cancel(self) -> None:
        if self.state == "happened":
            raise AlreadyCalled
        if self.state == "cancelled":
            raise AlreadyCancelled
        self.state = "cancelled"

    def reset(self, seconds: float) -> None:
        self._move(self.universe.now + seconds)

    def delay(self, seconds: float) -> None:
        self._move(self.due + seconds)

    def _move(self, due: float) -> None:
        assert self.state == "waits", self.state
        self.due = due
        self.universe.push(self)


class Universe:
    """A clock, and all that is to happen.

    Attributes:
        now: The true time, in seconds.
        wall_ahead_s: What wall clocks are off by.
        chance: All randomness of what is outside the code.
        steps: What has happened.
        trace: A hash of all that has happened, in order.
    """

    def __init__(self, chance: random.Random) -> None:
        self.now = START_S
        self.wall_ahead_s = 0.0
        self.chance = chance
        self.steps = 0
        self.trace = 0
        self._heap: list[tuple[float, int, Call]] = []
        self._pushed = 0

    def push(self, call: Call) -> None:
        """Let *call* happen when it is due."""
        self._pushed += 1
        heapq.heappush(self._heap, (call.due, self._pushed, call))

    def later(self, seconds: float, f: Callable[..., object], *args: Any) -> Call:
        """Let something happen that belongs to no process."""
        call = Call(self, self.now + max(0.0, seconds), None, f)
        call.args = args
        self.push(call)
        return call

    def run(self, seconds: float) -> None:
        """Let *seconds* pass."""
        end = self.now + seconds
        heap = self._heap
        while heap and heap[0][0] <= end:
            due, _, call = heapq.heappop(heap)
            if call.state != "waits" or call.due != due:
                continue
            process = call.process
            if process is not None and process.frozen:
                process.held.append(call)
                continue
            if due > self.now:
                self.now = due
            self._happen(call)
        self.now = max(self.now, end)

    def _happen(self, call: Call) -> None:
        call.state = "happened"
        self.steps += 1
        self.note(call.f)
        call.f(*call.args, **call.kwargs)

    def forget(self) -> None:
        """Let nothing more happen."""
        self._heap.clear()

    def note(self, what: Any) -> None:
        """Take *what* into the trace."""
        name = getattr(what, "__qualname__", None) or type(what).__name__
        self.trace = crc32(f"{self.now:.6f} {name}".encode(), self.trace)


@implementer(IReactorTime)
class Process:
    """A process's reactor: time that nobody can set, calls that die with it.

    Attributes:
        alive: Whether it has not been killed.
        frozen: Whether it is stopped.
        ahead_s: What its clock is ahead of the true time: that of the wall when it began.
        steady: Whether its clock runs evenly, or follows the wall as Twisted's does.
    """

    steady = True

    def __init__(self, universe: Universe, host: str) -> None:
        self.universe = universe
        self.host = host
        self.alive = True
        self.frozen = False
        self.held: list[Call] = []
        self.sides: list[Side] = []
        self.ports: list[str] = []
        self._began_ahead_s = universe.wall_ahead_s
        self._calls: list[Call] = []

    @property
    def ahead_s(self) -> float:
        return self._began_ahead_s if self.steady else self.universe.wall_ahead_s

    def seconds(self) -> float:
        return self.universe.now + self.ahead_s

    def milliseconds(self) -> int:
        """Return the time by its clock in ms."""
        return round(self.seconds() * 1000)

    def callLater(self, delay: float, callable: Any, *args: Any, **kwargs: Any) -> Call:
        assert delay >= 0
        call = Call(self.universe, self.universe.now + delay, self, callable)
        call.args, call.kwargs = args, kwargs
        if self.alive:
            self._calls.append(call)
            if len(self._calls) > 1_000:
                self._calls = [one for one in self._calls if one.state == "waits"]
            self.universe.push(call)
        return call

    def callFromThread(self, callable: Any, *args: Any, **kwargs: Any) -> None:
        self.callLater(0, callable, *args, **kwargs)

    def getDelayedCalls(self) -> list[Call]:
        return [call for call in self._calls if call.state == "waits"]

    def die(self) -> None:
        """Be killed: nothing of it happens from now on."""
        self.alive = False
        for call in (*self._calls, *self.held):
            if call.state == "waits":
                call.state = "dead"
        self._calls.clear()
        self.held.clear()

    def freeze(self) -> None:
        """Stop, as by SIGSTOP."""
        self.frozen = True

    def thaw(self) -> None:
        """Go on."""
        self.frozen = False
        held, self.held = self.held, []
        for call in held:
            if call.state == "waits":
                call.due = max(call.due, self.universe.now)
                self.universe.push(call)
        for side in self.sides:
            side.other.pump()


@implementer(ITransport)
class Side:
    """One end of a connection: the transport of the protocol there."""

    def __init__(self, connection: Connection, process: Process, port: int) -> None:
        self.connection = connection
        self.process = process
        self.protocol: Any = None
        self.other: Side = self
        self.outgoing = bytearray()
        self.reading = True
        self.closing = False
        self.closed = False
        self.broken = False
        self.gone = False
        self._producer: Any = None
        self._paused = False
        self._pumping: Call | None = None
        self._port = port

    @property
    def disconnecting(self) -> bool:
        """Whether this end has closed, or heard that it is over."""
        return self.closing or self.closed

    # -- what protocols call -----------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self.closed or self.closing:
            return
        if self.broken:  # the other end has gone, which this one learns now
            self.connection.network.universe.later(0.01, self.lost, ConnectionLost())
            return
        self.outgoing += data
        if len(self.outgoing) > WINDOW_BYTES and self._producer is not None and not self._paused:
            self._paused = True
            self._producer.pauseProducing()
        self.pump()

    def writeSequence(self, data: list[bytes]) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        if self.closing or self.closed:
            return
        self.closing = True
        self.pump()
        if len(self.outgoing) <= SOCKET_BYTES:
            # the kernel has it all, and goes on by itself
            self.connection.network.universe.later(0, self.lost, ConnectionDone())

    def abortConnection(self) -> None:
        if not self.closed:
            self.vanish()
            self.connection.network.universe.later(0, self.lost, ConnectionLost())
            self.connection.tell(self.other, ConnectionLost())

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True
        self.other.pump()

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", self._port)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 9092)

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing is put off."""

    def connectionLost(self, reason: Failure) -> None:
        self.lost(reason.value)

    # -- what carries ------------------------------------------------------------------

    def pump(self) -> None:
        """See to it that what was written here gets on."""
        if self._pumping is None and not self.gone:
            network = self.connection.network
            self._pumping = network.universe.later(network.delay(), self._pump)

    def _pump(self) -> None:
        self._pumping = None
        other = self.other
        if self.gone or self.broken or self.connection.stuck:
            return
        if self.outgoing:
            if other.closed or not other.process.alive:
                return
            if not other.reading or other.process.frozen:
                return
            count = self.connection.network.piece(len(self.outgoing))
            data = bytes(self.outgoing[:count])
            del self.outgoing[:count]
            self.connection.network.carried_bytes += count
            other.protocol.dataReceived(data)
            if self._paused and not self.outgoing and not self.closed:
                self._paused = False
                if self._producer is not None and self.process.alive:
                    self._producer.resumeProducing()
        if self.outgoing:
            self.pump()
        elif self.closing and not self.gone:
            self.vanish()
            self.connection.tell(other, ConnectionDone())
            self.lost(ConnectionDone())

    def vanish(self) -> None:
        """Let nothing more of it get anywhere."""
        self.gone = True
        self.outgoing.clear()

    def read_lost(self) -> None:
        """Let the protocol hear that there is nothing more to read."""
        if self.closed or (self.process.frozen and self.process.alive):
            self.lost(ConnectionDone())
        elif IHalfCloseableProtocol.providedBy(self.protocol) and self.process.alive:
            self.protocol.readConnectionLost()
        else:
            self.lost(ConnectionDone())

    def lost(self, why: Exception) -> None:
        """Let the protocol hear that it is over."""
        if self.closed:
            return
        if self.process.frozen and self.process.alive:
            self.process.callLater(0, self.lost, why)
            return
        self.closed = True
        if not self.closing:
            self.vanish()
        if self in self.process.sides:
            self.process.sides.remove(self)
        if self.process.alive:
            if self._producer is not None:
                self._producer.stopProducing()
            self.protocol.connectionLost(Failure(why))


class Connection:
    """A connection of two processes.

    Attributes:
        frozen: Whether nothing gets through, and nobody hears of it.
    """

    def __init__(self, network: Network, client: Process, server: Process, port: int) -> None:
        self.network = network
        self.frozen = False
        self.client = Side(self, client, port)
        self.server = Side(self, server, port)
        self.sides = (self.client, self.server)
        self.client.other, self.server.other = self.server, self.client
        for side in self.sides:
            side.process.sides.append(side)

    @property
    def alive(self) -> bool:
        """Whether an end has not heard that it is over."""
        return not (self.client.closed and self.server.closed)

    @property
    def stuck(self) -> bool:
        """Whether nothing gets through."""
        return self.frozen or self.network.parted(
            self.client.process.host, self.server.process.host
        )

    def tell(self, side: Side, why: Exception) -> None:
        """Let *side* hear that the other end has gone, once that gets through."""
        if side.closed or not side.process.alive:
            return
        if self.stuck:
            side.broken = True  # it hears of it if it ever says something
            return
        self.network.universe.later(self.network.delay(), side.lost, why)

    def cut(self) -> None:
        """Reset it: what is under way is lost."""
        for side in self.sides:
            side.vanish()
            if side.process.alive:
                self.network.universe.later(self.network.delay(), side.lost, ConnectionLost())

    def half_close(self, side: Side) -> None:
        """Let *side* hear the end, and the other one only when it says something."""
        side.other.broken = True
        self.network.universe.later(self.network.delay(), side.read_lost)

    def move(self) -> None:
        """Go on, after something was in the way."""
        for side in self.sides:
            if side.outgoing or side.closing:
                side.pump()


@implementer(IListeningPort)
class _Port:
    def __init__(self, network: Network, address: str) -> None:
        self._network = network
        self._address = address

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 9092)

    def startListening(self) -> None:
        """Nothing to do: it listens from the beginning."""

    def stopListening(self) -> Deferred[None]:
        self._network.listeners.pop(self._address, None)
        return succeed(None)


@implementer(IStreamServerEndpoint, IStreamClientEndpoint)
class Endpoint:
    """An address, for a process that listens there or connects to it."""

    def __init__(self, network: Network, process: Process, address: str) -> None:
        self._network = network
        self._process = process
        self._address = address

    def listen(self, factory: Any) -> Deferred[Any]:
        self._network.listeners[self._address] = (self._process, factory)
        self._process.ports.append(self._address)
        return succeed(_Port(self._network, self._address))

    def connect(self, factory: Any) -> Deferred[Any]:
        return self._network.connect(self._process, self._address, factory)


class Network:
    """Everything between processes.

    Attributes:
        listeners: Who listens, by address.
        walls: Pairs of machines that do not hear each other.
        split: How likely it is that bytes arrive in pieces.
        slow_s: How long what is sent may take at most.
    """

    def __init__(self, universe: Universe) -> None:
        self.universe = universe
        self.listeners: dict[str, tuple[Process, Any]] = {}
        self.connections: list[Connection] = []
        self.walls: set[frozenset[str]] = set()
        self.split = 0.2
        self.slow_s = 0.02
        self.carried_bytes = 0
        self._last_port = 40_000

    def delay(self) -> float:
        """Return how long something takes to get through."""
        return self.universe.chance.random() * self.slow_s

    def piece(self, size: int) -> int:
        """Return how many of *size* bytes arrive at once."""
        chance = self.universe.chance
        return chance.randint(1, size) if chance.random() < self.split else size

    def parted(self, one: str, other: str) -> bool:
        """Return whether two machines do not hear each other."""
        return bool(self.walls) and frozenset((one, other)) in self.walls

    def endpoint(self, process: Process, address: str) -> Any:
        """Return *address* as *process* uses it: to listen, or to connect."""
        return Endpoint(self, process, address)

    def connect(self, process: Process, address: str, factory: Any) -> Deferred[Any]:
        """Connect *process* to whoever listens at *address*, after a while."""
        attempt: Deferred[Any] = Deferred(lambda _: None)
        self.universe.later(2 * self.delay(), self._connect, process, address, factory, attempt)
        return attempt

    def _connect(
        self, process: Process, address: str, factory: Any, attempt: Deferred[Any]
    ) -> None:
        if attempt.called or not process.alive:
            return
        server, listening = self.listeners.get(address, (None, None))
        if server is not None and (self.parted(process.host, server.host) or server.frozen):
            self.universe.later(1.0, self._connect, process, address, factory, attempt)
            return
        if process.frozen:
            process.callLater(0, self._connect, process, address, factory, attempt)
            return
        if server is None or not server.alive:
            attempt.errback(ConnectionRefusedError())
            return
        self._last_port += 1
        connection = Connection(self, process, server, self._last_port)
        self.connections = [one for one in self.connections if one.alive]
        self.connections.append(connection)
        for side, made_by in ((connection.server, listening), (connection.client, factory)):
            side.protocol = made_by.buildProtocol(side.getPeer())
        connection.server.protocol.makeConnection(connection.server)
        connection.client.protocol.makeConnection(connection.client)
        attempt.callback(connection.client.protocol)

    def killed(self, process: Process, *, silent: bool = False) -> None:
        """See to the connections of a process that was killed.

        Args:
            process: The process.
            silent: Whether its machine went with it, so that nobody hears of it.
        """
        for address in process.ports:
            if self.listeners.get(address, (None,))[0] is process:
                del self.listeners[address]
        for side in list(process.sides):
            side.closed = True
            side.vanish()
            if not silent:
                self.universe.later(self.delay(), side.other.lost, ConnectionLost())
        process.sides.clear()

    def heal(self) -> None:
        """Let everything through again."""
        self.walls.clear()
        self.split, self.slow_s = 0.2, 0.02
        for connection in self.connections:
            connection.frozen = False
            connection.move()
