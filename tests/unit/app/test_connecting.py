"""Where a process connects to."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trustme
from twisted.internet import error as net
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.testing import MemoryReactorClock

from tcprepl.addresses import parse_address
from tcprepl.app import connecting
from tcprepl.app.connecting import NamedEndpoint, client_endpoint
from tcprepl.errors import ConfigError, ConnectionFailed
from tcprepl.replication.following.any_of import AnyOf

#: What is told whom to trust.
TRUST = "optionsForClientTLS"


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


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    """A file with an authority, and a certificate of its own with a key beside it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("worker.example")
    issued.private_key_pem.write_to_path(tmp_path / "k.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "c.pem")
    (tmp_path / "own.pem").write_bytes(
        issued.cert_chain_pems[0].bytes() + issued.private_key_pem.bytes()
    )
    return tmp_path / "ca.pem"


def test_the_authorities_that_an_address_names_are_trusted_alone(ca: Path) -> None:
    """Whatever options the string has; the system's are not asked for."""
    reactor = MemoryReactorClock()
    (ca.parent / "own\\").write_bytes((ca.parent / "own.pem").read_bytes())
    for text in (
        "tls:h:1",
        "tls:127.0.0.1:1:timeout=3:bindAddress=127.0.0.1",
        f"tls:h:1:certificate={ca.parent}/c.pem:privateKey={ca.parent}/k.pem",
        f"tls:host=h:port=1:certificate={ca.parent}/own.pem",
        f"tls:h:1:certificate={ca.parent}/own\\\\:timeout=3",
        "tls:h:1:endpoint=unix\\:/run/x",
    ):
        with mock.patch.object(
            connecting, "optionsForClientTLS", wraps=optionsForClientTLS
        ) as made:
            assert client_endpoint(reactor, replace(parse_address(text), ca=ca)) is not None
        assert made.call_args.kwargs["trustRoot"] is not None, text
        own = made.call_args.kwargs["clientCertificate"]
        assert (own is not None) is ("certificate" in text)
        assert made.call_args.args == ("127.0.0.1" if "bind" in text else "h",)
    both = replace(parse_address("h:1"), others=(parse_address("tls:h:1"),), ca=ca)
    with mock.patch.object(connecting, TRUST, wraps=optionsForClientTLS) as made:
        assert isinstance(client_endpoint(reactor, both), AnyOf)
    assert made.call_count == 1


def test_where_the_authorities_of_an_address_do_not_count(ca: Path) -> None:
    """What a string names itself is stronger; where it would be ignored that is said."""
    reactor = MemoryReactorClock()
    trusted = ca.parent / "trusted"
    trusted.mkdir()
    (trusted / "ca.pem").write_bytes(ca.read_bytes())
    for text in (f"tls:h:1:trustRoots={trusted}", f"ssl:h:1:caCertsDir={trusted}", "unix:/x"):
        with mock.patch.object(connecting, TRUST) as made:
            assert client_endpoint(reactor, replace(parse_address(text), ca=ca)) is not None
        assert not made.called
    with pytest.raises(ConfigError, match=r"ca\.pem does not count there; expected a tls:"):
        client_endpoint(reactor, replace(parse_address("ssl:h:1"), ca=ca))
    ca.write_text("nothing")
    with pytest.raises(ConfigError, match=r"ca\.pem: expected PEM with certificates of auth"):
        client_endpoint(reactor, replace(parse_address("tls:h:1"), ca=ca))
    ca.unlink()
    with pytest.raises(ConfigError, match=r"ca\.pem: cannot be read: No such file"):
        client_endpoint(reactor, replace(parse_address("tls:h:1"), ca=ca))


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
