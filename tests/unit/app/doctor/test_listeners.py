"""Ports, certificates, secrets."""

from __future__ import annotations

import fcntl
import os
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from tcprepl.app.doctor import listeners
from tcprepl.app.doctor.findings import Finding, user
from tests.doctor_kit import FAULT, GOOD, WARNING, answering, config, one
from tests.unit.app.test_tls import issue


def test_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text("secret", encoding="ascii")
    token.chmod(0o640)
    given = config(http={"token_file": str(token)})
    assert one(listeners.secrets(given)).verdict is GOOD
    token.chmod(0o644)
    assert one(listeners.secrets(given)).verdict is WARNING
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be read" in one(listeners.secrets(given)).text
    token.unlink()
    missing = one(listeners.secrets(given))
    assert (missing.text, missing.remedy) == (
        f"{token} is not there",
        f"put it there, for {user()} alone to read",
    )


def test_a_file_of_two_listeners_is_told_once(tmp_path: Path) -> None:
    tls = {"certificate": str(tmp_path / "chain.pem"), "private_key": str(tmp_path / "key.pem")}
    given = config(http={"tls": tls}, replication={"tls": tls})
    assert one(listeners.secrets(given)).text == f"{tls['private_key']} is not there"
    assert one(listeners.certificates(given)).remedy == "put it there"


def test_a_key_that_is_missing_is_told_once(tmp_path: Path) -> None:
    """Secrets tell it; its certificate is judged by what else can be said of it."""
    tls = issue(tmp_path, trustme.CA())
    tls.private_key.unlink()
    section = {"certificate": str(tls.certificate), "private_key": str(tls.private_key)}
    given = config(http={"tls": {**section, "client_ca": str(tmp_path / "ca.pem")}})
    assert one(listeners.secrets(given)).verdict is FAULT
    good, authority = listeners.certificates(given)
    assert (good.verdict, authority.verdict, authority.remedy) == (GOOD, FAULT, "put it there")


def test_endpoint_strings_are_looked_at(tmp_path: Path) -> None:
    """Port, key and certificate of each, as of HOST:PORT and the section tls."""
    ours, other = (issue(tmp_path / name, trustme.CA()) for name in "ab")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    ends = f"ssl:{port}:privateKey={ours.private_key}:certKey={{}}:interface=127.0.0.1"
    for certificate, verdict in ((ours.certificate, GOOD), (other.certificate, FAULT)):
        given = config(
            replication={"listen": ["unix:/tmp/x", ends.format(certificate)]},
            http={"listen": "unix:/tmp/y"},
        )
        assert one(listeners.certificates(given)).verdict is verdict
        assert str(ours.private_key) in one(listeners.secrets(given)).text
        assert "is free" in one(listeners.ports(given)).text
    with answering(b"220 mail\n") as port:
        for listen, count in (
            (f"tcp:{port}:interface=127.0.0.1", 1),
            (f"tcp6:port={port}:interface=\\:\\:1", 1),
            (f"haproxy:tcp:{port}:interface=127.0.0.1", 0),  # answers nobody who does not say who
            ("systemd:domain=INET:index=0", 0),
            ("tcp:http:interface=127.0.0.1", 0),
        ):
            found = list(
                listeners.ports(config(http={"listen": listen}, replication={"listen": "unix:/x"}))
            )
            assert len(found) == count
            assert all(finding.verdict in (GOOD, FAULT) for finding in found)


def test_further_files_of_endpoint_strings_are_looked_at(tmp_path: Path) -> None:
    """Whether they are there; and whether a chain is one."""
    ours = issue(tmp_path, trustme.CA())
    further = tmp_path / "further.pem"
    ends = f"ssl:1:privateKey={ours.private_key}:certKey={ours.certificate}:interface=127.0.0.1"
    for name in ("extraCertChain", "dhParameters"):
        given = config(http={"listen": [f"{ends}:{name}={further}"] * 2})
        good, missing = listeners.certificates(given)
        assert good.verdict is GOOD
        assert (missing.verdict, missing.text) == (FAULT, f"{further}: is not there")
        further.write_bytes(ours.private_key.read_bytes())
        found = list(listeners.certificates(given))
        assert len(found) == (2 if name == "extraCertChain" else 1)
        assert found[-1].verdict is (FAULT if name == "extraCertChain" else GOOD)
        further.write_bytes(ours.certificate.read_bytes())
        assert one(listeners.certificates(given)).verdict is GOOD
        further.unlink()


def test_certificates(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = issue(tmp_path / "a", authority)
    other = issue(tmp_path / "b", authority)

    def look(certificate: Path, key: Path) -> Finding:
        section = {"certificate": str(certificate), "private_key": str(key)}
        return one(listeners.certificates(config(http={"tls": section})))

    assert look(tls.certificate, tls.private_key).verdict is GOOD
    assert "does not go with" in look(tls.certificate, other.private_key).text
    assert "holds no certificate" in look(tls.private_key, tls.private_key).text
    assert "No such file" in look(tmp_path / "absent", tls.private_key).text
    for days, verdict in ((3, WARNING), (-3, FAULT)):
        ending = authority.issue_cert(
            "localhost", not_after=datetime.now(UTC) + timedelta(days=days)
        )
        ending.cert_chain_pems[0].write_to_path(tls.certificate)
        ending.private_key_pem.write_to_path(tls.private_key)
        assert look(tls.certificate, tls.private_key).verdict is verdict


def test_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "WAIT_S", 2.0)

    def look(listen: str, section: str = "replication") -> Finding:
        other = "http" if section == "replication" else "replication"
        given = config(**{section: {"listen": listen}, other: {"listen": "unix:/tmp/x"}})
        return one(listeners.ports(given))

    with answering(b"SERVER example.com\n") as port:
        assert "tcprepl answers" in look(f"127.0.0.1:{port}").text
    with answering(b'HTTP/1.1 200 OK\r\n\r\n{"live":true}') as port:
        assert "tcprepl answers" in look(f"127.0.0.1:{port}", "http").text
    with answering(b"") as port:
        assert "not by tcprepl" in look(f"127.0.0.1:{port}").text
    with answering(b"220 mail\n") as port:
        assert "not by tcprepl" in look(f"127.0.0.1:{port}").text
        silent = port
    assert "is free" in look(f"127.0.0.1:{silent}").text
    assert look("127.1.2.3:1").verdict in (GOOD, FAULT)

    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(socket.socket, "bind", refuse)
    assert "may not listen" in look("127.0.0.1:1").text


@pytest.mark.parametrize("name", ["lock", "process.json"])
def test_who_answers_is_another_when_nobody_has_our_data(tmp_path: Path, name: str) -> None:
    """A server of another directory keeps ours from starting."""
    directory = tmp_path / "data"
    nowhere = {"listen": "unix:/tmp/x"}

    def look(section: str, said: bytes) -> Finding:
        with answering(said) as port:
            sections = {"replication": nowhere, "http": nowhere}
            sections |= {section: {"listen": f"127.0.0.1:{port}"}}
            found = one(listeners.ports(config(data_directory=directory, **sections)))
        assert found.verdict is GOOD or f"sport = :{port}" in found.remedy
        return found

    found = look("replication", b"SERVER example.com\n")
    assert found.verdict is FAULT
    assert f"another tcprepl answers there, as no process has {directory}" in found.text
    directory.mkdir()
    (directory / name).write_text('{"pid":1}' if name == "process.json" else "1")
    assert look("http", b'{"live":true}').verdict is FAULT  # that process has ended
    assert look("bus", b"tcprepl_version:0.2\r\n").verdict is GOOD  # one of its own
    with (directory / name).open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert look("replication", b"SERVER example.com\n").verdict is GOOD
        file.truncate()  # which it is, is not to be seen
        assert look("replication", b"SERVER example.com\n").verdict is GOOD


@pytest.mark.parametrize(
    ("section", "said"), [("replication", b"SERVER a.b\n"), ("http", b'{"live":true}')]
)
def test_ports_with_tls(section: str, said: bytes, tmp_path: Path) -> None:
    """Known by our certificate, or by what is said behind another, as after a renewal."""
    ours, other = (issue(tmp_path / name, trustme.CA()) for name in "ab")
    tls = {"certificate": str(ours.certificate), "private_key": str(ours.private_key)}
    rest = {"http" if section == "replication" else "replication": {"listen": "unix:/tmp/x"}}

    def look(port: int) -> str:
        listen = {"listen": f"127.0.0.1:{port}", "tls": tls}
        return one(listeners.ports(config(**{section: listen}, **rest))).text

    for shown, words, whose in (
        (ours, b"", "tcprepl answers"),
        (other, said, "tcprepl answers"),
        (other, b"220 mail\n", "not by tcprepl"),
    ):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(shown.certificate, shown.private_key)
        with answering(words, context) as port:
            assert whose in look(port)
    with answering(said) as port:
        assert "not by tcprepl" in look(port)


def test_an_address_of_another_machine() -> None:
    tls = {"certificate": "/x", "private_key": "/y", "client_ca": "/z"}
    given = config(replication={"listen": "192.0.2.1:1", "tls": tls}, http={"listen": "unix:/x"})
    assert "Cannot assign" in one(listeners.ports(given)).text


def test_the_port_of_a_bus() -> None:
    """Only where it is configured: its default is Redis's, which may be there."""
    nowhere = {"listen": "unix:/tmp/x"}

    def look(port: int) -> Finding:
        listen = {"listen": f"127.0.0.1:{port}"}
        return one(listeners.ports(config(replication=nowhere, http=nowhere, bus=listen)))

    assert list(listeners.ports(config(replication=nowhere, http=nowhere))) == []
    for said, verdict, text in (
        (b"$21\r\ntcprepl_version:0.2\r\n\r\n", GOOD, ": tcprepl answers there"),
        (b"-NOAUTH Authentication required.\r\n", GOOD, "a tcprepl bus or a Redis, answers"),
        (b"$20\r\nredis_version:7.0.15\r\n", FAULT, "is taken, and not by tcprepl"),
    ):
        with answering(said) as port:
            found = look(port)
        assert (found.verdict, text in found.text) == (verdict, True)
        assert found.text.startswith("bus.listen ")
    assert "is free" in look(port).text
