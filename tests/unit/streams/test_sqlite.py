"""The log in a directory: nobody else may have it open."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tcprepl.errors import LogCorrupt, LogLocked, LogUnavailable
from tcprepl.storage.worker import InlineWorker
from tcprepl.streams.sqlite import SqliteLog
from tcprepl.streams.sqlite_schema import DATABASE_NAME
from tests.log_kit import SqliteStore, add, make_registry, row


def test_the_directory_is_for_one_log(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "data")
    with pytest.raises(LogLocked):
        SqliteStore(store.directory)
    store.close()
    SqliteStore(store.directory).close()
    (tmp_path / "file").write_text("")
    with pytest.raises(LogUnavailable, match="cannot make"):
        SqliteStore(tmp_path / "file" / "data")


def test_a_file_that_is_no_database_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / DATABASE_NAME).write_bytes(b"x" * 4_096)
    for worker in (None, InlineWorker()):
        with pytest.raises(LogCorrupt):
            SqliteStore(tmp_path, reading_worker=worker)
    (tmp_path / DATABASE_NAME).unlink()
    SqliteStore(tmp_path).close()


def test_a_file_without_a_byte_begins_anew_and_that_is_said(tmp_path: Path) -> None:
    """A first start that was killed leaves one; so does a copy that failed."""

    def told() -> list[str]:
        with capture_logs() as logs:
            SqliteStore(tmp_path).close()
        return [entry["path"] for entry in logs if entry["event"] == "streams.log.empty_file"]

    path = tmp_path / DATABASE_NAME
    assert told() == []
    assert told() == []
    path.write_bytes(b"")
    assert told() == [str(path)]
    store = SqliteStore(tmp_path)
    add(store, "push_rules", row("a"))
    before = {file.name: file.read_bytes() for file in tmp_path.glob("log.sqlite3*")}
    store.close()
    for name, content in before.items():  # as after a crash
        (tmp_path / name).write_bytes(content)
    path.write_bytes(b"")
    assert told() == []


class Stopping(InlineWorker):
    """A worker that notes that it is stopped."""

    stopped = False

    def stop(self) -> None:
        """Note it."""
        self.stopped = True


def test_what_cannot_be_opened_leaves_no_thread(tmp_path: Path) -> None:
    (tmp_path / DATABASE_NAME).write_bytes(b"x" * 4_096)
    writing, reading = Stopping(), Stopping()
    with pytest.raises(LogCorrupt):
        SqliteLog(tmp_path, make_registry(), lambda: 0, writing, reading_worker=reading)
    assert (writing.stopped, reading.stopped) == (True, True)


def test_what_is_closed_has_no_file_open(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    database = store.log._database
    store.close()
    with pytest.raises(LogUnavailable, match="closed"):
        database.pairs()
