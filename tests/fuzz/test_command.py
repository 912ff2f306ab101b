"""What ``python -m tests.fuzz`` does without a program that it compares with."""

from __future__ import annotations

import argparse

import pytest

from tests.fuzz import __main__ as command


@pytest.fixture(autouse=True)
def nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Redis nor Synapse."""
    monkeypatch.setattr(command.shutil, "which", lambda _: None)
    monkeypatch.setattr(command.others, "synapse", lambda: None)


def test_what_it_cannot_compare_is_left_out_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    found = command.chosen(argparse.ArgumentParser(), [])
    assert set(found) == command.TARGETS.keys() - {"inline", "requests", "replies"}
    said = capsys.readouterr().out
    assert "inline       is left out: please install redis-server" in said
    assert "requests     is left out: please install redis-server and cc" in said
    assert "x-matrix     has no Synapse beside it" in said


def test_what_was_asked_for_is_not_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    assert command.chosen(parser, ["tokens"]) == ["tokens"]
    with pytest.raises(SystemExit) as ended:
        command.chosen(parser, ["inline", "tokens"])
    assert ended.value.code == 2
    assert "inline: please install redis-server" in capsys.readouterr().err
