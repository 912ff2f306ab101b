"""The driver's hand on disk and clock of a process: see ``shim.c``."""

from __future__ import annotations

import mmap
import struct
import subprocess
from pathlib import Path

from tests.harness import program

_SIZE = 64
_FULL, _NO_SYNC, _SHORTER, _KILL_IN = 0, 4, 8, 12
_AHEAD, _COUNTS, _KILLED, _NO_READ, _UNREAD, _KILL_BEHIND = 16, 24, 36, 40, 44, 48
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
        self.environment = {"LD_PRELOAD": str(library), "TORTURE_SHIM": str(control)}

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

    def wall_clock(self, ahead_s: float) -> None:
        """Set its wall clock, that far ahead."""
        struct.pack_into("=q", self._control, _AHEAD, int(ahead_s * 1e9))

    def heal(self) -> None:
        """End every fault; the clock stays as it is set."""
        for place in (_FULL, _NO_SYNC, _SHORTER, _KILL_IN, _KILL_BEHIND, _NO_READ):
            self._set(place, 0)

    @property
    def bad_disk(self) -> bool:
        """Whether the disk has refused anything since `forget`."""
        return any(self._get(place) for place in (_COUNTS, _COUNTS + 4, _UNREAD))

    @property
    def killed(self) -> bool:
        """Whether the process died by `kill_in` since `forget`."""
        return bool(self._get(_KILLED))

    def forget(self) -> None:
        """Begin to count anew."""
        for place in (_COUNTS, _COUNTS + 4, _COUNTS + 8, _KILLED, _UNREAD):
            self._set(place, 0)

    def _get(self, place: int) -> int:
        return int(_INTEGER.unpack_from(self._control, place)[0])

    def _set(self, place: int, value: int) -> None:
        _INTEGER.pack_into(self._control, place, int(value))
