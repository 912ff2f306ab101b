"""How atheris leads, without atheris: what its process says is read, and its end is seen."""

from __future__ import annotations

import sys

import pytest

from tests.fuzz import leading
from tests.fuzz.targets import TARGETS

#: Stands for the process of libFuzzer: options, the directory for what it keeps, and what follows.
FUZZER = """
import sys
from pathlib import Path
found = next(word.partition("=")[2] for word in sys.argv if word.startswith("-artifact_prefix="))
Path(sys.argv[-1], "kept").write_bytes(b"PING 1")
print("#7\\tNEW    cov: 4 ft: 9 corp: 2/3b")
print("#9\\tDONE   cov: 5 ft: 9 corp: 2/3b")
if {broken}:
    Path(found + "crash-1").write_bytes(b"bad")
    sys.exit("AssertionError: it broke")
print("Done 1209 runs in 3 second(s)")
"""


def led(monkeypatch: pytest.MonkeyPatch, *, broken: bool) -> leading.Led:
    """Return what comes of a process that stands for libFuzzer."""
    program = FUZZER.format(broken=broken)
    monkeypatch.setattr(leading, "ONE", (sys.executable, "-c", program))
    return leading.lead(TARGETS["answer"], 1.0, 3)


def test_what_a_run_came_to(monkeypatch: pytest.MonkeyPatch) -> None:
    found = led(monkeypatch, broken=False)
    assert (found.count, found.edges, found.kept) == (1209, 5, 1)
    assert found.lines.reached
    assert not found.failed
    assert not found.inputs


def test_an_input_that_broke_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = led(monkeypatch, broken=True)
    assert found.count == 9
    assert found.failed.endswith("AssertionError: it broke")
    assert found.inputs == [b"bad"]


def test_who_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """So does what it has started, which keeps its output open."""
    monkeypatch.setattr(leading, "LATE_S", 0.3)
    monkeypatch.setattr(leading, "ONE", ("sh", "-c", "sleep 60 & wait"))
    found = leading.lead(TARGETS["answer"], 0.0, 3)
    assert (found.count, found.failed) == (0, "it did not end in time")


def test_only_what_is_ours_is_instrumented() -> None:
    def one() -> None:
        """Stand for a function of the package."""

    def other() -> None:
        """Stand for one of another."""

    one.__module__, other.__module__ = "tcprepl.protocol.parsing", "tcpreplay"
    found = leading.ours()
    assert one in found
    assert other not in found
