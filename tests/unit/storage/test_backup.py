"""Copies of a data directory: whole, private, checked, and never half of one."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest

from tcprepl.errors import LogCorrupt, LogLocked, LogUnavailable
from tcprepl.storage import backup as module
from tcprepl.storage.backup import LIST_NAME, check_backup, make_backup, restore_backup
from tcprepl.storage.lock import DirectoryLock
from tests.read_only import reading_only


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a directory as a running server has one: part of it is in the WAL."""
    directory = tmp_path / "data"
    directory.mkdir()
    (directory / "signing.key").write_text("secret")
    (directory / "lock").write_text("1")
    (directory / "sub").mkdir()
    for name in ("relay.sqlite3", "log.sqlite3", "rooms.sqlite"):
        write(directory / name, 1)
    return directory


def write(path: Path, number: int) -> None:
    """Write a row, as a process that is killed then."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA user_version=7")
    connection.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER)")
    connection.execute("INSERT INTO rows VALUES (?)", (number,))
    connection.commit()
    _open.append(connection)


_open: list[sqlite3.Connection] = []


@pytest.fixture(autouse=True)
def _closed() -> Any:
    yield
    while _open:
        _open.pop().close()


def read(path: Path) -> list[int]:
    """Return the rows."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (7,)
        return [number for (number,) in connection.execute("SELECT number FROM rows")]


def test_a_copy_is_whole_and_its_owners_alone(data: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    made = make_backup(data, tmp_path / "deep" / "copy", "1.2")
    os.umask(before)
    copy = tmp_path / "deep" / "copy"
    assert [file.name for file in made.files] == [
        "rooms.sqlite",
        "signing.key",
        "log.sqlite3",
        "relay.sqlite3",
    ]
    assert made.version == "1.2"
    assert check_backup(copy) == made
    assert {path.stat().st_mode & 0o777 for path in copy.iterdir()} == {0o600}
    assert copy.stat().st_mode & 0o777 == 0o700
    assert made.size_bytes == sum(
        path.stat().st_size for path in copy.iterdir() if path.name != LIST_NAME
    )
    write(data / "log.sqlite3", 2)
    back = tmp_path / "back"
    back.mkdir(mode=0o755)
    assert restore_backup(copy, back) == made
    assert back.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in back.iterdir()} == {0o600}
    assert {path.name for path in back.iterdir()} == {*(file.name for file in made.files), "lock"}
    assert read(back / "log.sqlite3") == [1]
    assert (back / "signing.key").read_text() == "secret"
    assert read(data / "log.sqlite3") == [1, 2]


def test_nothing_is_overwritten(data: Path, tmp_path: Path) -> None:
    make_backup(data, tmp_path / "copy", "1")
    with pytest.raises(LogUnavailable, match="copy exists: name a directory that does not"):
        make_backup(data, tmp_path / "copy", "1")
    with pytest.raises(LogUnavailable, match=r"is not empty \(log.sqlite3\): move it away"):
        restore_backup(tmp_path / "copy", data)
    empty = tmp_path / "used"
    empty.mkdir()
    lock = DirectoryLock(empty)
    with pytest.raises(LogLocked):
        restore_backup(tmp_path / "copy", empty)
    lock.release()
    assert read(data / "log.sqlite3") == [1]


def test_what_is_no_data_directory_is_not_copied(tmp_path: Path) -> None:
    with pytest.raises(LogUnavailable, match=r"cannot read .*nowhere: No such file"):
        make_backup(tmp_path / "nowhere", tmp_path / "copy", "1")
    (tmp_path / "notes").write_text("x")
    with pytest.raises(LogUnavailable, match="no data directory of tcprepl"):
        make_backup(tmp_path, tmp_path / "copy", "1")


def test_a_damaged_database_is_not_copied(data: Path, tmp_path: Path) -> None:
    (data / "received.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 4096)
    with pytest.raises(LogCorrupt, match="there is no copying what is damaged"):
        make_backup(data, tmp_path / "copy", "1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_disk_that_refuses_leaves_nothing(data: Path, tmp_path: Path) -> None:
    full = OSError(28, "No space left on device", "file")
    with (
        mock.patch.object(module, "_copy_bytes", side_effect=full),
        pytest.raises(LogUnavailable, match="file: No space left on device"),
    ):
        make_backup(data, tmp_path / "copy", "1")
    busy = sqlite3.OperationalError("database is locked")
    with (
        mock.patch.object(module.sqlite3, "connect", side_effect=busy),
        pytest.raises(LogUnavailable, match="locked"),
    ):
        make_backup(data, tmp_path / "copy", "1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    make_backup(data, tmp_path / "copy", "1")
    with (
        mock.patch.object(module, "_copy_bytes", side_effect=full),
        pytest.raises(LogUnavailable, match="it is not complete: remove it"),
    ):
        restore_backup(tmp_path / "copy", tmp_path / "back")
    (tmp_path / "file").write_text("x")
    with pytest.raises(LogUnavailable, match="cannot make"):
        restore_backup(tmp_path / "copy", tmp_path / "file")


def spoil_bytes(copy: Path) -> None:
    """Alter one byte."""
    path = copy / "log.sqlite3"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def spoil_size(copy: Path) -> None:
    """Cut a file."""
    (copy / "signing.key").write_text("")


def spoil_presence(copy: Path) -> None:
    """Remove a file."""
    (copy / "rooms.sqlite").unlink()


def spoil_list(copy: Path) -> None:
    """Alter the list."""
    (copy / LIST_NAME).write_text("[]")


def spoil_name(copy: Path) -> None:
    """Have the list name a file elsewhere."""
    listed = (copy / LIST_NAME).read_text()
    (copy / LIST_NAME).write_text(listed.replace("signing.key", "../signing.key"))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_bytes, "is not what was backed up; use another backup"),
        (spoil_size, "is not what was backed up; use another backup"),
        (spoil_presence, "No such file or directory; use another backup"),
        (spoil_list, "use another backup"),
        (spoil_name, "is no name of a file"),
    ],
)
def test_a_copy_that_was_altered_is_refused(
    data: Path, tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    copy = tmp_path / "copy"
    make_backup(data, copy, "1")
    spoil(copy)
    with pytest.raises(LogCorrupt, match=told):
        restore_backup(copy, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_what_was_damaged_already_is_found(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with mock.patch.object(module, "_copy_database", lambda a, b, far: b.write_bytes(b"x" * 99)):
        make_backup(data, copy, "1")
    with (
        mock.patch.object(module, "_is_database", lambda path: path.suffix == ".sqlite3"),
        pytest.raises(LogCorrupt, match="it was damaged when it was backed up"),
    ):
        check_backup(copy)
    broken = mock.MagicMock()
    broken.execute.return_value.fetchall.return_value = [("page 3 is never used",)]
    with (
        mock.patch.object(module.sqlite3, "connect", return_value=broken),
        mock.patch.object(module, "_is_database", return_value=True),
        pytest.raises(LogCorrupt, match="page 3 is never used"),
    ):
        check_backup(copy)


def test_what_is_no_copy_says_how_to_make_one(data: Path, tmp_path: Path) -> None:
    with pytest.raises(LogUnavailable, match="`tcprepl backup` makes one"):
        check_backup(data)
    (tmp_path / "odd" / LIST_NAME).mkdir(parents=True)
    with pytest.raises(LogUnavailable, match=r"cannot read .*: Is a directory"):
        check_backup(tmp_path / "odd")


def test_a_file_that_cannot_be_read_is_named(data: Path, tmp_path: Path) -> None:
    denied = PermissionError(13, "Permission denied")
    with (
        mock.patch.object(Path, "open", side_effect=denied),
        pytest.raises(LogUnavailable, match=r"cannot read .*: Permission denied"),
    ):
        make_backup(data, tmp_path / "copy", "1")


def test_a_database_is_of_one_moment_though_it_is_copied_step_by_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written between two steps is not in the copy, and does not make it begin anew."""
    log = data / "log.sqlite3"
    for number in range(2, 12):
        write(log, number)
    with closing(sqlite3.connect(log)) as connection:
        connection.execute("CREATE TABLE blobs (x)")
        connection.executemany("INSERT INTO blobs VALUES (zeroblob(?))", [(5_000,)] * 50)
        connection.commit()
    monkeypatch.setattr(module, "_STEP_PAGES", 7)
    monkeypatch.setattr(module, "_STEP_BYTES", 1_000)
    far: list[tuple[int, int]] = []

    def told(done: int, total: int) -> None:
        far.append((done, total))
        if len(far) % 5 == 0 and len(far) < 100:
            write(log, 100 + len(far))

    make_backup(data, tmp_path / "copy", "1", told)
    copied = read(tmp_path / "copy" / "log.sqlite3")
    assert copied == sorted(copied)
    assert copied[:11] == list(range(1, 12))
    assert len(copied) < len(read(log))
    dones = [done for done, _ in far]
    assert dones == sorted(dones)
    assert len({total for _, total in far}) == 1
    check_backup(tmp_path / "copy")


def test_a_directory_that_cannot_be_written_to_is_copied(tmp_path: Path) -> None:
    """Nobody serves it: there is nothing beside the databases, and nothing can be put there."""
    with TemporaryDirectory(prefix="tcprepl-test-") as name:
        place = Path(name)
        (place / "data").mkdir()
        (place / "copies").mkdir()
        (place / "copies").chmod(0o777)
        place.chmod(0o755)
        write(place / "data" / "log.sqlite3", 1)
        _open.pop().close()
        (place / "data" / "lock").touch()
        with reading_only(place / "data"):
            make_backup(place / "data", place / "copies" / "a", "1.2")
            held = os.open(place / "data" / "lock", os.O_RDONLY)
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(LogLocked):
                make_backup(place / "data", place / "copies" / "b", "1.2")
            os.close(held)
        assert read(place / "copies" / "a" / "log.sqlite3") == [1]
        # killed, and mounted without what its process had shared: not all of it is in the file
        write(tmp_path / "log.sqlite3", 2)
        for left in ("log.sqlite3", "log.sqlite3-wal"):
            shutil.copyfile(tmp_path / left, place / "data" / left)
        with (
            reading_only(place / "data"),
            pytest.raises(LogUnavailable, match=r"copy all of .*data to where it can be written"),
        ):
            make_backup(place / "data", place / "copies" / "c", "1.2")


def test_how_far_a_restore_is(data: Path, tmp_path: Path) -> None:
    """Each byte is read, then written."""
    made = make_backup(data, tmp_path / "copy", "1")
    far: list[tuple[int, int]] = []
    restore_backup(tmp_path / "copy", tmp_path / "new", lambda *how: far.append(how))
    assert far[-1] == (2 * made.size_bytes, 2 * made.size_bytes)
