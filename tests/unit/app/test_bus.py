"""A bus: what it is made of, how it starts and ends, what it takes up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from twisted.internet.testing import MemoryReactorClock, StringTransport

from tcprepl.app.bus import Bus, passwords_of, told_of
from tcprepl.config import build
from tcprepl.errors import ConfigError, LogCorrupt
from tcprepl.replication.bus.places import Places
from tests.unit.app.test_relay import _done, settle


def made(reactor: Any = None, **raw: Any) -> Bus:
    """Return a bus that keeps everything in memory."""
    settings = {"data_directory": None, "server_name": "example.com", **raw}
    return Bus(reactor or MemoryReactorClock(), build(settings, "test").config)


def test_starts_serves_and_stops() -> None:
    reactor = MemoryReactorClock()
    bus = made(reactor, instances={"master": "http://127.0.0.1:1"})
    settle(reactor, bus.start())
    assert [port for port, *_ in reactor.tcpServers] == [9092, 9093, 6379]
    client = reactor.tcpServers[2][1].buildProtocol(None)
    transport = StringTransport()
    client.makeConnection(transport)
    client.dataReceived(b"PING\r\n")
    assert transport.value() == b"+PONG\r\n"
    assert bus.facts()["upstream"] == f"redis {bus.bus_addresses[0]}"
    assert bus.status_line() == "0 peers, most behind 0 ms"
    client.connectionLost(_done())
    settle(reactor, bus.stop())


def test_takes_up_passwords_while_it_runs(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("one\n")
    reactor = MemoryReactorClock()
    bus = made(reactor, bus={"users": {"gw": str(secret)}})
    settle(reactor, bus.start())
    assert bus._bus.passwords.users == {"gw": "one"}
    secret.write_text("two\n")
    bus.reload(bus.config)()
    assert bus._bus.passwords.users == {"gw": "two"}
    secret.unlink()
    with pytest.raises(ConfigError):
        bus.reload(bus.config)
    assert "bus.users" in bus.reloads
    settle(reactor, bus.stop())


def test_places_that_cannot_be_read_are_no_reason_not_to_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusals = [LogCorrupt("no database")]

    def places(*arguments: Any) -> Places:
        if refusals:
            raise refusals.pop()
        return Places(*arguments)

    monkeypatch.setattr("tcprepl.app.bus.Places", places)
    reactor = MemoryReactorClock()
    bus = made(reactor, bus={"replay_seconds": 7})
    with capture_logs() as logs:
        settle(reactor, bus.start())
    assert "bus.places.unusable" in [line["event"] for line in logs]
    assert bus._bus.processes.bounds.seconds == 7
    settle(reactor, bus.stop())


def test_nobody_comes_in_without_a_password_where_there_is_one(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush")
    raw = {"bus": {"password_file": str(secret)}}
    assert passwords_of(build(raw, "test").config).common == "hush"


def test_which_streams_processes_are_told_of() -> None:
    assert told_of(build({}, "test").config) == [("*", "*")]
    told = told_of(build({"bus": {"synapse": "1.150"}}, "test").config)
    assert ("sticky_events", "*") in told
    assert ("profile_updates", "*") not in told


def test_a_bus_is_not_drained() -> None:
    """The processes of a Synapse know no other."""
    reactor = MemoryReactorClock()
    bus = made(reactor)
    settle(reactor, bus.start())
    assert bus.replication.drain is None
    settle(reactor, bus.stop())
