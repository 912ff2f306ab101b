"""Floods of lines on real sockets: others are served within a second, and nothing stays."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.harness import Lines, Server

#: How long somebody else may wait for a row while a flood is on.
PATIENCE_S = 1.0
ROUNDS = 20

FLOODS = {
    "invented pairs": "".join(f"REPLICATE typing i{n} NOW\n" for n in range(11_000)),
    "questions": "STATUS\n" * 1_000,
    "acknowledgements": "".join(f"FEDERATION_ACK n{n} 1\n" for n in range(10_000)),
    "names": "".join(f"NAME n{n}\nREMOTE_SERVER_UP x.example\n" for n in range(20_000)),
    "long lines": f"PING {'x' * 16_000}\n" * 1_000,
    "no line": "x" * 16_000,
    "blank lines": "\n" * 3_000_000,
    "help": "HELP\n" * 20_000,
    "unknown streams": "REPLICATE nonsense * 0\n" * 5_000,
    "subscriptions": "REPLICATE * * 0\n" * 5_000,
    "syncs": "".join(f"USER_SYNC p{n} @u{n}:x start 1\n" for n in range(5_000)),
}


class Flood:
    """Somebody who says much, and reads the answers or not."""

    def __init__(self, port: int, text: str, *, reads: bool) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 30)
        self._threads = [threading.Thread(target=self._say, args=(text.encode(),), daemon=True)]
        if reads:
            self._threads.append(threading.Thread(target=self._read, daemon=True))
        for thread in self._threads:
            thread.start()

    def _say(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendall(data)

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while self._socket.recv(262_144):
                pass

    @property
    def speaking(self) -> bool:
        """Whether it has more to say."""
        return self._threads[0].is_alive()

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join(10)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with many connections, which makes STATUS long."""
    with Server(tmp_path_factory.mktemp("floods")) as running, contextlib.ExitStack() as stack:
        for number in range(400):
            one = socket.create_connection(("127.0.0.1", running.port), 30)
            stack.enter_context(contextlib.closing(one))
            one.sendall(b"NAME idle%d\nREPLICATE typing * NOW\n" % number)
        yield running


@pytest.mark.parametrize("reads", [True, False], ids=["reads", "never reads"])
@pytest.mark.parametrize("text", FLOODS.values(), ids=FLOODS)
def test_others_are_served_within_a_second(server: Server, text: str, reads: bool) -> None:
    pairs = len(server.request("GET", "/_tcprepl/v1/status")["streams"])
    before = server.process.rss_bytes()
    with Lines(server.port) as person, contextlib.ExitStack() as stack:
        person.send("REPLICATE receipts * NOW\n")
        person.expect("POSITION receipts")
        floods = []
        for _ in range(3):
            flood = Flood(server.port, text, reads=reads)
            stack.callback(flood.close)
            floods.append(flood)
        worst = 0.0
        for number in range(ROUNDS):
            began = time.monotonic()
            server.publish("receipts", ["!r:a", "m.read", "@a:x", f"${number}", {}])
            person.expect("RDATA receipts")
            worst = max(worst, time.monotonic() - began)
    assert worst < PATIENCE_S, f"somebody waited {worst:.3f} s"
    grown = server.process.rss_bytes() - before
    assert grown < 24 * 2**20, f"{grown / 2**20:.1f} MiB more"
    status = server.request("GET", "/_tcprepl/v1/status")
    assert len(status["streams"]) == pairs


def test_names_make_no_series_for_ever(server: Server) -> None:
    with Lines(server.port) as rude:
        rude.send("".join(f"NAME m{n}\nREMOTE_SERVER_UP x.example\n" for n in range(300)))
        rude.send("REPLICATE nonsense * 0\n")
        rude.expect("ERROR unknown stream")
    with socket.create_connection(("127.0.0.1", server.http_port), 30) as page:
        page.sendall(b"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
        told = b"".join(iter(lambda: page.recv(65_536), b"")).decode()
    series = [line for line in told.splitlines() if 'command="REMOTE_SERVER_UP"' in line]
    assert 1 <= len(series) <= 101
