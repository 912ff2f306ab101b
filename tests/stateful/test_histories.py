"""A server, a reader, a relay with a reader, and a federation sender, whose disks are put back.

Data directories are copied at any moment, and any copy takes the place of what was written since:
the server's, the relay's, or none at all (moved away, to begin empty). The model is the list of the
rows that the server's history has *now*. Nothing of it may be missed: the reader ends with exactly
these rows, having been told what was void; the relay's reader and the sender have been given all
of them, whatever else they were given before.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from twisted.internet.defer import Deferred

from tcprepl.federation.sending.commit_queue import run_inline
from tcprepl.federation.sending.intake import EduIntake
from tcprepl.federation.sending.lanes import Entry
from tcprepl.federation.sending.outbox import Outbox
from tcprepl.federation.sending.sharding import Shard
from tcprepl.federation.wire.edu import build_edu, edu_row
from tcprepl.protocol.commands import FederationAckCommand
from tcprepl.replication.following.client import ReplicationClient
from tcprepl.replication.relaying.intake import RelayIntake, relay_registry
from tcprepl.replication.relaying.state import RelayState
from tcprepl.replication.relaying.tcp_source import TcpUpstream
from tcprepl.replication.serving.server import ReplicationServer
from tcprepl.storage.backup import make_backup, restore_backup
from tcprepl.storage.worker import InlineWorker
from tcprepl.streams.position_store import SqlitePositionStore
from tcprepl.streams.registry import Registry
from tcprepl.streams.sqlite import SqliteLog
from tests.wire import Network

STREAM, EDUS = "push_rules", "federation"
PLACE = "/dev/shm" if Path("/dev/shm").is_dir() else None
#: How long what heals may take, in seconds of the clock.
HEAL_S = 240.0


def over(deferred: Deferred[Any], settle: Any) -> None:
    """Let *deferred* fire."""
    settle()
    assert deferred.called


class Reader:
    """A reader of one stream that does as it is told: what is void it forgets."""

    def __init__(self, network: Network, name: str, path: Path) -> None:
        self.rows: list[tuple[int, str]] = []
        self.seen: set[str] = set()
        self.told: list[tuple[int | None, int]] = []
        self._network = network
        self._name = name
        self._path = path
        self.start()

    def start(self) -> None:
        """Begin from the positions on disk."""
        self.store = SqlitePositionStore(self._path)
        self.client = ReplicationClient(
            self._network.clock,
            self._network.client_endpoint(self._name),
            [STREAM],
            self._take,
            positions=self.store,
            name=self._name,
            since="start",
            on_reset=self._reset,
        )
        self.client.startService()

    def _take(self, stream: str, instance: str, token: int, rows: Any) -> None:
        self.rows += [(token, row.user_id) for row in rows]
        self.seen.update(row.user_id for row in rows)

    def _reset(self, stream: str, instance: str, known: int | None, token: int) -> None:
        self.told.append((known, token))
        self.rows = [(place, row) for place, row in self.rows if place <= token]


class Sender:
    """The first half of a federation sender, up to what it would send."""

    def __init__(self, network: Network, path: Path) -> None:
        self.given: list[Entry] = []
        self.outbox = Outbox(path, run_inline)
        self.intake = EduIntake(
            network.clock,
            self.outbox,
            "a.example",
            Shard("fed1", ()),
            self.given.extend,
            lambda instance, token: self.client.send(FederationAckCommand("fed1", token)),
            now_ms=lambda: 0,
        )
        self.client = ReplicationClient(
            network.clock,
            network.client_endpoint("fed1"),
            [EDUS],
            self.intake.handle_rows,
            positions=self.intake,
            name="fed1",
            since="start",
            on_reset=self.intake.handle_reset,
            on_position=self.intake.handle_position,
            on_connected=lambda client: self.intake.connected(client.incarnation),
        )
        self.client.startService()

    def numbers(self) -> set[str]:
        """Return what it would send."""
        return {entry[2].decode_content()["n"] for entry in self.given}


class Histories(RuleBasedStateMachine):
    """Rules are what may happen to processes and disks; `teardown` says what must hold."""

    @initialize()
    def begin(self) -> None:
        self.place = Path(tempfile.mkdtemp(dir=PLACE))
        self.network = Network()
        self.below = Network(self.network.clock)
        self.number = 0
        self.model: dict[str, list[tuple[int, str]]] = {STREAM: [], EDUS: []}
        self.copies: list[tuple[Path, dict[str, list[tuple[int, str]]]]] = []
        self.relay_copies: list[Path] = []
        self.server: ReplicationServer | None = None
        self.start_server()
        self.start_relay()
        self.reader = Reader(self.network, "reader", self.place / "reader.db")
        self.below_reader = Reader(self.below, "below", self.place / "below.db")
        self.sender = Sender(self.network, self.place / "outbox.db")

    def settle(self) -> None:
        """Let everything arrive on both networks."""
        for _ in range(20):
            self.network.settle()
            self.below.settle()

    def start_server(self) -> None:
        registry = Registry()
        self.log = SqliteLog(self.place / "server", registry, lambda: 0, InlineWorker())
        for stream in self.model:
            self.log.ensure(stream, "master")
        self.server = ReplicationServer(self.network.clock, self.log, registry, "a.example")
        self.server.on(FederationAckCommand, self.acknowledged)
        assert Deferred.fromCoroutine(self.server.listen(self.network.server_endpoint())).called

    def acknowledged(self, command: FederationAckCommand, peer: object) -> None:
        """Trim what a sender has, as the writer does."""
        if command.token <= self.log.position(EDUS, "master"):
            self.log.trim(EDUS, "master", command.token)

    def stop_server(self) -> None:
        """Let the server die."""
        self.network.factory = None
        for wire in self.network.wires.values():
            wire.cut()
        assert self.server is not None
        over(Deferred.fromCoroutine(self.server.stop()), self.settle)
        over(self.log.close(), self.settle)

    def start_relay(self) -> None:
        where = self.place / "relay"
        self.state = RelayState(where)
        registry = relay_registry(self.state.streams())
        self.relay_log = SqliteLog(where, registry, lambda: 0, InlineWorker(), gaps=self.state.gaps)
        self.intake = RelayIntake(self.network.clock, self.relay_log, registry, self.state)
        self.relay = ReplicationServer(self.network.clock, self.relay_log, registry, "a.example")
        self.intake.on_pair = self.relay.hub.announce
        self.upstream = TcpUpstream(
            self.network.clock,
            self.network.client_endpoint("relay"),
            "server",
            self.intake,
            registry,
            server_name="a.example",
        )
        assert Deferred.fromCoroutine(self.relay.listen(self.below.server_endpoint())).called
        self.upstream.start()

    def stop_relay(self) -> None:
        """Let the relay die."""
        over(Deferred.fromCoroutine(self.upstream.stop()), self.settle)
        over(Deferred.fromCoroutine(self.intake.close()), self.settle)
        self.below.factory = None
        for wire in self.below.wires.values():
            wire.cut()
        over(Deferred.fromCoroutine(self.relay.stop()), self.settle)
        over(self.relay_log.close(), self.settle)
        self.state.close()

    # -- what may happen ---------------------------------------------------------------------

    @rule(stream=st.sampled_from([STREAM, EDUS]), count=st.integers(1, 5), batch=st.booleans())
    def publish(self, stream: str, count: int, batch: bool) -> None:
        rows, names = [], []
        for _ in range(count):
            self.number += 1
            name = f"@{self.number}:x"
            names.append(name)
            edu = edu_row(build_edu("a.example", "b.example", "m.test", {"n": name}))
            rows.append(b'["%s"]' % name.encode() if stream == STREAM else edu)
        before = self.log.position(stream, "master")
        assert self.log.append(stream, "master", rows, batch=batch).called
        self.model[stream] += [
            (before + 1 if batch else before + 1 + index, name) for index, name in enumerate(names)
        ]

    @rule()
    def everything_arrives(self) -> None:
        self.settle()

    @rule(seconds=st.sampled_from([0.2, 1.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.network.clock.advance(seconds)

    @rule(name=st.sampled_from(["reader", "relay", "fed1"]), count=st.integers(1, 300))
    def some_bytes_arrive(self, name: str, count: int) -> None:
        wire = self.network.wires.get(name)
        if wire is not None:
            wire.client.arrive(count)
            wire.server.arrive(count)

    @rule(name=st.sampled_from(["reader", "relay", "fed1"]))
    def cut(self, name: str) -> None:
        wire = self.network.wires.get(name)
        if wire is not None:
            wire.cut()

    @rule()
    def restart_server(self) -> None:
        self.stop_server()
        self.start_server()

    @rule()
    def restart_relay(self) -> None:
        self.stop_relay()
        self.start_relay()

    @rule()
    def restart_reader(self) -> None:
        over(self.reader.client.stopService(), self.settle)
        self.reader.store.close()
        self.reader.start()

    @precondition(lambda self: len(self.copies) < 4)
    @rule()
    def copy_server(self) -> None:
        target = self.place / f"copy{len(self.copies)}"
        make_backup(self.place / "server", target, "0")
        self.copies.append((target, {name: list(rows) for name, rows in self.model.items()}))

    @precondition(lambda self: self.copies)
    @rule(data=st.data())
    def restore_server(self, data: st.DataObject) -> None:
        copy, model = data.draw(st.sampled_from(self.copies))
        self.stop_server()
        shutil.rmtree(self.place / "server")
        restore_backup(copy, self.place / "server")
        self.model = {name: list(rows) for name, rows in model.items()}
        self.start_server()

    @precondition(lambda self: self.copies)
    @rule(data=st.data(), further=st.integers(0, 3))
    def restore_server_and_pass(self, data: st.DataObject, further: int) -> None:
        """Before anybody comes back, it is where it was, and further."""
        before = {name: len(rows) for name, rows in self.model.items()}
        self.restore_server(data)
        for stream, count in before.items():
            lost = count - len(self.model[stream]) + further
            if lost > 0:
                self.publish(stream, lost, batch=False)

    @rule(passes=st.integers(0, 12))
    def move_the_server_away(self, passes: int) -> None:
        self.stop_server()
        shutil.rmtree(self.place / "server")
        self.model = {name: [] for name in self.model}
        self.start_server()
        for stream in self.model if passes else ():
            self.publish(stream, passes, batch=False)

    @precondition(lambda self: len(self.relay_copies) < 3)
    @rule()
    def copy_relay(self) -> None:
        target = self.place / f"relay{len(self.relay_copies)}"
        make_backup(self.place / "relay", target, "0")
        self.relay_copies.append(target)

    @precondition(lambda self: self.relay_copies)
    @rule(data=st.data())
    def restore_relay(self, data: st.DataObject) -> None:
        copy = data.draw(st.sampled_from(self.relay_copies))
        self.stop_relay()
        shutil.rmtree(self.place / "relay")
        restore_backup(copy, self.place / "relay")
        self.start_relay()

    # -- what must hold ----------------------------------------------------------------------

    def teardown(self) -> None:
        """Everything heals: nothing that the server has now was missed."""
        if not hasattr(self, "place"):
            return
        try:
            self.heal()
        finally:
            shutil.rmtree(self.place)

    def heal(self) -> None:
        wanted = {name for _, name in self.model[STREAM]}
        edus = {name for _, name in self.model[EDUS]}

        def whole() -> bool:
            return (
                self.reader.rows == self.model[STREAM]
                and wanted <= self.below_reader.seen
                and edus <= self.sender.numbers()
            )

        for _ in range(round(HEAL_S / 2)):
            self.settle()
            if whole():
                break
            self.network.clock.advance(2.0)
        assert self.reader.rows == self.model[STREAM]
        assert edus <= self.sender.numbers()
        assert wanted <= self.below_reader.seen
        for client in (self.reader.client, self.below_reader.client, self.sender.client):
            over(client.stopService(), self.settle)
        self.stop_relay()
        self.stop_server()
        self.reader.store.close()
        self.below_reader.store.close()
        self.sender.outbox.close()


TestHistories = Histories.TestCase
if settings.default.max_examples >= settings.get_profile("deep").max_examples:
    #: What is promised of this machine is promised for so many examples of the deep profile.
    TestHistories.settings = settings(max_examples=20_000)
