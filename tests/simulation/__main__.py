"""Run simulated worlds: ``python -m tests.simulation --minutes 10``.

A world is made from a seed and can be had again: ``--seed 17``. One that fails is made smaller,
and what is printed then runs just the steps that are left: ``--seed 17 --steps 3,9,25``. The exit
code is 0 if all was well, 1 if a promise was not kept, or the model of how readers resume refuses
what they went through (`--tapes`), 2 if something that is to happen never did
in a hundred worlds or more, or if the command line means nothing, 130 if it was interrupted: what
had happened by then is said.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.interop.environments import SetupError, find_program
from tests.simulation.recorded import recording
from tests.simulation.world import BESIDES, HAPPENINGS, Failed, play, schedule, shrunk

#: How many worlds there are if nothing else is said, and with how many minutes.
FEW, NO_END = 20, 1_000_000_000
#: As a shell says it of who is interrupted.
INTERRUPTED = 130


def report(coverage: Counter[tuple[str, str]]) -> None:
    """Print which fault met which state, and how often."""
    print("\nwhat happened, to whom in which state:")
    last = ""
    for (what, state), count in sorted(coverage.items()):
        print(f"  {what if what != last else '':<28} {state or '-':<44} {count:>8}")
        last = what


def fail(failed: Failed, seed: int, steps: list[int] | None) -> None:
    """Print a failure, and how to have it again."""
    print(f"\n{failed}", flush=True)
    if steps is None:
        few = shrunk(seed, schedule(seed), failed)
        numbers = ",".join(str(step.number) for step in few)
        print("these steps are enough:")
        for step in few:
            print(f"  {step.number:>4} {step.what:<20} then {step.after_s:g} s")
        print(f"again: python -m tests.simulation --seed {seed} --steps {numbers}")


def seeds_in(text: str, *, endless: bool = False) -> range:
    """Return the seeds that *text* names; "" is a few, or no end of them.

    Raises:
        ValueError: It names none.
    """
    first, dash, last = text.partition("-")
    if not dash:
        first, last = "0", str(int(text) - 1) if text else ""
    begin = int(first)
    found = range(begin, int(last) + 1 if last else begin + (NO_END if endless else FEW))
    if not found:
        raise ValueError(text)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument(
        "--seeds", default="", metavar="SEEDS", help="how many, or FIRST-LAST, or FIRST-; else 20"
    )
    parser.add_argument("--minutes", type=float, help="as many as that takes")
    parser.add_argument("--seed", type=int, help="this one, and say what happens")
    parser.add_argument("--steps", help="of the one seed only these steps: 3,9,25")
    parser.add_argument(
        "--only", default="", help="of one round, with no other kinds of steps: kill,publish"
    )
    parser.add_argument(
        "--tapes",
        type=Path,
        metavar="DIR",
        help="write there what each reader went through, and let spin say if the model allows it",
    )
    options = parser.parse_args(argv)
    if unknown := set(filter(None, options.only.split(","))) - {*HAPPENINGS, *BESIDES}:
        known = ", ".join((*HAPPENINGS, *BESIDES))
        parser.error(f"--only: not known: {', '.join(sorted(unknown))}; {known}")
    if options.seed is None and (options.steps or options.only):
        parser.error("--steps and --only are of one --seed")
    if options.minutes is not None and options.minutes <= 0:
        parser.error("--minutes: more than nothing")
    try:
        seeds = seeds_in(options.seeds, endless=options.minutes is not None)
    except ValueError:
        parser.error(f"--seeds {options.seeds}: say how many, FIRST-LAST or FIRST-")
    try:
        steps = [int(number) for number in options.steps.split(",")] if options.steps else None
    except ValueError:
        parser.error(f"--steps {options.steps}: numbers with commas between them")
    taping = Taping(options.tapes)
    if options.tapes is not None:
        try:
            find_program("spin", "spin")
            options.tapes.mkdir(parents=True, exist_ok=True)
        except (SetupError, OSError) as error:
            parser.error(f"--tapes {options.tapes}: {error}")
    if options.seed is not None:
        return one(options.seed, steps, options.only, taping)
    return many(seeds, options.minutes, taping)


class Taping:
    """Puts what the readers of worlds go through on tapes, if they are to be kept anywhere.

    Attributes:
        refused: How many of them the model refuses.
    """

    def __init__(self, where: Path | None = None) -> None:
        self.where = where
        self.refused = 0
        self._counts: Counter[str] = Counter()
        self._took_s = 0.0

    @contextmanager
    def world(self, seed: int) -> Iterator[None]:
        """Put one world on tapes."""
        if self.where is None:
            yield
            return
        with recording() as tapes:
            try:
                yield
            finally:
                began = time.monotonic()
                refused = tapes.write(self.where, seed)
                self._took_s += time.monotonic() - began
                self.refused += len(refused)
                self._counts += tapes.counts
                self._counts["tapes"] += len(tapes.steps())
                for path in refused:
                    print(f"the model refuses {path}", flush=True)

    def report(self) -> int:
        """Print what there was; return how many were refused."""
        if self.where is not None:
            print(f"\non tapes in {self.where}, of which the model refuses {self.refused}:")
            for what, count in sorted(self._counts.items()):
                print(f"  {what:<64} {count:>8}")
            print(f"written and read in {self._took_s:.1f} s")
        return self.refused


def one(seed: int, chosen: Collection[int] | None, only: str, taping: Taping) -> int:
    """Run one seed."""
    steps = schedule(seed, 1, only=only.split(",")) if only else schedule(seed)
    if chosen is not None:
        steps = [step for step in steps if step.number in chosen]
    try:
        with taping.world(seed):
            played = play(seed, steps)
    except Failed as failed:
        fail(failed, seed, [step.number for step in steps] if chosen or only else None)
        raise
    report(played.coverage)
    if taping.report():
        return 1
    print(f"seed {seed}: all is well; trace {played.trace:08x}")
    return 0


def many(worlds: range, minutes: float | None, taping: Taping) -> int:
    """Run seeds one after the other, and say how it went."""
    started, cpu_s = time.monotonic(), time.process_time()
    coverage: Counter[tuple[str, str]] = Counter()
    simulated_s, calls, seeds, failures = 0.0, 0, 0, 0
    interrupted = False
    try:
        for seed in worlds:
            if minutes is not None and time.monotonic() - started > minutes * 60:
                break
            try:
                with taping.world(seed):
                    played = play(seed)
            except Failed as failed:
                failures += 1
                seeds += 1
                fail(failed, seed, None)
                continue
            seeds += 1
            coverage += played.coverage
            simulated_s += played.simulated_s
            calls += played.steps
    except KeyboardInterrupt:
        interrupted = True
    took_s, cpu_s = time.monotonic() - started, time.process_time() - cpu_s
    report(coverage)
    met = {what for what, _ in coverage} | {f"{what}: {state}" for what, state in coverage}
    never = sorted({name for name in MUST_BE_MET if name not in met}) if seeds >= 100 else []
    kills = sum(count for (what, _), count in coverage.items() if what.startswith("kill "))
    print(
        f"\n{seeds} worlds, {simulated_s / 3600:.1f} simulated hours in {took_s:.0f} s, of which"
        f" {cpu_s:.0f} s of CPU ({simulated_s / max(cpu_s, 1e-9):.0f} times as fast)"
        f"; {calls} calls, {kills} kills, {failures} failures"
    )
    if never:
        print(f"never happened, and has to: {', '.join(never)}")
    if taping.report() or failures:
        return 1
    if interrupted:
        print(f"interrupted; the rest from --seeds {worlds.start + seeds}-{worlds.stop - 1}")
        return INTERRUPTED
    return 2 if never else 0


#: What has to have happened in a hundred worlds, some of it to whom in a certain state; else they
#: damage too little to show anything.
MUST_BE_MET = (
    "kill",
    "kill server",
    "kill worker",
    "lose the machine of",
    "freeze",
    "cut",
    "half close",
    "freeze a wire",
    "part",
    "disk full",
    "disk no fsync",
    "disk failing",
    "wall clock jumps",
    "restore",
    "turn a bit",
    "handler raises",
    "handler raises half-way",
    "handler dies",
    "put back a worker",
    "put back a poller",
    "kill poller",
    "end with a sync open",
    "a seldom row, the first",
    "poll refused: TCPREPL_FORKED",
    "poll refused: TCPREPL_ROWS_MISSING",
    "poll refused: TCPREPL_TOKEN_TOO_OLD",
    "kill relay",
    "kill relay of redis",
    "kill bus",
    "kill synapse",
    "synapse asks its database",
    "kill sender",
    "redis cuts off",
    "transaction, remote lost",
    "operator: pause",
    "operator: purge",
    "stranger acknowledges",
    "senders: one more",
    "senders: one less: EDUs wait that move",
    "senders: another order",
    "server takes up the senders: by a reload",
    "server takes up the senders: by a start",
    "put back an outbox",
    "outbox put back: EDUs wait in it",
    "outbox put back: rows are gone, and told",
    # in the middle of something
    "part: who talk",
    "cut: bytes under way",
    "freeze: sender, sending",
    "kill: worker, in a handler",
    "kill: writer, waiting for answers",
    "operator: purge: sending",
    "operator: pause: sending",
)

if __name__ == "__main__":
    sys.exit(main())
