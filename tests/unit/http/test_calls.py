"""What comes from outside, decoded or refused."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs
from twisted.internet.defer import Deferred

from tcprepl.http.calls import ApiError, Call, busy, idempotency_key_of, to_the_end


class Request:
    """As much of a request as is looked at."""

    def __init__(self, **headers: list[bytes]) -> None:
        self.headers = {n.replace("_", "-").lower().encode(): v for n, v in headers.items()}
        self.uri = b"/"


def call(**headers: list[bytes]) -> Call:
    """Return a call with these headers."""
    request: Any = Request(**headers)
    return Call(request, {})


def test_headers_are_decoded_here_and_refused_here() -> None:
    """What is not UTF-8 is a refusal, not a failure."""
    assert call(X=["\u00e9".encode()]).header("X") == "\u00e9"
    assert call().header("X") is None
    with pytest.raises(ApiError, match="header X is not UTF-8"):
        call(X=[b"\xe9"]).header("X")
    with pytest.raises(ApiError, match="given twice"):
        call(X=[b"a", b"b"]).header("X")


def test_an_id_counts_for_its_door_and_its_caller() -> None:
    """The same words of another caller, or at another door, are another id."""

    def key(door: str, caller: str, *given: str | None) -> str | None:
        asked = call()
        asked.caller = caller
        return idempotency_key_of(asked, door, *given)

    assert key("rows", "a", "t") == key("rows", "a", "t") == key("rows", "a", None, "t")
    assert len({key("rows", "a", "t"), key("rows", "b", "t"), key("edus", "a", "t")}) == 3
    assert key("rows", "a", None) is None
    assert idempotency_key_of(call(Idempotency_Key=[b"t"]), "rows", "t") == key("rows", "", "t")
    with pytest.raises(ApiError, match="header Idempotency-Key and txn_id differ"):
        idempotency_key_of(call(Idempotency_Key=[b"t"]), "rows", "u")
    for length in (0, 256):
        with pytest.raises(ApiError, match="1 to 255 characters"):
            key("rows", "a", "x" * length)


def test_work_goes_on_when_nobody_waits() -> None:
    """Its failure is logged then, unless it was a refusal."""
    work: Deferred[int] = Deferred()
    outcome = to_the_end(work)
    outcome.addErrback(lambda _: None)
    outcome.cancel()
    assert not work.called
    work.callback(1)
    for failure, events in ((ValueError("a bug"), ["http.work.failed"]), (busy(503, "no"), [])):
        work = Deferred()
        outcome = to_the_end(work)
        outcome.addErrback(lambda _: None)
        outcome.cancel()
        with capture_logs() as logs:
            work.errback(failure)
        assert [entry["event"] for entry in logs] == events
    found: list[int] = []
    work = Deferred()
    to_the_end(work).addCallback(found.append)
    work.callback(2)
    assert found == [2]
