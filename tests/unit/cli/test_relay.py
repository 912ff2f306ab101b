"""``tcprepl relay``: its options, what it is made of, how it starts and ends."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock

from tcprepl.addresses import Address, parse_address
from tcprepl.app.relay import Relay
from tcprepl.cli import relay, run
from tcprepl.config import build
from tests.harness import tcprepl


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "Missing option '--upstream'"),
        (["--upstream", "redis://:hush@h:x"], "the host or the port is none"),
        (["--upstream", "nowhere"], "expected HOST:PORT"),
        (["--upstream", "user:hush@h:1"], "where others can see it"),
        (["--upstream", "h:1", "--instance", "w1=http://u:hush@h:1"], "where others can see it"),
        (
            ["--upstream", "h:1", "--server-name", "x", "--token", "hush", "--data", "none"],
            "h:1: a token that is said there can be read on the way",
        ),
        (["--upstream", "h:1"], "--server-name is missing"),
        (["--upstream", "h:1", "--server-name", "x", "--user-ip"], "of Redis only"),
        (["--upstream", "h:1", "--instance", "w1"], "expected NAME=http://HOST:PORT"),
        (["--upstream", "h:1", "--server-name", "x", "--listen", "0.0.0.0:1"], "or TLS"),
    ],
)
def test_wrong_command_lines(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["relay", *arguments]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert "hush" not in said


def test_the_command_line_becomes_a_relay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found: list[Any] = []

    def run_process(make: Any, *_: object) -> int:
        make(MemoryReactorClock())
        return 0

    class Seen(Relay):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            found.append((args[1], args[2], kwargs))
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(relay, "run_process", run_process)
    monkeypatch.setattr(relay, "Relay", Seen)
    (tmp_path / "secret").write_text("hush\n")
    arguments = [
        "--upstream",
        "rediss://h:7",
        "--server-name",
        "x",
        "--instance",
        "main=http://m:1/",
    ]
    arguments += ["--instance", "*=https://o:2", "--secret-file", str(tmp_path / "secret")]
    assert run(["relay", *arguments, "--passive", "--user-ip"]) == 0
    config, upstream, options = found[0]
    assert config.instances == {"master": "http://m:1", "*": "https://o:2"}
    assert str(config.data_directory) == "tcprepl-relay"
    assert str(upstream) == "rediss://h:7"
    assert options == {
        "secret_file": tmp_path / "secret",
        "passive": True,
        "user_ip": True,
        "dialect": "auto",
    }
    (tmp_path / "c.yaml").write_text("server_name: y\ndata_directory: null\n")
    assert run(["relay", "--upstream", "h:1", "--config", str(tmp_path / "c.yaml")]) == 0
    assert found[1][0].data_directory is None
    assert isinstance(found[1][1], Address)


def test_what_is_in_the_way_stops_what_was_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        where = ["--data", str(tmp_path / "d"), "--listen", f"127.0.0.1:{port}"]
        done = tcprepl("relay", "--upstream", "h:1", "--server-name", "x", *where)
    assert done.returncode == 1
    assert "replication.listen: cannot listen on" in done.stderr


def test_welcome() -> None:
    """What is relayed, and how to see it; nothing that nc cannot reach is suggested."""
    config = build({"server_name": "example.com"}, "x").config
    made = Relay(MemoryReactorClock(), config, parse_address("h:1"))
    made.replication_addresses.append("127.0.0.1:9092")
    text = relay.welcome(made)
    assert 'tcprepl relays "example.com" from h:1.' in text
    assert "nc 127.0.0.1 9092 " in text
    made.replication_addresses[:] = ["unix:/run/x"]
    assert "nc" not in relay.welcome(made)
