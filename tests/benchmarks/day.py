"""A day of Synapse's life: ``python -m tests.benchmarks.day [--minutes 120]``: a table of the bus.

A ``tcprepl bus`` with a log on disk, a relay of it, and the processes of one homeserver as far as
their Redis sees them: two connections each, with AUTH, pipelined PUBLISH and a PING every 30 s, and
positions whenever somebody says REPLICATE. 40 events a second through two writers, with the
receipts, typing, presence, to-device messages, cache invalidations and other lines that come with
them. One process reads nothing for four minutes of five, one loses its subscriber again and again
and begins anew now and then. Beside them: netcat at the bus and at the relay, long polls, somebody
who watches the page, a scraper of the metrics.

Every minute a line: what both servers hold, how long an event took to a subscriber, how far the
worst one is behind, gaps. The exit code is 1 when memory grew by more than 0.05 MiB a minute or
descriptors by more than a handful, where a row came twice, late or never, and after a gap.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import selectors
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tcprepl.replication.redis.resp import RespReader, encode
from tests.benchmarks import rows
from tests.benchmarks.soak import DESCRIPTORS, GROWTH_MIB, Account
from tests.harness import Running, start
from tests.ports import free_port

#: Events in a second.
RATE = 40
NAME = "example.com"
CHANNEL = NAME.encode()
PING_S = 30.0
#: For how long the slow process reads nothing, and how often that begins, in seconds.
ASLEEP_S, SLEEPS_S = 240.0, 300.0
#: How often the unlucky one loses its subscriber, and every how many times all of it.
CUT_S, RESTARTS = 170.0, 4
#: After how long it is back: a subscriber of Synapse's; a process that begins anew.
BACK_S, ANEW_S = 1.0, 12.0

#: Who writes what, and how many rows come with an event. Writers of one stream share its tokens.
WRITERS = {
    "events": ("ew1", "ew2"),
    "caches": ("ew1", "ew2", "main"),
    "receipts": ("ew2",),
    "presence": ("ew1",),
    "typing": ("tw",),
    "to_device": ("tw",),
    "device_lists": ("main",),
    "account_data": ("main",),
}
PER_EVENT = {
    "caches": 0.5,
    "receipts": 1.0,
    "presence": 0.5,
    "typing": 0.5,
    "to_device": 0.4,
    "device_lists": 0.05,
    "account_data": 0.05,
}
PROCESSES = ("main", "ew1", "ew2", "tw", "fed1", "slow", "unlucky")


class Sockets:
    """Connections that are read when something comes."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def open(self, port: int, taken: Callable[[bytes], object], *, slow: bool = False) -> Any:
        """Connect; *taken* is called with what comes."""
        connection = socket.socket()
        if slow:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.settimeout(30.0)
        connection.connect(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.read(connection, taken)
        return connection

    def read(self, connection: socket.socket, taken: Callable[[bytes], object]) -> None:
        """Read *connection* from now on."""
        self._selector.register(connection, selectors.EVENT_READ, taken)

    def leave(self, connection: socket.socket) -> None:
        """Read it no longer."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)

    def until(self, moment: float) -> None:
        """Read what comes until *moment*."""
        while True:
            wait = moment - time.monotonic()
            for key, _ in self._selector.select(max(0.0, wait)):
                assert isinstance(key.fileobj, socket.socket)
                data = key.fileobj.recv(1_048_576)
                if not data:
                    raise RuntimeError(f"the server closed a connection: {key.data}")
                key.data(data)
            if wait <= 0:
                return

    def close(self) -> None:
        """Let go of all."""
        for key in tuple((self._selector.get_map() or {}).values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()


class Process:
    """One process of a homeserver, as its Redis sees it.

    Attributes:
        heard: Rows that came on the present subscription.
        due: How many should have come.
        fetches: Positions that would have made it ask its database.
        wrong: Rows that came twice, or late.
    """

    def __init__(self, day: Day, name: str) -> None:
        self.name = name
        self.heard = self.due = self.fetches = self.wrong = 0
        self.subscription: Any = None
        self._day = day
        self._at: dict[tuple[bytes, bytes], int] = {}
        self._connected: set[tuple[bytes, bytes]] = set()
        self._reader = RespReader(CHANNEL)
        self._own = [stream for stream, writers in WRITERS.items() if name in writers]
        self._out: Any = None
        self._unanswered: deque[float] = deque()
        self.connect()

    def connect(self) -> None:
        """Make the outbound connection."""
        reader = RespReader()
        self._unanswered.clear()

        def answered(data: bytes) -> None:
            for reply in reader.feed(data)[1]:
                if isinstance(reply, Exception):
                    raise reply
                self._unanswered.popleft()

        self._out = self._day.sockets.open(self._day.port, answered)
        self.say("AUTH", self.name, "any")

    def subscribe(self) -> None:
        """Make the subscriber's connection."""
        self._reader = RespReader(CHANNEL)
        self.heard = self.due = 0
        slow = self.name == "slow"
        self.subscription = self._day.sockets.open(self._day.port, self._pushed, slow=slow)
        channels = [CHANNEL] if self.name != "main" else [CHANNEL + b"/USER_IP", CHANNEL]
        login = encode(b"AUTH", self.name.encode(), b"any")
        self.subscription.sendall(login + encode(b"SUBSCRIBE", *channels))

    def cut(self) -> None:
        """Lose the subscriber's connection."""
        self._day.sockets.leave(self.subscription)
        self.subscription.close()
        self.subscription = None

    def end(self) -> None:
        """Lose the other one as well, and everything that is known."""
        self._day.sockets.leave(self._out)
        self._out.close()
        self._out = None
        self._at.clear()

    def say(self, *words: str | bytes) -> None:
        """Send a request."""
        self._unanswered.append(time.monotonic())
        self._out.sendall(encode(*(w.encode() if isinstance(w, str) else w for w in words)))

    def publish(self, line: str) -> None:
        """Publish a line for everybody."""
        self.say(b"PUBLISH", CHANNEL, line)

    def ping(self) -> None:
        """Ask on both connections whether the other side is there, as txredisapi does."""
        if self._out is None:
            return
        if self._unanswered and time.monotonic() - self._unanswered[0] > PING_S:
            raise RuntimeError(f"{self.name}: no answer for {PING_S} s")
        self.say("PING")
        if self.subscription is not None:
            self.subscription.sendall(encode(b"PING"))

    def _pushed(self, data: bytes) -> None:
        payloads, others = self._reader.feed(data)
        for other in others:
            if isinstance(other, Exception):
                raise other
            if isinstance(other, list) and other[:2] == [b"subscribe", CHANNEL]:
                self._connected.clear()
                self.publish("REPLICATE ")
        for payload in payloads:
            word, _, rest = payload.partition(b" ")
            if word == b"RDATA":
                self._row(*rest.split(b" ", 3)[:3])
            elif word == b"POSITION":
                self._position(rest)
            elif word == b"REPLICATE":
                self.tell()

    def _row(self, stream: bytes, instance: bytes, token: bytes) -> None:
        self.heard += 1
        pair = (stream, instance)
        if token == b"batch" or pair not in self._connected:
            return
        number = int(token)
        self.wrong += number <= self._at[pair]
        self._at[pair] = number
        if stream == b"events" and self.name == "fed1":
            self._day.arrived(number)

    def _position(self, rest: bytes) -> None:
        stream, instance, prev, token = rest.split(b" ")
        pair = (stream, instance)
        if instance.decode() != self.name and pair in self._at and int(prev) > self._at[pair]:
            self.fetches += 1
        self._at[pair] = max(self._at.get(pair, 0), int(token))
        self._connected.add(pair)

    def tell(self) -> None:
        """Say where the streams are that are written here."""
        for stream in self._own:
            token = self._day.written[stream, self.name]
            self.publish(f"POSITION {stream} {self.name} {token} {token}")


class Poll:
    """Long polls on one connection, one after the other."""

    def __init__(self, sockets: Sockets, port: int, streams: tuple[str, ...]) -> None:
        self._positions = dict.fromkeys(streams, "-1")
        self._http = Http(sockets, port)
        self.rows = 0
        self._ask()

    def _ask(self) -> None:
        asked = "&".join(f"{stream}={at}" for stream, at in self._positions.items())
        self._http.get(f"/_synapse/replication?{asked}&timeout=20000", self._answered)

    def _answered(self, body: bytes) -> None:
        for stream, table in json.loads(body or b"{}").items():
            if stream in self._positions:
                self._positions[stream] = str(table["position"])
                self.rows += len(table["rows"])
        self._ask()


class Http:
    """Requests on one connection, each when the one before has its answer."""

    def __init__(self, sockets: Sockets, port: int) -> None:
        self._waiting: deque[tuple[str, Callable[[bytes], object]]] = deque()
        self._data = b""
        self._connection = sockets.open(port, self._came)

    def get(self, path: str, then: Callable[[bytes], object]) -> None:
        """Ask for *path*; *then* is called with the body."""
        self._waiting.append((path, then))
        if len(self._waiting) == 1:
            self._send()

    def _send(self) -> None:
        self._connection.sendall(
            f"GET {self._waiting[0][0]} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )

    def _came(self, data: bytes) -> None:
        self._data += data
        head, found, rest = self._data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *([0-9]+)", head)
        if not found or length is None or len(rest) < int(length[1]):
            return
        path, then = self._waiting.popleft()
        body, self._data = rest[: int(length[1])], rest[int(length[1]) :]
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"GET {path}: {head[:80]!r} {body[:200]!r}")
        if self._waiting:
            self._send()
        then(body)


class Lines:
    """A reader of the line protocol, as netcat is."""

    def __init__(self, sockets: Sockets, port: int) -> None:
        self.rows = 0
        self._end = b""
        self.connection = sockets.open(port, self._came)
        self.connection.sendall(b"NAME nc\nREPLICATE\n")

    def _came(self, data: bytes) -> None:
        data = self._end + data
        self.rows += data.count(b"\nRDATA ")
        self._end = data[-6:]


class Day:
    """Everything that goes on.

    Attributes:
        port: Of the bus, in Redis's place.
        written: The newest token of each stream and writer.
        rows: How many rows were written.
    """

    def __init__(self, port: int, line_port: int, http_port: int, relay_port: int) -> None:
        self.port = port
        self.sockets = Sockets()
        self.written: Counter[tuple[str, str]] = Counter()
        self.rows = 0
        self.latencies: list[float] = []
        self._sent: dict[int, float] = {}
        self._tokens: Counter[str] = Counter()
        self._owed: Counter[str] = Counter()
        self._turn = {stream: itertools.cycle(writers) for stream, writers in WRITERS.items()}
        self.processes = {name: Process(self, name) for name in PROCESSES}
        for process in self.processes.values():
            process.subscribe()
        self.sockets.until(time.monotonic() + 1.0)
        for process in self.processes.values():
            process.tell()
        self.sockets.until(time.monotonic() + 1.0)
        self.http = Http(self.sockets, http_port)
        self.samples = 0
        watched = self.sockets.open(http_port, self._watched)
        watched.sendall(b"GET /_tcprepl/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.polls = [
            Poll(self.sockets, http_port, ("typing", "receipts")),
            Poll(self.sockets, http_port, ("to_device", "presence", "account_data")),
        ]
        self.netcats = [Lines(self.sockets, line_port), Lines(self.sockets, relay_port)]
        self.sockets.until(time.monotonic() + 1.0)

    def _watched(self, data: bytes) -> None:
        self.samples += data.count(b"data: ")

    def arrived(self, token: int) -> None:
        """Note that an event came."""
        sent = self._sent.pop(token, None)
        if sent is not None:
            self.latencies.append(time.perf_counter() - sent)

    def event(self, number: int) -> None:
        """Let one event happen, and what comes with it."""
        if number % 25:
            self._write("events", rows.row("events", number))
        else:
            self._batch("events", [rows.row("events", number + n) for n in range(3)])
        for stream, count in PER_EVENT.items():
            self._owed[stream] += int(count * 100)
            while self._owed[stream] >= 100:
                self._owed[stream] -= 100
                self._write(stream, self._row(stream, number))
        user, of = f"@user{number % 5_000}:{NAME}", self.processes
        if number % 4 == 0:
            key = f"cache_v1:event:{number % 4_000}"
            of["ew1"].say("SET", key, json.dumps({"user": user, "n": number}), "PX", "3600000")
            of["fed1"].say("GET", f"cache_v1:event:{(number - 40) % 4_000}")
            of["tw"].say("PUBLISH", f"{NAME}/USER_IP", f'USER_IP {user} t 1.1.1.1 "a" D {number}')
        if number % 8 == 0:
            of["ew2"].publish(f'LOCK_RELEASED ["ew2", "lock", "{number % 100}"]')
            of["main"].publish(f"USER_SYNC main {user} D start {1_790_000_000_000 + number}")
        if number % RATE == 0:
            of["fed1"].publish(f"FEDERATION_ACK fed1 {number // RATE}")

    def _row(self, stream: str, number: int) -> list[Any]:
        user = f"@user{number % 5_000}:{NAME}"
        match stream:
            case "caches":
                return ["get_user_by_id", [user], 1_790_000_000_000 + number]
            case "receipts":
                room, kind, reader, event, data = rows.row(stream, number)
                return [room, kind, reader, event, None, data]
            case "to_device":
                return [user]
            case "device_lists":
                return [user, False, False]
            case "account_data":
                return [user, None, "org.example.note"]
        return rows.row(stream, number)

    def _next(self, stream: str) -> tuple[Process, int]:
        self._tokens[stream] += 1
        writer = next(self._turn[stream])
        self.written[stream, writer] = self._tokens[stream]
        if stream == "events":
            self._sent[self._tokens[stream]] = time.perf_counter()
        return self.processes[writer], self._tokens[stream]

    def _write(self, stream: str, row: list[Any]) -> None:
        self._batch(stream, [row])

    def _batch(self, stream: str, some: list[list[Any]]) -> None:
        writer, token = self._next(stream)
        for left, row in zip(range(len(some) - 1, -1, -1), some, strict=True):
            said = "batch" if left else str(token)
            text = json.dumps(row, separators=(",", ":"))
            writer.publish(f"RDATA {stream} {writer.name} {said} {text}")
        self.rows += len(some)
        for process in self.processes.values():
            process.due += len(some)

    def ping(self) -> None:
        """Let every process ask whether the bus is there."""
        for process in self.processes.values():
            process.ping()

    def stay(self) -> None:
        """Let the readers of the line protocol say that they are there."""
        for reader in self.netcats:
            reader.connection.sendall(b"PING 1\n")

    def behind(self) -> int:
        """Return how many rows the worst of those who stay is behind."""
        stay = (one for name, one in self.processes.items() if name not in ("slow", "unlucky"))
        return max(one.due - one.heard for one in stay)


def misfortune(day: Day) -> Iterator[float]:
    """Let the unlucky process have its accidents; yield when the next is due."""
    unlucky, now = day.processes["unlucky"], time.monotonic()
    for count in itertools.count(1):
        yield (now := now + CUT_S)
        unlucky.cut()
        anew = count % RESTARTS == 0
        if anew:
            unlucky.end()
        yield (now := now + (ANEW_S if anew else BACK_S))
        if anew:
            unlucky.connect()
        unlucky.subscribe()


def sleep(day: Day) -> Iterator[float]:
    """Let the slow process read nothing for a while, again and again."""
    slow, now = day.processes["slow"], time.monotonic()
    while True:
        yield (now := now + SLEEPS_S - ASLEEP_S)
        day.sockets.leave(slow.subscription)
        yield (now := now + ASLEEP_S)
        day.sockets.read(slow.subscription, slow._pushed)


def every(seconds: float, do: Callable[[], object]) -> Iterator[float]:
    """Do something again and again."""
    now = time.monotonic()
    while True:
        yield (now := now + seconds)
        do()


def run(day: Day, accounts: list[Account], minutes: float, every_s: float, say: Any) -> list[str]:
    """Let it go on for *minutes*; return what was not as it should be."""
    columns = f"{'RSS MiB':>9} {'FDS':>5} {'FILES MiB':>9} {'CPU s':>7}"
    say(
        f"{'MINUTE':>6} {'ROWS':>8}  {columns}   {columns}  {'MEDIAN ms':>9} {'P99 ms':>7} "
        f"{'BEHIND':>6} {'WORST':>7} {'GAPS':>4} {'FETCHES':>7} {'POLLED':>8} {'PAGES':>6}"
    )
    began = time.monotonic()
    state: dict[str, Any] = {"links": [], "peers": []}
    gaps = 0

    def look(body: bytes) -> None:
        state.update(json.loads(body))

    def line() -> None:
        nonlocal gaps
        minute = (time.monotonic() - began) / 60
        took = sorted(day.latencies) or [0.0]
        day.latencies.clear()
        gaps = sum(link["gaps"] for link in state["links"])
        worst = max((peer["behind_rows"] for peer in state["peers"]), default=0)
        samples = "   ".join(account.sample(minute) for account in accounts)
        say(
            f"{minute:6.1f} {day.rows:8d}  {samples}  {statistics.median(took) * 1e3:9.2f} "
            f"{took[int(len(took) * 0.99)] * 1e3:7.2f} {day.behind():6d} {worst:7d} {gaps:4d} "
            f"{day.processes['unlucky'].fetches:7d} {sum(p.rows for p in day.polls):8d} "
            f"{day.samples:6d}"
        )

    events = itertools.count(1)
    due = [
        every(1 / RATE, lambda: day.event(next(events))),
        every(PING_S, day.ping),
        every(5.0, day.stay),
        every(15.0, lambda: day.http.get("/metrics", lambda body: None)),
        every(30.0, lambda: day.http.get("/", lambda body: None)),
        every(every_s / 2, lambda: day.http.get("/_tcprepl/v1/status", look)),
        every(every_s, line),
        misfortune(day),
        sleep(day),
    ]
    times = {one: next(one) for one in due}
    while time.monotonic() < began + minutes * 60:
        one = min(times, key=times.__getitem__)
        day.sockets.until(times[one])
        times[one] = next(one)
    return _judge(day, gaps)


def _judge(day: Day, gaps: int) -> list[str]:
    """Wait for what is on its way; return what is not as it should be."""
    slow = day.processes["slow"]
    with contextlib.suppress(KeyError):
        day.sockets.read(slow.subscription, slow._pushed)
    said: list[str] = []
    for _ in range(300):
        day.sockets.until(time.monotonic() + 0.1)
        said = [
            f"{name}: {one.due - one.heard} rows are missing"
            for name, one in day.processes.items()
            if one.due != one.heard and name != "unlucky"
        ]
        said += [
            f"netcat {number}: {day.rows - one.rows} rows are missing"
            for number, one in enumerate(day.netcats)
            if one.rows != day.rows
        ]
        if not said:
            break
    said += [f"{one.name}: {one.wrong} rows late" for one in day.processes.values() if one.wrong]
    return said + ([f"{gaps} gaps"] if gaps else [])


def simulate(minutes: float, warm: float, every_s: float, say: Callable[[str], object]) -> bool:
    """Run it; return whether all is as it should be."""
    with tempfile.TemporaryDirectory(prefix="tcprepl-day-") as directory:
        where = Path(directory)
        config = where / "config.yaml"
        config.write_text("streams: {retention: {age: 10m}}\n")
        ports = [free_port() for _ in range(5)]
        redis, lines, http, relayed, relayed_http = ports

        def begin(kind: str, line_port: int, http_port: int, *more: str) -> Running:
            return start(
                where / kind, kind, "--server-name", NAME, "--config", str(config),
                "--listen", f"127.0.0.1:{line_port}", "--http", f"127.0.0.1:{http_port}",
                "--data", str(where / kind / "data"), *more,
            )  # fmt: skip

        with begin("bus", lines, http, "--listen-redis", f"127.0.0.1:{redis}") as bus:
            bus.wait_for_output("bus.ready")
            with begin("relay", relayed, relayed_http, "--upstream", f"127.0.0.1:{lines}") as relay:
                relay.wait_for_output("relay.ready")
                accounts = [
                    Account("bus", bus, where / "bus" / "data"),
                    Account("relay", relay, where / "relay" / "data"),
                ]
                day = Day(redis, lines, http, relayed)
                try:
                    wrong = run(day, accounts, minutes, every_s, say)
                finally:
                    day.sockets.close()
    for account in accounts:
        grown, descriptors = account.growth(warm)
        say(f"{account.name}: {grown:+.3f} MiB a minute, {descriptors:+d} descriptors")
        if grown > GROWTH_MIB or descriptors > DESCRIPTORS:
            wrong.append(f"{account.name} grew")
    say("; ".join(wrong) or "nothing missing, nothing twice, no gaps")
    return not wrong


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--warm", type=float, default=15.0, help="minutes that do not count")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two lines")
    asked = parser.parse_args()
    say = lambda text: print(text, flush=True)  # noqa: E731
    return 0 if simulate(asked.minutes, asked.warm, asked.every, say) else 1


if __name__ == "__main__":
    sys.exit(main())
