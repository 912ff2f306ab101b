"""A relay follows the newest Synapse over Redis: every row, resumed, none twice."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http.client import HTTPException

import pytest

from tests.harness import pause
from tests.interop.activity import People
from tests.interop.processes import wait_until
from tests.interop.relaying import (
    ByPair,
    Fleet,
    Relay,
    StubbornRedis,
    by_pair,
    row_of,
    tokens_of,
)
from tests.interop.servers import Postgres
from tests.interop.synapse import ApiError
from tests.interop.wire import RedisWire, Wire

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

#: Streams that a run of the people moves on the newest release, and who writes them.
MOVED = {
    ("account_data", "w1"),
    ("device_lists", "master"),
    ("events", "master"),
    ("presence", "w1"),
    ("push_rules", "master"),
    ("pushers", "master"),
    ("receipts", "master"),
    ("to_device", "master"),
    ("typing", "master"),
}


@dataclass
class Stage:
    """A Synapse with a worker, a relay of it, and a plain subscriber to compare with."""

    fleet: Fleet
    relay: Relay
    redis: StubbornRedis
    plain: RedisWire

    def wait_level(self) -> ByPair:
        """Wait until the relay holds all that the plain subscriber saw; return that."""

        def level() -> ByPair | None:
            seen = by_pair(self.plain.lines)
            held = self.relay.positions()
            ends = {
                pair: int(lines[-1].split(b" ", 4)[3])
                for pair, lines in seen.items()
                if lines[-1].split(b" ", 4)[3] != b"batch"
            }
            behind = [pair for pair, end in ends.items() if held.get(pair, 0) < end]
            return None if behind or len(ends) < len(seen) else seen

        return wait_until("the relay holds what was published", level)

    def wait_at_rest(self) -> tuple[dict[tuple[str, str], int], int]:
        """Wait until nothing moves: Synapse says this and that by itself.

        Returns:
            Where the relay is, and how many lines the plain subscriber has seen up to there.
        """

        def rest() -> tuple[dict[tuple[str, str], int], int] | None:
            self.wait_level()
            seen = len(self.plain.lines)
            held = self.relay.positions()
            again = self.relay.positions()
            return (held, seen) if held == again and seen == len(self.plain.lines) else None

        return wait_until("nothing moves", rest, interval_s=0.5)


@pytest.fixture(scope="module", params=["newest"])
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """Yield a running stage."""
    directory = tmp_path_factory.mktemp("relay")
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres.start())
        redis = stack.enter_context(StubbornRedis(directory))
        fleet = stack.enter_context(Fleet(request.param, postgres, redis))
        url = f"redis://127.0.0.1:{redis.port}"
        relay = stack.enter_context(
            Relay(fleet.main.server_name, directory, url, *fleet.relay_options())
        )
        wait_until("both writers are known", lambda: _writers(relay) >= {"master", "w1"})
        plain = stack.enter_context(RedisWire(redis.port, fleet.main.server_name))
        yield Stage(fleet, relay, redis, plain)


def _writers(relay: Relay) -> set[str]:
    return {instance for _, instance in relay.positions()}


def once(found: ByPair) -> ByPair:
    """Return *found* without what a busy Synapse said twice, token and all.

    It does so with `caches` now and then, with a row or with a few that follow one another. A relay
    serves it once.
    """
    return {
        pair: [
            line
            for at, line in enumerate(lines)
            if line.split(b" ", 4)[3] == b"batch" or line not in lines[:at]
        ]
        for pair, lines in found.items()
    }


def level(wire: Wire, relay: Relay, pairs: Iterable[tuple[str, str]]) -> bool:
    """Return whether a reader has come to where the relay is."""
    told: dict[tuple[str, str], int] = {}
    for line in wire.lines:
        words = line.decode().split(" ", 4)
        if words[0] in ("RDATA", "POSITION") and words[3] != "batch":
            told[words[1], words[2]] = int(words[3] if words[0] == "RDATA" else words[4])
    positions = relay.positions()
    return all(told.get(pair, -1) >= positions[pair] for pair in pairs)


def moved(lines: ByPair) -> set[tuple[str, str]]:
    """Return the pairs that have rows."""
    return {pair for pair, found in lines.items() if found}


def test_reader_of_the_relay_sees_every_row_that_a_plain_subscriber_sees(stage: Stage) -> None:
    with Wire(stage.relay.port) as wire:
        wire.send("REPLICATE")
        wire.wait_for("POSITION account_data w1 ")
        before = len(stage.plain.lines)
        people = People(stage.fleet.main)
        people.act()
        people.alice.call("GET", "/sync", timeout="0")
        wait_until(
            "every stream has moved",
            lambda: moved(by_pair(stage.plain.lines[before:])) >= MOVED,
        )
        seen = stage.wait_level()
        shown = wait_until(
            "the reader has it",
            lambda: _same(by_pair(wire.lines), once(by_pair(stage.plain.lines[before:]))),
        )
        assert moved(shown) >= MOVED
        announced = {tuple(line.split()[1:3]) for line in wire.lines if b"POSITION" in line}
        assert {(s.encode(), i.encode()) for s, i in seen} <= announced


def _same(ours: ByPair, theirs: ByPair) -> ByPair | None:
    return ours if ours == theirs else None


def test_reader_that_was_away_resumes_with_nothing_missing(stage: Stage) -> None:
    held, before = stage.wait_at_rest()
    people = People(stage.fleet.main)
    people.act()
    wait_until(
        "every stream has moved", lambda: moved(by_pair(stage.plain.lines[before:])) >= MOVED
    )
    stage.wait_level()
    with Wire(stage.relay.port) as wire:
        wire.send(*(f"REPLICATE {s} {i} {token}" for (s, i), token in sorted(held.items())))
        wait_until(
            "the reader has all of it, and nothing else",
            lambda: by_pair(wire.lines) == once(by_pair(stage.plain.lines[before:])),
        )
        assert not [line for line in wire.lines if line.startswith(b"ERROR")]


def test_relay_goes_on_after_its_own_restart(stage: Stage) -> None:
    held, before = stage.wait_at_rest()
    assert stage.relay.stop() == 0
    people = People(stage.fleet.main)
    people.act()
    wait_until(
        "every stream has moved", lambda: moved(by_pair(stage.plain.lines[before:])) >= MOVED
    )
    stage.relay.start()
    stage.relay.wait_up()
    stage.wait_level()
    missed = by_pair(stage.plain.lines[before:])
    with Wire(stage.relay.port) as wire:
        wire.send(*(f"REPLICATE {s} {i} {token}" for (s, i), token in sorted(held.items())))
        wait_until("the reader is level", lambda: level(wire, stage.relay, held))
        shown = by_pair(wire.lines)
    # Of what changed often Synapse's tables, and so its HTTP, know only how it is now.
    for pair in MOVED:
        if pair[0] == "typing":  # it is read anew, under tokens that go on
            assert row_of(shown[pair][-1]) == row_of(missed[pair][-1])
            continue
        assert shown[pair][-1] == missed[pair][-1]
        if pair[0] != "events":
            assert [line for line in missed[pair] if line in shown[pair]] == shown[pair]
    assert stage.relay.link()["gaps"] == 0


def test_kills_lose_and_repeat_nothing(stage: Stage) -> None:
    stage.wait_level()
    dice = random.Random(1_163)
    before = stage.relay.positions()
    with Wire(stage.relay.port) as wire:
        wire.send("REPLICATE * * 0")
        wait_until("the reader is level", lambda: level(wire, stage.relay, before))
        held = {pair: lines for pair, lines in by_pair(wire.lines).items() if pair in before}
    people = People(stage.fleet.main)
    people.act()
    for victim in dice.sample(["worker", "redis", "relay"], 3):
        acting = threading.Thread(target=_act, args=(people,))
        acting.start()
        pause(dice.uniform(0.05, 0.5))
        if victim == "worker":
            stage.fleet.worker.kill()
            stage.fleet.start_worker()
        elif victim == "redis":
            stage.redis.kill()
            stage.redis.start()
        else:
            stage.relay.kill()
            stage.relay.start()
        acting.join()
    with RedisWire(stage.redis.port, stage.fleet.main.server_name) as plain:
        stage.plain.close()
        stage.plain = plain
        stage.relay.wait_up()
        plain.publish("REPLICATE")  # everybody says where it is, to the relay as well
        wait_until("the relay is where the writers are", lambda: _level_with(stage.relay, plain))
        with Wire(stage.relay.port) as wire:
            wire.send("REPLICATE * * 0")
            wait_until("the reader is level", lambda: level(wire, stage.relay, before))
            shown = by_pair(wire.lines)
    for pair, lines in shown.items():
        tokens = tokens_of(lines)
        assert tokens == sorted(set(tokens)), pair
        assert lines[: len(held.get(pair, []))] == held.get(pair, []), pair
    assert stage.relay.link()["gaps"] == 0


def _act(people: People) -> None:
    """Do what can be done; requests that a killed process should have answered fail."""
    with suppress(ApiError, OSError, HTTPException):
        people.act()


def _level_with(relay: Relay, plain: RedisWire) -> bool:
    held = relay.positions()
    said = [line.decode().split() for line in plain.lines if line.startswith(b"POSITION ")]
    writers = {words[2] for words in said}
    return writers >= {"master", "w1"} and all(
        held.get((words[1], words[2]), -1) >= int(words[4]) for words in said
    )
