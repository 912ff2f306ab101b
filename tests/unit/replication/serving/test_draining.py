"""Kick and drain, over wires in memory: who is closed when, with which last word."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed

from tcprepl.errors import LogUnavailable
from tcprepl.replication.serving.draining import LOOK_S, Drain, kick
from tcprepl.replication.status import PeerStatus
from tests.serving_world import World

#: A row of ``federation``.
EDU = (
    b'["k",{"key":["a"],"edu":{"edu_type":"m.x","origin":"example.com","destination":"x",'
    b'"content":{}}}]'
)


@pytest.fixture
def world() -> Any:
    """A server, stopped in the end."""
    made = World()
    yield made
    assert made.stop().called
    assert not made.network.clock.getDelayedCalls()


def look(world: World, times: int = 1) -> None:
    """Let it be looked who has everything."""
    for _ in range(times):
        world.network.clock.advance(LOOK_S)
        world.network.settle()


def result_of(deferred: Deferred[Any]) -> Any:
    """Return what a Deferred came to, or what went wrong."""
    found: list[Any] = []
    _ = deferred.addBoth(found.append)
    return found[0]


def test_a_kicked_peer_hears_why_and_the_others_stay(world: World) -> None:
    evil = world.call("NAME evil", "REPLICATE")
    good = world.call("NAME good", "REPLICATE")
    (ended,) = kick(world.server, "evil", "too\nslow")
    world.network.settle()
    assert (ended.name, ended.conn_id) == ("evil", 1)
    assert evil.over
    assert evil.lines()[-1] == "ERROR disconnected by an operator: too\\nslow"
    assert not good.over
    assert world.server.status().closed == {"kicked": 1}


def test_all_of_a_name_or_one_of_a_number(world: World) -> None:
    first, second, third = (world.call("NAME twin") for _ in range(3))
    assert [one.conn_id for one in kick(world.server, "2", "")] == [2]
    world.network.settle()
    assert (first.over, second.over, third.over) == (False, True, False)
    assert second.lines()[-1] == "ERROR disconnected by an operator"
    assert len(kick(world.server, "twin", "")) == 2
    assert kick(world.server, "twin", "") == []  # they are being closed
    world.network.settle()
    assert kick(world.server, "nobody", "") == []


def test_connections_of_another_kind_are_ended_by_who_has_them(world: World) -> None:
    other = PeerStatus(77, "synapse", "a:1", "redis", "head", 0, 0, 0.0, None, 0.0, 0, 0, 0, 1.0)
    told: list[Any] = []
    world.server.others.append(lambda: [other])
    world.server.closers.append(lambda *what: bool(told.append(what)))
    assert kick(world.server, "synapse", "") == [other]
    assert [what[0] for what in told] == [77]


def test_who_has_everything_is_told_where_to_go_and_nobody_is_let_in(world: World) -> None:
    reader = world.call("REPLICATE")
    person = world.call()
    drain = Drain(world.server, lambda: succeed(None), 30.0, "repl2:9092")
    assert (drain.state().peers, drain.state().behind, drain.state().over) == (2, 0, False)
    look(world)
    last = "ERROR the server is being drained; go to repl2:9092"
    for caller in (reader, person):
        assert caller.over
        assert caller.lines()[-1] == last
    look(world, 2)
    assert drain.done.called
    assert drain.state().over
    assert drain.state().unserved == 0
    assert result_of(drain.wait(9.0)) == drain.state()
    drain.stop()


def test_who_connects_all_the_same_is_sent_on(world: World) -> None:
    """The kernel, or systemd, had accepted it before the port was closed."""
    accepted = world.network.factory
    drain = Drain(world.server, Deferred, 30.0)
    assert world.network.factory is None
    world.network.factory = accepted
    late = world.call()
    assert late.over
    assert late.lines()[-1] == "ERROR the server is being drained"
    drain.stop()


def test_who_is_behind_gets_every_row_first(world: World) -> None:
    reader = world.call("REPLICATE alpha * NOW")
    reader.lines()
    for _ in range(2):
        world.publisher.publish("alpha", [["x" * 200, n] for n in range(50)])
        world.network.clock.advance(0)
    drain = Drain(world.server, lambda: succeed(None), 30.0)
    for _ in range(5):
        world.network.clock.advance(LOOK_S)  # nothing of the wire arrives
    assert (drain.state().behind, drain.state().rows) == (1, 50)
    assert not drain.done.called
    world.network.settle()
    look(world, 3)
    assert reader.over
    assert [line.split(" ")[0] for line in reader.lines()] == ["RDATA"] * 100 + ["ERROR"]
    assert drain.done.called


def test_the_time_is_over(world: World) -> None:
    """Who has not acknowledged what it is for is closed all the same, and told that."""
    sender = world.call("NAME fed1", "REPLICATE", "FEDERATION_ACK fed1 0")
    world.log.ensure("federation", "master")
    world.publisher.publish_json("federation", [EDU])
    world.network.settle()
    drain = Drain(world.server, lambda: succeed(None), 1.0)
    waiting = drain.wait(9.0)
    given_up = drain.wait(9.0)
    given_up.cancel()
    assert isinstance(result_of(given_up).value, CancelledError)
    told = drain.wait(LOOK_S)
    look(world, 5)
    assert result_of(told).behind == 1
    assert not sender.over
    look(world, 6)
    assert drain.done.called
    assert sender.lines()[-1] == (
        "ERROR the server is being drained; not everything was sent in time"
    )
    assert result_of(waiting).unserved == 1


def test_an_acknowledgement_lets_a_sender_go(world: World) -> None:
    sender = world.call("NAME fed1", "REPLICATE", "FEDERATION_ACK fed1 0")
    world.log.ensure("federation", "master")
    world.publisher.publish_json("federation", [EDU])
    drain = Drain(world.server, lambda: succeed(None), 9.0)
    look(world, 3)
    assert not sender.over
    sender.say("FEDERATION_ACK fed1 1")
    world.network.settle()
    look(world, 3)
    assert sender.over
    assert drain.done.called


def test_rows_are_refused_and_what_was_taken_is_answered(world: World) -> None:
    writer = world.call("NAME w")
    writer.lines()
    flushed: Deferred[None] = Deferred()
    drain = Drain(world.server, lambda: flushed, 9.0)
    writer.say("PUBLISH alpha #1 [1]", "PUBLISH_ROWS alpha #2 [[2]]")
    world.network.settle()
    assert writer.lines() == [
        "REFUSED alpha #1 unavailable 0 the server is being drained",
        "REFUSED alpha #2 unavailable 0 the server is being drained",
    ]
    writer.say(*(f"PUBLISH alpha #{number} [1]" for number in range(3, 8)))
    world.network.settle()
    assert writer.lines() == [
        f"REFUSED alpha #{number} unavailable 0 the server is being drained"
        for number in range(3, 8)
    ]
    look(world, 3)
    assert not writer.over  # what was taken is not known to be safe yet
    flushed.callback(None)
    look(world, 3)
    assert writer.over
    assert drain.done.called


def test_a_publisher_waits_for_its_answers() -> None:
    """A row on its way to the disk is answered before its connection is closed."""
    world = World()
    taken: Deferred[Any] = Deferred()

    class Slow:
        def publish_json(self, *_: Any, **__: Any) -> Deferred[Any]:
            return taken

        def publish_each(self, *_: Any) -> Deferred[Any]:
            return taken

    world.server.door.publisher = Slow()
    writer = world.call("PUBLISH_ROWS alpha #1 [[1]]")
    drain = Drain(world.server, lambda: succeed(None), 9.0)
    look(world, 3)
    assert not writer.over
    taken.errback(LogUnavailable("no room"))
    look(world, 4)
    assert writer.over
    assert "REFUSED alpha #1 unavailable 0 no room" in writer.lines()
    assert drain.done.called
    assert world.stop().called


def test_a_reader_without_a_door_stays_so() -> None:
    """A relay takes no rows, before and after."""
    world = World()
    world.server.door.publisher = None
    drain = Drain(world.server, lambda: succeed(None), 9.0)
    assert world.server.door.publisher is None
    waiting = drain.wait(9.0)
    drain.stop()
    assert not result_of(waiting).over
    assert not drain.done.called
    assert world.stop().called
