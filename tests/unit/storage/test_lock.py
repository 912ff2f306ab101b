"""One process per data directory."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from tcprepl.errors import LogLocked, LogUnavailable
from tcprepl.storage.lock import LOCK_NAME, DirectoryLock, kept_from_others


def test_the_second_is_told_who_has_it(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    with pytest.raises(
        LogLocked, match=f"in use by process {os.getpid()}: stop that one"
    ) as caught:
        DirectoryLock(tmp_path)
    assert caught.value.pid == os.getpid()
    lock.release()
    lock.release()
    DirectoryLock(tmp_path).release()


def test_a_stale_file_does_not_stand_in_the_way(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text("99999999 and more")
    lock = DirectoryLock(tmp_path)
    assert (tmp_path / LOCK_NAME).read_text() == str(os.getpid())
    (tmp_path / LOCK_NAME).write_text("somebody")
    with pytest.raises(LogLocked, match="another process") as caught:
        DirectoryLock(tmp_path)
    assert caught.value.pid is None
    lock.release()


def test_a_lock_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(LogUnavailable, match=r"cannot open .*lock"):
        DirectoryLock(tmp_path / "nowhere")


def test_a_disk_that_is_full_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot say whose it is is not taken: neither by us, nor in the way of the next."""
    with monkeypatch.context() as patched:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        patched.setattr(os, "write", Mock(side_effect=full))
        with pytest.raises(LogUnavailable, match=r"cannot write .*lock: No space left"):
            DirectoryLock(tmp_path)
    DirectoryLock(tmp_path).release()


def test_who_reads_keeps_writers_out_and_other_readers_in(tmp_path: Path) -> None:
    with kept_from_others(tmp_path):
        pass
    assert not (tmp_path / LOCK_NAME).exists()
    lock = DirectoryLock(tmp_path)
    said = f"in use by process {os.getpid()}"
    with pytest.raises(LogLocked, match=said), kept_from_others(tmp_path):
        pass
    lock.release()
    (tmp_path / LOCK_NAME).chmod(0o400)
    (tmp_path / LOCK_NAME).write_text("")
    with kept_from_others(tmp_path), kept_from_others(tmp_path):
        assert (tmp_path / LOCK_NAME).read_text() == ""
        with pytest.raises(LogLocked):
            DirectoryLock(tmp_path)
    DirectoryLock(tmp_path).release()
    (tmp_path / LOCK_NAME).unlink()
    (tmp_path / LOCK_NAME).symlink_to(LOCK_NAME)
    with pytest.raises(LogUnavailable, match=r"cannot open .*lock"), kept_from_others(tmp_path):
        pass
