"""The listening end, over wires in memory: greeting, words, limits, relays, drain."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import generate_latest
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from tcprepl import limits, metrics
from tcprepl.errors import CloseReason
from tcprepl.protocol.commands import (
    FederationAckCommand,
    RemoteServerUpCommand,
    UserIpCommand,
    UserSyncCommand,
)
from tcprepl.replication.serving import server as server_module
from tcprepl.replication.serving.server import ReplicationServer, help_lines
from tcprepl.replication.status import LinkStatus
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry, StreamDef
from tests.wire import Network, Wire


class Caller(Protocol):
    """The far end: keeps what it is told."""

    def __init__(self) -> None:
        self.received = b""
        self.over = False

    def dataReceived(self, data: bytes) -> None:
        """Keep *data*."""
        self.received += data

    def connectionLost(self, reason: Any = None) -> None:
        """Note the end."""
        self.over = True

    def say(self, *lines: str) -> None:
        """Send *lines*."""
        assert self.transport is not None
        self.transport.write("".join(line + "\n" for line in lines).encode())

    def lines(self) -> list[str]:
        """Return the lines since the last call, keep-alives left out."""
        out, self.received = self.received, b""
        return [line for line in out.decode().splitlines() if not line.startswith("PING")]


class World:
    """A server on a network in memory."""

    def __init__(self, **options: Any) -> None:
        self.network = Network()
        self.registry = Registry([StreamDef("alpha")])
        self.log = MemoryLog(self.registry, lambda: 0)
        self.log.ensure("alpha", "master")
        self.publisher = Publisher(self.log, self.registry, "master")
        self.server = ReplicationServer(
            self.network.clock, self.log, self.registry, "example.com", **options
        )
        self.port = Deferred.fromCoroutine(self.server.listen(self.network.server_endpoint()))
        self._callers = 0

    def call(self, *lines: str) -> Caller:
        """Connect somebody who says *lines*."""
        caller = Caller()
        self._callers += 1
        name = f"c{self._callers}"
        assert self.network.client_endpoint(name).connect(Factory.forProtocol(lambda: caller))
        caller.say(*lines)
        self.network.settle()
        return caller

    def wire(self) -> Wire:
        """Return the newest wire."""
        return self.network.wires[f"c{self._callers}"]

    def stop(self) -> Deferred[None]:
        """Stop the server."""
        stopped = Deferred.fromCoroutine(self.server.stop())
        self.network.settle()
        return stopped


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
    assert error.startswith("ERROR unknown stream nonsense; there are: ")
    assert "alpha" in error
    assert not caller.over


def test_answers_come_in_the_order_of_the_questions(world: World) -> None:
    caller = world.call("HELP REPLICATE", "foo", "STATUS", "", "BAR")
    kinds = [line.split(" ")[0] for line in caller.lines()[1:]]
    assert kinds[0] == "INFO"
    assert kinds[1] == "ERROR"
    assert kinds[-1] == "ERROR"


def test_help_lists_what_a_client_may_send_and_one_word_alone() -> None:
    assert any(line.startswith("REPLICATE") for line in help_lines())
    assert not any(line.startswith("RDATA") for line in help_lines())
    (only,) = help_lines(" status ")
    assert only.startswith("STATUS")


def test_name_and_status(world: World) -> None:
    caller = world.call("NAME w1", "REPLICATE", "NAME w2", "STATUS")
    (line,) = [line for line in caller.lines() if line.startswith("INFO peer")]
    assert " w2 " in line
    assert world.server.peers()[0].name == "w2"
    assert "w2" in repr(next(iter(world.server._peers.values())))


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


@pytest.mark.parametrize("ping", [[], ["PING 1"]])
def test_who_asks_above_the_position_is_told_in_words_unless_it_is_a_synapse(
    world: World, ping: list[str]
) -> None:
    said = [line.split(" ")[0] for line in world.call(*ping, "REPLICATE alpha 7").lines()[1:]]
    assert said == ([] if ping else ["ERROR"]) + ["POSITION"] * 2
    ours = world.call(*ping, "REPLICATE alpha master 7").lines()
    assert ours[1].startswith("ERROR cannot resume alpha of master after 7")


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
    for number in range(12):
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
    assert status.behind_seconds > 90
    assert status.paused_seconds > 90
    assert b"tcprepl_peer_behind_rows" in generate_latest(metrics.REGISTRY)
    wire.client.reading = True
    world.network.settle()
    assert len([line for line in caller.lines() if line.startswith("RDATA")]) == 40


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


def test_questions_without_reading_the_answers_stop_the_questions(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        buffered_bytes = 10**6
        busy = True

        def write(self, chunk: bytes) -> bool:
            return False

    world.call("NAME w")
    peer: Any = next(iter(world.server._peers.values()))
    with monkeypatch.context() as patch:
        patch.setattr(peer, "_outlet", Full())
        peer.dataReceived(b"STATUS\n")
        assert not world.wire().server.reading
    peer._drained()
    assert world.wire().server.reading


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


def test_closing_twice_is_closing_once(world: World) -> None:
    caller = world.call("NAME w")
    peer = next(iter(world.server._peers.values()))
    peer.close(CloseReason.SHUTDOWN, "one")
    peer.close(CloseReason.SHUTDOWN, "two")
    peer.send(RemoteServerUpCommand("x"))
    assert world.server.peers()[0].state == "closing"
    world.network.settle()
    assert caller.lines()[-1] == "ERROR one"


def test_help_words_are_those_of_the_commands(world: World) -> None:
    assert server_module.help_lines("replicate") == help_lines("REPLICATE")
    world.server.start()
