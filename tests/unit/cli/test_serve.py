"""``tcprepl serve``: what it says, what systemd hears, how it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock

from tcprepl.app.server import Server
from tcprepl.cli import run, serve
from tcprepl.config import BadConfig, Loaded, build


def loaded(**raw: Any) -> Loaded:
    """Return a configuration in memory."""
    return build({"data_directory": None, **raw}, "test")


def welcomed(where: dict[str, list[str]], **raw: Any) -> str:
    """Return the welcome of a server at given addresses."""
    server = Server(MemoryReactorClock(), loaded(**raw).config)
    server.replication_addresses.extend(where.get("replication", []))
    server.http_addresses.extend(where.get("http", []))
    return serve.welcome(server)


def test_welcome_shows_commands_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Default addresses need no options; the command is as it was called."""
    monkeypatch.setattr("sys.argv", [str(Path.cwd() / ".venv/bin/tcprepl")])
    text = welcomed({"replication": ["127.0.0.1:9092"], "http": ["127.0.0.1:9093"]})
    assert 'tcprepl is running as "localhost".' in text
    assert "\n  nc 127.0.0.1 9092  " in text
    assert (
        "\n  .venv/bin/tcprepl publish typing "
        '\'["!room:example.com", ["@alice:example.com"]]\'\n' in text
    )
    assert "\n  .venv/bin/tcprepl tail\n" in text
    assert "http://127.0.0.1:9093/" in text
    assert "in memory only" in text


def test_welcome_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other addresses are named; what nc cannot reach is not suggested."""
    monkeypatch.setattr("sys.argv", ["/usr/bin/tcprepl"])
    text = welcomed(
        {"replication": ["[::1]:7"], "http": ["127.0.0.1:8"]}, data_directory="/var/lib/tcprepl"
    )
    assert "nc ::1 7" in text
    assert "\n  tcprepl publish --to http://127.0.0.1:8 typing" in text
    assert "\n  tcprepl tail --from [::1]:7\n" in text
    assert "The logs are in /var/lib/tcprepl." in text
    text = welcomed(
        {"http": ["127.0.0.1:9093"]}, http={"tls": {"certificate": "c", "private_key": "k"}}
    )
    assert "publish --to https://127.0.0.1:9093 typing" in text
    assert "A page to look at:  https://127.0.0.1:9093/\n" in text
    monkeypatch.setattr("sys.argv", ["-m"])
    text = welcomed({"replication": ["unix:/run/x"], "http": ["unix:/run/y"]})
    assert "nc " not in text
    assert "A page" not in text


def test_welcome_in_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins in the root directory, from where nobody types anything."""
    monkeypatch.setattr("sys.argv", ["/opt/tcprepl/bin/tcprepl"])
    monkeypatch.chdir("/")
    text = welcomed({"replication": ["127.0.0.1:9092"], "http": ["127.0.0.1:9093"]})
    assert "  tcprepl tail" in text
    assert "opt/" not in text


def test_welcome_where_a_token_is_asked_for() -> None:
    """What is shown to type says one, over TLS where there is."""
    tls = {"certificate": "c", "private_key": "k"}
    tokens = [{"name": "w1", "token": "a-token-of-sixteen", "read": "all"}]
    where = {"replication": ["0.0.0.0:9092"], "http": ["127.0.0.1:9093"]}
    text = welcomed(where, replication={"tls": tls, "tokens": tokens})
    assert "tail --from tls:HOST:9092 --token-file FILE\n" in text
    assert "publish --token-file FILE typing" in text
    assert "nc " not in text


def test_options_are_stronger_than_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything typed reaches the configuration."""
    file = tmp_path / "x.yaml"
    file.write_text("server_name: a\ninstance: i\nlog: {level: error}\n", encoding="utf-8")
    found: list[Server] = []

    def at_once(make: Any, *_: object) -> int:
        found.append(make(MemoryReactorClock()))
        return 0

    monkeypatch.setattr(serve, "run_process", at_once)
    monkeypatch.setattr(serve.logs, "configure", lambda *_: None)
    args = ["--server-name", "b", "--listen", "[::1]:1", "--http", "unix:/run/h", "--data", "d"]
    assert run(["serve", "--config", str(file), *args, "--dialect", "1.13"]) == 0
    config = found[0].config
    assert (config.server_name, config.instance) == ("b", "i")
    assert str(config.replication.listen[0]) == "[::1]:1"
    assert str(config.http.listen[0]) == "unix:/run/h"
    assert config.data_directory == Path("d")
    assert config.replication.dialect == "1.13"
    assert run(["serve"]) == 0
    assert found[1].config == build({}, "x").config
    assert run(["serve", "--listen", "0.0.0.0:1"]) == 2
    with pytest.raises(BadConfig, match="other machines can reach it"):
        build({}, "command line", {"replication.listen": "0.0.0.0:1"})


def test_it_listens_wherever_it_is_told() -> None:
    """Of two options the last alone counted."""
    words = ["--listen", "127.0.0.1:1", "--listen", "unix:/tmp/a", "--http", "[::1]:2"]
    options = serve.command.make_context("serve", [*words, "--http", "127.0.0.1:3"]).params
    config = serve.settings_of(**options)().config
    assert list(map(str, config.replication.listen)) == ["127.0.0.1:1", "unix:/tmp/a"]
    assert list(map(str, config.http.listen)) == ["[::1]:2", "127.0.0.1:3"]


def test_a_retention_of_no_stream_is_refused(tmp_path: Path) -> None:
    """As check-config does; where a relay or a bus reads the file as well, it is not."""
    path = tmp_path / "some.yaml"
    path.write_text("streams: {retention_of: {cachez: {}}}\n", encoding="utf-8")
    assert run(["serve", "--config", str(path)]) == 2
    path.write_text("log: {level: loud}\n" + path.read_text(), encoding="utf-8")
    nothing = dict.fromkeys(("server_name", "instance", "data", "dialect", "redis"))
    nothing |= {"listen": (), "http": ()}
    with pytest.raises(BadConfig) as caught:
        serve.settings_of(config_file=path, standby=False, **nothing)()  # type: ignore[arg-type]
    assert len(caught.value.faults) == 2
    path.write_text(
        "bus: {replay_rows: 1}\nstreams: {retention_of: {theirs: {}}}\n", encoding="utf-8"
    )
    read = serve.settings_of(config_file=path, standby=False, **nothing)  # type: ignore[arg-type]
    assert "theirs" in read().config.streams.retention_of
