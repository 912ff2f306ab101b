"""Any bytes at the HTTP port: answered or closed, never a failure, never a byte too much held."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tcprepl.federation.receiving.faces import FederationServices, federation_routes
from tcprepl.federation.receiving.receiver import SeenTransactions, TransactionReceiver
from tcprepl.federation.wire.keyring import KeyNotFound, Keyring
from tcprepl.federation.writing.room_hosts import RoomHosts
from tcprepl.federation.writing.send_queue import SendQueue
from tcprepl.http.routing import Router
from tcprepl.web.services import HttpLimits
from tcprepl.web.site import build_site
from tests.web_site import Exchange, Stage

#: Pieces that are nearly HTTP, which random bytes never are.
PIECES = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"GET /_synapse/replication?typing=-1&timeout=5 HTTP/1.1\r\n",
        b"GET /_synapse/replication?%ff=1;a=b&& HTTP/1.0\r\n",
        b"POST /_tcprepl/v1/streams/audit/rows HTTP/1.1\r\n",
        b"PUT /_matrix/client/v3/sendToDevice/a/b HTTP/1.1\r\n",
        b"OPTIONS * HTTP/1.1\r\n",
        b"HEAD http://localhost/health HTTP/1.1\r\n",
        b"GET /%00/../\xc3\xa9 HTTP/1.1\r\n",
        b"REPLICATE typing NOW\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"Host: localhost\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: 30\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Authorization: Basic \xff\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: close\r\n",
        b"X" * 200 + b"\r\n",
        b" folded\r\n",
        b"\r\n",
        b"\n",
        b"[1]",
        b"3\r\n[1]\r\n",
        b"0\r\n\r\n",
        b"fffffffffffffffff\r\n",
    ]
)


@given(
    pieces=st.lists(st.one_of(PIECES, PIECES, PIECES, st.binary(max_size=20)), max_size=25),
    cut=st.integers(1, 40),
)
def test_any_bytes_are_answered_or_closed(pieces: list[bytes], cut: int) -> None:
    """However they are split; and after the deadline nothing is left of the connection."""
    stage = Stage(limits=HttpLimits(max_body_bytes=50, max_bodies_bytes=60))
    exchange = Exchange(stage)
    data = b"".join(pieces)
    for start in range(0, len(data), cut):
        if not exchange.transport.disconnecting:
            exchange.send(data[start : start + cut])
        assert stage.site.held_bytes <= 60
    stage.clock.pump([1.0] * 130)
    answered = exchange.transport.value()
    assert answered == b"" or answered.startswith(b"HTTP/1."), answered
    assert b" 500 " not in answered.partition(b"\r\n")[0]
    assert exchange.transport.disconnecting
    exchange.leave()
    assert (stage.site.held_bytes, stage.site.open_channels) == (0, set())
    stage.close()


_POST = b"POST /_tcprepl/v1/streams/audit/rows HTTP/1.1\r\nHost: localhost\r\n"
#: Requests, each with the status of its answer.
REQUESTS = st.sampled_from(
    [
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"\r\n\r\nGET /none HTTP/1.1\r\nHost:  localhost \t\r\n\r\n", 404),
        (_POST + b"Content-Length: 5\r\n\r\n[1,2]", 200),
        (_POST + b"Content-Length: 9\r\n\r\n\r\n\r\n\r\n[1]", 200),
        (_POST + b"Content-Length: 0\r\n\r\n", 400),
        (_POST + b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 3\r\n\r\n[1]", 200),
        (_POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n[\r\n2;a=b\r\n1]\r\n0\r\n\r\n", 200),
        (
            _POST
            + b"Transfer-Encoding: chunked\r\n\r\n"
            + b"7\r\n\r\n\r\n[1]\r\n0\r\nGET: /\r\nX: y\r\n\r\n",
            200,
        ),
        (b"HEAD http://localhost/health HTTP/1.1\r\nHost: evil.example\r\n\r\n", 200),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", 204),
        (b"GET /_synapse/replication?typing=0&timeout=1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
    ]
)


@given(
    requests=st.lists(REQUESTS, max_size=6),
    sizes=st.lists(st.integers(1, 60), min_size=1),
    full=st.sets(st.integers(0, 30), max_size=4),
)
def test_requests_are_the_same_however_they_come(
    requests: list[tuple[bytes, int]], sizes: list[int], full: set[int]
) -> None:
    """In pieces of any size, one behind the other, to who reads its answers or for a while not."""
    stage = Stage()
    exchange = Exchange(stage)
    data = b"".join(raw for raw, _ in requests)
    at = step = 0
    while at < len(data):
        if step in full:
            exchange.channel.pauseProducing()
        size = sizes[step % len(sizes)]
        exchange.send(data[at : at + size])
        if step in full:
            exchange.channel.resumeProducing()
        at += size
        step += 1
    for _ in requests:
        stage.clock.advance(1)
    answers = exchange.transport.value().split(b"HTTP/1.1 ")[1:]
    assert [int(answer[:3]) for answer in answers] == [status for _, status in requests]
    rows = sum(2 if b"[1,2]" in raw else b"1]" in raw for raw, _ in requests)
    assert stage.log.position("audit", "master") == rows
    assert not exchange.transport.disconnecting
    assert stage.site.held_bytes == 0
    exchange.leave()
    stage.close()


async def no_keys(destination: str, uri: str) -> Any:
    """Reach nobody."""
    raise KeyNotFound(destination)


class Faces(Stage):
    """A site with every face that can stand in memory; the queue goes at the end."""

    def __init__(self, **services: Any) -> None:
        super().__init__(**services)
        self.queue = SendQueue(self.publisher.publish_json, self.log, "example.com", "master")
        self.seen = SeenTransactions()
        receiver = TransactionReceiver(
            "example.com", Keyring(no_keys, self.now_ms), self.seen, self.now_ms
        )
        given = FederationServices(
            now_ms=self.now_ms, receiver=receiver, send_queue=self.queue, hosts=RoomHosts()
        )
        self.site.stopFactory()
        self.services.edus = self.queue
        self.services.further = lambda gate: federation_routes(given, gate)
        self.site = build_site(self.services)

    def close(self) -> None:
        """Close what is open."""
        self.queue.close()
        self.seen.close()
        super().close()


_METHODS = st.sampled_from([b"GET", b"PUT", b"POST", b"OPTIONS", b"HEAD", b"DELETE"])
_NAMES = st.sampled_from(
    [
        b"Authorization",
        b"Origin",
        b"Host",
        b"Accept",
        b"Idempotency-Key",
        b"Content-Type",
        b"Cookie",
    ]
)
#: What may stand in a header's value: any byte but the ends of lines.
_VALUES = st.one_of(
    st.binary(max_size=30).map(lambda value: value.translate(None, b"\r\n")),
    st.sampled_from(
        [
            b'X-Matrix origin="a.example",,key="ed25519:a",sig="eA"',
            b"Bearer secret",
            b"Bearer tcprepl_user.QGE.RA.x",
            b"Basic \xff",
            b"http://[",
            b"localhost",
            b"[::1",
        ]
    ),
)
_WORDS = st.sampled_from(
    [b"%ff", b"%00", b"\xc3\xa9", b"!r:x", b"@a:example.com", b"-1", b"9" * 30, b"a=b", b"%2f"]
)
_QUERIES = st.sampled_from(
    b"user_id device_id access_token txn_id instance batch typing streams timeout limit format "
    b"from_token upto_token %ff".split()
)
_BODIES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"{}",
            b"[]",
            b"null",
            b'{"messages":{"@a:b.example.":{"D":{}},"@k:b.example":{"D":{"a":1e999}}}}',
            b'{"messages":{"@k:b.example":{"D":{"a":NaN}}}}',
            b'{"destination":"b","edu_type":"m.x","content":{"a":"\\ud800"}}',
            b'{"destination":"b","edu_type":"","content":{},"key":[null]}',
            b'{"hosts":["a b"]}',
            b'{"type":"m.login.token","token":"secret","user":"\\ud800"}',
            b'["\\ud800"]',
        ]
    ),
)


@given(data=st.data(), guarded=st.booleans())
def test_any_request_to_any_face_is_answered_without_a_failure(
    data: st.DataObject, guarded: bool
) -> None:
    """Any method, arguments, query, headers and body, at every path there is."""
    secrets = ("secret",) if guarded else ()
    stage = Faces(secrets=secrets, client_tokens={"token": None} if guarded else {})
    router: Router = stage.site.resource  # type: ignore[assignment]
    route = data.draw(st.sampled_from(router.routes))
    path = b"/".join(
        data.draw(_WORDS) if part.startswith("{") else part.encode() for part in route.segments
    )
    method = data.draw(st.one_of(st.just(route.method.encode()), _METHODS))
    form = data.draw(st.sampled_from([b"/", b"http://localhost/", b"HTTPS://evil.example/"]))
    query = b"&".join(data.draw(st.lists(st.tuples(_QUERIES, _WORDS).map(b"=".join), max_size=3)))
    headers = data.draw(st.lists(st.tuples(_NAMES, _VALUES).map(b": ".join), max_size=4))
    body = data.draw(_BODIES)
    head = [b"%b %b%b?%b HTTP/1.1" % (method, form, path, query), b"Host: localhost", *headers]
    request = b"\r\n".join([*head, b"Content-Length: %d" % len(body), b"", b""]) + body
    with capture_logs() as logs:
        exchange = Exchange(stage).send(request)
        stage.clock.pump([1.0] * 70)
    failed = [entry for entry in logs if entry["log_level"] in ("error", "critical")]
    assert not failed, (request, failed)
    status = exchange.transport.value().split(b" ")[1:2]
    assert status != [b"500"], request
    exchange.leave()
    stage.close()
