"""One process per data directory: an advisory lock that dies with its holder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tcprepl.errors import LogLocked, LogUnavailable

T = TypeVar("T")

#: Name of the lock file in the data directory.
LOCK_NAME = "lock"
#: Name of the file in which a process says who it is (`tcprepl.app.answering`).
PROCESS_NAME = "process.json"


class DirectoryLock:
    """Holds a directory until released; the kernel releases it when the process dies.

    The file names the holder for people; it is the lock on it that counts, so that a stale
    file never stands in the way.
    """

    def __init__(self, directory: Path, name: str = LOCK_NAME) -> None:
        """Take the lock.

        Args:
            directory: The directory.
            name: The name of the file; by default that for all of the directory.

        Raises:
            LogLocked: another process, or another log in this one, has it.
            LogUnavailable: the lock file cannot be made, or does not take our name.
        """
        path = directory / name
        try:
            self._fd: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LogUnavailable(f"cannot open {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _process_in(self._fd)
            self.release()
            raise LogLocked(str(directory), holder) from None
        try:
            os.ftruncate(self._fd, 0)
            os.write(self._fd, str(os.getpid()).encode())
        except OSError as error:
            self.release()
            raise LogUnavailable(f"cannot write {path}: {error.strerror}") from error

    def release(self) -> None:
        """Let go of the lock; a no-op the second time."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


@contextmanager
def kept_from_others(directory: Path) -> Iterator[None]:
    """Let nobody take *directory* while it is read; nothing is written, so it may be read-only.

    One without a lock file was never in use: nothing keeps others out of it.

    Raises:
        LogLocked: a process has it.
        LogUnavailable: the lock file cannot be read.
    """
    path = directory / LOCK_NAME
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise LogUnavailable(f"cannot open {path}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _process_in(fd)
        os.close(fd)
        raise LogLocked(str(directory), holder) from None
    try:
        yield
    finally:
        os.close(fd)


def read_if_held(path: Path, read: Callable[[int], T | None]) -> T | None:
    """Return what the process says of itself that has locked *path*; None if there is none.

    Args:
        path: The file.
        read: Returns what the file says, whose descriptor it is given; None if it says nothing.

    Raises:
        LogUnavailable: The file cannot be read, or says nothing of its holder.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LogUnavailable(f"cannot open {path}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        said = read(fd)
        if said is None:
            raise LogUnavailable(f"{path} is locked, and does not say by whom") from None
        return said
    finally:
        os.close(fd)
    return None


def holder_of(directory: Path) -> int | None:
    """Return the process that has *directory*, without taking it; None if there is none.

    Raises:
        LogUnavailable: the lock file cannot be read, or says nothing of its holder.
    """
    return read_if_held(directory / LOCK_NAME, _process_in)


def _process_in(fd: int) -> int | None:
    holder = os.read(fd, 32)
    return int(holder) if holder.isdigit() else None
