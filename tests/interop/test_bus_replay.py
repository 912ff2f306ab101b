"""A real Synapse of six processes on the bus: wires are cut, processes stopped, the bus killed."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness import FULL
from tests.interop.busing import BigFleet, Bus
from tests.interop.complaints import is_of_a_lost_connection
from tests.interop.processes import wait_until
from tests.interop.servers import Postgres
from tests.interop.synapse import SynapseMain
from tests.interop.traffic import Following, Traffic
from tests.interop.wire import Cutter, Wire

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

NAMES = ("main", "ew1", "ew2", "tw", "gw", "fed1")


class Stage:
    """A Synapse, two people in rooms, and wires to what it takes for its Redis."""

    def __init__(self, fleet: BigFleet, bus: Any, wires: dict[str, Cutter]) -> None:
        self.fleet = fleet
        self.bus = bus
        self.wires = wires
        self.alice = fleet.main.register("alice")
        self.bob = fleet.main.register("bob")
        self.rooms = [self.alice.create_room(preset="public_chat") for _ in range(4)]
        for room in self.rooms:
            self.bob.join(room)

    def through(self, *disturbances: Callable[[Traffic], object]) -> Following:
        """Disturb what alice and bob do; what was acknowledged is in a sync at a worker."""
        following = Following(self.fleet.at("gw", self.bob))
        with Traffic(self.alice, self.rooms, self.bob, self.fleet.at) as traffic:
            self.go_on(traffic)
            for disturb in disturbances:
                disturb(traffic)
                self.go_on(traffic)
        wait_until(
            "everything acknowledged is in a sync",
            lambda: following.look().messages >= traffic.sent and following.told >= traffic.told,
        )
        return following

    def go_on(self, traffic: Traffic) -> None:
        """Wait until something of everything was done."""
        before = len(traffic.sent), len(traffic.told)
        wait_until(
            "they go on",
            lambda: len(traffic.sent) > before[0] + 5 and len(traffic.told) > before[1] + 5,
        )

    def cut(self, name: str, *, gently: bool) -> Callable[[Traffic], None]:
        """Return what cuts the wires of a process, and mends them after a while."""

        def cut(traffic: Traffic) -> None:
            marks = self.marks(name)
            wire = self.wires[name]
            (wire.part if gently else wire.cut)()
            before = len(traffic.told)
            wait_until("others go on", lambda: len(traffic.told) > before + 5)
            wire.mend()
            self.await_back(marks)

        return cut

    def marks(self, *names: str) -> dict[str, int]:
        """Return how long the logs of processes are."""
        return {name: len(self.log(name)) for name in names}

    def fetches(self, marks: dict[str, int]) -> list[str]:
        """Return what processes fetched from database or HTTP since then."""
        return [
            f"{name}: {line}"
            for name, after in marks.items()
            for line in re.findall(r"Fetching replication rows for .*", self.log(name)[after:])
        ]

    def log(self, name: str) -> str:
        """Return the log of a process."""
        return (self.fleet.main if name == "main" else self.fleet.workers[name]).log()

    def await_back(self, marks: dict[str, int]) -> None:
        """Wait until processes have subscribed again, and have been heard again."""
        for name, after in marks.items():
            wait_until(
                f"{name} is back",
                lambda name=name, after=after: "REPLICATE successfully" in self.log(name)[after:],
            )

    def restart(self, *, kill: bool) -> Callable[[Traffic], None]:
        """Return what ends the bus, and starts it again."""

        def restart(_: Traffic) -> None:
            marks = self.marks(*NAMES)
            (self.bus.kill if kill else self.bus.stop)()
            self.bus.start()
            self.await_back(marks)

        return restart

    def complaints(self) -> list[str]:
        """Return the errors in all logs, but for those of a lost connection to Redis itself.

        With redis-server in the place of the bus, and the same done to it, those are there, too:
        test_bus_late.py does that.
        """
        return [one for one in self.fleet.complaints() if not is_of_a_lost_connection(one)]


@contextmanager
def staged(directory: Path, make: Callable[[Path], Any]) -> Iterator[Stage]:
    """Run a Synapse on what *make* makes."""
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres.start())
        bus = make(directory)
        wires = {name: stack.enter_context(Cutter(bus.port)) for name in ("gw", "ew1")}
        through = {name: wire.port for name, wire in wires.items()}
        fleet = BigFleet("newest", postgres, bus, through)
        bus.server_name = fleet.main.server_name
        for name, port in [("main", fleet.main.http_replication_port), *fleet.ports.items()]:
            bus.options += ["--instance", f"{name}=http://127.0.0.1:{port}"]
        stack.enter_context(bus)
        stack.enter_context(fleet)
        yield Stage(fleet, bus, wires)


@pytest.fixture(scope="module", params=["newest"])
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """Yield a running stage on the bus."""
    assert request.param == "newest"
    with staged(tmp_path_factory.mktemp("bus"), lambda path: Bus("to be named", path)) as stage:
        yield stage


def test_known_processes_whose_wires_were_cut_fetch_nothing(stage: Stage) -> None:
    marks = stage.marks("gw", "ew1")
    following = stage.through(stage.cut("gw", gently=True), stage.cut("ew1", gently=True))
    assert stage.fetches(marks) == []
    assert following.kinds >= {"m.typing", "m.presence", "m.receipt", "x.told"}
    assert stage.alice.user_id in following.changed


def test_known_processes_fetch_nothing_after_the_bus_was_restarted(stage: Stage) -> None:
    marks = stage.marks(*NAMES)
    stage.through(stage.restart(kill=False))
    assert stage.fetches(marks) == []


def test_nothing_is_lost_when_the_bus_is_killed(stage: Stage) -> None:
    marks = stage.marks(*NAMES)
    stage.through(*[stage.restart(kill=True)] * (2 if FULL else 1))
    # What was on disk, and at that very moment not yet on its way, nobody knows to be missing.
    pairs = {re.findall(r"'(.*)' / (.*) between", line)[0] for line in stage.fetches(marks)}
    assert len(pairs) <= 3 * (2 if FULL else 1), pairs


def test_nothing_is_lost_with_wires_that_break_and_a_process_that_sleeps(stage: Stage) -> None:
    def freeze(traffic: Traffic) -> None:
        stage.wires["gw"].freeze()
        stage.go_on(traffic)
        stage.wires["gw"].mend()

    def sleep(traffic: Traffic) -> None:
        os.kill(stage.fleet.workers["ew2"].pid, signal.SIGSTOP)
        before = len(traffic.told)
        wait_until("others go on", lambda: len(traffic.told) > before + 20)
        os.kill(stage.fleet.workers["ew2"].pid, signal.SIGCONT)

    stage.through(stage.cut("gw", gently=False), freeze, sleep)


def test_every_row_is_in_the_log_once_and_in_order(stage: Stage) -> None:
    with Wire(stage.bus.line_port) as wire:
        wire.send("REPLICATE * * 0")
        stage.alice.send(stage.rooms[0], "the last of all")
        wait_until("rows come", lambda: any(b"$" in line for line in wire.lines[-50:]))
        told: dict[bytes, int] = {}
        for line in wire.lines:
            if line.startswith(b"RDATA ") and b" batch " not in line:
                _, name, instance, token, _ = line.split(b" ", 4)
                pair = name + b" " + instance
                assert int(token) > told.get(pair, 0), line
                told[pair] = int(token)
    (link,) = stage.bus.status()["links"]
    assert link["gaps"] == 0


def test_federation_goes_on_when_the_bus_is_killed(stage: Stage) -> None:
    with SynapseMain("newest", send_federation=True) as other:
        carol = other.register("carol")
        carol.call("POST", f"/join/{stage.rooms[0]}", {}, server_name=stage.fleet.main.server_name)
        following = Following(carol)
        sent: set[str] = set()

        def talk() -> None:
            for _ in range(5):
                text = f"over there {len(sent)}"
                stage.alice.send(stage.rooms[0], text)
                sent.add(text)

        talk()
        stage.bus.kill()
        stage.bus.start()
        talk()
        wait_until("all of it is there", lambda: following.look().messages >= sent)


def test_no_error_is_logged_but_of_connections_that_were_lost(stage: Stage) -> None:
    assert stage.complaints() == []
