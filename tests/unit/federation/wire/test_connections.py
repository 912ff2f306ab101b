"""Connections: where to, and that each of them ends."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import trustme
from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from tcprepl.federation.wire.addresses import AddressPolicy
from tcprepl.federation.wire.connections import (
    LINGER_S,
    EndingEndpoint,
    Grip,
    GrippedPool,
    GuardedEndpoint,
    SystemAndFile,
    TlsClients,
)

NAMES = {"a.example": ("127.0.0.1", "8.8.8.8"), "in.example": ("10.0.0.1",)}


class Resolver:
    """Knows some names."""

    def resolveHostName(self, receiver: Any, host: str, port: int) -> None:
        receiver.resolutionBegan(None)
        for address in NAMES.get(host, ()):
            receiver.addressResolved(IPv4Address("TCP", address, port))
        receiver.resolutionComplete()


class Reactor(MemoryReactorClock):
    """A reactor in memory that resolves names."""

    def __init__(self) -> None:
        super().__init__()
        self.nameResolver: Any = Resolver()


def connect(reactor: Reactor, host: str, policy: AddressPolicy | None) -> list[Any]:
    found: list[Any] = []
    endpoint = GuardedEndpoint(reactor, host, 443, policy)
    endpoint.connect(Factory.forProtocol(Protocol)).addBoth(found.append)
    return found


def test_addresses_that_are_not_permitted_are_passed_over() -> None:
    reactor = Reactor()
    connect(reactor, "a.example", AddressPolicy())
    assert [client[0] for client in reactor.tcpClients] == ["8.8.8.8"]
    (failure,) = connect(reactor, "in.example", AddressPolicy())
    assert "10.0.0.1 is not a public address" in str(failure.value)
    (failure,) = connect(reactor, "nowhere.example", AddressPolicy())
    assert failure.check(error.DNSLookupError)
    (failure,) = connect(reactor, "127.0.0.1", AddressPolicy())
    assert failure.check(error.ConnectError)


def test_one_address_after_the_other_is_tried() -> None:
    reactor = Reactor()
    found = connect(reactor, "a.example", None)
    for expected in ("127.0.0.1", "8.8.8.8"):
        host, _, factory, *_ = reactor.tcpClients[-1]
        assert host == expected
        connector: Any = None
        factory.clientConnectionFailed(connector, Failure(error.ConnectionRefusedError()))
    assert found[0].check(error.ConnectionRefusedError)


class Endpoint:
    """Connects in memory."""

    def __init__(self) -> None:
        self.transport = StringTransport()
        self.aborted = 0
        self.protocol: Any = None
        self.transport.abortConnection = self._abort  # type: ignore[method-assign]
        self.transport.loseConnection = lambda: None  # type: ignore[method-assign]

    def _abort(self) -> None:
        self.aborted += 1
        self.protocol.connectionLost(Failure(error.ConnectionAborted()))

    def connect(self, factory: Any) -> Deferred[Any]:
        self.protocol = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 5))
        self.protocol.makeConnection(self.transport)
        return succeed(self.protocol)


def test_a_connection_that_does_not_close_is_aborted() -> None:
    reactor = MemoryReactorClock()
    inner, noted = Endpoint(), set[Any]()
    found: list[Any] = []
    EndingEndpoint(inner, reactor, noted).connect(Factory.forProtocol(Protocol)).addCallback(
        found.append
    )
    assert noted == {inner.protocol}
    found[0].transport.loseConnection()
    found[0].transport.loseConnection()
    reactor.advance(LINGER_S - 0.1)
    assert inner.aborted == 0
    reactor.advance(0.2)
    assert inner.aborted == 1
    assert noted == set()
    assert reactor.getDelayedCalls() == []


def test_a_connection_that_closes_is_not_aborted() -> None:
    reactor = MemoryReactorClock()
    inner, noted = Endpoint(), set[Any]()
    EndingEndpoint(inner, reactor, noted).connect(Factory.forProtocol(Protocol))
    inner.protocol.loseConnection()
    inner.protocol.connectionLost(Failure(error.ConnectionDone()))
    assert (inner.aborted, noted, reactor.getDelayedCalls()) == (0, set(), [])


class Held:
    """A connection that can be aborted."""

    aborted = 0

    def abort(self) -> None:
        self.aborted += 1


def test_a_grip_ends_the_connection_that_it_has_or_gets() -> None:
    grip, held = Grip(), Held()
    grip.take(held)
    assert held.aborted == 0
    grip.end()
    assert held.aborted == 1
    late, held = Grip(), Held()
    late.end()
    late.take(held)
    assert held.aborted == 1


def test_a_pool_says_which_connection_a_request_gets() -> None:
    reactor = MemoryReactorClock()
    pool = GrippedPool(reactor, persistent=False)
    grip = pool.grip = Grip()
    inner = Endpoint()
    found: list[Any] = []
    pool.getConnection(("https", b"h", 1), EndingEndpoint(inner, reactor, set())).addCallback(
        found.append
    )
    assert grip._connection is found[0]
    assert pool.grip is None
    pool.getConnection(("https", b"h", 1), EndingEndpoint(Endpoint(), reactor, set()))
    assert pool.close_kept().called


def test_a_file_of_certificates_is_trusted_besides_the_system(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(trustme.CA().cert_pem.bytes() + trustme.CA().cert_pem.bytes())
    trust = SystemAndFile(path)
    context = SSL.Context(SSL.TLS_METHOD)
    trust._addCACertsToContext(context)
    path.write_text("rubbish")
    with pytest.raises(ValueError, match="PEM"):
        SystemAndFile(path)


class Tls:
    """What Twisted's TLS is to the end of a connection."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []

    def failVerification(self, reason: Failure) -> None:
        self.failures.append(reason)


class TlsStage:
    """Ends of connections, and a server whose certificate has *names*; no network."""

    def __init__(self, directory: Path, *names: str) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(directory / "ca.pem"))
        self.clients = TlsClients(SystemAndFile(directory / "ca.pem"))
        self.tls = Tls()
        self.asked_for: list[bytes | None] = []
        self._server = SSL.Context(SSL.TLS_SERVER_METHOD)
        issued = authority.issue_cert(*names)
        issued.configure_cert(self._server)
        self._server.set_tlsext_servername_callback(
            lambda connection: self.asked_for.append(connection.get_servername())
        )

    def shake_hands(self, name: str) -> bool:
        """Return whether a connection to *name* comes about."""
        ours = self.clients.to(name).clientConnectionForTLS(self.tls)
        theirs = SSL.Connection(self._server)
        ours.set_connect_state()
        theirs.set_accept_state()
        done = set[SSL.Connection]()
        for _ in range(10):
            for one, other in ((ours, theirs), (theirs, ours)):
                try:
                    one.do_handshake()
                    done.add(one)
                except SSL.WantReadError:
                    pass
                except SSL.Error:
                    return False
                with contextlib.suppress(SSL.WantReadError):
                    other.bio_write(one.bio_read(65_536))
        return len(done) == 2


@pytest.mark.parametrize(
    ("names", "name", "good", "asked_for"),
    [
        (["a.example.org"], "a.example.org", True, b"a.example.org"),
        (["*.example.org"], "b.example.org", True, b"b.example.org"),
        (["a.example.org"], "b.example.org", False, b"b.example.org"),
        (["a.example.org"], "what?", False, b"what?"),
        (["127.0.0.1"], "127.0.0.1", True, None),
        (["::1"], "::1", True, None),
        (["127.0.0.1"], "127.0.0.2", False, None),
        (["a.example.org"], "127.0.0.1", False, None),
        (["127.0.0.1"], "a.example.org", False, b"a.example.org"),
    ],
)
def test_a_server_has_to_prove_its_name(
    tmp_path: Path, names: list[str], name: str, good: bool, asked_for: bytes | None
) -> None:
    """It is asked for the name; an address is not sent, but proved as well."""
    stage = TlsStage(tmp_path, *names)
    assert stage.shake_hands(name) is good
    assert len(stage.tls.failures) == (not good)
    assert stage.asked_for in ([asked_for], [] if asked_for is None else None)


def test_a_server_needs_an_authority_that_is_trusted(tmp_path: Path) -> None:
    stage = TlsStage(tmp_path, "a.example.org")
    stage.clients = TlsClients()
    assert not stage.shake_hands("a.example.org")


def test_a_failure_is_told_to_nobody_who_is_gone(tmp_path: Path) -> None:
    stage = TlsStage(tmp_path, "a.example.org")
    client = stage.clients.to("b.example.org")
    make = client.clientConnectionForTLS
    client.clientConnectionForTLS = lambda _: make(Tls())  # type: ignore[method-assign]
    stage.clients.to = lambda _: client  # type: ignore[method-assign]
    assert not stage.shake_hands("b.example.org")
    assert stage.tls.failures == []


def test_all_connections_share_the_authorities(tmp_path: Path) -> None:
    """A context for each would take 0.8 MiB each, and four milliseconds."""
    clients = TlsStage(tmp_path, "a.example.org").clients
    contexts = {
        clients.to(name).clientConnectionForTLS(Tls()).get_context()
        for name in ("a.example.org", "b.example.org", "127.0.0.1")
    }
    assert len(contexts) == 1
