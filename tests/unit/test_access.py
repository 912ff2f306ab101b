"""Tokens and grants: what each may do, and how guessing is slowed down."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl import limits
from tcprepl.access import (
    ALL,
    EVERYTHING,
    NONE,
    NOTHING,
    Grant,
    Guesses,
    Streams,
    Tokens,
    digest,
    equal,
    source_of,
)
from tcprepl.errors import TokenRefused
from tcprepl.limits import (
    GUESS_FORGIVEN_S,
    GUESS_WAIT_MAX_S,
    GUESS_WAIT_MIN_S,
    MAX_FREE_GUESSES,
    MAX_GUESSES,
)

TYPING = Streams(frozenset({"typing"}))
READER = Grant("reader", read=TYPING)
WRITER = Grant("writer", write=ALL)


def test_streams_are_some_or_all() -> None:
    assert "typing" in READER.read
    assert "events" not in READER.read
    assert "anything" in ALL
    assert "typing" not in NONE
    assert (bool(ALL), bool(NONE), bool(READER.read)) == (True, False, True)
    assert [*map(str, (ALL, NONE, Streams(frozenset("ba"))))] == [
        "every stream",
        "no stream",
        "a, b",
    ]
    assert TYPING | Streams(frozenset({"events"})) == Streams(frozenset({"typing", "events"}))
    assert TYPING | ALL == ALL | TYPING == ALL


def test_a_grant_says_what_it_allows() -> None:
    assert str(EVERYTHING) == "may read every stream, write every stream, operate"
    assert str(Grant("x", inspect=TYPING)) == "may inspect typing"
    assert str(NOTHING) == "may do nothing"
    assert (bool(EVERYTHING), bool(NOTHING), bool(READER), bool(WRITER)) == (
        True,
        False,
        True,
        True,
    )


def test_who_inspects_sees_the_rest_masked() -> None:
    both = Grant("x", read=TYPING, inspect=ALL)
    assert both.sees == ALL
    assert both.unmasked == {"typing"}
    assert both.looks
    assert READER.unmasked is None
    assert not READER.looks
    assert Grant("x", read=ALL, inspect=ALL).unmasked is None
    assert Grant("x", operate=True).looks


def test_a_token_grants_what_stands_beside_it() -> None:
    tokens = Tokens([("one", READER), ("two", WRITER)])
    assert tokens
    assert not Tokens()
    assert tokens.admit("one", "192.0.2.1", 0.0) == READER
    assert tokens.admit("two", "192.0.2.1", 0.0) == WRITER
    assert tokens.grant(digest("two")) == WRITER
    for wrong in ("three", "\udcff", "", "on", "one "):
        with pytest.raises(TokenRefused):
            tokens.admit(wrong, f"192.0.2.{len(wrong)}", 0.0)


def test_equal_compares_any_text() -> None:
    assert equal("\udcff", "\udcff")
    assert not equal("a", "b")


def test_who_guessed_waits_even_with_the_right_token() -> None:
    tokens = Tokens([("right", READER)])
    for _ in range(MAX_FREE_GUESSES):
        with pytest.raises(TokenRefused) as refused:
            tokens.admit("wrong", "192.0.2.1", 0.0)
        assert refused.value.wait_s == 0.0
    with pytest.raises(TokenRefused) as refused:
        tokens.admit("right", "192.0.2.1", 0.5)
    assert refused.value.wait_s == 0.5
    assert tokens.admit("right", "192.0.2.2", 0.5) == READER
    assert tokens.admit("right", "192.0.2.1", GUESS_WAIT_MIN_S) == READER


def test_guessing_gets_slower_and_is_forgiven() -> None:
    guesses = Guesses()
    for _ in range(MAX_FREE_GUESSES):
        assert guesses.wait_s("a", 0.0) == 0.0
        guesses.failed("a", 0.0)
    assert guesses.wait_s("a", 0.0) == GUESS_WAIT_MIN_S
    assert guesses.wait_s("b", 0.0) == 0.0
    guesses.failed("a", 1.0)
    assert guesses.wait_s("a", 1.0) == 2 * GUESS_WAIT_MIN_S
    for _ in range(5_000):
        guesses.failed("a", 2.0)
    assert guesses.wait_s("a", 100.0) == 0.0
    guesses.failed("a", 200.0)
    assert guesses.wait_s("a", 200.0) == GUESS_WAIT_MAX_S
    assert guesses.wait_s("a", 200.0 + GUESS_FORGIVEN_S) == 0.0
    assert len(guesses) == 0


def test_what_is_long_past_does_not_count() -> None:
    guesses = Guesses()
    for _ in range(MAX_FREE_GUESSES):
        guesses.failed("a", 0.0)
    guesses.failed("a", GUESS_FORGIVEN_S)
    assert guesses.wait_s("a", GUESS_FORGIVEN_S) == 0.0


def test_a_right_token_is_forgiveness() -> None:
    guesses = Guesses()
    for _ in range(MAX_FREE_GUESSES):
        guesses.failed("a", 0.0)
    guesses.succeeded("a")
    guesses.succeeded("never seen")
    assert guesses.wait_s("a", 0.0) == 0.0


def test_guesses_from_everywhere_are_bounded_and_do_not_keep_friends_out() -> None:
    """A thousand addresses guess no faster than so many a second in all."""
    guesses = Guesses()
    guesses.succeeded("friend")
    looked_at = 0
    for number in range(20_000):
        now = number / 10_000  # two seconds
        if not guesses.wait_s(f"a{number}", now):
            looked_at += 1
            guesses.failed(f"a{number}", now)
    assert looked_at <= 3 * MAX_GUESSES + 2
    assert guesses.wait_s("stranger", 2.0) == GUESS_WAIT_MIN_S
    assert guesses.wait_s("friend", 2.0) == 0.0
    assert guesses.wait_s("stranger", 3.0) == 0.0


def test_addresses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_GUESSERS", 3)
    guesses = Guesses()
    for number in range(10):
        guesses.failed(f"a{number}", 0.0)
        guesses.succeeded(f"b{number}")
    assert len(guesses) == 6


def test_a_machine_is_one_address() -> None:
    assert source_of("192.0.2.1") == "192.0.2.1"
    assert source_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert source_of("2001:db8:1:2:3:4:5:6") == source_of("2001:db8:1:2::9") == "2001:db8:1:2::/64"
    assert source_of("fe80::1%eth0") == "fe80::/64"
    assert source_of("unix") == "unix"


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
            assert 0.0 <= guesses.wait_s(one, now) <= GUESS_WAIT_MAX_S
