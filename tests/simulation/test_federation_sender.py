"""The federation sender through randomised hours of trouble, each replayable from its seed."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tcprepl.federation.sending.backoff import BackoffPolicy
from tcprepl.federation.wire.answer import Answer
from tcprepl.federation.wire.edu import build_edu, edu_row
from tests.federation_world import World
from tests.harness import FULL

#: Remotes that are down at once.
DESTINATIONS = 10_000 if FULL else 2_000


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Format no logs: there are thousands of failures on purpose."""
    with structlog.testing.capture_logs():
        yield


SEEDS = range(int(os.environ.get("TCPREPL_SEEDS", "25")))
MODES = [
    *("ok", "500", "502", "429", "413", "hang", "reset", "lost", "dead", "flaky", "401", "404"),
    "page",
]


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_in_any_trouble(tmp_path: Path, seed: int) -> None:
    """Unkeyed EDUs arrive, the last of each key arrives, whatever fails or is killed."""
    world = World(tmp_path / "outbox.sqlite", seed)
    chance = world.chance
    for _ in range(chance.randrange(60, 200)):
        step = chance.randrange(100)
        if step < 60:
            for _ in range(chance.randrange(1, 12)):
                world.publish()
        elif step < 80:
            world.run(chance.choice([0.0, 0.005, 0.02, 0.3, 2.0, 20.0]))
        elif step < 90:
            remote = world.remote(chance.choice(world.names))
            remote.mode = chance.choice(MODES)
            remote.max_edus = chance.choice([1, 2, 5, 30])
            if chance.random() < 0.5:
                remote.poison = set(range(world.number, world.number + chance.randrange(30)))
                remote.poison_answer = Answer(chance.choice([400, 403, 413, 500, 502]), b"{}")
        elif step < 94:
            world.kill()
            world.boot()
        elif step < 96:
            world.refuse_disk = not world.refuse_disk
        elif step < 98:
            world.sender.remote_server_up(chance.choice(world.names))
        else:
            world.run(chance.uniform(600, 4 * 3600))
    world.heal()
    world.check_settled()
    world.kill()


def test_the_last_of_each_key_arrives_even_if_it_would_expire(tmp_path: Path) -> None:
    """Without trouble nothing expires: the newest typing and presence are delivered."""
    world = World(tmp_path / "outbox.sqlite", 1)
    for _ in range(400):
        world.publish()
        world.run(0.01)
    world.run(30)
    world.check_settled()
    last: dict[tuple[str, str, str], int] = {}
    for name, remote in world.remotes.items():
        for edu_type, content in remote.deliveries:
            for push in content.get("push", ()):
                last[name, edu_type, push["user_id"]] = int(push["status_msg"])
            if "key" in content:
                last[name, edu_type, content["key"]] = content["n"]
    assert {key: number for key, (number, _) in world.newest.items()} == last
    world.kill()


def test_a_remote_that_is_dead_for_hours_gets_what_counts_and_nothing_stale(
    tmp_path: Path,
) -> None:
    """After hours to-device messages arrive in order, and typing of then does not."""
    world = World(tmp_path / "outbox.sqlite", 2, destinations=2)
    world.remote(world.names[0]).mode = "dead"
    for _ in range(300):
        world.publish()
        world.run(30)
    remote = world.remote(world.names[0])
    assert not remote.deliveries
    world.run(3600)
    world.heal()
    world.check_settled()
    messages = [c["n"] for kind, c in remote.deliveries if kind == "m.direct_to_device"]
    assert messages == sorted(messages)
    assert len(messages) > 20
    assert not [kind for kind, _ in remote.deliveries if kind in ("m.typing", "m.presence")]
    world.kill()


def test_the_same_transaction_is_sent_again_after_a_kill(tmp_path: Path) -> None:
    """What was in flight keeps its id and its body; the remote takes it once."""
    world = World(tmp_path / "outbox.sqlite", 3, destinations=2)
    remote = world.remote(world.names[0])
    remote.mode = "lost"
    while not remote.accepted:
        world.publish()
        world.run(0.2)
    world.kill()
    remote.mode = "ok"
    world.boot()
    world.run(700)
    assert remote.requests > len(remote.accepted)
    world.heal()
    world.check_settled()
    world.kill()


@pytest.mark.slow
def test_many_destinations_that_are_down_cost_no_busy_work(tmp_path: Path) -> None:
    """One timer serves them all, memory per destination is small, and all is sent in the end."""
    world = World(
        tmp_path / "outbox.sqlite",
        4,
        destinations=DESTINATIONS,
        max_concurrent=50,
        backoff=BackoffPolicy(),
    )
    for name in world.names:
        world.remote(name).mode = "dead"
        world.number += 1
        edu = build_edu("here.example", name, "m.direct_to_device", {"n": world.number})
        world.wanted.add((name, world.number))
        world.rows.append((len(world.rows) + 1, edu_row(edu)))
    remotes = [world.remote(name) for name in world.names]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    world.deliver()
    for _ in range(2_000):
        world.clock.advance(0.25)
        if all(remote.requests for remote in remotes):
            break
    gc.collect()
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert all(remote.requests for remote in remotes)
    assert world.sender._attempts.held == 0
    assert len(world.clock.getDelayedCalls()) <= 60
    assert used / DESTINATIONS < 3_000
    # In the two hours that follow each is tried a few times, and nothing runs in between.
    before_hours = sum(remote.requests for remote in remotes)
    for _ in range(2 * 3600 // 30):
        world.clock.advance(30)
    assert sum(remote.requests for remote in remotes) - before_hours <= DESTINATIONS * 14
    for remote in remotes:
        remote.mode = "ok"
    for name in world.names:
        world.sender.remote_server_up(name)
    for _ in range(2_000):
        world.clock.advance(0.25)
        if not world.sender.pending():
            break
    world.run(1)
    world.check_settled()
    world.kill()
