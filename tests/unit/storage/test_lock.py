"""One process per data directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tcprepl.errors import LogLocked, LogUnavailable
from tcprepl.storage.lock import LOCK_NAME, DirectoryLock


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
