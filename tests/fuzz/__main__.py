"""Throw bytes at every parser that a stranger reaches: ``make fuzz``; see `tests.fuzz.driving`."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Sequence

import structlog
from twisted.python import log

from tests.fuzz import leading, others
from tests.fuzz.driving import run
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Print a line for each target; return 1 if an input broke one."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__.partition("\n")[0],
        epilog="SECONDS_EACH (60) says how long for each target, INPUTS_EACH how many inputs at "
        "most (fewer where they take long), SEED (0) where chance begins. The exit code is 0 if "
        "nothing was found, 1 if something was, 2 if a program is missing.",
    )
    parser.add_argument("--atheris", action="store_true", help="let atheris lead")
    parser.add_argument("--atheris-one", metavar="TARGET", choices=TARGETS, help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="; ".join(TARGETS))
    asked, rest = parser.parse_known_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    log.startLogging(open(os.devnull, "w"), setStdout=False)  # noqa: SIM115 - to the end
    if asked.atheris_one:
        leading.run_one(TARGETS[asked.atheris_one], rest + asked.targets)
    elif rest or any(name not in TARGETS for name in asked.targets):
        parser.error(f"not known: {' '.join(rest or asked.targets)}")
    seconds, seed = float(os.environ.get("SECONDS_EACH", "60")), int(os.environ.get("SEED", "0"))
    names = chosen(parser, asked.targets)
    if asked.atheris:
        if not leading.there():
            parser.error("atheris is not installed: pip install atheris")
        broken = _led(names, seconds, seed)
    else:
        broken = _mutated(names, seconds, seed)
    print(f"{seconds:g} s each, seed {seed}: {broken or 'nothing'} found")
    return 1 if broken else 0


def chosen(parser: argparse.ArgumentParser, targets: Sequence[str]) -> list[str]:
    """Return what to try: *targets* or all of them, but those whose program is missing."""
    out = {
        name: " and ".join(missing)
        for name in targets or TARGETS
        if (missing := [one for one in TARGETS[name].needs if shutil.which(one) is None])
    }
    if out and targets:
        parser.error("; ".join(f"{name}: please install {needs}" for name, needs in out.items()))
    names = [name for name in targets or TARGETS if name not in out]
    for name, needs in out.items():
        print(f"{name:<12} is left out: please install {needs}", flush=True)
    if "x-matrix" in names and others.synapse() is None:
        print("x-matrix     has no Synapse beside it: python -m tests.interop.environments newest")
    return names


def _mutated(names: list[str], seconds: float, seed: int) -> int:
    """Mutate; return how many targets were broken."""
    inputs_each = int(os.environ.get("INPUTS_EACH", "0")) or None
    broken = 0
    for name in names:
        most = inputs_each and max(1, inputs_each // TARGETS[name].cost)
        outcome = run(TARGETS[name], seconds, seed, most)
        print(f"{name:<12} {outcome.count:>9,} inputs, {outcome.lines} reached", flush=True)
        if outcome.failed is not None:
            broken += 1
            raw, error = outcome.failed
            traceback.print_exception(error)
            print(f"{name}, seed {seed}: {raw!r}", file=sys.stderr, flush=True)
    return broken


def _led(names: list[str], seconds: float, seed: int) -> int:
    """Let atheris lead; return how many targets were broken."""
    broken = 0
    for name in names:
        led = leading.lead(TARGETS[name], seconds, seed)
        print(
            f"{name:<12} {led.count:>9,} inputs, {led.kept} kept, {led.edges} edges, "
            f"{led.lines} reached",
            flush=True,
        )
        if led.failed:
            broken += 1
            print(led.failed, *(f"{name}: {raw!r}" for raw in led.inputs), sep="\n", flush=True)
    return broken


if __name__ == "__main__":
    sys.exit(main())
