"""A small cache with times to live, in memory, in the place of Redis's (protocol.md section 15).

Synapse keeps the results of look-ups there for an hour and can do without any of them: so nothing
is written to disk, and what is over the bound goes, least recently used first. Time is an argument:
seconds that only grow.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import Final, NamedTuple

#: Bytes of keys and values that are kept, by default.
MAX_CACHE_BYTES: Final = 64 * 1024 * 1024
#: What an entry costs besides its bytes, about.
ENTRY_BYTES: Final = 200


class Entry(NamedTuple):
    """What is kept under a key.

    Attributes:
        value: The value.
        expires_at: When it ends, in seconds; None for never.
    """

    value: bytes
    expires_at: float | None


class Cache:
    """Values by key, bounded in bytes.

    Args:
        max_bytes: Most bytes of keys and values, an allowance for each entry included.

    Attributes:
        hits: How often `get` found something.
        misses: How often it did not.
        evicted: How many entries went because of the bound.
        expired: How many went because their time was over.
        size_bytes: What is kept now.
    """

    def __init__(self, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self.hits = self.misses = self.evicted = self.expired = self.size_bytes = 0
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, now: float) -> bytes | None:
        """Return the value of *key*, or None; it counts as asked for."""
        entry = self._find(key, now)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return entry.value

    def has(self, key: bytes, now: float) -> bool:
        """Return whether there is a value of *key*."""
        return self._find(key, now) is not None

    def set(self, key: bytes, value: bytes, now: float, ttl_s: float | None = None) -> None:
        """Keep *value*, for *ttl_s* seconds or until it has to make room.

        A value that is larger than the whole cache is not kept.
        """
        self._remove(key)
        entry = Entry(value, None if ttl_s is None else now + ttl_s)
        self._entries[key] = entry
        self.size_bytes += _size(key, entry)
        while self.size_bytes > self.max_bytes:
            self._remove(next(iter(self._entries)))
            self.evicted += 1

    def delete(self, key: bytes, now: float) -> bool:
        """Forget *key*; return whether it was there."""
        found = self._find(key, now) is not None
        self._remove(key)
        return found

    def expire(self, key: bytes, now: float, ttl_s: float | None) -> bool:
        """Give *key* another time to live (None: for ever); return whether it is there.

        A time that is over already forgets it.
        """
        entry = self._find(key, now)
        if entry is None:
            return False
        if ttl_s is not None and ttl_s <= 0:
            self._remove(key)
        else:
            self._entries[key] = Entry(entry.value, None if ttl_s is None else now + ttl_s)
        return True

    def ttl_s(self, key: bytes, now: float) -> float | None:
        """Return how long *key* is still kept; None for one that has no end.

        Raises:
            KeyError: There is none.
        """
        entry = self._find(key, now)
        if entry is None:
            raise KeyError(key)
        return None if entry.expires_at is None else entry.expires_at - now

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.size_bytes = 0

    def sweep(self, now: float, limit: int = 1_000) -> None:
        """Forget what is over among the *limit* entries that were not asked for longest."""
        over = [
            key
            for key, entry in islice(self._entries.items(), limit)
            if entry.expires_at is not None and entry.expires_at <= now
        ]
        for key in over:
            self._remove(key)
        self.expired += len(over)

    def _find(self, key: bytes, now: float) -> Entry | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires_at is not None and entry.expires_at <= now:
            self._remove(key)
            self.expired += 1
            return None
        return entry

    def _remove(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size_bytes -= _size(key, entry)


def _size(key: bytes, entry: Entry) -> int:
    return len(key) + len(entry.value) + ENTRY_BYTES
