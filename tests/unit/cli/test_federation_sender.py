"""``tcprepl federation-sender``: options, and whose outbox it is. Real ones run in interop/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from twisted.internet.testing import MemoryReactorClock

from tcprepl.cli import federation_sender as module
from tcprepl.cli import run
from tcprepl.cli.federation_sender import backoff_policy, placed_servers
from tcprepl.federation.sending.backoff import BackoffPolicy


def place(*values: str) -> Any:
    nothing: Any = None
    return placed_servers(nothing, nothing, values)


def test_servers_are_placed() -> None:
    assert place("y.example=127.0.0.1:8448", "z.example:1=[::1]:5") == {
        "y.example": "127.0.0.1:8448",
        "z.example:1": "[::1]:5",
    }


@pytest.mark.parametrize("value", ["y", "y=", "y=h", "y=:5", "y=h:x", "y=h:99999", "a b=h:1"])
def test_what_places_nothing_is_refused(value: str) -> None:
    with pytest.raises(click.BadParameter, match="expected NAME=HOST:PORT"):
        place(value)


def test_the_waits_can_be_shortened() -> None:
    assert backoff_policy(None, None) == BackoffPolicy()
    policy = backoff_policy(0.5, 3.0)
    assert (policy.quick_ms, policy.first_ms, policy.cap_ms) == ((), 500, 3_000)
    assert backoff_policy(None, 60.0).cap_ms == 60_000


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--name", "c", "--senders", "a,b"], "expected one of --senders"),
        (["--allow-range", "nonsense"], "nonsense"),
        (["--resolve", "nonsense"], "NAME=HOST:PORT"),
        (["--max-bytes", "10"], "max-bytes"),
        (["--standby"], "--standby and --directory go with --data postgresql://"),
        (["--data", "x", "--directory", "y"], "go with --data postgresql://"),
    ],
)
def test_a_wrong_command_line_is_told(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["federation-sender", *options]) == 2
    assert complaint in capsys.readouterr().err


def test_a_file_that_holds_no_certificate_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ca.pem").write_text("rubbish")
    assert run(["federation-sender", "--ca", str(tmp_path / "ca.pem")]) == 2
    assert "PEM" in capsys.readouterr().err


def test_what_is_asked_for_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def run_process(make: Any, name: str, welcome: Any, load: Any) -> int:
        made.append(worker := make(MemoryReactorClock()))
        worker.server_name = "x.example"
        assert welcome(worker) == 'tcprepl sends the EDUs of "x.example" as fed1.\n'
        return 0

    monkeypatch.setattr(module, "run_process", run_process)
    monkeypatch.setattr(module.logs, "configure", lambda *_: None)
    url = "postgresql://u:p@db/x"
    assert run(["federation-sender", "--data", str(tmp_path / "a")]) == 0
    assert run(["federation-sender", "--data", url]) == 0
    where = str(tmp_path / "b")
    assert run(["federation-sender", "--data", url, "--directory", where, "--standby"]) == 0
    assert [(one.directory, one._url, one._standby) for one in made] == [
        (tmp_path / "a", None, False),
        (Path(module.DEFAULT_DATA), url, False),
        (tmp_path / "b", url, True),
    ]
