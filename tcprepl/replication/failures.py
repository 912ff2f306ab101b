"""Failures of connections, in our words, and how long to wait after some."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Collection
from typing import Final, Protocol

from twisted.internet import error as net
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.python.failure import Failure

from tcprepl import limits
from tcprepl.errors import CloseReason

_NO_TLS: Final = "no TLS is spoken there; is it the address of a listener without?"


def close_reason_of(failure: Failure) -> CloseReason:
    """Return why a connection ended that we did not close."""
    if failure.check(net.ConnectionDone):
        return CloseReason.PEER_CLOSED
    return CloseReason.CONNECTION_LOST


def reason_of(error: BaseException | None) -> str:
    """Return why nobody answers, and what can be done about it."""
    fault = _fault_of_certificate(error)
    if fault is not None:
        return fault
    if isinstance(error, ConnectionRefusedError | net.ConnectionRefusedError):
        return "connection refused; is `tcprepl serve` running there?"
    if isinstance(error, net.DNSLookupError | socket.gaierror):
        return "there is no such host; is the name right?"
    if isinstance(error, TimeoutError | net.TimeoutError):
        return "no connection in time; is it the right host, and does a firewall let us through?"
    if _is_no_tls(error):
        return _NO_TLS
    number = getattr(error, "errno", None) or getattr(error, "osError", None)
    if isinstance(error, FileNotFoundError) or number == 2:
        return "there is no such socket; is `tcprepl serve` running there?"
    return str(error).strip() or type(error).__name__


def lost_because(failure: Failure) -> str:
    """Return why a connection ended that had been made."""
    if _is_no_tls(failure.value):
        return _NO_TLS
    return _fault_of_certificate(failure.value) or failure.getErrorMessage()


def _is_no_tls(error: BaseException | None) -> bool:
    """Return whether whoever answered a TLS hello with *error* does not know what that is."""
    text = str(error).lower().replace("_", " ")
    return "wrong version number" in text and ("ssl" in text or isinstance(error, ssl.SSLError))


def _fault_of_certificate(error: BaseException | None) -> str | None:
    """Return what is wrong with a certificate, and what can be done; None if it is not that."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = f" ({error.verify_message})"
    elif "certificate verify failed" in str(error):  # Twisted's OpenSSL says no more
        why = ""
    elif type(error).__module__.startswith("service_identity"):
        return "its certificate is that of another host; is the name right?"
    else:
        return None
    return (
        f"its certificate is not trusted{why}: the ca of a context, or of a URL, else the variable "
        "SSL_CERT_FILE, names a PEM file with the authorities that are"
    )


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


class _Closable(Protocol):
    closing: CloseReason | None


def too_many(connections: Collection[_Closable], limit: int) -> bool:
    """Return whether *connections* are more than *limit*; those being closed have no place."""
    return len(connections) > limit and sum(one.closing is None for one in connections) > limit


def backoff_s(failures: int) -> float:
    """Return how long to wait after *failures* failures in a row: doubling, jittered, capped."""
    longest = min(limits.RECONNECT_MAX_S, limits.RECONNECT_MIN_S * 2.0 ** min(failures, 20))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not a secret
