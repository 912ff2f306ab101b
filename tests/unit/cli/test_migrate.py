"""``tcprepl migrate``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tcprepl.cli import progress, run
from tests import postgres_world
from tests.log_kit import DURABLE, SqliteStore, add, row

pytestmark = pytest.mark.postgresql


def test_what_was_done_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(tmp_path / "a")
    add(store, DURABLE, row("a"), row("b"))
    url = postgres_world.fresh_url()
    assert run(["migrate", str(tmp_path / "a"), url]) == 1
    assert "is in use by process" in capsys.readouterr().err
    store.close()
    assert run(["migrate", str(tmp_path / "a"), url]) == 0
    out, err = capsys.readouterr()
    assert "2 rows of 1 stream and instance, 1 incarnation, 0 producers, 0 transaction ids" in out
    assert f"compared with {tmp_path / 'a'}\n{tmp_path / 'a'} is as it was: do not serve" in out
    assert "copying" not in err
    monkeypatch.setattr(progress, "EVERY_S", -1.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run(["migrate", url, str(tmp_path / "b")]) == 0
    out, err = capsys.readouterr()
    assert url not in out
    assert "2 rows of 1 stream and instance, 1 incarnation, " in out
    assert "copying: 2 of 4 rows, " in err
    assert err.endswith("\r\033[K")


def test_what_is_wrong_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["migrate", str(tmp_path), str(tmp_path)]) == 2
    assert "expected a directory and postgresql://" in capsys.readouterr().err
    assert run(["migrate", str(tmp_path), "postgresql://u:secret@127.0.0.1:1/x"]) == 1
    assert "there is no log: no log.sqlite3 is in it" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tcprepl.app.migrating", None)
    assert run(["migrate", str(tmp_path), "postgresql://127.0.0.1:1/x"]) == 2
    assert "pip install 'tcprepl[postgresql]'" in capsys.readouterr().err


def test_what_was_there_before_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(tmp_path / "a")
    add(store, DURABLE, row("a"))
    store.close()
    url = postgres_world.fresh_url()
    from tcprepl.errors import LogUnavailable
    from tcprepl.storage.migrating_postgres import PostgresTarget

    finish = PostgresTarget.finish

    def refuse(self: PostgresTarget) -> None:
        raise LogUnavailable("on purpose")

    monkeypatch.setattr(PostgresTarget, "finish", refuse)
    assert run(["migrate", str(tmp_path / "a"), url]) == 1
    monkeypatch.setattr(PostgresTarget, "finish", finish)
    assert run(["migrate", str(tmp_path / "a"), url]) == 0
    assert "3 of them were there from the attempt before" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--instance", "--sender"])
@pytest.mark.parametrize("name", ["a b", "batch", "7", ""])
def test_names_that_nobody_can_have(
    option: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are refused before anything is written."""
    assert run(["migrate", "here", "postgresql://db/x", option, name]) == 2
    assert f"Invalid value for '{option}'" in capsys.readouterr().err
