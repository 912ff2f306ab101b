"""The board: ranges, limits, what was forgotten."""

from __future__ import annotations

import operator

import pytest

from tcprepl.ephemeral import board as module
from tcprepl.ephemeral.board import Board, Entry
from tcprepl.errors import TokenTooOld


def make(lost: int = -1, max_size: int = 100, **states: tuple[int, str]) -> Board[str]:
    board: Board[str] = Board("demo", operator.not_, lost, max_size=max_size)
    for key, (token, state) in states.items():
        board.post(key, state, token)
    return board


def tokens(board: Board[str], after: int, upto: int | None = None, **more: int) -> list[int]:
    return [entry.token for entry in board.updates(after, upto, **more).entries]


@pytest.mark.parametrize(
    ("after", "upto", "found"),
    [
        (1, 6, [2, 4, 6]),
        (2, 6, [4, 6]),
        (3, 6, [4, 6]),
        (1, 5, [2, 4]),
        (1, 4, [2, 4]),
        (1, 3, [2]),
        (6, 6, []),
        (7, 6, []),
        (1, None, [2, 4, 6]),
        (1, 99, [2, 4, 6]),
    ],
)
@pytest.mark.parametrize("max_size", [100, 1])
def test_range_is_half_open(after: int, upto: int | None, found: list[int], max_size: int) -> None:
    """With a cache of one entry the states themselves are walked: the answer is the same."""
    board = make(0, max_size, a=(2, "x"), b=(4, "y"), c=(6, "z"))
    assert tokens(board, after, upto) == found


def test_key_appears_once_with_its_newest_state() -> None:
    board = make(a=(1, "x"), b=(2, "y"))
    board.post("a", "z", 3)
    assert board.updates(0).entries == [Entry(2, "b", "y"), Entry(3, "a", "z")]
    assert tokens(board, 0, 2) == [2]
    assert (board.get("a"), board.token_of("a")) == ("z", 3)
    assert (board.get("?"), board.token_of("?")) == (None, None)


@pytest.mark.parametrize(
    ("limit", "found", "upto", "limited"),
    [
        (1, [1], 1, True),
        (2, [1, 2, 2], 2, True),
        (3, [1, 2, 2], 2, True),
        (4, [1, 2, 2, 5], 5, False),
        (5, [1, 2, 2, 5], 5, False),
    ],
)
def test_limit_is_strict_but_for_a_token(
    limit: int, found: list[int], upto: int, limited: bool
) -> None:
    board = make(a=(1, "x"), b=(2, "x"), c=(2, "x"), d=(5, "x"))
    updates = board.updates(0, limit=limit)
    assert [entry.token for entry in updates.entries] == found
    assert (updates.upto, updates.limited) == (upto, limited)


def test_limit_of_nothing_goes_nowhere() -> None:
    updates = make(a=(1, "x")).updates(0, limit=0)
    assert (updates.entries, updates.upto, updates.limited) == ([], 0, True)


def test_token_reached_is_that_of_the_range() -> None:
    board = make(a=(4, "x"))
    assert board.updates(0, 3).upto == 3
    assert board.updates(4).upto == 4
    assert board.updates(9).upto == 9
    assert board.newest == 4


@pytest.mark.parametrize(("after", "known"), [(9, False), (10, False), (11, True)])
def test_reader_before_what_is_lost_begins_anew(after: int, known: bool) -> None:
    board = make(10, a=(12, "x"))
    if known:
        assert tokens(board, after) == [12]
    else:
        with pytest.raises(TokenTooOld, match="too old"):
            board.updates(after)
    assert tokens(board, after, compacted=True) == [12]


def test_blank_states_are_forgotten_and_others_are_not() -> None:
    board = make(a=(1, ""), b=(2, "x"), c=(3, ""), d=(4, ""))
    assert board.forget_blank(3) == 2
    assert len(board) == 2
    assert board.lost == 2
    assert board.states() == {"b": "x"}
    assert tokens(board, 3) == [4]
    with pytest.raises(TokenTooOld):
        board.updates(2)
    assert tokens(board, 0, compacted=True) == [2, 4]
    assert board.forget_blank(3) == 0


def test_many_blank_states_are_forgotten_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BLANK", 10)
    board = make(0, 10)
    for token in range(1, 1_000):
        board.post(f"k{token}", "" if token % 100 else "x", token)
    assert len(board.states()) == 9
    assert len(board) <= 9 + 2 * 10 + 1
    assert board.lost > 0


def test_a_change_costs_the_same_however_many_states_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blank ones are forgotten a few at a time, and without a look at those that are not."""
    monkeypatch.setattr(module, "MAX_BLANK", 50)
    monkeypatch.setattr(module, "FORGOTTEN_AT_ONCE", 3)
    judged: list[str] = []

    def is_blank(state: str) -> bool:
        judged.append(state)
        return not state

    board: Board[str] = Board("demo", is_blank, 0, max_size=10)
    for token in range(1, 1_001):
        board.post(f"k{token}", "x", token)
    held = len(board)
    for token in range(1_001, 2_000):
        judged.clear()
        board.post(f"k{token}", "", token)
        assert len(judged) == 1
        assert len(board) >= held + 1 - 3
        held = len(board)
    assert 1_000 <= held <= 1_000 + 2 * 50
    assert board.lost == 1_999 - (held - 1_000) - 1


def test_what_is_to_be_forgotten_goes_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORGOTTEN_AT_ONCE", 2)
    board = make(a=(1, ""), b=(2, ""), c=(3, "x"), d=(4, ""), e=(5, ""))
    assert [board.forget_blank(4) for _ in range(3)] == [2, 1, 0]
    assert board.lost == 3
    assert tokens(board, 4) == [5]


def test_state_that_comes_back_is_not_counted_as_blank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BLANK", 1)
    board = make(0, 1)
    for token in range(1, 100):
        board.post("ab"[token % 2], "x" if token % 3 else "", token)
    assert len(board) == 2


def test_reset_forgets_everything() -> None:
    board = make(a=(5, "x"))
    board.reset(5)
    assert (len(board), board.states(), board.lost, board.newest) == (0, {}, 5, 5)


def test_states_are_put_in_order_once_for_a_reader_that_is_far_behind() -> None:
    """What changes while it reads comes once, as it is then; a page is no look at all states."""
    board: Board[str] = Board("demo", operator.not_, 0, max_size=10)
    for token in range(1, 1_001):
        board.post(f"k{token}", "x", token)
    found: list[Entry[str]] = []
    at, ordered = 0, set()
    while True:
        updates = board.updates(at, limit=100, compacted=True)
        found += updates.entries
        at = updates.upto
        ordered.add(id(board._ordered))
        if not updates.limited:
            break
        if at == 500:
            board.post("k900", "y", 1_001)
            board.post("k1", "z", 1_002)
    assert len(ordered) == 1
    assert [entry.key for entry in found[-2:]] == ["k900", "k1"]
    assert [entry.token for entry in found] == [*range(1, 900), *range(901, 1_003)]
    board.reset(2_000)
    assert board.updates(0, compacted=True).entries == []
