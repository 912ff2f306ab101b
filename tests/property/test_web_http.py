"""Any bytes at the HTTP port: answered or closed, never a failure, never a byte too much held."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tcprepl.web.services import HttpLimits
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
