"""What a connection may cost."""

from __future__ import annotations

import gc
import weakref
from itertools import count
from typing import Any
from unittest import mock

import pytest
from structlog.testing import capture_logs
from twisted.internet.interfaces import IProtocolNegotiationFactory

from tcprepl import limits
from tcprepl.http.channel import CONNECTIONS
from tcprepl.web.services import HttpLimits
from tests.web_site import Answer, Exchange, Stage, Transport

ROWS = "/_tcprepl/v1/streams/audit/rows"


@pytest.fixture
def stage() -> Any:
    """A site with small limits."""
    stage = Stage(
        limits=HttpLimits(
            max_body_bytes=100, max_bodies_bytes=150, max_connections=3, request_timeout_s=10.0
        )
    )
    yield stage
    stage.close()


def test_a_declared_body_that_is_too_large_is_refused_unread(stage: Stage) -> None:
    """Before 100 Continue, so that a polite client sends none of it."""
    exchange = Exchange(stage).send(
        b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\nExpect: 100-continue\r\n\r\n"
        % ROWS.encode()
    )
    assert exchange.answer.error[:2] == (413, "M_TOO_LARGE")
    assert exchange.transport.disconnecting
    exchange.send(b"x" * 101)
    assert stage.log.position("audit", "master") == 0
    exchange.leave()


def test_a_chunked_body_is_cut_at_the_limit(stage: Stage) -> None:
    """Nobody had to say how long it was; what follows is thrown away."""
    exchange = Exchange(stage).send(
        b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % ROWS.encode()
    )
    exchange.send(b"50\r\n" + b"1" * 0x50 + b"\r\n")
    assert not exchange.answered
    exchange.send(b"50\r\n" + b"1" * 0x50 + b"\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n")
    assert exchange.answer.error[:2] == (413, "M_TOO_LARGE")
    assert exchange.transport.value().count(b"HTTP/1.1") == 1
    exchange.leave()


def test_bodies_of_all_requests_share_a_bound(stage: Stage) -> None:
    """The second large body is told to come back; what is answered is given back."""
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n" % ROWS.encode()
    first = Exchange(stage).send(head + b"[" + b" " * 90)
    second = Exchange(stage).send(head + b"[" + b" " * 90)
    assert second.answer.error[:2] == (429, "M_LIMIT_EXCEEDED")
    assert second.answer.headers["retry-after"] == "1"
    first.send(b"       1]")
    assert first.answer.status == 200
    assert stage.site.held_bytes == 0
    assert stage.ask("POST", ROWS, body=b"[1]").status == 200
    second.leave()
    first.leave()


def test_a_form_is_a_body_like_any_other(stage: Stage) -> None:
    """What curl calls a body by default does not turn JSON into parameters."""
    answer = stage.ask(
        "POST",
        ROWS,
        body=b'["a=b&c"]',
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert answer.status == 200


def test_a_request_that_dribbles_is_ended(stage: Stage) -> None:
    """From being ready to the last byte, not from byte to byte."""
    exchange = Exchange(stage)
    for byte in b"GET /health ":
        exchange.send(bytes([byte]))
        stage.clock.advance(0.5)
    stage.clock.advance(3.9)
    exchange.send(b"HTTP/1.1\r\n")
    assert not exchange.answered
    stage.clock.advance(0.2)
    assert exchange.answer.error[:2] == (408, "M_LIMIT_EXCEEDED")
    assert exchange.transport.disconnecting
    assert not exchange.transport.aborted
    stage.clock.advance(limits.HTTP_CLOSE_TIMEOUT_S)
    assert exchange.transport.aborted
    exchange.leave()


def test_an_idle_connection_is_closed_without_a_word(stage: Stage) -> None:
    """After an answer the time begins anew."""
    exchange = Exchange(stage)
    stage.clock.advance(9)
    exchange.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    before = exchange.transport.value()
    stage.clock.advance(9)
    assert not exchange.transport.disconnecting
    stage.clock.advance(1)
    assert exchange.transport.disconnecting
    assert exchange.transport.value() == before
    stage.clock.advance(limits.HTTP_CLOSE_TIMEOUT_S)
    assert exchange.transport.aborted
    exchange.leave()


def test_a_request_that_waits_for_its_answer_has_no_deadline(stage: Stage) -> None:
    """A blocked poll outlives the time for sending a request."""
    exchange = stage.poll(typing=0, timeout=60_000)
    stage.clock.advance(59)
    assert not exchange.answered
    stage.clock.advance(1)
    assert exchange.answer.status == 200
    exchange.leave()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * limits.MAX_HTTP_HEADER_BYTES + b" HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * limits.MAX_HTTP_HEADER_BYTES,
        b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: %b\r\n" % (n, b"y" * 900) for n in range(20)),
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (limits.MAX_HTTP_HEADERS + 2),
    ],
)
def test_a_large_head_is_refused(stage: Stage, head: bytes) -> None:
    """A long request line, a long header, many headers; once, however much follows."""
    exchange = Exchange(stage).send(head).send(b"more\r\n" * 3_000).send(b"\r\n\r\n")
    assert exchange.answer.error[:2] == (431, "M_TOO_LARGE")
    assert exchange.transport.value().count(b"HTTP/1.1") == 1
    exchange.leave()


def test_as_many_headers_as_allowed_are_taken(stage: Stage) -> None:
    """The bound is where protocol.md says, for each request of a connection."""
    exchange = Exchange(stage)
    for _ in range(2):
        exchange.send(b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * limits.MAX_HTTP_HEADERS + b"\r\n")
    assert exchange.transport.value().count(b"HTTP/1.1 200") == 2
    exchange.leave()


def test_a_client_that_asks_for_a_protocol_over_tls_is_told(stage: Stage) -> None:
    """Twisted ends a handshake in which nothing is agreed on."""
    assert IProtocolNegotiationFactory.providedBy(stage.site)
    assert stage.site.acceptableProtocols() == [b"http/1.1"]


def test_connections_are_counted(stage: Stage) -> None:
    """One too many is closed at once; one that leaves makes room."""
    known = CONNECTIONS.samples().get((), 0.0)
    open_ = [Exchange(stage) for _ in range(3)]
    assert CONNECTIONS.samples()[()] - known == 3
    with capture_logs() as logs:
        assert stage.site.buildProtocol(None) is None
    assert logs[0]["event"] == "http.too_many_connections"
    open_.pop().leave()
    assert stage.site.buildProtocol(None) is not None
    for exchange in open_:
        exchange.leave()


def test_the_log_has_no_query(stage: Stage) -> None:
    """Access tokens come in queries."""
    with capture_logs() as logs:
        stage.get("/health", access_token="hush")
    assert "hush" not in repr(logs)
    assert logs[0]["event"] == "http.request"
    assert logs[0]["path"] == "/health"


def test_drain_answers_what_waits_and_closes_the_rest(stage: Stage) -> None:
    """Polls are answered at once, idle connections closed, nobody is cut off."""
    idle = Exchange(stage)
    poll = stage.poll(typing=0)
    stage.site.drain()
    assert idle.transport.disconnecting
    assert Answer(poll.transport.value()).json == {}
    assert poll.transport.disconnecting
    late = stage.poll(typing=0)
    assert late.answer.json == {}
    for exchange in (idle, poll, late):
        exchange.leave()


def test_what_is_no_http_is_refused_once(stage: Stage) -> None:
    """With a sentence, whatever comes after it."""
    exchange = Exchange(stage).send(b"REPLICATE\r\n")
    assert exchange.answer.error == (400, "M_UNRECOGNIZED", "this is not an HTTP request")
    exchange.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    exchange.channel.loseConnection()
    stage.clock.advance(limits.HTTP_CLOSE_TIMEOUT_S)
    assert exchange.transport.value().count(b"HTTP/1.1") == 1
    assert exchange.transport.aborted
    exchange.leave()


def test_a_long_answer_may_take_longer_to_read_than_a_refusal(stage: Stage) -> None:
    """But not for ever."""
    exchange = Exchange(stage).send(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    stage.clock.advance(9)
    assert exchange.transport.disconnecting
    assert not exchange.transport.aborted
    stage.clock.advance(1)
    assert exchange.transport.aborted
    exchange.leave()


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        (b"http://localhost/health", b"evil.example", 200),
        (b"http://localhost/_tcprepl/v1/status", b"evil.example", 200),
        (b"http://evil.example/_tcprepl/v1/status", b"localhost", 403),
        (b"http://localhost", b"localhost", 200),
        (b"http://localhost?/health", b"localhost", 200),
        (b"ws://localhost/health", b"localhost", 400),
        (b"http://", b"localhost", 400),
        (b"localhost:80", b"localhost", 400),
        (b"health", b"localhost", 400),
        (b"*", b"localhost", 400),
    ],
)
def test_the_absolute_form_names_path_and_host(target: bytes, host: bytes, status: int) -> None:
    """The header of that name does not count then."""
    stage = Stage()
    exchange = Exchange(stage).send(b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target, host))
    assert exchange.answer.status == status
    exchange.leave()
    stage.close()


@pytest.mark.parametrize("method", [b"OPTIONS", b"CONNECT", b"PRI"])
@pytest.mark.parametrize("target", [b"*", b"localhost:80"])
def test_a_target_that_is_no_path(stage: Stage, method: bytes, target: bytes) -> None:
    """Whether anybody is there may be asked; what is to be passed on is refused, as it was said."""
    head = b"%b %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % (method, target)
    exchange = Exchange(stage).send(head)
    answer = exchange.answer
    assert answer.headers["server"] == "tcprepl"
    if method == b"OPTIONS" and target == b"*":
        assert (answer.status, answer.headers["x-content-type-options"]) == (204, "nosniff")
        assert exchange.send(GET).transport.value().count(b"HTTP/1.1 200") == 1
    else:
        assert answer.error[:2] == (400, "M_UNRECOGNIZED")
    exchange.leave()


GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


class Socket:
    """A socket that takes so many bytes of each write, and then is full."""

    def __init__(self, *takes: int | None) -> None:
        self.takes = list(takes)
        self.sent = b""

    def send(self, data: bytes) -> int:
        """Take some; None is a socket that is full, or gone."""
        some = self.takes.pop(0)
        if some is None:
            raise BlockingIOError
        self.sent += data[:some]
        return min(some, len(data))


@pytest.mark.parametrize("takes", [[7], [None], [10_000, 7], [10_000, None]])
def test_an_answer_goes_straight_to_the_socket_while_it_takes_all(
    stage: Stage, takes: list[int | None]
) -> None:
    """What does not fit, and all that follows, goes through the transport, in order."""
    exchange = Exchange(stage)
    straight = Socket(*takes)
    exchange.channel._send = straight.send
    whole = Exchange(stage).send(GET * 3).transport.value()
    exchange.send(GET * 3)
    assert straight.sent + exchange.transport.value() == whole
    assert straight.takes == []
    exchange.leave()


def test_http_1_0_is_answered_and_closed(stage: Stage) -> None:
    exchange = Exchange(stage).send(b"GET /health HTTP/1.0\r\n\r\n")
    assert exchange.transport.value().startswith(b"HTTP/1.0 200 OK\r\nDate: ")
    assert exchange.transport.disconnecting
    exchange.leave()


def test_who_asks_for_the_end_gets_it(stage: Stage) -> None:
    exchange = Exchange(stage).send(GET[:-2] + b"Connection: close\r\n\r\n")
    assert exchange.answer.headers["connection"] == "close"
    assert exchange.transport.disconnecting
    exchange.leave()


def test_the_timer_of_a_request_is_not_that_of_the_next(stage: Stage) -> None:
    """One timer goes on from request to request; each has its own time."""
    exchange = Exchange(stage)
    for _ in range(50):
        stage.clock.advance(9)
        exchange.send(GET)
        assert len(stage.clock.getDelayedCalls()) <= 1
    assert not exchange.transport.disconnecting
    stage.clock.advance(10.1)
    assert exchange.transport.disconnecting
    exchange.leave()
    assert stage.clock.getDelayedCalls() == []


def test_star_is_not_a_path(stage: Stage) -> None:
    exchange = Exchange(stage).send(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
    assert exchange.transport.value().startswith(b"HTTP/1.1 ")
    exchange.leave()


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /health HTTP/1.1\n\n",
        b"GET /health HTTP/1.1\r\nX: a\n\r\n",
        b"GET /health HTTP/1.1\r\nX : a\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX: \x00\r\n\r\n",
        b"GET /health HTTP/2.0\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET /he alth HTTP/1.1\r\n\r\n",
        b"POST /health HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /health HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /health HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
        b"POST /health HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n",
        b"POST /health HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\n",
        b"POST /health HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\n0\n\n",
        b"POST /health HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_what_two_could_read_in_two_ways_is_refused(stage: Stage, request_: bytes) -> None:
    """What follows it is not taken for a request."""
    exchange = Exchange(stage).send(request_ + GET)
    assert exchange.answer.error[:2] == (400, "M_UNRECOGNIZED")
    assert exchange.transport.value().count(b"HTTP/1.1 ") == 1
    assert exchange.transport.disconnecting
    exchange.leave()


def test_an_upgrade_is_ignored_and_the_body_is_the_requests(stage: Stage) -> None:
    """As curl asks for HTTP/2: what follows the head is no request (RFC 9110, 7.8)."""
    head = b"Host: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    exchange = Exchange(stage)
    exchange.send(b"GET /health HTTP/1.1\r\n%b\r\n" % head)
    body = b"[" + b" " * 20 + b"1]"
    exchange.send(
        b"POST %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b"
        % (ROWS.encode(), head.replace(b"x", b"localhost", 1), len(body), body[:5])
    )
    exchange.send(body[5:] + GET)
    assert exchange.transport.value().count(b"HTTP/1.1 200") == 3
    assert stage.log.position("audit", "master") == 1
    exchange.leave()


def test_what_comes_behind_a_body_in_chunks_is_bounded(stage: Stage) -> None:
    """A trailer says nothing to us, and has an end."""
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    exchange = Exchange(stage)
    exchange.send(head % ROWS.encode() + b"3\r\n[1]\r\n0\r\nHost: y\r\n\r\n" + GET)
    assert exchange.transport.value().count(b"HTTP/1.1 200") == 2
    exchange.send(head % ROWS.encode() + b"3\r\n[2]\r\n0\r\nX: ")
    for _ in range(limits.MAX_HTTP_HEADER_BYTES // 1_000 + 1):
        exchange.send(b"y" * 1_000)
    assert exchange.transport.value().count(b"HTTP/1.1 431") == 1
    assert stage.log.position("audit", "master") == 1
    exchange.leave()


def test_what_follows_a_request_waits_until_that_is_answered(stage: Stage) -> None:
    """In order; from who sends much meanwhile nothing is read."""
    exchange = stage.poll(typing=0, timeout=9_000)
    for _ in range(600):
        exchange.send(GET)
    assert not exchange.answered
    assert exchange.transport.producerState == "paused"
    stage.clock.advance(9)
    assert exchange.transport.value().count(b"HTTP/1.1 200") == 601
    assert exchange.transport.producerState == "producing"
    exchange.leave()


def test_many_requests_at_once_take_turns_with_others(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection is served for a while, and goes on in the next turn; all is in order."""
    exchange, leaves = Exchange(stage), Exchange(stage)
    ticks = count()
    with monkeypatch.context() as patch:
        patch.setattr(stage.clock, "seconds", lambda: next(ticks) / 2_000)
        exchange.send(GET * 20 + GET[:9])
        assert stage.site.turns == 1
        stage.site.turns += 19  # so many do the same
        leaves.send(GET * 20)
        stage.site.turns -= 19
    first = exchange.transport.value().count(b"HTTP/1.1 200")
    assert 0 < first < 10
    others = leaves.transport.value().count(b"HTTP/1.1 200")
    assert 0 < others < first
    leaves.leave()
    assert stage.site.turns == 1
    exchange.send(GET[9:])
    assert exchange.transport.value().count(b"HTTP/1.1 200") == first
    stage.clock.advance(1)
    assert exchange.transport.value().count(b"HTTP/1.1 200") == 21
    assert stage.site.turns == 0
    exchange.leave()


def test_who_does_not_read_its_answers_is_not_read(stage: Stage) -> None:
    """Until it has read them."""
    exchange = Exchange(stage).send(GET)
    exchange.channel.pauseProducing()
    exchange.send(GET).send(GET[:9])
    assert exchange.transport.value().count(b"HTTP/1.1 200") == 1
    assert exchange.transport.producerState == "paused"
    exchange.channel.resumeProducing()
    assert exchange.transport.value().count(b"HTTP/1.1 200") == 2
    assert exchange.transport.producerState == "producing"
    exchange.send(GET[9:])
    assert exchange.transport.value().count(b"HTTP/1.1 200") == 3
    exchange.leave()


def test_an_answer_that_goes_on_is_in_chunks_where_the_client_knows_them(stage: Stage) -> None:
    """A client of HTTP/1.0 reads up to the close."""
    stage.site.startFactory()
    head = b"GET /_tcprepl/v1/events HTTP/1.%d\r\nHost: localhost\r\n\r\n"
    new, old = (Exchange(stage).send(head % minor) for minor in (1, 0))
    assert new.answer.headers["transfer-encoding"] == "chunked"
    assert "transfer-encoding" not in old.answer.headers
    assert old.answer.body.startswith(b"retry: 1000\n")
    new.leave()
    stage.clock.advance(1)
    assert old.answer.body.count(b"data: ") == 2
    assert new.answer.body.count(b"data: ") == 1
    stage.site.drain()
    assert old.transport.disconnecting
    old.leave()


@pytest.mark.parametrize(
    "begun",
    [
        b"Content-Length: 90\r\n\r\n[",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n[    \r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n[    \r\nZZ\r\n",
        b"Content-Length: 101\r\n\r\n[",
    ],
)
def test_a_connection_that_ends_leaves_nothing_for_the_collector(
    stage: Stage, begun: bytes
) -> None:
    """Bodies of requests that never come whole are let go of at once, refused ones too."""
    gc.collect()
    gc.disable()
    try:
        head = b"POST %b HTTP/1.1\r\nHost: x\r\n" % ROWS.encode()
        exchange = Exchange(stage).send(head + begun)
        exchange.transport.producer = None  # a real one lets go of it by itself
        held = weakref.ref(exchange.channel), weakref.ref(exchange.channel._reader)
        exchange.leave()
        del exchange
        assert [one() for one in held] == [None, None]
    finally:
        gc.enable()


def test_who_has_said_all_is_answered(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what waits for its turn; then our side is closed, too."""
    exchange, idle = Exchange(stage), Exchange(stage).send(GET)
    ticks = count()
    with monkeypatch.context() as patch:
        patch.setattr(stage.clock, "seconds", lambda: next(ticks) / 2_000)
        exchange.send(GET * 20 + GET[:9])
        exchange.channel.readConnectionLost()
    assert exchange.transport.value().count(b"HTTP/1.1 200") < 20
    assert not exchange.transport.disconnecting
    stage.clock.advance(1)
    assert exchange.transport.value().count(b"HTTP/1.1 200") == 20
    assert exchange.transport.disconnecting
    idle.channel.readConnectionLost()
    assert idle.transport.disconnecting
    for one in (idle, exchange):
        one.channel.writeConnectionLost()
        one.leave()


def test_who_has_said_all_waits_for_a_while(stage: Stage) -> None:
    """Who left in a poll does not keep it for as long as the poll would wait."""
    stays, left = stage.poll(typing=0, timeout=60_000), stage.poll(receipts=0, timeout=60_000)
    for poll in (stays, left):
        poll.channel.readConnectionLost()
    stage.clock.advance(limits.HTTP_HALF_CLOSED_S - 1)
    left.send(b"")
    assert not left.transport.aborted
    stage.publish("typing", ["!r:x", []])
    assert stays.answered
    assert stays.transport.disconnecting
    stage.clock.advance(1)
    assert left.transport.aborted
    for poll in (stays, left):
        poll.leave()


def test_who_sends_much_behind_a_poll_is_cut_off_in_time(stage: Stage) -> None:
    """It is not read, and so nobody would hear that it is gone."""
    exchange = stage.poll(typing=0, timeout=5_000)
    path = b"/_synapse/replication?typing=0&timeout=60000"
    exchange.send(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
    exchange.send(GET * 600)
    stage.clock.advance(5)
    assert exchange.transport.value().count(b"HTTP/1.1") == 1
    stage.clock.advance(9)
    assert not exchange.transport.aborted
    stage.clock.advance(1)
    assert exchange.transport.aborted
    exchange.leave()


class Slow(Transport):
    """A transport that holds what its peer has not taken, as that of a socket does."""

    TLS = True
    offset = 0

    def hold(self, size: int) -> None:
        """Have so much that the peer has not taken."""
        self.dataBuffer, self._tempDataLen = b"x" * (size - 100), 100


@pytest.mark.parametrize("close", [False, True])
def test_who_reads_slowly_is_not_cut_off(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, close: bool
) -> None:
    """As long as it reads: an answer may take longer than the time for a request."""
    monkeypatch.setattr("tcprepl.http.channel.Connection", Slow)
    exchange = Exchange(stage, Slow())
    exchange.send(GET[:-2] + (b"Connection: close\r\n\r\n" if close else b"\r\n"))
    for left in (900, 600, 300):
        exchange.transport.hold(left)
        stage.clock.advance(10)
        assert not exchange.transport.aborted
        assert exchange.transport.disconnecting == close
    stage.clock.advance(10)
    assert exchange.transport.disconnecting
    stage.clock.advance(limits.HTTP_CLOSE_TIMEOUT_S)
    assert exchange.transport.aborted
    exchange.leave()


WATCH = b"GET /_tcprepl/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_who_reads_nothing_of_an_answer_without_end_is_cut_off(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would keep the place of somebody else; who reads slowly stays, and who reads all."""
    monkeypatch.setattr("tcprepl.http.channel.Connection", Slow)
    exchange = Exchange(stage, Slow()).send(WATCH)
    exchange.channel.pauseProducing()
    for left in (900, 600, 300):
        exchange.transport.hold(left)
        stage.clock.advance(10)
    exchange.channel.resumeProducing()
    stage.clock.advance(50)
    assert not exchange.transport.aborted
    exchange.channel.pauseProducing()
    exchange.transport.hold(500)
    stage.clock.advance(10)
    assert not exchange.transport.aborted
    stage.clock.advance(10)
    assert exchange.transport.aborted
    exchange.leave()


@pytest.mark.parametrize("said", [b"", b"x" * 20_000])
def test_who_sends_while_an_answer_goes_on_is_still_looked_at(stage: Stage, said: bytes) -> None:
    """Of who has sent much nothing more is read, so its end would not be heard."""
    exchange = Exchange(stage).send(WATCH + said)
    exchange.channel.pauseProducing()
    exchange.channel.resumeProducing()
    stage.clock.advance(10)
    assert exchange.transport.aborted is bool(said)
    exchange.leave()


def test_who_has_read_nothing_when_an_answer_without_end_begins_is_cut_off(stage: Stage) -> None:
    exchange = Exchange(stage)
    exchange.channel.pauseProducing()
    exchange.channel._request, exchange.channel._due_s = mock.Mock(), None
    exchange.channel.stream(b"HTTP/1.1 200 OK\r\n\r\n", producer := mock.Mock())
    producer.pauseProducing.assert_called_once_with()
    stage.clock.advance(10)
    assert exchange.transport.aborted
    exchange.leave()


def test_drain_answers_what_waits_for_its_turn(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the word that the connection ends."""
    exchange = Exchange(stage)
    ticks = count()
    with monkeypatch.context() as patch:
        patch.setattr(stage.clock, "seconds", lambda: next(ticks) / 2_000)
        exchange.send(GET * 20)
    first = exchange.transport.value().count(b"HTTP/1.1 200")
    stage.site.drain()
    assert not exchange.transport.disconnecting
    stage.clock.advance(1)
    assert exchange.transport.value().count(b"HTTP/1.1 200") == first + 1
    assert exchange.transport.value().count(b"Connection: close\r\n") == 1
    assert exchange.transport.disconnecting
    exchange.leave()
