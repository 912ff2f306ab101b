"""Where a log has rows missing: found, passed once, said in words."""

from __future__ import annotations

from tcprepl.streams.gaps import Cause, Gap, Gaps

PAIR = ("typing", "master")


def test_gaps_are_found_by_where_they_end() -> None:
    gaps = Gaps()
    assert gaps.next(PAIR, 0) is None
    gaps.add(PAIR, Gap(20, 30, Cause.UPSTREAM))
    gaps.add(PAIR, Gap(5, 9, Cause.ANEW))
    assert gaps.next(PAIR, 0) == gaps.next(PAIR, 8) == Gap(5, 9, Cause.ANEW)
    assert gaps.next(PAIR, 9) == gaps.next(PAIR, 29) == Gap(20, 30, Cause.UPSTREAM)
    assert gaps.next(PAIR, 30) is None
    gaps.add(PAIR, Gap(20, 35, Cause.UPSTREAM))
    assert list(gaps) == [(PAIR, Gap(5, 9, Cause.ANEW)), (PAIR, Gap(20, 35, Cause.UPSTREAM))]
    gaps.keep(PAIR, 9, 34)
    assert list(gaps) == []


def test_a_cursor_stands_in_a_gap_from_its_beginning_on_and_has_passed_it_at_its_end() -> None:
    gaps = Gaps()
    assert gaps.at(PAIR, 0) is None
    gap = Gap(5, 9, Cause.UPSTREAM)
    gaps.add(PAIR, gap)
    assert [gaps.at(PAIR, cursor) for cursor in (4, 5, 8, 9)] == [None, gap, gap, None]
    assert gaps.at(("typing", "w1"), 5) is None


def test_a_move_within_one_gap_is_covered() -> None:
    gaps = Gaps()
    assert not gaps.covers(PAIR, 0, 1)
    gaps.add(PAIR, Gap(5, 9, Cause.UPSTREAM))
    moves = [(5, 9), (6, 8), (4, 9), (5, 10), (9, 10)]
    assert [gaps.covers(PAIR, *move) for move in moves] == [True, True, False, False, False]


def test_nothing_is_missing_behind_the_last_gap() -> None:
    gaps = Gaps()
    assert gaps.last_end(PAIR, 40) == 0
    gaps.add(PAIR, Gap(5, 9, Cause.UPSTREAM))
    gaps.add(PAIR, Gap(12, 20, Cause.ANEW))
    assert [gaps.last_end(PAIR, position) for position in (8, 9, 19, 20, 40)] == [0, 9, 9, 20, 20]


def test_gaps_say_what_is_missing() -> None:
    assert Gap(2, 7, Cause.UPSTREAM).words() == (
        "rows in (2, 7] may be missing: the upstream could not tell them"
    )
    assert Gap(5, 6, Cause.ANEW).words() == "the stream began anew upstream after 5"
    assert Gap(0, 6, Cause.RECORD).words() == (
        "rows up to 6 were never held: the relay's record begins after them"
    )


def test_a_gap_is_new_once_and_found_by_its_cause() -> None:
    gaps = Gaps()
    damage = Gap(100, 200, Cause.DAMAGE, "its checksum does not match")
    assert gaps.add(PAIR, damage)
    assert not gaps.add(PAIR, damage)
    assert gaps.add(PAIR, Gap(300, 400, Cause.RETENTION, "max_rows=3"))
    assert gaps.of(Cause.DAMAGE) == [(PAIR, damage)]
    assert damage.words() == "rows in (100, 200] cannot be read: its checksum does not match"
    assert [gap.words() for _, gap in gaps.of(Cause.RETENTION)] == [
        "rows in (300, 400] are gone: max_rows=3"
    ]


def test_rows_are_lost_unless_there_were_none() -> None:
    assert [cause for cause in Cause if not cause.lost] == [Cause.RECORD, Cause.ANEW]


def test_a_gap_replaces_what_begins_with_it_and_what_lies_within() -> None:
    def left(*known: tuple[int, int], new: tuple[int, int]) -> list[tuple[int, int]]:
        gaps = Gaps()
        for span in (*known, new):
            gaps.add(PAIR, Gap(*span, Cause.UPSTREAM))
        return [(gap.after, gap.upto) for _, gap in gaps]

    assert left((5, 7), new=(3, 9)) == [(3, 9)]
    assert left((5, 9), new=(3, 9)) == [(3, 9)]
    assert left((3, 9), new=(3, 5)) == [(3, 5)]
    assert left((5, 12), new=(3, 9)) == [(3, 9), (5, 12)]
    assert left((1, 4), new=(3, 9)) == [(1, 4), (3, 9)]


def test_damage_is_told_in_words_and_is_a_loss() -> None:
    gaps = Gaps()
    gaps.add(PAIR, Gap(5, 9, Cause.DAMAGE, "block 3"))
    gaps.add(PAIR, Gap(9, 12, Cause.ANEW))
    assert [gap.lost for _, gap in gaps] == [True, False]
    (words,) = gaps.damage()
    assert words == "stream typing of master: rows in (5, 9] cannot be read: block 3"
