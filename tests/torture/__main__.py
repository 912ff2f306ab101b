"""``python -m tests.torture [--minutes 60] [--seed N]``: torture real processes, and say what held.

A round is a world of its own, in a directory of its own: processes that publish, serve, relay,
send and follow, under SIGKILL (at any moment, during starts, and in the middle of writes), SIGSTOP,
wires that are cut, freeze and drip, disks that are full, refuse fsync and write short, missing
descriptors, wall clocks that jump, copies that are restored, and flipped bits. When it ends, all
faults end, everybody gets the time to come level, and everything is compared (`tests.invariants`).
The exit code is 0 if nothing was wrong; else the directory of the round is kept and named, and
``--seed`` with its seed begins with the same choices.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.torture import shim
from tests.torture.faults import Tormentor
from tests.torture.layouts import BusWorld, PostgresqlWorld, RedisWorld, TcpWorld
from tests.torture.world import World

LAYOUTS: dict[str, type[World]] = {
    world.layout: world for world in (TcpWorld, RedisWorld, BusWorld, PostgresqlWorld)
}
#: How long a round tortures; with less time, each layout gets its share.
ROUND_S = 40.0


def main() -> int:
    """Torture, report, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("MINUTES", "60")))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", "0")) or None)
    parser.add_argument("--layout", choices=sorted(LAYOUTS), action="append")
    parser.add_argument("--where", type=Path, help="where directories of rounds go")
    options = parser.parse_args()
    seed = options.seed or random.SystemRandom().randrange(1, 1_000_000)
    where = options.where or Path(tempfile.mkdtemp(prefix="tcprepl-torture-"))
    where.mkdir(parents=True, exist_ok=True)
    layouts = options.layout or list(LAYOUTS)
    seconds = min(ROUND_S, options.minutes * 60 / len(layouts) / 3)
    tally: Counter[str] = Counter()
    compared = 0
    failed: list[str] = []
    tortured_s = 0.0
    began = time.monotonic()
    library = shim.build(where)
    number = 0
    while number < len(layouts) or time.monotonic() - began < options.minutes * 60:
        layout = layouts[number % len(layouts)]
        directory = where / f"round{number}"
        with LAYOUTS[layout](directory, library, seed + number) as world:
            start = time.monotonic()
            Tormentor(world).run(seconds)
            tortured_s += time.monotonic() - start
            try:
                world.check()
            except AssertionError as error:
                world.failures.append(str(error))
        print(
            f"round {number}: {layout}, seed {seed + number}: {world.tally['kills']} kills, "
            f"{world.compared} rows compared, "
            + ("; ".join(["WRONG", *world.failures]) if world.failures else "good"),
            flush=True,
        )
        if world.failures:
            failed.append(f"round {number} ({layout}), seed {seed + number}, kept in {directory}")
            failed += [f"  {failure}" for failure in world.failures]
        else:
            shutil.rmtree(directory)
        tally += world.tally
        compared += world.compared
        number += 1
    report(tally, compared, number, tortured_s, failed)
    if not failed and options.where is None:
        shutil.rmtree(where)
    return 1 if failed else 0


def report(
    tally: Counter[str], compared: int, rounds: int, tortured_s: float, failed: list[str]
) -> None:
    """Say what was done and what was found."""
    print(f"\n{rounds} rounds, {tortured_s / 60:.1f} minutes of faults")
    for name, times in sorted(tally.items()):
        print(f"  {name:24} {times:>7}")
    print(f"  {'kills a minute':24} {tally['kills'] / max(tortured_s / 60, 0.01):>7.1f}")
    print(f"  {'rows compared':24} {compared:>7}")
    print("\n".join(["WRONG:", *failed]) if failed else "nothing lost, nothing twice: good")


if __name__ == "__main__":
    sys.exit(main())
