"""``tcprepl presence``: the request that it makes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tcprepl.cli import run
from tcprepl.cli.api import Api


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was asked of the server: (method, path, query, body)."""
    made: list[tuple[Any, ...]] = []

    def request(self: Api, method: str, path: str, query: Any, body: bytes) -> object:
        made.append((method, path, query, json.loads(body)))
        return {}

    monkeypatch.setattr(Api, "request", request)
    return made


PATH = "/_matrix/client/v3/presence/%40a%3Ax/status"


@pytest.mark.parametrize("state", ["online", "unavailable", "offline", "busy"])
def test_state(requests: list[Any], state: str) -> None:
    assert run(["presence", "set", "@a:x", state]) == 0
    assert requests == [("PUT", PATH, {"user_id": "@a:x"}, {"presence": state})]


def test_status_message(requests: list[Any]) -> None:
    assert run(["presence", "set", "@a:x", "online", "--status-msg", "here"]) == 0
    assert requests[0][3] == {"presence": "online", "status_msg": "here"}


def test_unknown_state_is_refused(requests: list[Any]) -> None:
    assert run(["presence", "set", "@a:x", "asleep"]) == 2
    assert requests == []
