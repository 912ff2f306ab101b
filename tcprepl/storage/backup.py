"""Copies of a data directory: made while its process runs, checked before they are used.

A copy is a directory like the one it was made of, and a list of what is in it. Each database is
copied as it is at one moment, by a reader: in WAL mode that holds up no writer. The files are
copied in an order in which a later one may say more than an earlier one, never less.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from tcprepl.errors import LogCorrupt, LogUnavailable
from tcprepl.storage.lock import LOCK_NAME, PROCESS_NAME, DirectoryLock, kept_from_others
from tcprepl.storage.sqlite import (
    BUSY_TIMEOUT_S,
    PRIVATE_DIRECTORY,
    PRIVATE_FILE,
    faults_of,
    left_beside,
    uri_as_it_is,
)

#: The list of what is in a copy.
LIST_NAME: Final = "backup.json"
#: Told how many bytes have been dealt with, of how many; each counts twice: written and read.
Told: TypeAlias = Callable[[int, int], object]
#: Pages of a database, and bytes of a file, that are copied between two looks how far it is.
_STEP_PAGES: Final = 1_024
_STEP_BYTES: Final = 2**20
#: What a file of SQLite begins with.
_MAGIC: Final = b"SQLite format 3\0"
#: Files that SQLite keeps beside a database: what they say is in the copy of it.
_COMPANIONS: Final = ("-wal", "-shm", "-journal")
#: The log is copied when what says "this was taken into the log" has been, and what says how to
#: read a relay's log when that has been.
_LAST: Final = ("log.sqlite3", "relay.sqlite3")


class CopiedFile(msgspec.Struct, frozen=True):
    """One file of a copy."""

    name: str
    size_bytes: int
    sha256: str


class _Far:
    """Counts how far it is: each byte is copied, and read once more."""

    def __init__(self, told: Told, total: int) -> None:
        self._told = told
        self._total = total
        self._done = 0

    def add(self, count: int) -> None:
        """Note that so many bytes more have been dealt with."""
        self._done += count
        self._told(min(self._done, self._total), self._total)


class Backup(msgspec.Struct, frozen=True):
    """What the list of a copy says.

    Attributes:
        version: The version of tcprepl that made it.
        made_at: When, in UTC.
        files: What it holds.
    """

    version: str
    made_at: str
    files: list[CopiedFile]

    @property
    def size_bytes(self) -> int:
        """How large it is."""
        return sum(file.size_bytes for file in self.files)


def make_backup(
    data: Path, target: Path, version: str, told: Told = lambda done, total: None
) -> Backup:
    """Copy the data directory *data* to *target*, which must not exist yet.

    The process that has the directory open goes on; so does one that is started meanwhile.
    *target* appears when all of it is on disk, or not at all.

    Args:
        data: What is copied.
        target: Where to.
        version: The version of tcprepl that makes it.
        told: Told how far it is.

    Raises:
        LogUnavailable: There is nothing to copy, *target* exists, or a disk refuses.
        LogCorrupt: A database is damaged.
    """
    names = _names(data)
    if target.exists():
        raise LogUnavailable(f"{target} exists: name a directory that does not")
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.unfinished")
    try:
        unfinished.mkdir(mode=PRIVATE_DIRECTORY, parents=True)
        far = _Far(told, 2 * sum((data / name).stat().st_size for name in names))
        files = [_copy(data / name, unfinished / name, far) for name in names]
        made = Backup(version, datetime.now(UTC).isoformat(timespec="seconds"), files)
        listed = unfinished / LIST_NAME
        _write(listed, msgspec.json.format(msgspec.json.encode(made)) + b"\n")
        _sync(unfinished)
        os.rename(unfinished, target)  # onto an empty directory at most
        _sync(target.parent)
    except OSError as error:
        raise LogUnavailable(
            f"cannot copy {data} to {target}: {error.filename or target}: {error.strerror}"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return made


def _names(data: Path) -> list[str]:
    """Return the files of a data directory, in the order in which they are to be copied."""
    try:
        found = [
            entry.name
            for entry in os.scandir(data)
            if entry.is_file(follow_symlinks=False)
            and entry.name not in (LOCK_NAME, PROCESS_NAME, LIST_NAME)
            and not entry.name.endswith(_COMPANIONS)
        ]
    except OSError as error:
        raise LogUnavailable(f"cannot read {data}: {error.strerror}") from error
    if not any(_is_database(data / name) for name in found):
        raise LogUnavailable(f"{data} is no data directory of tcprepl: no database is in it")
    return sorted(found, key=lambda name: (_LAST.index(name) + 1 if name in _LAST else 0, name))


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise LogUnavailable(f"cannot read {path}: {error.strerror}") from error


def _copy(source: Path, target: Path, far: _Far) -> CopiedFile:
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE))
    if _is_database(source):
        _copy_database(source, target, far)
    else:
        _copy_bytes(source, target, far)
    _sync(target)
    return CopiedFile(target.name, target.stat().st_size, _digest(target, far))


def _copy_bytes(source: Path, target: Path, far: _Far) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        while piece := reader.read(_STEP_BYTES):
            writer.write(piece)
            far.add(len(piece))


@contextmanager
def _reader_of(source: Path) -> Iterator[sqlite3.Connection]:
    """Lend a connection that reads a database, which a process may have open.

    In a directory that cannot be written to, where nobody has it, it is read as it is.

    Raises:
        LogLocked: Somebody has it after all.
        LogUnavailable: A part of it is beside it, and cannot be read there.
    """
    with closing(sqlite3.connect(source, timeout=BUSY_TIMEOUT_S)) as reader:
        try:
            reader.execute("SELECT count(*) FROM sqlite_master").fetchall()
            as_it_is = False
        except sqlite3.OperationalError as error:
            as_it_is = any(words in str(error) for words in ("readonly", "unable to open"))
            if not as_it_is:
                raise
        if not as_it_is:
            yield reader
            return
    if left_beside(source):
        raise LogUnavailable(
            f"cannot copy {source}: its process was killed, and what it left beside it cannot be "
            f"read there; copy all of {source.parent} to where it can be written, and that then"
        )
    with (
        kept_from_others(source.parent),
        closing(sqlite3.connect(uri_as_it_is(source), uri=True)) as reader,
    ):
        yield reader


def _copy_database(source: Path, target: Path, far: _Far) -> None:
    left: list[int] = []

    def look(_: int, remaining: int, total: int) -> None:
        far.add(((left or [total])[-1] - remaining) * page_bytes)
        left.append(remaining)

    try:
        with (
            _reader_of(source) as reader,
            closing(sqlite3.connect(target)) as writer,
        ):
            reader.execute("PRAGMA query_only=ON")
            ((page_bytes,),) = reader.execute("PRAGMA page_size").fetchall()
            # One moment: as long as this transaction reads, it sees what was there when it began.
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sqlite_master").fetchall()
            reader.backup(writer, pages=_STEP_PAGES, progress=look)
            reader.rollback()
            # one file: no log beside it that could be lost
            writer.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.OperationalError as error:
        raise LogUnavailable(f"cannot copy {source}: {error}") from error
    except sqlite3.Error as error:
        raise LogCorrupt(f"{source}: {error}; there is no copying what is damaged") from error


def restore_backup(backup: Path, target: Path, told: Told = lambda done, total: None) -> Backup:
    """Make a data directory of a copy, once all of the copy is found to be good.

    Args:
        backup: What `make_backup` made.
        target: A directory that does not exist yet, or is empty.
        told: Told how far it is.

    Raises:
        LogLocked: A process has *target* open.
        LogUnavailable: *backup* is no copy, *target* holds something, or a disk refuses.
        LogCorrupt: The copy is damaged.
    """
    made, far = _checked(backup, told)
    try:
        target.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        if stat.S_IMODE(target.stat().st_mode) & 0o077:
            target.chmod(PRIVATE_DIRECTORY)
    except OSError as error:
        raise LogUnavailable(f"cannot make {target}: {error.strerror}") from error
    lock = DirectoryLock(target)  # held until all is there: nobody begins on half of it
    try:
        if held := sorted(set(os.listdir(target)) - {LOCK_NAME, PROCESS_NAME}):
            raise LogUnavailable(
                f"{target} is not empty ({held[0]}): move it away, or name another directory"
            )
        for file in made.files:
            partial = target / f"{file.name}.unfinished"
            _write(partial, b"")
            _copy_bytes(backup / file.name, partial, far)
            _sync(partial)
        for file in made.files:
            os.rename(target / f"{file.name}.unfinished", target / file.name)
        _sync(target)
    except OSError as error:
        raise LogUnavailable(
            f"cannot restore to {target}: {error.strerror}; it is not complete: remove it"
        ) from error
    finally:
        lock.release()
    return made


def check_backup(backup: Path) -> Backup:
    """Return what is in a copy, after a look at every byte of it.

    Raises:
        LogUnavailable: It is no copy, or cannot be read.
        LogCorrupt: It is damaged, or not complete.
    """
    return _checked(backup, lambda done, total: None)[0]


def faults_at_its_making(backup: Path, made: Backup) -> Iterator[str]:
    """Yield what is wrong with each database of a copy that `make_backup` has just made."""
    for file in made.files:
        path = backup / file.name
        if _is_database(path):
            for fault in faults_of(path):
                yield f"{path}: {fault}; so it is in what was copied: keep the copies of before"


def backup_faults(backup: Path, told: Told = lambda done, total: None) -> Iterator[str]:
    """Yield what is wrong with each file of a copy, after a look at every byte of it.

    Raises:
        LogUnavailable: It is no copy, or cannot be read.
        LogCorrupt: Its list is damaged.
    """
    made = _listed(backup)
    yield from _faults(backup, made, _Far(told, made.size_bytes))


def _checked(backup: Path, told: Told) -> tuple[Backup, _Far]:
    made = _listed(backup)
    far = _Far(told, 2 * made.size_bytes)
    for fault in _faults(backup, made, far):
        raise LogCorrupt(fault)
    return made, far


def _listed(backup: Path) -> Backup:
    try:
        made = msgspec.json.decode((backup / LIST_NAME).read_bytes(), type=Backup)
    except FileNotFoundError:
        raise LogUnavailable(
            f"{backup} is no backup: it has no {LIST_NAME}; `tcprepl backup` makes one"
        ) from None
    except OSError as error:
        raise LogUnavailable(f"cannot read {backup}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise LogCorrupt(f"{backup / LIST_NAME}: {error}; use another backup") from error
    for file in made.files:
        if Path(file.name).name != file.name:
            raise LogCorrupt(f"{backup / LIST_NAME}: {file.name!r} is no name of a file")
    return made


def _faults(backup: Path, made: Backup, far: _Far) -> Iterator[str]:
    for file in made.files:
        path = backup / file.name
        try:
            sound = path.stat().st_size == file.size_bytes and _digest(path, far) == file.sha256
        except OSError as error:
            yield f"{path}: {error.strerror}; use another backup"
            continue
        if not sound:
            yield f"{path} is not what was backed up; use another backup"
        elif _is_database(path):
            for fault in faults_of(path):
                yield f"{path}: {fault}; it was damaged when it was backed up: use another"


def _write(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Have what was written to a file or a directory on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system has it for directories
            os.fsync(fd)
    finally:
        os.close(fd)


def _digest(path: Path, far: _Far) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_STEP_BYTES):
            digest.update(piece)
            far.add(len(piece))
    return digest.hexdigest()
