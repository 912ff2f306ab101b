"""Secrets, loopback, and browsers that were sent here."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest

from tcprepl.errors import ConfigError
from tcprepl.http.security import Gate, equal, equal_to_one, is_loopback
from tests.web_site import Exchange, Stage

STATUS = "/_tcprepl/v1/status"
UPDATES = "/_synapse/replication/get_repl_stream_updates/typing/x?from_token=0&upto_token=0"


def basic(text: str) -> dict[str, str]:
    """Return the header of a browser that was told *text*."""
    return {"Authorization": f"Basic {b64encode(text.encode()).decode()}"}


@pytest.fixture
def guarded() -> Any:
    """A site with two secrets."""
    stage = Stage(secrets=("one", "two"))
    yield stage
    stage.close()


@pytest.fixture
def local() -> Any:
    """A site without a secret, with a name of its own."""
    stage = Stage(hosts=("repl.example.com",))
    yield stage
    stage.close()


def test_comparison() -> None:
    """Equal is equal, also for what is not ASCII."""
    assert equal("a\u00e9", "a\u00e9")
    assert not equal("a", "ab")
    assert equal_to_one("two", ("one", "two"))
    assert not equal_to_one("", ("one", "two"))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("a.localhost", True),
        ("10.0.0.1", False),
        ("::", False),
        ("example.com", False),
        ("", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    """This machine and no other."""
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer one"}, 200),
        ({"Authorization": "Bearer two"}, 200),
        ({}, 401),
        ({"Authorization": "Bearer three"}, 401),
        ({"Authorization": "bearer one"}, 401),
        ({"Authorization": "Bearer one "}, 200),
        ({"Authorization": "Bearer  one"}, 401),
        (basic("x:one"), 401),
    ],
)
def test_machines_show_a_bearer_token(guarded: Stage, headers: dict[str, str], status: int) -> None:
    """Exactly this scheme; 401 is an answer, not a failure."""
    answer = guarded.ask("GET", UPDATES, headers=headers)
    assert answer.status == status
    if status == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer ")
        assert answer.json["errcode"] == "M_UNKNOWN_TOKEN"


def test_two_authorizations_are_none(guarded: Stage) -> None:
    """Exactly one header."""
    raw = f"GET {UPDATES} HTTP/1.1\r\nHost: x\r\n" + "Authorization: Bearer one\r\n" * 2 + "\r\n"
    exchange = Exchange(guarded).send(raw.encode())
    assert exchange.answer.status == 401
    exchange.leave()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer one"}, 200),
        (basic("anybody:two"), 200),
        (basic("anybody:wrong"), 401),
        (basic("one"), 401),
        ({"Authorization": "Basic ?"}, 401),
        ({"Authorization": "Digest x"}, 401),
        ({}, 401),
    ],
)
def test_people_may_type_it_as_a_password(
    guarded: Stage, headers: dict[str, str], status: int
) -> None:
    """A browser is asked to."""
    answer = guarded.ask("GET", STATUS, headers=headers)
    assert answer.status == status
    if status == 401:
        assert answer.headers["www-authenticate"].startswith("Basic ")


def test_health_is_for_everybody(guarded: Stage) -> None:
    """So is the description of the API; neither says anything secret."""
    assert guarded.get("/health").status == 200
    assert guarded.get("/openapi.json").status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:9093", 200),
        ("127.0.0.1", 200),
        ("[::1]:9093", 200),
        ("192.168.1.2", 200),
        ("REPL.example.com:80", 200),
        ("evil.example", 403),
        ("[::1", 403),
    ],
)
def test_a_rebound_name_is_refused(local: Stage, host: str, status: int) -> None:
    """A page cannot make a name of its own point here and read along."""
    for path in (STATUS, UPDATES):
        assert local.ask("GET", path, headers={"Host": host}).status == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://localhost", 200), ("http://evil.example", 403), ("null", 403)],
)
def test_a_foreign_page_cannot_write(local: Stage, origin: str, status: int) -> None:
    """A form or a script of another site; our own may."""
    answer = local.ask(
        "POST", "/_tcprepl/v1/streams/audit/rows", body=b"[1]", headers={"Origin": origin}
    )
    assert answer.status == status
    assert local.ask("GET", STATUS, headers={"Origin": origin}).status == 200


def test_a_foreign_page_cannot_use_client_paths_without_a_token(local: Stage) -> None:
    """They are open to scripts of every origin only where a token says who asks."""
    path = "/_matrix/client/versions"
    assert local.ask("GET", path, headers={"Origin": "http://evil.example"}).status == 403
    assert local.ask("GET", path).status == 200
    other = Stage(client_tokens={"t": None})
    assert other.ask("GET", path, headers={"Origin": "http://evil.example"}).status == 200
    other.close()


def test_an_empty_secret_is_a_mistake() -> None:
    """It would let everybody in who shows nothing."""
    with pytest.raises(ConfigError, match="empty"):
        Gate(("one", ""))
