"""What is freed goes back to the system, unless somebody has set the allocator."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tcprepl.app.memory import give_back_what_is_free

#: Frees large pieces, as pages of rows are, and says how much then stays among small ones.
PROGRAM = """
import sys
from pathlib import Path
from threading import Thread
from tcprepl.app.memory import give_back_what_is_free

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def page_by_page():
    for size in range(1, 17):
        bytes(size << 20)  # raises what is large up to 16 MiB
    kept = []
    for _ in range(20):
        pages = [bytes(1 << 20) for _ in range(4)]
        kept.append(bytes(2000))
        del pages

if len(sys.argv) == 1:
    assert give_back_what_is_free()
before = resident()
for _ in range(4):
    threads = [Thread(target=page_by_page) for _ in range(4)]
    [thread.start() for thread in threads]
    page_by_page()
    [thread.join() for thread in threads]
print(resident() - before)
"""


def kept_free(*arguments: str) -> int:
    """Return how many bytes a process keeps that uses none of them."""
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True, check=True, text=True, env=environment,
    )  # fmt: skip
    return int(done.stdout)


def test_what_is_freed_goes_back() -> None:
    assert kept_free() < 3 << 20
    assert kept_free("as it is") > 3 << 20  # or there would be nothing to be set


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_who_has_set_the_allocator_knows_better(name: str) -> None:
    assert not give_back_what_is_free({name: "4"})


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not give_back_what_is_free({})
