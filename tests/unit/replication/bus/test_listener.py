"""The bus: who is let in, who is asked and told, its life."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail

from tcprepl import metrics
from tcprepl.errors import CloseReason, LogUnavailable
from tcprepl.protocol.commands import (
    FederationAckCommand,
    RemovePusherCommand,
    UserSyncCommand,
)
from tcprepl.replication.bus.listener import BusListener
from tcprepl.replication.bus.passwords import Passwords
from tcprepl.replication.relaying import log_queue
from tcprepl.replication.serving.draining import kick
from tests.bus_world import BusWorld


def stop(world: BusWorld) -> Deferred[None]:
    """Stop the bus."""
    done = Deferred.fromCoroutine(world.bus.stop())
    world.settle()
    return done


def test_nothing_is_done_before_the_password() -> None:
    client = BusWorld(passwords=Passwords("common", {"gw": "own"})).client()
    assert client.ask("PING") == b"-NOAUTH Authentication required.\r\n"
    assert client.publish("REPLICATE") == b"-NOAUTH Authentication required.\r\n"
    assert client.ask("NOPE").startswith(b"-ERR unknown command")
    assert client.ask("HELLO").startswith(b"-NOAUTH HELLO must be called")
    wrong = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
    assert client.ask("AUTH", "nope") == wrong
    assert client.ask("HELLO", "2", "AUTH", "gw", "nope") == wrong
    assert client.ask("AUTH", "own") == b"+OK\r\n"
    assert client.connection.name == "gw"
    client.ask("RESET")
    assert client.ask("PING") == b"-NOAUTH Authentication required.\r\n"


def test_more_clients_than_there_may_be_are_turned_away() -> None:
    world = BusWorld(max_connections=1)
    world.client()
    late = world.client()
    assert late.transport.value() == b"-ERR max number of clients reached\r\n"
    assert late.transport.disconnecting
    said = world.bus.info(["stats"])
    assert "total_connections_received:1\r\n" in said
    assert "rejected_connections:1\r\n" in said


def test_a_client_is_kicked_by_the_number_that_is_shown() -> None:
    """And hears why; another number is nobody's."""
    world = BusWorld()
    one = world.subscriber()
    (shown,) = world.server.peers()
    assert [conn_id for conn_id, _ in world.server.readers()] == [shown.conn_id]
    one.transport.clear()
    assert [peer.conn_id for peer in kick(world.server, str(shown.conn_id), "go")]
    assert one.transport.value() == b"-ERR disconnected by an operator: go\r\n"
    assert one.transport.disconnecting
    world.server.end(99, CloseReason.KICKED, "nobody")


def test_a_new_writer_makes_everybody_say_where_they_are_but_not_too_often() -> None:
    world = BusWorld()
    one = world.subscriber()
    for _ in range(5):
        world.client().publish("LOCK_RELEASED x")
    assert one.heard().count("REPLICATE ") == 1
    world.clock.advance(0.3)
    assert one.heard().count("REPLICATE ") == 1


def test_commands_pass_to_readers_of_the_relay_and_from_them() -> None:
    world = BusWorld()
    assert not world.bus.send(FederationAckCommand("fed1", 3))
    one, writer = world.subscriber(), world.client()
    writer.publish("FEDERATION_ACK fed1 7", "REPLICATE", "SOMETHING new", "USER_IP @a:x t i d u 1")
    assert FederationAckCommand("fed1", 7) in world.commands
    assert len(world.commands) == 1
    assert "SOMETHING new" in one.heard()
    assert world.bus.send(UserSyncCommand("w1", "@a:x", None, True, 1))
    assert one.heard() == ["USER_SYNC w1 @a:x None start 1"]
    assert not world.bus.send(RemovePusherCommand("app", "key", "@a:x"))


def test_access_tokens_go_to_those_who_subscribed_them() -> None:
    world = BusWorld()
    one, main, writer = world.subscriber(), world.client(), world.client()
    main.ask("SUBSCRIBE", "example.com/USER_IP", "example.com")
    main.transport.clear()
    assert writer.ask("PUBLISH", "example.com/USER_IP", "USER_IP @a:x t i d u 1") == b":1\r\n"
    assert main.heard() == ["USER_IP @a:x t i d u 1"]
    assert one.heard() == []


def test_status_and_metrics() -> None:
    world = BusWorld()
    assert not world.bus.status().up
    writer = world.client()
    writer.publish("POSITION events w1 4 4", "RDATA events w1 5 [1]", "RDATA events w1 batch [1]")
    writer.ask("GET", "k")
    writer.ask("NOPE")
    status = world.bus.status()
    assert (status.up, status.rows, status.reconnects) == (True, 1, 0)
    shown = metrics.render().decode()
    assert 'tcprepl_bus_commands_total{command="publish"}' in shown
    assert 'tcprepl_bus_commands_total{command="(unknown)"}' in shown
    assert 'tcprepl_bus_cache_requests_total{result="miss"}' in shown
    writer.leave()
    status = world.bus.status()
    assert not status.up
    assert "peer_closed" in str(status.reason)
    assert world.server.status_lines()


def test_who_publishes_waits_while_the_log_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been said is kept, the rest is not read; all of it comes once the log takes it."""
    monkeypatch.setattr(log_queue, "MAX_WAITING_BYTES", 8)
    world = BusWorld()
    one, writer = world.subscriber(), world.client()
    append = world.log.append
    away = fail_with(LogUnavailable("the database is away"))
    monkeypatch.setattr(world.log, "append", away)
    rows = [f'RDATA events w1 {token} ["ev",[]]' for token in (1, 2, 3)]
    for row in rows:
        writer.connection.dataReceived(f"PUBLISH example.com '{row}'\r\n".encode())
        world.settle()
    assert world.bus.full
    assert writer.connection._paused
    assert "aof_last_write_status:err" in world.bus.info(["persistence"])
    assert not any(line.startswith("RDATA") for line in one.heard())
    monkeypatch.setattr(world.log, "append", append)
    for _ in rows:
        world.clock.advance(log_queue.RETRY_S)
        world.settle()
    assert not world.bus.full
    assert not writer.connection._paused
    assert [line for line in one.heard() if line.startswith("RDATA")] == rows
    assert "aof_last_write_status:ok" in world.bus.info(["persistence"])
    world.close()


def fail_with(error: Exception) -> Any:
    """Return what fails."""
    return lambda *args, **kwargs: fail(error)


def test_the_end_gives_subscribers_what_was_published() -> None:
    world = BusWorld()
    one, writer = world.subscriber(), world.client()
    writer.connection.dataReceived(b"PUBLISH example.com 'POSITION events w1 4 4'\r\n")
    done = stop(world)
    assert done.called
    assert "POSITION events w1 4 4" in one.heard()
    assert one.transport.disconnecting


def test_a_client_that_does_not_go_is_ended_when_the_bus_stops() -> None:
    world = BusWorld()
    lingering: Any = world.client().transport
    lingering.loseConnection = lambda: None
    done = stop(world)
    assert not done.called
    world.clock.advance(2)
    assert done.called


def test_a_stop_in_a_hurry_waits_for_nobody() -> None:
    world = BusWorld()
    lingering: Any = world.client().transport
    lingering.loseConnection = lambda: None
    done = stop(world)
    done.cancel()
    world.settle()
    assert lingering.disconnecting


def test_writers_that_were_too_many_go_on_when_there_is_room() -> None:
    world = BusWorld()
    assert isinstance(world.bus, BusListener)
    assert not world.bus.full
    world.bus._followers.unblocked()


def test_who_connects_and_does_not_listen_may_be_a_writer_that_is_back() -> None:
    world = BusWorld()
    one = world.subscriber()
    world.client()
    gone = world.client()
    world.clock.advance(0.25)
    world.settle()
    assert one.heard() == ["REPLICATE "]
    gone.leave()
    quick = world.client()
    quick.leave()
    world.subscriber()
    world.clock.advance(1)
    assert one.heard() == []
