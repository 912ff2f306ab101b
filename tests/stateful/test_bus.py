"""Processes of Synapse on the bus, beside a model of what each makes of what it is told.

Writers share a sequence, and write rows out of the order of their tokens, each its own in order.
Processes lose their connections, with or without what was under way, and come back; the bus is
stopped and killed. Nobody misses a row, or sees one twice or too early; whoever comes back
known, with all that was written to it, fetches nothing.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tcprepl import limits
from tcprepl.replication.bus.places import Places
from tcprepl.replication.bus.processes import AT_ONCE_S
from tcprepl.replication.following.catchup import CatchUpPage
from tests.bus_world import BusClient, BusWorld
from tests.synapse_model import SynapseModel, Written

SMALL = {"SEGMENT_BYTES": 300, "PAGE_BYTES": 200, "PAGE_ROWS": 3, "TURN_BYTES": 900}
STREAMS = ("events", "to_device")
WRITERS = ("w1", "w2")
NAMES = ("w1", "g1")  # one of them writes itself


class Database:
    """Where the bus fetches what a writer did not publish."""

    def __init__(self, written: Written) -> None:
        self._written = written

    async def fetch(self, stream: str, instance: str, after: int, upto: int) -> CatchUpPage:
        """Return rows."""
        tokens = [t for t in self._written[stream, instance] if after < t <= upto]
        return CatchUpPage([(t, b"[%d]" % t) for t in tokens], upto, limited=False)


class Process:
    """A process that listens: what it knows, and its connection."""

    def __init__(self, model: SynapseModel) -> None:
        self.model = model
        self.client: BusClient | None = None
        self.quiet = True

    def read(self) -> None:
        """Take what has come."""
        if self.client is not None:
            for line in self.client.heard():
                self.model.hear(line)


class BusMachine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._bounds = {name: getattr(limits, name) for name in SMALL}
        for name, value in SMALL.items():
            setattr(limits, name, value)
        self.directory = tempfile.TemporaryDirectory()
        self.written: Written = {(s, w): [] for s in STREAMS for w in WRITERS}
        self.newest = dict.fromkeys(STREAMS, 0)
        self.unwritten: dict[tuple[str, str], list[int]] = {pair: [] for pair in self.written}
        self.moved = dict.fromkeys(self.written, 0)
        self.writers: dict[str, BusClient] = {}
        self.world = BusWorld(places=self._places(), catch_up=Database(self.written))
        self.processes: dict[str, Process] = {}

    def _places(self) -> Places:
        return Places(Path(self.directory.name), lambda: 0.0)

    def teardown(self) -> None:
        """Put the bounds back."""
        for name, value in self._bounds.items():
            setattr(limits, name, value)
        self.world.bus.processes.close()
        self.directory.cleanup()

    @initialize()
    def begin(self) -> None:
        """Everybody connects, and hears where the writers are."""
        for name in WRITERS:
            self._writer(name)
        for name in NAMES:
            self.processes[name] = Process(SynapseModel(name, self.written, set(STREAMS)))
            self.come(name)
        self._settle()

    # -- writing -----------------------------------------------------------------------

    def _writer(self, name: str) -> BusClient:
        writer = self.writers.get(name)
        if writer is None:
            writer = self.writers[name] = self.world.client()
            writer.ask("AUTH", name, "any")
            self._say(name)
        return writer

    def _say(self, name: str) -> None:
        lines = []
        for (stream, instance), tokens in self.written.items():
            if instance == name:
                at = max([self.moved[stream, name], *tokens])
                lines.append(f"POSITION {stream} {name} {at} {at}")
        self.writers[name].publish(*lines)

    @rule(stream=st.sampled_from(STREAMS), name=st.sampled_from(WRITERS))
    def allocate(self, stream: str, name: str) -> None:
        """Take the next token, for a row that is written in a while."""
        self.newest[stream] += 1
        self.unwritten[stream, name].append(self.newest[stream])

    @rule(
        stream=st.sampled_from(STREAMS),
        name=st.sampled_from(WRITERS),
        batch=st.booleans(),
        fresh=st.booleans(),
    )
    def write(self, stream: str, name: str, batch: bool, fresh: bool) -> None:
        """Write and publish a row, or two in a batch."""
        pair = (stream, name)
        if fresh or not self.unwritten[pair]:
            self.allocate(stream, name)
        writer = self._writer(name)
        for token in self.unwritten[pair]:
            self.written[pair].append(token)
            lines = [f"RDATA {stream} {name} batch [{token}]"] if batch else []
            writer.publish(*lines, f"RDATA {stream} {name} {token} [{token}]")
        self.unwritten[pair].clear()

    @rule(stream=st.sampled_from(STREAMS), name=st.sampled_from(WRITERS))
    def write_for_nobody(self, stream: str, name: str) -> None:
        """Write a row while the connection is gone; the position tells when it is back."""
        if self.unwritten[stream, name]:
            return
        writer = self.writers.pop(name, None)
        if writer is not None:
            writer.leave()
        self.newest[stream] += 1
        self.written[stream, name].append(self.newest[stream])

    @rule(name=st.sampled_from(WRITERS))
    def come_back(self, name: str) -> None:
        """Let a writer say where it is, as it does when it is asked."""
        self._writer(name)
        self._say(name)

    @rule(stream=st.sampled_from(STREAMS), name=st.sampled_from(WRITERS))
    def move(self, stream: str, name: str) -> None:
        """Say that nothing of this writer is under way: as Synapse does once a second."""
        before = max([self.moved[stream, name], *self.written[stream, name]])
        others = [t for (s, w), t in self.unwritten.items() if s == stream for t in t]
        settled = min(others, default=self.newest[stream] + 1) - 1
        if settled > before and not self.unwritten[stream, name]:
            writer = self._writer(name)
            self.moved[stream, name] = settled
            writer.publish(f"POSITION {stream} {name} {before} {settled}")

    # -- listening ---------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES))
    def come(self, name: str) -> None:
        """Come back, known."""
        process = self.processes[name]
        if process.client is not None:
            return
        process.client = client = self.world.client()
        client.ask("AUTH", name, "any")
        process.model.connect()
        client.ask("SUBSCRIBE", "example.com")
        process.read()

    @rule(name=st.sampled_from(NAMES), lose=st.booleans())
    def cut(self, name: str, lose: bool) -> None:
        """Lose the connection, and perhaps what was under way."""
        process = self.processes[name]
        if process.client is None:
            return
        if lose and process.client.transport.value():
            process.quiet = False
            process.client.transport.clear()
        process.read()
        self.world.clock.advance(AT_ONCE_S)  # or it may have left because of what it was told
        process.read()
        process.client.leave()
        process.client = None

    @rule(name=st.sampled_from(NAMES))
    def stall(self, name: str) -> None:
        """Take no more for a while."""
        client = self.processes[name].client
        if client is not None:
            with suppress(AssertionError):
                client.full()

    @rule(name=st.sampled_from(NAMES))
    def drain(self, name: str) -> None:
        """Take everything."""
        process = self.processes[name]
        if process.client is not None:
            process.client.drain()
            process.read()

    @rule()
    def pass_time(self) -> None:
        """Let a second go by."""
        self.world.clock.advance(1)

    def _here(self) -> dict[str, Any]:
        return {name: one for name, one in self.processes.items() if one.client is not None}

    # -- the bus -----------------------------------------------------------------------

    @rule(kill=st.booleans())
    def restart(self, kill: bool) -> None:
        """Stop the bus, or kill it, and start it with what is on disk."""
        old = self.world
        visits = {name: one.client.connection.visit for name, one in self._here().items()}
        if kill:
            old.bus.processes._places._database.close()
        else:
            old.close()
        for name, process in self._here().items():
            visit = visits[name]
            if kill and (visit.written_at is not None or visit.subscriber.reader.backlog):
                process.quiet = False  # where it stands is not written down at every moment
            process.read()
            process.client.leave()
            process.client = None
        for writer in self.writers.values():
            writer.leave()
        self.writers.clear()
        self.world = BusWorld(places=self._places(), after=old, catch_up=Database(self.written))
        for name in WRITERS:
            if kill:
                self._writer(name)

    # -- what has to hold --------------------------------------------------------------

    def _settle(self) -> None:
        for name in NAMES:
            self.come(name)
            self.drain(name)
        for name in WRITERS:
            self._writer(name)
            self._say(name)
        for name in NAMES:
            self.drain(name)
        self.world.clock.pump([1] * 17)  # what was unsaid is said
        for name in NAMES:
            self.drain(name)

    @rule()
    def settle(self) -> None:
        """Everybody is here, and hears where the writers are: nobody misses anything."""
        for name, process in self.processes.items():
            if process.quiet:
                assert not process.model.fetches, (name, process.model.fetches)
        self._settle()
        for name, process in self.processes.items():
            assert not process.model.missing(), (name, process.model.missing())
        for process in self.processes.values():
            process.model.fetches.clear()
            process.quiet = True

    @precondition(lambda self: bool(self.processes))
    @invariant()
    def who_lost_nothing_fetches_nothing(self) -> None:
        """See the module."""
        for name, process in self.processes.items():
            process.read()
            if process.quiet:
                assert not process.model.fetches, (name, process.model.fetches)


TestBus: Any = BusMachine.TestCase
TestBus.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_the_first_row_of_a_stream_after_a_restart() -> None:
    """It is announced, though all that can be said before it is that there was nothing."""
    machine = BusMachine()
    try:
        machine.begin()
        machine.restart(kill=False)
        machine.write_for_nobody("events", "w2")
        machine.come("w1")
        machine.write("events", "w2", batch=False, fresh=False)
        machine.who_lost_nothing_fetches_nothing()
        machine.settle()
    finally:
        machine.teardown()
