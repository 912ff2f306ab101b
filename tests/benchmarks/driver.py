"""The measuring side: systems under test as processes, and subscribers that count rows.

Every system under test is a process of its own whose CPU time is read from outside; what
the subscribers and the publisher of this process cost does not count. Publishing goes in
windows: the next begins when every subscriber has the last, so that no socket ever fills
and every system is measured on its ordinary path.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import select
import socket
import ssl
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.benchmarks import rows
from tests.benchmarks.measure import cpu_ns
from tests.interop.environments import python_of
from tests.interop.processes import Child, resident_bytes
from tests.interop.servers import Nats, Redis, Server, Valkey
from tests.ports import free_port

PEERS = Path(__file__).resolve().parent / "peers"
#: What each delivered row holds exactly once.
MARK = b"RDATA "
#: The time of publication in a row of the latency benchmark.
STAMP = re.compile(rb'"ts":(\d+)\}')
#: How long a window may take.
WINDOW_TIMEOUT_S = 60.0


class System(ABC):
    """A system under test that fans rows out to subscribers.

    Attributes:
        name: How the tables call it.
        port: Where subscribers connect.
        hello: What a subscriber says first.
        welcome: What it has been answered once it is subscribed.
        wrap: What subscribers wrap their connections in; None is plain TCP.
    """

    name: str
    port: int
    hello: bytes
    welcome: bytes
    wrap: ssl.SSLContext | None = None

    @property
    @abstractmethod
    def pid(self) -> int:
        """The process whose CPU time counts."""

    @abstractmethod
    def publish(self, turns: int, size: int, kind: str = "batch") -> None:
        """Have *turns* times *size* rows published, in the calls that `rows.turns` says."""

    @abstractmethod
    def publish_stamped(self, size: int = 1) -> None:
        """Have *size* rows published at once; every other one carries the time of that."""

    @abstractmethod
    def stop(self) -> None:
        """Stop the process."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class Controlled(System):
    """A Python server of ``peers/`` that publishes what its control port asks for."""

    def __init__(
        self, name: str, script: str, *arguments: str, python: Path = Path(sys.executable)
    ) -> None:
        self.name = name
        self.port = free_port()
        control_port = free_port()
        self.hello = b"NAME bench\nREPLICATE\n"
        self.welcome = b"POSITION events "
        self._directory = tempfile.TemporaryDirectory(prefix="tcprepl-bench-")
        where = Path(self._directory.name)
        command = [python, PEERS / script, "server", str(self.port), str(control_port)]
        self._child = Child([*command, *arguments], where / "log", cwd=where)
        self._child.wait_ready("READY", lambda: "READY" in self._child.output())
        self._control = socket.create_connection(("127.0.0.1", control_port))
        self._control.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def pid(self) -> int:
        """The process whose CPU time counts."""
        return self._child.pid

    def publish(self, turns: int, size: int, kind: str = "batch") -> None:
        """Have *turns* times *size* rows published."""
        self._control.sendall(f"{turns} {size} {kind}\n".encode())

    def publish_stamped(self, size: int = 1) -> None:
        """Have *size* rows published at once."""
        self._control.sendall(b"1 %d stamped\n" % size)

    def stop(self) -> None:
        """Stop the process."""
        self._control.close()
        self._child.stop()
        self._directory.cleanup()


class _Foreign(System):
    """A server of another kind: every row is a command of its own, a turn is one write."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.port = server.port
        self._publisher = socket.create_connection(("127.0.0.1", self.port))
        self._publisher.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._commands = {
            kind: [self._command(line[:-1]) for line in rows.lines(2_000, run=run)]
            for kind, run in (("batch", 100), ("each", 1), ("calls", 1))
        }
        self._next = 0

    @staticmethod
    @abstractmethod
    def _command(row: bytes) -> bytes:
        """Return what publishes *row*."""

    @property
    def pid(self) -> int:
        """The process whose CPU time counts."""
        return self._server.pid

    def publish(self, turns: int, size: int, kind: str = "batch") -> None:
        """Publish, and drop the answers to what was published before."""
        with contextlib.suppress(BlockingIOError):
            while self._publisher.recv(65536, socket.MSG_DONTWAIT):
                pass
        commands = self._commands[kind]
        for _ in range(turns):
            start = self._next % len(commands)
            some = commands[start : start + size]
            self._next += len(some)
            self._publisher.sendall(b"".join(some))

    def publish_stamped(self, size: int = 1) -> None:
        """Publish rows of which every other one carries the time."""
        plain = json.dumps(rows.row("typing", 7), separators=(",", ":"))
        lines = (
            f"RDATA typing master 1 {plain}\n".encode() if n % 2 else _stamped()
            for n in range(size)
        )
        self._publisher.sendall(b"".join(self._command(line[:-1]) for line in lines))

    def stop(self) -> None:
        """Stop the server."""
        self._publisher.close()
        self._server.stop()


class RedisPubSub(_Foreign):
    """Redis: every row is a PUBLISH, a turn is one pipeline."""

    name = "redis"
    hello = b"*2\r\n$9\r\nSUBSCRIBE\r\n$5\r\nbench\r\n"
    welcome = b"subscribe"

    def __init__(self) -> None:
        super().__init__(Redis.start())

    @staticmethod
    def _command(row: bytes) -> bytes:
        return b"*3\r\n$7\r\nPUBLISH\r\n$5\r\nbench\r\n$%d\r\n%b\r\n" % (len(row), row)


class ValkeyPubSub(RedisPubSub):
    """Valkey, which speaks as Redis does."""

    name = "valkey"

    def __init__(self) -> None:
        _Foreign.__init__(self, Valkey.start())


class NatsPubSub(_Foreign):
    """NATS core: every row is a PUB, a turn is one write."""

    name = "nats"
    hello = b'CONNECT {"verbose":false}\r\nSUB bench 1\r\nPING\r\n'
    welcome = b"PONG"

    def __init__(self) -> None:
        super().__init__(Nats.start())
        self._publisher.sendall(b'CONNECT {"verbose":false}\r\n')

    @staticmethod
    def _command(row: bytes) -> bytes:
        return b"PUB bench %d\r\n%b\r\n" % (len(row), row)


def _stamped() -> bytes:
    """Return a line of the size of the others that carries the time."""
    row = [*rows.row("receipts", 7)[:4], {"ts": time.perf_counter_ns()}]
    return f"RDATA receipts master 1 {json.dumps(row, separators=(',', ':'))}\n".encode()


def synapse_server() -> Controlled:
    """Return Synapse's server classes in a process of their own."""
    return Controlled("synapse-1.66.0", "synapse_peer.py", python=python_of("1.66.0"))


def tcprepl_server(log: str = "memory", *instance: str) -> Controlled:
    """Return our server, in a process of its own: rows in memory, on disk, or in a database."""
    kind = log.partition(":")[0]
    name = "tcprepl" if log == "memory" else f"tcprepl ({kind})"
    return Controlled(name, "tcprepl_peer.py", log, *instance)


def bare_server() -> Controlled:
    """Return the least that a server of our rows does: check, encode, render, send."""
    return Controlled("bare loop", "bare_peer.py")


def raw_server() -> Controlled:
    """Return the bare loop: ready lines, one send for each socket and turn."""
    return Controlled("raw loop", "raw_peer.py")


class Subscribers:
    """Plain sockets that count what arrives."""

    def __init__(self, system: System, count: int, *, buffer_bytes: int = 2_097_152) -> None:
        self._buffer_bytes = buffer_bytes
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._tails: dict[int, bytes] = {}
        self._kept: dict[int, bytes] = {}
        #: Most bytes read at once: a great buffer costs time of its own.
        self.chunk_bytes = 1_048_576
        #: Whether what arrives is kept for `take`.
        self.keep = False
        #: Rows that each subscriber has received so far.
        self.received: dict[int, int] = {}
        for _ in range(count):
            self._connect(system)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._poll.close()
        for connection in self._sockets.values():
            connection.close()

    def wait_each(self, wanted: int) -> None:
        """Read until every subscriber has *wanted* rows in all.

        It never sleeps: on a virtual machine the waking of a sleeper is dear, and would be
        charged to the system that sends.

        Raises:
            TimeoutError: They did not come; the text says how many are missing.
        """
        waiting = {fd for fd, seen in self.received.items() if seen < wanted}
        deadline = time.monotonic() + WINDOW_TIMEOUT_S
        while waiting:
            arrived = self.read(0)
            for fd in arrived:
                if self.received[fd] >= wanted:
                    waiting.discard(fd)
            if not arrived and time.monotonic() > deadline:
                least = min(self.received.values())
                raise TimeoutError(f"{len(waiting)} subscribers miss rows: {least} of {wanted}")

    def read(self, timeout_s: float) -> list[int]:
        """Read once from every socket that has something, and say which."""
        arrived = []
        for fd, _ in self._poll.poll(timeout_s):
            data = self._sockets[fd].recv(self.chunk_bytes)
            if not data:
                raise ConnectionError(f"a subscriber was closed after {self._tails[fd]!r}")
            if self.keep:
                self._kept[fd] = self._kept.get(fd, b"") + data
            # A mark may lie across two reads: the last bytes are looked at again.
            tail = self._tails[fd]
            self.received[fd] += data.count(MARK)
            if tail:
                self.received[fd] += (tail + data[: len(MARK) - 1]).count(MARK)
            self._tails[fd] = data[-(len(MARK) - 1) :]
            arrived.append(fd)
        return arrived

    def idle(self, seconds: float, *, answer: bool = True) -> None:
        """Read, and *answer* pings, for that long, as a worker with nothing to do does."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for fd, _ in self._poll.poll(left):
                data = self._sockets[fd].recv(self.chunk_bytes)
                if not data:
                    raise ConnectionError(f"a subscriber was closed after {self._tails[fd]!r}")
                if answer and b"PING" in data:
                    said = b"PONG\r\n" if b"PING\r" in data else b"PING 1\n"
                    self._sockets[fd].sendall(said)

    def take(self, fd: int) -> bytes:
        """Return the complete lines kept for *fd*, and keep the rest."""
        lines, end, rest = self._kept[fd].rpartition(b"\n")
        self._kept[fd] = rest
        return lines + end

    def _connect(self, system: System) -> None:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_bytes)
        connection.connect(("127.0.0.1", system.port))
        if system.wrap is not None:
            connection = system.wrap.wrap_socket(connection)
        connection.sendall(system.hello)
        greeting = b""
        while system.welcome not in greeting:
            got = connection.recv(65536)
            if not got:
                raise ConnectionError(f"{system.name} closed after {greeting!r}")
            greeting += got
        connection.setblocking(False)
        fd = connection.fileno()
        self._sockets[fd] = connection
        self._tails[fd] = greeting[-(len(MARK) - 1) :]
        self.received[fd] = greeting.count(MARK)
        self._poll.register(fd, select.EPOLLIN)


def settle(system: System, subscribers: Subscribers) -> int:
    """Publish a little so that everybody is warm; return how many rows each has."""
    system.publish(10, 10)
    subscribers.wait_each(100)
    return 100


def cpu_per_row_us(
    system: System, count: int, *, rows_in_all: int, size: int, turns: int, kind: str = "batch"
) -> float:
    """Return the system's CPU time in us for each row delivered to one of *count* subscribers.

    Args:
        system: What is measured.
        count: How many subscribers there are.
        rows_in_all: About how many rows to deliver, all subscribers together.
        size: Rows published in one turn of the server's reactor.
        turns: Turns in a window; the next window begins when everybody has the last.
        kind: The calls that a turn makes, as in `rows.turns`.
    """
    with Subscribers(system, count) as subscribers:
        seen = settle(system, subscribers)
        windows = max(1, round(rows_in_all / count / (turns * size)))
        before = cpu_ns(system.pid)
        for _ in range(windows):
            system.publish(turns, size, kind)
            seen += turns * size
            subscribers.wait_each(seen)
        used = cpu_ns(system.pid) - before
    return used / 1_000 / (windows * turns * size * count)


def latencies_ms(
    system: System, count: int, *, rate: int, seconds: float, burst: int = 1
) -> list[float]:
    """Return, sorted, how long each delivered row took from its publication to a subscriber.

    Rows come as independent people make them come: with exponential gaps, the same ones for
    every system. A row carries the time at which it was published: where the server is
    Python, that is the call of its publishing function; where it is not, the moment the
    publisher wrote to it.

    Args:
        system: What is measured.
        count: How many subscribers there are.
        rate: Rows published in a second.
        seconds: For how long.
        burst: Rows that are published at once; of more than one, every other one is timed.
    """
    took: list[float] = []
    with Subscribers(system, count) as subscribers:
        settle(system, subscribers)
        subscribers.keep = True
        subscribers.chunk_bytes = 16_384
        total = int(rate * seconds) // burst
        gaps = random.Random(7)  # the same arrivals for every system
        asked = 0
        start = due = time.perf_counter() + 0.05
        missing = owed = total * count * ((burst + 1) // 2)
        deadline = start + seconds + WINDOW_TIMEOUT_S
        while missing:
            if asked < total and time.perf_counter() >= due:
                asked += 1
                due += gaps.expovariate(rate / burst)
                system.publish_stamped(burst)
            for fd in subscribers.read(0):
                now = time.perf_counter_ns()
                stamps = STAMP.findall(subscribers.take(fd))
                took += [(now - int(stamp)) / 1e6 for stamp in stamps]
                missing -= len(stamps)
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{missing} of {owed} rows did not arrive")
    took.sort()
    return took


def bytes_per_idle_connection(system: System, count: int, *, idle_s: float = 0.0) -> float:
    """Return by how many bytes of RAM the process grows for each subscribed, idle connection.

    Args:
        system: What is measured.
        count: How many connections there are.
        idle_s: How long they stay, and answer whatever pings them, before it is measured.
    """
    with Subscribers(system, 50) as subscribers:
        subscribers.idle(min(idle_s, 1.0))  # whatever is made once has been made now
    before = resident_bytes(system.pid)
    with Subscribers(system, count) as subscribers:
        subscribers.idle(idle_s)
        return (resident_bytes(system.pid) - before) / count


class Worker:
    """A worker under test: it connects to us, and we feed it lines.

    Args:
        name: How the tables call it.
        python: Its interpreter.
        script: Its script in ``peers/``, and what it is told besides.
        wanted: After how many rows it says DONE.
    """

    def __init__(self, name: str, script: str, wanted: int, *, python: Path) -> None:
        self.name = name
        self._directory = tempfile.TemporaryDirectory(prefix="tcprepl-bench-")
        where = Path(self._directory.name)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            listener.settimeout(WINDOW_TIMEOUT_S)
            port = str(listener.getsockname()[1])
            path, *words = script.split()
            command = [python, PEERS / path, "worker", port, str(wanted), *words]
            self._child = Child(command, where / "log", cwd=where)
            self._connection, _ = listener.accept()
        self._handshake()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.close()
        self._child.stop()
        self._directory.cleanup()

    def cpu_us_for(self, payload: bytes) -> float:
        """Feed *payload* and return the CPU time in us until the worker has handled it."""
        before = cpu_ns(self._child.pid)
        self._connection.sendall(payload)
        self._child.wait_ready("DONE", lambda: "DONE" in self._child.output())
        return (cpu_ns(self._child.pid) - before) / 1_000

    def _handshake(self) -> None:
        self._connection.sendall(b"SERVER bench.example.com\nPING 1\n")
        asked = b""
        while b"REPLICATE" not in asked:
            got = self._connection.recv(65536)
            if not got:
                raise ConnectionError(f"{self.name} closed:\n{self._child.output()[-2000:]}")
            asked += got
        for stream in rows.STREAMS:
            self._connection.sendall(f"POSITION {stream} master 0 0\n".encode())


def percentile(ordered: list[float], part: float) -> float:
    """Return the *part* quantile of sorted figures."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]
