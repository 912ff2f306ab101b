"""Redis, the database, the name on the internet."""

from __future__ import annotations

import socket
import sys
from typing import Any

import pytest

from tcprepl.app.doctor import services
from tcprepl.app.doctor.findings import Finding
from tests import postgres_world
from tests.doctor_kit import FAULT, GOOD, WARNING, answering, config, one, redis_saying
from tests.log_kit import PostgresStore

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
    found = list(services.redis(config(redis={"url": url})))
    assert all(bool(one.remedy) is (one.verdict is not GOOD) for one in found)
    assert "secret" not in str(found)
    return found


def test_redis() -> None:
    assert list(services.redis(config())) == []
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


@pytest.mark.postgresql
def test_database() -> None:
    url = postgres_world.fresh_url()
    assert list(services.database(config())) == []
    found, unsafe = services.database(config(data=url))
    assert found.verdict is GOOD
    assert found.text.endswith("can be used; nobody has written there yet")
    # the server of the tests survives no power cut
    assert (unsafe.verdict, unsafe.remedy) == (WARNING, "set fsync = on")
    assert unsafe.text == "fsync is off: a power cut destroys the database"
    store = PostgresStore(url, "tcprepl")
    found, _ = services.database(config(data=url))
    assert f"instance {store.log.database.instance}: epoch 1, held by " in found.text
    store.close()
    away = one(services.database(config(data="postgresql://me:secret@127.0.0.1:1/x")))
    assert (away.verdict, away.subject) == (FAULT, "database")
    assert "Connection refused" in away.text
    assert away.remedy.startswith("check that PostgreSQL runs there")
    assert "secret" not in str(away)


def test_a_database_without_what_speaks_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tcprepl.storage.postgresql", None)
    found = one(services.database(config(data="postgresql://db/x")))
    assert found.remedy == "pip install 'tcprepl[postgresql]'"


def test_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(services.own_name(config(server_name="localhost"))) == []
    assert list(services.own_name(config(server_name="matrix.example.com"))) == []
    given = config(server_name="matrix.test:8448")

    class Answer:
        status = 200

        def __enter__(self) -> Answer:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(services.urllib.request, "urlopen", lambda *_, **__: Answer())
    assert "delegates" in one(services.own_name(given)).text

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no")

    def missing(*_: Any, **__: Any) -> None:
        raise services.urllib.error.HTTPError("", 404, "", None, None)  # type: ignore[arg-type]

    for failing in (refuse, missing):
        monkeypatch.setattr(services.urllib.request, "urlopen", failing)
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("192.0.2.1", 8448))]
        )
        assert one(services.own_name(given)).verdict is GOOD
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        assert one(services.own_name(given)).verdict is WARNING
