"""When to try a destination again (protocol.md section 14).

First a few quick tries, for a restart or a hiccup of the remote must not cost ten minutes; then
intervals that double up to a cap. Each wait is spread by a random factor, so that destinations
that died together are not tried together. Pure: time and chance are arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

MINUTE_MS = 60_000
#: A remote that answers, but refuses, is tried with what is new after an eighth of the wait,
#: within these bounds.
_PROBE_PART = 8
_PROBE_MS = (2_000, 30_000)
#: Least wait after an answer that asks for one.
_MIN_ASKED_MS = 1_000
DAY_MS = 24 * 60 * MINUTE_MS


@dataclass(frozen=True, slots=True)
class BackoffPolicy:
    """How long to wait after the n-th failure in a row.

    Attributes:
        quick_ms: The waits after the first failures.
        first_ms: The wait after those.
        factor: What each further wait is longer by, until it is the longest.
        cap_ms: The longest wait.
        jitter: Least and most of the random factor on each wait.
    """

    quick_ms: tuple[int, ...] = (4_000, 16_000, *[MINUTE_MS] * 8)
    first_ms: int = 10 * MINUTE_MS
    factor: float = 2.0
    cap_ms: int = 7 * DAY_MS
    jitter: tuple[float, float] = (0.8, 1.4)

    def __post_init__(self) -> None:
        if self.first_ms <= 0 or self.cap_ms <= 0 or not 1 <= self.factor < math.inf:
            raise ValueError("expected waits above 0 and a finite factor of at least 1")

    def wait_ms(self, failures: int, uniform: Callable[[float, float], float]) -> int:
        """Return how long to wait after *failures* failures in a row (at least 1)."""
        quick = len(self.quick_ms)
        wait: float
        if failures <= quick:
            wait = self.quick_ms[failures - 1]
        else:
            doublings = (failures - quick - 1) * math.log2(self.factor)
            if doublings >= math.log2(self.cap_ms) - math.log2(self.first_ms):
                wait = self.cap_ms
            else:
                wait = self.first_ms * 2.0**doublings
        return max(1, min(int(wait * uniform(*self.jitter)), self.cap_ms))


@dataclass(slots=True)
class Backoff:
    """The back-off of one destination: what is kept on disk.

    Attributes:
        failures: Failures in a row.
        failure_ms: When the first of them was; 0 if there is none.
        last_ms: When the last of them was.
        interval_ms: How long to wait from then on.
        reason: What the last of them was, for people.
        refusing: Whether the remote answers, and refuses what it was sent: what is new has not
            to wait as long as what was refused.
    """

    failures: int = 0
    failure_ms: int = 0
    last_ms: int = 0
    interval_ms: int = 0
    reason: str = ""
    refusing: bool = False

    @property
    def next_ms(self) -> int:
        """When the next try is due; 0 for at once."""
        return self.last_ms + self.interval_ms if self.interval_ms else 0

    @property
    def next_new_ms(self) -> int:
        """When what was not refused yet may be tried; 0 for at once."""
        if not self.refusing or not self.interval_ms:
            return self.next_ms
        least, most = _PROBE_MS
        return self.last_ms + min(
            self.interval_ms, max(least, min(self.interval_ms // _PROBE_PART, most))
        )

    def failed(
        self,
        now_ms: int,
        policy: BackoffPolicy,
        uniform: Callable[[float, float], float],
        reason: str,
        retry_after_ms: int | None = None,
        *,
        refusing: bool = False,
    ) -> None:
        """Note a failure.

        Args:
            now_ms: Wall-clock time.
            policy: How long to wait.
            uniform: Source of chance (`random.Random.uniform`).
            reason: What went wrong.
            retry_after_ms: What the remote asked for: waited for at least, up to the cap, and
                spread above it, never below.
            refusing: Whether it was an answer about what was sent.
        """
        self.failures += 1
        if not self.failure_ms:
            self.failure_ms = now_ms
        self.last_ms = now_ms
        self.reason = reason
        self.refusing = refusing
        wait = policy.wait_ms(self.failures, uniform)
        if retry_after_ms is not None:
            asked = int(max(retry_after_ms, _MIN_ASKED_MS) * uniform(1.0, 1.2))
            wait = min(asked, policy.cap_ms)
        self.interval_ms = wait

    def kept_waiting(self, now_ms: int, wait_ms: int, reason: str) -> None:
        """Note that it has to wait for a reason of ours, which says nothing of the remote."""
        self.last_ms = now_ms
        self.interval_ms = wait_ms
        self.reason = reason
        self.refusing = False

    def cleared(self) -> bool:
        """Forget every failure; returns whether there was one."""
        failed = self.failures > 0
        self.failures = self.failure_ms = self.last_ms = self.interval_ms = 0
        self.reason = ""
        self.refusing = False
        return failed

    def due_now(self) -> None:
        """Let the next try be at once, without forgetting that there were failures."""
        self.interval_ms = 0
