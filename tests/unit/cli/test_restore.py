"""``tcprepl restore``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcprepl.cli import run
from tests.log_kit import DURABLE, SqliteStore, add, row


def test_a_copy_becomes_a_directory_in_an_incarnation_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = SqliteStore(tmp_path / "data")
    add(store, DURABLE, row("a"))
    assert run(["backup", str(tmp_path / "copy"), "--data", str(tmp_path / "data")]) == 0
    assert run(["restore", str(tmp_path / "copy"), str(tmp_path / "back")]) == 0
    assert "start the server on it" in capsys.readouterr().out
    add(store, DURABLE, row("lost"))
    back = SqliteStore(tmp_path / "back")
    assert back.log.position(DURABLE, "w") == 1
    assert back.log.history.shared((DURABLE, "w"), 2, store.log.history.current) == 1
    store.close()
    back.close()


def test_what_is_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["restore", str(tmp_path), str(tmp_path / "back")]) == 1
    assert "is no backup" in capsys.readouterr().err
