"""Acknowledgements over HTTP: a write, guarded as one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.web_site import Answer, Stage

PATH = "/_tcprepl/v1/federation_ack"


def post(stage: Stage, body: object, **headers: str) -> Answer:
    """Acknowledge."""
    return stage.ask("POST", PATH, body=json.dumps(body).encode(), headers=headers)


def test_an_acknowledgement_is_passed_on() -> None:
    """With the name and the token."""
    heard: list[Any] = []
    stage = Stage(acknowledge=lambda instance, token: heard.append((instance, token)))
    answer = post(stage, {"instance": "fed1", "token": 12})
    assert (answer.status, answer.json) == (200, {})
    assert heard == [("fed1", 12)]
    stage.close()


def test_why_it_has_no_effect_is_said() -> None:
    """By who knows."""
    stage = Stage(acknowledge=lambda instance, token: f"{instance} is nobody")
    answer = post(stage, {"instance": "evil", "token": 12})
    assert answer.status == 409
    assert answer.json == {"errcode": "TCPREPL_NOT_ACKNOWLEDGED", "error": "evil is nobody"}
    stage.close()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"instance": "fed1"},
        {"instance": "fed 1", "token": 1},
        {"instance": "", "token": 1},
        {"instance": "fed1", "token": "1"},
        {"instance": "fed1", "token": 1, "more": 1},
        [],
    ],
)
def test_anything_else_is_refused(body: object) -> None:
    """And nobody hears of it."""
    heard: list[Any] = []
    stage = Stage(acknowledge=lambda *acknowledged: heard.append(acknowledged))
    assert post(stage, body).status == 400
    assert not heard
    stage.close()


def test_foreign_pages_and_who_has_not_the_secret_are_refused() -> None:
    """As for everything that writes."""
    heard: list[Any] = []
    stage = Stage(acknowledge=lambda *acknowledged: heard.append(acknowledged))
    body = {"instance": "fed1", "token": 12}
    assert post(stage, body, Origin="http://evil.example").status == 403
    stage.close()
    stage = Stage(acknowledge=lambda *acknowledged: heard.append(acknowledged), secrets=["s"])
    assert post(stage, body).status == 401
    assert not heard
    assert post(stage, body, Authorization="Bearer s").status == 200
    stage.close()


def test_without_anybody_to_hear_it() -> None:
    """The path is not there."""
    stage = Stage()
    assert post(stage, {"instance": "fed1", "token": 12}).status == 404
    stage.close()


def test_what_is_of_another_history_is_not_acknowledged() -> None:
    """The writer has other rows under these tokens by now, and would lose them."""
    heard: list[Any] = []
    stage = Stage(acknowledge=lambda instance, token: heard.append(token))
    here, body = stage.log.history.current, {"instance": "fed1", "token": 1}
    assert post(stage, body, **{"Tcprepl-Incarnation": "another"}).status == 409
    assert not heard
    assert post(stage, body, **{"Tcprepl-Incarnation": here}).status == 200
    assert heard == [1]
    stage.close()
