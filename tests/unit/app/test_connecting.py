"""Where a process connects to."""

from __future__ import annotations

import pytest
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.testing import MemoryReactorClock

from tcprepl.app.connecting import client_endpoint
from tcprepl.config import parse_address
from tcprepl.errors import ConfigError


def test_endpoints() -> None:
    """HOST:PORT and endpoint strings; what Twisted does not know is an error of ours."""
    reactor = MemoryReactorClock()
    assert isinstance(client_endpoint(reactor, parse_address("h:1")), HostnameEndpoint)
    assert client_endpoint(reactor, parse_address("unix:/run/x")) is not None
    for text in ("nonsense:x", "tcp:host=a", "tcp:host=a:port=x"):
        with pytest.raises(ConfigError, match="not an endpoint to connect to"):
            client_endpoint(reactor, parse_address(text))
