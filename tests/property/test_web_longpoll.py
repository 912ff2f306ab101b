"""A long-poll client sees exactly what a TCP subscriber sees.

It starts anywhere, polls with any limit and timeout, in either shape and encoding, while rows
of several writers come, and while the server is restarted on the same data directory. Against
it: a subscriber of the line protocol with the same start, and the log itself.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.storage.worker import InlineWorker
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.streams.sqlite import SqliteLog
from tests.web_site import START_MS, Exchange, Stage

JSON = "application/json"
#: A durable opaque stream, a durable one whose columns are of 2016, and one of states.
STREAMS = ("audit", "receipts", "typing")
INSTANCES = ("master", "w~1,=")


class World:
    """A site and a line protocol's server over one data directory, with restarts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.seconds = 0.0
        self.published = 0
        self.open()

    def open(self) -> None:
        """Start the process."""
        self.clock = Clock()
        self.clock.rightNow = self.seconds
        registry = Registry([StreamDef("audit")])
        self.log = SqliteLog(
            self.directory, registry, self.now_ms, InlineWorker(), reactor=self.clock
        )
        self.stage = Stage(log=self.log, reactor=self.clock)
        self.server = ReplicationServer(self.clock, self.log, registry, "example.com", "master")

    def now_ms(self) -> int:
        """Return the time of day."""
        return START_MS + int(self.clock.seconds() * 1000)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)
        self.clock.pump([0.0] * 3)

    def close(self) -> None:
        """Stop the process in order."""
        self.stage.site.stopFactory()
        for channel in tuple(self.stage.site.open_channels):
            channel.connectionLost()
        self.advance(0)
        self.seconds = self.clock.seconds()
        _ = self.log.close()

    def restart(self) -> None:
        """Stop and start again; positions and rows are those of the disk."""
        self.close()
        self.open()

    def publish(self, stream: str, instance: str, rows: list[Any], batch: bool) -> None:
        """Append rows and let the commit happen."""
        encoded = [json.dumps(row).encode() for row in rows]
        _ = self.stage.publisher.publish_json(stream, encoded, batch=batch, instance=instance)
        self.advance(0)

    def by_tcp(self, stream: str, after: dict[str, int]) -> dict[str, list[tuple[int, Any]]]:
        """Return what a subscriber of the line protocol gets after these positions."""
        peer = self.server.accept("test")
        transport = StringTransport()
        peer.makeConnection(transport)
        for instance, token in after.items():
            peer.dataReceived(f"REPLICATE {stream} {instance} {token}\n".encode())
        peer.dataReceived(f"REPLICATE {stream} * 0\n".encode())
        for _ in range(50):
            self.advance(0)
        found: dict[str, list[tuple[int, Any]]] = {}
        waiting: dict[str, list[Any]] = {}
        for line in transport.value().decode().splitlines():
            word, _, rest = line.partition(" ")
            if word != "RDATA":
                continue
            _, instance, token, row = rest.split(" ", 3)
            waiting.setdefault(instance, []).append(json.loads(row))
            if token != "batch":
                rows = waiting.pop(instance)
                found.setdefault(instance, []).extend((int(token), row) for row in rows)
        transport.loseConnection()
        peer.connectionLost(Failure(ConnectionDone()))
        self.advance(0)
        return found


def row_of(stream: str, cells: list[Any]) -> Any:
    """Return the stream's row that a table's cells stand for."""
    if stream == "audit":
        return cells[0]
    if stream == "typing":
        return [cells[0], json.loads(cells[1])]
    *key, data, thread = cells
    return [*key, json.loads(data)] if thread is None else [*key, thread, json.loads(data)]


class Client:
    """Follows one stream by asking again.

    Attributes:
        stream: Which.
        position: What it asks with next.
        seen: What it has got, by instance.
        resets: How often it was told to begin anew.
        plain: Whether a row has what MessagePack cannot hold, so that it asks for JSON.
    """

    def __init__(self, stream: str, position: str) -> None:
        self.stream = stream
        self.position = position
        self.seen: dict[str, list[tuple[int, Any]]] = {}
        self.resets = 0
        self.plain = False
        self.waiting: Exchange | None = None

    def ask(self, world: World, limit: int, timeout: int, shape: str, packed: bool) -> None:
        """Send a request; its answer is taken by `look`."""
        if self.waiting is None:
            self.waiting = world.stage.open(
                "GET",
                "/_synapse/replication",
                {self.stream: self.position, "limit": limit, "timeout": timeout, "format": shape},
                headers={"Accept": "application/msgpack" if packed and not self.plain else JSON},
            )
        self.look()

    def look(self) -> bool:
        """Take an answer that has come; return whether one had."""
        exchange = self.waiting
        if exchange is None or not exchange.answered:
            return False
        self.waiting = None
        answer = exchange.answer
        exchange.leave()
        if answer.status in (409, 410):
            self.seen = {}
            self.position = "-1"
            self.resets += 1
            return True
        if answer.status == 406:
            assert answer.json["errcode"] == "TCPREPL_NOT_IN_MSGPACK"
            assert not self.plain
            self.plain = True
            return True
        assert answer.status == 200, answer.body
        packed = answer.headers["content-type"] == "application/msgpack"
        body = msgpack.unpackb(answer.body) if packed else answer.json
        if isinstance(body, dict):
            for table in body.values():
                self.take(table["position"], table["field_names"], table["rows"])
        elif body:
            name, position, rows, columns, *names = body[0]
            assert (name, len(body) - 1, len(names)) == (self.stream, rows, columns)
            self.take(position, names, body[1:])
        return True

    def take(self, position: int | str, names: list[str], rows: list[list[Any]]) -> None:
        """Note the rows of a table."""
        for token, *cells in rows:
            assert len(cells) == len(names) - 1
            instance = cells.pop() if names[-1] == "instance" else "master"
            self.seen.setdefault(instance, []).append((token, row_of(self.stream, cells)))
        self.position = str(position)


def newest(rows: dict[str, list[tuple[int, Any]]]) -> dict[tuple[str, str], Any]:
    """Return what the rows of a stream of states leave: the newest of each room, if any type."""
    states = {(instance, row[0]): row[1] for instance, found in rows.items() for _, row in found}
    return {key: users for key, users in states.items() if users}


@contextlib.contextmanager
def worlds() -> Iterator[World]:
    """Make a world for one example."""
    with tempfile.TemporaryDirectory() as directory:
        world = World(Path(directory) / "data")
        yield world
        world.close()


ROWS = {
    "audit": st.one_of(st.integers(), st.text(max_size=5), st.lists(st.none(), max_size=2)),
    "receipts": st.tuples(
        st.just("!r:x"), st.just("m.read"), st.sampled_from("ab"), st.just("$e"), st.just({"ts": 1})
    ).map(list),
    "typing": st.tuples(
        st.sampled_from(["!a:x", "!b:x"]), st.lists(st.just("@u:x"), max_size=1)
    ).map(list),
}
PUBLISH = st.sampled_from(STREAMS).flatmap(
    lambda stream: st.tuples(
        st.just("publish"),
        st.just(stream),
        st.sampled_from(INSTANCES),
        st.lists(ROWS[stream], min_size=1, max_size=4),
        st.booleans(),
    )
)
POLL = st.tuples(
    st.just("poll"),
    st.sampled_from(STREAMS),
    st.integers(1, 4),
    st.sampled_from([0, 50, 10_000]),
    st.sampled_from(["object", "table"]),
    st.booleans(),
)
STEPS = st.lists(
    st.one_of(
        PUBLISH,
        PUBLISH,
        POLL,
        POLL,
        st.tuples(st.just("wait"), st.sampled_from([0.01, 1.0, 10.0])),
        st.tuples(st.just("restart")),
    ),
    max_size=30,
)


@given(before=st.lists(PUBLISH, max_size=6), start=st.data(), steps=STEPS)
def test_a_poller_sees_what_a_subscriber_sees(
    before: list[Any], start: st.DataObject, steps: list[Any]
) -> None:
    """The same rows, in the same order, once each, whatever happens in between."""
    with worlds() as world:
        for _, *arguments in before:
            world.publish(*arguments)
        starts: dict[str, dict[str, int]] = {}
        clients = {}
        for stream in STREAMS:
            starts[stream] = {}
            if stream != "typing":
                starts[stream] = {
                    instance: start.draw(st.integers(0, world.log.position(stream, instance)))
                    for instance in INSTANCES
                }
            clients[stream] = Client(stream, position_of(starts[stream]))
        for step, *arguments in steps:
            if step == "publish":
                world.publish(*arguments)
            elif step == "poll":
                stream, *how = arguments
                clients[stream].ask(world, *how)
            elif step == "wait":
                world.advance(*arguments)
            else:
                world.restart()
            for client in clients.values():
                client.look()
        for stream, client in clients.items():
            catch_up(world, client)
            subscriber = world.by_tcp(stream, starts[stream])
            if stream == "typing":
                assert newest(client.seen) == newest(subscriber)
            else:
                assert client.resets == 0
                assert client.seen == subscriber


def position_of(start: dict[str, int]) -> str:
    """Return a start as a client writes it."""
    names = {"master": "master", "w~1,=": "w=7E1=2C=3D"}
    written = [f"{names[instance]}~{token}" for instance, token in start.items() if token]
    return ",".join(written) or "0"


def catch_up(world: World, client: Client) -> None:
    """Ask until there is nothing more."""
    while True:
        if client.waiting is not None:
            world.advance(600)
        client.look()
        before = client.position
        client.ask(world, 100, 0, "object", False)
        assert client.waiting is None
        if client.position == before:
            return
