"""Work that several ask for and that is done once."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Shared(Generic[K, V]):
    """Does work once for all who ask for it meanwhile.

    Whoever waits may be cancelled, and only that one is; when nobody waits any more, the work
    is cancelled.
    """

    def __init__(self) -> None:
        self._running: dict[K, tuple[Deferred[V], list[Deferred[V]]]] = {}

    def __len__(self) -> int:
        """Return how much work is under way."""
        return len(self._running)

    def ask(self, key: K, work: Callable[[], Coroutine[Deferred[Any], Any, V]]) -> Deferred[V]:
        """Answer with what the work called *key* gives; begin it with *work* if need be."""

        def left(one: Deferred[V]) -> None:
            found = self._running.get(key)
            if found is not None and one in found[1]:
                found[1].remove(one)
                if not found[1]:
                    # Nobody learns of it: whoever asks now begins anew.
                    del self._running[key]
                    found[0].cancel()
            one.errback(CancelledError())

        asked: Deferred[V] = Deferred(left)
        running = self._running.get(key)
        if running is not None:
            running[1].append(asked)
            return asked
        waiting = [asked]
        begun: Deferred[V] = Deferred()
        self._running[key] = begun, waiting
        task = Deferred.fromCoroutine(work())
        if self._running.get(key) == (begun, waiting):
            self._running[key] = task, waiting

        def ended(result: V | Failure) -> None:
            found = self._running.get(key)
            if found is not None and found[1] is waiting:
                del self._running[key]
            for one in waiting:
                if one.called:
                    continue  # cancelled by one of those before
                if isinstance(result, Failure):
                    one.errback(result)
                else:
                    one.callback(result)

        _ = task.addBoth(ended)
        return asked
