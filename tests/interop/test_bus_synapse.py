"""A real, unmodified Synapse of six processes whose Redis is the bus."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPException
from typing import Any

import pytest

from tests.interop.busing import BigFleet, Bus
from tests.interop.processes import wait_until
from tests.interop.servers import Postgres
from tests.interop.synapse import ApiError, User
from tests.interop.wire import Wire

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]


class Stage:
    """A Synapse with the bus, and two people in a room."""

    def __init__(self, fleet: BigFleet, bus: Bus) -> None:
        self.fleet = fleet
        self.bus = bus
        self.alice = fleet.main.register("alice")
        self.bob = fleet.main.register("bob")
        self.rooms = [self.alice.create_room(preset="public_chat") for _ in range(4)]
        for room in self.rooms:
            self.bob.join(room)
        self.reader = fleet.at("gw", self.bob)


@pytest.fixture(scope="module", params=["newest"])
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """Yield a running stage."""
    directory = tmp_path_factory.mktemp("bus")
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres.start())
        bus = Bus("to be named", directory)
        fleet = BigFleet(request.param, postgres, bus)
        bus.server_name = fleet.main.server_name
        for name, port in [("main", fleet.main.http_replication_port), *fleet.ports.items()]:
            bus.options += ["--instance", f"{name}=http://127.0.0.1:{port}"]
        stack.enter_context(bus)
        stack.enter_context(fleet)
        yield Stage(fleet, bus)


def messages_of(answer: Any) -> set[str]:
    """Return the texts of the messages in a sync."""
    return {
        event["content"]["body"]
        for room in answer.get("rooms", {}).get("join", {}).values()
        for event in room["timeline"]["events"]
        if event["type"] == "m.room.message" and "body" in event["content"]
    }


def kinds_of(answer: Any) -> set[str]:
    """Return which kinds of things beside messages are in a sync."""
    found = {event["type"] for event in answer.get("to_device", {}).get("events", ())}
    found |= {event["type"] for event in answer.get("presence", {}).get("events", ())}
    for room in answer.get("rooms", {}).get("join", {}).values():
        found |= {event["type"] for event in room["ephemeral"]["events"]}
    return found


#: As many messages of a room in one sync as Synapse gives out; by itself it leaves out all but ten.
_FILTER = '{"room":{"timeline":{"limit":100}}}'


class Following:
    """A user who syncs at the reader, and keeps what came."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.messages: set[str] = set()
        self.kinds: set[str] = set()
        self._since = str(user.call("GET", "/sync", timeout="0")["next_batch"])

    def look(self) -> Following:
        """Sync once more."""
        answer = self.user.call("GET", "/sync", timeout="500", since=self._since, filter=_FILTER)
        self._since = str(answer["next_batch"])
        self.messages |= messages_of(answer)
        self.kinds |= kinds_of(answer)
        return self


def test_everything_that_a_client_does_reaches_a_client_of_another_process(stage: Stage) -> None:
    following = Following(stage.reader)
    alice = stage.alice
    sent = set()
    for number in range(12):
        event = alice.send(stage.rooms[number % 4], f"m{number}")
        sent.add(f"m{number}")
    stage.fleet.at("tw", alice).set_typing(stage.rooms[0])
    stage.fleet.at("tw", alice).send_to_device("x.test", stage.bob, {"a": 1})
    stage.fleet.at("ew1", alice).set_presence("unavailable", "away")
    stage.fleet.at("ew2", alice).read(stage.rooms[3], event)
    wanted = {"m.typing", "x.test", "m.presence", "m.receipt"}
    wait_until(
        "all of it is in a sync",
        lambda: following.look().messages >= sent and following.kinds >= wanted,
    )
    writers = {(s["stream"], s["instance"]) for s in stage.bus.status()["streams"]}
    assert writers >= {("events", "ew1"), ("events", "ew2"), ("typing", "tw"), ("to_device", "tw")}
    names = {peer["name"] for peer in stage.bus.status()["peers"]}
    assert names >= {"ew1", "ew2", "tw", "gw", "fed1"}
    assert stage.fleet.complaints() == []


def test_every_row_is_in_the_log_once_and_in_order(stage: Stage) -> None:
    with Wire(stage.bus.line_port) as wire:
        wire.send("REPLICATE * * 0")
        stage.alice.send(stage.rooms[0], "last")
        wait_until("rows come", lambda: any(b'"m.room.message"' in line for line in wire.lines))
        told: dict[bytes, int] = {}
        for line in wire.lines:
            if line.startswith(b"RDATA ") and b" batch " not in line:
                _, name, instance, token, _ = line.split(b" ", 4)
                pair = name + b" " + instance
                assert int(token) > told.get(pair, 0), line
                told[pair] = int(token)


def test_what_was_acknowledged_is_in_a_sync_after_the_bus_was_killed(stage: Stage) -> None:
    following = Following(stage.reader)
    acknowledged: set[str] = set()
    stop = threading.Event()

    def talk(user: User, name: str) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with suppress(ApiError, OSError, HTTPException):
                user.send(stage.rooms[number % 4], f"{name}{number}")
                acknowledged.add(f"{name}{number}")

    people = [stage.alice.at(stage.fleet.main.client_port), stage.fleet.at("gw", stage.bob)]
    talking = [
        threading.Thread(target=talk, args=(user, f"k{number}-"), daemon=True)
        for number, user in enumerate(people)
    ]
    for thread in talking:
        thread.start()
    wait_until("they talk", lambda: len(acknowledged) > 10)
    for _ in range(2):
        stage.bus.kill()
        stage.bus.start()
        before = len(acknowledged)
        wait_until("they talk again", lambda before=before: len(acknowledged) > before + 10)
        following.look()  # before there is more than one sync can hold
    stop.set()
    for thread in talking:
        thread.join()
    stage.alice.send(stage.rooms[0], "and on")
    wait_until(
        "everything acknowledged is in a sync",
        lambda: following.look().messages >= acknowledged,
    )
