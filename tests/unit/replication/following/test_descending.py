"""Rows of a writer that counts down: held, put in order, never dropped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.protocol.commands import PositionCommand
from tcprepl.protocol.events import MixedReceived, RowsReceived, RunReceived, in_batches
from tcprepl.replication.following import descending as module
from tcprepl.replication.following.descending import DescendingRows
from tcprepl.replication.following.progress import Progress
from tcprepl.streams.position_store import MemoryPositionStore

PAIR = ("backfill", "w1")


def rows(*tokens: int, pair: tuple[str, str] = PAIR) -> list[object]:
    """Return a batch of one row for each token."""
    return [RowsReceived(*pair, token, [b"[%d]" % token]) for token in tokens]


def position(prev: int, token: int) -> PositionCommand:
    """Return a position."""
    return PositionCommand(*PAIR, prev, token)


def made(known: int | None = 1) -> tuple[DescendingRows, Progress]:
    """Return what holds rows of a reader that is at *known*."""
    progress = Progress(MemoryPositionStore({} if known is None else {PAIR: known}))
    progress.load()
    return DescendingRows(progress), progress


def test_other_streams_pass_as_they_are() -> None:
    descending, _ = made()
    events = [*rows(3, pair=("typing", "w1")), "command", RunReceived("caches", "w", [2], [b"2"])]
    assert descending.sort(events) is events
    mixed = MixedReceived([("typing", "w1"), ("caches", "w")], [1, 2], [b"1", b"2"])
    assert descending.sort(again := [mixed]) is again


def test_rows_among_those_of_other_streams_are_held() -> None:
    descending, _ = made(known=None)
    mixed = MixedReceived([PAIR, ("typing", "w1"), PAIR], [5, 1, 4], [b"[5]", b"[1]", b"[4]"])
    assert descending.sort([mixed]) == rows(1, pair=("typing", "w1"))
    assert descending.sort([position(1, 5)]) == [*rows(4, 5), position(1, 5)]


def test_a_position_lets_everything_go_in_order() -> None:
    descending, _ = made()
    assert descending.sort(rows(6, 5, 3)) == []
    assert descending.holds
    assert descending.sort([position(3, 6)]) == [*rows(3, 5, 6), position(3, 6)]
    assert not descending.holds


def test_rows_without_a_hole_need_no_position() -> None:
    descending, progress = made()
    run = RunReceived(*PAIR, [4, 3], [b"[4]", b"[3]"])
    assert descending.sort([run]) == []
    assert descending.sort(["x", *rows(2)]) == ["x", *rows(2, 3, 4)]
    # although they are not applied yet
    assert descending.sort(rows(5)) == rows(5)
    assert progress.known == {PAIR: 1}
    # what was applied long ago is dropped by others
    assert descending.sort(rows(2)) == rows(2)
    assert descending.sort(rows(5)) == rows(5)


def test_nothing_goes_on_before_anything_is_known() -> None:
    descending, _ = made(None)
    assert descending.sort(rows(1)) == []
    assert descending.release() == rows(1)
    assert descending.release() == []


def test_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HELD", 3)
    descending, _ = made()
    # what is to come below is told as missing, and dropped by others as known when it comes
    assert descending.sort(rows(9, 8, 7)) == [position(6, 6), *rows(7, 8, 9)]
    assert descending.sort(rows(6)) == rows(6)
    descending.sort(rows(12))
    descending.clear()
    assert not descending.holds


def test_what_lies_between_rows_that_wait_no_longer_is_told_as_missing() -> None:
    descending, _ = made()
    descending.sort(rows(9, 7, 8, 5, 3))
    assert descending.release() == [
        position(2, 2),
        *rows(3),
        position(4, 4),
        *rows(5),
        position(6, 6),
        *rows(7, 8, 9),
    ]
    # A writer whose newest row came last has said all: what is between is of other instances.
    descending.sort(rows(12))
    assert descending.release() == rows(12)


@given(st.data())
def test_every_row_goes_on_once_and_in_order(data: st.DataObject) -> None:
    """Groups of tokens, each written in any order, then a position; cut into reads anywhere."""
    wire: list[object] = []
    top = 1
    for size in data.draw(st.lists(st.integers(1, 5), max_size=5)):
        tokens = data.draw(st.permutations(range(top + 1, top + 1 + size)))
        wire += rows(*tokens)
        top += size
        if tokens[-1] != top:
            wire.append(position(tokens[-1], top))
    descending, progress = made()
    got: list[int] = []
    while wire:
        count = data.draw(st.integers(1, len(wire)))
        for event in in_batches(descending.sort(wire[:count])):
            if isinstance(event, RowsReceived):
                got.append(event.token)
                progress.advance(PAIR, event.token)
        del wire[:count]
    assert got == list(range(2, top + 1))


def test_what_went_on_over_a_lost_connection_is_not_what_is_applied() -> None:
    """It was not handed over before the end, say: the rows come again, and wait again."""
    descending, _ = made()
    assert descending.sort([position(1, 9)]) == [position(1, 9)]
    descending.clear()
    assert descending.sort(rows(4)) == []
    assert descending.sort(rows(3, 2)) == rows(2, 3, 4)


def test_nothing_is_missing_below_the_first_rows_of_a_reader_that_knows_nothing() -> None:
    descending, _ = made(None)
    descending.sort(rows(9, 8))
    assert descending.release() == rows(8, 9)
