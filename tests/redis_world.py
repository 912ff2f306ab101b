"""A Redis in memory, as much of it as a link needs, on the network of `tests.wire`."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Factory, Protocol

from tcprepl.replication.redis.resp import RespReader, encode
from tests.wire import Network


class RedisEnd(Protocol):
    """One connection to the fake Redis."""

    def __init__(self, redis: FakeRedis) -> None:
        self.redis = redis
        self.channels: set[bytes] = set()
        self._reader = RespReader()

    def connectionMade(self) -> None:
        """Note it."""
        self.redis.connections.append(self)

    def connectionLost(self, reason: Any = None) -> None:
        """Note it."""
        self.redis.connections.remove(self)

    def dataReceived(self, data: bytes) -> None:
        """Carry out what is asked for."""
        for words in self._reader.feed(data)[1]:
            if not self.redis.mute:
                self._answer([bytes(word) for word in words])  # type: ignore[attr-defined]

    def _answer(self, words: list[bytes]) -> None:
        redis = self.redis
        word = words[0].upper()
        redis.commands.append(words)
        if word == b"AUTH":
            good = words[-1] == redis.password
            self.transport.write(b"+OK\r\n" if good else b"-WRONGPASS invalid password\r\n")
        elif word == b"SUBSCRIBE":
            self.channels.add(words[1])
            head = encode(b"subscribe", words[1])[4:]
            self.transport.write(b"*3\r\n" + head + b":%d\r\n" % len(self.channels))
        elif word == b"PUBLISH":
            redis.published.append(words[2])
            reached = 0 if redis.deaf else redis.deliver(words[1], words[2])
            self.transport.write(b":%d\r\n" % reached)
        elif word == b"ROLE":
            role = redis.role
            kind = b"*3\r\n" + encode(role)[4:] + b":0\r\n*0\r\n"
            self.transport.write(kind if role else b"-NOPERM no permission\r\n")
        elif word == b"PING":
            pong = encode(b"pong", b"") if self.channels else b"+PONG\r\n"
            self.transport.write(pong)


class FakeRedis(Factory):
    """A Redis whose clients are joined to it by a `Network`.

    Attributes:
        published: Payloads that were published, in order.
        commands: Every command, in order.
        mute: Whether to answer nothing.
        role: What ROLE is answered with; empty refuses to say.
        deaf: Whether what is published reaches nobody.
        password: What AUTH has to say; None refuses everything.
    """

    def __init__(self, network: Network | None = None) -> None:
        self.network = network or Network()
        self.connections: list[RedisEnd] = []
        self.published: list[bytes] = []
        self.commands: list[list[bytes]] = []
        self.mute = False
        self.role = b"master"
        self.deaf = False
        self.password: bytes | None = None
        self._last = 0
        self.start()

    def buildProtocol(self, addr: object) -> Any:
        """Return the server's end of a connection."""
        return RedisEnd(self)

    def start(self) -> None:
        """Listen."""
        self.network.factory = self

    def kill(self) -> None:
        """End every connection and listen no more."""
        self.network.factory = None
        self.cut()

    def cut(self) -> None:
        """End every connection."""
        for wire in list(self.network.wires.values()):
            wire.cut()
        self.network.wires.clear()

    def deliver(self, channel: bytes, payload: bytes) -> int:
        """Push a payload to who is subscribed, and return how many they are."""
        readers = [one for one in self.connections if channel in one.channels]
        for one in readers:
            one.transport.write(encode(b"message", channel, payload))
        return len(readers)

    def say(self, *payloads: str | bytes, channel: bytes = b"example.com") -> None:
        """Publish as somebody else, and let it arrive."""
        for one in payloads:
            self.deliver(channel, one.encode() if isinstance(one, str) else one)
        self.network.settle()

    def endpoint(self) -> Any:
        """Return where to connect to."""
        return _Endpoint(self)

    def connect(self, factory: Any) -> Any:
        """Join a client, each under a name of its own."""
        self._last += 1
        return self.network.connect(factory, f"redis-{self._last}")


class _Endpoint:
    def __init__(self, redis: FakeRedis) -> None:
        self._redis = redis

    def connect(self, factory: Any) -> Any:
        """Connect."""
        return self._redis.connect(factory)
