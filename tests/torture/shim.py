"""The driver's hand on disk and clock of a process: see ``shim.c``."""

from __future__ import annotations

import mmap
import struct
import subprocess
from pathlib import Path

from tests.harness import program

_SIZE = 128
_FULL, _NO_SYNC, _SHORTER, _KILL_IN = 0, 4, 8, 12
_AHEAD, _COUNTS, _KILLED, _NO_READ, _UNREAD, _KILL_BEHIND = 16, 24, 36, 40, 44, 48
_KILL_AT, _FAIL_AT, _MET = 52, 60, 68
#: What a process was in when its shim killed it, by what the shim says of it.
_PLACES = ("", "a write", "a checkpoint", "a trim", "the moment behind a sync")
#: Of these, those that can be waited for.
CHECKPOINT, TRIM = 0, 1
#: The statement with which rows go of which there are more than are kept.
_TRIMS = "DELETE FROM blocks WHERE pair"
#: Behind how many pages SQLite has a checkpoint, which by itself it has behind a thousand.
_CHECKPOINT_PAGES = 24
_INTEGER = struct.Struct("=i")


def build(where: Path) -> Path:
    """Compile the library and return its path."""
    library = where / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run(
        [program("cc"), "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True
    )
    return library


class Shim:
    """What one process is to meet, over all its starts.

    Attributes:
        environment: What the process has to be started with.
    """

    def __init__(self, library: Path, control: Path) -> None:
        control.write_bytes(bytes(_SIZE))
        with control.open("r+b") as file:
            self._control = mmap.mmap(file.fileno(), _SIZE)
        self.environment = {
            "LD_PRELOAD": str(library),
            "TORTURE_SHIM": str(control),
            "TORTURE_CHECKPOINT": str(_CHECKPOINT_PAGES),
            "TORTURE_TRIM": _TRIMS,
        }

    def full(self, on: bool) -> None:
        """Let writes fail for want of room."""
        self._set(_FULL, on)

    def no_sync(self, on: bool) -> None:
        """Let fsync fail."""
        self._set(_NO_SYNC, on)

    def shorter(self, on: bool) -> None:
        """Let writes take the half of what they are given."""
        self._set(_SHORTER, on)

    def no_read(self, on: bool) -> None:
        """Let reads of what is not in memory fail."""
        self._set(_NO_READ, on)

    def kill_in(self, calls: int) -> None:
        """Kill it in the middle of so manieth call that writes; 0 is never."""
        self._set(_KILL_IN, calls)

    def kill_behind(self, syncs: int) -> None:
        """Kill it behind so manieth sync: what it wrote is on disk, and nobody was told."""
        self._set(_KILL_BEHIND, syncs)

    def kill_at(self, place: int, calls: int) -> None:
        """Kill it in the middle of so manieth call of a `CHECKPOINT` or `TRIM`; 0 is never."""
        self._set(_KILL_AT + 4 * place, calls)

    def fail_at(self, place: int, on: bool) -> None:
        """Let what a `CHECKPOINT` or `TRIM` writes and syncs fail."""
        self._set(_FAIL_AT + 4 * place, on)

    def met(self, place: int) -> int:
        """Return how many calls of a `CHECKPOINT` or `TRIM` there were."""
        return self._get(_MET + 4 * place)

    def wall_clock(self, ahead_s: float) -> None:
        """Set its wall clock, that far ahead."""
        struct.pack_into("=q", self._control, _AHEAD, int(ahead_s * 1e9))

    def heal(self) -> None:
        """End every fault; the clock stays as it is set."""
        for place in (_FULL, _NO_SYNC, _SHORTER, _NO_READ):
            self._set(place, 0)
        for place in (CHECKPOINT, TRIM):
            self.fail_at(place, False)
        self.spare()

    def spare(self) -> None:
        """Kill it no more."""
        for place in (_KILL_IN, _KILL_BEHIND, _KILL_AT, _KILL_AT + 4):
            self._set(place, 0)

    @property
    def bad_disk(self) -> bool:
        """Whether the disk has refused anything since `forget`."""
        return any(self._get(place) for place in (_COUNTS, _COUNTS + 4, _UNREAD))

    @property
    def killed(self) -> str:
        """What it was in when it was killed by this since `forget`; "" if it was not."""
        return _PLACES[self._get(_KILLED)]

    def forget(self) -> None:
        """Begin to count anew."""
        for place in (_COUNTS, _COUNTS + 4, _COUNTS + 8, _KILLED, _UNREAD):
            self._set(place, 0)

    def _get(self, place: int) -> int:
        return int(_INTEGER.unpack_from(self._control, place)[0])

    def _set(self, place: int, value: int) -> None:
        _INTEGER.pack_into(self._control, place, int(value))
