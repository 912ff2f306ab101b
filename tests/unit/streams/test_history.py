"""The names of a log's history: what a reader of each incarnation shares with it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.streams import history as module
from tcprepl.streams.history import Beginning, History, Incarnation, new_incarnation_id

A, B = ("a", "w"), ("b", "w")


def begun(*positions: dict[tuple[str, str], int]) -> History:
    """Return a history that began once at each of *positions*, as ``1``, ``2``, ..."""
    history = History()
    for number, where in enumerate(positions, 1):
        history.begin(where, 0, str(number))
    return history


def test_names_are_unlike_each_other() -> None:
    assert len({new_incarnation_id() for _ in range(100)}) == 100
    assert len(new_incarnation_id()) == 16


def test_the_first_incarnation_is_shared_whole() -> None:
    history = begun({})
    assert history.current == "1"
    assert history.shared(A, 7, "1") == 7
    assert history.shared(A, 7, "another") is None


def test_a_reader_of_an_earlier_incarnation_goes_on_if_that_got_so_far() -> None:
    history = begun({}, {A: 50}, {A: 50}, {A: 80, B: 3})
    assert [history.shared(A, 50, name) for name in "1234"] == [50, 50, 50, 50]
    assert [history.shared(A, 81, name) for name in "1234"] == [50, 50, 80, 81]
    assert [history.shared(B, 3, name) for name in "1234"] == [0, 0, 3, 3]


def test_only_what_moved_is_noted() -> None:
    history = begun({A: 0}, {A: 50, B: 0})
    incarnation, noted = history.begin({A: 50, B: 2}, 99, "3")
    assert incarnation == Incarnation(3, "3", 99)
    assert noted == [Beginning(B, 3, 2)]
    assert history.incarnations[-1] == incarnation
    assert history.number == 3


def test_a_copy_and_the_lost_future_know_each_other_up_to_the_copy() -> None:
    lost = begun({}, {A: 40})
    restored = copy.deepcopy(lost)
    lost.begin({A: 100}, 0, "lost")
    restored.begin({A: 50}, 0, "new")
    assert restored.shared(A, 100, "2") == 50
    assert restored.shared(A, 45, "2") == 45
    assert restored.shared(A, 100, "lost") is None
    assert lost.shared(A, 60, "new") is None


def test_the_oldest_incarnations_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_INCARNATIONS", 3)
    history = begun({A: 1}, {A: 2}, {A: 2}, {A: 2}, {A: 5})
    assert [known.id for known in history.incarnations] == ["3", "4", "5"]
    assert [history.shared(A, 9, str(n)) for n in range(1, 6)] == [None, None, 2, 5, 9]
    assert history._ends.keys() == {3, 4}, "nothing is left of the others"


def test_beginnings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BEGINNINGS", 3)
    history = begun({A: 1, B: 1}, {A: 2, B: 1}, {A: 3, B: 1}, {A: 4, B: 9})
    assert [known.id for known in history.incarnations] == ["4"]
    assert history.shared(A, 7, "4") == 7
    history.begin({A: 5, B: 9}, 0, "5")
    assert history.shared(A, 7, "4") == 5
    assert history.shared(B, 12, "4") == 9


def test_no_more_is_forgotten_than_has_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BEGINNINGS", 3)
    history = begun({A: 1}, {A: 2}, {A: 3}, {A: 4})
    assert [known.id for known in history.incarnations] == ["3", "4"]
    assert history.shared(A, 9, "3") == 4


def test_more_pairs_than_beginnings_leave_the_current_incarnation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_BEGINNINGS", 1)
    history = begun({A: 1, B: 1}, {A: 2, B: 2})
    assert [known.id for known in history.incarnations] == ["2"]
    assert history.shared(A, 7, "1") is None


class _Log:
    """A log as a plain list of who wrote each row, and its history."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.history = History()
        self.start()

    def start(self) -> None:
        self.history.begin({A: len(self.rows)} if self.rows else {}, 0)

    def append(self, count: int) -> None:
        self.rows += [f"{self.history.current} {len(self.rows) + n}" for n in range(count)]


@given(
    st.lists(
        st.tuples(st.sampled_from(["append", "start", "copy", "switch", "read"]), st.integers(0, 5))
    )
)
def test_what_is_shared_is_what_is_equal(steps: Sequence[tuple[str, int]]) -> None:
    """Logs that are started, copied and written to in any order: a reader of any of them.

    What a history says that it shares with a reader are rows that both have, alike; and where
    it knows the reader's incarnation, the reader has no other row in common with it.
    """
    logs = [_Log()]
    at = 0
    readers: list[tuple[list[str], str]] = []
    for what, number in steps:
        log = logs[at % len(logs)]
        if what == "append":
            log.append(number)
        elif what == "start":
            log.start()
        elif what == "copy":
            copied = copy.deepcopy(log)
            copied.start()
            logs.append(copied)
        elif what == "switch":
            at = number
        else:
            readers.append((log.rows[: len(log.rows) - number or None], log.history.current))
    for log in logs:
        for had, incarnation in readers:
            shared = log.history.shared(A, len(had), incarnation)
            if shared is None:
                assert incarnation not in {known.id for known in log.history.incarnations}
                continue
            assert log.rows[:shared] == had[:shared]
            assert shared == len(had) or log.rows[shared : shared + 1] != had[shared : shared + 1]


def test_a_reader_that_tells_its_lineage_is_met_where_it_is_known() -> None:
    history = begun({}, {A: 50}, {A: 80})
    assert history.common(A, [(70, "lost"), (60, "1"), (40, "0")]) == 50
    assert history.common(A, [(80, "2"), (60, "1")]) == 80
    assert history.common(A, [(80, "lost"), (60, "too")]) is None


def test_what_was_noted_is_taken_over() -> None:
    """An incarnation that has ended did so when the next one began, whatever begins later."""
    history = History([Incarnation(n, str(n), 0) for n in (1, 2)], [Beginning(A, 2, 50)])
    history.begin({A: 80}, 0, "3")
    assert [history.shared(A, 90, name) for name in "123"] == [50, 80, 90]
    assert history.number == 3


def test_of_several_at_once_those_end_that_are_over() -> None:
    history = History([Incarnation(1, "1", 0), Incarnation(2, "2", 0)], [], {})
    history.begin({A: 5}, 0, "3", over=[1])
    assert history._ends == {1: 3}
