"""Throw bytes at every parser that a stranger reaches: ``make fuzz``; see `tests.fuzz.driving`."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import traceback

import structlog
from twisted.python import log

from tests.fuzz.driving import run
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Print a line for each target; return 1 if an input broke one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--atheris", metavar="TARGET", choices=TARGETS, help="let atheris lead")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="; ".join(TARGETS))
    asked, rest = parser.parse_known_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    log.startLogging(open(os.devnull, "w"), setStdout=False)  # noqa: SIM115 - to the end
    if asked.atheris:
        return _atheris(asked.atheris, rest + asked.targets)
    seconds, seed = float(os.environ.get("SECONDS_EACH", "60")), int(os.environ.get("SEED", "0"))
    inputs_each = int(os.environ.get("INPUTS_EACH", "0")) or None
    broken = 0
    for name in asked.targets or TARGETS:
        outcome = run(TARGETS[name], seconds, seed, inputs_each)
        print(f"{name:<12} {outcome.count:>9,} inputs, {outcome.lines} reached", flush=True)
        if outcome.failed is not None:
            broken += 1
            raw, error = outcome.failed
            traceback.print_exception(error)
            print(f"{name}, seed {seed}: {raw!r}", file=sys.stderr, flush=True)
    print(f"{seconds:g} s each, seed {seed}: {broken or 'nothing'} found")
    return 1 if broken else 0


def _atheris(name: str, arguments: list[str]) -> int:
    atheris = importlib.import_module("atheris")
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *arguments, str(TARGETS[name].corpus)], TARGETS[name].check)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
