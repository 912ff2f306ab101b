"""Subscriptions say who wants what; groups are found by it, and are gone when they are empty."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcprepl.replication.serving.readers import ANY, Groups, Reader, Subscription
from tcprepl.replication.serving.rendering import WireForm

FORM = WireForm(rdata_instance=True, position_tokens=2, max_line_bytes=100)
OUTLET: Any = None


def reader(*patterns: tuple[str, str], only_instance: str | None = None) -> Reader:
    """Return a reader that wants these."""
    made = Reader(OUTLET, "r")
    made.form = FORM
    made.subscription = Subscription(patterns, only_instance)
    return made


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ((ANY, ANY), {"aa", "ab", "ba"}),
        (("a", ANY), {"aa", "ab"}),
        ((ANY, "a"), {"aa", "ba"}),
        (("a", "b"), {"ab"}),
    ],
)
def test_patterns(pattern: tuple[str, str], wanted: set[str]) -> None:
    subscription = Subscription({pattern})
    groups = Groups()
    groups.join(reader(pattern))
    for stream, instance in ("aa", "ab", "ba"):
        assert subscription.wants((stream, instance)) is (stream + instance in wanted)
        assert len(groups.wanting((stream, instance))) == (stream + instance in wanted)


def test_a_reader_of_one_instance_wants_no_other() -> None:
    subscription = Subscription({(ANY, ANY)}, only_instance="a")
    assert subscription.wants(("s", "a"))
    assert not subscription.wants(("s", "b"))


def test_readers_that_want_the_same_are_one_group() -> None:
    groups = Groups()
    one, two, other = reader(("a", ANY)), reader(("a", ANY)), reader(("a", ANY), ("b", "x"))
    for joins in (one, two, other):
        groups.join(joins)
    assert len(groups) == 2
    assert one.group is two.group is not other.group
    assert groups.wanting(("b", "x")) == [other.group]
    assert set(groups.wanting(("a", "x"))) == {one.group, other.group}


def test_empty_groups_are_freed() -> None:
    """Ten thousand readers that each wanted something else leave nothing behind."""
    groups = Groups()
    readers = [reader(("typing", f"w{number}"), ("typing", ANY)) for number in range(100)]
    for joins in readers:
        groups.join(joins)
    assert len(groups) == 100
    for leaves in readers:
        groups.leave(leaves)
        groups.leave(leaves)
        assert leaves.group is None
    assert (len(groups), groups._groups, groups._by_pattern) == (0, {}, {})


WORD = st.sampled_from(["a", "b", ANY])
PATTERNS = st.frozensets(st.tuples(WORD, WORD), min_size=1, max_size=4)


@given(wants=st.lists(st.tuples(PATTERNS, st.sampled_from([None, "a"])), max_size=8))
def test_a_row_is_for_those_who_want_it_once_each(
    wants: list[tuple[frozenset[tuple[str, str]], str | None]],
) -> None:
    """However many of its patterns it matches."""
    groups = Groups()
    for patterns, only in wants:
        groups.join(reader(*patterns, only_instance=only))
    for pair in [("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")]:
        found = groups.wanting(pair)
        assert len(set(found)) == len(found)
        expected = {
            (patterns, only) for patterns, only in wants if Subscription(patterns, only).wants(pair)
        }
        assert {(group.patterns, group.only_instance) for group in found} == expected
