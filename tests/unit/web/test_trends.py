"""A day in a few numbers: no burst is lost, nothing grows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tcprepl.web.trends import SPANS, Trends


def test_a_burst_of_one_second_is_seen_a_day_later() -> None:
    trends = Trends()
    for second in range(86_400):
        trends.add(9_000.0 if second == 100 else 1.0, 42.0 if second == 200 else 0.0)
    two, _, day = trends.all
    assert set(two.rates) == {1.0}
    assert max(day.rates) == 9_000.0
    assert max(day.lags) == 42.0
    assert [len(trend.rates) for trend in trends.all] == [span.points for span in SPANS]
    for _ in range(86_400):
        trends.add(1.0, 0.0)
    assert max(day.rates) == 1.0


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e6)), max_size=200))
def test_the_highest_of_each_step_is_kept(samples: list[tuple[float, float]]) -> None:
    trends = Trends()
    for rate, lag in samples:
        trends.add(rate, lag)
    for trend in trends.all:
        step = int(trend.span.step_s)
        steps = [samples[n : n + step] for n in range(0, len(samples), step)][-trend.span.points :]
        assert list(trend.rates) == [max(rate for rate, _ in found) for found in steps]
        assert list(trend.lags) == [max(lag for _, lag in found) for found in steps]
