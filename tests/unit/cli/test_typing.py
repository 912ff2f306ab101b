"""``tcprepl typing``: the request that each command makes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tcprepl.cli import run
from tcprepl.cli.api import Api


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was asked of the server: (url, method, path, query, body)."""
    made: list[tuple[Any, ...]] = []

    def request(self: Api, method: str, path: str, query: Any, body: bytes) -> object:
        made.append((self.url, method, path, query, json.loads(body)))
        return {}

    monkeypatch.setattr(Api, "request", request)
    return made


PATH = "/_matrix/client/v3/rooms/%21r%3Ax/typing/%40a%2Fb%3Ax"


def test_start(requests: list[Any]) -> None:
    arguments = ["typing", "start", "!r:x", "@a/b:x", "--timeout", "1000", "--to", "h:1"]
    assert run(arguments) == 0
    body = {"typing": True, "timeout": 1_000}
    assert requests == [("http://h:1", "PUT", PATH, {"user_id": "@a/b:x"}, body)]


def test_start_lasts_half_a_minute_by_default(requests: list[Any]) -> None:
    assert run(["typing", "start", "!r:x", "@a:x"]) == 0
    assert requests[0][4]["timeout"] == 30_000


def test_stop(requests: list[Any]) -> None:
    assert run(["typing", "stop", "!r:x", "@a/b:x"]) == 0
    assert requests[0][1:] == ("PUT", PATH, {"user_id": "@a/b:x"}, {"typing": False})


@pytest.mark.parametrize(
    "arguments",
    [["start", "!r:x"], ["start", "!r:x", "@a:x", "--timeout", "-1"], ["pause", "!r:x", "@a:x"]],
)
def test_wrong_words_are_refused(requests: list[Any], arguments: list[str]) -> None:
    assert run(["typing", *arguments]) == 2
    assert requests == []
