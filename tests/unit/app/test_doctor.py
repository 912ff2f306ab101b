"""Each thing that may be wrong is found, with its remedy, and nothing is changed."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from tcprepl.app import doctor
from tcprepl.app.doctor import Finding, Verdict, examine
from tcprepl.config import build
from tcprepl.replication.redis.resp import RespReader, encode
from tcprepl.settings import Config
from tests import postgres_world
from tests.log_kit import PostgresStore
from tests.unit.app.test_tls import issue

GOOD, WARNING, FAULT = Verdict


def config(**raw: Any) -> Config:
    """Return a configuration."""
    return build(raw, "test").config


def one(findings: Iterator[Finding]) -> Finding:
    """Return the only finding; whatever is not good has a remedy."""
    (found,) = findings
    assert bool(found.remedy) is (found.verdict is not GOOD)
    return found


@contextmanager
def answering(text: bytes, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Say *text* to whoever connects, after hearing something if it is an answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with ExitStack() as stack, suppress(OSError):
                    stack.enter_context(peer).settimeout(0.2)
                    if tls is not None:
                        peer = stack.enter_context(tls.wrap_socket(peer, server_side=True))
                    with suppress(TimeoutError):
                        peer.recv(4096)
                    peer.sendall(text)
                    peer.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5.0)


@pytest.mark.parametrize("error", [OSError("no"), ValueError("'pubsub' is no number")])
def test_a_check_that_cannot_look_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def unwell(config: Config) -> Iterator[Finding]:
        raise error

    monkeypatch.setattr(doctor, "LOCAL", (unwell,))
    monkeypatch.setattr(doctor, "REMOTE", (unwell,))
    assert [f.subject for f in examine(config(), network=False)] == ["unwell"]
    assert [f.verdict for f in examine(config())] == [WARNING, WARNING]


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "twisted" in one(doctor.versions(config())).text
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 31, 0))
    assert one(doctor.versions(config())).verdict is FAULT


@pytest.mark.parametrize(("told", "verdict"), [("yes", GOOD), ("no", WARNING), ("", GOOD)])
def test_clock(told: str, verdict: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_said", lambda *words: told)
    assert one(doctor.clock(config())).verdict is verdict
    monkeypatch.setattr(doctor.time, "time", lambda: 1e9)
    assert one(doctor.clock(config())).text == "shows 2001-09-09 01:46 UTC"


def test_what_programs_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._said("echo", "yes") == "yes"
    assert doctor._said("no-such-program") == ""
    monkeypatch.setattr(doctor, "WAIT_S", 0.05)
    assert doctor._said("sleep", "30") == ""


def test_descriptors() -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = {"max_connections": limit - doctor.OTHER_DESCRIPTORS}
    many = {"max_connections": limit - doctor.OTHER_DESCRIPTORS + 1}
    assert one(doctor.descriptors(config(replication=few))).verdict is GOOD
    assert one(doctor.descriptors(config(replication=many))).verdict is WARNING


def test_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "data"

    def verdicts() -> list[Verdict]:
        return [f.verdict for f in doctor.data(config(data_directory=str(directory)))]

    assert one(doctor.data(config(data_directory=None))).verdict is WARNING
    shared = config(data_directory=None, data="postgresql://me:secret@db.example/x")
    assert one(doctor.data(shared)).text.startswith("the log is in postgresql://db.example/x,")
    assert list(doctor.room(shared)) == []
    assert verdicts() == [GOOD]
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        assert verdicts() == [FAULT]
        directory.mkdir(0o700)
        assert verdicts() == [FAULT]
    assert verdicts() == [GOOD]
    directory.chmod(0o755)
    assert verdicts() == [WARNING, GOOD]
    directory.chmod(0o700)
    lock = directory / "lock"
    lock.write_text("4711", encoding="ascii")
    found = one(doctor.data(config(data_directory=str(directory))))
    assert found.text.endswith("not in use")
    with lock.open("r") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        found = one(doctor.data(config(data_directory=str(directory))))
    assert found.text.endswith("in use by process 4711")
    assert lock.read_text(encoding="ascii") == "4711"
    if os.geteuid() == 0:
        os.chown(lock, 12345, -1)
        assert verdicts() == [FAULT, GOOD]


def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log").write_bytes(b"12345")
    free = [1 << 50]
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free[0]})
    )
    given = config(data_directory=str(tmp_path))
    assert list(doctor.room(config(data_directory=None))) == []
    assert one(doctor.room(given)).verdict is GOOD
    free[0] = 2 << 30
    assert one(doctor.room(given)).verdict is WARNING
    free[0] = 1 << 20
    assert one(doctor.room(given)).verdict is FAULT


def test_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text("secret", encoding="ascii")
    token.chmod(0o640)
    given = config(http={"token_file": str(token)})
    assert one(doctor.secrets(given)).verdict is GOOD
    token.chmod(0o644)
    assert one(doctor.secrets(given)).verdict is WARNING
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be read" in one(doctor.secrets(given)).text
    token.unlink()
    missing = one(doctor.secrets(given))
    assert (missing.text, missing.remedy) == (
        f"{token} is not there",
        f"put it there, for {doctor._user()} alone to read",
    )


def test_a_file_of_two_listeners_is_told_once(tmp_path: Path) -> None:
    tls = {"certificate": str(tmp_path / "chain.pem"), "private_key": str(tmp_path / "key.pem")}
    given = config(http={"tls": tls}, replication={"tls": tls})
    assert one(doctor.secrets(given)).text == f"{tls['private_key']} is not there"
    assert one(doctor.certificates(given)).remedy == "put it there"


def test_a_key_that_is_missing_is_told_once(tmp_path: Path) -> None:
    """Secrets tell it; its certificate is judged by what else can be said of it."""
    tls = issue(tmp_path, trustme.CA())
    tls.private_key.unlink()
    section = {"certificate": str(tls.certificate), "private_key": str(tls.private_key)}
    given = config(http={"tls": {**section, "client_ca": str(tmp_path / "ca.pem")}})
    assert one(doctor.secrets(given)).verdict is FAULT
    good, authority = doctor.certificates(given)
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
        assert one(doctor.certificates(given)).verdict is verdict
        assert str(ours.private_key) in one(doctor.secrets(given)).text
        assert "is free" in one(doctor.ports(given)).text
    with answering(b"220 mail\n") as port:
        for listen, count in (
            (f"tcp:{port}:interface=127.0.0.1", 1),
            (f"tcp6:port={port}:interface=\\:\\:1", 1),
            (f"haproxy:tcp:{port}:interface=127.0.0.1", 0),  # answers nobody who does not say who
            ("systemd:domain=INET:index=0", 0),
            ("tcp:http:interface=127.0.0.1", 0),
        ):
            found = list(
                doctor.ports(config(http={"listen": listen}, replication={"listen": "unix:/x"}))
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
        good, missing = doctor.certificates(given)
        assert good.verdict is GOOD
        assert (missing.verdict, missing.text) == (FAULT, f"{further}: is not there")
        further.write_bytes(ours.private_key.read_bytes())
        found = list(doctor.certificates(given))
        assert len(found) == (2 if name == "extraCertChain" else 1)
        assert found[-1].verdict is (FAULT if name == "extraCertChain" else GOOD)
        further.write_bytes(ours.certificate.read_bytes())
        assert one(doctor.certificates(given)).verdict is GOOD
        further.unlink()


def test_certificates(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = issue(tmp_path / "a", authority)
    other = issue(tmp_path / "b", authority)

    def look(certificate: Path, key: Path) -> Finding:
        section = {"certificate": str(certificate), "private_key": str(key)}
        return one(doctor.certificates(config(http={"tls": section})))

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
    monkeypatch.setattr(doctor, "WAIT_S", 2.0)

    def look(listen: str, section: str = "replication") -> Finding:
        other = "http" if section == "replication" else "replication"
        given = config(**{section: {"listen": listen}, other: {"listen": "unix:/tmp/x"}})
        return one(doctor.ports(given))

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
        return one(doctor.ports(config(**{section: listen}, **rest))).text

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
    assert "Cannot assign" in one(doctor.ports(given)).text


@contextmanager
def redis_saying(info: str, settings: dict[str, str] | str = "", **refused: str) -> Iterator[str]:
    """Be a Redis of this INFO and these settings; *settings* in words is a refusal."""

    def answer(words: list[bytes]) -> bytes:
        asked = words[0].decode()
        if asked in refused:
            return f"-{refused[asked]}\r\n".encode()
        if asked == "INFO":
            return b"$%d\r\n%b\r\n" % (len(info), info.encode())
        if asked == "AUTH":
            return b"+OK\r\n"
        if isinstance(settings, str):
            return f"-{settings}\r\n".encode()
        name = words[2].decode()
        return encode(words[2], settings[name].encode()) if name in settings else b"*0\r\n"

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            reader = RespReader()
            with peer:
                while read := peer.recv(4096):
                    for words in reader.feed(read)[1]:
                        peer.sendall(answer(words))  # type: ignore[arg-type]

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"redis://:secret@127.0.0.1:{listener.getsockname()[1]}"
    thread.join(5.0)


#: What Redis says when nothing was set.
USUAL = {
    "client-output-buffer-limit": "normal 0 0 0 slave 268435456 67108864 60 "
    "pubsub 33554432 8388608 60",
    "maxclients": "10000",
    "timeout": "0",
    "tcp-keepalive": "300",
}
MASTER = "role:master\r\nredis_version:7.0.15\r\nconnected_clients:8001\r\n"


def look_at_redis(url: str) -> list[Finding]:
    """Return what is found about a Redis; whatever is not good has a remedy."""
    found = list(doctor.redis(config(redis={"url": url})))
    assert all(bool(one.remedy) is (one.verdict is not GOOD) for one in found)
    assert "secret" not in str(found)
    return found


def test_redis() -> None:
    assert list(doctor.redis(config())) == []
    usual = {**USUAL, "maxclients": "20000"}
    with redis_saying(MASTER, usual) as url:
        there, settings = look_at_redis(url)
    assert there.text.endswith("is there, 7.0.15")
    assert settings.verdict is GOOD
    assert settings.text.endswith("60, maxclients 20000, timeout 0, tcp-keepalive 300")
    with redis_saying("role:slave\r\n", usual) as url:
        slave, _ = look_at_redis(url)
    assert "is a slave" in slave.text
    with answering(b"-NOAUTH Authentication required.\r\n") as port:
        (found,) = look_at_redis(f"redis://127.0.0.1:{port}")
        assert (found.verdict, "NOAUTH" in found.text) == (FAULT, True)
    with answering(b"") as port:
        (found,) = look_at_redis(f"redis://127.0.0.1:{port}")
        assert "closed the connection" in found.text
    assert "refused" in look_at_redis(f"redis://127.0.0.1:{port}")[0].text
    assert "No such file" in look_at_redis("unix:/nowhere/redis.sock")[0].text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("client-output-buffer-limit", "normal 0 0 0 pubsub 1048576 0 0", "misses rows"),
        ("client-output-buffer-limit", "normal 0 0 0 pubsub 0 1048576 9", "misses rows"),
        ("client-output-buffer-limit", "normal 0 0 0 pubsub 0 0 0", ""),
        ("maxclients", "10000", "8001 of 10000 clients"),
        ("maxclients", "10002", ""),
        ("timeout", "30", "who publishes seldom"),
        ("timeout", "300", ""),
        ("tcp-keepalive", "0", "whose machine is gone"),
    ],
)
def test_settings_of_redis(name: str, value: str, text: str) -> None:
    """What cuts off a relay, or a publisher, is a warning; what is as it comes is not."""
    with redis_saying(MASTER, {**USUAL, "maxclients": "20000", name: value}) as url:
        _, *found = look_at_redis(url)
    assert [(one.verdict, text in one.text) for one in found] == [(WARNING if text else GOOD, True)]


def test_a_redis_that_does_not_tell_its_settings() -> None:
    """As with a host that lends one out: nothing is wrong, and that is said."""
    with redis_saying(MASTER, "NOPERM no permission to run 'config|get'") as url:
        _, found = look_at_redis(url)
    assert (found.verdict, found.text) == (
        GOOD,
        "could not ask for its settings: NOPERM no permission to run 'config|get'",
    )
    with redis_saying(MASTER, INFO="NOPERM no permission to run 'info'") as url:
        _, found = look_at_redis(url)
    assert (found.verdict, "could not ask" in found.text) == (GOOD, True)
    with redis_saying(MASTER + "valkey_version:8.1.0\r\n", {}) as url:
        there, found = look_at_redis(url)
    assert there.text.endswith("is there, valkey 8.1.0")
    assert found.text == "its settings will do: it tells none"
    with redis_saying("role:master\r\ntcprepl_version:0.2\r\n", {}) as url:
        (there,) = look_at_redis(url)
    assert there.text.endswith("is there, tcprepl 0.2")


def test_the_port_of_a_bus() -> None:
    """Only where it is configured: its default is Redis's, which may be there."""
    nowhere = {"listen": "unix:/tmp/x"}

    def look(port: int) -> Finding:
        listen = {"listen": f"127.0.0.1:{port}"}
        return one(doctor.ports(config(replication=nowhere, http=nowhere, bus=listen)))

    assert list(doctor.ports(config(replication=nowhere, http=nowhere))) == []
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


@pytest.mark.postgresql
def test_database() -> None:
    url = postgres_world.fresh_url()
    assert list(doctor.database(config())) == []
    found, unsafe = doctor.database(config(data=url))
    assert found.verdict is GOOD
    assert found.text.endswith("can be used; nobody has written there yet")
    # the server of the tests survives no power cut
    assert (unsafe.verdict, unsafe.remedy) == (WARNING, "set fsync = on")
    assert unsafe.text == "fsync is off: a power cut destroys the database"
    store = PostgresStore(url, "tcprepl")
    found, _ = doctor.database(config(data=url))
    assert f"instance {store.log.database.instance}: epoch 1, held by " in found.text
    store.close()
    away = one(doctor.database(config(data="postgresql://me:secret@127.0.0.1:1/x")))
    assert (away.verdict, away.subject) == (FAULT, "database")
    assert "Connection refused" in away.text
    assert away.remedy.startswith("check that PostgreSQL runs there")
    assert "secret" not in str(away)


def test_a_database_without_what_speaks_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tcprepl.storage.postgresql", None)
    found = one(doctor.database(config(data="postgresql://db/x")))
    assert found.remedy == "pip install 'tcprepl[postgresql]'"


def test_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(doctor.own_name(config(server_name="localhost"))) == []
    assert list(doctor.own_name(config(server_name="matrix.example.com"))) == []
    given = config(server_name="matrix.test:8448")

    class Answer:
        status = 200

        def __enter__(self) -> Answer:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(doctor.urllib.request, "urlopen", lambda *_, **__: Answer())
    assert "delegates" in one(doctor.own_name(given)).text

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no")

    def missing(*_: Any, **__: Any) -> None:
        raise doctor.urllib.error.HTTPError("", 404, "", None, None)  # type: ignore[arg-type]

    for failing in (refuse, missing):
        monkeypatch.setattr(doctor.urllib.request, "urlopen", failing)
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("192.0.2.1", 8448))]
        )
        assert one(doctor.own_name(given)).verdict is GOOD
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        assert one(doctor.own_name(given)).verdict is WARNING


def test_somebody_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    assert doctor._user() == "4000000"
    assert time.time() > doctor.EARLIEST_S
