"""What a process says of its reloads, to whoever asks by a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tcprepl.app.answering import Answering, Outcome, Told, told
from tcprepl.errors import LogUnavailable
from tcprepl.storage.lock import PROCESS_NAME


def test_a_process_says_who_it_is_and_what_became_of_its_reloads(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert told(data) is None
    answering = Answering(data)
    assert told(data) == Told(os.getpid(), 0, None)
    long = Outcome(("log.level",) * 9, ("http.listen",), (), "so")
    answering.tell(long)
    assert told(data) == Told(os.getpid(), 1, long)
    answering.tell(Outcome(faults=("no",)))  # a shorter one leaves nothing of the longer
    assert told(data) == Told(os.getpid(), 2, Outcome(faults=("no",)))
    answering.close()
    answering.close()
    assert told(data) is None  # the file is there: a name without a process
    answering.tell(long)


def test_the_second_in_a_directory_says_nothing(tmp_path: Path) -> None:
    first, second = Answering(tmp_path), Answering(tmp_path)
    first.tell(Outcome(text="first"))
    second.tell(Outcome(text="second"))
    found = told(tmp_path)
    assert found is not None
    assert found.outcome == Outcome(text="first")
    first.close()
    second.close()


def test_in_memory_nothing_is_said() -> None:
    answering = Answering(None)
    answering.tell(Outcome())
    answering.close()


def test_what_cannot_be_written_or_read(tmp_path: Path) -> None:
    """It is not in the way of the process; who asks is told."""
    path = tmp_path / PROCESS_NAME
    path.symlink_to(path)
    with capture_logs() as logs:
        answering = Answering(tmp_path)
    assert [entry["event"] for entry in logs] == ["reload.no_answers"]
    answering.tell(Outcome())
    with pytest.raises(LogUnavailable, match="cannot open"):
        told(tmp_path)
    path.unlink()
    answering = Answering(tmp_path)
    path.write_bytes(b"?")
    with pytest.raises(LogUnavailable, match="does not say by whom"):
        told(tmp_path)
    answering.close()


def test_a_full_disk_is_not_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering = Answering(tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with capture_logs() as logs:
        answering.tell(Outcome())
    assert [entry["error"] for entry in logs] == ["No space left on device"]
    answering.close()
