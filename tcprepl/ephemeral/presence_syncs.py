"""Which process holds a sync of which user open (USER_SYNC and CLEAR_USER_SYNC)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from tcprepl.ephemeral.ports import Milliseconds


class OpenSyncs:
    """The open syncs of each process, and when the process was last heard of.

    Invariant: a user is syncing exactly if some known process holds a sync of theirs open, or
    is being forgotten and has not come to them yet.
    """

    def __init__(self) -> None:
        #: Process -> (user, device) of its open syncs; the device is None where peers do not
        #: tell devices apart.
        self._open: dict[str, dict[tuple[str, str | None], None]] = {}
        self._heard: dict[str, Milliseconds] = {}
        self._count: Counter[str] = Counter()
        self._total = 0

    def __len__(self) -> int:
        """Return how many syncs are open."""
        return self._total

    def processes(self) -> Collection[str]:
        """Return the processes that are known."""
        return self._heard.keys()

    def is_syncing(self, user_id: str) -> bool:
        """Return whether any process holds a sync of the user open."""
        return user_id in self._count

    def is_open(self, process_id: str, user_id: str, device_id: str | None) -> bool:
        """Return whether this very sync is known to be open."""
        return (user_id, device_id) in self._open.get(process_id, ())

    def process_alive(self, process_id: str, now: Milliseconds) -> None:
        """Note that a process was heard of."""
        self._heard[process_id] = now

    def began(self, process_id: str, user_id: str, device_id: str | None) -> None:
        """Note that a sync is open; once is enough."""
        syncs = self._open.setdefault(process_id, {})
        if (user_id, device_id) not in syncs:
            syncs[user_id, device_id] = None
            self._count[user_id] += 1
            self._total += 1

    def ended(self, process_id: str, user_id: str, device_id: str | None) -> None:
        """Note that a sync is not open; that of an unknown one is harmless."""
        syncs = self._open.get(process_id)
        if syncs is not None and (user_id, device_id) in syncs:
            del syncs[user_id, device_id]
            self._uncount(user_id)
            if not syncs:
                del self._open[process_id]

    def clear(self, process_id: str) -> Iterator[str]:
        """Forget a process: yields each user it held a sync of, when that counts no longer.

        The process is forgotten by the time that the first is asked for.
        """
        self._heard.pop(process_id, None)
        held = list(self._open.pop(process_id, ()))
        held.reverse()
        while held:  # one goes after the other: to let go of all of them at once takes long
            user_id, _ = held.pop()
            self._uncount(user_id)
            yield user_id

    def expire(self, now: Milliseconds, expiry_ms: int) -> Iterator[str]:
        """Forget processes not heard of for more than *expiry_ms*: yields as `clear`."""
        silent = [(name, heard) for name, heard in self._heard.items() if now - heard > expiry_ms]
        for process, heard in silent:
            if self._heard.get(process) == heard:  # it may have come back meanwhile
                yield from self.clear(process)

    def _uncount(self, user_id: str) -> None:
        self._total -= 1
        self._count[user_id] -= 1
        if not self._count[user_id]:
            del self._count[user_id]
