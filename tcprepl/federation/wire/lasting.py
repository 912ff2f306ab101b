"""What was found out and outlasts passing failures (protocol.md section 14).

An answer is kept for as long as it is good. That there is nothing is an answer, too. A failure
says nothing: what was known before goes on to count for a time of grace, and it is asked again
soon, each time a little later.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from twisted.internet.defer import CancelledError

from tcprepl.logger import get_logger

logger = get_logger(__name__)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

#: When it is asked again after the first failure; doubled for each further one.
RETRY_FIRST_S = 30.0
#: The longest such wait.
RETRY_MAX_S = 3_600.0


@dataclass(slots=True)
class _Known(Generic[V]):
    value: V | None
    good_until_s: float
    grace_until_s: float
    failures: int = 0


class Lasting(Generic[K, V]):
    """Answers by key, bounded in number; time is the caller's clock."""

    def __init__(self, now_s: Callable[[], float], max_entries: int, grace_s: float) -> None:
        """Make it empty.

        Args:
            now_s: Returns the time in seconds.
            max_entries: Answers that are remembered.
            grace_s: How long beyond its time an answer counts while failures last.
        """
        self._now_s = now_s
        self._max_entries = max_entries
        self._grace_s = grace_s
        self._known: OrderedDict[K, _Known[V]] = OrderedDict()
        #: How often something was to be forgotten.
        self._forgotten = 0

    def __len__(self) -> int:
        """Return how many answers are remembered."""
        return len(self._known)

    async def get(
        self, key: K, ask: Callable[[], Awaitable[tuple[V | None, float]]]
    ) -> tuple[V | None, float]:
        """Return the answer for *key*, asking if need be, and for how many seconds it is good.

        It is not kept if something was to be forgotten while it was on its way.

        Args:
            key: What the answer is of.
            ask: Returns an answer, None if there is nothing, and for how many seconds it is
                good; raises if that could not be found out.

        Returns:
            The answer; None if there is nothing, or nothing is known.
        """
        now_s = self._now_s()
        known = self._known.get(key)
        if known is not None and now_s < known.good_until_s:
            self._known.move_to_end(key)
            return known.value, known.good_until_s - now_s
        age = self._forgotten
        try:
            value, lifetime_s = await ask()
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, nothing was found out
            now_s = self._now_s()
            known = self._known.get(key) or _Known(None, 0.0, 0.0)
            if now_s >= known.grace_until_s:
                known.value = None
            known.failures += 1
            wait_s = min(RETRY_FIRST_S * 2.0 ** min(known.failures - 1, 10), RETRY_MAX_S)
            known.good_until_s = now_s + wait_s
            logger.info(
                "federation.discovery.failed",
                of=str(key),
                error=str(error)[:200],
                uses_older=known.value is not None,
                retry_s=wait_s,
            )
        else:
            good_until_s = self._now_s() + lifetime_s
            known = _Known(value, good_until_s, good_until_s + self._grace_s)
        if age == self._forgotten:
            self._known[key] = known
            self._known.move_to_end(key)
            while len(self._known) > self._max_entries:
                self._known.popitem(last=False)
        return known.value, known.good_until_s - self._now_s()

    def forget(self, key: K) -> bool:
        """Forget the answer for *key*; returns whether there was one."""
        self._forgotten += 1
        return self._known.pop(key, None) is not None
