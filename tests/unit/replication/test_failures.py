"""Failures in words of ours."""

from __future__ import annotations

import socket
import ssl
from unittest.mock import Mock

import pytest
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import error as net
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure

from tcprepl.errors import CloseReason
from tcprepl.replication.failures import (
    backoff_s,
    close_reason_of,
    describe_address,
    lost_because,
    reason_of,
    too_many,
)


def test_an_orderly_end_is_told_from_a_failure() -> None:
    assert close_reason_of(Failure(ConnectionDone())) is CloseReason.PEER_CLOSED
    assert close_reason_of(Failure(ConnectionLost())) is CloseReason.CONNECTION_LOST


def test_why_a_connection_was_lost() -> None:
    assert lost_because(Failure(ConnectionDone())) == "Connection was closed cleanly."
    refused = SSL.Error([("SSL routines", "", "certificate verify failed")])
    assert lost_because(Failure(refused)).startswith("its certificate is not trusted: ")
    plain = SSL.Error([("SSL routines", "", "wrong version number")])
    assert lost_because(Failure(plain)).startswith("no TLS is spoken there; ")
    assert lost_because(Failure(ValueError("wrong version number"))) == "wrong version number"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (IPv4Address("TCP", "127.0.0.1", 9092), "127.0.0.1:9092"),
        (IPv6Address("TCP", "::1", 9092), "[::1]:9092"),
        (UNIXAddress(b"/run/tcprepl.sock"), "unix:/run/tcprepl.sock"),
        (UNIXAddress(None), "unix:"),
        (HostnameAddress(b"example.com", 1), str(HostnameAddress(b"example.com", 1))),
    ],
)
def test_addresses_for_people(address: object, shown: str) -> None:
    assert describe_address(address) == shown


def test_back_off_doubles_is_jittered_and_capped() -> None:
    for failures in range(0, 200, 7):
        assert 0.05 <= backoff_s(failures) <= 5.0
    assert max(backoff_s(0) for _ in range(50)) <= 0.1
    assert min(backoff_s(50) for _ in range(50)) >= 2.5


def test_connections_that_are_being_closed_have_no_place() -> None:
    there, leaving = Mock(closing=None), Mock(closing=CloseReason.SHUTDOWN)
    assert too_many([there, there], 1)
    assert not too_many([there, leaving, leaving], 1)


def untrusted() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError()
    error.verify_message = "self-signed"
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(), "connection refused; is"),
        (net.DNSLookupError("x"), "there is no such host"),
        (socket.gaierror(-2, "Name or service not known"), "there is no such host"),
        (TimeoutError(), "no connection in time"),
        (net.TimeoutError(), "no connection in time"),
        (FileNotFoundError(2, "No such file"), "there is no such socket; is"),
        (net.ConnectError(2), "there is no such socket; is"),
        (untrusted(), "its certificate is not trusted (self-signed): the ca of a context"),
        (
            SSL.Error([("SSL routines", "", "certificate verify failed")]),
            "its certificate is not t",
        ),
        (
            SSL.Error([("SSL routines", "", "wrong version number")]),
            "no TLS is spoken there; is it",
        ),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), "no TLS is spoken"),
        (VerificationError([]), "its certificate is that of another host; is the name right?"),
        (ValueError("odd"), "odd"),
        (ValueError(), "ValueError"),
    ],
)
def test_reasons_say_what_to_do(error: Exception, reason: str) -> None:
    assert reason in reason_of(error)
