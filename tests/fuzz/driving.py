"""How inputs are made that may break an invariant: mutation led by new lines, or atheris.

A target is a function that takes bytes and raises if an invariant is broken, with a corpus (a
directory) to begin from and the modules that it is to reach. ``make fuzz`` runs all of them (
``python -m tests.fuzz NAME ...`` some) for SECONDS_EACH seconds, and at most INPUTS_EACH inputs,
from SEED, and prints how many lines of these modules were reached. One input in a few is traced,
and stays in the pool if it reaches a new line. ``make fuzz ATHERIS=1`` lets the coverage that
atheris measures lead the way instead (`tests.fuzz.leading`).
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import CodeType, FrameType
from typing import Any

HERE = Path(__file__).parent
#: One input in so many is traced, which takes several times as long.
TRACED = 4
#: What mutations put in: pieces that several of the grammars know.
PIECES = (
    *(b"\n", b"\r\n", b" ", b"9", b"batch", b"\xff", b"\x00", b'"', b"\\", b"{}", b"[]", b"null"),
    *(b"-1", b"1e999", b"9223372036854775808", b"\\ud800", b"=", b",", b":", b"[" * 200),
    *(b"9" * 5_000, b"true", b"%", b"\xc3\xa9"),
)


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Attributes:
        name: What it is called, and its corpus.
        check: Raises if an input breaks its invariant.
        modules: What it is to reach.
        needs: Programs that have to be there, if any: then ordinary tests leave the target out.
        cost: What an input costs, where those of most targets cost 1.
    """

    name: str
    check: Callable[[bytes], None]
    modules: Sequence[str]
    needs: Sequence[str] = ()
    cost: int = 1

    @property
    def corpus(self) -> Path:
        """Where its corpus is."""
        return HERE / "corpora" / self.name


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
                changed[place:end] = random.choice(PIECES)
            case _:
                del changed[place:end]
    return bytes(changed)


class Lines:
    """The lines of some modules, and which of them were reached."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.all: dict[str, set[int]] = {}
        for name in modules:
            path = Path(importlib.import_module(name).__file__ or "")
            code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
            # what stands outside of functions ran when the module was imported
            self.all[str(path)] = {
                line
                for one in _functions(code)
                for _, _, line in one.co_lines()
                if line is not None and line != one.co_firstlineno
            }
        self.reached: set[tuple[str, int]] = set()

    def watch(self, check: Callable[[bytes], None], raw: bytes) -> bool:
        """Run *check*; return whether it reached a line that was not reached before."""
        before = len(self.reached)
        others = sys.gettrace()  # coverage's, of whoever measures the tests
        sys.settrace(self._call)
        try:
            check(raw)
        finally:
            sys.settrace(others)
        return len(self.reached) > before

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._line if frame.f_code.co_filename in self.all else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_lineno in self.all[frame.f_code.co_filename]:
            self.reached.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line

    def __str__(self) -> str:
        count = sum(map(len, self.all.values()))
        return f"{len(self.reached)} of {count} lines"


def _functions(code: CodeType, *, inside: bool = False) -> Iterator[CodeType]:
    """Yield the code of every function in *code*."""
    if inside and code.co_flags & 2:  # CO_NEWLOCALS: no class body
        yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _functions(inner, inside=True)


@dataclass
class Outcome:
    """What a run came to."""

    count: int = 0
    lines: Lines = field(default_factory=lambda: Lines(()))
    failed: tuple[bytes, BaseException] | None = None


def run(target: Target, seconds: float, seed: int, inputs_each: int | None = None) -> Outcome:
    """Mutate the corpus of *target* for *seconds*, or up to the first input that breaks it.

    After *inputs_each* inputs it is over, too: a machine that is quicker looks no further then.
    """
    random = Random(seed)
    outcome = Outcome(lines=Lines(target.modules))
    pool = [path.read_bytes() for path in sorted(target.corpus.iterdir())]
    inputs = iter(pool[:])
    deadline = time.monotonic() + seconds
    while True:
        raw = next(inputs, None)
        first = raw is not None
        if raw is None:
            if time.monotonic() >= deadline or outcome.count == inputs_each:
                return outcome
            raw = mutate(random.choice(pool), random.choice(pool), random)
        try:
            if first or outcome.count % TRACED == 0:
                if outcome.lines.watch(target.check, raw) and not first:
                    pool.append(raw[:4096])
            else:
                target.check(raw)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
            outcome.failed = raw, error
            return outcome
        outcome.count += 1
