"""The whole site in memory: a log, its notifier, a fake clock, and requests without a socket."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from tcprepl.streams.gaps import Cause, Gap
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.notifier import Notifier
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.web.services import WebServices
from tcprepl.web.site import build_site

START_MS = 1_700_000_000_000


_PEER = IPv4Address("TCP", "127.0.0.1", 50_000)


class Transport(StringTransport):
    """A transport that a test can close, and that notes an abort."""

    aborted = False

    def abortConnection(self) -> None:
        """Note it."""
        self.aborted = True
        self.loseConnection()


class Exchange:
    """One connection with one or more requests on it.

    Attributes:
        transport: Our end.
        channel: The server's protocol.
    """

    def __init__(self, stage: Stage, transport: Any = None) -> None:
        self.transport = transport or Transport(peerAddress=_PEER)
        self.channel: Any = stage.site.buildProtocol(self.transport.getPeer())
        self.channel.makeConnection(self.transport)

    def send(self, data: bytes) -> Exchange:
        """Let the server read *data*."""
        self.channel.dataReceived(data)
        return self

    def leave(self) -> None:
        """Close our end."""
        self.channel.connectionLost(Failure(ConnectionDone()))

    @property
    def answered(self) -> bool:
        """Whether the head of an answer has come."""
        return b"\r\n\r\n" in self.transport.value()

    @property
    def answer(self) -> Answer:
        """The answer."""
        return Answer(self.transport.value())


class Answer:
    """An HTTP response.

    Attributes:
        status: Its status.
        headers: Its headers, by lower-case name.
        body: Its body, as it was sent.
    """

    def __init__(self, raw: bytes) -> None:
        head, found, self.body = raw.partition(b"\r\n\r\n")
        assert found, f"no answer came: {raw!r}"
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str, str]:
        """Status, errcode and error of a refusal."""
        return self.status, self.json["errcode"], self.json["error"]


class Stage:
    """A site over a log in memory.

    Attributes:
        clock: Its time.
        log: What it reads.
        gaps: Where rows are missing in it.
        publisher: Writes into the log.
        services: What the site was built of.
        site: The site.
    """

    def __init__(self, *, extra: Sequence[StreamDef] = (), **services: Any) -> None:
        self.clock = Clock()
        self.registry = Registry([StreamDef("audit"), *extra])
        self.log = services.pop("log", None) or MemoryLog(self.registry, self.now_ms)
        self.gaps = self.log.gaps
        self.publisher = Publisher(self.log, self.registry, "master")
        self.notifier = Notifier()
        self.notifier.attach(self.log)
        self.services = WebServices(
            **{
                "reactor": self.clock,
                "log": self.log,
                "registry": self.registry,
                "publisher": self.publisher,
                "notifier": self.notifier,
                "server_name": "example.com",
                "wall_ms": self.now_ms,
                **services,
            }
        )
        self.site = build_site(self.services)

    def now_ms(self) -> int:
        """Return the time of day."""
        return START_MS + int(self.clock.seconds() * 1000)

    def publish(self, stream: str, *rows: object, instance: str | None = None) -> None:
        """Append rows."""
        encoded = [json.dumps(row).encode() for row in rows]
        _ = self.publisher.publish_json(stream, encoded, instance=instance)
        self.clock.advance(0)

    def lose(self, stream: str, upto: int, *, instance: str = "master", lost: bool = True) -> None:
        """Go over rows that cannot be had, as a relay does."""
        pair = (stream, instance)
        self.log.ensure(*pair)
        self.gaps.add(
            pair, Gap(self.log.position(*pair), upto, Cause.UPSTREAM if lost else Cause.ANEW)
        )
        _ = self.log.advance(*pair, upto)
        self.clock.advance(0)

    def open(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Exchange:
        """Send a request."""
        target = path + (f"?{urlencode(query)}" if query else "")
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if headers and "Host" in headers:
            del lines[1]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        return Exchange(self).send("\r\n".join([*lines, "", ""]).encode() + (body or b""))

    def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request that is answered at once, and leave."""
        exchange = self.open(method, path, query, body, headers)
        answer = exchange.answer
        exchange.leave()
        return answer

    def get(self, path: str, **query: object) -> Answer:
        """Send a GET."""
        return self.ask("GET", path, query)

    def poll(self, **query: object) -> Exchange:
        """Send a long poll."""
        return self.open("GET", "/_synapse/replication", query)

    def close(self) -> None:
        """Stop listening; nothing may be left on the clock."""
        self.site.stopFactory()
        for channel in tuple(self.site.open_channels):
            channel.connectionLost(Failure(ConnectionDone()))
        left = [call for call in self.clock.getDelayedCalls() if call.active()]
        assert left == []
