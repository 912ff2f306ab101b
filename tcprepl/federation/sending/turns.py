"""Whose turn it is: one line, one heap of those who wait, and a budget of turns at once.

Pure: no clock, no I/O; time is an argument. Whoever may have a turn stands in the line, in the
order of coming; whoever has to wait is in a heap until then, so thousands that wait cost nothing.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable
from enum import Enum, auto
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

#: Void entries of the heap that are not worth cleaning up.
_SLACK = 64


class Place(Enum):
    """Where somebody is."""

    #: Nowhere: has asked for nothing.
    AWAY = auto()
    #: In the heap: waits for its time.
    WAITING = auto()
    #: In the line: waits for the others.
    IN_LINE = auto()
    #: Has its turn.
    RUNNING = auto()


class Turns(Generic[T]):
    """Gives turns, fairly and so many at once.

    Invariants: each is in one place at a time; at most *at_once* have a turn; nobody gets one
    before the time asked for; `next_due_ms` is never later than the first who waits.

    Attributes:
        running: Those who have a turn.
    """

    def __init__(self, at_once: int) -> None:
        """Make it empty.

        Args:
            at_once: How many may have a turn at the same time.
        """
        self._at_once = at_once
        self._line: deque[T] = deque()
        self._in_line: set[T] = set()
        self._due_ms: dict[T, int] = {}
        self._heap: list[tuple[int, int, T]] = []
        self._sequence = 0
        self.running: set[T] = set()

    def place(self, one: T) -> Place:
        """Return where *one* is."""
        if one in self.running:
            return Place.RUNNING
        if one in self._in_line:
            return Place.IN_LINE
        return Place.WAITING if one in self._due_ms else Place.AWAY

    def due_ms(self, one: T) -> int:
        """Return until when *one* waits; 0 if it does not."""
        return self._due_ms.get(one, 0)

    def ask(self, one: T, due_ms: int, now_ms: int) -> None:
        """Let *one* have a turn from *due_ms* on; the earliest time that was asked for counts.

        Who has a turn now has to ask again after `end`: what it asks meanwhile is forgotten.
        """
        if one in self.running or one in self._in_line:
            return
        if due_ms <= now_ms:
            self._due_ms.pop(one, None)
            self._in_line.add(one)
            self._line.append(one)
            return
        before_ms = self._due_ms.get(one)
        if before_ms is None or due_ms < before_ms:
            self._due_ms[one] = due_ms
            self._sequence += 1
            heapq.heappush(self._heap, (due_ms, self._sequence, one))
            if len(self._heap) > 2 * len(self._due_ms) + _SLACK:
                self._compact()

    def withdraw(self, one: T) -> None:
        """Take *one* out of the line and the heap; a turn that it has goes on."""
        self._due_ms.pop(one, None)
        if one in self._in_line:
            self._in_line.discard(one)
            self._line.remove(one)

    def begin(self, now_ms: int) -> T | None:
        """Return who has its turn from now on, until `end`; None if nobody may."""
        if self._heap:
            self._wake(now_ms)
        if not self._line or len(self.running) >= self._at_once:
            return None
        one = self._line.popleft()
        self._in_line.discard(one)
        self.running.add(one)
        return one

    def end(self, one: T) -> None:
        """Note that the turn of *one* is over."""
        self.running.discard(one)

    def next_due_ms(self) -> int | None:
        """Return when somebody who waits is due; None if nobody waits."""
        heap = self._heap
        while heap and self._due_ms.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def _compact(self) -> None:
        """Drop entries of the heap that an earlier time or `withdraw` made void."""
        self._heap = [entry for entry in self._heap if self._due_ms.get(entry[2]) == entry[0]]
        heapq.heapify(self._heap)

    def _wake(self, now_ms: int) -> None:
        """Put those who are due into the line."""
        while (due_ms := self.next_due_ms()) is not None and due_ms <= now_ms:
            one = heapq.heappop(self._heap)[2]
            self.ask(one, due_ms, now_ms)
