"""Twisted's failures and addresses in our words: the one place that translates them."""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from tcprepl.errors import CloseReason

#: How the URL of an HTTP server on a Unix socket begins; the rest of its path follows.
UNIX_URL = "http://unix:/"


def close_reason_of(failure: Failure) -> CloseReason:
    """Return why a connection ended that we did not close."""
    if failure.check(ConnectionDone):
        return CloseReason.PEER_CLOSED
    return CloseReason.CONNECTION_LOST


def describe_address(address: object) -> str:
    """Return *address* for people: ``127.0.0.1:9092``, ``[::1]:9092``, ``unix:/path``."""
    if isinstance(address, IPv4Address):
        return f"{address.host}:{address.port}"
    if isinstance(address, IPv6Address):
        return f"[{address.host}]:{address.port}"
    if isinstance(address, UNIXAddress):
        name = address.name or b""
        return "unix:" + (name.decode("utf-8", "replace") if isinstance(name, bytes) else name)
    return str(address)
