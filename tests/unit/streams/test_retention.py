"""What is kept, and which setting says so."""

from __future__ import annotations

import pytest

from tcprepl.streams.retention import Bounds, Retention


@pytest.mark.parametrize(
    ("name", "above", "setting"),
    [
        ("max_rows", "rows", "rows=10"),
        ("max_bytes", "size_bytes", "bytes=10"),
        ("max_age_s", "now_ms", "age=10s"),
    ],
)
def test_a_bound_is_exceeded_by_more_than_it_says_only(name: str, above: str, setting: str) -> None:
    bounds = Bounds(**{name: 10})
    at = {"oldest_ms": 5_000, "size_bytes": 10, "rows": 10, "now_ms": 15_000}
    assert bounds.excess(**at) is None
    assert bounds.excess(**{**at, above: at[above] + 1}) == f"retention.{setting}"


@pytest.mark.parametrize(
    ("bounds", "setting"),
    [
        (Bounds(), None),
        (Bounds(max_rows=10, max_bytes=100, max_age_s=1), None),
        (Bounds(max_rows=9), "retention.rows=9"),
        (Bounds(max_bytes=99), "retention.bytes=99"),
        (Bounds(max_age_s=0.9), "retention.age=0.9s"),
    ],
)
def test_the_bound_that_is_exceeded_is_named(bounds: Bounds, setting: str | None) -> None:
    assert bounds.excess(oldest_ms=0, size_bytes=100, rows=10, now_ms=1_000) == setting


def test_a_stream_has_its_own_bounds_or_those_of_its_kind() -> None:
    own = Bounds(max_rows=1)
    retention = Retention(streams={"typing": own})
    assert retention.bounds("typing", durable=False) is own
    assert retention.bounds("presence", durable=False) is retention.ephemeral
    assert retention.bounds("events", durable=True) is retention.durable
