"""What the tests ask spin (Debian: apt install spin): to search, to walk, to read a tape."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from tcprepl.streams.cursor import AT_HEAD, Restart, Void
from tcprepl.streams.gaps import Gap

HERE = Path(__file__).parent
#: What happens, with two numbers: as the macros in resume.pml say.
Step: TypeAlias = tuple[int, int, int]

#: The names of the numbers in resume.pml.
NUMBERS = {
    name: int(number)
    for name, number in re.findall(
        r"^#define (\w+) +(\d+)\b", (HERE / "resume.pml").read_text(encoding="utf-8"), re.MULTILINE
    )
}


def kind_of(answer: Any) -> str:
    """Return what the models call an answer of a cursor."""
    if answer is AT_HEAD:
        return "AT_HEAD"
    if isinstance(answer, Restart):
        return "FORKED" if answer.why is Void.FORKED else "AHEAD"
    return "GAP" if isinstance(answer, Gap) else "PAGE"


class Found(NamedTuple):
    """What a search came to.

    Attributes:
        states: How many states there are, or were looked at before the fault.
        whole: Whether all were looked at.
        wrong: The assertion that does not hold; "" if all do.
    """

    states: int
    whole: bool
    wrong: str


def _run(where: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=600)
    return done.stdout + done.stderr


def search(model: str, defined: Sequence[str] = ()) -> Found:
    """Look at every state of *model* with *defined*, up to the first fault.

    Raises:
        RuntimeError: spin or the C compiler did not take the model.
    """
    with tempfile.TemporaryDirectory() as name:
        where = Path(name)
        said = _run(where, "spin", *(f"-D{one}" for one in defined), "-a", str(_file(model)))
        said += _run(where, "cc", "-O2", "-DSAFETY", "-DMEMLIM=4096", "-o", "pan", "pan.c")
        if not (where / "pan").exists():
            raise RuntimeError(said)
        # that nothing more can happen is no fault: the starts of servers are bounded
        said = _run(where, "./pan", "-E", "-m10000", "-w24")
    states = re.search(r"(\d+(?:\.\d+)?(?:e\+\d+)?) states, stored", said)
    wrong = re.search(r"assertion violated (.*) \(at depth", said)
    errors = re.search(r"errors: (\d+)", said)
    if states is None or errors is None or (int(errors[1]) and wrong is None):
        raise RuntimeError(said)
    whole = not int(errors[1]) and "not completed" not in said and "too small" not in said
    return Found(int(float(states[1])), whole, wrong[1] if wrong else "")


def walk(model: str, seed: int, steps: int, defined: Sequence[str]) -> list[list[int]]:
    """Return what happens on a walk by chance: the step, its numbers, and what came of it."""
    flags = (f"-n{seed}", f"-u{steps}", *(f"-D{one}" for one in defined))
    said = _run(HERE, "spin", *flags, str(_file(model)))
    if "assertion" in said:
        raise AssertionError(said)
    return [
        [int(number) for number in re.findall(r"\d+", line)]
        for line in said.splitlines()
        if re.match(r" *step .*->", line)
    ]


def read_tape(
    steps: Iterable[Step], tokens: int, starts: int, copies: int, places: int, kept: int = 0
) -> str:
    """Let resume.pml follow *steps*; return what is wrong with them, "" if nothing is."""
    tape = "".join(f"\ttape!{op},{one},{other};\n" for op, one, other in steps)
    with tempfile.TemporaryDirectory() as name:
        where = Path(name)
        tape = f"active proctype player()\n{{\n{tape}\tskip\n}}\n"
        (where / "tape.pml").write_text(tape, encoding="utf-8")
        (where / "resume.pml").write_text(_file("resume").read_text(encoding="utf-8"))
        bounds = {"TOKENS": tokens, "STARTS": starts, "COPIES": copies, "PLACES": places}
        bounds["KEPT"] = kept
        defined = [f"-D{key}={value}" for key, value in bounds.items()]
        said = _run(where, "spin", "-DTAPE", "-DNUM=short", *defined, "resume.pml")
    steps_taken = len(re.findall(r"^ *step ", said, re.MULTILINE))
    if "rror" in said or "assert" in said or steps_taken < tape.count("tape!"):
        return said
    return ""


def _file(model: str) -> Path:
    return HERE / f"{model}.pml"
