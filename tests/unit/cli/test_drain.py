"""``tcprepl drain``: how far it is, when it ends, and with which exit code."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tcprepl.cli import drain, run
from tcprepl.cli.api import ApiFailed


def state(peers: int, **other: Any) -> dict[str, Any]:
    """Return how far a drain is."""
    found = {"peers": peers, "behind": 1, "rows": 7, "seconds_left": 12.3, "over": not peers}
    return {**found, "unserved": 0, "to": "", **other}


def answers(monkeypatch: pytest.MonkeyPatch, *given: Any) -> list[Any]:
    """Answer requests one after the other; return what is asked."""
    queue, asked = list(given), []

    def request(_: Any, method: str, path: str, *, body: bytes) -> Any:
        asked.append((method, path, json.loads(body)))
        answer = queue.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(drain.Api, "request", request)
    return asked


def test_until_everybody_has_gone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = answers(monkeypatch, state(2), state(1), state(0))
    assert run(["drain", "--within", "9", "--elsewhere", "there:1"]) == 0
    assert asked == [("POST", "/_tcprepl/v1/drain", {"within_seconds": 9.0, "to": "there:1"})] * 3
    told = capsys.readouterr()
    assert told.out == "drained: everybody has everything\n"
    assert told.err.splitlines() == [
        "draining: 2 peers left, 1 of them behind by 7 rows, 12 s to go",
        "draining: 1 peer left, 1 of them behind by 7 rows, 12 s to go",
    ]


@pytest.mark.parametrize(("left", "words"), [(1, "1 peer was"), (3, "3 peers were")])
def test_somebody_was_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], left: int, words: str
) -> None:
    answers(monkeypatch, state(0, unserved=left))
    assert run(["drain", "--json"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["unserved"] == left
    assert f"drained: {words} closed without everything" in told.err


def test_a_sender_has_not_acknowledged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what a later release may add does no harm."""
    answers(monkeypatch, state(0, senders=["fed1"], further=1))
    assert run(["drain"]) == 1
    assert "drained: fed1 has not acknowledged everything" in capsys.readouterr().err


def test_begun_and_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, state(2), state(0))
    assert run(["drain", "--no-wait"]) == 0
    assert capsys.readouterr().out.startswith("draining: 2 peers left")
    assert run(["drain", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["over"] is True


def test_the_server_goes_away_or_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, state(2), ApiFailed("gone"))
    assert run(["drain"]) == 1
    assert (
        "ended before it said that it was drained; the last was: draining: 2 peers left"
        in capsys.readouterr().err
    )
    answers(monkeypatch, ApiFailed("gone"))
    assert run(["drain"]) == 1
    assert "gone" in capsys.readouterr().err
    answers(monkeypatch, state(2), ApiFailed("no", 403))
    assert run(["drain"]) == 1
    assert "tcprepl: no\n" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "asked_for"), [("0", 0.0), ("0.5s", 0.5), ("86400", 86400.0)])
def test_as_long_as_the_wire_allows(
    given: str, asked_for: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at all, too: who does not have everything is closed at once."""
    asked = answers(monkeypatch, state(0))
    assert run(["drain", "--within", given]) == 0
    assert asked[0][2]["within_seconds"] == asked_for


@pytest.mark.parametrize("given", ["-1", "86401", "nan", "soon"])
def test_no_longer_than_the_wire_allows(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["drain", "--within", given]) == 2
    assert "expected a number of seconds from 0 to 86400" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["a b", "a\nERROR x", "a\u202e"])
def test_peers_are_told_an_address(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["drain", "--elsewhere", where]) == 2
    assert "is no address: expected one word" in capsys.readouterr().err
