"""What a relay keeps beside its log: on disk at once, and honest after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcprepl.errors import LogCorrupt, LogUnavailable
from tcprepl.replication.relaying.state import FILE_NAME, Epoch, Gap, Gaps, RelayState

PAIR = ("typing", "master")


def test_gaps_are_found_by_where_they_end() -> None:
    gaps = Gaps()
    assert gaps.next(PAIR, 0) is None
    gaps.add(PAIR, Gap(20, 30, lost=True))
    gaps.add(PAIR, Gap(5, 9, lost=False))
    assert gaps.next(PAIR, 0) == gaps.next(PAIR, 8) == Gap(5, 9, lost=False)
    assert gaps.next(PAIR, 9) == gaps.next(PAIR, 29) == Gap(20, 30, lost=True)
    assert gaps.next(PAIR, 30) is None
    gaps.add(PAIR, Gap(20, 35, lost=True))
    assert gaps.all() == [(PAIR, Gap(5, 9, lost=False)), (PAIR, Gap(20, 35, lost=True))]
    gaps.keep(PAIR, 9, 34)
    assert gaps.all() == []


def test_a_cursor_stands_in_a_gap_from_its_beginning_on_and_has_passed_it_at_its_end() -> None:
    gaps = Gaps()
    assert gaps.at(PAIR, 0) is None
    gap = Gap(5, 9, lost=True)
    gaps.add(PAIR, gap)
    assert [gaps.at(PAIR, cursor) for cursor in (4, 5, 8, 9)] == [None, gap, gap, None]
    assert gaps.at(("typing", "w1"), 5) is None


def test_gaps_that_adjoin_are_passed_at_once_as_far_as_the_position_is() -> None:
    gaps = Gaps()
    chained = [Gap(5, 9, lost=True), Gap(9, 10, lost=False), Gap(10, 20, lost=True)]
    for gap in (*chained, Gap(21, 30, lost=True)):
        gaps.add(PAIR, gap)
    assert gaps.chain(PAIR, 5, 40) == chained
    assert gaps.chain(PAIR, 9, 40) == chained[1:]
    assert gaps.chain(PAIR, 7, 19) == chained[:2]
    assert gaps.chain(PAIR, 4, 40) == gaps.chain(PAIR, 20, 40) == gaps.chain(PAIR, 5, 8) == []


def test_a_read_ends_where_the_next_gap_begins() -> None:
    gaps = Gaps()
    assert gaps.readable(PAIR, 0, 7) == 7
    gaps.add(PAIR, Gap(5, 9, lost=True))
    assert [gaps.readable(PAIR, cursor, 40) for cursor in (0, 4, 9, 10)] == [5, 5, 40, 40]
    assert gaps.readable(PAIR, 0, 3) == 3


def test_a_move_within_one_gap_is_covered() -> None:
    gaps = Gaps()
    assert not gaps.covers(PAIR, 0, 1)
    gaps.add(PAIR, Gap(5, 9, lost=True))
    moves = [(5, 9), (6, 8), (4, 9), (5, 10), (9, 10)]
    assert [gaps.covers(PAIR, *move) for move in moves] == [True, True, False, False, False]


def test_nothing_is_missing_behind_the_last_gap() -> None:
    gaps = Gaps()
    assert gaps.last_end(PAIR, 40) == 0
    gaps.add(PAIR, Gap(5, 9, lost=True))
    gaps.add(PAIR, Gap(12, 20, lost=False))
    assert [gaps.last_end(PAIR, position) for position in (8, 9, 19, 20, 40)] == [0, 9, 9, 20, 20]


def test_gaps_say_what_is_missing() -> None:
    assert Gap(2, 7, lost=True).words() == (
        "rows in (2, 7] may be missing: the upstream could not tell them"
    )
    assert Gap(5, 6, lost=False).words() == "the stream began anew upstream after 5"
    assert Gap(0, 6, lost=False).words() == (
        "rows up to 6 were never held: the relay's record begins after them"
    )


def test_everything_survives(tmp_path: Path) -> None:
    state = RelayState(tmp_path / "new")
    assert state.epoch(PAIR) == Epoch(0, 0)
    state.set_epoch(PAIR, Epoch(7, 8))
    state.add_gap(PAIR, Gap(1, 2, lost=True))
    state.add_gap(PAIR, Gap(8, 12, lost=True))
    state.add_stream("odd")
    state.add_stream("odd")
    # No close: the process is killed.
    again = RelayState(tmp_path / "new")
    assert again.epoch(PAIR) == Epoch(7, 8)
    assert again.streams() == {"odd"}
    assert len(again.gaps.all()) == 2
    again.settle(PAIR, 2, 11)
    assert again.gaps.all() == []
    state.close()
    again.close()
    third = RelayState(tmp_path / "new")
    assert third.gaps.all() == []
    third.close()


def test_memory_only() -> None:
    state = RelayState(None)
    state.set_epoch(PAIR, Epoch(1, 1))
    assert state.epoch(PAIR).offset == 1
    state.close()
    with pytest.raises(LogCorrupt):
        state.add_stream("x")


def test_what_is_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LogUnavailable, match="file"):
        RelayState(tmp_path / "file")
    (tmp_path / FILE_NAME).write_bytes(b"no database at all, but some text" * 100)
    with pytest.raises(LogCorrupt, match=FILE_NAME):
        RelayState(tmp_path)
