"""How far each pair has been handed out, now and at an earlier moment (protocol.md section 10).

A reader that falls behind remembers one number, the *moment*: how often the hub had handed
something out. What it has of each pair is where the head of the pair was at that moment. So
falling behind costs the same whatever number of pairs there are, and catching up looks at
those alone that have moved since.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from tcprepl import limits
from tcprepl.ids import Pair, Token


class Mark(NamedTuple):
    """Where a head was.

    Attributes:
        token: The newest token handed out.
        rows: Rows handed out since the hub began.
        size_bytes: Bytes of lines handed out since the hub began.
        until: The last moment at which it was there.
    """

    token: Token
    rows: int
    size_bytes: int
    until: int


class Head:
    """How far one pair has been handed out, and how much that was.

    Attributes:
        pair: The (stream, instance).
        name: Both names as they stand in a line.
        token: The newest token handed to the readers.
        rows: Rows handed out since the hub began.
        size_bytes: Bytes of lines handed out since the hub began.
        sent_rows: Rows written to readers, once for each.
        sent_bytes: Bytes of them, as they stand in the log.
        born: The moment at which readers first heard of the pair; 0 when the hub began with it.
        moved: The moment at which it moved last.
        marks: Where it was at the moments that somebody remembers, oldest first.
    """

    __slots__ = (
        "_times",
        "_tokens",
        "born",
        "marks",
        "moved",
        "name",
        "pair",
        "rows",
        "sent_bytes",
        "sent_rows",
        "size_bytes",
        "token",
    )

    def __init__(self, pair: Pair, token: Token, born: int = 0) -> None:
        self.pair = pair
        self.name = " ".join(pair).encode()
        self.token = token
        self.rows = 0
        self.size_bytes = 0
        self.sent_rows = 0
        self.sent_bytes = 0
        self.born = born
        self.moved = 0
        self.marks: list[Mark] = []
        self._tokens: list[Token] = []
        self._times: list[float] = []

    def sample(self, now: float) -> None:
        """Remember that the head is at its token at *now* (monotonic seconds).

        A sample stands for the rows up to its token, and has the time of the oldest of them.
        """
        if self._times and now - self._times[-1] < limits.HEAD_SAMPLE_S:
            self._tokens[-1] = self.token
            return
        self._tokens.append(self.token)
        self._times.append(now)
        if len(self._tokens) > limits.MAX_HEAD_SAMPLES:
            # Join the older half by twos: what is long past needs no fine grain.
            half = limits.MAX_HEAD_SAMPLES // 4 * 2
            self._tokens[:half] = self._tokens[1:half:2]
            self._times[:half] = self._times[:half:2]

    def age_of(self, token: Token, now: float) -> float:
        """Return for how many seconds rows after *token* have existed; 0 when there are none."""
        if token >= self.token:
            return 0.0
        index = bisect_right(self._tokens, token)
        if index == len(self._times):
            return 0.0
        return now - self._times[index]


class Heads:
    """Every head, and how far each was at the moments that somebody remembers.

    Attributes:
        by_pair: The heads.
        moment: How often something has been handed out.
    """

    def __init__(self) -> None:
        self.by_pair: dict[Pair, Head] = {}
        self.moment = 0
        self._by_move: OrderedDict[Head, None] = OrderedDict()
        self._remembered: Counter[int] = Counter()
        self._newest_remembered = -1

    def add(self, pair: Pair, token: Token) -> Head:
        """Make *pair* known, with *token* as where it has always been; readers hear of it now."""
        head = self.by_pair[pair] = Head(pair, token, self.moment)
        return head

    def begin(self) -> None:
        """Begin to hand something out: what moves from now on moves at a new moment."""
        self.moment += 1

    def move(self, head: Head, token: Token, rows: int = 0, size_bytes: int = 0) -> None:
        """Note that *head* moves to *token*."""
        if head.moved <= self._newest_remembered:
            head.marks.append(Mark(head.token, head.rows, head.size_bytes, self.moment - 1))
            if len(head.marks) > 2 * len(self._remembered) + 8:
                self._tidy(head)
        elif head.marks and not self._remembered:
            head.marks = []
        head.token = token
        head.rows += rows
        head.size_bytes += size_bytes
        head.moved = self.moment
        self._by_move[head] = None
        self._by_move.move_to_end(head)

    def remember(self, moment: int) -> None:
        """Be able to tell where each head was at *moment*, the present one, until `forget`."""
        self._remembered[moment] += 1
        self._newest_remembered = moment

    def forget(self, moment: int) -> None:
        """Undo one `remember` of *moment*."""
        self._remembered[moment] -= 1
        if not self._remembered[moment]:
            del self._remembered[moment]
            if not self._remembered:
                self._newest_remembered = -1

    def moved_since(self, moment: int) -> Iterator[Head]:
        """Yield the heads that have moved after *moment*, the newest first."""
        for head in reversed(self._by_move):
            if head.moved <= moment:
                return
            yield head

    def at(self, head: Head, moment: int) -> Mark:
        """Return where *head* was at *moment*, which is remembered."""
        if head.moved <= moment:
            return Mark(head.token, head.rows, head.size_bytes, self.moment)
        return head.marks[bisect_left(head.marks, moment, key=lambda mark: mark.until)]

    def _tidy(self, head: Head) -> None:
        """Let go of the marks of *head* that no remembered moment needs."""
        marks, needed = head.marks, {}
        for moment in self._remembered:
            index = bisect_left(marks, moment, key=lambda mark: mark.until)
            if index < len(marks):
                needed[index] = marks[index]
        head.marks = [needed[index] for index in sorted(needed)]
