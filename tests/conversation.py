"""The conversations of protocol.md, made to run (its section 8 defines the notation).

A conversation is parsed into steps, and a `Stage` acts them out against a real
`ReplicationServer`: over memory transports, whole or byte by byte, or over real sockets.
Time is a fake clock on every stage, so half a minute of silence costs nothing.
"""

from __future__ import annotations

import json
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.interfaces import IProtocol, IStreamServerEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.python.failure import Failure
from zope.interface import implementer

from tcprepl.access import NOTHING, Grant, Streams, Tokens
from tcprepl.protocol.commands import COMMANDS
from tcprepl.replication.serving.peer import Peer
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.log import Log
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.opening import open_log
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry
from tests.docs_md import Block

SERVER_NAME = "example.com"
INSTANCE = "master"
#: The wall clock of a stage when it begins, in seconds since 1970.
START_S = 1_661_000_000.0
#: How long a stage with real sockets waits for what has to come.
WAIT_S = 10.0

_LINE = re.compile(r"([SC])(2?)>(?: (.*))?")
_HEX = re.compile(r"<([0-9A-F]{2})>")
_MANY = re.compile(r"<([0-9]+) bytes>")


@dataclass(frozen=True)
class Step:
    """One line of a conversation.

    Attributes:
        kind: ``S``, ``C`` or ``(``.
        text: What follows the mark; of a direction what is between the brackets.
        number: Its line in the document.
        connection: Which connection it is about, from 1.
    """

    kind: str
    text: str
    number: int
    connection: int = 1


class ConversationFailed(AssertionError):
    """The conversation did not go as written."""


def parse(block: Block) -> list[Step]:
    """Return the steps of a conversation.

    Raises:
        ValueError: a line is not in the notation.
    """
    steps = []
    for number, line in enumerate(block.lines, block.number + 1):
        if found := _LINE.fullmatch(line):
            mark, second, text = found.groups()
            steps.append(Step(mark, text or "", number, 2 if second else 1))
        elif line.startswith("(") and line.endswith(")"):
            steps.append(Step("(", line[1:-1], number))
        else:
            raise ValueError(f"protocol.md:{number}: not in the notation: {line}")
    return steps


def written_bytes(text: str) -> bytes:
    """Return what a client sends for a line of a conversation."""
    many = _MANY.fullmatch(text)
    if many:
        return b"x" * int(many.group(1))
    out = text.replace("<CR>", "\r").encode()
    return re.sub(rb"<([0-9A-F]{2})>", lambda m: bytes([int(m[1], 16)]), out) + b"\n"


def matches(pattern: str, line: str) -> bool:
    """Return whether *line* is what *pattern* says, ``...`` standing for some text."""
    parts = map(re.escape, pattern.replace("<CR>", "\r").split("..."))
    return re.fullmatch(".+".join(parts), line) is not None


class Talker(Protocol):
    """The client of a conversation: sends bytes, and keeps what comes."""

    def __init__(self) -> None:
        self.received = b""
        self.read_to = 0
        self.sent = 0
        self.closed = False
        self.news: Callable[[], None] = lambda: None

    def dataReceived(self, data: bytes) -> None:
        """Keep *data* (Twisted calls this)."""
        self.received += data
        self.news()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Note the end (Twisted calls this)."""
        self.closed = True
        self.news()

    def take_line(self) -> str | None:
        """Return the next line that came, without LF; None while there is none."""
        end = self.received.find(b"\n", self.read_to)
        if end < 0:
            return None
        line = self.received[self.read_to : end]
        self.read_to = end + 1
        return line.decode()


class Stage(ABC):
    """A server, its clients and its clock; subclasses say what is between them."""

    def __init__(self, streams: Sequence[str], dialect: str) -> None:
        self.clock = Clock()
        self.clock.rightNow = START_S
        self.registry = Registry()
        self.streams = streams
        self.dialect = dialect
        self.talkers: dict[int, Talker] = {}
        self.everybody: list[Talker] = []
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
        for spec in COMMANDS.values():
            server.on(spec.command, lambda command, peer: self.heard.append(command.NAME))
        return server

    @abstractmethod
    async def connect(self) -> Talker:
        """Make a connection."""

    @abstractmethod
    def send(self, talker: Talker, data: bytes) -> None:
        """Send *data* from the client."""

    @abstractmethod
    async def settle(self) -> None:
        """Wait until everything sent so far has been read at the other end."""

    @abstractmethod
    async def wait(self, talker: Talker) -> bool:
        """Wait for something to come to *talker*; return whether it is worth to look again."""

    @abstractmethod
    def pause(self, talker: Talker) -> None:
        """Stop reading."""

    @abstractmethod
    def resume(self, talker: Talker) -> None:
        """Read on."""

    @abstractmethod
    async def end(self) -> None:
        """Take everything down; nothing may be left over."""

    async def talker(self, connection: int) -> Talker:
        """Return the client of a connection, connecting it when it is new."""
        if connection not in self.talkers:
            self.talkers[connection] = await self.connect()
            self.everybody.append(self.talkers[connection])
        return self.talkers[connection]

    async def line(self, talker: Talker) -> str | None:
        """Return the next line from the server; None when it closed or keeps silent."""
        while True:
            line = talker.take_line()
            if line is not None:
                return line
            if talker.closed or not await self.wait(talker):
                return talker.take_line()

    async def perform(self, steps: Sequence[Step]) -> None:
        """Act out *steps*.

        Raises:
            ConversationFailed: something else happened than is written.
        """
        skipping: set[int] = set()
        for step in steps:
            try:
                await self._step(step, skipping)
            except AssertionError as error:
                raise ConversationFailed(
                    f"protocol.md:{step.number}: {step.kind} {step.text}\n{error}"
                ) from error

    async def _step(self, step: Step, skipping: set[int]) -> None:
        if step.kind == "(":
            await self._direct(step.text, skipping)
        elif step.kind == "C":
            self.send(await self.talker(step.connection), written_bytes(step.text))
            await self.settle()
        elif step.text == "...":
            skipping.add(step.connection)
        else:
            await self._expect(step, skipping)

    async def _expect(self, step: Step, skipping: set[int]) -> None:
        talker = await self.talker(step.connection)
        skip = step.connection in skipping
        skipping.discard(step.connection)
        skipped = 0
        while True:
            line = await self.line(talker)
            if line is None:
                how = "the connection is closed" if talker.closed else "nothing comes"
                raise AssertionError(f"{how}, after skipping {skipped} lines")
            if matches(step.text, line):
                return
            assert skip, f"got  {line}"
            skipped += 1

    async def _direct(self, text: str, skipping: set[int]) -> None:
        for pattern, act in _DIRECTIONS:
            if found := re.fullmatch(pattern, text):
                await act(self, skipping, *found.groups())
                return
        raise AssertionError("no such direction")

    # -- directions --------------------------------------------------------------------

    async def do_streams(self, skipping: set[int], names: str) -> None:
        """Check that the stage was built with what the first line says."""
        assert names.split(", ") == list(self.streams)

    async def do_publish(
        self, skipping: set[int], batch: str | None, instance: str | None, stream: str, rows: str
    ) -> None:
        """Publish rows."""
        decoder = json.JSONDecoder()
        found = []
        while rows:
            _, end = decoder.raw_decode(rows)
            found.append(rows[:end].encode())
            rows = rows[end:].lstrip()
        checked = self.registry.check_json_rows(stream, found)
        assert batch or len(checked) == 1
        await self._append(stream, checked, instance=instance, batch=bool(batch))

    async def do_publish_many(self, skipping: set[int], count: str, stream: str) -> None:
        """Publish many rows."""
        for first in range(0, int(count), 1_000):
            rows = [
                b'["!room:example.com","m.read","@ann:example.com","$%064d",{}]' % number
                for number in range(first, min(first + 1_000, int(count)))
            ]
            await self._append(stream, rows)

    async def do_publish_long(self, skipping: set[int], size: str, stream: str) -> None:
        """Publish one long row."""
        await self._append(stream, [b'["' + b"x" * (int(size) - 4) + b'"]'])

    async def _append(
        self,
        stream: str,
        rows: list[bytes],
        *,
        instance: str | None = None,
        batch: bool = False,
    ) -> None:
        await self.log.append(stream, instance or INSTANCE, rows, batch=batch)
        self.clock.advance(0)
        await self.settle()

    async def do_trim(self, skipping: set[int], stream: str, token: str) -> None:
        """Forget rows."""
        self.log.trim(stream, INSTANCE, int(token))

    async def do_advance(self, skipping: set[int], stream: str, token: str) -> None:
        """Move a position without rows."""
        await self.log.advance(stream, INSTANCE, int(token))
        self.clock.advance(0)
        await self.settle()

    async def do_after(self, skipping: set[int], seconds: str) -> None:
        """Let time pass, a second at a time."""
        await self.settle()
        for _ in range(int(seconds)):
            self.clock.advance(1)
            await self.settle()

    async def do_pause(self, skipping: set[int]) -> None:
        """The first client stops reading."""
        self.pause(self.talkers[1])

    async def do_behind(self, skipping: set[int]) -> None:
        """The server knows that the first client is behind, and keeps little for it."""
        await self.settle()
        peer = self.server.peers()[0]
        assert peer.state == "behind", peer
        assert peer.behind_rows > 0, peer
        assert peer.buffered_bytes < 1_048_576, peer

    async def do_resume(self, skipping: set[int]) -> None:
        """The first client reads on."""
        self.resume(self.talkers[1])

    async def do_bad_lines(self, skipping: set[int], count: str) -> None:
        """Send bad lines."""
        self.send(await self.talker(1), b"RUBBISH\n" * int(count))
        await self.settle()

    async def do_stop(self, skipping: set[int]) -> None:
        """The server stops."""
        _ = Deferred.fromCoroutine(self.server.stop())
        await self.settle()

    async def do_open(self, skipping: set[int]) -> None:
        """Nothing else came, and the connection is open."""
        await self._quiet(1, skipping)
        assert not self.talkers[1].closed
        assert all(peer.state != "closing" for peer in self.server.peers())

    async def do_closed(self, skipping: set[int]) -> None:
        """The server closed the connection, and nothing else came."""
        talker = await self.talker(1)
        while (line := await self.line(talker)) is not None:
            assert 1 in skipping, f"got  {line}"
        skipping.discard(1)
        assert talker.closed, "the connection is open"

    async def do_nothing(self, skipping: set[int], which: str) -> None:
        """Nothing came on a connection."""
        await self._quiet({"first": 1, "second": 2}[which], skipping)

    async def _quiet(self, connection: int, skipping: set[int]) -> None:
        talker = await self.talker(connection)
        await self.settle()
        while (line := talker.take_line()) is not None:
            assert connection in skipping, f"got  {line}"
        skipping.discard(connection)

    async def do_again(self, skipping: set[int]) -> None:
        """The client begins a new connection."""
        old = self.talkers.pop(1, None)
        if old is not None and old.transport is not None:
            old.transport.loseConnection()
        await self.settle()

    async def do_restart(self, skipping: set[int]) -> None:
        """The server starts again on the same log."""
        raise AssertionError("only over sockets, where the log is on a disk")

    async def do_token(self, skipping: set[int], token: str, name: str, rights: str) -> None:
        """A token is made that allows to read streams, and nothing goes without one."""
        grant = Grant(name, read=Streams(frozenset(rights.removeprefix("read ").split(", "))))
        self.server.admit(Tokens([(token, grant)]), NOTHING)

    async def do_no_token(self, skipping: set[int]) -> None:
        """All tokens are taken back."""
        self.server.admit(Tokens(), NOTHING)
        await self.settle()

    async def do_heard(self, skipping: set[int], word: str, count: str) -> None:
        """The server handed a command to its application."""
        await self.settle()
        assert self.heard.count(word) == int(count), self.heard

    async def do_acked(self, skipping: set[int], name: str, token: str) -> None:
        """The server knows an acknowledgement."""
        await self.settle()
        (peer,) = [peer for peer in self.server.peers() if peer.name == name]
        assert peer.acked == int(token), peer

    async def do_dialect(self, skipping: set[int], name: str) -> None:
        """The server took the first client for this dialect."""
        await self.settle()
        assert self.server.peers()[0].dialect == name, self.server.peers()[0]


def _late(name: str) -> Callable[..., Any]:
    """Return what calls the method of the stage that acts, not that of the base class."""
    return lambda stage, *args: getattr(stage, name)(*args)


_ROWS = r"(\[.*|\{.*|\".*)"
_DIRECTIONS: tuple[tuple[str, Callable[..., Any]], ...] = (
    (r"streams: (.+)", Stage.do_streams),
    (r"token (\S+) of (\S+): (read .+)", Stage.do_token),
    (r"the tokens are taken back", Stage.do_no_token),
    (r"publish (batch )?(?:as (\S+) )?(\S+) " + _ROWS, Stage.do_publish),
    (r"publish ([0-9]+) rows to (\S+)", Stage.do_publish_many),
    (r"publish a row of ([0-9]+) bytes to (\S+)", Stage.do_publish_long),
    (r"trim (\S+) up to ([0-9]+)", Stage.do_trim),
    (r"(\S+) moves on to ([0-9]+) without rows", Stage.do_advance),
    (r"after ([0-9]+) s", Stage.do_after),
    (r"the client stops reading", Stage.do_pause),
    (r"the server keeps its place", Stage.do_behind),
    (r"the client reads on", Stage.do_resume),
    (r"the client sends a bad line ([0-9]+) times", Stage.do_bad_lines),
    (r"the server stops", Stage.do_stop),
    (r"the connection is open", Stage.do_open),
    (r"the connection is closed", Stage.do_closed),
    (r"nothing else comes to the (first|second)", Stage.do_nothing),
    (r"a new connection", Stage.do_again),
    (r"the server restarts", _late("do_restart")),
    (r"the server has heard (\S+), ([0-9]+) times?", Stage.do_heard),
    (r"the server knows that (\S+) has acknowledged ([0-9]+)", Stage.do_acked),
    (r"the dialect is (\S+)", Stage.do_dialect),
)


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

    async def do_restart(self, skipping: set[int]) -> None:
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
