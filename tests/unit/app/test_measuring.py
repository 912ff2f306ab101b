"""What belongs to the whole process: lateness, and room on the disk."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.task import Clock

from tcprepl import metrics
from tcprepl.app.measuring import (
    LOOK_S,
    TOLD_FOR_LOOKS,
    ProcessMeasures,
    sizes,
)


def test_the_latest_turn_of_the_last_minute() -> None:
    clock = Clock()
    measures = ProcessMeasures(clock, None)
    lateness = metrics.REACTOR_LATENESS.samples
    assert lateness() == {(): 0.0}
    clock.advance(LOOK_S)
    clock.advance(LOOK_S + 0.75)
    assert lateness() == {(): 0.75}
    for _ in range(TOLD_FOR_LOOKS + 1):
        clock.advance(LOOK_S)
    assert lateness()[()] < 0.3
    assert metrics.DATA_BYTES.samples() == metrics.DATA_FREE_BYTES.samples() == {}
    assert measures.stop().called
    assert lateness() == {}
    assert clock.getDelayedCalls() == []


def test_the_room_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(b"12345")
    (tmp_path / "b").write_bytes(b"123")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    measures = ProcessMeasures(Clock(), tmp_path)
    (used,) = metrics.DATA_BYTES.samples().values()
    assert used == 8 + (tmp_path / "gone").lstat().st_size
    assert metrics.DATA_FREE_BYTES.samples()[()] > 0
    _ = measures.stop()


def test_a_file_that_goes_meanwhile(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(b"x")
    found = sizes(tmp_path)
    assert next(found) == 1
    for name in "abc":
        (tmp_path / name).unlink()
    assert list(found) == []
