"""Listeners: endpoints of every kind, what is wrong with them, certificates read again."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import structlog
import trustme
from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint, TCP6ServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactorClock
from twisted.web.resource import Resource
from twisted.web.server import Site

from tcprepl import metrics
from tcprepl.addresses import parse_address
from tcprepl.app.lifecycle import Lifecycle
from tcprepl.app.listening import (
    LOOK_AT_FILES_S,
    CannotListen,
    Listeners,
    clear_stale,
    listened,
    server_endpoint,
)
from tcprepl.config import build
from tcprepl.errors import ConfigError
from tests.unit.app.test_tls import issue

# Twisted hands its certificates to pyOpenSSL in the form of old.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


def test_endpoints(tmp_path: Path) -> None:
    """HOST:PORT of both families, endpoint strings, TLS from settings and from a string."""
    reactor = MemoryReactorClock()
    kinds = {
        "127.0.0.1:1": TCP4ServerEndpoint,
        "[::1]:1": TCP6ServerEndpoint,
        "tcp:1:interface=127.0.0.1": TCP4ServerEndpoint,
    }
    for text, kind in kinds.items():
        endpoint, certificates = server_endpoint(reactor, parse_address(text), None)
        assert isinstance(endpoint, kind)
        assert certificates is None
    tls = issue(tmp_path, trustme.CA())
    endpoint, certificates = server_endpoint(reactor, parse_address("0.0.0.0:1"), tls)
    assert isinstance(endpoint, SSL4ServerEndpoint)
    assert certificates is not None
    text = f"ssl:1:privateKey={tls.private_key}:certKey={tls.certificate}"
    for given in (text, f"haproxy:{text}"):
        assert server_endpoint(reactor, parse_address(given), None)[1] is not None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nonsense:x", "not an endpoint to listen on"),
        ("tcp:1:interfac=x", "not an endpoint to listen on"),
        ("tcp:x", "not an endpoint to listen on"),
        ("ssl:1:privateKey=/absent.pem", "/absent.pem: No such file"),
        ("systemd:domain=INET:index=0", "passed no socket .*expected to be started by a .socket"),
        ("systemd:domain=UNIX:name=x", "passed no socket"),
    ],
)
def test_what_is_no_endpoint_is_told(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        server_endpoint(MemoryReactorClock(), parse_address(text), None)


def test_a_socket_that_systemd_did_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are some, but not this one: still no traceback."""
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    address = parse_address("systemd:domain=INET:name=absent")
    with pytest.raises(ConfigError, match=r"not an endpoint to listen on: .*absent"):
        server_endpoint(MemoryReactorClock(), address, None)


@pytest.mark.parametrize(
    "error",
    [
        CannotListenError("h", 1, OSError(98, "Address already in use")),
        PermissionError(98, "Address already in use"),
    ],
)
def test_an_address_that_is_taken(error: Exception) -> None:
    failed: list[Any] = []
    work = listened(fail(error), "http", parse_address("h:1"))
    Deferred.fromCoroutine(work).addErrback(failed.append)
    assert failed[0].check(CannotListen)
    assert failed[0].getErrorMessage() == (
        "http.listen: cannot listen on h:1: Address already in use"
    )


def left_behind(path: Path) -> None:
    """Leave what a listener of Twisted leaves that was killed, and whose number another has."""
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    os.symlink(str(os.getpid()), f"{path}.lock")


@pytest.mark.parametrize("form", ["unix:{}", "unix:address={}:mode=600", "haproxy:unix:{}"])
def test_a_socket_that_nobody_listens_at_is_taken_over(tmp_path: Path, form: str) -> None:
    """In containers processes have the same numbers again and again."""
    path = tmp_path / "a.sock"
    left_behind(path)
    clear_stale(parse_address(form.format(path)))
    assert list(tmp_path.iterdir()) == []
    clear_stale(parse_address(form.format(path)))


def test_a_socket_that_somebody_listens_at_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as here:
        here.bind(str(path))
        here.listen()
        os.symlink("1", f"{path}.lock")
        with pytest.raises(CannotListen, match="somebody listens there"):
            clear_stale(parse_address(f"unix:{path}"))
        assert path.exists()
        assert Path(f"{path}.lock").is_symlink()


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    path.write_text("of somebody")
    for text in (f"unix:{path}", "127.0.0.1:1", "tcp:1", f"unix:{tmp_path}/none"):
        clear_stale(parse_address(text))
    assert path.read_text() == "of somebody"


def test_certificates_are_read_again(tmp_path: Path) -> None:
    """From where the new configuration says; all of them, or none and every fault."""
    authority = trustme.CA()
    tls, other = issue(tmp_path, authority), issue(tmp_path / "other", authority)
    reactor = MemoryReactorClock()

    def config(certificate: Path, key: Path) -> Any:
        http = {
            "listen": ["127.0.0.1:1", f"ssl:2:privateKey={tls.private_key}"],
            "tls": {"certificate": str(certificate), "private_key": str(key)},
        }
        return build({"http": http}, "test").config

    given = config(tls.certificate, tls.private_key)
    # An endpoint string names one file, which has both.
    tls.private_key.write_bytes(tls.private_key.read_bytes() + tls.certificate.read_bytes())
    life = Lifecycle(reactor, "test")
    listeners = Listeners(reactor, given, life)
    opened = Deferred.fromCoroutine(listeners.open_http(Site(Resource())))
    assert opened.called
    contexts = [server[2].getContext() for server in reactor.sslServers]
    assert len(contexts) == 2

    with pytest.raises(ConfigError, match=r"absent: cannot be read.*"):
        listeners.reload(config(tmp_path / "absent", tls.private_key))
    assert [server[2].getContext() for server in reactor.sslServers] == contexts

    use = listeners.reload(config(other.certificate, other.private_key))
    assert [server[2].getContext() for server in reactor.sslServers] == contexts
    use()
    fresh = [server[2].getContext() for server in reactor.sslServers]
    assert all(a is not b for a, b in zip(contexts, fresh, strict=True))
    plain = Listeners(reactor, given, Lifecycle(reactor, "test"))
    plain.reload(given)()
    assert Deferred.fromCoroutine(life.stop()).called


def test_certificates_that_change_are_noticed(tmp_path: Path) -> None:
    """Renewed files are taken up; half of them are not, and that is said once."""
    authority = trustme.CA()
    tls, other = issue(tmp_path, authority), issue(tmp_path / "other", authority)
    both = tmp_path / "both.pem"
    both.write_bytes(tls.private_key.read_bytes() + tls.certificate.read_bytes())
    reactor = MemoryReactorClock()
    raw = {
        "http": {
            "listen": ["127.0.0.1:1", f"ssl:2:privateKey={both}"],
            "tls": {"certificate": str(tls.certificate), "private_key": str(tls.private_key)},
        }
    }
    life = Lifecycle(reactor, "test")
    listeners = Listeners(reactor, build(raw, "test").config, life)
    assert Deferred.fromCoroutine(listeners.open_http(Site(Resource()))).called
    ends = metrics.CERTIFICATE_END.samples()
    assert [label for (label,) in ends] == ["http 127.0.0.1:1", f"http ssl:2:privateKey={both}"]
    assert min(ends.values()) > 1e9

    def contexts() -> list[Any]:
        return [server[2].getContext() for server in reactor.sslServers]

    first = contexts()
    reactor.advance(LOOK_AT_FILES_S)
    assert contexts() == first
    tls.private_key.write_bytes(other.private_key.read_bytes())
    with structlog.testing.capture_logs() as logs:
        reactor.advance(LOOK_AT_FILES_S)
        reactor.advance(LOOK_AT_FILES_S)
    assert [entry["event"] for entry in logs] == ["certificates.not_taken"]
    assert contexts() == first
    tls.certificate.write_bytes(other.certificate.read_bytes())
    reactor.advance(LOOK_AT_FILES_S)
    second = contexts()
    assert all(a is not b for a, b in zip(first, second, strict=True))
    both.unlink()
    with structlog.testing.capture_logs() as logs:
        reactor.advance(LOOK_AT_FILES_S)
    assert "both.pem" in logs[0]["reason"]
    assert contexts() == second
    assert Deferred.fromCoroutine(life.stop()).called
    assert metrics.CERTIFICATE_END.samples() == {}
    assert reactor.getDelayedCalls() == []


def test_files_of_an_endpoint_string_are_watched_however_they_are_named(tmp_path: Path) -> None:
    """By their places, without a name; and with colons in their paths."""
    authority = trustme.CA()
    both = tmp_path / "a:b.pem"
    tls = issue(tmp_path, authority)
    both.write_bytes(tls.private_key.read_bytes() + tls.certificate.read_bytes())
    reactor = MemoryReactorClock()
    where = str(both).replace(":", r"\:")
    config = build({"http": {"listen": f"ssl:2:{where}"}}, "test").config
    listeners = Listeners(reactor, config, Lifecycle(reactor, "test"))
    assert Deferred.fromCoroutine(listeners.open_http(Site(Resource()))).called
    first = reactor.sslServers[0][2].getContext()
    tls = issue(tmp_path, authority)
    both.write_bytes(tls.private_key.read_bytes() + tls.certificate.read_bytes())
    reactor.advance(LOOK_AT_FILES_S)
    assert reactor.sslServers[0][2].getContext() is not first
