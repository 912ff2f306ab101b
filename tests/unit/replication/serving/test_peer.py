"""One connection: what it may ask for, in which order it is answered, and what it costs."""

from __future__ import annotations

import socket
from itertools import groupby
from typing import Any
from unittest import mock

import pytest
from prometheus_client import generate_latest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from tcprepl import limits, metrics
from tcprepl.access import ALL, EVERYTHING, NOTHING, Grant, Streams, Tokens
from tcprepl.errors import CloseReason
from tcprepl.limits import MAX_PAIRS, MAX_REPLY_BYTES, MAX_SUBSCRIPTIONS, PEER_TURN_LINES
from tcprepl.protocol.commands import (
    Command,
    FederationAckCommand,
    RemoteServerUpCommand,
    UserIpCommand,
    UserSyncCommand,
)
from tcprepl.replication.serving import peer as peer_module
from tcprepl.replication.serving.help import help_lines
from tcprepl.replication.serving.measuring import MAX_NAMES
from tcprepl.replication.serving.peer import Peer
from tcprepl.replication.serving.turns import Worked
from tcprepl.streams.log import Appended
from tcprepl.streams.registry import BUILT_IN
from tests.serving_world import World
from tests.wire import one_turn as turn_of


@pytest.fixture
def world() -> Any:
    """A server, stopped in the end."""
    made = World()
    yield made
    assert made.stop().called
    assert not made.network.clock.getDelayedCalls()


def test_answers_come_in_the_order_of_the_questions(world: World) -> None:
    caller = world.call("HELP REPLICATE", "foo", "STATUS", "", "BAR")
    kinds = [line.split(" ")[0] for line in caller.lines()[1:]]
    assert [kind for kind, _ in groupby(kinds)] == ["INFO", "ERROR", "INFO", "ERROR"]


def test_a_bad_line_closes_only_who_sent_it(world: World) -> None:
    bad = world.call()
    good = world.call("REPLICATE")
    good.lines()
    bad.transport.write(b"\xff\xfe\n")  # type: ignore[union-attr]  # it is connected
    world.network.settle()
    assert bad.over
    assert bad.lines()[-1].startswith("ERROR line 1: ")
    assert not good.over


def test_another_protocol_is_told_what_port_this_is(world: World) -> None:
    caller = world.call("GET / HTTP/1.1", "Host: x", "")
    assert caller.over
    assert b"HTTP/1.1 400" in caller.received


def test_who_names_what_another_server_alone_has_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = {("typing", "a"): "a"}
    monkeypatch.setattr(world.server.log, "elsewhere", elsewhere.get, raising=False)
    caller = world.call("REPLICATE typing a 0", "REPLICATE typing b 0", "REPLICATE typing * 0")
    said = [line for line in caller.lines() if line.startswith("INFO ")]
    assert said == [
        "INFO typing of a is in the memory of the server that writes as a, and not served here: "
        "follow that server, too"
    ]


def test_silence_is_kept_alive_and_ends_only_who_sent_ping(world: World) -> None:
    person = world.call("REPLICATE")
    worker = world.call("PING 1")
    person.lines(), worker.lines()
    world.network.run(limits.PING_TIMEOUT_S + 7)
    assert worker.over
    assert worker.lines()[-1].startswith("ERROR ping timeout")
    assert not person.over
    assert b"PING" in person.received


def test_rows_to_everybody_count_as_signs_of_life(world: World) -> None:
    caller = world.call("REPLICATE")
    caller.lines()
    for number in range(2 * round(limits.PING_INTERVAL_S) + 2):
        world.publisher.publish("alpha", [[number]])
        world.network.run(1.0)
    assert b"PING" not in caller.received


def test_a_reader_that_does_not_read_is_not_pinged_into_memory(world: World) -> None:
    caller = world.call("REPLICATE")
    wire = world.wire()
    wire.client.reading = False
    for number in range(40):
        world.publisher.publish("alpha", [["x" * 100, number]])
        world.network.clock.advance(0)
    held = len(wire.server.outgoing)
    for _ in range(100):
        world.network.clock.advance(1)
    assert len(wire.server.outgoing) == held
    status = world.server.peers()[0]
    assert status.state == "behind"
    assert status.behind_rows > 0
    assert world.server.lags([99]) == {status.conn_id: status.behind_seconds}
    assert status.behind_seconds > 90
    assert status.paused_seconds > 90
    assert b"tcprepl_peer_behind_rows" in generate_latest(metrics.REGISTRY)
    wire.client.reading = True
    world.network.settle()
    assert len([line for line in caller.lines() if line.startswith("RDATA")]) == 40


def test_closing_twice_is_closing_once(world: World) -> None:
    caller = world.call("NAME w")
    peer = next(iter(world.server._peers.values()))
    peer.close(CloseReason.SHUTDOWN, "one")
    peer.close(CloseReason.SHUTDOWN, "two")
    peer.send(RemoteServerUpCommand("x"))
    assert world.server.peers()[0].state == "closing"
    world.network.settle()
    assert caller.lines()[-1] == "ERROR one"


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("REPLICATE alpha NOW", ["POSITION alpha 0"]),
        ("REPLICATE ALL NOW", ["POSITION alpha 0"]),
        ("REPLICATE alpha master 0", ["POSITION alpha master 0 0"]),
        ("REPLICATE alpha * NOW", ["POSITION alpha master 0 0"]),
        ("REPLICATE * * 0", ["POSITION alpha master 0 0"]),
    ],
)
def test_forms_of_replicate(world: World, line: str, answer: list[str]) -> None:
    assert world.call(line).lines()[1:] == answer


def test_unknown_stream_is_answered_with_the_known_ones_and_stays(world: World) -> None:
    caller = world.call("REPLICATE nonsense NOW")
    error = caller.lines()[1]
    assert error.startswith("ERROR unknown stream 'nonsense'; there are ")
    assert "alpha" in error
    assert not caller.over


def test_a_synapse_is_told_only_of_streams_that_its_release_has(world: World) -> None:
    person = world.call("NAME nc", "REPLICATE")
    synapse = world.call("NAME w1", "PING 1", "REPLICATE ")
    ours = world.call("PING 1", "REPLICATE * * NOW")
    for caller in (person, synapse, ours):
        caller.lines()
    world.publisher.publish("alpha", [[1]])
    world.publisher.publish("user_signature", [["@a:x"]])
    world.publisher.publish("sticky_events", [["!r:x", "$e"]])
    world.network.settle()
    assert synapse.lines() == [
        "POSITION user_signature master 0 0",
        'RDATA user_signature master 1 ["@a:x"]',
    ]
    assert person.lines() == ours.lines()
    assert synapse.lines() == []
    synapse.say("REPLICATE")
    world.network.settle()
    assert synapse.lines() == ["POSITION user_signature master 1 1"]


@pytest.mark.parametrize("ping", [[], ["PING 1"]])
def test_who_asks_above_the_position_is_told_in_words_unless_it_is_a_synapse(
    world: World, ping: list[str]
) -> None:
    said = [line.split(" ")[0] for line in world.call(*ping, "REPLICATE alpha 7").lines()[1:]]
    assert said == ([] if ping else ["ERROR"]) + ["POSITION"] * 2
    ours = world.call(*ping, "REPLICATE alpha master 7").lines()
    assert ours[1].startswith("ERROR cannot resume alpha of master after 7")


# -- turns -----------------------------------------------------------------------------------


def one_turn(world: World) -> None:
    """Let one turn of the reactor pass: calls that are due now, then one read of each socket."""
    turn_of(world.network.clock)
    for one in list(world.network.wires.values()):
        one.server.arrive(65_536)


class Meter:
    """Counts what is worked off in each turn, in lines, by the turns of a server."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.worked = 0
        real = Peer.work

        def work(peer: Peer, lines: int, ends_at: float) -> Worked:
            done = real(peer, lines, ends_at)
            self.worked += done.lines
            return done

        monkeypatch.setattr(Peer, "work", work)

    def take(self) -> int:
        """Return what was worked off since the last call."""
        worked, self.worked = self.worked, 0
        return worked


FLOODS = {
    "blank lines": "\n" * 30_000,
    "blank lines of telnet": "\r\n" * 30_000,
    "acknowledgements": "".join(f"FEDERATION_ACK n{n} 1\n" for n in range(10_000)),
    "questions": "STATUS\n" * 1_000,
    "help": "help\n" * 3_000,
    "invented pairs": "".join(f"REPLICATE alpha i{n} NOW\n" for n in range(3_000)),
    "the same again": "REPLICATE * * 0\n" * 3_000,
    "unknown streams": "REPLICATE nonsense * 0\n" * 3_000,
    "unknown words": "frobnicate\n" * 3_000,
    "names": "".join(f"NAME n{n}\nREMOTE_SERVER_UP x{n}.example\n" for n in range(3_000)),
    "syncs of strangers": "".join(f"USER_SYNC p{n} @u{n}:x start 1\n" for n in range(3_000)),
    "addresses of strangers": 'USER_IP @a:x ["t","10.0.0.1","UA","DEV",5]\n' * 3_000,
    "long lines": f"PING {'x' * 16_000}\n" * 200,
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
@pytest.mark.parametrize("reads", [True, False], ids=["reads", "never reads"])
def test_a_flood_is_worked_off_in_turns_and_others_are_served_in_each(
    world: World, monkeypatch: pytest.MonkeyPatch, flood: str, reads: bool
) -> None:
    for kind in (FederationAckCommand, UserSyncCommand, UserIpCommand):
        world.server.on(kind, lambda command, peer: None)
    rude = world.call()
    wire = world.wire()
    other = world.call("REPLICATE alpha master NOW")
    other.lines()
    meter = Meter(world, monkeypatch)
    rude.say(flood.removesuffix("\n"))
    wire.client.reading = reads
    most_lines = PEER_TURN_LINES + 2 * limits.MAX_STATUS_LINES
    for turn in range(1, 10_000):
        meter.take()
        world.publisher.publish("alpha", [[turn]])
        one_turn(world)
        worked = meter.take()
        assert worked <= 2 * most_lines  # what was left over, and what has just come
        while wire.client.arrive():
            pass
        assert len(wire.server.outgoing) <= 2 * MAX_REPLY_BYTES
        other_end = list(world.network.wires.values())[1].client
        other_end.arrive()
        assert other.lines()[0] == f"RDATA alpha master {turn} [{turn}]"
        if turn > 5 and not worked and (not reads or not wire.client.outgoing):
            break
    else:
        raise AssertionError("it is never over")
    wire.client.reading = True
    assert len(list(world.log.pairs())) == 1
    assert len(world.server.received_commands()) < 4 * (MAX_NAMES + 1)


def test_lines_that_take_long_are_worked_on_in_many_turns(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few they are: what counts as a line or two may take a slow machine long."""

    def slowly(command: Command, peer: Peer) -> None:
        world.network.clock.rightNow += limits.TURN_S / 3

    world.server.on(FederationAckCommand, slowly)
    slow, other = world.call(), world.call("REPLICATE alpha master NOW")
    other.lines()
    meter = Meter(world, monkeypatch)
    slow.say(*["FEDERATION_ACK sender 1"] * 40)
    world.publisher.publish("alpha", [["x"]])
    costs = []
    while not costs or costs[-1]:
        one_turn(world)
        costs.append(meter.take())
        if len(costs) == 2:
            list(world.network.wires.values())[1].client.arrive()
            assert other.lines() == ['RDATA alpha master 1 ["x"]']
    assert len(costs) > 10
    assert max(costs) <= 8 * 4  # two turns meet in one here: what was left, and what has come


def test_a_peer_that_does_not_take_the_answers_is_heard_no_further(world: World) -> None:
    rude = world.call()
    wire = world.wire()
    rude.lines()
    wire.client.reading = False
    rude.say(*["HELP"] * 1_000, "NAME late")
    world.network.settle()
    held = len(wire.server.outgoing)
    assert MAX_REPLY_BYTES < held < 2 * MAX_REPLY_BYTES
    assert not wire.server.reading
    assert world.server.peers()[0].name == ""
    world.network.run(limits.PING_TIMEOUT_S * 2)
    assert len(wire.server.outgoing) == held
    wire.client.reading = True
    world.network.settle()
    assert world.server.peers()[0].name == "late"
    assert len(rude.lines()) == 1_000 * len(help_lines())
    assert wire.server.reading


def test_who_is_not_listened_to_is_not_silent(world: World) -> None:
    rude = world.call("PING 1")
    wire = world.wire()
    wire.client.reading = False
    rude.say(*["HELP"] * 1_000)
    world.network.run(limits.PING_TIMEOUT_S * 2)
    assert not rude.over
    wire.client.reading = True
    world.network.settle()
    world.network.run(limits.PING_TIMEOUT_S + 7)
    assert rude.over


def test_what_others_say_is_not_heaped_up_for_who_does_not_read(world: World) -> None:
    world.call("REPLICATE")
    wire = world.wire()
    wire.client.reading = False
    loud = world.call()
    for number in range(10_000):
        loud.say(f"REMOTE_SERVER_UP {number}.{'x' * 200}.example")
    world.network.settle()
    assert len(wire.server.outgoing) < 2 * MAX_REPLY_BYTES
    wire.client.reading = True
    world.network.settle()
    world.server.broadcast(RemoteServerUpCommand("heard.example"))
    world.network.settle()


def test_a_client_may_name_each_of_its_pairs_and_the_rest() -> None:
    assert MAX_PAIRS + len(BUILT_IN) < MAX_SUBSCRIPTIONS


def test_a_connection_has_so_many_subscriptions(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_module, "MAX_SUBSCRIPTIONS", 50)
    caller = world.call(*(f"REPLICATE alpha i{n} NOW" for n in range(50)))
    assert len(caller.lines()) == 1 + 50
    caller.say("REPLICATE alpha more NOW", "REPLICATE alpha i1 NOW")
    world.network.settle()
    assert [line.split(" ")[:3] for line in caller.lines()] == [
        ["ERROR", "more", "than"],
        ["POSITION", "alpha", "i1"],
    ]


def test_unknown_streams_are_bad_lines(world: World) -> None:
    caller = world.call(*["REPLICATE nonsense * 0"] * limits.MAX_BAD_LINES)
    assert caller.over
    assert caller.lines()[-1].endswith("this ends the connection")


def test_status_tells_of_so_many_and_counts_the_others(world: World) -> None:
    for number in range(limits.MAX_STATUS_LINES + 20):
        world.log.ensure("alpha", f"w{number}")
        world.server.hub.announce("alpha", f"w{number}")
    callers = [world.call(f"NAME p{n}") for n in range(limits.MAX_STATUS_LINES + 10)]
    callers[-1].say("REPLICATE")
    world.network.settle()
    wire = world.wire()
    wire.client.reading = False
    for number in range(40):
        world.publisher.publish("alpha", [["x" * 100, number]])
        world.network.turn()
    callers[0].lines()
    callers[0].say("STATUS")
    world.network.settle()
    told = [line for line in callers[0].lines() if line.startswith("INFO")]
    assert "110 peers, 1 behind" in told[0]
    assert len(told) == 1 + 2 * (limits.MAX_STATUS_LINES + 1)
    assert "INFO and 21 more streams" in told
    assert told[-1].startswith("INFO and 10 more peers")
    wire.client.reading = True
    assert any(f" p{limits.MAX_STATUS_LINES + 9} " in line for line in told)  # it is behind


# -- a peer that has no more to say ----------------------------------------------------------


class Disk:
    """A publisher whose rows wait until it is let."""

    def __init__(self, world: World) -> None:
        self.rows: list[Deferred[Appended]] = []
        world.server.door.publisher = self  # type: ignore[assignment]  # as far as it is asked

    def publish_json(self, *_: object, **__: object) -> Deferred[Appended]:
        """Wait."""
        self.rows.append(Deferred())
        return self.rows[-1]

    def publish_each(self, *_: object) -> None:
        """Each by itself."""

    def write(self) -> None:
        """Take what waits."""
        rows, self.rows = self.rows, []
        for token, row in enumerate(rows, 1):
            row.callback(Appended("alpha", "master", token, token))


def test_who_closes_its_side_is_answered_what_waits_for_the_disk(world: World) -> None:
    disk = Disk(world)
    caller = world.call("PUBLISH alpha #1 1", "PRODUCER p", "PUBLISH alpha #1 2")
    world.wire().client.half_close()
    world.network.settle()
    assert not caller.over
    disk.write()
    world.network.settle()
    assert not caller.over  # what was read behind the claim waited for it
    disk.write()
    world.network.settle()
    assert caller.over
    assert caller.lines()[1:] == [
        "PUBLISHED alpha master 1 1 #1",
        "PRODUCER p 1 0",
        "PUBLISHED alpha master 1 1 #1",
    ]
    assert world.server.status().closed == {"peer_closed": 1}


@pytest.mark.parametrize("line", ["PUBLISH alpha #{} 1", "HELP {}", "PUBLISH typing #{} 5"])
def test_who_closes_its_side_is_answered_each_line_that_came_before(
    world: World, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """Though others have used up the turn in which it came, and its own share of the next ones."""
    monkeypatch.setattr(limits, "MAX_UNANSWERED_APPENDS", 100)
    monkeypatch.setattr("tcprepl.limits.MAX_BAD_LINES", 10_000)
    loud, caller = world.call(), world.call()
    caller.lines()
    ends = [wire.server for wire in world.network.wires.values()]
    loud.say(*["HELP HELP"] * 3 * limits.TURN_LINES)
    caller.say(*(line.format(number) for number in range(600)))
    world.wire().client.half_close()
    for _ in range(20):
        ends[0].arrive(65_536)
        ends[1].arrive(65_536)
        turn_of(world.network.clock)
    world.network.settle()
    assert caller.over
    answers = caller.lines()
    assert len(answers) >= 600
    if "PUBLISH" in line:
        numbers = [word for answer in answers for word in answer.split() if word.startswith("#")]
        assert numbers == [f"#{number}" for number in range(600)]


def test_who_closes_its_side_and_takes_no_answers_is_ended_all_the_same(world: World) -> None:
    """Nothing that it said is done twice, and it is neither silent nor listened to meanwhile."""
    disk = Disk(world)
    caller = world.call("PING 1", "REPLICATE", "PUBLISH alpha 1")
    world.wire().client.half_close()
    world.network.run(limits.HALF_CLOSED_S - 1)
    assert not caller.over
    assert not world.wire().server.reading
    world.network.run(2)
    assert caller.over
    assert not any(line.startswith("ERROR") for line in caller.lines())
    assert world.server.status().closed == {"peer_closed": 1}
    disk.write()
    world.network.settle()


def test_who_is_closed_while_it_waits_hears_why(world: World) -> None:
    disk = Disk(world)
    kicked, told = world.call("NAME x", "PUBLISH alpha 1"), world.call("PUBLISH alpha 1")
    for wire in world.network.wires.values():
        wire.client.half_close()
    world.network.settle()
    world.call("KICK x")
    assert kicked.over
    assert kicked.lines()[-1] == "ERROR disconnected by an operator"
    assert not told.over
    assert world.stop().called
    assert told.over
    assert told.lines()[-1] == "ERROR server shutting down"
    disk.write()


def test_who_is_gone_while_it_waits_has_closed(world: World) -> None:
    """It cannot be told from one that listens before it is answered."""
    disk = Disk(world)
    caller = world.call("PUBLISH alpha 1")
    world.wire().client.half_close()
    world.network.settle()
    world.wire().cut()
    assert caller.over
    assert world.server.status().closed == {"peer_closed": 1}
    disk.write()
    world.network.settle()


@pytest.mark.parametrize("lines", [[], ["NAME x", "HELP"], ["REPLICATE"], ["PUBLISH alpha 1"]])
def test_who_is_owed_nothing_and_closes_its_side_is_gone_at_once(
    world: World, lines: list[str]
) -> None:
    caller = world.call(*lines)
    world.wire().client.half_close()
    world.wire().server.arrive()
    assert caller.over
    assert world.server.status().closed == {"peer_closed": 1}


class Socket:
    """A peer over a real socket that takes little, turned by hand."""

    def __init__(self, world: World) -> None:
        self._network = world.network
        ours, self.far = socket.socketpair()
        self.far.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        self.reactor: Any = MemoryReactorClock()
        self.peer = world.server.accept("here")
        self.connection: Any = Connection(ours, self.peer, self.reactor)
        self.connection.connected = 1
        self.peer.makeConnection(self.connection)
        self.connection.startReading()

    def turn(self) -> None:
        """Do what a reactor does."""
        self._network.turn()
        for ready, do, lost in (
            (self.reactor.readers, self.connection.doRead, "readConnectionLost"),
            (self.reactor.writers, self.connection.doWrite, "connectionLost"),
        ):
            if self.connection in ready and do() is not None:
                self.reactor.removeReader(self.connection)
                getattr(self.connection, lost)(Failure(ConnectionDone()))

    def read(self) -> bytes | None:
        """Return what has arrived; None if there is nothing."""
        try:
            return self.far.recv(65_536)
        except BlockingIOError:
            return None


@pytest.fixture
def one(world: World) -> Any:
    """A peer over a real socket, whose far end is closed in the end."""
    made = Socket(world)
    yield made
    made.far.close()
    assert not made.reactor.getDelayedCalls()


def test_who_closes_its_side_gets_the_answers_that_its_socket_did_not_take(
    world: World, one: Socket
) -> None:
    one.far.send(b"HELP\n" * 20)
    one.turn()
    one.far.shutdown(socket.SHUT_WR)
    for _ in range(10):
        one.turn()
    assert world.server.connections == 1
    assert one.peer.closing is CloseReason.PEER_CLOSED
    heard = b""
    for _ in range(100):
        piece = one.read()
        if piece == b"":
            break
        heard += piece or b""
        one.turn()
    else:
        raise AssertionError("it never ends")
    assert heard.count(b"INFO ") == 20 * len(help_lines())
    assert world.server.connections == 0
    assert world.server.status().closed == {"peer_closed": 1}


def test_who_had_closed_all_of_it_is_gone_when_it_is_answered(world: World, one: Socket) -> None:
    disk = Disk(world)
    one.far.send(b"PUBLISH alpha 1\n")
    one.turn()
    one.far.close()
    one.turn()
    assert world.server.connections == 1
    disk.write()
    world.network.turn()
    one.reactor.advance(0)
    assert world.server.connections == 0
    assert world.server.status().closed == {"peer_closed": 1}


@pytest.mark.parametrize("asks", [b"", b"HELP\n"], ids=["reads", "asked, too"])
def test_a_reader_whose_socket_is_stuck_is_gone_as_soon_as_it_closes_its_side(
    world: World, one: Socket, asks: bytes
) -> None:
    one.far.send(b"REPLICATE\n")
    one.turn()
    for number in range(100):
        world.publisher.publish("alpha", [["x" * 1_000, number]])
        world.network.turn()
    assert one.peer.is_behind
    one.far.send(asks)
    one.far.shutdown(socket.SHUT_WR)
    one.turn()
    one.turn()
    assert world.server.connections == 0
    assert world.server.status().closed == {"peer_closed": 1}


def test_who_takes_no_answers_and_closes_its_side_has_so_long(world: World, one: Socket) -> None:
    one.far.send(b"HELP\n" * 20)
    one.turn()
    one.far.shutdown(socket.SHUT_WR)
    for _ in range(10):
        one.turn()
    world.network.run(limits.CLOSE_TIMEOUT_S - 1)
    assert world.server.connections == 1
    world.network.run(limits.HALF_CLOSED_S - limits.CLOSE_TIMEOUT_S + 1)
    one.reactor.advance(0)
    assert world.server.connections == 0


# -- tokens and rights -----------------------------------------------------------------

READER = Grant("reader", read=Streams(frozenset({"typing"})))
WRITER = Grant("writer", write=Streams(frozenset({"alpha"})))
INSPECTOR = Grant("inspector", inspect=ALL)
WORKER = Grant("worker", read=ALL, operate=True)
TOKENS = [("reader-token", READER), ("writer-token", WRITER), ("inspector-token", INSPECTOR),
          ("worker-token", WORKER)]  # fmt: skip


@pytest.fixture
def guarded() -> Any:
    """A server that asks for a token, stopped in the end."""
    made = World(tokens=Tokens(TOKENS), anonymous=NOTHING)
    made.log.ensure("typing", "master")
    made.server.hub.announce("typing", "master")
    yield made
    assert made.stop().called
    assert not made.network.clock.getDelayedCalls()


def refused(side: str, why: str) -> float:
    return metrics.REFUSED_ACCESS.labels(side, why)._value.get()


def test_a_token_is_said_once_and_first(guarded: World) -> None:
    caller = guarded.call("AUTH reader-token", "AUTH writer-token", "REPLICATE typing * NOW")
    assert caller.lines()[1:] == [
        "AUTHORIZED reader may read typing",
        "ERROR AUTH comes once, before anything that needs a right: connect again",
        "POSITION typing master 0 0",
    ]
    late = guarded.call("NAME x", "PING 1", "HELP AUTH", "STATUS", "AUTH reader-token")
    assert late.lines()[-1].startswith("ERROR AUTH comes once")
    early = guarded.call("NAME x", "PING 1", "HELP AUTH", "AUTH reader-token")
    assert early.lines()[-1] == "AUTHORIZED reader may read typing"


def test_a_wrong_token_ends_the_connection_and_then_the_address_waits(guarded: World) -> None:
    before = refused("line", "unknown_token"), refused("line", "waiting")
    for _ in range(limits.MAX_FREE_GUESSES):
        caller = guarded.call("AUTH reader-tokem", "REPLICATE")
        assert caller.over
        assert caller.lines()[1:] == [
            "ERROR AUTH: the token is not known here; expected one of replication.tokens"
        ]
    caller = guarded.call("AUTH reader-token")
    assert caller.over
    assert caller.lines()[-1] == ("ERROR AUTH: too many wrong tokens from there; try again in 1 s")
    after = refused("line", "unknown_token"), refused("line", "waiting")
    assert after == (before[0] + limits.MAX_FREE_GUESSES, before[1] + 1)
    guarded.network.run(1)
    assert guarded.call("AUTH reader-token").lines()[-1].startswith("AUTHORIZED")


def test_where_no_token_is_asked_for_any_is_welcome(world: World) -> None:
    """So that clients may get theirs before the server asks for it; once, as everywhere."""
    twice = world.call("AUTH any", "AUTH other", "NAME x").lines()[2:]
    assert twice == ["ERROR AUTH comes once, before anything that needs a right: connect again"]
    caller = world.call("AUTH any", "STATUS")
    assert caller.lines()[1] == (
        "AUTHORIZED anonymous no token is asked for here: whoever connects "
        "may read every stream, write every stream, operate"
    )


def test_who_may_read_some_streams_gets_these_however_it_asks(guarded: World) -> None:
    for ask in ("REPLICATE", "REPLICATE * * 0", "REPLICATE typing * 0", "REPLICATE ALL 0"):
        caller = guarded.call("AUTH reader-token", ask)
        guarded.publisher.publish_json("alpha", [b"1"])
        guarded.publisher.publish_json("typing", [b'["!r:x",[]]'])
        guarded.network.settle()
        lines = caller.lines()
        assert any(line.startswith("RDATA typing") for line in lines), ask
        assert not any("alpha" in line for line in lines), ask


def test_who_may_read_hears_of_no_other_stream_and_no_peer(guarded: World) -> None:
    guarded.call("AUTH worker-token", "NAME somebody", "REPLICATE")
    caller = guarded.call("AUTH reader-token", "REPLICATE alpha * NOW", "REPLICATE x * NOW",
                          "STATUS", "REMOTE_SERVER_UP x.example")  # fmt: skip
    lines = caller.lines()[2:]
    assert [line.partition(";")[0] for line in lines if line.startswith("ERROR")] == [
        "ERROR not allowed: REPLICATE needs a token that may read alpha",
        "ERROR not allowed: REPLICATE needs a token that may read x",
        "ERROR not allowed: REMOTE_SERVER_UP needs a token that may operate",
    ]
    status = [line for line in lines if line.startswith("INFO")]
    assert any("stream typing" in line for line in status)
    assert not any("somebody" in line or "stream alpha" in line for line in status)
    worker = guarded.call("AUTH worker-token", "REPLICATE nonsense * NOW", "STATUS")
    assert any("somebody" in line for line in worker.lines())


def test_what_is_only_for_workers_is_heard_by_workers(guarded: World) -> None:
    callers = [guarded.call(f"AUTH {token}", "NAME x", "PING 1") for token, _ in TOKENS]
    guarded.server.broadcast(RemoteServerUpCommand("other.example"))
    guarded.network.settle()
    heard = [any("other.example" in line for line in caller.lines()) for caller in callers]
    assert heard == [False, False, False, True]


def test_an_inspector_gets_rows_without_secrets_live_and_later(guarded: World) -> None:
    row = b'["get_user_by_access_token",["hush"],1]'
    guarded.log.ensure("caches", "master")
    live = guarded.call("AUTH inspector-token", "REPLICATE * * NOW")
    other = guarded.call("AUTH worker-token", "REPLICATE * * NOW")
    for stream, json in (("caches", row), ("alpha", b'{"password": "hush"}')):
        guarded.publisher.publish_json(stream, [json])
    guarded.network.settle()
    later = guarded.call("AUTH inspector-token", "REPLICATE * * 0")
    for caller in (live, later):
        text = "\n".join(caller.lines())
        assert 'RDATA caches master 1 ["get_user_by_access_token",["<redacted>"],1]' in text
        assert 'RDATA alpha master 1 "<redacted>"' in text
        assert "hush" not in text
    assert "\n".join(other.lines()).count("hush") == 2


def test_rows_are_taken_of_streams_that_may_be_written(guarded: World) -> None:
    caller = guarded.call(
        "AUTH writer-token", "PUBLISH alpha #1 1", "PUBLISH typing #2 []", "PUBLISH alpha #3 2"
    )
    lines = caller.lines()[2:]
    assert [line.partition(" not")[0] for line in lines] == [
        "PUBLISHED alpha master 1 1 #1",
        "REFUSED typing #2 denied 0",
        "PUBLISHED alpha master 2 2 #3",
    ]
    reader = guarded.call("AUTH reader-token", "PUBLISH typing []", "PRODUCER p", "PUBLISH x #5 1")
    assert [line.partition(" not")[0] for line in reader.lines()[2:]] == [
        "REFUSED typing denied 0",
        "REFUSED p denied 0",
        "REFUSED x #5 denied 0",
    ]
    assert guarded.log.position("typing", "master") == 0


def test_long_lines_are_for_who_may_write(guarded: World) -> None:
    """A stranger does not make a server hold a megabyte."""
    long = f'PUBLISH alpha "{"x" * 100_000}"'
    assert guarded.call(long).over
    assert guarded.call("AUTH reader-token", long).over
    writer = guarded.call("AUTH writer-token", long)
    assert writer.lines()[-1] == "PUBLISHED alpha master 1 1"


def test_lines_of_who_said_a_token_are_taken_together_and_those_of_strangers_denied(
    guarded: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken together they cost a tenth; and no right is got round by it."""
    runs = []
    take = Peer._publish_run
    monkeypatch.setattr(Peer, "_publish_run", lambda *args: (runs.append(args[1]), take(*args))[1])
    lines = [f"PUBLISH {{}} #{number} {number}" for number in range(1, 21)]
    writer = guarded.call("AUTH writer-token")
    writer.say(*(line.format("alpha") for line in lines))
    guarded.network.settle()
    assert sum(len(run.numbers) for run in runs) == 20
    writer.say(*(line.format("typing") for line in lines))
    guarded.network.settle()
    assert len(runs) > 1
    said = writer.lines()
    assert sum(line.startswith("PUBLISHED alpha") for line in said) == 20
    assert [line for line in said if line.startswith("REFUSED")] == [
        f"REFUSED typing #{number} denied 0 not allowed: PUBLISH needs a token that may write "
        "typing; writer may write alpha here; its entry in replication.tokens says so"
        for number in range(1, 21)
    ]
    assert guarded.log.position("typing", "master") == 0


def test_who_floods_is_read_in_larger_pieces(
    guarded: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    monkeypatch.setattr("tcprepl.replication.serving.peer.read_more", read.append)
    writer = guarded.call("AUTH writer-token")
    for row, more in (("x" * 400, 0), ("x" * 4_000, 1)):
        writer.say(*(f'PUBLISH alpha #{number} "{row}"' for number in range(1, 13)))
        guarded.network.settle()
        assert len(read) == more


def test_producers_are_of_their_token(guarded: World) -> None:
    """One that claims the same name fences nobody else's."""
    tokens = [*TOKENS, ("other-token", Grant("other", write=ALL))]
    guarded.server.admit(Tokens(tokens), NOTHING)
    first = guarded.call("AUTH writer-token", "PRODUCER p", "PUBLISH alpha #1 1")
    other = guarded.call("AUTH other-token", "PRODUCER p", "PUBLISH alpha #1 2")
    assert other.lines()[2:] == ["PRODUCER p 1 0", "PUBLISHED alpha master 2 2 #1"]
    first.say("PUBLISH alpha #2 3")
    guarded.network.settle()
    assert first.lines()[-1] == "PUBLISHED alpha master 3 3 #2"


def test_who_has_no_right_makes_room_first_whatever_it_says(guarded: World) -> None:
    guarded.server.max_connections = 2
    stranger = guarded.call("NAME stranger", "REPLICATE", "PUBLISH alpha 1")
    friend = guarded.call("AUTH reader-token", "REPLICATE")
    newcomer = guarded.call("AUTH reader-token", "REPLICATE")
    assert stranger.over
    assert not friend.over
    assert not newcomer.over


def test_a_listener_that_does_not_vouch_grants_nothing(world: World) -> None:
    """Off loopback without a certificate nobody is anonymous, whatever others are granted."""
    world.server.admit(Tokens(TOKENS), EVERYTHING)
    local = world.call("REPLICATE")
    assert not any(line.startswith("ERROR") for line in local.lines())
    _ = Deferred.fromCoroutine(world.server.listen(world.network.server_endpoint(), vouched=False))
    remote = world.call("REPLICATE", "STATUS", "USER_SYNC i @a:x start 1", "PUBLISH alpha 1")
    lines = remote.lines()[1:]
    assert all(" not allowed: " in line for line in lines)
    assert len(lines) == 4


def test_a_change_of_tokens_ends_what_it_concerns(guarded: World) -> None:
    reader = guarded.call("AUTH reader-token", "REPLICATE")
    writer = guarded.call("AUTH writer-token")
    worker = guarded.call("AUTH worker-token", "REPLICATE")
    stranger = guarded.call("NAME x")
    wider = Grant("writer", write=ALL)
    guarded.server.admit(Tokens([("writer-token", wider), ("worker-token", WORKER)]), NOTHING)
    guarded.network.settle()
    assert reader.lines()[-1] == "ERROR AUTH: the token of reader does not hold any more"
    assert writer.lines()[-1] == ("ERROR AUTH: what writer may do has changed: connect again")
    assert (reader.over, writer.over, worker.over, stranger.over) == (True, True, False, False)
    guarded.server.admit(Tokens(), EVERYTHING)
    guarded.network.settle()
    assert stranger.lines()[-1] == (
        "ERROR AUTH: what who says no token may do has changed: connect again"
    )


def test_a_token_is_in_no_log_and_no_answer(
    guarded: World, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for line in ("AUTH hush-hush", "AUTH hush hush", "AUTH \u00fchush", "AUTH " + "hush" * 9_000):
        caller = guarded.call(line)
        said += caller.lines()
    out = capsys.readouterr()
    assert "hush" not in str(said) + out.out + out.err + caplog.text


def test_who_cannot_be_served_is_told_and_finds_its_rows_when_it_comes_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller, other = world.call("REPLICATE alpha master NOW"), world.call("REPLICATE")
    caller.lines(), other.lines()
    render = world.server.hub._render
    monkeypatch.setattr(world.server.hub, "_render", mock.Mock(side_effect=MemoryError))
    world.publisher.publish("alpha", [[1]])
    world.network.settle()
    monkeypatch.setattr(world.server.hub, "_render", render)
    world.publisher.publish("alpha", [[2]])
    world.network.settle()
    for one in (caller, other):
        assert one.over
        assert one.lines() == ["ERROR the server failed, its log says how; connect again"]
    again = world.call("REPLICATE alpha master 0")
    assert [line for line in again.lines() if line.startswith("RDATA")] == [
        "RDATA alpha master 1 [1]", "RDATA alpha master 2 [2]"
    ]  # fmt: skip


def test_who_says_what_nobody_can_do_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    good = world.call("REPLICATE")
    monkeypatch.setattr(world.server, "status_lines", mock.Mock(side_effect=ZeroDivisionError))
    caller = world.call("STATUS")
    assert caller.over
    assert caller.lines()[-1].startswith("ERROR the server failed")
    assert not good.over
