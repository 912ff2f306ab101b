"""How inputs are made that may break an invariant: by plain mutation, or led by coverage.

``make fuzz`` mutates each corpus plainly. With atheris (in an environment of its own:
``pip install atheris``) coverage leads the way::

    python -m tests.fuzz.fuzz_bus -max_total_time=600 FOUND tests/fuzz/corpus_bus
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import structlog


def mutate(raw: bytes, other: bytes, random: Random) -> bytes:
    """Return *raw* changed in a few places, with pieces of *other*."""
    changed = bytearray(raw)
    for _ in range(random.randint(1, 6)):
        place = random.randint(0, len(changed))
        end = min(len(changed), place + random.randint(0, 12))
        start = random.randint(0, len(other))
        match random.randint(0, 4):
            case 0:
                changed[place:end] = random.randbytes(random.randint(0, 4))
            case 1:
                changed[place:end] = other[start : start + random.randint(1, 40)]
            case 2:
                changed[place:place] = changed[place:end] * random.randint(1, 30)
            case 3:
                changed[place:end] = random.choice((b"\n", b"\r\n", b" ", b"9", b"batch", b"\xff"))
            case _:
                del changed[place:end]
    return bytes(changed)


def run_plainly(check: Callable[[bytes], None], corpus: Path, seconds: float, seed: int) -> int:
    """Mutate *corpus* for *seconds*; return how many inputs were checked."""
    random = Random(seed)
    pool = [path.read_bytes() for path in sorted(corpus.iterdir())]
    deadline = time.monotonic() + seconds
    count = 0
    while time.monotonic() < deadline:
        raw = mutate(random.choice(pool), random.choice(pool), random)
        try:
            check(raw)
        except Exception:
            print(f"seed {seed}, input {count}: {raw!r}", file=sys.stderr)
            raise
        if random.random() < 0.001:
            pool.append(raw[:4096])
        count += 1
    return count


def fuzz(check: Callable[[bytes], None], corpus: Path) -> None:
    """Run under atheris if it is there, else by plain mutation for SECONDS_EACH seconds."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if importlib.util.find_spec("atheris") is None:
        seconds = float(os.environ.get("SECONDS_EACH", "60"))
        seed = int(os.environ.get("SEED", "0"))
        count = run_plainly(check, corpus, seconds, seed)
        print(f"{count} inputs in {seconds:g} s, nothing found (seed {seed})")
        return
    atheris = importlib.import_module("atheris")
    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
