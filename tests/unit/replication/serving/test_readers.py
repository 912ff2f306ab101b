"""Heads remember when rows came; subscriptions say who wants what."""

from __future__ import annotations

import pytest

from tcprepl.replication.serving.readers import ANY, HEAD_SAMPLES, Group, Head, Subscription
from tcprepl.replication.serving.rendering import WireForm

FORM = WireForm(rdata_instance=True, position_tokens=2, max_line_bytes=100)


def test_age_is_that_of_the_oldest_row_after_a_token() -> None:
    head = Head(0)
    for token in range(1, 11):
        head.token = token
        head.sample(float(token))
    assert head.age_of(10, 20.0) == 0.0
    assert head.age_of(9, 20.0) == pytest.approx(10.0)
    assert head.age_of(0, 20.0) == pytest.approx(19.0)


def test_age_of_what_was_never_sampled_is_nothing() -> None:
    head = Head(5)
    assert head.age_of(3, 9.0) == 0.0


def test_samples_stay_few_and_the_far_past_grows_coarse() -> None:
    head = Head(0)
    for token in range(1, 5_000):
        head.token = token
        head.sample(float(token))
    assert len(head._tokens) <= HEAD_SAMPLES + 1
    assert head.age_of(4_998, 5_000.0) == pytest.approx(1.0)
    assert head.age_of(1, 5_000.0) >= 4_000.0


def test_samples_close_together_are_one() -> None:
    head = Head(0)
    head.token = 1
    head.sample(1.0)
    head.token = 2
    head.sample(1.01)
    assert len(head._tokens) == 1


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
    subscription = Subscription(frozenset({pattern}))
    group = Group(FORM, subscription)
    for stream, instance in ("aa", "ab", "ba"):
        assert group.wants((stream, instance)) is (stream + instance in wanted)
        assert group.wants((stream, instance)) is subscription.wants((stream, instance))


def test_a_reader_of_one_instance_wants_no_other() -> None:
    subscription = Subscription(frozenset({(ANY, ANY)}), only_instance="a")
    assert subscription.wants(("s", "a"))
    assert not subscription.wants(("s", "b"))
