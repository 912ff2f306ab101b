"""Why there was no answer, and what a failure of the network means."""

from __future__ import annotations

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import error

from tcprepl.errors import FederationError


class NotReached(FederationError):
    """The destination did not get the request: no name, no address, no connection, no TLS."""


class RequestFailed(FederationError):
    """There was no answer; the destination may have acted on the request all the same."""


class ConnectionDropped(RequestFailed):
    """The connection ended before there was an answer."""


def classify(failed: Exception) -> FederationError:
    """Return what a failure of the network means: not reached, dropped, or no answer."""
    if isinstance(failed, (error.ConnectError, error.DNSLookupError, VerificationError)):
        return NotReached(_text(failed))
    reasons = [reason.value for reason in getattr(failed, "reasons", [])] or [failed]
    for reason in reasons:
        text = _text(reason)
        if isinstance(reason, (error.ConnectError, VerificationError)) or (
            isinstance(reason, SSL.Error) and "certificate" in text
        ):
            return NotReached(f"TLS: {text}")
    if any(isinstance(reason, (error.ConnectionDone, error.ConnectionLost)) for reason in reasons):
        return ConnectionDropped(_text(reasons[0]))
    return RequestFailed(_text(reasons[0]))


def _text(failed: BaseException) -> str:
    return f"{type(failed).__name__}: {failed}"[:200]
