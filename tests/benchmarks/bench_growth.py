"""Growth of a server: what is there, but has nothing to do with it, must not make a row dear.

Each case is measured with little of it (friendly) and with a lot (unfriendly), in a whole server:
different subscriptions, streams, idle connections.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

from tests.benchmarks.driver import Subscribers
from tests.benchmarks.measure import (
    FRIENDLY,
    UNFRIENDLY,
    Limit,
    Line,
    Result,
    Target,
    cpu_ns,
    raise_open_files,
)
from tests.benchmarks.whole import Whole

BENCH = "growth"
ROW = Line(BENCH, "a row, beside so many other subscriptions", "us CPU")
CONNECT = Line(BENCH, "a connect, for each pair of stream and instance", "us CPU a pair")
DRAIN = Line(BENCH, "a row to each of 20 slow readers, beside so many pairs", "us CPU")
IDLE = Line(BENCH, "idle connections", "ms CPU a s")
STALL = Line(BENCH, "idle connections, longest stall of the reactor", "ms CPU")
SUBSCRIPTIONS = {FRIENDLY: 2, UNFRIENDLY: 3_000}
PAIRS = {FRIENDLY: 100, UNFRIENDLY: 10_000}
CONNECTIONS = {FRIENDLY: 100, UNFRIENDLY: 10_000}
REPETITIONS = 3
#: How long idle connections are watched: two rounds of their pings, which come every ten seconds.
IDLE_S = 20.0
#: Rows that slow readers are behind.
SLOW_ROWS = 20_000
#: What makes a socket full soon.
_SMALL_BUFFER = 8_192

TARGETS = (
    Limit(CONNECT.bench, CONNECT.case, 1.5),
    Limit(IDLE.bench, IDLE.case, 25.0),
    Limit(STALL.bench, STALL.case, 50.0),
    # With many it costs at most twice, and one and a half times, what it costs with few.
    Target(ROW.bench, ROW.case, "tcprepl, few", 0.5, workload=UNFRIENDLY),
    Target(DRAIN.bench, DRAIN.case, "tcprepl, few", 1 / 1.5, workload=UNFRIENDLY),
)


def run(scale: float = 1.0, idle_s: float = IDLE_S) -> Iterator[Result]:
    """Measure everything, each server fresh; *scale* makes what is many fewer."""
    raise_open_files(20_000)
    for line, sizes, measure in (
        (ROW, SUBSCRIPTIONS, a_row),
        (CONNECT, PAIRS, a_connect),
        (DRAIN, PAIRS, a_drain),
    ):
        yield from _compare(line, sizes, measure, scale)
    for workload, count in _scaled(CONNECTIONS, scale).items():
        spent, stalls = idle(count, idle_s)
        yield IDLE.result("tcprepl", workload, [spent], f"{count:,}")
        yield STALL.result("tcprepl", workload, [stalls], f"{count:,}")


def _scaled(sizes: dict[str, int], scale: float) -> dict[str, int]:
    return {
        kind: max(2, round(n * scale)) if kind == UNFRIENDLY else n for kind, n in sizes.items()
    }


def _compare(
    line: Line, sizes: dict[str, int], measure: Callable[[int], list[float]], scale: float
) -> Iterator[Result]:
    few: list[float] = []
    for workload, count in _scaled(sizes, scale).items():
        figures = measure(count)
        yield line.result("tcprepl", workload, figures, f"{count:,}")
        few = few or figures
    yield line.result("tcprepl, few", UNFRIENDLY, few, "the friendly figure, to compare with")


def a_row(subscriptions: int) -> list[float]:
    """Return the CPU time in us of a row that two readers want, and the others do not."""
    figures = []
    with Whole({"replication": {"max_connections": 20_000}}) as server, contextlib.ExitStack() as s:
        server.ask("pairs", stream="typing", count=subscriptions)
        for number in range(subscriptions):
            wanted = number % 2 if number < 2 else number
            s.enter_context(_reader(server, b"REPLICATE typing w%d NOW\n" % wanted))
        server.ask("rows", stream="typing", instance="w0", turns=100)
        for _ in range(REPETITIONS):
            spent = server.ask("rows", stream="typing", instance="w0", turns=1_000)
            figures.append(spent * 1e6 / 1_000)
    return figures


def a_connect(pairs: int) -> list[float]:
    """Return the CPU time in us for each pair that a new reader is told the position of."""
    figures = []
    with Whole() as server:
        server.ask("pairs", stream="events", count=pairs)
        for _ in range(REPETITIONS):
            before = cpu_ns(server.pid)
            for _ in range(10):
                with _reader(server, b"REPLICATE\n") as reader:
                    _read_until(reader, b"POSITION events w", pairs)
            figures.append((cpu_ns(server.pid) - before) / 1_000 / 10 / pairs)
    return figures


def _read_until(reader: socket.socket, mark: bytes, count: int) -> None:
    """Read until *mark* has come *count* times."""
    rest = b""
    while count > 0:
        data = reader.recv(1_048_576)
        if not data:
            raise ConnectionError("the server closed")
        lines, _, rest = (rest + data).rpartition(b"\n")
        count -= lines.count(mark)


def a_drain(pairs: int) -> list[float]:
    """Return the CPU time in us of each row to readers that were slow, and now are not."""
    figures = []
    with Whole() as server:
        server.ask("pairs", stream="events", count=pairs)
        for _ in range(REPETITIONS):
            with Subscribers(server, 20, buffer_bytes=_SMALL_BUFFER) as slow:
                slow.received.update(dict.fromkeys(slow.received, 0))
                before = cpu_ns(server.pid)
                server.publish(SLOW_ROWS // 100, 100)
                slow.wait_each(SLOW_ROWS)
                figures.append((cpu_ns(server.pid) - before) / 1_000 / SLOW_ROWS / 20)
    return figures


def idle(count: int, seconds: float) -> tuple[float, float]:
    """Return ms of CPU a second, and the longest stall in ms, with so many idle readers."""
    settings = {"replication": {"max_connections": 20_000}}
    with Whole(settings) as server, Subscribers(server, count) as subscribers:
        subscribers.idle(2.0, answer=False)
        before = cpu_ns(server.pid)
        subscribers.idle(seconds, answer=False)
        spent = (cpu_ns(server.pid) - before) / 1e6 / seconds
        server.ask("watch")
        subscribers.idle(seconds / 2, answer=False)
        return spent, float(server.ask("watched")["cpu_ms"])


@contextlib.contextmanager
def _reader(server: Whole, hello: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), 60.0) as reader:
        reader.sendall(b"NAME bench\n" + hello)
        yield reader
