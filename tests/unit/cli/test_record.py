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
    assert "exists; --force writes it anew, --append continues it" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == "mine"
    assert run(["record", str(tmp_path / "y"), "--since", "7"]) == 2


def test_force_and_append(
    world: CliWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anew, or on from where it was cut off; times go on, too."""
    file = tmp_path / "x.rec"
    world.publish("typing", ["!r:a", []])
    command = ["record", str(file), "typing", "--since", "start", "--count", "1"]
    assert run(command) == 0
    first = file.read_bytes()
    rows = list(recording.rows(recording.read(file)))
    assert run([*command, "--force"]) == 0
    assert list(recording.rows(recording.read(file))) == rows
    file.write_bytes(first[:-1] + b"\n90000 00")
    assert run([*command, "--append"]) == 0
    both = list(recording.rows(recording.read(file)))
    assert [row.rows for row in both] == [rows[0].rows] * 2
    assert both[0].ms <= both[1].ms
    assert file.read_bytes().startswith(first)
    assert run([*command, "--append", "--force"]) == 2
    new = tmp_path / "new.rec"
    assert run(["record", str(new), *command[2:], "--append"]) == 0
    assert len(list(recording.rows(recording.read(new)))) == 1
    (tmp_path / "other").write_text("mine", encoding="utf-8")
    capsys.readouterr()
    assert run(["record", str(tmp_path / "other"), "--append", "--count", "1"]) == 2
    told = capsys.readouterr().err
    assert told == f"tcprepl: {tmp_path / 'other'}: is no recording of `tcprepl record`\n"
    assert (tmp_path / "other").read_text(encoding="utf-8") == "mine"


def test_a_connection_that_never_was_leaves_no_file(
    world: CliWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that was leaves one, even if there was nothing to write."""
    file = tmp_path / "x.rec"
    world.network.factory = None
    assert run(["record", str(file), "--for", "3"]) == 1
    assert not file.exists()
    told = capsys.readouterr().err
    assert "tcprepl: " in told
    assert " lines" not in told


def test_a_file_that_cannot_be_made_has_no_lines(
    world: CliWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["record", str(tmp_path / "absent" / "x.rec"), "--until-head"]) == 1
    told = capsys.readouterr().err
    assert "No such file or directory" in told
    assert " lines" not in told


def test_a_head_without_rows_is_recorded(world: CliWorld, tmp_path: Path) -> None:
    assert run(["record", str(tmp_path / "y.rec"), "--until-head"]) == 0
    assert list(recording.read(tmp_path / "y.rec")) == []


def test_a_stream_that_there_is_not_is_all_that_is_told(
    world: CliWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.rec"
    assert run(["record", str(file), "tping", "--until-head"]) == 2
    told = capsys.readouterr().err
    assert "did you mean typing?" in told
    assert "lines" not in told
    assert not file.exists()


@pytest.mark.parametrize("made", [False, True], ids=["moved", "created"])
def test_a_file_that_was_moved_away_is_begun_anew(
    world: CliWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], made: bool
) -> None:
    """As logrotate does it, with or without ``create``; the old one is whole."""
    file = tmp_path / "x.rec"

    def rotate() -> None:
        file.rename(tmp_path / "x.rec.1")
        if made:
            file.touch()

    world.publish("typing", ["!r:a", []])
    world.later(5, rotate)
    world.later(6, lambda: world.publish("typing", ["!s:a", []]))
    command = ["record", str(file), "typing", "--since", "start", "--count", "2"]
    assert run([*command, "--follow-name"]) == 0
    rows = []
    for name in ("x.rec.1", "x.rec"):
        lines = [line for line in recording.read(tmp_path / name) if b"RDATA" in line.line]
        rows += [(name, line.line.split(b" ")[3]) for line in lines]
    assert rows == [("x.rec.1", b"1"), ("x.rec", b"2")]
    assert "lines" in capsys.readouterr().err


def test_another_file_in_its_place_is_kept(
    world: CliWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, mine = tmp_path / "x.rec", tmp_path / "mine"
    mine.write_text("mine", encoding="utf-8")
    world.publish("typing", ["!r:a", []])
    world.later(5, lambda: mine.rename(file))
    world.later(6, lambda: world.publish("typing", ["!s:a", []]))
    command = ["record", str(file), "typing", "--since", "start", "--count", "2"]
    assert run([*command, "--follow-name"]) == 1
    assert "File exists" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == "mine"
