"""Who is looked at when: each connection by the time of its next deadline, not all of them often.

Ten thousand idle connections have a thousand deadlines a second, their PINGs. To look at every
one each second cost ten times that, and did it in one go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from tcprepl.clocks import Reactor
from tcprepl.limits import PING_INTERVAL_S
from tcprepl.logger import get_logger

log = get_logger(__name__)

#: How late a deadline may be noticed.
STEP_S = 0.25


class Watched(Protocol):
    """Who has deadlines; hashed by what it is.

    Attributes:
        step: In which step it is looked at next; kept here by `Deadlines`.
    """

    step: int

    def sweep(self, now: float) -> float | None:
        """Do what is due at *now*; return when to look again at the latest, None for never."""
        ...

    def failed(self) -> None:
        """End: something that nobody expected came out of `sweep`, and was logged."""
        ...


W = TypeVar("W", bound=Watched)


class Deadlines(Generic[W]):
    """Those who are watched, by when they are looked at.

    Invariant: whoever is watched stands in one step, not later than its next deadline. Deadlines
    may move at any time, but not to less than `PING_INTERVAL_S` from then: nothing has to be told.

    Args:
        clock: The time.
    """

    def __init__(self, clock: Reactor) -> None:
        self._clock = clock
        #: In the order in which they came, so that a history can be played again.
        self._steps: dict[int, dict[W, None]] = {}

    def watch(self, one: W) -> None:
        """Look at *one* from now on; its first deadline is `PING_INTERVAL_S` away or more."""
        self._put(one, self._clock.seconds() + PING_INTERVAL_S)

    def forget(self, one: W) -> None:
        """Look at *one* no more."""
        step = self._steps.get(one.step)
        if step is not None:
            step.pop(one, None)

    def work(self) -> Iterator[None]:
        """Look at all that is due, at one with each piece of work."""
        upto = int(self._clock.seconds() / STEP_S)
        for number in sorted(number for number in self._steps if number <= upto):
            step = self._steps[number]
            while step:
                one, _ = step.popitem()
                try:
                    due_s = one.sweep(self._clock.seconds())
                except Exception:
                    log.exception("replication.peer.failed")
                    one.failed()
                    due_s = self._clock.seconds() + PING_INTERVAL_S  # its end has a deadline, too
                if due_s is not None:
                    self._put(one, due_s)
                yield
            del self._steps[number]

    def _put(self, one: W, due_s: float) -> None:
        """Put *one* into the step in which *due_s* falls, or the next one if it is over."""
        now = int(self._clock.seconds() / STEP_S)
        one.step = max(math.ceil(due_s / STEP_S), now + 1)
        self._steps.setdefault(one.step, {})[one] = None
