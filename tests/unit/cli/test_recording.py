"""The recording format: exact lines, checksums, cut-off ends, bare captures."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.cli.recording import (
    BOM,
    BadRecording,
    NoRecording,
    RecordedLine,
    RecordedRows,
    cut_to_whole_lines,
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
    [
        ((b"SERVER", b"SERVED"), "does not match its checksum"),
        ((b"15 ", b"x "), "expected a time"),
        ((b"15 ", b"15 \xff"), "does not match its checksum"),
    ],
)
def test_damage_is_found(tmp_path: Path, change: tuple[bytes, bytes], message: str) -> None:
    """A changed byte is told with its place."""
    write(tmp_path / "x", LINES)
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes().replace(*change))
    with pytest.raises(BadRecording, match=rf"x:[45]: .*{message}"):
        list(read(tmp_path / "x"))


@pytest.mark.parametrize("text", [b"", b"# A readme\nRDATA typing master 1 []\n", b"\xff\x00"])
def test_what_is_no_recording_is_recognised(tmp_path: Path, text: bytes) -> None:
    """A file has to say that it is one; bare lines are taken when the caller says so."""
    (tmp_path / "x").write_bytes(text)
    with pytest.raises(NoRecording, match=r"x: is no recording of `tcprepl record`$"):
        list(read(tmp_path / "x"))
    assert len(list(read(tmp_path / "x", bare=True))) == len(text.splitlines())


def test_a_byte_order_mark_does_not_count(tmp_path: Path) -> None:
    write(tmp_path / "x", LINES)
    (tmp_path / "x").write_bytes(BOM + (tmp_path / "x").read_bytes())
    assert list(read(tmp_path / "x")) == LINES
    (tmp_path / "x").write_bytes(BOM + b"RDATA a m 1 [1]\n")
    assert [line.line for line in read(tmp_path / "x", bare=True)] == [b"RDATA a m 1 [1]"]


def test_lines_and_rows_know_where_they_stand(tmp_path: Path) -> None:
    """As an editor counts."""
    path = tmp_path / "x"
    write(path, LINES)
    assert [line.place for line in read(path)] == [f"{path}:{n}" for n in (4, 5, 6)]
    path.write_bytes(b"\nRDATA a m batch [1]\n\nRDATA a m 2 [2]\n")
    (found,) = rows(read(path, bare=True))
    assert found.places == [f"{path}:2", f"{path}:4"]


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"a\nb\n", b"a\nb\n"), (b"a\nb", b"a\n"), (b"b" * 70_000, b""), (b"", b""),
     (b"a\n" + b"b" * 70_000, b"a\n")],
)  # fmt: skip
def test_a_cut_off_line_is_taken_away(tmp_path: Path, before: bytes, after: bytes) -> None:
    (tmp_path / "x").write_bytes(before)
    with (tmp_path / "x").open("r+b") as file:
        cut_to_whole_lines(file)
        assert file.tell() == len(after)
    assert (tmp_path / "x").read_bytes() == after


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is said so."""
    with pytest.raises(BadRecording, match="No such file"):
        list(read(tmp_path / "none"))


def test_real_capture() -> None:
    """What nc received from a real Synapse is read; all its rows are there."""
    lines = list(read(CAPTURE, bare=True))
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
    with pytest.raises(BadRecording, match="x:7: not a row"):
        list(rows([RecordedLine(0, b"RDATA typing", "x:7")]))
