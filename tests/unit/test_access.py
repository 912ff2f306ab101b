"""Tokens and grants: what each may do, and how guessing is slowed down."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl import access
from tcprepl.access import (
    ALL,
    EVERYTHING,
    FIRST_WAIT_S,
    FORGIVEN_AFTER_S,
    FREE_FAILURES,
    MAX_WAIT_S,
    NONE,
    NOTHING,
    Grant,
    Guesses,
    Streams,
    Tokens,
    equal,
)

READER = Grant("reader", read=Streams(frozenset({"typing"})))
WRITER = Grant("writer", write=ALL)


def test_streams_are_some_or_all() -> None:
    assert "typing" in READER.read
    assert "events" not in READER.read
    assert "anything" in ALL
    assert "typing" not in NONE
    assert (bool(ALL), bool(NONE), bool(READER.read)) == (True, False, True)
    assert [ALL.words(), NONE.words(), Streams(frozenset("ba")).words()] == [
        "every stream",
        "no stream",
        "a, b",
    ]


def test_without_tokens_everybody_may_do_everything() -> None:
    assert Tokens().anonymous == EVERYTHING
    assert not Tokens()
    assert Tokens().grant("x") is None


def test_with_tokens_who_says_none_may_do_nothing() -> None:
    tokens = Tokens([("one", READER), ("two", WRITER)])
    assert tokens
    assert tokens.anonymous == NOTHING
    assert tokens.grant("one") == READER
    assert tokens.grant("two") == WRITER
    assert tokens.grant("three") is None
    assert tokens.grant("\udcff") is None
    assert list(tokens.names()) == ["reader", "writer"]


def test_what_who_says_none_may_do_can_be_set() -> None:
    assert Tokens([("one", WRITER)], anonymous=READER).anonymous == READER


def test_equal_compares_any_text() -> None:
    assert equal("\udcff", "\udcff")
    assert not equal("a", "b")


def test_guessing_gets_slower_and_is_forgiven() -> None:
    guesses = Guesses()
    for _ in range(FREE_FAILURES):
        assert guesses.wait_s("a", 0.0) == 0.0
        guesses.failed("a", 0.0)
    assert guesses.wait_s("a", 0.0) == FIRST_WAIT_S
    assert guesses.wait_s("b", 0.0) == 0.0
    guesses.failed("a", 1.0)
    assert guesses.wait_s("a", 1.0) == 2 * FIRST_WAIT_S
    for _ in range(5_000):
        guesses.failed("a", 2.0)
    assert guesses.wait_s("a", 2.0) == MAX_WAIT_S
    assert guesses.wait_s("a", 2.0 + FORGIVEN_AFTER_S) == 0.0
    assert len(guesses) == 0


def test_what_is_long_past_does_not_count() -> None:
    guesses = Guesses()
    for _ in range(FREE_FAILURES):
        guesses.failed("a", 0.0)
    guesses.failed("a", FORGIVEN_AFTER_S)
    assert guesses.wait_s("a", FORGIVEN_AFTER_S) == 0.0


def test_a_right_token_is_forgiveness() -> None:
    guesses = Guesses()
    for _ in range(FREE_FAILURES):
        guesses.failed("a", 0.0)
    guesses.succeeded("a")
    guesses.succeeded("never seen")
    assert guesses.wait_s("a", 0.0) == 0.0


def test_addresses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MAX_ADDRESSES", 3)
    guesses = Guesses()
    for number in range(10):
        guesses.failed(f"a{number}", 0.0)
    assert len(guesses) == 3


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 100), st.booleans())))
def test_a_wait_is_never_negative_nor_above_the_bound(
    steps: list[tuple[str, float, bool]],
) -> None:
    guesses, now = Guesses(), 0.0
    for address, passed, right in steps:
        now += passed
        if right:
            guesses.succeeded(address)
        else:
            guesses.failed(address, now)
        for one in "ab":
            assert 0.0 <= guesses.wait_s(one, now) <= MAX_WAIT_S
