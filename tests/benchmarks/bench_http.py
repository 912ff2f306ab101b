"""Publishing over HTTP: the server's CPU time for a request of one row, and of a hundred.

Friendly: one connection, one request on its way at a time, rows kept in memory. Unfriendly: 16
connections, each with a request on its way, and rows that are on disk before they are answered.
Beside it what a program would use instead: XADD of Valkey and Redis (in memory, a pipeline of as
many commands as rows), and JetStream (a file, acknowledged); and twisted.web alone, which takes
the same requests and does nothing with them.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol, Self

from tests.benchmarks import rows
from tests.benchmarks.driver import PEERS
from tests.benchmarks.measure import (
    FRIENDLY,
    UNFRIENDLY,
    Limit,
    Line,
    Result,
    cpu_ns,
    paired,
    raise_open_files,
)
from tests.benchmarks.whole import Whole
from tests.interop.environments import SetupError
from tests.interop.processes import Child
from tests.interop.servers import Nats, Redis, Server, Valkey
from tests.ports import free_port

BENCH = "publish over HTTP"
UNIT = "us CPU a request"
SIZES = (1, 100)
LINES = {size: Line(BENCH, f"{size} row{'s' if size > 1 else ''}", UNIT) for size in SIZES}
DISK_ALONE = Line(BENCH, "1 row, disk, 1 connection", UNIT)
ANEW = Line(BENCH, "1 row, memory, a connection for each request", UNIT)
BOTH = {
    FRIENDLY: ("memory", 1, "memory, 1 connection"),
    UNFRIENDLY: ("disk", 16, "disk, 16 connections, each with a request on its way"),
}
BARE = "twisted.web, bare"
REQUESTS = 3_000
REPETITIONS = 5
#: Bytes that a client reads at once.
_CHUNK = 65_536

TARGETS = tuple(
    Limit(BENCH, LINES[size].case, most, workload)
    for size, most in ((1, 150.0), (100, 300.0))
    for workload in BOTH
)


class Asked(Protocol):
    """A server of some kind, and how it is asked."""

    @property
    def pid(self) -> int:
        """The process whose CPU time counts."""
        ...

    @property
    def port(self) -> int:
        """Where it is asked."""
        ...

    def hello(self, connection: int) -> bytes:
        """Return what is said first on connection number *connection*."""
        ...

    def request(self, kind: str, size: int, connection: int) -> bytes:
        """Return what publishes *size* rows into a stream that is kept as *kind* says."""
        ...

    def answers(self, data: bytes, size: int) -> float:
        """Return how many requests *data*, some of the answers' bytes, answers."""
        ...


class Posts:
    """Asks by POST, as our server is asked."""

    def hello(self, connection: int) -> bytes:
        """Return nothing."""
        return b""

    def request(self, kind: str, size: int, connection: int) -> bytes:
        """Return a POST."""
        stream = "typing" if kind == "memory" else "receipts"
        some = [rows.row(stream, number) for number in range(size)]
        body = json.dumps(some, separators=(",", ":")).encode()
        head = (
            f"POST /_tcprepl/v1/streams/{stream}/rows HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def answers(self, data: bytes, size: int) -> float:
        """Count status lines; they come whole, as each answer is one small packet."""
        assert data.count(b"HTTP/1.1 ") == data.count(b"HTTP/1.1 200"), data
        return float(data.count(b"HTTP/1.1 200"))


class Ours(Posts):
    """``tcprepl serve``, whole."""

    def __init__(self) -> None:
        self.whole = Whole()
        self.stop = self.whole.stop

    @property
    def pid(self) -> int:
        """The process whose CPU time counts."""
        return self.whole.pid

    @property
    def port(self) -> int:
        """Where it speaks HTTP."""
        return self.whole.http_port


class Bare(Posts):
    """twisted.web, which takes each request and does nothing with it."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="tcprepl-bench-")
        where = Path(self._directory.name)
        self.port = free_port()
        command = [sys.executable, PEERS / "web_peer.py", str(self.port)]
        self._child = Child(command, where / "log", cwd=where)
        self._child.wait_ready("READY", lambda: "READY" in self._child.output())

    @property
    def pid(self) -> int:
        """The process whose CPU time counts."""
        return self._child.pid

    def stop(self) -> None:
        """Stop the process."""
        self._child.stop()
        self._directory.cleanup()


class Streams:
    """XADD of Valkey or Redis."""

    def __init__(self, server: Server) -> None:
        self.pid, self.port, self.stop = server.pid, server.port, server.stop

    def hello(self, connection: int) -> bytes:
        """Return nothing."""
        return b""

    def request(self, kind: str, size: int, connection: int) -> bytes:
        """Return a pipeline of XADD."""
        made = []
        for number in range(size):
            row = json.dumps(rows.row("receipts", number), separators=(",", ":")).encode()
            words = (b"XADD", b"bench", b"MAXLEN", b"~", b"100000", b"*", b"row", row)
            made.append(b"*%d\r\n" % len(words))
            made += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
        return b"".join(made)

    def answers(self, data: bytes, size: int) -> float:
        """Count the ids, of which each row gets one."""
        assert b"-ERR" not in data, data
        return data.count(b"$") / size


class JetStream:
    """JetStream: each row is published with an inbox, and acknowledged there."""

    def __init__(self) -> None:
        server = Nats.start(jetstream=True)
        self.pid, self.port, self.stop = server.pid, server.port, server.stop
        config = json.dumps({"name": "b", "subjects": ["row.*"], "max_msgs": 100_000}).encode()
        with socket.create_connection(("127.0.0.1", self.port), 10.0) as connection:
            connection.sendall(b"CONNECT {}\r\nSUB inbox 1\r\n")
            topic = b"$JS.API.STREAM.CREATE.b"
            connection.sendall(b"PUB %b inbox %d\r\n%b\r\n" % (topic, len(config), config))
            seen = b""
            while b"max_msgs" not in seen:
                seen += connection.recv(_CHUNK)

    def hello(self, connection: int) -> bytes:
        """Return the subscription of an inbox."""
        return b'CONNECT {"verbose":false}\r\nSUB inbox%d 1\r\n' % connection

    def request(self, kind: str, size: int, connection: int) -> bytes:
        """Return as many PUB as there are rows."""
        made = []
        for number in range(size):
            row = json.dumps(rows.row("receipts", number), separators=(",", ":")).encode()
            made.append(b"PUB row.1 inbox%d %d\r\n%b\r\n" % (connection, len(row), row))
        return b"".join(made)

    def answers(self, data: bytes, size: int) -> float:
        """Count the acknowledgements."""
        return data.count(b'"seq"') / size


SYSTEMS: tuple[tuple[str, Callable[[], Asked]], ...] = (
    ("tcprepl", Ours),
    (BARE, Bare),
    ("redis XADD", lambda: Streams(Redis.start())),
    ("valkey XADD", lambda: Streams(Valkey.start())),
    ("nats JetStream", JetStream),
)


def run(requests: int = REQUESTS, repetitions: int = REPETITIONS) -> Iterator[Result]:
    """Measure every system in turn."""
    raise_open_files()
    with contextlib.ExitStack() as stack:
        running: dict[str, Asked] = {}
        for name, start in SYSTEMS:
            try:
                running[name] = start()
            except SetupError as error:
                yield from (line.absent(name, error) for line in LINES.values())
            else:
                stack.callback(running[name].stop)  # type: ignore[attr-defined]
        for size, line in LINES.items():
            count = max(1, requests // (1 if size == 1 else 5))
            for workload, (kind, connections, words) in BOTH.items():
                measurements = {
                    name: partial(cpu_us, system, kind, size, connections, count)
                    for name, system in running.items()
                    if name in ("tcprepl", BARE) or (workload == UNFRIENDLY) == ("Jet" in name)
                }
                for name, taken in paired(repetitions, measurements).items():
                    yield line.result(name, workload, taken, words)
        ours = running["tcprepl"]
        few = max(1, requests // 10)
        waiting = {
            DISK_ALONE: partial(cpu_us, ours, "disk", 1, 1, few),
            ANEW: partial(cpu_us, ours, "memory", 1, 1, few, anew=True),
        }
        for line, taken in paired(repetitions, waiting).items():
            yield line.result("tcprepl", UNFRIENDLY, taken)


def cpu_us(
    system: Asked, kind: str, size: int, connections: int, count: int, *, anew: bool = False
) -> float:
    """Return the CPU time in us for each of *count* requests.

    Args:
        system: Who is asked.
        kind: Where the rows are kept.
        size: Rows in a request.
        connections: How many connections have a request on its way.
        count: How many requests.
        anew: Whether each request has a connection of its own.
    """
    if anew:
        before = cpu_ns(system.pid)
        for _ in range(count):
            with Connections(system, kind, size, 1) as asking:
                asking.ask(1)
        return (cpu_ns(system.pid) - before) / 1_000 / count
    with Connections(system, kind, size, connections) as asking:
        asking.ask(connections)  # warm
        before = cpu_ns(system.pid)
        asking.ask(count)
        return (cpu_ns(system.pid) - before) / 1_000 / count


class Connections:
    """Connections to a server, each with one request on its way."""

    def __init__(self, system: Asked, kind: str, size: int, count: int) -> None:
        self._system = system
        self._size = size
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._requests: dict[int, bytes] = {}
        for number in range(count):
            connection = socket.create_connection(("127.0.0.1", system.port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(system.hello(number))
            self._sockets[connection.fileno()] = connection
            self._requests[connection.fileno()] = system.request(kind, size, number)
            self._poll.register(connection, select.EPOLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._poll.close()
        for connection in self._sockets.values():
            connection.close()

    def ask(self, count: int) -> None:
        """Have *count* requests answered."""
        owed = dict.fromkeys(self._sockets, 0.0)
        left = count
        for fd in self._sockets:
            left -= self._next(fd, owed, left)
        while any(amount > 1e-6 for amount in owed.values()):
            ready = self._poll.poll(30.0)
            if not ready:
                raise TimeoutError(f"{sum(owed.values()):g} requests were not answered")
            for fd, _ in ready:
                data = self._sockets[fd].recv(_CHUNK)
                if not data:
                    raise ConnectionError("the server closed")
                owed[fd] -= self._system.answers(data, self._size)
                if owed[fd] <= 1e-6:
                    left -= self._next(fd, owed, left)

    def _next(self, fd: int, owed: dict[int, float], left: int) -> int:
        if left <= 0:
            return 0
        self._sockets[fd].sendall(self._requests[fd])
        owed[fd] += 1
        return 1
