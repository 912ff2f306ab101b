"""``tcprepl kick``: what is asked for, and what is printed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tcprepl.cli import kick, run
from tcprepl.cli.api import ApiFailed

ENDED = {"conn_id": 12, "name": "worker3", "address": "127.0.0.1:5"}


def answers(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[Any]:
    """Answer requests with *answer*; return what is asked."""
    asked: list[Any] = []

    def request(_: Any, method: str, path: str, *, body: bytes) -> Any:
        asked.append((method, path, json.loads(body)))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(kick.Api, "request", request)
    return asked


def test_each_connection_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nameless = {**ENDED, "name": "", "conn_id": 13, "address": "a\x1bb"}
    asked = answers(monkeypatch, {"kicked": [ENDED, nameless]})
    assert run(["kick", "worker3", "--why", "too slow"]) == 0
    body = {"peer": "worker3", "why": "too slow"}
    assert asked == [("POST", "/_tcprepl/v1/kick", body)]
    assert capsys.readouterr().out.splitlines() == [
        "worker3 (127.0.0.1:5), connection 12: ended",
        "- (a\\u001bb), connection 13: ended",
    ]
    assert run(["kick", "12", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0]) == ENDED


def test_nobody_of_that_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, ApiFailed("no peer is called x", 404))
    assert run(["kick", "x"]) == 1
    assert "no peer is called x" in capsys.readouterr().err


@pytest.mark.parametrize("peer", ["", "  "])
def test_nobody_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], peer: str
) -> None:
    asked = answers(monkeypatch, {"kicked": []})
    assert run(["kick", peer]) == 2
    assert "expected the name of a peer, its address with the port" in capsys.readouterr().err
    assert not asked
