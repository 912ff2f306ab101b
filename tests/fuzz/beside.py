"""A redis-server to compare with: it knows the bus's commands only, and its clock stands still.

What a client sent is worked on, and what it is answered has come, once another connection has been
answered twice: redis-server has one thread, reads in turn and writes in turn. So nothing waits for
time here.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path

from tcprepl.replication.bus.commands import COMMANDS
from tcprepl.replication.redis import requests
from tcprepl.replication.redis.resp import RespReader, encode
from tests.harness import program

#: The time of day of the server.
STANDING_S = 1_700_000_000
#: What it asks for before it serves anybody.
PASSWORD = "secret"
#: What forgets all keys, and what says when keys end; no client is to send either.
_CLEAR, _SWITCH = "forget-all-keys", "switch-of-the-server"
#: What clients are not to do to each other, or to the server.
_REFUSED = "-client|pause -client|kill -client|reply -client|unblock -config|set -config|rewrite"
#: Bytes of answers that may be more than the server could write at once.
_MANY = 65_536
_SIZE = 1 << 20
#: How long the server may say or take nothing: seconds and microseconds.
_TIMEOUT = struct.pack("=qq", 60, 0)


class Beside:
    """A client of the server.

    Attributes:
        said: What it was answered.
        closed: Whether the server has closed the connection.
    """

    def __init__(self, path: Path) -> None:
        self.said = b""
        self.closed = False
        self._socket = connected(path)

    def ask(self, *requests: bytes) -> list[object]:
        """Send *requests*; return as many replies."""
        self._socket.sendall(b"".join(requests))
        reader, values = RespReader(), list[object]()
        while len(values) < len(requests):
            data = self._socket.recv(_SIZE)
            assert data, "redis-server has ended"
            values += reader.feed(data)[1]
        return values

    def send(self, data: bytes) -> None:
        """Send *data*, if the connection is open."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(data)

    def look(self) -> int:
        """Take what has come; return how much it was."""
        before = len(self.said)
        while not self.closed:
            try:
                data = self._socket.recv(_SIZE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            self.said += data
            self.closed = not data
        return len(self.said) - before

    def leave(self) -> None:
        """Go."""
        self._socket.close()


class Server:
    """The server."""

    def __init__(self, where: Path) -> None:
        self._path = where / "s"
        clock = where / "standing.so"
        source = Path(__file__).with_name("standing.c")
        subprocess.run([program("cc"), "-shared", "-fPIC", "-o", clock, source], check=True)
        options = [
            "port 0",
            "enable-debug-command yes",
            f"unixsocket {self._path}",
            'save ""',
            f"dir {where}",
        ]
        options += [f"user default on >{PASSWORD} ~* &* +@all {_REFUSED}"]
        options += [f"proto-max-bulk-len {requests.MAX_WORD_BYTES}"]
        options += [f"rename-command FLUSHDB {_CLEAR}", f"rename-command DEBUG {_SWITCH}"]
        options += [
            f'rename-command {name} ""' for name in _commands() - {*COMMANDS, "flushdb", "debug"}
        ]
        (where / "conf").write_text("\n".join(options))
        self.process = subprocess.Popen(
            [program("redis-server"), where / "conf"],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "LD_PRELOAD": str(clock), "STANDING_S": str(STANDING_S)},
        )
        self._control = self.client()
        self._control.ask(encode(b"AUTH", PASSWORD.encode()))
        # a key whose time is over goes when it is asked for, and not when there is time
        (said,) = self._control.ask(encode(_SWITCH.encode(), b"SET-ACTIVE-EXPIRE", b"0"))
        assert said == b"OK", said

    def client(self) -> Beside:
        """Return a new client."""
        return Beside(self._path)

    def clear(self) -> None:
        """Forget all keys; if it were done at once, memory would be given back, and take long."""
        self._control.ask(encode(_CLEAR.encode(), b"ASYNC"))

    def read(self) -> None:
        """Wait until all that was sent is read."""
        self._control.ask(b"PING\r\n")

    def settle(self, *clients: Beside) -> None:
        """Wait until all that was sent is answered."""
        more = True
        while more:
            self.read()
            self.read()
            more = max(client.look() for client in clients) >= _MANY


@functools.cache
def server() -> Server:
    """Start the server, once."""
    where = Path(tempfile.mkdtemp(prefix="tcprepl-"))
    started = Server(where)

    def end() -> None:
        started.process.kill()
        started.process.wait()
        shutil.rmtree(where, ignore_errors=True)

    atexit.register(end)
    return started


def connected(path: Path) -> socket.socket:
    """Return a connection to a server that may still be starting."""
    connection = socket.socket(socket.AF_UNIX)
    for way in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, way, _TIMEOUT)
    for _ in range(1_000):
        try:
            connection.connect(str(path))
            break
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.01)
    return connection


def _commands() -> set[str]:
    """Return what redis-server knows, which its program names."""
    with tempfile.TemporaryDirectory(prefix="tcprepl-") as name:
        path = Path(name) / "s"
        command = [program("redis-server"), "--port", "0", "--unixsocket", str(path)]
        process = subprocess.Popen([*command, "--dir", name], stdout=subprocess.DEVNULL)
        try:
            client = Beside(path)
            (found,) = client.ask(encode(b"COMMAND", b"LIST"))
            client.leave()
        finally:
            process.kill()
            process.wait()
    assert isinstance(found, list)
    return {name.decode() for name in found if re.fullmatch(rb"[a-z0-9-]+", name)}
