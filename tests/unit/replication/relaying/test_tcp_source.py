"""A relay of a server over TCP: every stream, resumed, in every dialect."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tcprepl.access import ALL, NOTHING, Grant, Tokens
from tcprepl.protocol.commands import FederationAckCommand, RemoteServerUpCommand
from tcprepl.replication.relaying.intake import RelayIntake, relay_registry
from tcprepl.replication.relaying.state import RelayState
from tcprepl.replication.relaying.tcp_source import TcpUpstream
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.gaps import Cause, Gap
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry, StreamDef
from tests.wire import Network, run_until

ALPHA = ("alpha", "master")
BETA = ("beta", "master")


class World:
    """A server, and a relay of it."""

    def __init__(self, **options: Any) -> None:
        self.network = Network(window_bytes=1 << 20)
        self.clock = self.network.clock
        registry = Registry([StreamDef("alpha")])
        self.source = MemoryLog(registry, lambda: 0)
        self.source.ensure(*ALPHA)
        self.publisher = Publisher(self.source, registry, "master")
        self.server = ReplicationServer(self.clock, self.source, registry, "example.com", "master")
        self.listen()
        self.state = RelayState(None)
        self.registry = relay_registry()
        self.log = MemoryLog(self.registry, lambda: 0)
        self.heard: list[Any] = []
        self.upstream = self.make(**options)
        self.upstream.start()
        self.network.settle()

    def listen(self) -> None:
        """Have the server listen."""
        _ = Deferred.fromCoroutine(self.server.listen(self.network.server_endpoint()))

    def make(self, **options: Any) -> TcpUpstream:
        """Return the relay's first half."""
        return TcpUpstream(
            self.clock,
            self.network.client_endpoint("relay"),
            "h:9092",
            RelayIntake(self.clock, self.log, self.registry, self.state),
            self.registry,
            server_name="example.com",
            on_command=self.heard.append,
            **options,
        )

    def publish(self, *rows: object, **options: Any) -> None:
        """Publish rows upstream."""
        _ = self.publisher.publish("alpha", rows, **options)
        self.network.settle()

    def rows(self) -> list[tuple[int, bytes]]:
        """Return what the relay's log holds."""
        page = self.log.read(*ALPHA, self.log.floor(*ALPHA), self.log.position(*ALPHA))
        return list(page.rows())


def test_all_that_is_held_upstream_is_mirrored() -> None:
    world = World()
    world.publish([1], [2], batch=True)
    world.publish([3])
    assert world.rows() == [(1, b"[1]"), (1, b"[2]"), (2, b"[3]")]
    status = world.upstream.status()
    assert (status.kind, status.up, status.rows, status.gaps) == ("upstream", True, 3, 0)
    world.clock.advance(4)
    assert world.upstream.status().idle_seconds == 4


def test_resumes_after_a_cut_and_after_its_own_end() -> None:
    world = World()
    world.publish([1])
    world.network.wires["relay"].cut()
    world.publish([2])
    run_until(world.network, lambda: len(world.rows()) == 2)
    done = Deferred.fromCoroutine(world.upstream.stop())
    world.network.settle()
    assert done.called
    assert not world.upstream.status().up
    world.publish([3])
    again = world.make()
    again.start()
    world.network.settle()
    assert [token for token, _ in world.rows()] == [1, 2, 3]
    assert world.upstream.status().gaps == 0


def test_since_when_it_is_away_does_not_depend_on_who_looks() -> None:
    """It is the loss of what served us that counts, not each try that is turned away."""
    said = ["the-token"]
    world = World(token=lambda: said[0])
    world.server.admit(Tokens([("the-token", Grant("r", read=ALL))]), NOTHING)
    world.network.run(8)
    assert world.upstream.status().up
    up_for = world.upstream.status().seconds
    assert 4 < up_for <= 8
    world.clock.advance(1)
    said[0] = "of-before"
    world.server.admit(Tokens([("other-token", Grant("r", read=ALL))]), NOTHING)
    world.network.run(30)
    status = world.upstream.status()
    assert (status.up, status.seconds) == (False, 30)
    assert (status.trouble() or "").startswith("upstream h:9092: away for 30 s (AUTH: ")


def test_what_the_upstream_no_longer_holds_is_a_gap() -> None:
    world = World()
    world.publish([1])
    world.network.wires["relay"].cut()
    world.publish([2], [3], [4])
    world.source.trim(*ALPHA, 3)
    run_until(world.network, lambda: len(world.rows()) == 2)
    assert [token for token, _ in world.rows()] == [1, 4]
    assert world.state.gaps.next(ALPHA, 1) == Gap(1, 3, Cause.UPSTREAM)


def test_commands_both_ways() -> None:
    world = World()
    acks: list[Any] = []
    world.server.on(FederationAckCommand, lambda command, peer: acks.append(command))
    world.server.broadcast(RemoteServerUpCommand("far.example.com"))
    assert world.upstream.send(FederationAckCommand("fed1", 3))
    world.network.settle()
    assert world.heard == [RemoteServerUpCommand("far.example.com")]
    assert acks == [FederationAckCommand("fed1", 3)]
    silent = World(passive=True)
    assert not silent.upstream.send(FederationAckCommand("fed1", 3))


def test_rows_of_2017_come_in_any_order_before_their_position() -> None:
    world = World(dialect="2017")
    world.upstream._client._delivery.resumption.ask(ALPHA, 3)
    world.network.wires["relay"].client.protocol.dataReceived(
        b"RDATA alpha 5 [5]\nRDATA alpha 4 [4]\nRDATA alpha 5 [5.5]\nPOSITION alpha 6\n"
    )
    world.network.turn()
    assert [token for token, _ in world.rows()] == [4, 5, 5]
    assert world.log.position(*ALPHA) == 6


def test_rows_of_2017_that_the_disk_refuses_come_again() -> None:
    world = World(dialect="2017")
    world.upstream._client._delivery.resumption.ask(BETA, 3)
    world.state._connection.execute(
        "CREATE TEMP TRIGGER refuses BEFORE INSERT ON met"
        " BEGIN SELECT RAISE(ABORT, 'the disk refuses'); END"
    )
    world.network.wires["relay"].client.protocol.dataReceived(
        b"RDATA beta 5 [5]\nRDATA beta 4 [4]\nPOSITION beta 6\n"
    )
    world.network.turn()
    assert BETA not in world.log.pairs()
    world.state._connection.execute("DROP TRIGGER refuses")
    run_until(world.network, lambda: BETA in world.log.pairs() and world.log.position(*BETA) == 6)
    page = world.log.read(*BETA, 0, 6)
    assert list(page.rows()) == [(4, b"[4]"), (5, b"[5]")]
    assert not world.upstream._unordered


@pytest.mark.parametrize("token", [9, 2**39, 2**63 - 1])
@pytest.mark.parametrize("false", ["RDATA alpha master {0} [0]\n", "POSITION alpha master 1 {0}\n"])
def test_a_false_token_costs_no_row_behind_it(false: str, token: int) -> None:
    world = World()
    world.publish([1])
    world.network.wires["relay"].client.protocol.dataReceived(false.format(token).encode())
    world.publish([2])
    world.publish([3], [4])
    world.network.wires["relay"].cut()
    world.publish([5])
    run_until(world.network, lambda: b"[5]" in [row for _, row in world.rows()])
    rows = [row for _, row in world.rows() if row != b"[0]"]
    assert rows == [b"[1]", b"[2]", b"[3]", b"[4]", b"[5]"]
    assert len(world.rows()) - 5 <= (token < 2**40)
