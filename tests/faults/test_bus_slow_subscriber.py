"""A subscriber of the bus that sleeps: it costs integers, gets everything, and holds up nobody."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

import pytest

from tcprepl.replication.redis.resp import RespReader, encode, encode_publish
from tests.interop.busing import Bus
from tests.interop.processes import resident_bytes, wait_until

pytestmark = pytest.mark.timeout(240)

ROWS = 300_000
WARM_UP = 20_000
PIECE = 1_000
MAX_GROWTH_BYTES = 60 * 2**20
CHANNEL = b"example.com"


class Subscriber:
    """A plain socket that has subscribed."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.sendall(encode(b"SUBSCRIBE", CHANNEL))
        self.reader = RespReader(CHANNEL)
        self.rows = 0
        assert self.socket.recv(100).startswith(b"*3\r\n$9\r\nsubscribe")

    def close(self) -> None:
        """End the connection."""
        self.socket.close()

    def read_up_to(self, last: int) -> None:
        """Read rows until the one of *last*; none may be missing."""
        while self.rows < last:
            data = self.socket.recv(1 << 20)
            assert data, f"closed after {self.rows} rows"
            for payload in self.reader.feed(data)[0]:
                if payload.startswith(b"RDATA "):
                    self.rows += 1
                    assert payload.split(b" ", 4)[3] == b"%d" % self.rows


def publish(writer: socket.socket, first: int, last: int) -> None:
    """Publish rows, and wait for every answer."""
    for start in range(first, last + 1, PIECE):
        lines = [
            b'RDATA device_lists w1 %d ["@%d:example.com","%b"]' % (n, n, b"x" * 80)
            for n in range(start, start + PIECE)
        ]
        writer.sendall(encode_publish(CHANNEL, lines))
        answers = 0
        while answers < PIECE:
            answers += writer.recv(1 << 16).count(b"\r\n")


def test_sleeping_subscriber_costs_no_memory_and_misses_nothing(tmp_path: Path) -> None:
    with (
        Bus("example.com", tmp_path) as bus,
        socket.create_connection(("127.0.0.1", bus.port), timeout=60) as writer,
        closing(Subscriber(bus.port)) as asleep,
        closing(Subscriber(bus.port)) as keen,
    ):
        writer.sendall(encode_publish(CHANNEL, [b"POSITION device_lists w1 0 0"]))
        assert writer.recv(100) == b":2\r\n"
        publish(writer, 1, WARM_UP)
        keen.read_up_to(WARM_UP)
        before = resident_bytes(bus.pid)
        for first in range(WARM_UP + 1, WARM_UP + ROWS, 20 * PIECE):
            publish(writer, first, first + 20 * PIECE - 1)
            keen.read_up_to(first + 20 * PIECE - 1)
        growth = resident_bytes(bus.pid) - before
        print(f"{ROWS} rows past one that sleeps: {growth / 2**20:.1f} MiB more")
        assert growth < MAX_GROWTH_BYTES
        writer.sendall(encode_publish(CHANNEL, [b"LOCK_RELEASED at the end"]))
        asleep.read_up_to(WARM_UP + ROWS)
        wait_until(
            "the one that slept is at the head",
            lambda: {peer["state"] for peer in bus.status()["peers"]} == {"head"},
        )
