"""The SQLite file of a log that is looked at while nobody serves it; nothing is changed there."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tcprepl.errors import LogCorrupt, LogUnavailable
from tcprepl.storage.sqlite import (
    can_be_read_unchanged,
    faults_of,
    left_beside,
    open_unchanged,
)
from tcprepl.streams.database import Database
from tcprepl.streams.sqlite_schema import DATABASE_NAME, SCHEMA


class LookedAt(Database):
    """A database of which nothing is asked but what is in it."""

    def __init__(self, directory: Path, named: Path | None = None) -> None:
        """Open it, as `Database` does; what is wrong is told of the file that is *named*."""
        try:
            super().__init__(directory, named)
        except (LogCorrupt, LogUnavailable) as error:
            text = str(error).replace(str(self.path), str(self.named))
            raise type(error)(text) from error

    def faults(self) -> list[str]:
        """Return what SQLite finds wrong with how the file is built, which takes reading it."""
        return [
            f"{self.named}: {fault}; put a good copy in its place (`tcprepl restore`)"
            for fault in faults_of(self.path)
        ]


class UnchangedDatabase(LookedAt):
    """One that is read where it is; its directory may be read-only."""

    def _connect(self) -> sqlite3.Connection:
        return open_unchanged(self.path, SCHEMA)

    def _connect_reader(self) -> sqlite3.Connection:
        return open_unchanged(self.path, SCHEMA)


@contextmanager
def looking_into(directory: Path) -> Iterator[LookedAt]:
    """Lend what a log holds, of which the caller knows that nobody writes to it.

    A file that cannot be read as it is, because its last process was killed and nothing can be
    written beside it, or because an older version wrote it, is copied first.

    Raises:
        LogCorrupt: The file is not what we wrote.
        LogTooNew: A newer version of tcprepl wrote it.
        LogUnavailable: It cannot be read, or not be copied.
    """
    if can_be_read_unchanged(directory / DATABASE_NAME, SCHEMA):
        with closing(UnchangedDatabase(directory)) as database:
            yield database
        return
    with TemporaryDirectory(prefix="tcprepl-log-") as copy:
        _copy(directory / DATABASE_NAME, Path(copy))
        with closing(LookedAt(Path(copy), directory / DATABASE_NAME)) as database:
            yield database


def _copy(path: Path, directory: Path) -> None:
    try:
        for file in (path, *left_beside(path)):
            shutil.copyfile(file, directory / file.name)
    except OSError as error:
        raise LogUnavailable(
            f"cannot copy {path} to {directory}, to look at it: {error.strerror};"
            " TMPDIR says where else there is room"
        ) from error
