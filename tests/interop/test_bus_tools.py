"""What people have for Redis, at the bus: redis-cli, redis-py, txredisapi; and Redis beside it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
import yaml

from tcprepl.replication.redis.resp import encode
from tests.interop.busing import Bus
from tests.interop.environments import REPOSITORY, find_program
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
SELECT 01
SELECT -0
SELECT 00
SELECT +1
SET k v EX 01
SET k v EX -0
SET k v EX 9223372036854775
SET k v PX 9223372036854775807
SET k v PXAT 9223372036854775807
SET k v EXAT 9223372036854775
SET k v EXAT 9223372036854776
SET k v EX 10 EX 20
TTL k
SET k v EX 10 PX 10
SET k v EX abc NX XX
SET k v EX abc FOO
SET k v EX abc KEEPTTL
EXPIRE k 010
EXPIRE k -0
EXPIRE k 9223372036854775
EXPIRE k -9223372036854775
EXPIRE k -9223372036854776
PEXPIRE k 9223370000000000000
PTTL none
PEXPIRE k 1500
TTL k
PEXPIRE k -9223372036854775808
EXISTS k
SET k v
EXPIRE k 10 XX
EXPIRE k 10 GT
EXPIRE k 10 LT
EXPIRE k 20 LT
EXPIRE k 5 GT
EXPIRE k 50 gt
TTL k
EXPIRE k 10 NX
SET k v
EXPIRE k 10 nx
EXPIRE k 10 NX NX
EXPIRE k 20 XX XX GT
EXPIRE k 10 XX NX
EXPIRE k 10 GT NX
EXPIRE k 10 LT GT
EXPIRE k abc NX GT
EXPIRE k 10 NX FOO
EXPIRE k -10 GT
EXPIRE k -10 LT
EXISTS k
HELLO -1
HELLO 02
HELLO +2
HELLO 99999999999999999999
COMMAND COUNT x
COMMAND INFO nope
PUBSUB CHANNELS a b
PUBSUB NUMPAT x
CLIENT LIST FOO
CLIENT LIST TYPE
CLIENT LIST TYPE foo
CLIENT LIST TYPE pubsub
CLIENT LIST TYPE replica
CLIENT LIST TYPE MASTER
CLIENT LIST TYPE normal x
CLIENT LIST ID
CLIENT LIST ID abc
CLIENT LIST ID 0
CLIENT LIST ID 999999 999998
INFO nope
SUBSCRIBE a
CLIENT NOPE
CLIENT LIST
CLIENT ID x
PUBSUB NUMPAT
CONFIG GET x
QUIT
"""
#: The same in RESP3; the answer to the first one names who answers.
REQUESTS_3 = """
HELLO 3
GET none
MGET none none
SET k v
SET k w XX GET
SET n v XX GET
CLIENT GETNAME
CONFIG GET nope
PING
SUBSCRIBE a
PING
PING x
GET k
PUBLISH a hello
PSUBSCRIBE p*
PUBLISH px hello
UNSUBSCRIBE
UNSUBSCRIBE
PUNSUBSCRIBE
HELLO 4
RESET
GET none
"""
#: Bytes that are no requests, each on a connection of its own.
FAULTS = [
    b"*1\r\n!3\r\n",
    b"*x\r\n",
    b"*1\r\n$-5\r\n",
    b"*1\r\n$x\r\n",
    b"*99999999999\r\n",
    b"*01\r\n$4\r\nPING\r\n",
    b"*1\r\n$04\r\nPING\r\n",
    b"*-0\r\n",
    b"*+1\r\n$4\r\nPING\r\n",
    b'SET "k\r\n',
    b'SET k "a"b\r\n',
    b"\r\n\r\nPING\r\n",
    b"*0\r\n*-1\r\nPING\r\n",
    b"GET '\\'x'\r\n",
    b'ECHO "\\x41\\n\\"b"\r\n',
    b"POST / HTTP/1.1\r\nHost: x\r\n\r\nPING\r\n",
    b"GET / HTTP/1.1\r\nPING\r\n",
    b"host: x\r\nPING\r\n",
]


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    """Yield a bus."""
    with Bus("example.com", tmp_path_factory.mktemp("bus")) as running:
        yield running


#: The answer to a PING behind each request, by which is seen where its own ends.
END = b"$13\r\nthat was all!\r\n"


def answers(port: int, requests: list[bytes]) -> list[bytes]:
    """Return what each request, and a PING behind it, is answered with on one connection."""
    found: list[bytes] = []
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for request in requests:
            connection.sendall(request + encode(b"PING", b"that was all!"))
            data = b""
            with suppress(ConnectionResetError):
                while not data.endswith(END) and (chunk := connection.recv(65_536)):
                    data += chunk
            found.append(data)
    return found


def both(theirs: int, ours: int, requests: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Return what two servers answer."""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(answers, (theirs, ours), (requests, requests))
    return first, second


def test_replies_are_those_of_redis(bus: Bus) -> None:
    requests = [encode(*line.encode().split()) for line in REQUESTS.split("\n") if line]
    with Redis.start() as redis:
        theirs, ours = both(redis.port, bus.port, requests)
        lines = [line for line in REQUESTS.split("\n") if line]
        different = [
            (line, their, our)
            for line, their, our in zip(lines, theirs, ours, strict=True)
            if their != our
        ]
        assert different == []


def test_replies_in_resp3_are_those_of_redis(bus: Bus) -> None:
    lines = [line for line in REQUESTS_3.split("\n") if line]
    requests = [encode(*line.encode().split()) for line in lines]
    with Redis.start() as redis:
        theirs, ours = both(redis.port, bus.port, requests)
    assert ours[0].startswith(b"%7\r\n$6\r\nserver\r\n$7\r\ntcprepl\r\n")
    assert list(zip(lines, ours, strict=True))[1:] == list(zip(lines, theirs, strict=True))[1:]


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


def test_netcat_that_closes_its_side_gets_its_answers(bus: Bus) -> None:
    program = find_program("nc", "netcat-openbsd")
    requests = f"SET long {'x' * 1_000}\n" + "GET long\n" * 5_000 + "PUBLISH other x\n"
    ran = subprocess.run(
        [program, "-N", "127.0.0.1", str(bus.port)],
        input=requests,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ran.stdout.count("$1000\n") == 5_000
    assert ran.stdout.endswith(":0\n")


PROGRAM_PY = """
import sys, redis
port = int(sys.argv[1])
client = redis.Redis(port=port, username="tool", password="x")
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
again = redis.Redis(port=port, protocol=3)
assert set(again.command()) == set(client.command()) >= {"publish", "set"}
pipe = client.pipeline(transaction=False)
for n in range(1000):
    pipe.set(f"k{n}", n)
pipe.mget([f"k{n}" for n in range(1000)])
assert [int(v) for v in pipe.execute()[-1]] == list(range(1000))
try:
    client.pipeline().set("transacted", 1).execute()
except redis.exceptions.ResponseError as error:
    assert "unknown command" in str(error), error
else:
    raise AssertionError("a transaction was taken")
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


def test_redis_benchmark(bus: Bus) -> None:
    """It publishes and asks as fast as it can, on many connections; nothing is refused."""
    program = find_program("redis-benchmark", "redis-tools")
    subscriber = socket.create_connection(("127.0.0.1", bus.port), timeout=10)
    with subscriber:
        subscriber.sendall(encode(b"SUBSCRIBE", b"example.com", b"other"))
        for channel, line in (("example.com", "LOCK_RELEASED x"), ("other", "x")):
            command = [program, "-p", str(bus.port), "-n", "2000", "-c", "10", "-P", "16", "-q"]
            command += ["PUBLISH", channel, line]
            ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
            assert "requests per second" in ran.stdout
            assert "rror" not in ran.stdout + ran.stderr
        ended = b"$1\r\nx\r\n"
        data = b""
        while data.count(b"LOCK_RELEASED x") < 2_000 or data.count(ended) < 2_000:
            data += subscriber.recv(1_048_576)
    command = [program, "-p", str(bus.port), "-n", "2000", "-c", "10", "-t", "ping,set,get", "-q"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert len(re.findall("requests per second", ran.stdout)) >= 3


class Guarded:
    """A bus with passwords, on a Unix socket and, for other machines, with TLS."""

    def __init__(self, directory: Path) -> None:
        self.authority = directory / "authority.pem"
        self.socket = directory / "bus.sock"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.authority)
        certificate = authority.issue_cert("127.0.0.1", "localhost")
        certificate.private_key_pem.write_to_path(directory / "key.pem")
        certificate.cert_chain_pems[0].write_to_path(directory / "cert.pem")
        for name in ("all", "w1"):
            (directory / name).write_text(f"secret of {name}\n")
        settings = {
            "server_name": "example.com",
            "data_directory": "none",
            "bus": {
                "tls": {
                    "certificate": str(directory / "cert.pem"),
                    "private_key": str(directory / "key.pem"),
                },
                "password_file": str(directory / "all"),
                "users": {"w1": str(directory / "w1")},
            },
        }
        config = directory / "bus.yaml"
        config.write_text(yaml.safe_dump(settings))
        self.bus = Bus("example.com", directory, "--config", str(config), data="none")
        self.bus.options += ["--listen-redis", f"unix:{self.socket}:mode=600"]
        self.bus.host = "0.0.0.0"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Yield one that runs."""
    made = Guarded(tmp_path_factory.mktemp("guarded"))
    with made.bus:
        yield made


def test_other_machines_are_let_in_only_with_tls_and_a_password(guarded: Guarded) -> None:
    program = find_program("redis-cli", "redis-tools")
    encrypted = ["-p", str(guarded.bus.port), "--tls", "--cacert", str(guarded.authority)]
    local = ["-s", str(guarded.socket)]

    def say(*words: str) -> str:
        command = [program, "--no-auth-warning", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    for way in (encrypted, local):
        assert say(*way, "PING").startswith("NOAUTH Authentication required.")
        assert say(*way, "-a", "secret of all", "PING") == "PONG\n"
        told = say(*way, "--user", "w1", "--pass", "secret of w1", "CLIENT", "INFO")
        assert "user=w1" in told
        # its own password names a process that cannot say its name
        assert "user=w1" in say(*way, "-a", "secret of w1", "CLIENT", "INFO")
        wrong = say(*way, "AUTH", "w1", "secret of all")
        assert wrong.startswith("WRONGPASS invalid username-password pair or user is disabled.")
    with socket.create_connection(("127.0.0.1", guarded.bus.port), timeout=10) as plain:
        plain.sendall(encode(b"AUTH", b"secret of all") + encode(b"PING"))
        assert b"PONG" not in plain.recv(100)


PROGRAM_GUARDED = """
import sys, redis
port, authority, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
secret = {"username": "w1", "password": "secret of w1"}
over_tls = redis.Redis(port=port, ssl=True, ssl_ca_certs=authority, **secret)
over_unix = redis.Redis(unix_socket_path=path, **secret)
for one, other in ((over_tls, over_unix), (over_unix, over_tls)):
    pubsub = one.pubsub()
    pubsub.subscribe("example.com")
    pubsub.get_message(timeout=5)
    assert other.publish("example.com", "LOCK_RELEASED x") == 1
    while (message := pubsub.get_message(timeout=5))["data"] != b"LOCK_RELEASED x":
        assert message is not None
    assert one.set("k", port) and int(other.get("k")) == port
    pubsub.close()
try:
    redis.Redis(port=port, ssl=True, ssl_ca_certs=authority, password="no").ping()
except redis.exceptions.AuthenticationError as error:
    assert "WRONGPASS" in str(error) or "invalid username-password" in str(error), error
else:
    raise AssertionError("a wrong password was taken")
print("good")
"""

PROGRAM_TX_UNIX = """
import sys, txredisapi
from twisted.internet import defer
from twisted.internet.task import react

@defer.inlineCallbacks
def main(reactor):
    secret = {"password": "secret of w1"}
    connection = yield txredisapi.UnixConnection(sys.argv[3], reconnect=False, **secret)
    yield connection.set("tx", "v", pexpire=100000)
    assert (yield connection.get("tx")) in ("v", b"v")
    assert (yield connection.publish("example.com", "LOCK_RELEASED x")) == 0
    print("good")

react(main)
"""


@pytest.mark.parametrize(
    ("requirements", "program"),
    [
        (("redis", "txredisapi==1.6.0"), PROGRAM_GUARDED),
        (("redis", "txredisapi==1.6.0"), PROGRAM_TX_UNIX),
        (("txredisapi==1.5.0",), PROGRAM_TX_UNIX),
    ],
    ids=["redis-py", "txredisapi 1.6", "txredisapi 1.5"],
)
def test_libraries_over_tls_and_a_unix_socket(
    guarded: Guarded, tmp_path: Path, requirements: tuple[str, ...], program: str
) -> None:
    script = tmp_path / "program.py"
    script.write_text(program)
    command = [python_with(*requirements), script, str(guarded.bus.port)]
    command += [str(guarded.authority), str(guarded.socket)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.stdout.strip().endswith("good"), ran.stdout + ran.stderr


def test_what_other_machines_reach_is_refused_without_both(tmp_path: Path) -> None:
    (tmp_path / "all").write_text("secret")
    options = ["--server-name", "example.com", "--data", "none", "--listen-redis", "0.0.0.0:16379"]
    for more in ([], ["--password-file", str(tmp_path / "all")]):
        command = [sys.executable, "-m", "tcprepl", "bus", *options, *more]
        ran = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60
        )
        assert ran.returncode == 2
        assert "other machines can reach it" in ran.stderr
