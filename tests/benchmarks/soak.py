"""A soak: ``python -m tests.benchmarks.soak [--minutes 120]``: churn, and a table of what grows.

A whole server and a federation sender as processes, a remote server over TLS, and at once: rows
published over HTTP into streams in memory and on disk, EDUs for servers that take them, that now
and then refuse and that are down, users who type and who come online, readers that come and go,
readers that stop reading and go on, long polls that are given up. Every minute a line: resident
memory, descriptors, bytes of files and CPU of both, and how many EDUs arrived. A line is laid
through what came after the warm-up; the exit code is 1 when memory grew by more than 0.05 MiB a
minute or descriptors by more than a handful. Nothing looks into the processes, so they are as they
run in production.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import random
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import trustme

from tests.benchmarks import rows
from tests.benchmarks.measure import cpu_ns
from tests.harness import Running, Server, start, wait_until
from tests.https_remote import OK, HttpsRemote, Reply, matrix_error
from tests.ports import free_port

#: Rounds of churn in a second.
ROUNDS = 10
#: Users who type and come online; each is seen again before the warm-up ends.
USERS = 1_000
#: Remote servers that take EDUs, and after them those that are down.
REMOTES, DOWN = 30, 5
#: Readers that stay.
READERS = 20
MIB = 1_048_576
#: Most growth of resident memory after the warm-up, in MiB a minute.
GROWTH_MIB = 0.05
#: Most descriptors more than after the warm-up: churn has some open at any time.
DESCRIPTORS = 15


class Churn:
    """Everything that goes on at once, one round after the other."""

    def __init__(self, server: Server, seed: int = 7) -> None:
        self._server = server
        self._chance = random.Random(seed)
        self._number = 0
        self._http = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)
        self._steady = [self._reader() for _ in range(READERS)]
        self._slow: list[socket.socket] = []
        self._polls: list[socket.socket] = []

    def round(self) -> None:
        """Do some of everything."""
        self._number += 1
        number = self._number
        stream = rows.STREAMS[number % len(rows.STREAMS)]
        if stream != "federation":
            some = [rows.row(stream, number * 50 + n) for n in range(20)]
            self._ask("POST", f"/_tcprepl/v1/streams/{stream}/rows", some)
        user, room = f"%40u{number % USERS}:example.com", f"%21r{number % 100}:example.com"
        client = "/_matrix/client/v3"
        state = ("online", "unavailable", "offline")[number % 3]
        typing = {"typing": bool(number % 4), "timeout": 2_000}
        self._ask("PUT", f"{client}/rooms/{room}/typing/{user}", typing)
        self._ask("PUT", f"{client}/presence/{user}/status", {"presence": state})
        place = number % (REMOTES + DOWN)
        edu = {  # what a server that is down missed is kept if it is for a device
            "destination": f"remote{place}.example.org",
            "edu_type": "m.direct_to_device" if place < REMOTES and number % 2 else "m.typing",
            "content": {"sender": "@a:example.com", "type": "m.x", "messages": {}},
        }
        self._ask("POST", "/_tcprepl/v1/edus", edu)
        if not number % 5:
            self._reader().close()
        if not number % 40:
            self._slow.append(self._reader())  # it reads nothing for a while
        if len(self._slow) > 5:
            slow = self._slow.pop(0)
            _drain(slow)
            slow.close()
        if not number % 7:
            self._poll()
        for place, reader in enumerate(self._steady):
            if not _drain(reader, b"" if number % 50 else b"PING 1\n"):
                reader.close()  # a machine that stood still for long: it was given up
                self._steady[place] = self._reader()
        if not number % 200:
            self._steady.pop(self._chance.randrange(READERS)).close()
            self._steady.append(self._reader())

    def close(self) -> None:
        """Let go of every connection."""
        for connection in (*self._steady, *self._slow, *self._polls):
            connection.close()
        self._http.close()

    def _ask(self, method: str, path: str, body: object) -> None:
        text = json.dumps(body)
        self._http.request(method, path, text, {"Content-Type": "application/json"})
        answer = self._http.getresponse()
        said = answer.read()
        if answer.status >= 400 and answer.status != 429:
            raise RuntimeError(f"{method} {path}: {answer.status} {said[:200]!r}")

    def _reader(self) -> socket.socket:
        reader = socket.create_connection(("127.0.0.1", self._server.port), 30.0)
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        name = f"worker{self._chance.randrange(10)}"
        reader.sendall(f"NAME {name}\nREPLICATE\n".encode())
        reader.setblocking(False)
        return reader

    def _poll(self) -> None:
        poll = socket.create_connection(("127.0.0.1", self._server.http_port), 30.0)
        poll.sendall(
            b"GET /_synapse/replication?typing=-1&timeout=60000 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        self._polls.append(poll)
        if len(self._polls) > 10:
            self._polls.pop(0).close()


def _drain(reader: socket.socket, say: bytes = b"") -> bool:
    """Read what is there, after having said something; return whether the connection stands."""
    with contextlib.suppress(BlockingIOError):
        try:
            reader.sendall(say)
            while reader.recv(1_048_576):
                pass
        except ConnectionError:
            pass
        return False
    return True


class Account:
    """What a process holds, over time."""

    def __init__(self, name: str, process: Running, files: Path) -> None:
        self.name = name
        self._process = process
        self._files = files
        self._cpu = cpu_ns(process.pid)
        self.samples: list[tuple[float, float, int, float]] = []

    def sample(self, minute: float) -> str:
        """Take a sample, and return it as text."""
        memory = self._process.rss_bytes() / MIB
        descriptors = len(os.listdir(f"/proc/{self._process.pid}/fd"))
        size = sum(path.stat().st_size for path in self._files.rglob("*") if path.is_file()) / MIB
        self.samples.append((minute, memory, descriptors, size))
        cpu, self._cpu = self._cpu, cpu_ns(self._process.pid)
        spent = (self._cpu - cpu) / 1e9
        return f"{memory:9.2f} {descriptors:5d} {size:9.2f} {spent:7.2f}"

    def growth(self, warm: float) -> tuple[float, int]:
        """Return MiB a minute, by the line through what came after the warm-up, and descriptors."""
        after = [one for one in self.samples if one[0] >= warm]
        if len(after) < 2:
            return 0.0, 0
        minutes, memory = [one[0] for one in after], [one[1] for one in after]
        middle, mean = sum(minutes) / len(after), sum(memory) / len(after)
        rise = sum((x - middle) * (y - mean) for x, y in zip(minutes, memory, strict=True))
        spread = sum((x - middle) ** 2 for x in minutes)
        return rise / spread, after[-1][2] - after[0][2]


def soak(
    minutes: float,
    warm: float,
    every_s: float = 60.0,
    say: Callable[[str], object] = print,
    server_options: tuple[str, ...] = (),
    rounds: int = ROUNDS,
) -> bool:
    """Run it; return whether nothing grew."""
    with tempfile.TemporaryDirectory(prefix="tcprepl-soak-") as name:
        where = Path(name)
        config = where / "config.yaml"
        config.write_text(
            "streams: {retention: {age: 2m, rows: 5000}, retention_ephemeral: {rows: 1000}}\n"
            "federation: {senders: [fed1]}\n"
        )
        options = ("--config", str(config), *server_options)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(where / "ca.pem"))
        remote = HttpsRemote(where, "*.example.org", authority, free_port())
        remote.reply = _refuses_now_and_then()
        placed = [
            f"--resolve=remote{place}.example.org=127.0.0.1:{remote.port}"
            for place in range(REMOTES)
        ]
        with remote, Server(where / "server", *options) as server:
            sender = start(
                where / "sender", "federation-sender", "--from", server.address,
                "--data", str(where / "sender" / "data"), "--name", "fed1",
                "--signing-key", str(where / "server" / "data" / "signing.key"),
                "--ca", str(where / "ca.pem"), "--allow-private", *placed,
            )  # fmt: skip
            with sender:
                accounts = [
                    Account("server", server.process, where / "server"),
                    Account("sender", sender, where / "sender"),
                ]
                _run(server, remote, accounts, minutes, every_s, say, rounds)
        good = True
        for account in accounts:
            grown, descriptors = account.growth(warm)
            good &= grown <= GROWTH_MIB and descriptors <= DESCRIPTORS
            say(f"{account.name}: {grown:+.3f} MiB a minute, {descriptors:+d} descriptors")
    return good


def _refuses_now_and_then() -> Callable[[str, object], Reply]:
    """Return what answers as a server that is sometimes overloaded: every tenth request."""
    number = itertools.count(1)
    return lambda transaction_id, edus: OK if next(number) % 10 else matrix_error(503)


def _run(
    server: Server,
    remote: HttpsRemote,
    accounts: list[Account],
    minutes: float,
    every_s: float,
    say: Callable[[str], object],
    rounds_a_second: int,
) -> None:
    wait_until(lambda: server.process.process.poll() is None, "the server runs")
    columns = f"{'RSS MiB':>9} {'FDS':>5} {'FILES MiB':>9} {'CPU s':>7}"
    names = "   ".join(f"{account.name:<33}" for account in accounts)
    say(f"{'':16}  {names}")
    say(f"{'MINUTE':>7} {'ROUNDS':>8}  {columns}   {columns} {'EDUS':>7}")
    churn = Churn(server)
    began = due = time.monotonic()
    next_line = began + every_s
    rounds = arrived = 0
    try:
        while (now := time.monotonic()) < began + minutes * 60:
            churn.round()
            rounds += 1
            if now >= next_line:
                next_line += every_s
                minute = (now - began) / 60
                samples = "   ".join(account.sample(minute) for account in accounts)
                arrived += len(remote.taken)
                remote.taken.clear()
                remote.seen.clear()
                say(f"{minute:7.1f} {rounds:8d}  {samples} {arrived:7d}")
            due += 1 / rounds_a_second
            time.sleep(max(0.0, due - time.monotonic()))
            due = max(due, time.monotonic() - 1.0)
    finally:
        churn.close()


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--warm", type=float, default=10.0, help="minutes that do not count")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two lines")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of churn in a second")
    asked = parser.parse_args()
    say = lambda text: print(text, flush=True)  # noqa: E731
    return 0 if soak(asked.minutes, asked.warm, asked.every, say, rounds=asked.rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
