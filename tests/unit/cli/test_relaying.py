"""What ``relay`` and ``bus`` share: their options, their settings, what they say to people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tcprepl.cli import relaying
from tcprepl.cli.relaying import by_hand, load, relaying_options

GIVEN: list[Any] = []


@click.command()
@relaying_options("./somewhere")
def command(**shared: Any) -> None:
    """Keep the settings."""
    GIVEN.append(load(shared, "./somewhere", {"replication.max_connections": 7}))


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaying.logs, "configure", lambda *_: None)
    GIVEN.clear()


def test_options_are_stronger_than_the_file_which_is_read_again(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("server_name: example.org\nhttp: {listen: 127.0.0.1:1}\n")
    words = ["--config", str(config), "--http", "127.0.0.1:2", "--http", "127.0.0.1:3"]
    words += ["--instance", "*=http://h:1"]
    assert CliRunner().invoke(command, words).exit_code == 0
    ((loaded, read),) = GIVEN
    assert loaded.config.server_name == "example.org"
    assert [str(one) for one in loaded.config.http.listen] == ["127.0.0.1:2", "127.0.0.1:3"]
    assert loaded.config.replication.max_connections == 7
    assert dict(loaded.config.instances) == {"*": "http://h:1"}
    config.write_text("server_name: example.net\n")
    assert read().config.server_name == "example.net"


def test_without_a_file_nothing_is_read_again() -> None:
    assert CliRunner().invoke(command, ["--server-name", "example.com"]).exit_code == 0
    ((loaded, read),) = GIVEN
    assert read is None
    assert str(loaded.config.data_directory) == "somewhere"
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 2
    assert "--server-name is missing" in result.output
    assert "[default: ./somewhere]" in CliRunner().invoke(command, ["--help"]).output


def test_lines_are_seen_by_hand_where_netcat_can_connect() -> None:
    assert by_hand(["unix:/run/lines.sock"]) == []
    assert by_hand([]) == []
    shown = by_hand(["unix:/run/lines.sock", "[::1]:9092", "127.0.0.1:9092"])
    assert shown[1] == "  nc ::1 9092          then type REPLICATE, or STATUS"
