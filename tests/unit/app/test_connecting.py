"""Where a process connects to."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from twisted.internet import error as net
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.testing import MemoryReactorClock

from tcprepl.app.connecting import NamedEndpoint, client_endpoint
from tcprepl.errors import ConfigError, ConnectionFailed
from tcprepl.replication.following.any_of import AnyOf
from tcprepl.values import parse_address


def test_a_name_can_be_looked_up_when_no_file_can_be_opened() -> None:
    """Python loads what that takes at the first look-up; without it nobody hears of a failure."""
    asked = "import sys, tcprepl.app.connecting; print('encodings.idna' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_endpoints() -> None:
    """HOST:PORT and endpoint strings; what Twisted does not know is an error of ours."""
    reactor = MemoryReactorClock()
    made: Any = client_endpoint(reactor, parse_address("h:1"))
    assert isinstance(made.endpoint, HostnameEndpoint)
    assert client_endpoint(reactor, parse_address("unix:/run/x")) is not None
    for text in ("nonsense:x", "tcp:host=a", "tcp:host=a:port=x"):
        with pytest.raises(ConfigError, match="not an endpoint to connect to"):
            client_endpoint(reactor, parse_address(text))


class Endpoint:
    """An endpoint with one answer."""

    def __init__(self, answer: Deferred[Any]) -> None:
        self.answer = answer

    def connect(self, factory: Any) -> Deferred[Any]:
        return self.answer


def test_one_address_may_know_of_others() -> None:
    reactor = MemoryReactorClock()
    first = parse_address("127.0.0.1:1")
    both = replace(first, others=(parse_address("unix:/run/x"),), token=lambda: "t")
    assert isinstance(client_endpoint(reactor, both), AnyOf)
    away = replace(both, others=(parse_address("h:1"),))
    with pytest.raises(ConfigError, match="can be read on the way"):
        client_endpoint(reactor, away)


def connected(answer: Deferred[Any]) -> Any:
    found: list[Any] = []
    endpoint: Any = Endpoint(answer)
    nothing: Any = None
    NamedEndpoint(endpoint, "h:1").connect(nothing).addBoth(found.append)
    return found[0]


def test_failures_name_the_address_and_cancelling_stays_what_it_is() -> None:
    assert connected(succeed("protocol")) == "protocol"
    failed = connected(fail(net.ConnectionRefusedError()))
    assert failed.check(ConnectionFailed)
    assert failed.getErrorMessage() == (
        "h:1 does not answer: connection refused; is `tcprepl serve` running there?"
    )
    for error in (CancelledError(), net.ConnectingCancelledError(None)):  # type: ignore[arg-type]
        assert connected(fail(error)).value is error
