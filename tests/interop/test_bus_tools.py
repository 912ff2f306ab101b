"""What people have for Redis, at the bus: redis-cli, redis-py, txredisapi; and Redis beside it."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcprepl.replication.redis.resp import encode
from tests.interop.busing import Bus
from tests.interop.environments import find_program
from tests.interop.servers import Redis
from tests.interop.web_tools import python_with

pytestmark = [pytest.mark.interop, pytest.mark.timeout(240)]

#: Requests that both have to answer with the same bytes, in this order, on one connection.
REQUESTS = """
PING
PING hello
PING a b
ECHO hello
ECHO
SET k v
SET k w NX
SET k w XX GET
SET k x EX 100 NX GET
SET k x PX 0
SET k x EX abc
SET k x EX
SET k x NX XX
SET k x FOO
SET n x KEEPTTL
SET k x KEEPTTL EX 5
SET k y EX 100
TTL k
SET k z KEEPTTL
TTL k
TTL none
PTTL none
EXPIRE k 50
TTL k
EXPIRE none 50
EXPIRE k abc
EXPIRE k 9223372036854775807
PEXPIRE k 9223372036854775807
EXPIRE k -1
GET k
GET k l
GET
MGET k n
MGET
EXISTS n n k
DEL n none
DBSIZE
SELECT 1
SELECT 99
SELECT abc
HELLO 4
HELLO abc
HELLO 2 FOO
CLIENT SETNAME one
CLIENT GETNAME
CLIENT SETNAME
CLIENT NOPE
PUBLISH ch x
PUBLISH ch
PUBSUB CHANNELS
PUBSUB NUMSUB ch
PUBSUB NUMPAT
PUBSUB NOPE
FLY away with me
fly
ROLE
CONFIG NOPE
UNSUBSCRIBE
PUNSUBSCRIBE
SUBSCRIBE a b a
GET k
PING
PING x
PSUBSCRIBE p* q?
UNSUBSCRIBE a none
PUNSUBSCRIBE
UNSUBSCRIBE
PING
SUBSCRIBE a
RESET
GET k
AUTH a b c
QUIT
"""
#: Bytes that are no requests, each on a connection of its own.
FAULTS = [
    b"*1\r\n!3\r\n",
    b"*x\r\n",
    b"*1\r\n$-5\r\n",
    b"*1\r\n$x\r\n",
    b"*99999999999\r\n",
    b'SET "k\r\n',
    b'SET k "a"b\r\n',
    b"\r\n\r\nPING\r\n",
    b"*0\r\n*-1\r\nPING\r\n",
    b"GET '\\'x'\r\n",
    b'ECHO "\\x41\\n\\"b"\r\n',
]


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    """Yield a bus."""
    with Bus("example.com", tmp_path_factory.mktemp("bus")) as running:
        yield running


def answers(port: int, requests: list[bytes]) -> list[bytes]:
    """Return what each request is answered with on one connection."""
    found: list[bytes] = []
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for request in requests:
            # ECHO tells where the answer ends, as far as it may be said.
            connection.sendall(request)
            connection.settimeout(0.15)
            data = b""
            try:
                while chunk := connection.recv(65_536):
                    data += chunk
            except TimeoutError:
                pass
            except ConnectionResetError:
                data += b"(reset)"
            found.append(data)
    return found


def test_replies_are_those_of_redis(bus: Bus) -> None:
    requests = [encode(*line.encode().split()) for line in REQUESTS.split("\n") if line]
    with Redis.start() as redis:
        theirs = answers(redis.port, requests)
        ours = answers(bus.port, requests)
        lines = [line for line in REQUESTS.split("\n") if line]
        different = [
            (line, their, our)
            for line, their, our in zip(lines, theirs, ours, strict=True)
            if their != our
        ]
        assert different == []


def test_faults_are_answered_as_by_redis(bus: Bus) -> None:
    with Redis.start() as redis:
        for fault in FAULTS:
            assert answers(bus.port, [fault]) == answers(redis.port, [fault]), fault


def test_redis_cli(bus: Bus) -> None:
    program = find_program("redis-cli", "redis-tools")

    def say(*words: str) -> str:
        command = [program, "-p", str(bus.port), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert say("SET", "k", "v") == "OK\n"
    assert say("--no-raw", "GET", "k") == '"v"\n'
    assert "this is no Redis" in say("INFO")
    assert say("PUBLISH", "example.com", "POSITION events w1 4 4") == "0\n"


PROGRAM_PY = """
import sys, redis
port = int(sys.argv[1])
client = redis.Redis(port=port, protocol=2, username="tool", password="x")
assert client.set("py", b"v", px=100000) and client.get("py") == b"v" and client.ttl("py") > 90
pubsub = client.pubsub()
pubsub.subscribe("example.com")
pubsub.psubscribe("oth*")
got = []
client.publish("example.com", "POSITION events py 4 4")
client.publish("example.com", "RDATA events py 5 [1]")
client.publish("other", "hey")
while len(got) < 3:
    message = pubsub.get_message(timeout=5)
    assert message is not None, got
    if message["type"] in ("message", "pmessage") and message["data"] != b"REPLICATE ":
        got.append(message["data"])
assert sorted(got) == [b"POSITION events py 4 4", b"RDATA events py 5 [1]", b"hey"], got
assert client.info()["server_name"] == "tcprepl"
pipe = client.pipeline(transaction=False)
for n in range(1000):
    pipe.set(f"k{n}", n)
pipe.mget([f"k{n}" for n in range(1000)])
assert [int(v) for v in pipe.execute()[-1]] == list(range(1000))
print("good")
"""

PROGRAM_TX = """
import sys, txredisapi
from twisted.internet import defer, reactor
from twisted.internet.protocol import ReconnectingClientFactory
from twisted.internet.task import react
port = int(sys.argv[1])
done = defer.Deferred()

class Subscriber(txredisapi.SubscriberProtocol):
    def connectionMade(self):
        txredisapi.SubscriberProtocol.connectionMade(self)
        self.subscribe(["example.com"])
    def messageReceived(self, pattern, channel, message):
        if "tx 5" in str(message) and not done.called:
            done.callback(message)

class Factory(txredisapi.SubscriberFactory, ReconnectingClientFactory):
    protocol = Subscriber

@defer.inlineCallbacks
def main(reactor):
    reactor.connectTCP("127.0.0.1", port, Factory())
    connection = yield txredisapi.Connection("127.0.0.1", port, reconnect=False)
    yield connection.set("tx", "v", pexpire=100000)
    value = yield connection.get("tx")
    assert value in ("v", b"v"), value
    pong = yield connection.ping()
    for _ in range(100):
        reached = yield connection.publish("example.com", "POSITION events tx 4 4")
        if reached:
            break
    yield connection.publish("example.com", "RDATA events tx 5 [1]")
    yield done.addTimeout(10, reactor)
    print("good")

react(main)
"""


@pytest.mark.parametrize(
    ("requirements", "program"),
    [
        (("redis", "txredisapi==1.6.0"), PROGRAM_PY),
        (("redis", "txredisapi==1.6.0"), PROGRAM_TX),
        (("txredisapi==1.5.0",), PROGRAM_TX),
    ],
    ids=["redis-py", "txredisapi 1.6", "txredisapi 1.5"],
)
def test_libraries(bus: Bus, tmp_path: Path, requirements: tuple[str, ...], program: str) -> None:
    script = tmp_path / "program.py"
    script.write_text(program)
    command = [python_with(*requirements), script, str(bus.port)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.stdout.strip().endswith("good"), ran.stdout + ran.stderr
