"""A relay: what it is made of, how it starts and ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from tcprepl.addresses import Address, parse_address
from tcprepl.app import relay, serving
from tcprepl.app.lifecycle import run
from tcprepl.app.relay import Relay
from tcprepl.config import build
from tcprepl.errors import ConfigError, LogUnavailable
from tcprepl.protocol.commands import (
    FederationAckCommand,
    RemoteServerUpCommand,
    UserSyncCommand,
)
from tcprepl.replication.redis.url import RedisUrl, parse_redis_url
from tcprepl.replication.relaying.state import RelayState
from tcprepl.web.services import WebServices
from tcprepl.web.site import build_site


def made(upstream: RedisUrl | Address, reactor: Any = None, **options: Any) -> Relay:
    """Return a relay that keeps everything in memory."""
    raw = {"data_directory": None, "server_name": "example.com", **options.pop("raw", {})}
    config = build(raw, "test").config
    return Relay(reactor or MemoryReactorClock(), config, upstream, **options)


def settle(reactor: Clock, task: Any) -> None:
    """Let a coroutine come to its end."""
    done = Deferred.fromCoroutine(task)
    failed: list[Any] = []
    _ = done.addErrback(failed.append)
    for _ in range(20):
        reactor.advance(1.0)
    if failed:
        failed[0].raiseException()
    assert done.called


def test_http_readers_are_told_of_the_gaps_of_the_line_protocol(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[WebServices] = []
    states: list[RelayState] = []

    def build_and_keep(services: WebServices) -> Any:
        built.append(services)
        return build_site(services)

    def open_and_keep(directory: Any) -> RelayState:
        states.append(RelayState(directory))
        return states[0]

    monkeypatch.setattr(serving, "build_site", build_and_keep)
    monkeypatch.setattr(relay, "RelayState", open_and_keep)
    reactor = MemoryReactorClock()
    made_relay = made(parse_address("127.0.0.1:9092"), reactor)
    settle(reactor, made_relay.start())
    (services,) = built
    assert services.log.gaps is made_relay.replication.hub._log.gaps is states[0].gaps
    settle(reactor, made_relay.stop())


@pytest.mark.parametrize("where", ["redis://127.0.0.1:6379", "127.0.0.1:9092"])
def test_starts_serves_and_stops(where: str) -> None:
    reactor = MemoryReactorClock()
    upstream = parse_redis_url(where) if where.startswith("redis") else parse_address(where)
    raw = {
        "instances": {"master": "http://127.0.0.1:1"},
        "http": {"replication_secret": "hush"},
    }
    made_relay = made(upstream, reactor, raw=raw)
    settle(reactor, made_relay.start())
    assert [port for port, *_ in reactor.tcpServers] == [9092, 9093]
    assert {port for _, port, *_ in reactor.tcpClients} == {int(where.rpartition(":")[2])}
    peer = reactor.tcpServers[0][1].buildProtocol(None)
    transport = StringTransport()
    peer.makeConnection(transport)
    peer.dataReceived(b"STATUS\n")
    assert f"INFO upstream {made_relay.upstream_name}: away for".encode() in transport.value()
    assert made_relay.status_line() == "upstream away, 1 peer, most behind 0 ms"
    asking = reactor.tcpServers[1][1].buildProtocol(IPv4Address("TCP", "127.0.0.1", 50_000))
    answer = StringTransport()
    asking.makeConnection(answer)
    asking.dataReceived(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
    health = json.loads(answer.value().partition(b"\r\n\r\n")[2])
    (degraded,) = health.pop("degraded")
    assert health == {"live": True, "ready": True}
    assert degraded.startswith(f"upstream {made_relay.upstream_name}: away for ")
    peer.connectionLost(_done())
    settle(reactor, made_relay.stop())


def _done() -> Any:
    return Failure(ConnectionDone())


class Upstream:
    """Keeps what it is to send."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, command: Any) -> bool:
        """Keep it."""
        self.sent.append(command)
        return True


class Server:
    """Keeps what it is to tell."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def broadcast(self, command: Any) -> None:
        """Keep it."""
        self.told.append(command)


class Peer:
    """A reader with a name."""

    name = "fed1"


def test_commands_pass_both_ways() -> None:
    made_relay: Any = made(parse_address("h:1"))
    made_relay.replication, made_relay._upstream = Server(), Upstream()
    made_relay._say_upstream(FederationAckCommand(None, 3), Peer())
    assert made_relay._upstream.sent == [FederationAckCommand("fed1", 3)]
    made_relay._say_downstream(RemoteServerUpCommand("far.example.com"))
    made_relay._say_downstream(UserSyncCommand("w1", "@a:x", None, True, 1))
    assert made_relay.replication.told == [RemoteServerUpCommand("far.example.com")]


def test_nothing_is_published_at_a_relay() -> None:
    failures: list[Any] = []
    _ = relay.ReadOnly().publish_json("typing", [b"[]"]).addErrback(failures.append)
    assert failures[0].value.status == 403


def test_a_log_that_takes_no_more_ends_the_relay() -> None:
    reactor = MemoryReactorClock()
    made_relay = made(parse_address("127.0.0.1:9092"), reactor)
    task = Deferred.fromCoroutine(run(reactor, made_relay, "relay"))
    failures: list[Any] = []
    _ = task.addErrback(failures.append)
    reactor.advance(0)
    made_relay.failed.errback(LogUnavailable("no room"))
    for _ in range(20):
        reactor.advance(1)
    assert failures[0].check(LogUnavailable)


def test_cancelling_ends_it_well() -> None:
    reactor = MemoryReactorClock()
    made_relay = made(parse_address("127.0.0.1:9092"), reactor)
    task = Deferred.fromCoroutine(run(reactor, made_relay, "relay"))
    codes: list[Any] = []
    _ = task.addCallback(codes.append)
    reactor.advance(0)
    task.cancel()
    for _ in range(20):
        reactor.advance(1)
    assert codes == [0]


def test_what_is_reloaded_holds(tmp_path: Path) -> None:
    """Secrets, hosts, bounds, and where missed rows are fetched if that was said at the start."""
    reactor = MemoryReactorClock()
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    raw = {"instances": {"master": "http://127.0.0.1:1"}}
    made_relay = made(parse_address("127.0.0.1:7"), reactor, raw=raw, secret_file=secret)
    assert "instances" not in made_relay.reloads
    settle(reactor, made_relay.start())
    assert "instances" in made_relay.reloads
    secret.write_text("new\n")
    new = build(
        {"http": {"token": "t"}, "instances": {}, "replication": {"max_connections": 3}}, "test"
    ).config
    made_relay.reload(new)()
    assert made_relay._web.secrets == ["t"]
    assert made_relay.replication.max_connections == 3
    assert made_relay._catch_up is not None
    assert (made_relay._catch_up._urls, made_relay._catch_up._secret) == ({}, "new")
    secret.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        made_relay.reload(new)
    settle(reactor, made_relay.stop())
