"""``tcprepl check``: exit codes of a monitoring plugin."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tcprepl.cli import check, run
from tcprepl.cli.api import ApiFailed


def peer(name: str, seconds: float, rows: int = 0) -> dict[str, Any]:
    """Return a peer as the status has it."""
    return {"name": name, "address": "1.2.3.4:5", "behind_seconds": seconds, "behind_rows": rows}


def answer(monkeypatch: pytest.MonkeyPatch, result: Any) -> None:
    """Make HTTP answer *result*, or fail with it."""

    def get(self: Any, path: str) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(check.Api, "get", get)


@pytest.mark.parametrize(
    ("peers", "code", "text"),
    [
        ([], 0, "OK: no peers"),
        ([peer("", 1.0, 3)], 0, "OK: 1 peer, the slowest (1.2.3.4:5) is 1.0 s and 3 rows behind"),
        ([peer("a", 9, 1), peer("b", 0)], 1, "WARNING: 2 peers, the slowest (a) is 9.0 s"),
        ([peer("a", 0), peer("b", 60.0)], 2, "CRITICAL: 2 peers, the slowest (b) is 60.0 s"),
    ],
)
def test_lag(
    peers: list[dict[str, Any]],
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The slowest reader decides."""
    answer(monkeypatch, {"peers": peers})
    assert run(["check", "lag", "--warn", "5s", "--crit", "60"]) == code
    assert capsys.readouterr().out.startswith(text)


def test_nobody_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that does not answer is critical."""
    answer(monkeypatch, ApiFailed("it does not answer"))
    for what in ("lag", "health"):
        assert run(["check", what]) == 2
        assert capsys.readouterr().out == "CRITICAL: it does not answer\n"


def test_health(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is ready is fine."""
    answer(monkeypatch, {"live": True})
    assert run(["check", "health"]) == 0
    assert capsys.readouterr().out == "OK: ready\n"


def test_what_is_degraded_is_said_and_a_warning_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It serves all the same: what restarts a process that is not well has to leave it alone."""
    answer(monkeypatch, {"live": True, "ready": True, "degraded": ["upstream h: away\x1b", "b"]})
    for arguments, code, word in (([], 0, "OK"), (["--warn-degraded"], 1, "WARNING")):
        assert run(["check", "health", *arguments]) == code
        out = capsys.readouterr().out
        assert out == f"{word}: ready, but degraded: upstream h: away\\u001b; b\n"
    answer(monkeypatch, {"live": True, "ready": True})
    assert run(["check", "health", "--warn-degraded"]) == 0
    assert capsys.readouterr().out == "OK: ready\n"


def test_of_much_that_is_amiss_the_first_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server of before names thousands of damaged blocks, and a monitor keeps one line."""
    answer(monkeypatch, {"ready": True, "degraded": [f"block {n}" for n in range(3_000)]})
    assert run(["check", "health"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("OK: ready, but degraded: block 0; block 1; ")
    assert out.endswith("; block 29; and 2970 more\n")


def test_a_warning_above_the_alarm_is_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """It would never be given."""
    assert run(["check", "lag", "--warn", "60", "--crit", "5"]) == 2
    assert "--warn 60 is above --crit 5" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["lag", "health"])
def test_an_answer_comes_before_the_monitor_gives_up(
    what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nagios waits for ten seconds, the check of a container for fifteen."""
    assert check.TIMEOUT_S < 10
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        to = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        assert run(["check", what, "--to", to, "--timeout", "0.05"]) == 2
    assert "CRITICAL" in capsys.readouterr().out
