"""How a process that reloads says what became of it, to whoever asked: by a file beside its data.

A signal carries no answer. The file names the process, is locked as long as that lives, and has
the outcome of the newest reload.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from tcprepl.logger import get_logger
from tcprepl.storage.lock import PROCESS_NAME, read_if_held
from tcprepl.storage.sqlite import PRIVATE_DIRECTORY

log = get_logger(__name__)

#: How often a file is read that is not whole.
_READINGS: Final = 1_000
#: Most that is read of it.
_MAX_BYTES: Final = 2**24


class Outcome(Struct, frozen=True):
    """What became of a reload.

    Attributes:
        changed: The settings that hold from now on.
        needs_restart: Those that would have to wait for another start.
        faults: Why nothing has changed; empty if it was taken up.
        text: What else is to be said.
    """

    changed: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    text: str = ""


class Told(Struct, frozen=True):
    """What the file says.

    Attributes:
        pid: The process.
        reloads: How often it was asked to reload, and has answered.
        outcome: Of the newest.
    """

    pid: int
    reloads: int = 0
    outcome: Outcome | None = None


class Answering:
    """Says for a process what became of its reloads; another one's file is left alone.

    Args:
        directory: Where it keeps its data; None says nothing.
    """

    def __init__(self, directory: Path | None) -> None:
        self._fd: int | None = None
        self._told = Told(os.getpid())
        if directory is None:
            return
        path = directory / PROCESS_NAME
        try:
            directory.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            log.warning("reload.no_answers", path=str(path), error=error.strerror)
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)  # two processes with one directory: the first is who is asked there
            return
        self._fd = fd
        self._write()

    def tell(self, outcome: Outcome) -> None:
        """Say what became of a reload."""
        self._told = Told(self._told.pid, self._told.reloads + 1, outcome)
        self._write()

    def close(self) -> None:
        """Let go of the file; a no-op the second time."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _write(self) -> None:
        if self._fd is None:
            return
        data = msgspec.json.encode(self._told)
        try:
            os.pwrite(self._fd, data, 0)
            os.ftruncate(self._fd, len(data))
        except OSError as error:  # a full disk: who asked is told that there is no answer
            log.warning("reload.no_answers", error=error.strerror)


def told(directory: Path) -> Told | None:
    """Return what the process that lives in *directory* says; None if there is none that does.

    Raises:
        LogUnavailable: The file cannot be read.
    """
    return read_if_held(directory / PROCESS_NAME, _told_in)


def _told_in(fd: int) -> Told | None:
    for _ in range(_READINGS):
        with suppress(msgspec.DecodeError):  # it is being written at this moment
            return msgspec.json.decode(os.pread(fd, _MAX_BYTES, 0), type=Told)
    return None
