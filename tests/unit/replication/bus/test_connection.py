"""One connection: order, pipelining, subscriptions, faults, a client that does not read."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from tcprepl import metrics
from tcprepl.limits import (
    CLOSE_TIMEOUT_S,
    HALF_CLOSED_S,
    MAX_REPLY_BYTES,
    MAX_SUBSCRIPTIONS,
    TURN_S,
)
from tcprepl.replication.bus import connection
from tcprepl.replication.bus.passwords import Passwords
from tcprepl.replication.redis.resp import encode
from tests.bus_world import BusWorld
from tests.wire import one_turn


def test_requests_in_one_piece_are_answered_in_order() -> None:
    client = BusWorld().client()
    assert client.raw(b"SET a 1\r\nGET a\r\n\r\nPING\r\nGET a\r\n") == (
        b"+OK\r\n$1\r\n1\r\n+PONG\r\n$1\r\n1\r\n"
    )
    many = b"PING\r\n" * 5_000
    client.raw(many)
    client.world.settle()
    client.world.clock.pump([0] * 50)
    assert client.transport.value() == b"+PONG\r\n" * 5_000


def test_requests_that_take_long_are_worked_on_in_many_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = BusWorld().client()
    run = connection.run

    def slowly(asker: Any, words: Any) -> Any:
        client.world.clock.rightNow += TURN_S * 0.6  # two last longer than a turn
        return run(asker, words)

    monkeypatch.setattr(connection, "run", slowly)
    client.transport.clear()
    client.connection.dataReceived(b"PING\r\n" * 10)
    for turn in (1, 2, 3, 4, 5):
        assert client.transport.value() == b"+PONG\r\n" * 2 * turn
        one_turn(client.world.clock)
    assert client.transport.value() == b"+PONG\r\n" * 10


def test_a_fault_is_answered_and_costs_that_connection_alone() -> None:
    world = BusWorld()
    other, client = world.client(), world.client()
    said = client.raw(b"PING\r\n*1\r\n!\r\nPING\r\n")
    assert said == b"+PONG\r\n-ERR Protocol error: expected '$', got '!'\r\n"
    assert client.transport.disconnecting
    client.connection.dataReceived(b"PING\r\n")
    assert other.ask("PING") == b"+PONG\r\n"


@pytest.mark.parametrize(
    "head", [b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", b"PUT / HTTP/1.1\r\nhOST: x\r\n\r\n"]
)
@pytest.mark.parametrize("passwords", [Passwords(), Passwords("hush")])
def test_what_is_in_a_request_over_http_is_not_carried_out(
    head: bytes, passwords: Passwords
) -> None:
    """A page in a browser can send one to every port of its machine."""
    world = BusWorld(passwords=passwords)
    client = world.client()
    said = client.raw(
        head + b"AUTH hush\r\nSET k v\r\nPUBLISH example.com 'RDATA events w1 5 [1]'\r\n"
    )
    assert client.transport.disconnecting
    assert b"+OK" not in said
    assert len(world.bus.cache) == 0
    assert world.log.pairs() == []


def test_who_has_subscribed_may_only_say_so_much() -> None:
    client = BusWorld().client()
    assert client.ask("SUBSCRIBE", "a", "b", "a") == (
        b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
        b"*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n"
        b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:2\r\n"
    )
    assert client.ask("GET", "k") == (
        b"-ERR Can't execute 'get': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET "
        b"are allowed in this context\r\n"
    )
    assert client.publish("REPLICATE").startswith(b"-ERR Can't execute 'publish'")
    assert client.ask("PING") == b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"
    assert client.ask("PING", "x") == b"*2\r\n$4\r\npong\r\n$1\r\nx\r\n"
    assert client.ask("UNSUBSCRIBE", "b", "c").count(b"unsubscribe") == 2
    assert client.ask("UNSUBSCRIBE").endswith(b"$1\r\na\r\n:0\r\n")
    assert client.ask("GET", "k") == b"$-1\r\n"


def test_other_channels_are_plain() -> None:
    world = BusWorld()
    one, two, sender = world.client(), world.client(), world.client()
    one.ask("SUBSCRIBE", "ch")
    two.ask("PSUBSCRIBE", "c*", "d*")
    assert sender.ask("PUBSUB", "CHANNELS", "c*") == b"*1\r\n$2\r\nch\r\n"
    assert sender.ask("PUBSUB", "NUMSUB", "ch") == b"*2\r\n$2\r\nch\r\n:1\r\n"
    assert sender.ask("PUBSUB", "NUMPAT") == b":2\r\n"
    one.heard(), two.heard()
    assert sender.ask("PUBLISH", "ch", "hey") == b":2\r\n"
    assert one.heard() == two.heard() == ["hey"]
    assert two.ask("PUNSUBSCRIBE", "c*").endswith(b":1\r\n")
    assert sender.ask("PUBLISH", "ch", "hey") == b":1\r\n"
    one.leave()
    assert sender.ask("PUBLISH", "ch", "hey") == b":0\r\n"


def test_more_subscriptions_than_one_may_have_are_refused() -> None:
    client = BusWorld().client()
    said = client.ask("SUBSCRIBE", *(str(n) for n in range(MAX_SUBSCRIPTIONS + 1)))
    assert said.endswith(b"-ERR more than %d subscriptions\r\n" % MAX_SUBSCRIPTIONS)


def test_a_client_that_does_not_read_is_not_listened_to() -> None:
    world = BusWorld()
    client = world.client()
    client.ask("SET", "k", "v" * 1_000)
    client.full()
    client.raw(b"GET k\r\n" * 500)
    world.clock.pump([0] * 20)
    assert len(client.transport.value()) < MAX_REPLY_BYTES + 2_000
    assert client.transport.producerState == "paused"
    client.drain()
    client.full()
    client.drain()
    world.clock.pump([0] * 50)
    assert client.transport.value().count(b"$1000\r\n") == 500
    assert client.transport.producerState == "producing"


class Recorder:
    """An outlet that keeps what it is given, as it is while the socket takes nothing."""

    buffered_bytes = 0

    def __init__(self) -> None:
        self.chunks: list[bytes] = []

    def write(self, chunk: bytes) -> bool:
        """Keep *chunk*."""
        self.chunks.append(chunk)
        return False


def test_answers_that_wait_share_the_values_of_the_cache() -> None:
    """Otherwise one request for a value again and again, or many that do not read, eat memory."""
    world = BusWorld()
    client = world.client()
    client.ask("SET", "k", "v" * 1_000_000)
    client.ask("SET", "s", "small")
    client.connection._outlet = outlet = Recorder()  # type: ignore[assignment]
    client.ask("MGET", *["k"] * 20, "s", "none", *["s"] * 20)
    other = world.client()
    other.connection._outlet = outlet  # type: ignore[assignment]
    other.ask("GET", "k")
    large = b"$1000000\r\n" + b"v" * 1_000_000 + b"\r\n"
    small = b"$5\r\nsmall\r\n"
    assert b"".join(outlet.chunks) == (
        b"*42\r\n" + large * 20 + small + b"$-1\r\n" + small * 20 + large
    )
    assert sum({id(chunk): len(chunk) for chunk in outlet.chunks}.values()) < 1_100_000


def test_one_that_does_not_take_messages_of_other_channels_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "MAX_PUSH_BYTES", 1_000)
    world = BusWorld()
    slow, sender = world.client(), world.client()
    slow.ask("SUBSCRIBE", "ch")
    slow.full()
    for _ in range(3):
        sender.ask("PUBLISH", "ch", "x" * 600)
    assert slow.transport.disconnecting
    assert sender.ask("PUBLISH", "ch", "x") == b":0\r\n"


def test_who_closes_its_side_gets_its_answers() -> None:
    """``nc -N``: it has said all that it will, and not heard all of it."""
    world = BusWorld()
    client = world.client()
    client.ask("SET", "k", "v" * 1_000)
    client.transport.clear()
    client.connection.dataReceived(b"GET k\r\n" * 500 + b"half a request")
    client.full()
    client.connection.readConnectionLost()
    world.clock.pump([0] * 50)
    assert not client.transport.disconnecting
    client.drain()
    client.full()  # again, at the end
    world.clock.pump([0] * 50)
    client.drain()
    world.clock.pump([0] * 50)
    assert client.transport.value().count(b"$1000\r\n") == 500
    assert client.transport.disconnecting


def test_who_closes_its_side_and_waits_for_nothing_is_gone_at_once() -> None:
    world = BusWorld()
    writer = world.client()
    writer.publish("POSITION events w2 4 4")
    world.clock.advance(5)
    idle, listener, leaver = world.client(), world.client(), world.client()
    listener.ask("AUTH", "w1", "any")
    listener.ask("SUBSCRIBE", "example.com")
    lingering: Any = leaver.transport
    lingering.loseConnection = lambda: None
    leaver.ask("QUIT")
    for one in (idle, listener, leaver):
        one.connection.readConnectionLost()
        assert one.transport.disconnecting
    assert world.bus.clients() == [writer.connection]
    # it is taken for one that was lost: what it misses is kept for it
    writer.publish("RDATA events w2 5 [1]")
    again = world.client()
    again.ask("AUTH", "w1", "any")
    again.ask("SUBSCRIBE", "example.com")
    assert "RDATA events w2 5 [1]" in again.heard()


def test_who_closes_its_side_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    world = BusWorld()
    client = world.client()
    client.publish("POSITION events w1 4 4")
    monkeypatch.setattr(type(world.bus), "full", property(lambda self: True))
    client.publish("RDATA events w1 5 [1]")
    client.connection.readConnectionLost()
    world.clock.advance(HALF_CLOSED_S - 1)
    assert not client.transport.disconnecting
    world.clock.advance(1)
    assert client.transport.disconnecting
    assert world.rows("events", "w1") == [(5, b"[1]")]


def test_what_was_read_is_done_though_nobody_waits_for_the_answer() -> None:
    """As a Redis does it: what somebody publishes before the end is not for them."""
    world = BusWorld()
    one, client = world.subscriber(), world.client()
    rows = [b"RDATA events w1 %d [1]" % n for n in range(1, 2_001)]
    client.connection.dataReceived(
        b"".join(encode(b"PUBLISH", b"example.com", row) for row in rows)
        + encode(b"SET", b"k", b"v")
        + encode(b"SUBSCRIBE", b"a")
        + encode(b"UNSUBSCRIBE")
        + encode(b"PUBLISH", b"example.com", b"LOCK_RELEASED x")
        + encode(b"QUIT")
        + encode(b"SET", b"k", b"w")
    )
    client.leave()
    world.clock.pump([0] * 50)
    assert world.log.position("events", "w1") == 2_000
    heard = [line for line in one.heard() if line != "REPLICATE "]
    assert heard[0] == "POSITION events w1 0 0"
    assert heard[1:] == [*(row.decode() for row in rows), "LOCK_RELEASED x"]
    assert one.ask("UNSUBSCRIBE").endswith(b":0\r\n")
    assert one.ask("GET", "k") == b"$1\r\nv\r\n"
    assert one.ask("PUBSUB", "CHANNELS") == b"*0\r\n"
    faulty = world.client()
    faulty.connection.dataReceived(b"PING\r\n" * 2_000 + b"SET k w\r\n*x\r\n")
    faulty.leave()
    assert one.ask("GET", "k") == b"$1\r\nw\r\n"


def test_a_close_that_does_not_end_is_ended() -> None:
    world = BusWorld()
    client = world.client()
    lingering: Any = client.transport
    lingering.loseConnection = lambda: None
    client.ask("QUIT")
    assert not lingering.disconnecting
    world.clock.advance(CLOSE_TIMEOUT_S + 1)
    assert lingering.disconnecting


def test_what_it_shows_of_itself() -> None:
    world = BusWorld()
    client = world.client()
    client.ask("AUTH", "gw", "x")
    assert world.server.peers() == []
    client.ask("SUBSCRIBE", "example.com")
    (peer,) = world.server.peers()
    assert (peer.name, peer.dialect, peer.state) == ("gw", "redis", "head")
    assert repr(client.connection) == "<BusConnection 1:gw>"
    client.full()
    writer = world.client()
    writer.publish("POSITION events w1 4 4", *(f"RDATA events w1 {n} [1]" for n in range(5, 9)))
    world.clock.advance(1)
    writer.publish("RDATA events w1 9 [1]")
    (peer,) = world.server.peers()
    assert peer.state == "behind"
    assert peer.paused_seconds > 0


def test_publish_waits_while_too_much_waits_for_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    world = BusWorld()
    writer = world.client()
    writer.publish("POSITION events w1 4 4")
    full = True
    monkeypatch.setattr(type(world.bus), "full", property(lambda self: full))
    assert writer.publish("RDATA events w1 5 [1]") == b""
    full = False
    world.bus._resume()
    world.settle()
    assert world.rows("events", "w1") == [(5, b"[1]")]


def test_a_wrong_password_is_told_to_the_operator() -> None:
    """Once for each connection; and each is counted."""
    world = BusWorld(passwords=Passwords("hush"))
    counted = metrics.REFUSED_ACCESS.labels("bus", "wrong_password")
    before = counted._value.get()
    client = world.client()
    with capture_logs() as logs:
        client.ask("AUTH", "hush!")
        client.ask("HELLO", "2", "AUTH", "default", "hash")
    found = [one for one in logs if one["event"] == "bus.password.wrong"]
    assert [one["client"] for one in found] == ["1:127.0.0.1:5000"]
    assert "hush!" not in str(logs)
    assert counted._value.get() == before + 2


def test_large_requests_wait_for_the_password() -> None:
    client = BusWorld(passwords=Passwords("hush")).client()
    assert client.raw(encode(b"AUTH", b"hush") + encode(b"SET", b"k", b"x" * 20_000)) == (
        b"+OK\r\n+OK\r\n"
    )
    stranger = client.world.client()
    said = stranger.raw(encode(b"SET", b"k", b"x" * 20_000))
    assert said == b"-ERR Protocol error: unauthenticated bulk length\r\n"
