"""``tcprepl positions``."""

from __future__ import annotations

import json

import pytest

from tcprepl.cli import positions, run
from tests.cli_world import CliWorld


@pytest.mark.parametrize("as_json", [False, True])
def test_positions(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each stream and instance."""
    world = CliWorld(monkeypatch)
    world.adopt(positions)
    world.publish("typing", ["!r:a", []])
    assert run(["positions", *(["--json"] if as_json else [])]) == 0
    lines = capsys.readouterr().out.splitlines()
    if as_json:
        assert {"stream": "typing", "instance": "master", "token": 1} in map(json.loads, lines)
    else:
        assert "typing master 1" in lines
    assert len(lines) == 3


def test_only_some_streams(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = CliWorld(monkeypatch)
    world.adopt(positions)
    assert run(["positions", "caches", "typing"]) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == ["caches master 0", "typing master 0"]
    assert run(["positions", "tping"]) == 2
    assert "did you mean typing?" in capsys.readouterr().err
