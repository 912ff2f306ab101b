"""The client library against a real server, over wires in memory, whatever its face.

The unit test of each client takes all of this, with the face that it is of (`tests.faces`).
"""

from __future__ import annotations

import copy
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from tcprepl import limits, metrics
from tcprepl.access import ALL, NOTHING, Grant, Tokens
from tcprepl.errors import ConfigError, LogUnavailable
from tcprepl.protocol.commands import (
    AuthorizedCommand,
    FederationAckCommand,
    RemoteServerUpCommand,
    ReplicateCommand,
)
from tcprepl.protocol.dialects import DIALECTS
from tcprepl.replication.following.delivery import SAVE_AGAIN_S
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.position_store import MemoryPositionStore, SqlitePositionStore
from tcprepl.streams.publisher import Publisher
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.streams.retention import Bounds, Retention
from tests.faces import make_client, make_network
from tests.wire import run_until


class World:
    """A server, and clients of it."""

    def __init__(self, **bounds: Any) -> None:
        self.network = make_network()
        self.registry = Registry([StreamDef("alpha"), StreamDef("beta")])
        retention = Retention(durable=Bounds(**bounds), ephemeral=Bounds(**bounds))
        self.log = MemoryLog(self.registry, lambda: 0, retention)
        self.log.ensure("alpha", "master")
        self.publisher = Publisher(self.log, self.registry, "master")
        self.seen: list[Any] = []
        self.resets: list[Any] = []
        self.positions: list[Any] = []
        self.commands: list[Any] = []
        self.clients: list[Any] = []
        self.start()

    def start(self) -> None:
        """Start a server on the log."""
        self.server = ReplicationServer(self.network.clock, self.log, self.registry, "example.com")
        assert Deferred.fromCoroutine(self.server.listen(self.network.server_endpoint())).called

    def crash(self) -> None:
        """Let the server die."""
        self.network.factory = None
        for wire in self.network.wires.values():
            wire.cut()
        assert Deferred.fromCoroutine(self.server.stop()).called

    def client(self, handler: Any = None, **options: Any) -> Any:
        """Start a client and let it settle."""
        options.setdefault("registry", self.registry)
        client = make_client(
            self.network.clock,
            self.network.client_endpoint(f"w{len(self.clients)}"),
            options.pop("streams", ["alpha", "beta"]),
            handler or self.handle,
            on_reset=lambda *a: self.resets.append(a),
            on_position=lambda *a: self.positions.append(a),
            on_command=options.pop("on_command", self.commands.append),
            **options,
        )
        client.startService()
        client.startService()
        self.clients.append(client)
        self.network.settle()
        return client

    def handle(self, stream: str, instance: str, token: int, rows: Any) -> None:
        """Note a batch."""
        self.seen.append((stream, instance, token, list(rows)))

    def publish(self, stream: str, *rows: Any, **options: Any) -> None:
        """Publish, and let it arrive."""
        assert self.publisher.publish(stream, list(rows), **options).called
        self.network.settle()

    def finish(self) -> None:
        """Stop everything; nothing may be left."""
        for client in self.clients:
            stopped = client.stopService()
            self.network.run(1.0)
            assert stopped.called
        stopped = Deferred.fromCoroutine(self.server.stop())
        self.network.settle()
        assert stopped.called
        assert not self.network.clock.getDelayedCalls()


@pytest.fixture
def world() -> Any:
    """A world that ends clean."""
    made = World()
    yield made
    made.finish()


def test_batches_come_in_order_with_their_token(world: World) -> None:
    client = world.client()
    world.publish("alpha", [1])
    world.publish("alpha", [2], [3], batch=True)
    world.publish("beta", [4], instance="other")
    assert world.seen == [
        ("alpha", "master", 1, [[1]]),
        ("alpha", "master", 2, [[2], [3]]),
        ("beta", "other", 1, [[4]]),
    ]
    assert client.positions() == {("alpha", "master"): 2, ("beta", "other"): 1}
    assert client.connected


def test_since_now_and_since_start(world: World) -> None:
    world.publish("alpha", [1])
    world.client()
    assert world.seen == []
    world.client(since="start")
    assert world.seen == [("alpha", "master", 1, [[1]])]
    with pytest.raises(ValueError, match="expected 'now' or 'start'"):
        world.client(since="then")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"streams": "alpha"}, r"streams is a text, expected a collection of names: \['alpha'\]"),
        ({"streams": ["alpha", "a b"]}, "'a b' can be no name of a stream"),
        ({"dialect": "1.66"}, "dialect is '1.66', expected auto or one of .*1.22"),
        ({"dialect": "redis"}, "dialect is 'redis', expected auto or one of"),
    ],
)
def test_what_can_never_do_is_told_at_once(world: World, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        world.client(**options)


def test_what_the_server_refuses_is_logged_where_nobody_listens(world: World) -> None:
    """A follower of a stream that is not there waited in silence."""
    with capture_logs() as logs:
        world.client(streams=["alpha", "gamma"], on_command=None)
    (line,) = [line for line in logs if line["event"] == "replication.client.told"]
    assert line["log_level"] == "warning"
    assert "gamma" in line["text"]
    assert world.commands == []


def test_a_token_that_cannot_be_read_is_read_again(world: World) -> None:
    """What reads it may fail as it likes, and once."""
    said: list[str] = []

    def token() -> str:
        said.append("")
        if len(said) == 1:
            raise FileNotFoundError("it is just being replaced")
        return "x" * 20

    client = world.client(token=token)
    assert client.last_error == (
        "the token cannot be read: FileNotFoundError: it is just being replaced"
    )
    run_until(world.network, lambda: len(said) == 2)


def test_resume_after_a_cut_misses_and_repeats_nothing(world: World) -> None:
    client = world.client()
    world.publish("alpha", [1])
    world.network.wires["w0"].cut()
    world.publish("alpha", [2])
    run_until(world.network, lambda: client.reconnects == 1 and client.connected)
    world.publish("alpha", [3])
    assert [token for _, _, token, _ in world.seen] == [1, 2, 3]
    assert client.last_error is not None
    assert not world.resets


def test_positions_survive_the_worker(world: World, tmp_path: Path) -> None:
    store = SqlitePositionStore(tmp_path / "positions.db")
    first = world.client(positions=store)
    world.publish("alpha", [1])
    stopped = first.stopService()
    world.network.settle()
    assert stopped.called
    store.close()
    world.publish("alpha", [2])
    again = SqlitePositionStore(tmp_path / "positions.db")
    world.client(positions=again)
    assert [token for _, _, token, _ in world.seen] == [1, 2]
    again.close()


class Refusing(MemoryPositionStore):
    """Refuses a few times."""

    times = 2

    def save(self, positions: Any, incarnation: str | None = None) -> None:
        """Save, or not."""
        if self.times:
            self.times -= 1
            raise LogUnavailable("database is locked")
        super().save(positions, incarnation)


def test_a_position_that_was_refused_is_saved_though_nothing_comes(world: World) -> None:
    """It was kept until more rows came, and lost if none did before the worker was killed."""
    store = Refusing()
    world.client(positions=store)
    world.publish("alpha", [1])
    assert store.load() == {}
    for _ in range(2):
        world.network.run(SAVE_AGAIN_S)
    assert store.load()["alpha", "master"] == 1
    world.publish("alpha", [2])
    assert store.load()["alpha", "master"] == 2


def test_a_store_that_shares_the_transaction_is_committed_with_each_batch(
    world: World, tmp_path: Path
) -> None:
    connection = sqlite3.connect(tmp_path / "worker.db")
    connection.execute("CREATE TABLE seen (token INTEGER)")
    fails = [True]

    def handler(stream: str, instance: str, token: int, rows: Any) -> None:
        connection.execute("INSERT INTO seen VALUES (?)", (token,))
        if token == 2 and fails.pop():
            fails.append(False)
            connection.rollback()
            raise RuntimeError("half-way")

    world.client(handler, positions=SqlitePositionStore(connection))
    world.publisher.publish("alpha", [[1], [2], [3]])
    world.network.run(5.0)
    other = sqlite3.connect(tmp_path / "worker.db")
    assert other.execute("SELECT token FROM seen").fetchall() == [(1,), (2,), (3,)]
    assert other.execute("SELECT token FROM tcprepl_positions").fetchall() == [(3,)]
    other.close()
    stopped = world.clients[0].stopService()
    world.network.settle()
    assert stopped.called
    connection.close()


def test_a_slow_handler_stops_the_reading_not_the_memory(world: World) -> None:
    waiting: list[Deferred[None]] = []

    def handler(*arguments: Any) -> Deferred[None]:
        waiting.append(Deferred())
        return waiting[-1]

    client = world.client(handler)
    world.publish("alpha", [1])
    for number in range(200):
        world.publish("alpha", ["x" * 200, number])
    assert len(waiting) == 1
    assert not world.network.wires["w0"].client.reading
    assert client._delivery.waiting < 10
    world.network.run(60.0)
    assert client.connected
    assert client.positions() == {("alpha", "master"): 0}
    done = 0
    while done < 201:
        waiting[done].callback(None)
        done += 1
        world.network.settle()
    assert client.positions() == {("alpha", "master"): 201}


def test_async_handlers(world: World) -> None:
    async def handler(stream: str, instance: str, token: int, rows: Any) -> None:
        world.handle(stream, instance, token, rows)

    world.client(handler)
    world.publisher.publish("alpha", [[number] for number in range(3_000)])
    world.network.settle()
    assert len(world.seen) == 3_000


def test_a_handler_that_fails_is_called_again_and_nothing_passes(world: World) -> None:
    fails = [3]

    def handler(stream: str, instance: str, token: int, rows: Any) -> None:
        if token == 2 and fails[0]:
            fails[0] -= 1
            raise RuntimeError("not yet")
        world.handle(stream, instance, token, rows)

    client = world.client(handler)
    world.publish("alpha", [1], [2], [3])
    assert [token for _, _, token, _ in world.seen] == [1]
    assert client.positions()["alpha", "master"] == 1
    world.network.run(10.0)
    assert [token for _, _, token, _ in world.seen] == [1, 2, 3]


def test_a_handler_that_fails_for_good_is_surfaced(world: World) -> None:
    def handler(*arguments: Any) -> None:
        raise RuntimeError("never")

    client = world.client(handler, max_attempts=2)
    failures: list[Any] = []
    client.failed.addErrback(failures.append)
    world.publish("alpha", [1], [2])
    world.network.run(10.0)
    (failure,) = failures
    assert failure.check(RuntimeError)
    assert not client.running
    assert client.positions() == {("alpha", "master"): 0}


def test_stopping_ends_a_retry(world: World) -> None:
    def handler(*arguments: Any) -> None:
        raise RuntimeError("never")

    client = world.client(handler)
    world.publish("alpha", [1])
    stopped = client.stopService()
    world.network.settle()
    assert stopped.called
    assert client.stopService().called


def test_a_handler_that_stops_the_client_is_not_called_again(world: World) -> None:
    """Neither for what the same read brought; that comes after the next start."""

    def handler(stream: str, instance: str, token: int, rows: Any) -> None:
        world.handle(stream, instance, token, rows)
        stopping.append(client.stopService())

    stopping: list[Deferred[None]] = []
    client = world.client(handler)
    assert world.publisher.publish("alpha", [[1], [2], [3]]).called
    assert world.publisher.publish("beta", [[1]]).called
    world.network.settle()
    assert [token for _, _, token, _ in world.seen] == [1]
    assert stopping[0].called
    client.startService()
    world.network.settle()
    assert [(stream, token) for stream, _, token, _ in world.seen] == [("alpha", 1), ("alpha", 2)]


def test_stopping_waits_for_the_running_handler(world: World) -> None:
    running: list[Deferred[None]] = []

    def handler(*arguments: Any) -> Deferred[None]:
        running.append(Deferred())
        return running[-1]

    store = MemoryPositionStore()
    client = world.client(handler, positions=store)
    world.publish("alpha", [1])
    stopped = client.stopService()
    world.network.settle()
    assert not stopped.called
    running[0].callback(None)
    world.network.settle()
    assert stopped.called
    assert store.load() == {("alpha", "master"): 1}


def test_a_row_that_does_not_fit_is_quarantined_and_the_rest_goes_on(world: World) -> None:
    registry = Registry()
    seen: list[Any] = []

    def handler(stream: str, instance: str, token: int, rows: Any) -> None:
        seen.append((token, [row.user_id for row in rows]))

    client = world.client(handler, streams=["push_rules"], registry=registry)
    loose = Publisher(world.log, Registry([StreamDef("push_rules")]), "master")
    for rows in ([["@a:x"], [5], ["@b:x"]], [[7]], [["@c:x"]]):
        assert loose.publish("push_rules", rows, batch=True).called
    world.network.settle()
    assert seen == [(1, ["@a:x", "@b:x"]), (3, ["@c:x"])]
    assert client.quarantined_rows == 2
    assert client.positions()["push_rules", "master"] == 3


def test_past_retention_is_a_reset_then_the_rest() -> None:
    world = World(max_rows=2)
    client = world.client()
    world.publish("alpha", [1])
    world.network.wires["w0"].cut()
    for number in range(5):
        world.publish("alpha", [number])
    run_until(world.network, lambda: client.positions().get(("alpha", "master")) == 6)
    assert world.resets == [("alpha", "master", 1, 4)]
    assert [token for _, _, token, _ in world.seen] == [1, 5, 6]
    assert any("are gone" in command.text for command in world.commands if hasattr(command, "text"))
    world.finish()


def test_callbacks_that_fail_are_called_again() -> None:
    world = World(max_rows=1)
    client = world.client()
    world.publish("alpha", [1])
    world.network.wires["w0"].cut()
    world.publish("alpha", [2])
    world.publish("alpha", [3])
    fails = [True, True]

    async def on_reset(*arguments: Any) -> None:
        if fails:
            fails.pop()
            raise RuntimeError("not yet")
        world.resets.append(arguments)

    client._delivery._on_reset = on_reset
    run_until(world.network, lambda: client.positions().get(("alpha", "master")) == 3)
    assert world.resets == [("alpha", "master", 1, 2)]
    world.finish()


def test_commands_go_out_only_when_connected(world: World) -> None:
    got: list[Any] = []
    world.server.on(FederationAckCommand, lambda command, peer: got.append(command))
    ready: list[Any] = []
    client = world.client(on_connected=ready.append, name="fed1")
    assert ready == [client]
    assert client.send(FederationAckCommand("fed1", 5))
    world.network.settle()
    assert got == [FederationAckCommand("fed1", 5)]
    world.crash()
    dropped = metrics.DROPPED.labels("command", "not_connected")
    before = dropped._value.get()
    assert not client.send(FederationAckCommand("fed1", 6))
    assert dropped._value.get() == before + 1
    world.start()


def test_other_commands_are_handed_on(world: World) -> None:
    world.client()
    world.server.broadcast(RemoteServerUpCommand("other.org"))
    world.network.settle()
    assert world.commands[-1] == RemoteServerUpCommand("other.org")


def test_a_server_that_is_away_is_tried_again_and_again(world: World) -> None:
    world.crash()
    client = world.client()
    assert client.last_error
    assert not client.connected
    world.network.run(20.0)
    world.start()
    run_until(world.network, lambda: client.connected)


def test_who_was_greeted_is_back_soon_when_it_is_cut_again(world: World) -> None:
    """However long the server was away before."""
    world.crash()
    client = world.client()
    world.network.run(60.0)
    world.start()
    run_until(world.network, lambda: client.connected)
    world.network.wires["w0"].cut()
    assert not client.connected
    world.network.run(limits.RECONNECT_MIN_S, step=limits.RECONNECT_MIN_S)
    assert client.connected


def test_the_wrong_homeserver_is_refused(world: World) -> None:
    client = world.client(server_name="other.org")
    assert not client.connected
    assert "Wrong remote" in str(client.last_error)


def test_a_port_that_says_nothing_is_left(world: World) -> None:
    world.network.factory = Factory.forProtocol(Protocol)
    client = world.client()
    world.network.run(limits.HANDSHAKE_TIMEOUT_S + 2)
    assert "handshake timeout" in str(client.last_error)


def test_all_streams(world: World) -> None:
    world.client(streams=None)
    world.publish("beta", [1])
    assert world.seen == [("beta", "master", 1, [[1]])]


def test_an_idle_client_is_heard_by_the_server(world: World) -> None:
    world.client(name="idle")
    world.network.run(limits.PING_TIMEOUT_S * 3)
    assert [peer.name for peer in world.server.peers()] == ["idle"]
    assert world.clients[0].reconnects == 0


def test_a_server_that_falls_silent_is_left_and_found_again(world: World) -> None:
    client = world.client()
    wire = world.network.wires["w0"]
    for _ in range(round(limits.PING_TIMEOUT_S) + 3):
        world.network.clock.advance(1.0)
    assert "ping timeout" in str(client.last_error) or wire.client.closing
    run_until(world.network, lambda: client.reconnects >= 1 and client.connected)


def test_stopping_while_a_connection_is_made(world: World) -> None:
    attempts: list[Any] = []

    class Slow:
        def connect(self, factory: Any) -> Deferred[Any]:
            attempts.append((factory, Deferred()))
            return attempts[-1][1]

    client = make_client(world.network.clock, Slow(), ["alpha"], world.handle)
    client.startService()
    stopped = client.stopService()
    world.network.settle()
    factory, attempt = attempts[0]
    world.network.connect(factory, "late").addCallback(attempt.callback)
    world.network.settle()
    assert stopped.called


def test_a_connection_that_takes_too_long_is_given_up(world: World) -> None:
    class Never:
        def connect(self, factory: Any) -> Deferred[Any]:
            return Deferred()

    client = make_client(world.network.clock, Never(), ["alpha"], world.handle)
    client.startService()
    world.network.run(limits.HANDSHAKE_TIMEOUT_S + 1)
    assert "no connection within" in str(client.last_error)
    stopped = client.stopService()
    world.network.run(limits.HANDSHAKE_TIMEOUT_S + 1)
    assert stopped.called


class Old(Protocol):
    """A server of 2017: it refuses a bare REPLICATE and streams that it does not know."""

    heard: list[str]

    def connectionMade(self) -> None:
        """Greet."""
        assert self.transport is not None
        self.transport.write(b"SERVER example.com\nPING 1\n")

    def dataReceived(self, data: bytes) -> None:
        """Answer as such a server does."""
        assert self.transport is not None
        for line in data.decode().splitlines():
            self.heard.append(line)
            if line == "REPLICATE ":
                self.transport.write(b"ERROR failed to parse line for REPLICATE\n")
                self.transport.loseConnection()
            elif line.startswith("REPLICATE beta"):
                self.transport.write(
                    b"ERROR failed to handle replicate: ('unknown stream %s', 'beta')\n"
                )
                self.transport.loseConnection()
            elif line.startswith("REPLICATE alpha"):
                self.transport.write(b"RDATA alpha 4 [4]\nRDATA alpha 3 [3]\nPOSITION alpha 4\n")


def old_server(world: World) -> list[str]:
    """Put a server of 2017 in the place of ours; return what it hears."""
    heard: list[str] = []

    class Server(Old):
        pass

    Server.heard = heard
    world.crash()
    world.network.factory = Factory.forProtocol(Server)
    return heard


def test_a_server_of_2017_is_found_out_and_asked_for_what_it_knows(world: World) -> None:
    heard = old_server(world)
    store = MemoryPositionStore({("alpha", "master"): 2})
    client = world.client(positions=store)
    run_until(world.network, lambda: client.positions() == {("alpha", "master"): 4})
    assert [token for _, _, token, _ in world.seen] == [4, 3]
    asked = [line for line in heard if line.startswith("REPLICATE")]
    assert asked[:3] == ["REPLICATE ", "REPLICATE alpha 2", "REPLICATE beta NOW"]
    run_until(world.network, lambda: client.connected)
    assert heard[-1] == "REPLICATE alpha 4"


def test_all_streams_of_a_server_of_2017(world: World) -> None:
    heard = old_server(world)
    store = MemoryPositionStore({("alpha", "master"): 2})
    client = world.client(positions=store, streams=None, dialect="2017", since="start")
    run_until(world.network, lambda: client.positions() == {("alpha", "master"): 4})
    asked = [line for line in heard if line.startswith("REPLICATE")]
    assert asked == ["REPLICATE ALL NOW", "REPLICATE alpha 2"]


class Nowhere:
    """An endpoint that nobody ever answers at."""

    def connect(self, factory: object) -> Deferred[Any]:
        """Wait for ever."""
        return Deferred()


def test_stopping_does_not_wait_for_a_server_that_does_not_answer() -> None:
    """The attempt is given up at once."""
    network = make_network()
    endpoint: Any = Nowhere()
    client = make_client(network.clock, endpoint, ["alpha"], print)
    client.startService()
    network.settle()
    assert client.stopService().called


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_server_restored_from_a_copy_gives_everything_from_the_fork_on(
    world: World, tmp_path: Path, kind: str
) -> None:
    """The copy is at 2, we are at 3, and by now the server is at 4."""
    pair = ("alpha", "master")
    store: Any = (
        MemoryPositionStore() if kind == "memory" else SqlitePositionStore(tmp_path / "p.db")
    )
    client = world.client(positions=store, since="start")
    world.publish("alpha", [1])
    world.publish("alpha", [2])
    world.publish("alpha", ["lost"])
    assert store.places(pair, 3) == ((3, world.log.history.current),)
    world.crash()
    lost, world.log = world.log, MemoryLog(world.registry, lambda: 0)
    world.log.history = copy.deepcopy(lost.history)
    world.publisher = Publisher(world.log, world.registry, "master")
    world.publish("alpha", [1])
    world.publish("alpha", [2])
    world.log.history.begin({pair: 2}, 0)
    world.publish("alpha", [3])
    world.publish("alpha", [4])
    world.seen.clear()
    world.start()
    run_until(world.network, lambda: len(world.seen) == 2)
    assert world.seen == [("alpha", "master", 3, [[3]]), ("alpha", "master", 4, [[4]])]
    assert world.resets == [("alpha", "master", 3, 2)]
    assert client.incarnation == world.log.history.current
    assert store.places(pair, 4) == (
        (4, world.log.history.current),
        (2, lost.history.current),
    )


def test_a_server_of_before_incarnations_is_asked_as_before(world: World) -> None:
    store = MemoryPositionStore()
    world.publish("alpha", [1])
    here = world.log.history.current
    store.save({("alpha", "master"): 1}, here)
    client = world.client(positions=store)
    assert client._requests(DIALECTS["tcprepl"])[0] == ReplicateCommand("alpha", "master", 1)
    assert client._requests(DIALECTS["tcprepl"], names_incarnation=True)[0] == ReplicateCommand(
        "alpha", "master", 1, incarnations=((1, here),)
    )


# -- tokens ----------------------------------------------------------------------------


def test_a_token_is_said_before_anything_is_asked_for(world: World) -> None:
    """What comes behind it is what it allows."""
    world.server.admit(Tokens([("the-token", Grant("w", read=ALL))]), NOTHING)
    client = world.client(streams=["alpha"], token="the-token", since="start")
    world.publish("alpha", 1)
    assert world.seen == [("alpha", "master", 1, [1])]
    assert client.last_error is None
    assert client.token_taken
    assert not any(isinstance(command, AuthorizedCommand) for command in world.commands)


def test_a_change_of_tokens_makes_no_wait_longer(world: World) -> None:
    """However many there were: the server is well, and it took the token of before."""
    said = ["token-0"]

    def admit() -> None:
        world.server.admit(Tokens([(said[0], Grant("w", read=ALL))]), NOTHING)
        world.network.settle()

    admit()
    client = world.client(streams=["alpha"], token=lambda: said[0])
    for change in range(1, 9):
        said[0] = f"token-{change}"
        admit()
        assert not client.connected
        world.network.run(limits.RECONNECT_MIN_S, step=limits.RECONNECT_MIN_S)
        assert (client.token_taken, client.reconnects) == (True, change)


def test_a_token_is_read_anew_for_each_connection(world: World) -> None:
    """So that it can be exchanged while the client runs; what cannot be read is told."""
    said = ["wrong-token"]

    def read() -> str:
        if not said:
            raise ConfigError("token: is empty")
        return said[0]

    world.server.admit(Tokens([("the-token", Grant("w", read=ALL))]), NOTHING)
    client = world.client(streams=["alpha"], token=read, since="start")
    world.publish("alpha", 1)
    assert client.last_error.startswith("AUTH: the token is not known here")
    assert not client.token_taken
    assert world.seen == []
    said.clear()
    run_until(world.network, lambda: "is empty" in client.last_error)
    said.append("the-token")
    run_until(world.network, lambda: bool(world.seen))
    world.server.admit(Tokens([("other-token", Grant("w", read=ALL))]), NOTHING)
    world.network.settle()
    said[0] = "other-token"
    world.publish("alpha", 2)
    run_until(world.network, lambda: len(world.seen) == 2)
    assert world.seen == [("alpha", "master", 1, [1]), ("alpha", "master", 2, [2])]


def test_a_token_that_does_not_hold_is_not_tried_ever_faster(world: World) -> None:
    """The server was there each time; the delay grows all the same."""
    world.server.admit(Tokens([("the-token", Grant("w", read=ALL))]), NOTHING)
    client = world.client(streams=["alpha"], token="wrong-token")
    world.network.run(60)
    assert client.reconnects < 30


def test_a_token_is_not_said_to_a_server_of_another_kind(world: World) -> None:
    """It could not take it, and may show it."""
    heard = old_server(world)
    client = world.client(streams=["alpha"], token="the-token", dialect="2017")
    world.network.run(5)
    assert client.connected
    assert heard
    assert "the-token" not in str(heard)
