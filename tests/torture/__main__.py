"""``python -m tests.torture [--minutes 60] [--seed N]``: torture real processes, and say what held.

A round is a world of its own, in a directory of its own: processes that publish, serve, relay,
send and follow, under SIGKILL (at any moment, during starts, and in the middle of writes,
checkpoints, trims, backups, restores and migrations), operators who pause and purge, SIGSTOP,
wires that are cut, freeze and drip, disks that are full, refuse fsync and write short, missing
descriptors, wall clocks that jump, copies that are restored, and flipped bits. When it ends, all
faults end, everybody gets the time to come level, and everything is compared (`tests.invariants`).
The exit code is 0 if nothing was wrong, and 1 if something was: the directory of the round is kept
and named, and ``--seed`` with its seed begins with the same choices. It is 2 if a program is
missing (without PostgreSQL or Redis the worlds with them are left out, which is said), or if a run
of ten minutes and more has not met every fault that it has to; and 130 if it was interrupted: what
was done by then is said.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tests.interop.environments import SetupError, find_program
from tests.torture import shim
from tests.torture.faults import Tormentor
from tests.torture.layouts import BusWorld, PostgresqlWorld, RedisWorld
from tests.torture.sending import TcpWorld
from tests.torture.world import World

LAYOUTS: dict[str, type[World]] = {
    world.layout: world for world in (TcpWorld, RedisWorld, BusWorld, PostgresqlWorld)
}
#: What a layout needs besides Python: programs, and their Debian packages.
NEEDS = {
    "redis": [("redis-server", "redis-server")],
    "postgresql": [
        ("psql", "postgresql-client"),
        ("postgres", "postgresql"),
        ("initdb", "postgresql"),
    ],
}
#: What has to have happened in `ENOUGH_MINUTES`, by the layout that has to be among the others.
MUST_BE_MET = {
    "": (
        "kills",
        "killed in a start",
        "killed in a write",
        "killed in the moment behind a sync",
        "killed in a checkpoint",
        "freeze",
        "end",
        "cut wire",
        "frozen wire",
        "dripping wire",
        "met a bad disk",
        "full disk",
        "failing fsync",
        "failing reads",
        "failing checkpoints",
        "short writes",
        "no descriptors",
        "wall clock",
    ),
    "tcp": (
        "killed in a trim",
        "failing trims",
        "copies",
        "killed in backup",
        "restore",
        "killed in restore",
        "bits flipped",
        "producer replaced",
        "destinations paused",
        "destinations resumed",
        "killed when a destination was paused",
        "EDUs purged",
    ),
    "postgresql": ("migrate", "killed in migrate", "database killed", "connections ended"),
}
ENOUGH_MINUTES = 10.0
#: How long a round tortures; with less time, each layout gets its share.
ROUND_S = 40.0
#: As a shell says it of who is interrupted.
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Torture, report, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=float(os.environ.get("MINUTES", "60")),
        help="for how long; each layout gets one round in any case (MINUTES, else 60)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=int(os.environ.get("SEED", "0")) or None,
        help="of the first round, one more of each that follows (SEED, else by chance)",
    )
    parser.add_argument(
        "--layout",
        choices=sorted(LAYOUTS),
        action="append",
        help="only this kind of world; may be said again (else all that are possible here)",
    )
    parser.add_argument("--where", type=Path, help="where directories of rounds go")
    options = parser.parse_args(argv)
    layouts = options.layout or list(LAYOUTS)
    out = {layout: why for layout in layouts if (why := missing(layout))}
    if out and options.layout:
        parser.error("; ".join(out.values()))
    try:
        find_program("cc", "gcc")
    except SetupError as error:
        parser.error(str(error))
    for layout, why in out.items():
        print(f"{layout} is left out: {why}", flush=True)
    layouts = [layout for layout in layouts if layout not in out]
    seed = options.seed or random.SystemRandom().randrange(1, 1_000_000)
    where = options.where or Path(tempfile.mkdtemp(prefix="tcprepl-torture-"))
    where.mkdir(parents=True, exist_ok=True)
    seconds = min(ROUND_S, options.minutes * 60 / len(layouts) / 3)
    done = Done()
    began = time.monotonic()
    library = shim.build(where)
    interrupted = False
    try:
        while done.rounds < len(layouts) or time.monotonic() - began < options.minutes * 60:
            number = done.rounds
            layout = layouts[number % len(layouts)]
            done.round(layout, where / f"round{number}", library, seed + number, seconds)
    except KeyboardInterrupt:
        interrupted = True
    report(done.tally, done.compared, done.rounds, done.tortured_s, done.failed)
    never = unmet(done.tally, layouts) if options.minutes >= ENOUGH_MINUTES else []
    if never and not interrupted:
        print(f"never happened, and has to: {', '.join(never)}")
    if out:
        print(f"left out: {', '.join(out)}")
    if not done.failed and options.where is None:
        shutil.rmtree(where, ignore_errors=True)
    if interrupted:
        print("interrupted")
    if done.failed:
        return 1
    return INTERRUPTED if interrupted else 2 if never else 0


def unmet(tally: Mapping[str, int], layouts: Collection[str]) -> list[str]:
    """Return what never happened in these layouts, and has to."""
    return [
        name
        for layout, names in MUST_BE_MET.items()
        if layout in ("", *layouts)
        for name in names
        if not tally.get(name)
    ]


def missing(layout: str) -> str:
    """Return what a layout needs and is not here; "" if nothing is missing."""
    try:
        for program, package in NEEDS.get(layout, ()):
            find_program(program, package)
    except SetupError as error:
        return str(error)
    return ""


class Done:
    """What was done so far.

    Attributes:
        rounds: How many rounds.
        tally: How often what.
        compared: How many rows were compared.
        tortured_s: How long there were faults.
        failed: What was wrong.
    """

    def __init__(self) -> None:
        self.rounds = self.compared = 0
        self.tally: Counter[str] = Counter()
        self.tortured_s = 0.0
        self.failed: list[str] = []

    def round(self, layout: str, directory: Path, library: Path, seed: int, seconds: float) -> None:
        """Torture one world, and say what came of it; whatever fails in it is wrong."""
        world = LAYOUTS[layout](directory, library, seed)
        start = time.monotonic()
        try:
            with world:
                start = time.monotonic()
                Tormentor(world, self.tally).run(seconds)
                self.tortured_s += time.monotonic() - start
                world.check()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
            if not isinstance(error, AssertionError):
                traceback.print_exc()
            world.failures.append(f"{type(error).__name__}: {error}")
        print(
            f"round {self.rounds}: {layout}, seed {seed}: {world.tally['kills']} kills, "
            f"{world.compared} rows compared, "
            + ("; ".join(["WRONG", *world.failures]) if world.failures else "good"),
            flush=True,
        )
        if world.failures:
            self.failed.append(f"round {self.rounds} ({layout}), seed {seed}, kept in {directory}")
            self.failed += [f"  {failure}" for failure in world.failures]
        else:
            shutil.rmtree(directory)
        self.tally += world.tally
        self.compared += world.compared
        self.rounds += 1


def report(
    tally: Counter[str], compared: int, rounds: int, tortured_s: float, failed: list[str]
) -> None:
    """Say what was done and what was found."""
    print(f"\n{rounds} rounds, {tortured_s / 60:.1f} minutes of faults")
    for name, times in sorted(tally.items()):
        print(f"  {name:36} {times:>7}")
    print(f"  {'kills a minute':36} {tally['kills'] / max(tortured_s / 60, 0.01):>7.1f}")
    print(f"  {'rows compared':36} {compared:>7}")
    print("\n".join(["WRONG:", *failed]) if failed else "nothing lost, nothing twice: good")


if __name__ == "__main__":
    sys.exit(main())
