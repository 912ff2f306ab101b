"""Synapse's names: what is understood, what is passed over, what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest

from tcprepl.config import BadConfig, build
from tcprepl.settings import Config
from tcprepl.synapse_names import IGNORED_OF_SYNAPSE, excerpt, put


def faults(raw: dict[str, Any]) -> list[str]:
    """Return the faults of settings that have some."""
    with pytest.raises(BadConfig) as caught:
        build(raw, "test.yaml")
    return caught.value.faults


def test_synapse_names_are_understood() -> None:
    """The names people have in their files work, with a warning that shows ours."""
    loaded = build(
        {
            "server_name": "example.com",
            "worker_name": "fed1",
            "worker_app": "synapse.app.generic_worker",
            "worker_replication_secret": "s",
            "federation_sender_instances": ["fed1"],
            "listeners": [
                {"type": "replication", "port": 9092, "bind_addresses": ["127.0.0.1", "::1"]},
                {"type": "http", "port": 9093, "bind_address": "127.0.0.1", "resources": []},
                {"type": "http", "path": "/run/x.sock", "mode": "660"},
            ],
            "redis": {"enabled": True, "host": "r", "password": "p", "dbid": 2, "use_tls": True},
            "instance_map": {
                "main": {"host": "h", "port": 1},
                "w": {"host": "i", "port": 2, "tls": True},
            },
        },
        "synapse.yaml",
    )
    config = loaded.config
    assert config.instance == "fed1"
    assert config.federation.senders == ("fed1",)
    assert [str(a) for a in config.replication.listen] == ["127.0.0.1:9092", "[::1]:9092"]
    assert [str(a) for a in config.http.listen] == ["127.0.0.1:9093", "unix:/run/x.sock:mode=660"]
    assert config.redis is not None
    assert config.redis.url.get_secret_value() == "rediss://:p@r:6379/2"
    assert config.instances == {"master": "http://h:1", "w": "https://i:2"}
    assert config.http.replication_secret is not None
    assert "worker_name: understood as instance; write instance instead" in loaded.warnings
    assert any(w.startswith("worker_app: a setting of Synapse") for w in loaded.warnings)
    assert not any("rediss" in w for w in loaded.warnings)


def test_synapse_redis_by_path_and_switched_off() -> None:
    """A socket path becomes unix:, and what is switched off is no setting."""
    by_path = build({"redis": {"enabled": True, "path": "/run/r.sock"}}, "x").config
    assert by_path.redis is not None
    assert by_path.redis.url.get_secret_value() == "unix:/run/r.sock"
    assert build({"redis": {"enabled": False}}, "x").config.redis is None


def test_faults_in_synapse_names_are_told_with_the_rest() -> None:
    """A bad listener has a path of its own."""
    found = faults(
        {
            "listeners": [{"port": "x"}, 7],
            "worker_listeners": {"port": 70_000},
            "instance_map": 3,
            "zzz": 1,
        }
    )
    assert found == [
        "listeners.0.port: found 'x'; expected a number from 0 to 65535",
        "listeners.1: found 7; expected a section with port and type",
        "worker_listeners.0.port: found 70000; expected a number from 0 to 65535",
        "instance_map: found 3; expected a section per worker",
        "zzz: unknown key",
    ]
    assert faults({"instance_map": 3}) == ["instance_map: found 3; expected a section per worker"]


def test_ignored_names_do_not_hide_ours() -> None:
    """No name of ours is passed over as Synapse's."""
    assert not IGNORED_OF_SYNAPSE & Config.model_fields.keys()


def test_redis_of_synapse_in_full() -> None:
    """Passwords are quoted, files are named; a URL that is none is not shown."""
    redis = {"enabled": True, "path": "/r.sock", "password": "p&q", "password_path": "/dev/null"}
    by_path = build({"redis": redis}, "x").config
    assert by_path.redis is not None
    found = by_path.redis.url.get_secret_value()
    assert found == "unix:/r.sock?password=p%26q&password_file=%2Fdev%2Fnull"
    redis = {"enabled": True, "host": "h", "password": "p@:", "use_tls": True, "ca_file": "/c"}
    over_tls = build({"redis": redis}, "x").config
    assert over_tls.redis is not None
    assert over_tls.redis.url.get_secret_value() == "rediss://:p%40%3A@h:6379?ca=%2Fc"
    with pytest.raises(BadConfig, match="expected redis://") as caught:
        build({"redis": {"url": "http://:hush@h"}}, "x")
    assert "hush" not in str(caught.value)


def test_settings_are_put_at_dotted_paths() -> None:
    """Sections on the way are made, or copied: the caller's stay what they were."""
    inner = {"b": 1}
    settings: dict[str, Any] = {"a": inner, "odd": 5}
    put(settings, "a.c", 2)
    put(settings, "odd.d", 3)
    assert settings == {"a": {"b": 1, "c": 2}, "odd": {"d": 3}}
    assert inner == {"b": 1}


def test_long_values_are_cut() -> None:
    assert excerpt("x") == "'x'"
    assert len(excerpt("x" * 200)) == 80


def test_sockets_and_secret_files_of_synapse(tmp_path: Any) -> None:
    """Newer releases have them."""
    (tmp_path / "secret").write_text("hush\n")
    raw = {
        "worker_replication_secret_path": str(tmp_path / "secret"),
        "instance_map": {"main": {"path": "/run/main.sock"}},
    }
    config = build(raw, "x").config
    assert config.instances == {"master": "http://unix:/run/main.sock"}
    assert config.http.replication_secret is not None
    assert config.http.replication_secret.get_secret_value() == "hush"
