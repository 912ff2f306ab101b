"""What a failure of the network means."""

from __future__ import annotations

import pytest
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import error
from twisted.python.failure import Failure
from twisted.web.client import ResponseNeverReceived

from tcprepl.federation.wire.failures import (
    ConnectionDropped,
    NotReached,
    RequestFailed,
    classify,
)


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (error.ConnectionRefusedError(), NotReached),
        (error.DNSLookupError("no such name"), NotReached),
        (error.TimeoutError(), NotReached),
        (ResponseNeverReceived([Failure(VerificationError([]))]), NotReached),
        (ResponseNeverReceived([Failure(SSL.Error("certificate verify failed"))]), NotReached),
        (ResponseNeverReceived([Failure(SSL.Error("bad record"))]), RequestFailed),
        (ResponseNeverReceived([Failure(error.ConnectionLost())]), ConnectionDropped),
        (ValueError("odd"), RequestFailed),
    ],
)
def test_what_a_failure_means(failure: Exception, kind: type[Exception]) -> None:
    assert type(classify(failure)) is kind
