"""Many timers at little cost: objects that come due, in buckets of five seconds.

Inserting is one append, whatever is pending. Nothing is ever cancelled: whoever fetches an
object looks at the present state and finds out whether there is still something to do.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")

#: Width of a bucket.
BUCKET_MS = 5_000


class WheelTimer(Generic[T]):
    """Objects by the time at which they come due, in ms.

    An object due at *then* is returned by the first fetch whose ``now // bucket_ms`` is above
    ``then // bucket_ms``: always after *then*, never at it, and at most one bucket late. One
    that was overdue when it was inserted is returned by the next fetch.
    """

    __slots__ = ("_bucket_ms", "_buckets", "_fetched", "_overdue", "_pending")

    def __init__(self, bucket_ms: int = BUCKET_MS) -> None:
        if bucket_ms < 1:
            raise ValueError(f"bucket_ms must be at least 1, not {bucket_ms}")
        self._bucket_ms = bucket_ms
        self._buckets: dict[int, list[T]] = {}
        self._overdue: list[T] = []
        self._fetched: int | None = None
        self._pending = 0

    def __len__(self) -> int:
        """Return how many objects are pending; one inserted twice counts twice."""
        return self._pending

    def insert(self, obj: T, then_ms: int) -> None:
        """Return *obj* from a fetch once *then_ms* has passed."""
        number = then_ms // self._bucket_ms + 1
        self._pending += 1
        if self._fetched is not None and number <= self._fetched:
            self._overdue.append(obj)
            return
        bucket = self._buckets.get(number)
        if bucket is None:
            self._buckets[number] = [obj]
        else:
            bucket.append(obj)

    def fetch(self, now_ms: int) -> list[T]:
        """Remove and return what has come due, in the order of the buckets."""
        number = now_ms // self._bucket_ms
        due, self._overdue = self._overdue, []
        if self._fetched is None or number > self._fetched:
            # There are few buckets (one for each bucket_ms of the longest timer), and after a
            # long pause there are fewer of them than numbers that went by.
            for ready in sorted(key for key in self._buckets if key <= number):
                due += self._buckets.pop(ready)
            self._fetched = number
        self._pending -= len(due)
        return due
