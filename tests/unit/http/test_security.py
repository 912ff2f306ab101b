"""Secrets, loopback, and browsers that were sent here."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest

from tcprepl import limits
from tcprepl.access import ALL, Grant, Streams
from tcprepl.errors import ConfigError
from tcprepl.http import security
from tcprepl.http.security import Gate, is_loopback
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


@pytest.mark.parametrize(
    ("options", "wanted", "wrong"),
    [
        ({"secrets": ("one",)}, "the replication secret", "the replication secret is wrong"),
        (
            {"grants": [("reader-token", Grant("reader", read=ALL))]},
            "a token of replication.tokens",
            "the token is not known here; expected a token of replication.tokens",
        ),
        (
            {"secrets": ("one",), "grants": [("reader-token", Grant("reader", read=ALL))]},
            "the replication secret or a token of replication.tokens",
            "the token is not known here; expected the replication secret or a token of "
            "replication.tokens",
        ),
    ],
)
def test_what_is_wanted_is_named(options: dict[str, Any], wanted: str, wrong: str) -> None:
    """What is configured, and nothing else: nobody looks for a secret that there is not."""
    stage = Stage(**options)
    said = {
        (path, scheme): stage.ask("GET", path, headers=headers).json["error"]
        for path in (UPDATES, STATUS)
        for scheme, headers in (("none", {}), ("wrong", {"Authorization": "Bearer x"}))
    }
    people = f"this needs {wanted}: as Bearer, or as the password"
    assert said == {
        (UPDATES, "none"): f"this needs Authorization: Bearer with {wanted}",
        (UPDATES, "wrong"): wrong,
        (STATUS, "none"): people,
        (STATUS, "wrong"): people,
    }
    stage.close()


def test_what_is_wanted_is_named_anew_when_it_changes(guarded: Stage) -> None:
    guarded.services.secrets = ()
    guarded.services.grants = GRANTS
    guarded.site.changed()
    error = guarded.ask("GET", UPDATES).json["error"]
    assert error == "this needs Authorization: Bearer with a token of replication.tokens"


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


# -- tokens and rights -----------------------------------------------------------------

GRANTS = [
    ("reader-token", Grant("reader", read=Streams(frozenset({"typing"})))),
    ("writer-token", Grant("writer", write=Streams(frozenset({"audit"})))),
    ("inspector-token", Grant("inspector", inspect=ALL)),
    ("operator-token", Grant("operator", operate=True)),
]


def bearing(token: str) -> dict[str, str]:
    """Return the header of who shows *token*."""
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def granted() -> Any:
    """A site whose tokens grant different things."""
    stage = Stage(grants=GRANTS, typing=object(), acknowledge=lambda *_: None)
    yield stage
    stage.close()


@pytest.mark.parametrize(
    ("method", "target", "body", "allowed"),
    [
        ("GET", UPDATES, None, {"reader", "inspector"}),
        ("GET", UPDATES.replace("typing", "audit"), None, {"inspector"}),
        ("GET", "/_synapse/replication?streams=-1", None, {"reader", "inspector"}),
        ("GET", "/_synapse/replication?typing=-1&timeout=0", None, {"reader", "inspector"}),
        ("GET", "/_synapse/replication?audit=-1&timeout=0", None, {"inspector"}),
        ("POST", "/_tcprepl/v1/streams/audit/rows", b"[1]", {"writer"}),
        ("POST", "/_tcprepl/v1/streams/typing/rows", b'[["!r:x",[]]]', set()),
        ("GET", STATUS, None, {"inspector", "operator"}),
        ("GET", "/metrics", None, {"inspector", "operator"}),
        ("GET", "/", None, {"inspector", "operator"}),
        (
            "POST",
            "/_tcprepl/v1/federation_ack",
            b'{"instance":"fed1","token":0}',
            {"operator"},
        ),
        ("GET", "/health", None, {"reader", "writer", "inspector", "operator", None}),
    ],
)
def test_what_each_right_allows(
    granted: Stage, method: str, target: str, body: bytes | None, allowed: set[str | None]
) -> None:
    """And nothing else."""
    for token, grant in GRANTS:
        answer = granted.ask(method, target, body=body, headers=bearing(token))
        assert answer.status == (200 if grant.name in allowed else 403), (grant.name, answer.body)
        if answer.status == 403:
            assert answer.json["errcode"] == "M_FORBIDDEN"
            assert f"{grant.name} may " in answer.json["error"]
    answer = granted.ask(method, target, body=body)
    assert answer.status == (200 if None in allowed else 401)


def test_positions_are_those_of_streams_that_may_be_read(granted: Stage) -> None:
    granted.publish("audit", 1, 2, 3)
    granted.publish("typing", ["!r:x", []])
    headers = bearing("reader-token")
    answer = granted.ask("GET", "/_synapse/replication?streams=-1", headers=headers)
    assert answer.json["streams"]["rows"] == [["typing", 1]]
    assert "3" not in answer.json["streams"]["position"]


def test_inspectors_get_rows_without_secrets(granted: Stage) -> None:
    granted.publish("caches", ["get_user_by_access_token", ["hush"], 1])
    for target in (
        "/_synapse/replication?caches=-1",
        "/_synapse/replication/get_repl_stream_updates/caches/x?from_token=0&upto_token=9",
    ):
        answer = granted.ask("GET", target, headers=bearing("inspector-token"))
        assert answer.status == 200
        assert b"hush" not in answer.body
        assert b"<redacted>" in answer.body


def test_what_was_encoded_for_one_is_not_shown_to_the_other() -> None:
    """Answers are kept for the next who asks: for the next with the same right."""
    grants = [("full-token", Grant("full", read=ALL)), *GRANTS]
    stage = Stage(grants=grants)
    stage.publish("caches", ["get_user_by_access_token", ["hush"], 1])
    target = "/_synapse/replication?caches=-1"
    for token, seen in (("full-token", True), ("inspector-token", False), ("full-token", True)):
        answer = stage.ask("GET", target, headers=bearing(token))
        assert (b"hush" in answer.body) is seen
    stage.close()


def test_http_secrets_go_on_allowing_everything() -> None:
    """Also where they stand among the tokens with less."""
    stage = Stage(secrets=("one",), grants=[("one", Grant("less")), *GRANTS])
    assert stage.ask("GET", STATUS, headers=bearing("one")).status == 200
    assert stage.ask("GET", STATUS, headers=bearing("reader-token")).status == 403
    stage.close()


def test_tokens_keep_strangers_off_the_client_paths() -> None:
    """Who may write every stream may speak for every user, and nobody without a token."""
    grants = [("all-token", Grant("all", write=ALL)), *GRANTS]
    stage = Stage(grants=grants)
    path = "/_matrix/client/v3/account/whoami?user_id=@a:example.com"
    assert stage.ask("GET", path).status == 401
    assert stage.ask("GET", path, headers=bearing("all-token")).status == 200
    for token, _ in GRANTS:
        assert stage.ask("GET", path, headers=bearing(token)).status == 401
    stage.close()
    stage = Stage(grants=GRANTS)
    assert stage.ask("GET", path).status == 401
    stage.close()


def test_guesses_from_elsewhere_are_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of this machine are not: a proxy may stand here."""
    stage = Stage(grants=GRANTS)
    for _ in range(100):
        assert stage.ask("GET", STATUS, headers=bearing("wrong")).status == 401
    monkeypatch.setattr(security, "is_loopback", lambda host: False)
    for _ in range(limits.MAX_FREE_GUESSES):
        assert stage.ask("GET", STATUS, headers=bearing("wrong")).status == 401
    answer = stage.ask("GET", STATUS, headers=bearing("operator-token"))
    assert answer.status == 429
    assert answer.headers["retry-after"] == "1"
    assert "too many wrong tokens" in answer.json["error"]
    stage.clock.advance(1)
    assert stage.ask("GET", STATUS, headers=bearing("operator-token")).status == 200
    stage.close()


def test_who_waits_is_judged_anew_when_tokens_change(granted: Stage) -> None:
    """A long poll and a watched page end with the token that they began with."""
    target = "/_synapse/replication?typing=0&timeout=600000"
    polls = [granted.open("GET", target, headers=bearing(f"{name}-token"))
             for name in ("reader", "inspector")]  # fmt: skip
    watch = granted.open("GET", "/_tcprepl/v1/events", headers=bearing("inspector-token"))
    granted.clock.advance(0)
    granted.services.grants = GRANTS[1:]
    granted.site.changed()
    granted.clock.advance(0)
    assert polls[0].answer.status == 401
    assert not polls[1].answered
    assert watch.transport.value().endswith(b"0\r\n\r\n")
    granted.publish("typing", ["!r:x", []])
    assert polls[1].answer.status == 200
    for exchange in (*polls, watch):
        exchange.leave()


def test_who_waits_without_a_token_ends_when_one_is_asked_for() -> None:
    stage = Stage()
    poll = stage.poll(typing=0, timeout=600_000)
    stage.services.grants = GRANTS
    stage.site.changed()
    stage.clock.advance(0)
    assert poll.answer.status == 401
    poll.leave()
    stage.close()
