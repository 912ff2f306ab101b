"""A reader that resumes while the writer goes on: one schedule, byte by byte."""

from __future__ import annotations

from typing import Any

import structlog
from twisted.internet.defer import Deferred

from tcprepl.replication.following.client import ReplicationClient
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.registry import Registry
from tests.wire import Network


def test_row_published_while_a_reader_resumes_at_the_head_comes_after_its_position() -> None:
    """The socket is full of rows of another stream when the row comes: no reset may follow."""
    network, registry = Network(window_bytes=400), Registry()
    log = MemoryLog(registry, lambda: int(network.clock.seconds() * 1000))
    for stream in ("typing", "presence"):
        log.ensure(stream, "master")
    server = ReplicationServer(network.clock, log, registry, "here.example")
    assert Deferred.fromCoroutine(server.listen(network.server_endpoint())).called
    seen: list[Any] = []
    resets: list[Any] = []
    client = ReplicationClient(
        network.clock,
        network.client_endpoint("w"),
        ["typing", "presence"],
        lambda stream, instance, token, rows: seen.append((stream, token)),
        since="start",
        on_reset=lambda *reset: resets.append(reset),
    )

    def publish(stream: str, row: bytes) -> None:
        assert log.append(stream, "master", [row]).called

    with structlog.testing.capture_logs():
        client.startService()
        network.settle()
        publish("presence", b'["@u0:here.example","busy",0,0,0,"",true]')
        network.run(1)
        before = network.wires["w"]
        before.cut()
        for number in range(10):
            publish("typing", b'["!r0:here.example",["@typist%d:here.example"]]' % number)
        while network.wires["w"] is before:
            network.clock.advance(0.1)
        wire = network.wires["w"]
        wire.client.arrive()
        while not wire.server.arrive():
            network.clock.advance(0)
        network.clock.advance(0)
        publish("presence", b'["@u1:here.example","busy",0,0,0,"",true]')
        network.run(10)
        assert [token for stream, token in seen if stream == "presence"] == [1, 2]
        assert resets == []
        stopped = client.stopService()
        network.run(30)
        assert stopped.called
        ended = Deferred.fromCoroutine(server.stop())
        network.run(5)
        assert ended.called
