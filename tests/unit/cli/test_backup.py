"""``tcprepl backup``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcprepl.cli import run
from tcprepl.storage.sqlite import MOST_FAULTS
from tcprepl.streams.sqlite_schema import DATABASE_NAME
from tests.damage import invert_page
from tests.log_kit import SqliteStore


def test_the_directory_is_that_of_the_option_the_configuration_or_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = SqliteStore(tmp_path / "tcprepl-data")
    config = tmp_path / "c.yaml"
    config.write_text("server_name: a\ndata_directory: tcprepl-data\n", encoding="utf-8")
    for number, options in enumerate([["--data", "tcprepl-data"], ["--config", str(config)], []]):
        assert run(["backup", f"copy{number}", *options]) == 0
        assert capsys.readouterr().out.startswith(f"copy{number}: 1 file, ")
    store.close()


def test_what_is_in_memory_cannot_be_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("server_name: a\ndata_directory: null\n", encoding="utf-8")
    assert run(["backup", str(tmp_path / "copy"), "--config", str(config)]) == 2
    assert "keeps everything in memory" in capsys.readouterr().err


def test_what_is_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backup", str(tmp_path / "copy"), "--data", str(tmp_path / "none")]) == 1
    assert "cannot read" in capsys.readouterr().err


def test_a_copy_of_what_is_damaged_is_kept_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job that goes by the exit code keeps the good copies of before."""
    SqliteStore(tmp_path / "data").close()
    invert_page(tmp_path / "data" / DATABASE_NAME, 2)
    assert run(["backup", str(tmp_path / "copy"), "--data", str(tmp_path / "data")]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path / 'copy'}: 1 file, ")
    lines = err.splitlines()
    assert 1 <= len(lines) <= MOST_FAULTS
    for line in lines:
        assert line.startswith(f"{tmp_path / 'copy' / DATABASE_NAME}: ")
        assert line.endswith("; so it is in what was copied: keep the copies of before")
    assert "***" not in err
    assert run(["restore", str(tmp_path / "copy"), str(tmp_path / "back")]) == 1
    assert "it was damaged when it was backed up: use another" in capsys.readouterr().err
