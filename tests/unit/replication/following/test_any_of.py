"""Several places where the same is served."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock

from tcprepl.errors import CloseReason, ConnectionFailed
from tcprepl.replication.following.any_of import AnyOf

GONE = ConnectionFailed("gone", reason=CloseReason.CONNECTION_LOST)


class Place:
    """An endpoint that counts who comes."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.there = name, log, True

    def connect(self, factory: Any) -> Deferred[Any]:
        self.log.append(self.name)
        return succeed(self.name) if self.there else fail(GONE)


def test_the_next_is_taken_when_one_is_gone() -> None:
    tried: list[str] = []
    places = [Place(name, tried) for name in "abc"]
    endpoint: Any = AnyOf(places)  # type: ignore[arg-type]

    def connect() -> Any:
        found: list[Any] = []
        endpoint.connect(None).addBoth(found.append)
        return found[0]

    assert [connect(), connect()] == ["a", "b"]
    places[2].there = False
    assert connect() == "a"
    assert tried == ["a", "b", "c", "a"]
    for place in places:
        place.there = False
    tried.clear()
    assert connect().check(ConnectionFailed)
    assert sorted(tried) == ["a", "b", "c"]
    cancelled = Deferred[Any]()
    places[0].connect = lambda _: cancelled  # type: ignore[method-assign]
    places[1].there = True
    tried.clear()
    endpoint = AnyOf(places[:2])  # type: ignore[arg-type]
    waiting = endpoint.connect(None)
    waiting.cancel()
    assert waiting.addErrback(lambda failure: failure.trap(CancelledError)).called
    assert tried == [], "who stops goes nowhere else"


def test_an_endpoint_of_your_own_may_fail_as_it_likes() -> None:
    tried: list[str] = []
    first, second = Place("a", tried), Place("b", tried)
    first.connect = lambda _: fail(ConnectError())  # type: ignore[method-assign]
    endpoint: Any = AnyOf([first, second])  # type: ignore[list-item]
    assert endpoint.connect(None).result == "b"


@pytest.mark.parametrize("kind", ["tcp", "name"])
def test_who_stops_goes_nowhere_else_whatever_an_endpoint_makes_of_it(kind: str) -> None:
    """One that connects says `ConnectingCancelledError`, and one that looks a name up anything."""
    tried: list[str] = []
    first: Any = Place("a", tried)
    if kind == "tcp":
        first = TCP4ClientEndpoint(MemoryReactorClock(), "203.0.113.1", 9_092)  # type: ignore[arg-type]
    else:
        first.connect = lambda _: Deferred(lambda it: it.errback(DNSLookupError()))
    ended: list[Any] = []
    waiting: Any = AnyOf([first, Place("b", tried)]).connect(Factory())  # type: ignore[list-item]
    waiting.addBoth(ended.append)
    waiting.cancel()
    assert tried == []
    assert ended[0].check(CancelledError)
