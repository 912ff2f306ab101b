"""What changed after a token: every boundary at t-1, t, t+1; eviction; late changes."""

from __future__ import annotations

import pytest

from tcprepl.ephemeral.change_cache import StreamChangeCache


def make(earliest: int = 0, max_size: int = 100, **changes: int) -> StreamChangeCache:
    return StreamChangeCache(earliest, max_size=max_size, changes=changes.items())


@pytest.mark.parametrize(
    ("after", "changed"),
    [(1, ["a", "b", "c"]), (2, ["b", "c"]), (3, ["b", "c"]), (4, ["c"]), (5, ["c"]), (6, [])],
)
def test_changed_after_a_token_is_strict(after: int, changed: list[str]) -> None:
    cache = make(a=2, b=4, c=6)
    assert cache.entities_changed_since(after) == changed
    assert [entity for entity, _ in cache.changes_since(after) or []] == changed


def test_a_token_from_the_future_has_seen_everything() -> None:
    cache = make(a=2)
    assert cache.entities_changed_since(99) == []
    assert not cache.has_any_changed(99)
    assert not cache.has_entity_changed("a", 99)


@pytest.mark.parametrize(("after", "known"), [(9, False), (10, False), (11, True)])
def test_at_or_before_the_earliest_token_everything_is_unknown(after: int, known: bool) -> None:
    cache = make(10, a=20)
    assert (cache.entities_changed_since(after) is not None) == known
    assert (cache.changes_since(after) is not None) == known
    assert cache.has_entity_changed("never", after) != known
    assert cache.has_any_changed(after)
    assert cache.entities_changed(["a", "never"], after) == ({"a"} if known else {"a", "never"})


@pytest.mark.parametrize(("after", "changed"), [(4, True), (5, False), (6, False)])
def test_one_entity_at_the_boundary(after: int, changed: bool) -> None:
    cache = make(a=5)
    assert cache.has_entity_changed("a", after) == changed
    assert cache.has_any_changed(after) == changed
    assert not cache.has_entity_changed("b", after)


def test_entity_is_known_by_its_latest_change() -> None:
    cache = make()
    for token, entity in enumerate("abacb", start=1):
        cache.entity_has_changed(entity, token)
    assert cache.changes_since(1) == [("a", 3), ("c", 4), ("b", 5)]
    assert cache.latest_change_of("a") == 3
    assert cache.latest_change_of("z") is None
    assert len(cache) == 3


def test_several_entities_share_a_token() -> None:
    cache = make()
    for entity in "abc":
        cache.entity_has_changed(entity, 7)
    assert cache.entities_changed_since(6) == ["a", "b", "c"]
    assert cache.entities_changed_since(7) == []


def test_late_change_is_put_in_its_place() -> None:
    cache = make(a=2, b=4, c=6)
    cache.entity_has_changed("d", 3)
    cache.entity_has_changed("a", 5)
    assert cache.changes_since(1) == [("d", 3), ("b", 4), ("a", 5), ("c", 6)]
    assert cache.newest == 6


def test_late_change_goes_before_all_others() -> None:
    cache = make(b=4, c=6)
    cache.entity_has_changed("a", 1)
    cache.entity_has_changed("b", 5)
    assert cache.entities_changed_since(1) == ["b", "c"]
    assert cache.has_any_changed(0)


def test_late_change_does_not_replace_a_later_one() -> None:
    cache = make(a=5, b=6)
    cache.entity_has_changed("a", 4)
    cache.entity_has_changed("a", 5)
    assert cache.changes_since(1) == [("a", 5), ("b", 6)]


@pytest.mark.parametrize("token", [9, 10])
def test_change_in_the_unknown_is_not_kept(token: int) -> None:
    cache = make(10, b=20)
    cache.entity_has_changed("a", token)
    assert len(cache) == 1
    empty = make(10)
    empty.entity_has_changed("a", 10)
    assert len(empty) == 0


def test_eviction_moves_the_earliest_token() -> None:
    cache = make(max_size=3, a=1, b=2, c=3)
    assert cache.earliest == 0
    cache.entity_has_changed("d", 4)
    assert len(cache) == 3
    assert cache.earliest == 1
    assert cache.entities_changed_since(1) is None
    assert cache.entities_changed_since(2) == ["c", "d"]


def test_eviction_takes_a_tenth_at_once() -> None:
    cache = StreamChangeCache(0, max_size=100)
    for token in range(1, 102):
        cache.entity_has_changed(f"e{token}", token)
    assert len(cache) == 91
    assert cache.earliest == 10


def test_change_again_is_not_growth() -> None:
    cache = make(max_size=2, a=1, b=2)
    for token in range(3, 50):
        cache.entity_has_changed("ab"[token % 2], token)
    assert len(cache) == 2
    assert cache.earliest == 0


def test_candidates_few_or_many() -> None:
    cache = make(**{f"e{number}": number for number in range(1, 51)})
    few, many = ["e50", "e2", "x"], {f"e{number}" for number in range(90)}
    assert cache.entities_changed(few, 10) == {"e50"}
    assert cache.entities_changed(many, 48) == {"e49", "e50"}
    assert cache.entities_changed(frozenset(), 1) == set()


def test_reset_forgets() -> None:
    cache = make(a=5)
    cache.reset(7)
    assert (len(cache), cache.earliest, cache.newest) == (0, 7, 7)
    assert cache.entities_changed_since(8) == []


def test_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        StreamChangeCache(0, max_size=0)
