"""INFO: the sections that were asked for, by the names that exporters know."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcprepl.replication.bus import info as info_module
from tcprepl.replication.bus.cache import Cache
from tcprepl.replication.bus.info import Facts, info


def facts() -> Facts:
    """Return what a bus may have to say."""
    cache = Cache()
    cache.set(b"k", b"v", 0.0)
    cache.get(b"k", 0.0)
    cache.get(b"l", 0.0)
    return Facts(
        addresses=["unix:/run/a:b.sock", "127.0.0.1:6379"],
        uptime_s=86_400.5,
        connections=3,
        max_connections=10,
        received=7,
        rejected=1,
        listening=2,
        channels=1,
        patterns=0,
        commands={"get": 2, "(unknown)": 1},
        cache=cache,
    )


def values(text: str) -> dict[str, str]:
    """Return what is said, as an exporter reads it."""
    lines = [line for line in text.split("\r\n") if line and not line.startswith("#")]
    return dict(line.split(":", 1) for line in lines)


def test_what_exporters_look_for_is_there() -> None:
    said = values(info(facts()))
    expected = {
        "server_name": "tcprepl",
        "redis_mode": "standalone",
        "tcp_port": "6379",
        "uptime_in_seconds": "86400",
        "uptime_in_days": "1",
        "connected_clients": "3",
        "maxclients": "10",
        "pubsub_clients": "2",
        "maxmemory_policy": "allkeys-lru",
        "loading": "0",
        "total_connections_received": "7",
        "rejected_connections": "1",
        "total_commands_processed": "3",
        "keyspace_hits": "1",
        "keyspace_misses": "1",
        "role": "master",
        "db0": "keys=1,expires=0,avg_ttl=0",
    }
    assert expected.items() <= said.items()
    assert int(said["used_memory_rss"]) > int(said["used_memory"]) > 0
    assert float(said["used_cpu_user"]) > 0
    assert "this is no Redis" in said["note"]


def test_what_the_log_cannot_take_is_said_as_redis_says_it() -> None:
    assert values(info(facts(), ["persistence"]))["aof_last_write_status"] == "ok"
    said = values(info(facts()._replace(trouble="the database\r\nis away"), ["persistence"]))
    assert said["aof_last_write_status"] == "err"
    assert "is away" in said["tcprepl_trouble"]


def test_sections_are_said_that_were_asked_for() -> None:
    assert values(info(facts(), ["replication"])) == {"role": "master", "connected_slaves": "0"}
    assert info(facts(), ["nothing"]) == ""
    commands = {"cmdstat_get": "calls=2,usec=0,usec_per_call=0.00"}
    assert values(info(facts(), ["CommandStats"])) == commands
    usual, everything = info(facts(), ["default"]), info(facts(), ["all"])
    assert "cmdstat_get" not in values(usual)
    assert values(usual).keys() | commands.keys() == values(everything).keys()


def test_nothing_is_said_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info_module, "_STATM", Path("/nowhere"))
    empty = facts()._replace(addresses=["unix:/run/bus.sock"], cache=Cache())
    said = values(info(empty))
    assert said["used_memory_rss"] == said["tcp_port"] == "0"
    assert "db0" not in said
