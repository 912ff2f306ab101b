"""Typing and presence through random days: see `tests.simulation.ephemeral`.

``SEEDS=5000`` runs so many seeds; ``SEED=17`` runs that one. A failure names its seed.
"""

from __future__ import annotations

import logging
import os
import random

import pytest
import structlog

from tests.harness import FULL
from tests.simulation.ephemeral import World

#: Steps of a history.
STEPS = 60
#: Seeds in one test, so that a run shows how far it is.
CHUNK = 25

only = os.environ.get("SEED")
count = int(os.environ.get("SEEDS", "100" if FULL else "25"))
SEEDS = (
    [range(int(only), int(only) + 1)]
    if only
    else [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
)


def run(seed: int) -> World:
    """Run one history to its end."""
    world = World(seed)
    try:
        for _ in range(STEPS):
            world.step()
        world.settle()
    except AssertionError as error:
        raise AssertionError(f"seed {seed} (SEED={seed} replays it): {error}") from error
    finally:
        world.close()
    return world


@pytest.fixture(autouse=True)
def quiet() -> object:
    """Keep the warnings of lost timers and refused rows to ourselves."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("seeds", SEEDS, ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_nobody_stays_too_long_and_followers_end_equal(seeds: range) -> None:
    for seed in seeds:
        run(seed)


def test_a_seed_is_a_history() -> None:
    """Two runs of one seed end in the same state, to the last token and random number."""
    seed = random.Random(0).randrange(10_000)
    first, second = run(seed), run(seed)
    for one, two in zip(first.nodes, second.nodes, strict=True):
        assert one.typing.newest == two.typing.newest
        assert one.presence.newest == two.presence.newest
    assert first.clock.seconds() == second.clock.seconds()
    assert first.chance.random() == second.chance.random()
