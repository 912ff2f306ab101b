"""A handful of simulated worlds; ``make simulate MINUTES=10`` runs as many as you like."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.harness import FULL
from tests.invariants import Told
from tests.simulation.machines import Broken
from tests.simulation.unmended import MENDS
from tests.simulation.world import (
    BESIDES,
    HAPPENINGS,
    Failed,
    Step,
    World,
    entered,
    play,
    schedule,
    shrunk,
)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5 if FULL else 1))
def test_every_promise_is_kept(seed: int) -> None:
    """Whatever happens to whom; ``make simulate`` says how to have a failure with fewer steps."""
    play(seed, schedule(seed, rounds=3 if FULL else 1))


@pytest.mark.slow
def test_a_seed_is_a_history() -> None:
    """Twice the same: every call at the same moment, and the same things met."""
    steps = schedule(1, rounds=1, steps=8)
    first, second = play(1, steps), play(1, steps)
    assert first == second
    assert first.coverage


def test_every_kind_of_step_is_in_the_schedules() -> None:
    met = {step.what for seed in range(20) for step in schedule(seed)}
    assert met == {*HAPPENINGS, *BESIDES}


def test_what_happens_besides_leaves_all_else_as_it_is() -> None:
    """Else a seed that shows something would show something else with each new kind of step."""
    with_them, without = schedule(3), schedule(3, only=list(HAPPENINGS))
    assert [step for step in with_them if step.what not in BESIDES] == without
    numbers = [step.number for step in with_them]
    assert len(set(numbers)) == len(numbers)
    assert {step.what for step in schedule(3, only=["queue", *BESIDES])} <= {
        *BESIDES,
        *("queue", "quiet"),
    }


@pytest.mark.slow
def test_a_failure_is_found_and_made_smaller() -> None:
    """With a mend taken out, few steps are left that show it, and they show it each time."""
    mend = MENDS["what a failed handler wrote is undone"]
    steps = [
        Step(0, "mood", 0, 0.0),
        Step(1, "type", 1, 1.0),
        Step(2, "publish", 5, 5.0),
        Step(3, "quiet", 0, 0.0),
    ]
    with mend.removed():
        with pytest.raises(Failed, match="seed 5, at step 3") as caught:
            play(5, steps)
        few = shrunk(5, steps, caught.value, most=4)
    assert [step.what for step in few] == ["mood", "publish", "quiet"]


@pytest.mark.slow
def test_readers_of_an_emptied_relay_hear_of_what_is_damaged_upstream(tmp_path: Path) -> None:
    """Those who had the rows before, too: the relay cannot say that they are still good."""
    world = World(3, tmp_path)
    with entered(world):
        try:
            world.begin()
            for number in range(4):
                world.happen(Step(number, "publish", number, 1.0))
            world.happen(Step(4, "quiet", 0, 0.0))
            world.logs = [world.server]
            world.happen(Step(5, "damage", 1, 1.0))
            world.logs = [world.server, *world.relays, world.bus]
            world.relays[0].wipe()
            world.happen(Step(6, "quiet", 0, 0.0))
            ((pair, tokens),) = world.server.damaged.items()
            (token,) = tokens
            for diary in (world.workers[2].diaries()[pair], world.pollers[1].diaries[pair[0]]):
                gaps = [entry for entry in diary if isinstance(entry, Told)]
                assert any((gap.known or 0) < token <= gap.token for gap in gaps), diary
        finally:
            world.close()


@pytest.mark.slow
@pytest.mark.parametrize("mended", [True, False])
def test_a_relay_whose_disk_refused_knows_its_upstreams_incarnation(
    tmp_path: Path, mended: bool
) -> None:
    """Else it is sent back to where the one of before ended, and gives rows a second time."""
    mend = MENDS["a relay is in an incarnation once its disk says so"]
    world = World(3, tmp_path)
    relay, server = world.relays[0], world.server
    with entered(world), nullcontext() if mended else mend.removed():
        try:
            world.begin()
            for number in range(4):
                world.happen(Step(number, "publish", number, 1.0))
            world.happen(Step(4, "quiet", 0, 0.0))
            relay.disk.mood = "full"
            server.kill(restart_s=0.0)
            world.universe.run(10)
            for number in range(5, 9):
                world.happen(Step(number, "publish", number, 1.0))
            assert relay.disk.refused
            relay.disk.mood = "ok"
            world.universe.run(30)
            for number in range(9, 13):
                world.happen(Step(number, "publish", number, 1.0))
            world.happen(Step(13, "quiet", 0, 0.0))
            relay.kill(restart_s=0.0)
            with nullcontext() if mended else pytest.raises(AssertionError, match="held twice"):
                world.happen(Step(14, "quiet", 0, 0.0))
        finally:
            world.close()


@pytest.mark.slow
@pytest.mark.parametrize("drained", [True, False])
def test_senders_that_change_have_to_stop_at_the_same_row(tmp_path: Path, drained: bool) -> None:
    """Else an EDU has no sender: it was not its sender's own when it was read."""
    world = World(5, tmp_path)
    with entered(world):
        try:
            world.begin()
            world.senders[0].disk.mood = "full"  # it reads, and nothing is in its outbox
            world.happen(Step(0, "queue", 1, 5.0))
            world.senders[0].disk.mood = "ok"
            if drained:
                world.universe.run(60)
            for sender in world.senders:
                sender.kill(restart_s=None)
            world.sender_names = world.server.send_queue.senders = ("fed2", "fed1")
            with nullcontext() if drained else pytest.raises(Broken, match="were lost"):
                world.happen(Step(1, "quiet", 0, 0.0))
        finally:
            world.close()
