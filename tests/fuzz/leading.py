"""Targets in which the coverage that atheris measures leads the way: ``make fuzz ATHERIS=1``.

Each target has a process of its own, which libFuzzer ends. What it keeps goes into a new directory,
not into the corpus of the repository; its lines are counted afterwards as `tests.fuzz.driving`
counts them. One target with options of libFuzzer, until it is interrupted::

    python -m tests.fuzz --atheris-one x-matrix -max_len=4096
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType

from tests.fuzz.driving import Lines, Target

#: How long an input may take, and what ends a target later than its time whatever it does.
INPUT_S = 25
LATE_S = 120
#: Starts libFuzzer on the target whose name follows.
ONE = (sys.executable, "-m", "tests.fuzz", "--atheris-one")
#: Lines of a failure that are shown.
SHOWN = 40


@dataclass
class Led:
    """What a run came to.

    Attributes:
        count: Inputs that were tried.
        edges: What libFuzzer calls coverage: of all that is ours, and not of the modules alone.
        kept: Inputs that reached something new.
        lines: Lines of the target's modules that those reach.
        failed: What it said, if an input broke it.
        inputs: Inputs that broke it.
    """

    count: int
    edges: int
    kept: int
    lines: Lines
    failed: str
    inputs: Sequence[bytes]


def there() -> bool:
    """Return whether atheris is installed."""
    return importlib.util.find_spec("atheris") is not None


def lead(target: Target, seconds: float, seed: int) -> Led:
    """Let atheris look for *seconds*."""
    with tempfile.TemporaryDirectory(prefix="tcprepl-fuzz-") as name:
        kept, found = Path(name, "kept"), Path(name, "found")
        kept.mkdir()
        found.mkdir()
        argv = [*ONE, target.name]
        argv += [f"-max_total_time={seconds:.0f}", f"-seed={seed + 1}", f"-timeout={INPUT_S}"]
        argv += [f"-artifact_prefix={found}/", str(kept)]
        said, code = _run(argv, Path(name, "said"), seconds + LATE_S)
        inputs = [path.read_bytes() for path in sorted(found.iterdir())]
        lines = Lines(target.modules)
        all_kept = sorted(kept.iterdir())
        if not inputs:
            for path in (*sorted(target.corpus.iterdir()), *all_kept):
                lines.watch(target.check, path.read_bytes())
    failed = ""
    if code != 0:
        last = said.splitlines()[-SHOWN:]
        failed = "\n".join([*last, *(["it did not end in time"] if code is None else [])])
    return Led(
        last_number(r"Done (\d+) runs", said) or last_number(r"^#(\d+)\t", said),
        last_number(r"\bcov: (\d+)", said),
        len(all_kept),
        lines,
        failed,
        inputs,
    )


def _run(argv: Sequence[str], output: Path, seconds: float) -> tuple[str, int | None]:
    """Run *argv* with all that it starts, which it may leave behind.

    Returns:
        What it said, and its exit code; None if it did not end in time.
    """
    with output.open("wb") as file:
        process = subprocess.Popen(argv, stdout=file, stderr=file, start_new_session=True)
    try:
        code: int | None = process.wait(seconds)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return output.read_text(errors="replace"), code


def last_number(pattern: str, text: str) -> int:
    """Return the number that *pattern* finds last in *text*; 0 without one."""
    found = re.findall(pattern, text, re.MULTILINE)
    return int(found[-1]) if found else 0


def run_one(target: Target, arguments: Sequence[str]) -> None:
    """Let libFuzzer run *target* in this process, which it ends.

    Args:
        target: What to run.
        arguments: What libFuzzer is told, and first the directory for what it keeps.
    """
    atheris = importlib.import_module("atheris")
    for function in ours():
        atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], *arguments, str(target.corpus)], target.check)
    atheris.Fuzz()


def ours() -> list[FunctionType]:
    """Return every function of the package that is loaded: of others nothing is to be found."""
    return [
        one
        for one in gc.get_objects()
        if isinstance(one, FunctionType) and (one.__module__ or "").partition(".")[0] == "tcprepl"
    ]
