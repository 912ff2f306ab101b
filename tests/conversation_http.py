"""The HTTP exchanges of protocol.md section 13, made to run against the real site.

Lines after ``>`` are the request (a line, headers, a body), lines after ``<`` the answer (a
status, headers, a body). What stands in brackets is a direction, as in `tests.conversation`;
one between request and answer happens while the request waits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport, StringTransportWithDisconnection

from tcprepl.conformance.document import Block
from tcprepl.ephemeral.typing_notifications import TypingWriter
from tcprepl.federation.receiving.faces import FederationServices, federation_routes
from tcprepl.federation.writing.room_hosts import RoomHosts
from tcprepl.federation.writing.send_queue import SendQueue
from tcprepl.replication.serving.draining import Drain
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.gaps import Cause, Gap
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.notifier import Notifier
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry
from tcprepl.web.services import WebServices
from tcprepl.web.site import build_site
from tests.conversation import INSTANCE, SERVER_NAME, START_S

#: What the tests put for the secrets of an operator.
SECRET = "secret"
CLIENT_TOKEN = "token"


class ExchangeFailed(AssertionError):
    """Another answer came than is written."""


_HEADER = re.compile(r"[A-Z][A-Za-z-]*: .*")


@dataclass
class Exchange:
    """One request, what happens while it waits, and its answer.

    Attributes:
        number: Its line in the document.
        before: Directions before it.
        request: The lines of the request.
        during: Directions while it waits.
        answer: The lines of the answer.
    """

    number: int
    before: list[str]
    request: list[str]
    during: list[str]
    answer: list[str]


def parse_exchanges(block: Block) -> list[Exchange]:
    """Return the exchanges of a block.

    Raises:
        ValueError: a line is not in the notation.
    """
    found: list[Exchange] = []
    directions: list[str] = []
    for number, line in enumerate(block.lines, block.number + 1):
        if line.startswith("(") and line.endswith(")"):
            directions.append(line[1:-1])
        elif line.startswith("> "):
            if not found or found[-1].answer:
                found.append(Exchange(number, directions, [], [], []))
                directions = []
            found[-1].request.append(line[2:])
        elif line.startswith("< ") and found:
            found[-1].during += directions
            directions = []
            found[-1].answer.append(line[2:])
        else:
            raise ValueError(f"protocol.md:{number}: not in the notation: {line}")
    return found


def _split(lines: Sequence[str]) -> tuple[str, list[str], str]:
    """Return the first line, the headers, and the body without the blanks between its words."""
    first, *rest = lines
    headers = [line for line in rest if _HEADER.fullmatch(line)]
    return first, headers, "".join(line for line in rest if not _HEADER.fullmatch(line))


def _answer(transport: StringTransport) -> tuple[str, list[str], str]:
    head, _, body = transport.value().partition(b"\r\n\r\n")
    first, *headers = head.decode().split("\r\n")
    assert first, "no answer comes"
    return first.split(" ", 2)[1], headers, body.decode()


class _Transport(StringTransportWithDisconnection):
    """A connection whose end is told in a later turn, as that of a socket is."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", "127.0.0.1", 50_000))
        self._clock = clock

    def loseConnection(self) -> None:
        """Close, and say so in the next turn."""
        self._clock.callLater(0, super().loseConnection)


class HttpStage:
    """The site on a log in memory, with a fake clock; secrets only when a request has one."""

    def __init__(self, *, guarded: bool) -> None:
        self.clock = Clock()
        self.clock.rightNow = START_S
        registry = Registry()
        self.log = MemoryLog(registry, self._now_ms)
        self.publisher = Publisher(self.log, registry, INSTANCE)
        notifier = Notifier()
        notifier.attach(self.log)
        hosts = RoomHosts(None)
        self.queue = SendQueue(
            self.publisher.publish_json, self.log, SERVER_NAME, INSTANCE, ("fed1",)
        )
        self.typing = TypingWriter(
            self.clock,
            self.publisher.publish,
            SERVER_NAME,
            hosts_in_room=hosts,
            send_edu=self.queue.send_to,
        )
        self.server = ReplicationServer(self.clock, self.log, registry, SERVER_NAME, INSTANCE)
        self.server.drain = self._begin_to_drain
        self._drain: Drain | None = None
        services = FederationServices(now_ms=self._now_ms, send_queue=self.queue, hosts=hosts)
        self.site = build_site(
            WebServices(
                reactor=self.clock,
                log=self.log,
                registry=registry,
                publisher=self.publisher,
                notifier=notifier,
                server_name=SERVER_NAME,
                instance=INSTANCE,
                replication_server=self.server,
                typing=self.typing,
                edus=self.queue,
                acknowledge=self.queue.acknowledge,
                shut=lambda: None if self._drain is None else self._drain.text,
                further=lambda gate: federation_routes(services, gate),
                secrets=(SECRET,) if guarded else (),
                client_tokens={CLIENT_TOKEN: None},
                wall_ms=self._now_ms,
            )
        )

    def _begin_to_drain(self, within_s: float, to: str) -> Drain:
        if self._drain is None:
            self._drain = Drain(self.server, self.log.flush, within_s, to)
        return self._drain

    def _now_ms(self) -> int:
        return int(self.clock.seconds() * 1000)

    def close(self) -> None:
        """Stop what tells metrics; no delayed call may be left."""
        self.queue.close()
        _ = self.typing.stop()
        _ = Deferred.fromCoroutine(self.server.stop())
        self.site.stopFactory()
        self.clock.advance(0)
        assert self.clock.getDelayedCalls() == []

    def paths(self) -> list[tuple[str, str]]:
        """Return (method, path) of everything that the site answers."""
        described = json.loads(self.request("GET /openapi.json")[2])
        return [
            (method.upper(), path)
            for path, methods in described["paths"].items()
            for method in methods
        ]

    def perform(self, exchanges: Sequence[Exchange]) -> None:
        """Act out *exchanges*.

        Raises:
            ExchangeFailed: another answer came.
        """
        for exchange in exchanges:
            try:
                self._exchange(exchange)
            except AssertionError as error:
                raise ExchangeFailed(
                    f"protocol.md:{exchange.number}: {exchange.request[0]}\n{error}"
                ) from error

    def request(self, *lines: str) -> tuple[str, list[str], str]:
        """Make a request that is answered at once; return status, headers and body."""
        return _answer(self.begin(lines))

    def begin(self, lines: Sequence[str]) -> StringTransport:
        """Make a request; return where its answer will be."""
        transport = _Transport(self.clock)
        channel: Any = self.site.buildProtocol(transport.getPeer())
        transport.protocol = channel
        channel.makeConnection(transport)
        first, headers, body = _split(lines)
        content = body.encode()
        head = [f"{first} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
        if content:
            head.append(f"Content-Length: {len(content)}")
        channel.dataReceived("\r\n".join([*head, "", ""]).encode() + content)
        self.clock.advance(0)
        return transport

    def _exchange(self, exchange: Exchange) -> None:
        for text in exchange.before:
            self._direct(text)
        transport = self.begin(exchange.request)
        for text in exchange.during:
            assert not transport.value(), f"answered before: {text}"
            self._direct(text)
        got_status, got_headers, text = _answer(transport)
        status, expected_headers, expected = _split(exchange.answer)
        assert got_status == status, f"{got_status}\n{text}"
        for header in expected_headers:
            assert header in got_headers, f"{header} is not among {got_headers}"
        if "Content-Type: application/json" in got_headers:
            json.loads(text)
        pattern = ".*".join(map(re.escape, re.sub(r"\s", "", expected).split("...")))
        assert re.fullmatch(pattern, re.sub(r"\s", "", text)), f"got  {text}"

    def _direct(self, text: str) -> None:
        if found := re.fullmatch(r"publish (\S+) (\[.*)", text):
            _ = self.publisher.publish_json(found.group(1), [found.group(2).encode()])
        elif found := re.fullmatch(r"publish as (\S+) (\S+) (\[.*)", text):
            instance, stream, row = found.groups()
            _ = self.publisher.publish_json(stream, [row.encode()], instance=instance)
        elif found := re.fullmatch(r"trim (\S+) up to ([0-9]+)", text):
            self.log.trim(found.group(1), INSTANCE, int(found.group(2)))
        elif found := re.fullmatch(r"rows of (\S+) up to ([0-9]+) are lost", text):
            stream, upto = found.group(1), int(found.group(2))
            gap = Gap(self.log.position(stream, INSTANCE), upto, Cause.UPSTREAM)
            self.log.gaps.add((stream, INSTANCE), gap)
            _ = self.log.advance(stream, INSTANCE, upto)
        elif found := re.fullmatch(r"after ([0-9]+) s", text):
            self.clock.pump([1.0] * int(found.group(1)))
        else:
            raise AssertionError(f"no such direction: {text}")
        self.clock.advance(0)
