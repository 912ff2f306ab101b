"""The cache: times to live, the bound, what is counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.replication.bus.cache import ENTRY_BYTES, Cache


def test_a_value_is_kept_until_its_time_is_over() -> None:
    cache = Cache()
    cache.set(b"k", b"v", now=10.0, ttl_s=5.0)
    assert cache.get(b"k", 14.9) == b"v"
    assert cache.ttl_s(b"k", 14.0) == 1.0
    assert cache.get(b"k", 15.0) is None
    assert (cache.hits, cache.misses, cache.expired, cache.size_bytes) == (1, 1, 1, 0)


def test_a_value_without_a_time_stays() -> None:
    cache = Cache()
    cache.set(b"k", b"v", now=0.0)
    assert cache.ttl_s(b"k", 1e9) is None
    assert cache.has(b"k", 1e9)
    assert not cache.has(b"other", 0.0)
    with pytest.raises(KeyError):
        cache.ttl_s(b"other", 0.0)


def test_what_was_not_asked_for_longest_makes_room() -> None:
    cache = Cache(max_bytes=3 * (ENTRY_BYTES + 2))
    for key in (b"a", b"b", b"c"):
        cache.set(key, b"1", 0.0)
    cache.get(b"a", 0.0)
    cache.set(b"d", b"1", 0.0)
    assert [key for key in (b"a", b"b", b"c", b"d") if cache.has(key, 0.0)] == [b"a", b"c", b"d"]
    assert cache.evicted == 1
    cache.set(b"e", b"x" * 10_000, 0.0)
    assert len(cache) == 0
    assert cache.size_bytes == 0


def test_a_time_to_live_can_be_given_later_and_taken_away() -> None:
    cache = Cache()
    cache.set(b"k", b"v", 0.0)
    assert cache.expire(b"k", 0.0, 5.0)
    assert cache.ttl_s(b"k", 1.0) == 4.0
    assert cache.expire(b"k", 1.0, None)
    assert cache.ttl_s(b"k", 1.0) is None
    assert cache.expire(b"k", 1.0, 0.0)
    assert not cache.has(b"k", 1.0)
    assert not cache.expire(b"k", 1.0, 5.0)


def test_what_is_deleted_was_there_or_not() -> None:
    cache = Cache()
    cache.set(b"k", b"v", 0.0, ttl_s=1.0)
    assert cache.delete(b"k", 0.0)
    assert not cache.delete(b"k", 0.0)
    cache.set(b"k", b"v", 0.0, ttl_s=1.0)
    assert not cache.delete(b"k", 2.0)
    cache.set(b"k", b"v", 0.0)
    cache.clear()
    assert (len(cache), cache.size_bytes) == (0, 0)


def test_a_sweep_forgets_what_is_over_and_is_bounded() -> None:
    cache = Cache()
    for number in range(10):
        cache.set(b"%d" % number, b"v", 0.0, ttl_s=1.0 if number % 2 else None)
    cache.sweep(5.0, limit=4)
    assert len(cache) == 8
    cache.sweep(5.0)
    assert len(cache) == 5


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["set", "get", "delete", "expire", "wait", "sweep"]),
            st.integers(0, 3),
            st.one_of(st.none(), st.integers(1, 5)),
        )
    )
)
def test_it_is_a_dict_with_times(steps: list[tuple[str, int, int | None]]) -> None:
    cache, model, now = Cache(), dict[bytes, float | None](), 0.0
    for what, number, ttl in steps:
        key = b"%d" % number
        model = {k: end for k, end in model.items() if end is None or end > now}
        end = None if ttl is None else now + ttl
        if what == "set":
            cache.set(key, b"v", now, ttl)
            model[key] = end
        elif what == "get":
            assert (cache.get(key, now) is not None) == (key in model)
        elif what == "delete":
            assert cache.delete(key, now) == (model.pop(key, "none") != "none")
        elif what == "expire":
            assert cache.expire(key, now, ttl) == (key in model)
            if key in model:
                model[key] = end
        elif what == "wait":
            now += number
        else:
            cache.sweep(now)
    assert cache.size_bytes == len(cache) * (ENTRY_BYTES + 2)
