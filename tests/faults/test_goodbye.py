"""Whoever is turned away hears why, however much it was saying at that moment.

A socket that is closed while there is something to read resets the connection, and the reset
takes the place of what was written last. So the one who speaks here says all that it has to
say first, and reads only then.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Server, start
from tests.ports import free_port

#: More than the buffers of two sockets on loopback hold.
MUCH = 8 * 2**20

LINES = {
    "bad lines": ("nonsense\n" * (MUCH // 9), "100 bad lines are enough"),
    "a line that is too long": ("x" * MUCH, "the line is longer than"),
    "not UTF-8": ("\udcff\n" + "PING 1\n" * (MUCH // 7), "ERROR line 1: "),
    "a command that only servers send": ("SERVER x\n" + "PING 1\n" * (MUCH // 7), "ERROR line 1: "),
    "HTTP": (f"POST / HTTP/1.1\r\nContent-Length: {MUCH}\r\n\r\n" + "x" * MUCH, "400 Bad Request"),
    "RESP": ("*1\r\n$4\r\nPING\r\n" * (MUCH // 14), "-ERR "),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server."""
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


def say_then_read(port: int, text: str | bytes) -> str:
    """Say everything, then read to the orderly end; return what was read."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    with socket.create_connection(("127.0.0.1", port), 30) as talker:
        talker.sendall(data)
        return b"".join(iter(lambda: talker.recv(65_536), b"")).decode()


@pytest.mark.parametrize("case", LINES)
def test_the_last_word_arrives(server: Server, case: str) -> None:
    """On the line protocol."""
    text, told = LINES[case]
    assert told in say_then_read(server.port, text)


def test_the_answer_arrives_before_all_of_a_body_that_is_too_large(server: Server) -> None:
    """Over HTTP."""
    length = 16 * 2**20 + 1
    head = (
        "POST /_tcprepl/v1/streams/typing/rows HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Length: {length}\r\n\r\n"
    )
    assert " 413 " in say_then_read(server.http_port, head + " " * length)
    assert " 431 " in say_then_read(server.http_port, "GET / HTTP/1.1\r\n" + "x: y\r\n" * 10**6)


def test_who_is_one_too_many_hears_of_the_limit(tmp_path: Path) -> None:
    """Also who has begun to speak."""
    config = tmp_path / "x.yaml"
    config.write_text("replication: {max_connections: 1}\n", encoding="utf-8")
    with (
        Server(tmp_path, "--config", str(config)) as server,
        socket.create_connection(("127.0.0.1", server.port), 30) as first,
    ):
        first.sendall(b"NAME first\nREPLICATE\n")
        while b"POSITION" not in first.recv(65_536):
            pass
        for _ in range(3):
            told = say_then_read(server.port, "NAME other\nREPLICATE\n" + "PING 1\n" * (MUCH // 7))
            assert "ERROR too many connections" in told


def test_who_speaks_while_the_server_stops_hears_it(tmp_path: Path) -> None:
    """The line is there, then the orderly end."""
    with (
        Server(tmp_path) as server,
        socket.create_connection(("127.0.0.1", server.port), 30) as talker,
    ):
        talker.sendall(b"NAME talker\nREPLICATE\n")
        heard = b""
        while b"POSITION" not in heard:
            heard += talker.recv(65_536)
        server.process.send_signal(signal.SIGTERM)
        while b"ERROR server shutting down" not in heard:
            talker.sendall(b"PING 1\n" * 1_000)
            heard += talker.recv(65_536)
        talker.sendall(b"PING 1\n" * 1_000)
        assert talker.recv(65_536) == b""
        talker.close()
        assert server.process.wait() == 0


def test_the_bus_says_what_was_no_request(tmp_path: Path) -> None:
    """In the words of Redis."""
    port = free_port()
    with start(
        tmp_path, "bus", "--server-name", "example.com", "--listen-redis", f"127.0.0.1:{port}",
        "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data", "none",
    ) as bus:  # fmt: skip
        bus.wait_for_output("is the Redis of")
        told = say_then_read(port, "*1\r\n+nonsense\r\n" + "*1\r\n$4\r\nPING\r\n" * (MUCH // 14))
        assert told.startswith("-ERR Protocol error")
