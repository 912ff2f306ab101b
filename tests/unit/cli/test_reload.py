"""``tcprepl reload``: the process that has the directory, and nobody else."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from tcprepl import cli
from tcprepl.errors import LogUnavailable, TcpreplError
from tcprepl.storage.lock import DirectoryLock


def run(data: Path) -> str:
    """Run the command."""
    done = CliRunner().invoke(cli.cli, ["reload", "--data", str(data)], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_who_has_the_directory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *call: sent.append(call))
    with pytest.raises(TcpreplError, match="no process uses it"):
        run(tmp_path)
    lock = DirectoryLock(tmp_path)
    assert run(tmp_path) == f"process {os.getpid()} reloads; its log says what has changed\n"
    assert sent == [(os.getpid(), signal.SIGHUP)]

    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    with pytest.raises(TcpreplError, match="is not yours"):
        run(tmp_path)
    (tmp_path / "lock").write_bytes(b"?")
    with pytest.raises(LogUnavailable, match="does not say by whom"):
        run(tmp_path)
    lock.release()
    with pytest.raises(TcpreplError, match="no process uses it"):
        run(tmp_path)


def test_a_lock_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to("lock")
    with pytest.raises(LogUnavailable, match="cannot open"):
        run(tmp_path)
