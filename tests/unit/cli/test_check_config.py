"""``tcprepl check-config``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcprepl.cli import run


def test_good_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A good file is called good; warnings go to stderr."""
    path = tmp_path / "good.yaml"
    path.write_text("server_name: a\nworker_name: b\n", encoding="utf-8")
    assert run(["check-config", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{path}: good\n"
    assert captured.err == "warning: worker_name: understood as instance; write instance instead\n"


def test_bad_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All faults are printed, and the exit code is 2."""
    path = tmp_path / "bad.yaml"
    path.write_text("server_nam: a\ninstance: [1]\n", encoding="utf-8")
    assert run(["check-config", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == f"tcprepl: {path}: 2 faults"
    assert len(captured.err.splitlines()) == 3
