"""``tcprepl federation-sender``: options, and whose outbox it is. Real ones run in interop/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from twisted.internet.defer import Deferred

from tcprepl.cli import federation_sender, run
from tcprepl.cli.federation_sender import (
    NAME_FILE,
    backoff_policy,
    find_server_name,
    placed_servers,
    send,
)
from tcprepl.config import parse_address
from tcprepl.errors import ConfigError
from tcprepl.federation.sending.backoff import BackoffPolicy


def result(work: Any) -> Any:
    found: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(found.append)
    if hasattr(found[0], "raiseException"):
        found[0].raiseException()
    return found[0]


def place(*values: str) -> Any:
    nothing: Any = None
    return placed_servers(nothing, nothing, values)


def test_servers_are_placed() -> None:
    assert place("y.example=127.0.0.1:8448", "z.example:1=[::1]:5") == {
        "y.example": ("127.0.0.1", 8448),
        "z.example:1": ("::1", 5),
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


def test_the_name_is_asked_once_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["", "x.example"]

    async def ask(reactor: Any, endpoint: Any) -> str:
        return answers.pop(0)

    nothing: Any = None
    monkeypatch.setattr(federation_sender, "ask_server_name", ask)
    assert result(find_server_name(nothing, nothing, tmp_path, None)) == "x.example"
    assert (tmp_path / NAME_FILE).read_text() == "x.example\n"
    assert result(find_server_name(nothing, nothing, tmp_path, None)) == "x.example"
    assert result(find_server_name(nothing, nothing, tmp_path, "x.example")) == "x.example"
    with pytest.raises(ConfigError, match="the outbox of"):
        result(find_server_name(nothing, nothing, tmp_path, "y.example"))


def test_a_name_that_is_none_is_told(tmp_path: Path) -> None:
    nothing: Any = None
    with pytest.raises(ConfigError, match="server-name"):
        result(find_server_name(nothing, nothing, tmp_path, "not a name"))


def test_it_runs_until_it_is_told_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    life: list[str] = []

    class Worker:
        def __init__(self, *given: Any, **options: Any) -> None:
            life.append(options["server_name"])

        def start(self) -> None:
            life.append("started")

        async def stop(self) -> None:
            life.append("stopped")

    monkeypatch.setattr(federation_sender, "FederationWorker", Worker)
    reactor: Any = object()
    running = Deferred.fromCoroutine(
        send(reactor, parse_address("tcp:127.0.0.1:1"), tmp_path, "x.example", {"name": "fed1"})
    )
    codes: list[Any] = []
    running.addBoth(codes.append)
    assert life == ["x.example", "started"]
    assert 'the EDUs of "x.example" as fed1' in capsys.readouterr().out
    running.cancel()
    assert codes == [0]
    assert life[-1] == "stopped"
