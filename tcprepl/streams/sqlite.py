"""The log in a directory of its own: on SQLite, for one process (protocol.md section 7)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from twisted.internet.interfaces import IReactorTime

from tcprepl.logger import get_logger
from tcprepl.storage.lock import DirectoryLock
from tcprepl.storage.sqlite import private_directory
from tcprepl.storage.worker import Worker
from tcprepl.streams.database import Database
from tcprepl.streams.gaps import Gaps
from tcprepl.streams.registry import Registry
from tcprepl.streams.retention import Retention
from tcprepl.streams.sqlite_schema import DATABASE_NAME
from tcprepl.streams.stored import StoredLog

logger = get_logger(__name__)


class SqliteLog(StoredLog):
    """Every stream of one data directory."""

    def __init__(
        self,
        directory: Path | str,
        registry: Registry,
        clock_ms: Callable[[], int],
        worker: Worker,
        retention: Retention | None = None,
        reactor: IReactorTime | None = None,
        gaps: Gaps | None = None,
        reading_worker: Worker | None = None,
    ) -> None:
        """Open the log in *directory*, which is created if need be.

        Args:
            directory: The data directory, for this process alone.
            registry: As for `StoredLog`, as is all that follows.
            clock_ms: As there.
            worker: As there.
            retention: As there.
            reactor: As there.
            gaps: As there.
            reading_worker: As there.

        Raises:
            LogLocked: another process has the directory open.
            LogCorrupt: the database is damaged, or is not one.
            LogTooNew: a newer version of tcprepl wrote it.
            LogUnavailable: the directory cannot be used, or the disk refuses.
        """
        directory = Path(directory)
        private_directory(directory)
        self._lock = DirectoryLock(directory)
        _warn_if_emptied(directory / DATABASE_NAME)
        try:
            database = Database(directory)
        except BaseException:
            worker.stop()
            if reading_worker is not None:
                reading_worker.stop()
            self._lock.release()
            raise
        super().__init__(
            database, registry, clock_ms, worker, retention, reactor, gaps, reading_worker
        )

    def _close_database(self) -> None:
        super()._close_database()
        self._lock.release()


def _warn_if_emptied(path: Path) -> None:
    """Say that a file without a byte begins anew: a first start that was killed leaves one as well.

    What is in its write-ahead log is not lost.
    """
    with suppress(OSError):
        if path.stat().st_size:
            return
        wal = path.with_name(f"{path.name}-wal")
        if not wal.exists() or not wal.stat().st_size:
            logger.warning(
                "streams.log.empty_file",
                path=str(path),
                meaning="begins without a row; if it had some, stop, and put a good copy in place",
            )
