"""The recording format: exact lines, checksums, cut-off ends, bare captures."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.cli.recording import (
    BadRecording,
    RecordedLine,
    RecordedRows,
    encode,
    header,
    read,
    rows,
)
from tests.harness import CAPTURE

LINES = [
    RecordedLine(0, b"SERVER example.com"),
    RecordedLine(15, b'RDATA typing master 1 ["!r:a",[]]'),
    RecordedLine(15, b"  odd  spaces "),
]


def write(path: Path, lines: list[RecordedLine]) -> None:
    """Write a recording."""
    path.write_bytes(header("a:1", "2026-11-23T00:00:00Z") + b"".join(map(encode, lines)))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Lines keep their time and every byte."""
    write(tmp_path / "x", LINES)
    assert list(read(tmp_path / "x")) == LINES


@given(st.lists(st.builds(RecordedLine, st.integers(0, 2**40), st.binary(max_size=80))))
def test_any_line_survives(lines: list[RecordedLine]) -> None:
    """Whatever a line holds but LF, it comes back."""
    import tempfile

    lines = [RecordedLine(x.ms, x.line.replace(b"\n", b"?")) for x in lines]
    with tempfile.TemporaryDirectory() as where:
        write(Path(where) / "x", lines)
        assert list(read(Path(where) / "x")) == lines


def test_documented_example_is_true() -> None:
    """The checksum of the module's example is right."""
    import tcprepl.cli.recording as module

    assert module.__doc__ is not None
    for line in LINES[:1]:
        assert encode(line).decode().strip() in module.__doc__


def test_a_cut_off_end_is_left_out(tmp_path: Path) -> None:
    """A recorder that was killed leaves a file that is good up to there."""
    write(tmp_path / "x", LINES)
    whole = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(whole[:-3])
    assert list(read(tmp_path / "x")) == LINES[:2]


@pytest.mark.parametrize(
    ("change", "message"),
    [((b"SERVER", b"SERVED"), "does not match its checksum"), ((b"15 ", b"x "), "expected a time")],
)
def test_damage_is_found(tmp_path: Path, change: tuple[bytes, bytes], message: str) -> None:
    """A changed byte is told with its place."""
    write(tmp_path / "x", LINES)
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes().replace(*change))
    with pytest.raises(BadRecording, match=rf"x:[45]: .*{message}"):
        list(read(tmp_path / "x"))


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is said so."""
    with pytest.raises(BadRecording, match="No such file"):
        list(read(tmp_path / "none"))


def test_real_capture() -> None:
    """What nc received from a real Synapse is read; all its rows are there."""
    lines = list(read(CAPTURE))
    assert len(lines) == 177
    found = list(rows(lines))
    assert sum(len(group.rows) for group in found) == sum(
        line.line.startswith(b"RDATA ") for line in lines
    )
    assert any(group.batch and len(group.rows) == 2 for group in found)


def test_rows_of_every_form() -> None:
    """With and without an instance; batches of several streams may interleave."""
    wire = [
        b"RDATA typing 5 [1]",
        b"RDATA a m batch [1]",
        b"RDATA b m batch [2]",
        b"RDATA b m 3 [3]",
        b"RDATA a m 7 [4, 5]",
        b"RDATA old batch [6]",
        b"RDATA old 9 [7]",
        b"RDATA cut m batch [8]",
        b"POSITION a m 7 7",
    ]
    assert list(rows(RecordedLine(n, line) for n, line in enumerate(wire))) == [
        RecordedRows(0, "typing", "master", False, [b"[1]"]),
        RecordedRows(3, "b", "m", True, [b"[2]", b"[3]"]),
        RecordedRows(4, "a", "m", True, [b"[1]", b"[4, 5]"]),
        RecordedRows(6, "old", "master", True, [b"[6]", b"[7]"]),
    ]


def test_what_is_no_row_is_refused() -> None:
    """An RDATA line that makes no sense is an error, not a silence."""
    with pytest.raises(BadRecording, match="not a row"):
        list(rows([RecordedLine(0, b"RDATA typing")]))
