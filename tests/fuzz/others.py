"""What other implementations make of an input: redis-server, and Synapse in its own environment."""

from __future__ import annotations

import atexit
import base64
import functools
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from tcprepl.replication.redis import requests
from tcprepl.replication.redis.resp import ErrorReply, RespReader
from tests.fuzz.beside import connected
from tests.interop.environments import cache_directory

_ASK_SYNAPSE = """
import base64, json, logging, sys
logging.disable(logging.CRITICAL)
from synapse.federation.transport.server._base import _parse_auth_header as parse
for line in sys.stdin:
    try:
        print(json.dumps(parse(base64.b64decode(line))), flush=True)
    except Exception:
        print("null", flush=True)
"""


@functools.cache
def synapse() -> subprocess.Popen[str] | None:
    """Start Synapse's parser, once; None where its environment has not been made."""
    python = cache_directory() / "synapse-newest" / "bin" / "python"
    if not python.exists():
        return None
    started = subprocess.Popen(
        [str(python), "-c", _ASK_SYNAPSE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    atexit.register(_end, started)
    return started


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def synapse_authorization(header: bytes) -> list[str | None] | None:
    """Return what Synapse reads: origin, key, signature, destination; None if it refuses."""
    process = synapse()
    assert process is not None
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(base64.b64encode(header).decode() + "\n")
    process.stdin.flush()
    found: list[str | None] | None = json.loads(process.stdout.readline())
    return found


@functools.cache
def _redis() -> Path:
    """Start redis-server, once; return its socket."""
    program = shutil.which("redis-server")
    assert program, "please install redis-server"
    where = tempfile.mkdtemp(prefix="tcprepl-")
    path = Path(where) / "s"
    command = [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", where]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def end() -> None:
        started.kill()
        started.wait()
        shutil.rmtree(where, ignore_errors=True)

    atexit.register(end)
    return path


def redis_words(line: bytes) -> list[bytes] | None:
    """Return the words that redis-server sees in an inline request; None if it refuses."""
    with connected(_redis()) as connection:
        connection.sendall(b"DEL k\r\nRPUSH k %b\r\nLRANGE k 0 -1\r\n" % line)
        reader, values = RespReader(), []
        while len(values) < 3:
            data = connection.recv(65_536)
            if not data:
                return None
            values += reader.feed(data)[1]
            if any("Protocol error" in str(one) for one in values):
                return None
    words = values[2]
    assert isinstance(words, list), values
    assert isinstance(values[1], ErrorReply) is (not words), values
    return words


def our_words(line: bytes) -> list[bytes] | None:
    """Return the words that our bus sees in an inline request; None if it refuses."""
    try:
        return requests.split_words(b"RPUSH k " + line)[2:]
    except requests._Fault:
        return None
