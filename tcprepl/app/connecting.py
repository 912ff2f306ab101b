"""Where a process connects to."""

from __future__ import annotations

from twisted.internet.endpoints import HostnameEndpoint, clientFromString
from twisted.internet.interfaces import IStreamClientEndpoint

from tcprepl.clocks import Reactor
from tcprepl.config import Address
from tcprepl.errors import ConfigError


def client_endpoint(reactor: Reactor, address: Address) -> IStreamClientEndpoint:
    """Return the endpoint to connect to.

    Raises:
        ConfigError: Twisted does not understand the endpoint string.
    """
    if address.host is not None and address.port is not None:
        return HostnameEndpoint(reactor, address.host.encode(), address.port)
    try:
        endpoint: IStreamClientEndpoint = clientFromString(reactor, address.text)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{address}: not an endpoint to connect to: {error}") from None
    return endpoint
