"""``tcprepl replay``: pace, groups, which streams."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tcprepl.cli import replay, run
from tcprepl.cli.recording import RecordedLine, RecordedRows, encode, header
from tcprepl.cli.replay import GROUP_ROWS, grouped

LINES = [
    RecordedLine(0, b"SERVER example.com"),
    RecordedLine(10, b"RDATA a m 5 [1]"),
    RecordedLine(20, b"RDATA a m 6 [2]"),
    RecordedLine(30, b"RDATA b m batch [3]"),
    RecordedLine(40, b"RDATA b m 9 [4]"),
    RecordedLine(400, b"RDATA a m 7 [5]"),
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put a fake in the place of HTTP, and return what it is asked."""
    found: list[dict[str, Any]] = []

    class FakeApi:
        def __init__(self, *args: object) -> None:
            pass

        def post_rows(
            self, stream: str, rows: list[bytes], **options: Any
        ) -> tuple[str, list[int]]:
            found.append({"stream": stream, "rows": rows, "at": time.monotonic(), **options})
            return options["instance"], [len(found)] * len(rows)

    monkeypatch.setattr(replay, "Api", FakeApi)
    return found


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Return a recording."""
    path = tmp_path / "x.rec"
    path.write_bytes(header("a:1", "now") + b"".join(map(encode, LINES)))
    return str(path)


def test_as_fast_as_can_be(
    calls: list[dict[str, Any]], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neighbours go together, batches stay what they are."""
    assert run(["replay", file]) == 0
    assert [(c["stream"], c["rows"], c["batch"]) for c in calls] == [
        ("a", [b"[1]", b"[2]"], False),
        ("b", [b"[3]", b"[4]"], True),
        ("a", [b"[5]"], False),
    ]
    assert len({c["transaction_id"] for c in calls}) == 3
    assert capsys.readouterr().out == "a m 1\na m 1\nb m 2\nb m 2\na m 3\n"


def test_pace_is_kept(calls: list[dict[str, Any]], file: str) -> None:
    """At twice the speed what came after 400 ms comes after 200."""
    began = time.monotonic()
    assert run(["replay", file, "--speed", "2"]) == 0
    assert [len(c["rows"]) for c in calls] == [1, 1, 2, 1]
    assert calls[-1]["at"] - began >= 0.2


def test_only_some_streams(calls: list[dict[str, Any]], file: str) -> None:
    """What is not asked for stays in the file."""
    assert run(["replay", file, "--stream", "b", "--speed", "original"]) == 0
    assert [c["stream"] for c in calls] == ["b"]


def test_damage_is_told(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    """A file that is not there ends with 1, a bad speed with 2."""
    assert run(["replay", str(tmp_path / "none")]) == 1
    assert run(["replay", str(tmp_path / "none"), "--speed", "slow"]) == 2
    assert calls == []


def test_groups_are_bounded() -> None:
    """So many rows and no more go into one request."""
    rows = [RecordedRows(n, "a", "m", False, [b"1"]) for n in range(GROUP_ROWS + 1)]
    assert [len(group.rows) for group in grouped(rows)] == [GROUP_ROWS, 1]
    assert list(grouped([])) == []


def test_another_file_is_no_recording(
    calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused, unless it is said that it is lines of the wire."""
    path = tmp_path / "README.md"
    path.write_text("# Title\nRDATA a m 1 [1]\n", encoding="utf-8")
    assert run(["replay", str(path)]) == 2
    assert "is no recording" in capsys.readouterr().err
    assert calls == []
    assert run(["replay", str(path), "--lines"]) == 0
    assert len(calls) == 1
    assert f"{path}: 1 row of 1 stream published" in capsys.readouterr().err


def test_without_rows_it_says_so(
    calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.rec"
    path.write_bytes(header("a:1", "now") + encode(LINES[0]))
    assert run(["replay", str(path)]) == 1
    assert "there are no rows in it" in capsys.readouterr().err


def test_a_dry_run_publishes_nothing(
    calls: list[dict[str, Any]], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["replay", file, "--dry-run", "--speed", "original"]) == 0
    told = capsys.readouterr()
    assert (told.out, calls) == ("", [])
    assert f"{file}: 5 rows of 2 streams would be published" in told.err


def test_a_stream_that_is_not_in_the_file(
    calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.rec"
    path.write_bytes(header("a:1", "now") + encode(RecordedLine(0, b"RDATA typing m 5 [1]")))
    assert run(["replay", str(path), "--stream", "tping"]) == 2
    assert "has no rows of tping; did you mean typing?" in capsys.readouterr().err
    assert calls == []
