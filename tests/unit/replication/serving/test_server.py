"""The listening end, over wires in memory: greeting, words, limits, relays, drain."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import generate_latest

from tcprepl import limits, metrics
from tcprepl.errors import CloseReason
from tcprepl.protocol.commands import (
    FederationAckCommand,
    RemoteServerUpCommand,
    UserIpCommand,
    UserSyncCommand,
)
from tcprepl.replication.status import LinkStatus
from tests.serving_world import Caller, World
from tests.wire import Wire


@pytest.fixture
def world() -> Any:
    """A server, stopped in the end."""
    made = World()
    yield made
    assert made.stop().called
    assert not made.network.clock.getDelayedCalls()


def test_the_greeting_is_server_then_ping_with_our_tag(world: World) -> None:
    caller = world.call()
    first, second = caller.received.decode().splitlines()
    assert first == "SERVER example.com"
    assert second == f"PING 0 tcprepl/1 {world.log.history.current}"


def test_bare_replicate_announces_and_then_rows_flow(world: World) -> None:
    caller = world.call("replicate\r")
    assert caller.lines() == ["SERVER example.com", "POSITION alpha master 0 0"]
    world.publisher.publish("alpha", [[1]])
    world.network.settle()
    assert caller.lines() == ["RDATA alpha master 1 [1]"]


def test_one_token_listener() -> None:
    world = World(dialect="1.13")
    assert world.call("REPLICATE").lines()[1:] == ["POSITION alpha master 0"]


def test_name_and_status(world: World) -> None:
    caller = world.call("NAME w1", "REPLICATE", "NAME w2", "STATUS")
    (line,) = [line for line in caller.lines() if line.startswith("INFO peer")]
    assert " w2 " in line
    assert world.server.peers()[0].name == "w2"
    assert world.server.lags([]) == {}
    assert world.server.lags([1, 99]) == {1: 0.0}
    assert "w2" in repr(next(iter(world.server._peers.values())))
    world.call("NAME w3")
    (read,) = world.server.readers()
    assert read[0] == 1
    assert world.server.hub.standing(read[1]) == {("alpha", "master"): 0}


def test_commands_reach_who_asked_for_them_and_failures_are_logged(world: World) -> None:
    got: list[Any] = []
    world.server.on(FederationAckCommand, lambda command, peer: got.append((command, peer.name)))
    world.server.on(UserSyncCommand, lambda command, peer: got.append(command.user_id))
    world.server.on(UserIpCommand, lambda command, peer: got.append(command.ip))
    world.call(
        "NAME fed1",
        "FEDERATION_ACK fed1 17",
        "USER_SYNC abc @a:x start 5",
        'USER_IP @a:x ["tok","10.0.0.1","UA","DEV",5]',
        "CLEAR_USER_SYNC abc",
    )
    assert got == [(FederationAckCommand("fed1", 17), "fed1"), "@a:x", "10.0.0.1"]
    assert world.server.peers()[0].acked == 17
    assert world.server.received_commands()["FEDERATION_ACK", "fed1"] == 1


def test_remote_server_up_goes_to_the_others_and_not_back(world: World) -> None:
    one = world.call("REPLICATE")
    two = world.call("REPLICATE")
    silent = world.call()
    one.lines(), two.lines(), silent.lines()
    one.say("REMOTE_SERVER_UP other.org")
    world.network.settle()
    assert one.lines() == []
    assert two.lines() == ["REMOTE_SERVER_UP other.org"]
    assert silent.lines() == []
    world.server.broadcast(RemoteServerUpCommand("third.org"))
    world.network.settle()
    assert one.lines() == two.lines() == ["REMOTE_SERVER_UP third.org"]


@pytest.mark.parametrize(("dialect", "told"), [("1.13", True), ("1.22", False), ("auto", True)])
def test_which_streams_those_are_is_a_matter_of_the_releases_expected(
    dialect: str, told: bool
) -> None:
    stream = "groups" if dialect == "1.13" else "presence_federation"
    row: list[object] = ["+g:x", "@a:x", "t", {}] if stream == "groups" else ["b", "@a:x"]
    world = World(dialect=dialect)
    synapse = world.call("PING 1", "REPLICATE")
    world.publisher.publish(stream, [row])
    world.network.settle()
    assert any(stream in line for line in synapse.lines()) is told


def test_remote_server_up_is_not_for_releases_that_may_lack_the_word(world: World) -> None:
    old = world.call("PING 1", "REPLICATE alpha NOW")
    old.lines()
    world.server.broadcast(RemoteServerUpCommand("third.org"))
    world.network.settle()
    assert old.lines() == []


def test_who_leaves_is_told_to_who_asked(world: World) -> None:
    left: list[str] = []
    world.server.on_peer_lost(lambda peer: left.append(peer.name))
    world.call("NAME w1")
    world.wire().cut()
    assert left == ["w1"]
    assert world.server.status().closed == {"connection_lost": 1}
    world.call("NAME w2")
    world.wire().end(world.wire().client)
    assert world.server.status().closed == {"connection_lost": 1, "peer_closed": 1}


def test_links_are_measured(world: World) -> None:
    """Whether each is there, and what came over it; what is not known is left out."""
    up = LinkStatus("measured:1", "upstream", True, 5.0, None, 2, 7, 1, [], 0.5)
    away = LinkStatus("measured:2", "redis", False, 5.0, "cut", 0, 3)
    world.server.links += [lambda: up, lambda: away]
    told = generate_latest(metrics.REGISTRY).decode().splitlines()
    assert [line for line in told if 'link="measured:' in line] == [
        'tcprepl_link_up{kind="upstream",link="measured:1"} 1.0',
        'tcprepl_link_up{kind="redis",link="measured:2"} 0.0',
        'tcprepl_link_rows_total{kind="upstream",link="measured:1"} 7.0',
        'tcprepl_link_rows_total{kind="redis",link="measured:2"} 3.0',
        'tcprepl_link_reconnects_total{kind="upstream",link="measured:1"} 2.0',
        'tcprepl_link_reconnects_total{kind="redis",link="measured:2"} 0.0',
        'tcprepl_link_gaps{kind="upstream",link="measured:1"} 1.0',
        'tcprepl_link_gaps{kind="redis",link="measured:2"} 0.0',
        'tcprepl_link_idle_seconds{kind="upstream",link="measured:1"} 0.5',
    ]


def test_too_many_connections_make_room_or_are_turned_away() -> None:
    world = World(max_connections=2)
    quiet = world.call()
    busy = world.call("REPLICATE")
    newcomer = world.call("REPLICATE")
    assert quiet.over
    assert "to make room" in quiet.lines()[-1]
    assert "max_connections" in newcomer.lines()[0] or not newcomer.over
    refused = world.call("REPLICATE")
    assert refused.over
    assert "too many connections; the limit is 2" in "\n".join(refused.lines())
    assert not busy.over
    assert not newcomer.over
    assert world.server.status().closed == {"too_many_connections": 2}


def test_stop_says_why_and_waits(world: World) -> None:
    caller = world.call("REPLICATE")
    caller.lines()
    world.publisher.publish("alpha", [[1]])
    assert world.stop().called
    assert caller.lines() == ["RDATA alpha master 1 [1]", "ERROR server shutting down"]
    assert caller.over


def test_stop_turns_newcomers_away_and_aborts_who_does_not_go() -> None:
    world = World()
    world.call("REPLICATE")
    stuck = world.wire()
    stuck.client.reading = False
    stopped = world.stop()
    assert not stopped.called
    late = Caller()
    address = world.wire().server.getPeer()
    peer = world.server.accept(str(address))
    late_wire = Wire(late, peer, 1, 100)
    peer.makeConnection(late_wire.server)
    assert peer.closing is CloseReason.SHUTDOWN
    late.makeConnection(late_wire.client)
    late_wire.client.arrive()
    assert late.over
    for _ in range(round(limits.CLOSE_TIMEOUT_S) + 3):
        world.network.clock.advance(1)
    assert stopped.called
