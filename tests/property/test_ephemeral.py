"""Change cache, wheel timer and board against models that are obviously right."""

from __future__ import annotations

import operator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tcprepl.ephemeral.board import Board
from tcprepl.ephemeral.change_cache import StreamChangeCache
from tcprepl.ephemeral.wheel_timer import WheelTimer
from tcprepl.errors import TokenTooOld

entities = st.sampled_from("abcdefgh")
tokens = st.integers(0, 30)
changes = st.lists(st.tuples(entities, tokens), max_size=40)


@given(changes, st.integers(-1, 12), st.integers(1, 6), tokens)
def test_cache_never_misses_a_change(
    made: list[tuple[str, int]], earliest: int, max_size: int, after: int
) -> None:
    """In any order and at any size: what it leaves out did not change."""
    cache = StreamChangeCache(earliest, max_size=max_size)
    latest: dict[str, int] = {}
    for entity, token in made:
        cache.entity_has_changed(entity, token)
        latest[entity] = max(latest.get(entity, -1), token)
    changed = {entity for entity, token in latest.items() if token > after}
    found = cache.entities_changed_since(after)
    assert len(cache) <= max_size
    assert (found is None) == (after <= cache.earliest)
    assert cache.entities_changed(set("abcdefgh"), after) >= changed
    assert cache.entities_changed(changed, after) == changed
    assert cache.has_any_changed(after) or not changed
    for entity in changed:
        assert cache.has_entity_changed(entity, after)
    if found is not None:
        assert sorted(found) == sorted(changed)
        assert cache.entities_changed(set("abcdefgh"), after) == changed
        order = [latest[entity] for entity in found]
        assert order == sorted(order)
        assert cache.changes_since(after) == [(entity, latest[entity]) for entity in found]


@given(changes, st.integers(1, 6))
def test_prefilled_cache_equals_one_that_was_told(
    made: list[tuple[str, int]], max_size: int
) -> None:
    told = StreamChangeCache(0, max_size=max_size)
    for entity, token in sorted(made, key=lambda change: change[1]):
        told.entity_has_changed(entity, token)
    filled = StreamChangeCache(0, max_size=max_size, changes=made)
    assert filled.earliest == told.earliest
    assert filled.changes_since(told.earliest + 1) == told.changes_since(told.earliest + 1)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), max_size=30),
    st.integers(1, 7),
)
def test_wheel_returns_each_once_after_its_time_and_not_a_bucket_late(
    steps: list[tuple[int, int]], bucket_ms: int
) -> None:
    wheel: WheelTimer[tuple[int, int]] = WheelTimer(bucket_ms)
    pending: dict[tuple[int, int], int] = {}
    now = 0
    fetched = -1
    for number, (then, pause) in enumerate(steps):
        wheel.insert((number, then), then)
        pending[number, then] = then
        now += pause
        for obj in wheel.fetch(now):
            due = pending.pop(obj)
            assert due < now or due < fetched
        for obj, due in pending.items():
            assert due >= (now // bucket_ms) * bucket_ms, obj
        assert len(wheel) == len(pending)
        fetched = now
    assert sorted(wheel.fetch(now + 1_000)) == sorted(pending)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("post"), entities, st.sampled_from(["", "x", "y"])),
        st.tuples(st.just("forget"), st.just(""), st.just("")),
        st.tuples(st.just("reset"), st.just(""), st.just("")),
    ),
    max_size=40,
)


@given(steps, st.integers(1, 5), st.integers(1, 4), st.lists(st.integers(0, 40), max_size=3))
def test_reader_of_a_board_ends_with_its_states(
    made: list[tuple[str, str, str]], max_size: int, limit: int, stops: list[int]
) -> None:
    """One that reads in pieces, at any times, and begins anew when it is told to."""
    board: Board[str] = Board("demo", operator.not_, max_size=max_size)
    held: dict[str, str] = {}
    at, compacted = 0, False
    token = 0

    def read_on() -> None:
        nonlocal at, compacted
        while True:
            try:
                updates = board.updates(at, limit=limit, compacted=compacted)
            except TokenTooOld:
                held.clear()
                at, compacted = 0, True
                continue
            order = [entry.token for entry in updates.entries]
            assert all(first <= second for first, second in pairwise(order))
            held.update({entry.key: entry.state for entry in updates.entries})
            at = updates.upto
            if not updates.limited:
                # Whoever has read everything is one reader like any other again.
                compacted = at <= board.lost
                return

    for number, (what, key, state) in enumerate(made):
        if what == "post":
            token += 1
            board.post(key, state, token)
        elif what == "forget":
            board.forget_blank(token - 1)
        else:
            board.reset(token)
            token += 1
            # What a writer does after a restart: everything is said again.
            board.post(key or "a", "again", token)
        if number in stops:
            read_on()
            if not compacted:
                assert {k: s for k, s in held.items() if s} == board.states()
    held.clear()
    at, compacted = 0, True
    read_on()
    assert {k: s for k, s in held.items() if s} == board.states()


_posts = st.tuples(st.just("post"), st.integers(0, 8), st.integers(-3, 2))
_reads = st.tuples(st.just("read"), st.integers(0, 10), st.integers(0, 4))
_seldom = st.one_of(
    st.tuples(st.just("forget"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("reset"), st.just(0), st.just(0)),
)


@given(
    st.lists(st.one_of(_posts, _posts, _reads, _reads, _seldom), min_size=5, max_size=40),
    st.integers(1, 3),
)
def test_a_page_of_a_board_is_that_of_all_its_states(
    made: list[tuple[str, int, int]], max_size: int
) -> None:
    """However far back it begins, whatever came in between, late or again with one token."""
    board: Board[str] = Board("demo", operator.not_, max_size=max_size)
    states: dict[str, tuple[int, str]] = {}
    newest = 0
    for what, number, more in [("post", number, 1) for number in range(8)] + made:
        if what == "post":
            token = max(1, board.lost + 1, newest + more)
            newest = max(newest, token)
            key = f"k{number}"
            if states.get(key, (0, ""))[0] <= token:
                board.post(key, "x" if number % 3 else "", token)
                states[key] = token, "x" if number % 3 else ""
        elif what == "forget":
            board.forget_blank(number)
            states = {key: state for key, state in states.items() if board.get(key) is not None}
        elif what == "reset":
            board.reset(newest)
            states.clear()
        else:
            found = board.updates(number, limit=more, compacted=True)
            expected = sorted((t, k) for k, (t, _) in states.items() if t > number)
            page = expected[:more]
            page += [one for one in expected[more:] if page and one[0] == page[-1][0]]
            assert [entry.token for entry in found.entries] == [token for token, _ in page]
            assert {(entry.token, entry.key) for entry in found.entries} == set(page)
            assert found.limited == (len(page) < len(expected))
