"""The SQLite file of a log that is looked at while nobody serves it; nothing is changed there."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tcprepl.errors import LogUnavailable
from tcprepl.storage.sqlite import can_be_read_unchanged, left_beside, open_unchanged
from tcprepl.streams.database import Database
from tcprepl.streams.sqlite_schema import DATABASE_NAME, SCHEMA


class UnchangedDatabase(Database):
    """A database of which nothing is asked but what is in it; its directory may be read-only."""

    def _connect(self) -> sqlite3.Connection:
        return open_unchanged(self.path, SCHEMA)

    def _connect_reader(self) -> sqlite3.Connection:
        return open_unchanged(self.path, SCHEMA)


@contextmanager
def looking_into(directory: Path) -> Iterator[Database]:
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
        with closing(Database(Path(copy))) as database:
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
