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
from tests.interop.servers import Nats, Redis
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
    """

    name: str
    port: int
    hello: bytes
    welcome: bytes

    @property
    @abstractmethod
    def pid(self) -> int:
        """The process whose CPU time counts."""

    @abstractmethod
    def publish(self, turns: int, size: int) -> None:
        """Have *turns* times *size* rows published."""

    @abstractmethod
    def publish_stamped(self) -> None:
        """Have one row published that carries the time of its publication."""

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

    def publish(self, turns: int, size: int) -> None:
        """Have *turns* times *size* rows published."""
        self._control.sendall(b"%d %d\n" % (turns, size))

    def publish_stamped(self) -> None:
        """Have one row published that carries the time of its publication."""
        self._control.sendall(b"1 0\n")

    def stop(self) -> None:
        """Stop the process."""
        self._control.close()
        self._child.stop()
        self._directory.cleanup()


class RedisPubSub(System):
    """Redis: every row is a PUBLISH, a window is one pipeline."""

    name = "redis"
    welcome = b"subscribe"

    def __init__(self) -> None:
        self._server = Redis.start()
        self.port = self._server.port
        self.hello = b"*2\r\n$9\r\nSUBSCRIBE\r\n$5\r\nbench\r\n"
        self._publisher = socket.create_connection(("127.0.0.1", self.port))
        self._publisher.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._commands = [self._command(line) for line in rows.lines(2_000)]
        self._next = 0

    @property
    def pid(self) -> int:
        """The process whose CPU time counts."""
        return self._server.pid

    def publish(self, turns: int, size: int) -> None:
        """Publish, and drop the answers to what was published before."""
        with contextlib.suppress(BlockingIOError):
            while self._publisher.recv(65536, socket.MSG_DONTWAIT):
                pass
        for _ in range(turns):
            start = self._next % len(self._commands)
            some = self._commands[start : start + size]
            self._next += len(some)
            self._publisher.sendall(b"".join(some))

    def publish_stamped(self) -> None:
        """Publish one row that carries the time."""
        self._publisher.sendall(self._command(_stamped()))

    def stop(self) -> None:
        """Stop the server."""
        self._publisher.close()
        self._server.stop()

    @staticmethod
    def _command(line: bytes) -> bytes:
        row = line[:-1]
        return b"*3\r\n$7\r\nPUBLISH\r\n$5\r\nbench\r\n$%d\r\n%b\r\n" % (len(row), row)


class NatsPubSub(System):
    """NATS core: every row is a PUB, a window is one write."""

    name = "nats"
    welcome = b"PONG"

    def __init__(self) -> None:
        self._server = Nats.start()
        self.port = self._server.port
        self.hello = b'CONNECT {"verbose":false}\r\nSUB bench 1\r\nPING\r\n'
        self._publisher = socket.create_connection(("127.0.0.1", self.port))
        self._publisher.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._publisher.sendall(b'CONNECT {"verbose":false}\r\n')
        self._commands = [
            b"PUB bench %d\r\n%b\r\n" % (len(line) - 1, line[:-1]) for line in rows.lines(2_000)
        ]
        self._next = 0

    @property
    def pid(self) -> int:
        """The process whose CPU time counts."""
        return self._server.pid

    def publish(self, turns: int, size: int) -> None:
        """Publish a window."""
        for _ in range(turns):
            start = self._next % len(self._commands)
            some = self._commands[start : start + size]
            self._next += len(some)
            self._publisher.sendall(b"".join(some))

    def publish_stamped(self) -> None:
        """Publish one row that carries the time."""
        line = _stamped()
        self._publisher.sendall(b"PUB bench %d\r\n%b\r\n" % (len(line) - 1, line[:-1]))

    def stop(self) -> None:
        """Stop the server."""
        self._publisher.close()
        self._server.stop()


def _stamped() -> bytes:
    """Return a line of the size of the others that carries the time."""
    row = [*rows.row("receipts", 7)[:4], {"ts": time.perf_counter_ns()}]
    return f"RDATA receipts master 1 {json.dumps(row, separators=(',', ':'))}\n".encode()


def synapse_server() -> Controlled:
    """Return Synapse's server classes in a process of their own."""
    return Controlled("synapse-1.66.0", "synapse_peer.py", python=python_of("1.66.0"))


def tcprepl_server(log: str = "memory") -> Controlled:
    """Return our server, in a process of its own, with the rows in memory or on disk."""
    name = "tcprepl" if log == "memory" else f"tcprepl ({log})"
    return Controlled(name, "tcprepl_peer.py", log)


def raw_server() -> Controlled:
    """Return the bare loop: ready lines, one send for each socket and turn."""
    return Controlled("raw loop", "raw_peer.py")


class Subscribers:
    """Plain sockets that count what arrives."""

    def __init__(self, system: System, count: int) -> None:
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

    def take(self, fd: int) -> bytes:
        """Return the complete lines kept for *fd*, and keep the rest."""
        lines, end, rest = self._kept[fd].rpartition(b"\n")
        self._kept[fd] = rest
        return lines + end

    def _connect(self, system: System) -> None:
        connection = socket.create_connection(("127.0.0.1", system.port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_097_152)
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


def cpu_per_row_us(system: System, count: int, *, rows_in_all: int, size: int, turns: int) -> float:
    """Return the system's CPU time in us for each row delivered to one of *count* subscribers.

    Args:
        system: What is measured.
        count: How many subscribers there are.
        rows_in_all: About how many rows to deliver, all subscribers together.
        size: Rows published in one turn of the server's reactor.
        turns: Turns in a window; the next window begins when everybody has the last.
    """
    with Subscribers(system, count) as subscribers:
        seen = settle(system, subscribers)
        windows = max(1, round(rows_in_all / count / (turns * size)))
        before = cpu_ns(system.pid)
        for _ in range(windows):
            system.publish(turns, size)
            seen += turns * size
            subscribers.wait_each(seen)
        used = cpu_ns(system.pid) - before
    return used / 1_000 / (windows * turns * size * count)


def latencies_ms(system: System, count: int, *, rate: int, seconds: float) -> list[float]:
    """Return, sorted, how long each delivered row took from its publication to a subscriber.

    Rows come as independent people make them come: with exponential gaps, the same ones for
    every system. A row carries the time at which it was published: where the server is
    Python, that is the call of its publishing function; where it is not, the moment the
    publisher wrote to it.
    """
    took: list[float] = []
    with Subscribers(system, count) as subscribers:
        settle(system, subscribers)
        subscribers.keep = True
        subscribers.chunk_bytes = 16_384
        total = int(rate * seconds)
        gaps = random.Random(7)  # the same arrivals for every system
        asked = 0
        start = due = time.perf_counter() + 0.05
        missing = total * count
        deadline = start + seconds + WINDOW_TIMEOUT_S
        while missing:
            if asked < total and time.perf_counter() >= due:
                asked += 1
                due += gaps.expovariate(rate)
                system.publish_stamped()
            for fd in subscribers.read(0):
                now = time.perf_counter_ns()
                stamps = STAMP.findall(subscribers.take(fd))
                took += [(now - int(stamp)) / 1e6 for stamp in stamps]
                missing -= len(stamps)
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{missing} of {total * count} rows did not arrive")
    took.sort()
    return took


def bytes_per_idle_connection(system: System, count: int) -> float:
    """Return by how many bytes of RAM the process grows for each subscribed, idle connection."""
    with Subscribers(system, 50):
        pass  # whatever is made once has been made now
    before = resident_bytes(system.pid)
    with Subscribers(system, count):
        return (resident_bytes(system.pid) - before) / count


class Worker:
    """A worker under test: it connects to us, and we feed it lines.

    Args:
        name: How the tables call it.
        python: Its interpreter.
        script: Its script in ``peers/``.
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
            command = [python, PEERS / script, "worker", port, str(wanted)]
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
