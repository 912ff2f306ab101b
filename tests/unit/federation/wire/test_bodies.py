"""Bodies: bounded, whole or not at all."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed

from tcprepl.federation.wire.bodies import BytesBody, read_body
from tcprepl.federation.wire.failures import RequestFailed


class Response:
    """Delivers what it is told to."""

    def deliverBody(self, protocol: Any) -> None:
        self.protocol = protocol


def read(*parts: bytes, end: Exception | None = None, max_bytes: int = 5) -> Any:
    response: Any = Response()
    found: list[Any] = []
    Deferred.fromCoroutine(read_body(response, max_bytes)).addBoth(found.append)
    for part in parts:
        response.protocol.dataReceived(part)
    response.protocol.connectionLost(Failure(end or error.ConnectionDone()))
    if hasattr(found[0], "raiseException"):
        found[0].raiseException()
    return found[0]


def test_a_body_is_read_whole() -> None:
    assert read(b"ab", b"", b"cde") == b"abcde"


@pytest.mark.parametrize("parts", [(b"abcdef",), (b"abc", b"def", b"g")])
def test_a_body_that_is_too_long_is_a_failure(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(RequestFailed, match="too long"):
        read(*parts)


def test_a_body_that_breaks_off_is_a_failure() -> None:
    with pytest.raises(RequestFailed, match="within"):
        read(b"ab", end=ResponseFailed([]))


def test_who_does_not_wait_any_more_is_told_nothing() -> None:
    response: Any = Response()
    found: list[Any] = []
    reading = Deferred.fromCoroutine(read_body(response, 5))
    reading.addBoth(found.append)
    reading.cancel()
    response.protocol.dataReceived(b"abcdefgh")
    response.protocol.connectionLost(Failure(error.ConnectionDone()))
    assert [failure.type for failure in found] == [CancelledError]


def test_a_body_of_bytes_is_written_at_once() -> None:
    written: list[bytes] = []
    consumer: Any = type("Consumer", (), {"write": staticmethod(written.append)})
    body = BytesBody(b"abc")
    assert body.startProducing(consumer).called
    body.pauseProducing()
    body.resumeProducing()
    body.stopProducing()
    assert (body.length, written) == (3, [b"abc"])
