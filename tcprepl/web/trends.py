"""How much there was to do, and how late the slowest reader was: now, today, and in between.

A sample a second goes into every one of `SPANS`; in the longer ones the highest of each step is
kept, so that a burst of one second is still seen a day later. All of it is 360 pairs of
numbers, for as long as the process runs.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple


class Span(NamedTuple):
    """A stretch of time up to now.

    Attributes:
        key: What it is called in addresses and ids.
        title: What people call it.
        step_s: Seconds of one point.
        points: How many there are.
    """

    key: str
    title: str
    step_s: float
    points: int


SPANS = (
    Span("2m", "2 minutes", 1.0, 120),
    Span("1h", "1 hour", 30.0, 120),
    Span("24h", "24 hours", 720.0, 120),
)


class Trend:
    """What was measured over one span; the newest point is the last.

    Attributes:
        rates: Rows a second, the most in each step.
        lags: Seconds that the slowest reader was behind, the most in each step.
    """

    def __init__(self, span: Span) -> None:
        self.span = span
        self.rates: deque[float] = deque(maxlen=span.points)
        self.lags: deque[float] = deque(maxlen=span.points)
        self._samples = 0

    def add(self, rate: float, lag_s: float) -> None:
        """Take a sample; called once a second."""
        if self._samples % int(self.span.step_s) == 0:
            self.rates.append(rate)
            self.lags.append(lag_s)
        else:
            self.rates[-1] = max(self.rates[-1], rate)
            self.lags[-1] = max(self.lags[-1], lag_s)
        self._samples += 1


class Trends:
    """All spans."""

    def __init__(self) -> None:
        self.all = tuple(map(Trend, SPANS))

    def add(self, rate: float, lag_s: float) -> None:
        """Take a sample; called once a second."""
        for trend in self.all:
            trend.add(rate, lag_s)
