"""What is freed goes back to the system, unless somebody has set the allocator."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from twisted.internet.task import Clock

from tcprepl.app import memory
from tcprepl.app.memory import MAX_INTERVALS, TRIM_INTERVAL_S, Trimming, give_back_what_is_free

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


#: Leaves pages free between pieces that stay, and gives them back.
BETWEEN = """
from pathlib import Path
from twisted.internet.task import Clock
from tcprepl.app.memory import TRIM_INTERVAL_S, Trimming

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

clock = Clock()
trimming = Trimming(clock)
pieces = [bytes(16_000) for _ in range(2_000)]
del pieces[::2]
before = resident()
clock.advance(TRIM_INTERVAL_S)
print(before - resident())
trimming.stop()
"""


def test_pages_between_others_go_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BETWEEN], capture_output=True, check=True, text=True
    )
    assert int(done.stdout) > 8 << 20


class Library:
    """A C library in which it takes a while."""

    def __init__(self) -> None:
        self.now = 0.0
        self.takes_s = 0.0
        self.trimmed = 0

    def malloc_trim(self, pad: int) -> int:
        assert pad == 0
        self.trimmed += 1
        self.now += self.takes_s
        return 1


def test_the_longer_it_takes_the_less_often_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    monkeypatch.setattr(memory, "thread_time", lambda: library.now)
    clock = Clock()
    trimming = Trimming(clock)

    def trimmed_in(intervals: int) -> int:
        before = library.trimmed
        for _ in range(intervals):
            clock.advance(TRIM_INTERVAL_S)
        return library.trimmed - before

    assert trimmed_in(5) == 5
    library.takes_s = 2 * memory.TRIM_S
    assert trimmed_in(1 + 2 + 4 + 8) == 4
    assert trimmed_in(16 + 32 + 10 * MAX_INTERVALS) == 12
    library.takes_s = 0.0
    assert trimmed_in(MAX_INTERVALS) == 1
    assert trimmed_in(5) == 5
    assert trimming.stop().called
    assert clock.getDelayedCalls() == []


def test_where_the_library_cannot_it_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    clock = Clock()
    trimming = Trimming(clock)
    clock.advance(3 * TRIM_INTERVAL_S)
    assert trimming.stop().called
