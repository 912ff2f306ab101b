"""What a bus tells of each process: in its status, and in the metrics."""

from __future__ import annotations

from typing import Any

from tcprepl import metrics
from tcprepl.replication.status import ProcessStatus
from tests.bus_world import SERVER_NAME, BusClient, BusWorld


def named(world: BusWorld, name: str) -> BusClient:
    """Return a client that says who it is."""
    client = world.client()
    client.ask("AUTH", name, "any")
    return client


def shown(pattern: str) -> list[str]:
    """Return the lines of the metrics that hold *pattern*."""
    return [line for line in metrics.render().decode().splitlines() if pattern in line]


def test_each_process_is_counted_by_its_name_over_its_connections() -> None:
    world = BusWorld()
    writer, listener = named(world, "measured1"), named(world, "measured2")
    listener.ask("SUBSCRIBE", SERVER_NAME)
    writer.publish(
        "POSITION events measured1 4 4",
        "RDATA events measured1 5 [1]",
        "RDATA events measured1 6 [1]",
    )
    writer.ask("SET", "k", "v")
    named(world, "measured2").ask("MGET", "k", "l")
    listener.leave()
    again = named(world, "measured2")
    again.ask("SUBSCRIBE", SERVER_NAME)
    writer.publish("RDATA events measured1 7 [1]")
    world.settle()
    (peer,) = world.bus.peers()
    assert peer.process is not None
    assert (peer.name, peer.process.rows_out, peer.process.reconnects) == ("measured2", 3, 1)
    found: dict[str, Any] = dict(world.bus.by_process())
    assert found["measured1"].rows_in == 3
    assert found["measured2"] == ProcessStatus(0, 3, 1, found["measured2"].replays, 1, 1)
    said = shown('name="measured1"') + shown('name="measured2"') + shown('process="measured2"')
    command = 'synapse_replication_tcp_protocol_%s_commands_total{command="RDATA",name="%s"} 3.0'
    assert command % ("inbound", "measured1") in said
    assert command % ("outbound", "measured2") in said
    assert 'tcprepl_bus_process_reconnects_total{process="measured2"} 1.0' in said
    assert 'tcprepl_bus_process_cache_requests_total{process="measured2",result="miss"} 1.0' in said
    world.close()


def test_who_has_no_name_is_counted_for_itself_alone() -> None:
    world = BusWorld()
    stranger = world.subscriber()
    stranger.ask("RESET")
    stranger.ask("GET", "k")
    stranger.ask("SUBSCRIBE", SERVER_NAME)
    assert world.bus.by_process() == []
    (peer,) = world.bus.peers()
    assert peer.process is None
    world.close()
