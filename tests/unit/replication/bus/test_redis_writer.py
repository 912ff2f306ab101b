"""Publishing over Redis: positions in order with rows, echoes ignored, workers heard."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from structlog.testing import capture_logs
from twisted.internet.defer import Deferred

from tcprepl.protocol.commands import (
    FederationAckCommand,
    RemoteServerUpCommand,
    RemovePusherCommand,
    UserSyncCommand,
)
from tcprepl.replication.bus.redis_writer import PublishOutlet, RedisPeer, RedisWriter
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.streams.releases import Release
from tests.redis_world import FakeRedis
from tests.wire import run_until


class World:
    """A server whose streams also go over a fake Redis."""

    def __init__(self, **options: Any) -> None:
        self.redis = FakeRedis()
        self.network = self.redis.network
        self.clock = self.network.clock
        registry = Registry([StreamDef("caches"), StreamDef("alpha"), StreamDef("received_edus")])
        self.log = MemoryLog(registry, lambda: 0)
        for stream in ("caches", "alpha"):
            self.log.ensure(stream, "master")
        self.publisher = Publisher(self.log, registry, "master")
        self.server = ReplicationServer(self.clock, self.log, registry, "example.com", "master")
        self.heard: list[Any] = []
        for kind in (FederationAckCommand, UserSyncCommand):
            self.server.on(kind, lambda command, peer: self.heard.append((command, peer.dialect)))
        self.writer = RedisWriter(
            self.clock,
            self.redis.endpoint(),
            "redis://h:6379",
            self.server,
            server_name="example.com",
            instance="master",
            **options,
        )
        self.writer.start()
        self.network.settle()

    def publish(self, stream: str, *rows: object, **options: Any) -> None:
        """Publish rows of ours."""
        _ = self.publisher.publish(stream, rows, **options)
        self.network.settle()

    def lines(self) -> list[str]:
        """Return what was published since the last call."""
        self.network.settle()
        found = [line.decode() for line in self.redis.published]
        self.redis.published.clear()
        return found


def test_rows_and_positions_without_line_ends() -> None:
    world = World()
    assert world.lines() == []  # nothing was ever written: nothing to say
    world.publish("caches", [1], [2], batch=True)
    assert world.lines() == [
        "POSITION caches master 0 0",
        "RDATA caches master batch [1]",
        "RDATA caches master 1 [2]",
    ]
    world.publish("caches", [3])
    assert world.lines() == ["RDATA caches master 2 [3]"]
    _ = world.log.advance("caches", "master", 9)
    assert world.lines() == ["POSITION caches master 2 9"]


def test_rows_that_do_not_go_to_redis_are_known_with_the_reason() -> None:
    world = World()
    world.publish("caches", [1], instance="other")
    world.publish("alpha", [1])
    assert world.lines() == []
    assert world.writer.unpublished("caches", "master") is None
    assert "only rows of master are" in str(world.writer.unpublished("caches", "other"))
    assert "not every Synapse has alpha" in str(world.writer.unpublished("alpha", "master"))


@pytest.mark.parametrize(
    ("release", "told"),
    [
        (None, {"presence_federation", "typing"}),
        ((1, 20), {"typing", "user_signature"}),
        ((1, 163), {"presence_federation", "typing", "profile_updates"}),
        ((9, 9), {"presence_federation", "typing", "profile_updates"}),
    ],
)
def test_no_stream_is_mentioned_that_a_synapse_there_may_lack(
    release: Release | None, told: set[str]
) -> None:
    world = World(release=release)
    rows: dict[str, list[object]] = {
        "typing": ["!r:x", []],
        "presence_federation": ["b.example", "@a:x"],
        "profile_updates": ["@a:x", "update", ["displayname"]],
        "user_signature": ["@a:x"],
        "alpha": [1],
        "received_edus": [2],
    }
    for stream, row in rows.items():
        world.publish(stream, row)
    world.redis.say("REPLICATE")
    world.network.run(1)
    assert {line.split(" ")[1] for line in world.lines()} == told


def test_a_reader_that_lost_rows_is_told_by_position_alone() -> None:
    world = World()
    for number in range(300):
        _ = world.publisher.publish("caches", [["x" * 1_000, number]])
        world.clock.advance(0)  # nothing leaves the socket
    world.log.trim("caches", "master", 290)
    lines = world.lines()
    assert "POSITION caches master 290 290" in lines
    assert not [line for line in lines if line.startswith("ERROR")]


def test_replicate_is_answered_after_pending_rows_and_once_for_many() -> None:
    world = World()
    world.publish("caches", [1])
    world.lines()
    world.clock.advance(1)
    _ = world.publisher.publish("caches", [[2]])
    world.redis.deliver(b"example.com", b"REPLICATE ")
    world.redis.deliver(b"example.com", b"REPLICATE")
    world.network.settle()
    assert world.lines() == ["RDATA caches master 2 [2]", "POSITION caches master 2 2"]
    world.redis.say("REPLICATE")
    assert world.lines() == []  # a moment later, together with those that come meanwhile
    world.redis.say("REPLICATE ")
    world.network.run(1)
    assert world.lines() == ["POSITION caches master 2 2"]


def test_redis_away_and_back() -> None:
    world = World()
    world.publish("caches", [1])
    world.lines()
    world.redis.say("REPLICATE")
    world.redis.cut()
    world.network.turn()
    _ = world.publisher.publish("caches", [[2]])
    assert not world.writer.send(RemoteServerUpCommand("far.example.com"))
    assert not world.writer.status().up
    run_until(world.network, lambda: world.writer.link.up)
    assert world.lines() == ["POSITION caches master 2 2"]  # who missed 2 sees it, and asks
    world.publish("caches", [3])
    assert world.lines() == ["RDATA caches master 3 [3]"]
    status = world.server.status().links[0]
    assert (status.kind, status.up, status.reconnects, status.rows) == ("redis", True, 1, 2)
    assert status.lines()[0].startswith("redis redis://h:6379: up for")


def test_a_full_socket_is_served_from_the_log() -> None:
    world = World()
    for number in range(60):
        _ = world.publisher.publish("caches", [["x" * 100, number]])
        world.network.turn()
    lines = world.lines()
    rows = [line for line in lines if line.startswith("RDATA")]
    assert [int(line.split(" ")[3]) for line in rows] == list(range(1, 61))


def test_workers_are_heard_and_echoes_are_not() -> None:
    world = World()
    world.redis.say(
        "FEDERATION_ACK fed1 5",
        "USER_SYNC w1 @a:x DEV start 7",
        "RDATA caches master 1 [1]",
        "POSITION caches other 1 1",
        'LOCK_RELEASED ["master","a","b"]',
        'LOCK_RELEASED ["w1","a","b"]',
    )
    assert world.heard == [
        (FederationAckCommand("fed1", 5), "redis"),
        (UserSyncCommand("w1", "@a:x", "DEV", True, 7), "redis"),
    ]
    assert world.log.position("caches", "master") == 0
    with capture_logs() as logs:
        world.redis.say("position caches w1 1 1", "NONSENSE", b"\xff")
    assert [entry["event"] for entry in logs] == ["redis.line.unreadable"] * 2
    assert not world.lines()


def test_remote_server_up_goes_round_once() -> None:
    world = World()
    seen: list[Any] = []
    world.server.on(RemoteServerUpCommand, lambda command, peer: seen.append(peer))
    tcp: Any = object.__new__(RedisPeer)
    tcp.name = "somebody"
    for _ in range(2):
        world.server.dispatch(RemoteServerUpCommand("far.example.com"), tcp)
    assert world.lines() == ["REMOTE_SERVER_UP far.example.com"] * 2
    assert seen == [tcp, tcp]  # the echoes are ignored
    world.redis.say("REMOTE_SERVER_UP near.example.com")
    assert len(seen) == 3
    assert repr(seen[2]) == "<RedisPeer redis://h:6379>"
    assert world.lines() == []
    assert not world.writer.send(RemovePusherCommand("app", "key", "@a:x"))


def test_stop_publishes_what_is_pending() -> None:
    world = World()
    _ = world.publisher.publish("caches", [[1]])
    done = Deferred.fromCoroutine(world.writer.stop())
    world.network.settle()
    assert done.called


class Sink:
    """An outlet that keeps what it gets."""

    busy = False
    buffered_bytes = 3

    def __init__(self) -> None:
        self.data = b""

    def write(self, chunk: bytes) -> bool:
        """Keep it."""
        self.data += chunk
        return True


def test_a_pair_is_not_mentioned_before_its_first_row() -> None:
    sink: Any = Sink()
    outlet = PublishOutlet(World().writer.link, sink)
    assert outlet.write(b"POSITION a m 5 5\n")
    assert b"POSITION a m 5 5" in sink.data
    assert outlet.write(b"POSITION b m 0 0\n")
    assert outlet.write(b"POSITION b m 0 7\n")
    assert outlet.write(b"RDATA b m 8 [1]\n")
    assert b"0 0" not in sink.data
    assert (outlet.rows, outlet.busy, outlet.buffered_bytes) == (1, False, 3)


def test_rows_that_could_not_be_published_are_told_by_a_position(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection ends; on the next one workers see where we are, and fetch."""
    world = World()
    world.publish("caches", [1])
    world.lines()
    broken = mock.Mock(side_effect=MemoryError)
    monkeypatch.setattr("tcprepl.replication.bus.redis_writer.encode_publish", broken)
    world.publish("caches", [2])
    monkeypatch.undo()
    assert broken.called
    world.publish("caches", [3])
    run_until(world.network, lambda: world.redis.published, seconds=30)
    assert world.lines() == ["POSITION caches master 3 3"]
    world.publish("caches", [4])
    assert world.lines() == ["RDATA caches master 4 [4]"]
