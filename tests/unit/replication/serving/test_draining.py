"""Kick and drain, over wires in memory: who is closed when, with which last word."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs
from twisted.internet.defer import CancelledError, Deferred, succeed

from tcprepl.access import ALL, NOTHING, Grant, Tokens
from tcprepl.errors import LogUnavailable
from tcprepl.replication.serving.draining import LOOK_S, Drain, DrainState, kick, nobody_called
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


# -- on a line -------------------------------------------------------------------------


class Line:
    """An operator with a line, and a server that may be drained."""

    def __init__(self, **options: Any) -> None:
        self.world = World(**options)
        self.drain: Drain | None = None
        self.world.server.drain = self.begin
        self.operator = self.world.call("NAME op")
        self.operator.lines()

    def begin(self, within_s: float, to: str) -> Drain:
        """Begin to drain."""
        if self.drain is None:
            self.drain = Drain(self.world.server, lambda: succeed(None), within_s, to)
        return self.drain

    def asks(self, *lines: str) -> list[str]:
        """Say lines; return what comes."""
        self.operator.say(*lines)
        self.world.network.settle()
        return self.operator.lines()


@pytest.fixture
def line() -> Any:
    """An operator, and the server stopped in the end."""
    made = Line()
    yield made
    if made.drain is not None:
        made.drain.stop()
    assert made.world.stop().called


def test_a_kick_on_a_line(line: Line) -> None:
    evil = line.world.call("NAME evil")
    assert line.asks("KICK evil it is  time") == [
        "INFO evil (127.0.0.1:40002), connection 2: ended"
    ]
    assert evil.lines()[-1] == "ERROR disconnected by an operator: it is  time"
    assert evil.over
    assert line.asks("KICK evil") == [
        "ERROR no peer is called evil: expected what it calls itself, its address with the "
        "port, or the number of its connection, as STATUS shows them; there is op"
    ]
    assert line.asks("KICK opp")[0].endswith("; did you mean op?")
    others = [line.world.call("NAME twin") for _ in range(2)]
    assert line.asks("KICK twin") == [
        "INFO twin (127.0.0.1:40003), connection 3: ended",
        "INFO twin (127.0.0.1:40004), connection 4: ended",
    ]
    assert all(other.lines()[-1] == "ERROR disconnected by an operator" for other in others)
    unnamed = line.world.call("PING 1")
    assert line.asks("KICK 127.0.0.1:40005") == ["INFO - (127.0.0.1:40005), connection 5: ended"]
    assert unnamed.over


def test_who_is_on_its_way_out_is_not_suggested() -> None:
    server: Any = SimpleNamespace(
        peers=lambda: [SimpleNamespace(name=name) for name in ("evil", "", "op")]
    )
    assert nobody_called(server, "evil").endswith("; there is op")


def test_who_kicks_itself_hears_that_alone(line: Line) -> None:
    other = line.world.call("NAME op")
    assert line.asks("KICK op why not", "STATUS") == ["ERROR disconnected by an operator: why not"]
    assert line.operator.over
    assert other.over


def test_a_drain_on_a_line_is_told_of_until_it_is_over(line: Line) -> None:
    """Who asked for it is the last to go, and knows whether everybody had everything."""
    world = line.world
    sender = world.call("NAME fed1", "REPLICATE", "FEDERATION_ACK fed1 0")
    reader = world.call("REPLICATE")
    world.log.ensure("federation", "master")
    world.publisher.publish_json("federation", [EDU])
    world.network.settle()
    assert line.asks("DRAIN 60 there:1") == [
        "INFO draining: 2 peers left, 1 of them waited for, 60 s to go"
    ]
    look(world, 9)
    assert reader.over
    assert line.operator.lines() == []
    look(world, 2)
    assert line.operator.lines() == ["INFO draining: 1 peer left, 1 of them waited for, 59 s to go"]
    assert line.asks("DRAIN 5 elsewhere") == [
        "INFO draining: 1 peer left, 1 of them waited for, 59 s to go"
    ]
    sender.say("FEDERATION_ACK fed1 1")
    world.network.settle()
    look(world, 2)
    last = "ERROR the server is being drained; go to there:1"
    assert line.operator.lines() == ["INFO drained: everybody has everything", last]
    assert sender.lines()[-1] == last
    assert line.drain is not None
    assert line.drain.done.called


def test_a_drain_on_a_line_whose_time_is_over(line: Line) -> None:
    """Somebody is left: it is said, also to who has something to get itself."""
    world = line.world
    sender = world.call("NAME fed1", "REPLICATE", "FEDERATION_ACK fed1 0")
    world.log.ensure("federation", "master")
    world.publisher.publish_json("federation", [EDU])
    second = world.call("FEDERATION_ACK fed2 0")
    second.lines()
    second.say("DRAIN 1")
    world.network.settle()
    assert line.asks("DRAIN") == ["INFO draining: 2 peers left, 2 of them waited for, 1 s to go"]
    look(world, 11)
    assert line.drain is not None
    assert line.drain.done.called
    assert line.operator.lines()[-2:] == [
        "INFO drained: 2 peers were closed without everything, as the time was over",
        "ERROR the server is being drained",
    ]
    late = "ERROR the server is being drained; not everything was sent in time"
    assert (sender.lines()[-1], second.lines()[-1]) == (late, late)


def test_who_asked_for_a_drain_may_leave(line: Line) -> None:
    reader = line.world.call("REPLICATE")
    assert line.asks("DRAIN") == ["INFO draining: 1 peer left, 30 s to go"]
    assert line.operator.transport is not None
    line.operator.transport.loseConnection()
    look(line.world, 3)
    assert reader.over
    assert line.drain is not None
    assert line.drain.done.called


def test_not_every_process_is_drained(line: Line) -> None:
    line.world.server.drain = None
    (answer,) = line.asks("DRAIN 5")
    assert answer.startswith("ERROR this process is not drained: ")


def test_only_who_may_operate_kicks_and_drains() -> None:
    """Without a token where the configuration lets operate without one, as in `line`."""
    line = Line(anonymous=Grant(read=ALL, inspect=ALL, write=ALL))
    for said in ("KICK op", "DRAIN 5"):
        word = said.partition(" ")[0]
        (answer,) = line.asks(said)
        assert answer == (
            f"ERROR not allowed: {word} needs a token that may operate; "
            "say AUTH <token> first, on a new connection"
        )
    assert line.drain is None
    assert not line.operator.over
    line.world.server.admit(Tokens([("t" * 20, Grant("ops", operate=True))]), NOTHING)
    operator = line.world.call(f"AUTH {'t' * 20}", "KICK nobody", "DRAIN 5")
    assert [text.split(" ")[0] for text in operator.lines()] == [
        "SERVER", "AUTHORIZED", "ERROR", "INFO",
    ]  # fmt: skip
    assert line.drain is not None
    line.drain.stop()
    assert line.world.stop().called


def test_words_of_a_drain() -> None:
    state = DrainState(1, 1, 1, 4.2, over=False, unserved=0, to="")
    assert state.words == "draining: 1 peer left, 1 of them behind by 1 row, 4 s to go"
    left = structs.replace(state, over=True, unserved=1)
    assert left.words == ("drained: 1 peer was closed without everything, as the time was over")
    away = structs.replace(state, peers=0, behind=0, rows=0, senders=["fed1"])
    assert away.words == "draining: 0 peers left, fed1 has not acknowledged everything, 4 s to go"
    both = structs.replace(left, senders=["fed1", "fed2"])
    assert both.words == (
        "drained: 1 peer was closed without everything and fed1, fed2 have not acknowledged "
        "everything, as the time was over"
    )


def test_a_sender_that_is_away_is_waited_for_as_one_that_is_here(world: World) -> None:
    """What the others have passed over is in no outbox."""
    lacking = ["fed1", "fed2"]
    here = world.call("NAME fed2", "REPLICATE")  # it has not acknowledged anything yet
    reader = world.call("NAME other", "REPLICATE")
    drain = Drain(world.server, lambda: succeed(None), 1.0, senders=lambda: list(lacking))
    look(world, 2)
    assert reader.over
    assert not here.over
    lacking.remove("fed2")
    look(world, 2)
    assert here.over
    assert not drain.done.called
    assert drain.state().senders == ["fed1"]
    look(world, 9)
    assert drain.done.called
    assert (drain.state().unserved, drain.state().senders) == (0, ["fed1"])


def test_who_asks_again_hears_of_the_end(world: World) -> None:
    """Between two questions the process had ended, and nobody could say how."""
    lacking = ["fed1"]
    drain = Drain(world.server, lambda: succeed(None), 9.0, senders=lambda: list(lacking))
    asked = drain.wait(LOOK_S)
    look(world, 3)
    assert not result_of(asked).over
    lacking.clear()
    look(world, 2)
    assert drain.state().over
    assert not drain.done.called
    assert result_of(drain.wait(1.0)).over
    look(world, 10)
    assert drain.done.called


def test_the_last_acknowledgement_ends_it(world: World) -> None:
    lacking = ["fed1"]
    drain = Drain(world.server, lambda: succeed(None), 9.0, senders=lambda: list(lacking))
    look(world, 3)
    assert not drain.done.called
    lacking.clear()
    look(world, 2)
    assert drain.done.called
    assert drain.state().words == "drained: everybody has everything"
