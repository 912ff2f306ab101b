"""For whom a bearer token speaks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.web_site import Answer, Stage

BASE = "/_matrix/client/v3"


@pytest.fixture
def stage() -> Any:
    """A site with a token for anybody and one for Alice."""
    stage = Stage(client_tokens={"any": None, "alice": "@alice:example.com"})
    yield stage
    stage.close()


def whoami(stage: Stage, token: str | None, **query: object) -> Answer:
    """Ask for whom a token speaks."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return stage.ask("GET", f"{BASE}/account/whoami", query, headers=headers)


def login(stage: Stage, **body: object) -> Answer:
    """Log in."""
    return stage.ask("POST", f"{BASE}/login", body=json.dumps(body).encode())


@pytest.mark.parametrize(
    ("token", "query", "expected"),
    [
        ("alice", {}, "@alice:example.com"),
        ("alice", {"user_id": "@alice:example.com"}, "@alice:example.com"),
        ("any", {"user_id": "@bob:example.com"}, "@bob:example.com"),
        (None, {"access_token": "alice"}, "@alice:example.com"),
    ],
)
def test_a_token_speaks_for_its_user_or_for_whom_it_names(
    stage: Stage, token: str | None, query: dict[str, object], expected: str
) -> None:
    """Header or query parameter."""
    assert whoami(stage, token, **query).json == {"user_id": expected}


@pytest.mark.parametrize(
    ("token", "query", "status", "errcode"),
    [
        (None, {}, 401, "M_MISSING_TOKEN"),
        ("wrong", {}, 401, "M_UNKNOWN_TOKEN"),
        ("tcprepl_user.QGE.x", {}, 401, "M_UNKNOWN_TOKEN"),
        ("tcprepl_user.!.x", {}, 401, "M_UNKNOWN_TOKEN"),
        ("tcprepl_user.A.x", {}, 401, "M_UNKNOWN_TOKEN"),
        ("tcprepl_user.x", {}, 401, "M_UNKNOWN_TOKEN"),
        ("any", {}, 400, "M_MISSING_PARAM"),
        ("any", {"user_id": "@bob:elsewhere"}, 403, "M_FORBIDDEN"),
        ("any", {"user_id": "bob:example.com"}, 403, "M_FORBIDDEN"),
        ("any", {"user_id": "@b b:example.com"}, 403, "M_FORBIDDEN"),
        ("any", {"user_id": f"@{'b' * 255}:example.com"}, 403, "M_FORBIDDEN"),
        ("alice", {"user_id": "@bob:example.com"}, 403, "M_FORBIDDEN"),
    ],
)
def test_refusals(
    stage: Stage, token: str | None, query: dict[str, object], status: int, errcode: str
) -> None:
    """No token, an unknown one, nobody named, somebody else's user; never the token itself."""
    answer = whoami(stage, token, **query)
    assert answer.error[:2] == (status, errcode)
    assert "wrong" not in answer.json["error"]


def test_login_makes_a_token_for_one_user(stage: Stage) -> None:
    """It speaks for that user and nobody else, and outlives the process."""
    found = login(
        stage, type="m.login.token", token="any", identifier={"type": "m.id.user", "user": "bob"}
    ).json
    assert found["user_id"] == "@bob:example.com"
    assert found["device_id"]
    again = Stage(client_tokens={"any": None})
    speaks_for = {"user_id": "@bob:example.com", "device_id": found["device_id"]}
    assert whoami(again, found["access_token"]).json == speaks_for
    answer = whoami(again, found["access_token"], user_id="@eve:example.com")
    assert answer.error[:2] == (403, "M_FORBIDDEN")
    again.close()
    other = Stage(client_tokens={"changed": None})
    assert whoami(other, found["access_token"]).status == 401
    other.close()


def test_a_made_token_cannot_be_given_to_another_user(stage: Stage) -> None:
    """The MAC is over the user and the device."""
    token = login(stage, type="m.login.token", token="any", user="bob").json["access_token"]
    prefix, user, device, mac = token.split(".")
    for parts in (
        ["QGV2ZTpleGFtcGxlLmNvbQ", device, mac],
        [user, "RDI", mac],
        [user, mac],
        [user, device, device, mac],
        [mac],
    ):
        assert whoami(stage, ".".join([prefix, *parts])).status == 401


def test_a_token_of_the_release_before_goes_on(stage: Stage) -> None:
    """It names no device; one may be named beside it."""
    old = "tcprepl_user.QGJvYjpleGFtcGxlLmNvbQ.Udaumtr_6E29lXuvGoyq1W58Yb9N2M_tyDiJiB-SCno"
    assert whoami(stage, old).json == {"user_id": "@bob:example.com"}
    assert whoami(stage, old, device_id="D7").json["device_id"] == "D7"


def test_each_login_is_a_device_of_its_own(stage: Stage) -> None:
    """Unless it names one; and a token of one device does not speak for another."""
    found = [login(stage, type="m.login.token", token="alice").json for _ in range(2)]
    assert len({one["device_id"] for one in found}) == 2
    token = found[0]["access_token"]
    assert whoami(stage, token, device_id=found[0]["device_id"]).status == 200
    assert whoami(stage, token, device_id="other").error[:2] == (403, "M_FORBIDDEN")
    long = login(stage, type="m.login.token", token="alice", device_id="x" * 256)
    assert long.error[:2] == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize(
    ("body", "status", "errcode"),
    [
        ({"type": "m.login.password"}, 400, "M_UNKNOWN"),
        ({"type": "m.login.token"}, 401, "M_MISSING_TOKEN"),
        ({"type": "m.login.token", "token": "wrong"}, 403, "M_FORBIDDEN"),
        ({"type": "m.login.token", "token": "any"}, 400, "M_MISSING_PARAM"),
        ({"type": "m.login.token", "token": "alice", "user": "bob"}, 403, "M_FORBIDDEN"),
        ({"type": "m.login.token", "token": "any", "user": "@b:else"}, 403, "M_FORBIDDEN"),
        ({}, 400, "M_BAD_JSON"),
    ],
)
def test_logins_that_fail(stage: Stage, body: dict[str, object], status: int, errcode: str) -> None:
    """With the reason."""
    assert login(stage, **body).error[:2] == (status, errcode)


def test_a_token_of_its_own_user_logs_in_with_nothing_else(stage: Stage) -> None:
    """As a client does that was given a login token only."""
    found = login(stage, type="m.login.token", token="alice", device_id="D1").json
    assert (found["user_id"], found["device_id"]) == ("@alice:example.com", "D1")


def test_an_application_service_logs_in_by_its_header(stage: Stage) -> None:
    """As the specification has it."""
    answer = stage.ask(
        "POST",
        f"{BASE}/login",
        body=b'{"type":"m.login.application_service","identifier":{"user":"bob"}}',
        headers={"Authorization": "Bearer any"},
    )
    assert answer.json["user_id"] == "@bob:example.com"


def test_where_nothing_is_configured_this_machine_is_trusted() -> None:
    """Whatever token comes is not looked at; the user has to be named."""
    stage = Stage()
    assert whoami(stage, None, user_id="@a:example.com").json["user_id"] == "@a:example.com"
    assert whoami(stage, "whatever", user_id="@a:example.com").status == 200
    assert whoami(stage, None).status == 400
    stage.close()


def test_a_secret_speaks_for_anybody() -> None:
    """Who may publish any row may also say who types."""
    stage = Stage(secrets=("hush",), client_tokens={"alice": "@alice:example.com"})
    assert whoami(stage, "hush", user_id="@b:example.com").json["user_id"] == "@b:example.com"
    assert whoami(stage, None, user_id="@b:example.com").status == 401
    stage.close()
