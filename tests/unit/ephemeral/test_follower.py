"""The follower as such: what its kinds have in common (they are tested with their writers)."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import pytest

from tcprepl.ephemeral.board import Board
from tcprepl.ephemeral.follower import Follower
from tcprepl.errors import TokenTooOld


class Words(Follower[str]):
    """Follows rows of (key, word)."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[str, str, str]] = []

    def _make_board(self) -> Board[str]:
        return Board("words", operator.not_)

    def _read(self, row: tuple[str, str]) -> tuple[str, str]:
        return row

    def _blank(self, key: str) -> str:
        return ""

    def _merge(self, states: Sequence[str]) -> str:
        return "+".join(states)

    def _changed(self, key: str, before: str) -> None:
        self.heard.append((key, before, self._state_of(key)))


@pytest.fixture
def words() -> Words:
    return Words()


def test_rows_of_one_token_are_applied_in_order(words: Words) -> None:
    words.handle_rows("words", "master", 4, [("a", "x"), ("a", "y"), ("b", "z")])
    assert words.states() == {"a": "y", "b": "z"}
    assert words.heard == [("a", "", "x"), ("a", "x", "y"), ("b", "", "z")]


def test_batch_delivered_twice_changes_nothing(words: Words) -> None:
    for _ in range(2):
        words.handle_rows("words", "master", 4, [("a", "x")])
    assert words.states() == {"a": "x"}


def test_reset_is_heard_of_after_everything_is_gone(words: Words) -> None:
    words.handle_rows("words", "master", 4, [("a", "x"), ("b", "")])
    words.heard.clear()
    words.on_reset("words", "master", None, 0)
    assert words.heard == [("a", "x", "")]
    assert words.states() == {}
    with pytest.raises(TokenTooOld):
        words.board("master").updates(4)


def test_states_of_instances_are_merged(words: Words) -> None:
    words.handle_rows("words", "one", 4, [("a", "x")])
    words.handle_rows("words", "two", 2, [("a", "y"), ("b", "z")])
    assert words.states() == {"a": "x+y", "b": "z"}
    words.on_reset("words", "one", 4, 0)
    assert words.states() == {"a": "y", "b": "z"}
    assert words.heard[-1] == ("a", "x+y", "y")


def test_nobody_has_said_anything(words: Words) -> None:
    assert words.states() == {}
    assert words._state_of("a") == ""
