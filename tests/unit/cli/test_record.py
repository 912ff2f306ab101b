"""``tcprepl record``: a file that replay reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcprepl.cli import record, recording, run
from tests.cli_world import CliWorld


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> CliWorld:
    """A server on a fake clock."""
    world = CliWorld(monkeypatch)
    world.adopt(record)
    return world


def test_rows_positions_and_times(
    world: CliWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each line is there with its time; batches are kept."""
    file = tmp_path / "x.rec"
    world.publish("device_lists", ["@1:a"], ["@2:a"], batch=True)
    world.later(2.0, lambda: world.publish("typing", ["!r:a", []]))
    assert run(["record", str(file), "--since", "start", "--count", "3"]) == 0
    lines = list(recording.read(file))
    assert f"{file}: {len(lines)} lines\n" in capsys.readouterr().err
    assert [line.line for line in lines if line.line.startswith(b"RDATA")] == [
        b'RDATA device_lists master batch ["@1:a"]',
        b'RDATA device_lists master 1 ["@2:a"]',
        b'RDATA typing master 1 ["!r:a",[]]',
    ]
    assert lines[0].ms < 1000 < lines[-1].ms
    assert any(line.line == b"POSITION caches master 0 0" for line in lines)
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# tcprepl recording 1\n# from 127.0.0.1:9092\n# started 2")


def test_what_is_there_is_kept(
    world: CliWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file is written over; a token needs its stream."""
    file = tmp_path / "x.rec"
    file.write_text("mine", encoding="utf-8")
    assert run(["record", str(file), "--until-head"]) == 1
    assert "File exists" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == "mine"
    assert run(["record", str(tmp_path / "y"), "--since", "7"]) == 2
