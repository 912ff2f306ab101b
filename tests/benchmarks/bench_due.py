"""What is due together: the longest time for which it holds the reactor.

Friendly: a thousand users; unfriendly: a hundred thousand. They stop typing in the same moment,
come online, and their process ends with all their syncs. And trimming: what a publish takes while
rows that are held for long go away, beside what it takes when none do, and whether the file
becomes smaller. ``ROWS`` is ten million where ``TCPREPL_BENCH_ROWS`` says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from tests.benchmarks.driver import percentile
from tests.benchmarks.measure import FRIENDLY, UNFRIENDLY, Limit, Line, Result, Target
from tests.benchmarks.whole import Whole

BENCH = "due together"
MS = "ms CPU"
TYPING = Line(BENCH, "users stop typing: longest stall", MS)
ONLINE = Line(BENCH, "users come online: longest stall", MS)
OFFLINE = Line(BENCH, "a process ends with the syncs of users: longest stall", MS)
TRIM_STALL = Line(BENCH, "rows are trimmed: longest stall", MS)
PUBLISH = Line(BENCH, "a publish while rows are trimmed, p99", "ms")
MEDIAN = Line(BENCH, "a publish while rows are trimmed, median", "ms")
FILE = Line(BENCH, "file after rows were trimmed, of what it was", "part")
USERS = {FRIENDLY: 1_000, UNFRIENDLY: 100_000}
ROWS = int(os.environ.get("TCPREPL_BENCH_ROWS", "1000000"))
HELD = {FRIENDLY: ROWS // 20, UNFRIENDLY: ROWS}
#: How fast rows are published while others are trimmed.
RATE = 100.0
#: For how long they type: all of them have begun long before the first is due.
TYPING_MS = 40_000
#: Until each user has been looked at by the timers and the flush of presence.
FLUSH_S = 70.0
BEFORE = "tcprepl, nothing trimmed"

TARGETS = (
    *(Limit(line.bench, line.case, 25.0) for line in (TYPING, ONLINE, OFFLINE, TRIM_STALL)),
    Target(PUBLISH.bench, PUBLISH.case, BEFORE, 0.2, workload=UNFRIENDLY),
    Limit(FILE.bench, FILE.case, 0.2),
)


def run(scale: float = 1.0, seconds: float = 5.0) -> Iterator[Result]:
    """Measure everything, each in a fresh server; *scale* makes what is many fewer."""
    for workload, count in USERS.items():
        users = max(10, round(count * scale)) if workload == UNFRIENDLY else count
        yield from _users(workload, users, FLUSH_S if users > USERS[FRIENDLY] else FLUSH_S / 7)
    for workload, held in HELD.items():
        yield from _trim(workload, max(10_000, round(held * scale)), seconds)


def _users(workload: str, users: int, flush_s: float) -> Iterator[Result]:
    words = f"{users:,} users"
    with Whole() as server:
        server.ask("typing", users=users, timeout_ms=TYPING_MS)
        server.ask("watch")
        deadline = time.monotonic() + 120
        while server.ask("typing_users"):
            if time.monotonic() > deadline:
                raise TimeoutError("users still type")
            server.ask("wait", seconds=0.5)
        yield TYPING.result("tcprepl", workload, [server.ask("watched")["cpu_ms"]], words)
    with Whole() as server:
        server.ask("watch")
        server.ask("presence", users=users)
        # Until each has been looked at by the timers and the flush.
        server.ask("wait", seconds=flush_s)
        yield ONLINE.result("tcprepl", workload, [server.ask("watched")["cpu_ms"]], words)
    with Whole() as server:
        server.ask("syncs", users=users)
        server.ask("watch")
        server.ask("syncs_end")
        server.ask("wait", seconds=flush_s)
        yield OFFLINE.result("tcprepl", workload, [server.ask("watched")["cpu_ms"]], words)


def _trim(workload: str, held: int, seconds: float) -> Iterator[Result]:
    words = f"{held:,} rows of a stream"
    with Whole({"streams": {"retention": {"rows": 2 * ROWS + 1_000_000}}}) as server:
        server.ask("fill", rows=held, size=100, in_flight=32)
        server.ask("flush")
        size = _file_bytes(server)
        before = server.ask("latencies", stream="events", seconds=seconds, rate=RATE)
        server.ask("watch")
        server.ask("trim", stream="receipts")
        while_trimmed = server.ask("latencies", stream="events", seconds=seconds, rate=RATE)
        stall = server.ask("watched")["cpu_ms"]
        deadline = time.monotonic() + 120
        smallest = _file_bytes(server)
        stagnant = 0
        while smallest > size / 10 and stagnant < 10 and time.monotonic() < deadline:
            server.ask("latencies", stream="events", seconds=min(1.0, seconds), rate=RATE)
            now = _file_bytes(server)
            stagnant = stagnant + 1 if now >= smallest else 0
            smallest = min(smallest, now)
        yield TRIM_STALL.result("tcprepl", workload, [stall], words)
        for line, part in ((MEDIAN, 0.5), (PUBLISH, 0.99)):
            yield line.result("tcprepl", workload, [percentile(while_trimmed, part)], words)
            yield line.result(BEFORE, workload, [percentile(before, part)], words)
        yield FILE.result("tcprepl", workload, [smallest / size], words)


def _file_bytes(server: Whole) -> int:
    return sum(path.stat().st_size for path in server.data.glob("log.sqlite3*"))
