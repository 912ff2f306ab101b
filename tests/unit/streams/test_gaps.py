"""Where a log has rows missing: found, passed once, said in words."""

from __future__ import annotations

from itertools import permutations

from tcprepl.streams.gaps import Cause, Gap, Gaps, in_words

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
    assert gaps.add(PAIR, Gap(300, 400, Cause.RETENTION, "retention.rows=3"))
    assert gaps.of(Cause.DAMAGE) == [(PAIR, damage)]
    assert damage.words() == "rows in (100, 200] cannot be read: its checksum does not match"
    assert [gap.words() for _, gap in gaps.of(Cause.RETENTION)] == [
        "rows in (300, 400] are gone: retention.rows=3"
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


def damaged(*spans: tuple[int, int]) -> tuple[Gaps, list[bool]]:
    """Return the gaps after *spans* were found damaged, and which of them were to be told."""
    gaps = Gaps()
    told = [gaps.add(PAIR, Gap(*span, Cause.DAMAGE, f"block {span[1]}")) for span in spans]
    return gaps, told


def spans_of(gaps: Gaps) -> list[tuple[int, int]]:
    """Return where there are gaps."""
    return [(gap.after, gap.upto) for _, gap in gaps]


def test_damage_that_adjoins_is_one_gap_of_exactly_those_rows() -> None:
    one, other, between = (0, 100), (200, 300), (100, 200)
    assert spans_of(damaged(one, other)[0]) == [one, other]
    for order in permutations((one, other, between)):
        assert spans_of(damaged(*order, (400, 500))[0]) == [(0, 300), (400, 500)]
    # what two readers found at once, with other ends; and what is known already
    assert spans_of(damaged((100, 300), (50, 200), (120, 130), (50, 300))[0]) == [(50, 300)]
    assert spans_of(damaged((100, 200), (50, 300))[0]) == [(50, 300)]
    gaps, _ = damaged(one)
    gaps.add(PAIR, Gap(100, 200, Cause.UPSTREAM))
    gaps.add(("typing", "w1"), Gap(100, 200, Cause.DAMAGE))
    assert [span for span in spans_of(gaps) if span == one] == [one]
    assert len(list(gaps)) == 3


def test_damage_is_said_with_the_reason_of_its_last_block() -> None:
    """Whoever stands in the gap has that block before him; the blocks of one are not several."""
    gaps, _ = damaged((200, 300), (100, 200), (0, 100))
    assert gaps.at(PAIR, 120) == Gap(0, 300, Cause.DAMAGE, "block 300", several=True)
    (words,) = gaps.damage()
    assert words == (
        "stream typing of master: rows in (0, 300] cannot be read: several blocks, the last: "
        "block 300"
    )
    assert not any(gap.several for _, gap in damaged((0, 100), (0, 100), (20, 50))[0])


def test_damage_that_goes_on_is_told_a_few_times() -> None:
    """Its first block at once, and a run of any length seldom."""
    _, told = damaged(*((n, n + 1) for n in range(3_000)), (0, 1), (7, 9), (5_000, 5_001))
    assert told[:5] == [True, True, False, True, False]
    assert sum(told[:3_000]) == 12
    assert told[3_000:] == [False, False, True]


def test_damage_is_forgotten_as_far_as_its_rows_are_past_retention() -> None:
    gaps, _ = damaged((0, 100), (100, 200), (200, 300), (400, 500))
    gaps.keep(PAIR, 200, 1_000)
    assert spans_of(gaps) == [(200, 300), (400, 500)]
    gaps.add(PAIR, Gap(500, 600, Cause.UPSTREAM))
    gaps.keep(PAIR, 510, 1_000)
    assert spans_of(gaps) == [(500, 600)]


def test_of_much_damage_the_first_ranges_are_told_and_how_many_more_there_are() -> None:
    gaps, _ = damaged(*((n, n + 1) for n in range(0, 46, 2)))
    words = gaps.damage()
    assert words[0] == "stream typing of master: rows in (0, 1] cannot be read: block 1"
    assert "rows in (38, 39]" in words[19]
    assert words[20:] == ["and 3 more damaged ranges"]


def test_of_many_gaps_in_a_row_the_first_are_told() -> None:
    gaps = [Gap(n, n + 1, Cause.ANEW) for n in range(21)]
    assert in_words(gaps[:2]) == (
        "the stream began anew upstream after 0; the stream began anew upstream after 1"
    )
    assert in_words(gaps).endswith("began anew upstream after 19; and 1 more gap")
    run = [Gap(n, n + 1, Cause.DAMAGE, f"block {n}") for n in range(3_000)]
    assert in_words([gaps[0], *run[1:]]) == (
        "the stream began anew upstream after 0; rows in (1, 3000] cannot be read: several "
        "blocks, the last: block 2999"
    )
