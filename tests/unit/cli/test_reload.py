"""``tcprepl reload``: the process that has the directory, and nobody else."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from tcprepl import cli
from tcprepl.app.answering import Answering, Outcome
from tcprepl.errors import LogUnavailable, TcpreplError
from tcprepl.storage.lock import DirectoryLock


def run(data: Path, *more: str) -> str:
    """Run the command."""
    argv = ["reload", "--data", str(data), *more]
    done = CliRunner().invoke(cli.cli, argv, standalone_mode=False)
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


def answers(monkeypatch: pytest.MonkeyPatch, answering: Answering, *outcomes: Outcome) -> None:
    """Let what is told to reload answer so, and end after the last."""
    left = list(outcomes)
    monkeypatch.setattr(
        os, "kill", lambda *_: answering.tell(left.pop(0)) if left else answering.close()
    )


def test_what_became_of_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(
        monkeypatch,
        Answering(tmp_path),
        Outcome(("log.level", "http.token"), ("http.listen",)),
        Outcome(text="only certificates"),
        Outcome(faults=("log.level: found 'loud'", "a\nb: unknown key")),
    )
    who = f"process {os.getpid()}"
    assert run(tmp_path) == (
        f"{who} has reloaded\n  changed: log.level, http.token\n  needs a restart: http.listen\n"
    )
    assert run(tmp_path) == f"{who} has reloaded\n  only certificates\n"
    with pytest.raises(TcpreplError) as refused:
        run(tmp_path)
    assert str(refused.value) == (
        f"{who} refuses, the old settings hold:\n"
        "  log.level: found 'loud'\n  a\\u000ab: unknown key"
    )
    with pytest.raises(TcpreplError, match="ended before it said"):
        run(tmp_path)


def test_no_answer_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering = Answering(tmp_path)
    monkeypatch.setattr(os, "kill", lambda *_: None)
    with pytest.raises(TcpreplError, match="does not say what became of it; see its log"):
        run(tmp_path, "--within", "0.06")
    answering.close()
