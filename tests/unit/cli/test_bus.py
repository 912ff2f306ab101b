"""``tcprepl bus``: its arguments, and what it says when it is ready."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from tcprepl.cli import bus, relaying
from tcprepl.errors import TcpreplError
from tests.unit.app.test_bus import made


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return where the buses are kept that a command makes."""
    kept: list[Any] = []

    def keep(make: Any, name: str, welcome: Any, load: Any) -> int:
        kept.append(make(SimpleNamespace(seconds=lambda: 0.0)))
        return 0

    monkeypatch.setattr(bus, "run_process", keep)
    monkeypatch.setattr(relaying.logs, "configure", lambda *_: None)
    return kept


def test_options_are_the_settings(ran: list[Any], tmp_path: Path) -> None:
    secret = tmp_path / "s"
    secret.write_text("x")
    words = f"--server-name example.com --listen-redis unix:{tmp_path}/r --data none"
    words += f" --instance main=http://127.0.0.1:1 --user gw:{secret} --password-file {secret}"
    result = CliRunner().invoke(bus.command, words.split())
    assert result.exit_code == 0, result.output
    config = ran[0].config
    assert [str(one) for one in config.bus.listen] == [f"unix:{tmp_path}/r"]
    assert config.data_directory is None
    assert dict(config.bus.users) == {"gw": secret}
    assert config.bus.password_file == secret
    assert dict(config.instances) == {"master": "http://127.0.0.1:1"}


def test_defaults(ran: list[Any]) -> None:
    CliRunner().invoke(bus.command, ["--server-name", "example.com"])
    config = ran[0].config
    assert [str(one) for one in config.bus.listen] == ["127.0.0.1:6379"]
    assert str(config.data_directory) == "tcprepl-bus"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("", "--server-name is missing"),
        ("--server-name x --user gw", "expected NAME:FILE"),
        ("--server-name x --listen-redis nonsense", "expected HOST:PORT"),
        ("--server-name x --listen-redis 0.0.0.0:6379", "other machines can reach it"),
    ],
)
def test_what_does_not_go_together_is_refused(words: str, complaint: str) -> None:
    result = CliRunner().invoke(bus.command, words.split())
    said = result.output + (str(result.exception) if result.exception else "")
    assert complaint in said
    assert result.exit_code == 2 or isinstance(result.exception, TcpreplError)


def test_welcome_says_what_to_write_into_the_configuration() -> None:
    running: Any = made()
    running._listeners.bus.append("127.0.0.1:6379")
    running._listeners.replication.append("127.0.0.1:9092")
    said = bus.welcome(running)
    assert "redis: {enabled: true, host: 127.0.0.1, port: 6379}" in said
    assert "nc 127.0.0.1 9092" in said
    running._listeners.bus[0] = "unix:/run/redis.sock"
    assert "redis: {enabled: true, path: /run/redis.sock}" in bus.welcome(running)
    running._listeners.replication[:] = ["unix:/run/line.sock"]
    running._listeners.bus.clear()
    assert "nc" not in bus.welcome(running)
