"""Where a log has rows missing (protocol.md sections 7.3, 13.1 and 15.4).

A gap is a range of tokens of one (stream, instance) of which nothing is known. The log has
them: those of a relay, whose upstream could not tell its rows, and those of blocks that the
disk does not give back as they were written. Whoever reads passes each of them knowingly.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from tcprepl.ids import Pair, Token


class Cause(Enum):
    """What made the rows of a gap be missing."""

    #: The upstream of a relay had rows and could not tell them.
    UPSTREAM = "upstream"
    #: The record of a relay begins after them: they were never held.
    RECORD = "record"
    #: The stream began anew upstream; no rows are missing, but the state of before is void.
    ANEW = "anew"
    #: The block that holds them is damaged on the disk.
    DAMAGE = "damage"
    #: They are past what the log retains.
    RETENTION = "retention"

    @property
    def lost(self) -> bool:
        """Whether rows that concern readers are missing."""
        return self not in (Cause.RECORD, Cause.ANEW)


@dataclass(frozen=True, slots=True)
class Gap:
    """Tokens ``(after, upto]`` in which rows may be missing.

    Attributes:
        after: Where it begins.
        upto: Where it ends.
        cause: What made it.
        detail: More about that, for people: the setting that bounds retention, the place of
            the damage.
    """

    after: Token
    upto: Token
    cause: Cause
    detail: str = ""

    @property
    def lost(self) -> bool:
        """Whether rows that concern readers are missing."""
        return self.cause.lost

    def words(self) -> str:
        """Return what is missing, in words."""
        if self.cause is Cause.RECORD:
            return f"rows up to {self.upto} were never held: the relay's record begins after them"
        if self.cause is Cause.ANEW:
            return f"the stream began anew upstream after {self.after}"
        where = f"({self.after}, {self.upto}]"
        if self.cause is Cause.UPSTREAM:
            return f"rows in {where} may be missing: the upstream could not tell them"
        if self.cause is Cause.DAMAGE:
            return f"rows in {where} cannot be read: {self.detail}"
        return f"rows in {where} are gone: {self.detail}"


class Gaps:
    """The gaps of every (stream, instance), in token order.

    A *cursor* is the token up to which a reader has everything. It *stands in* a gap from the
    gap's beginning on: the next that it could be given is behind the gap. At its end it has
    passed the gap.
    """

    def __init__(self) -> None:
        self._gaps: dict[Pair, list[Gap]] = {}

    def __iter__(self) -> Iterator[tuple[Pair, Gap]]:
        """Yield every gap with its pair."""
        return ((pair, gap) for pair, known in self._gaps.items() for gap in known)

    def add(self, pair: Pair, gap: Gap) -> bool:
        """Add *gap*; it replaces one that begins at the same token, and those within it.

        Returns:
            Whether it was not known.
        """
        known = self._gaps.setdefault(pair, [])
        new = gap not in known
        known[:] = [
            other
            for other in known
            if other.after < gap.after or (other.after > gap.after and other.upto > gap.upto)
        ]
        insort(known, gap, key=lambda other: other.after)
        return new

    def next(self, pair: Pair, token: Token) -> Gap | None:
        """Return the first gap that ends after *token*, None if there is none."""
        known = self._gaps.get(pair)
        if not known:
            return None
        index = bisect_right(known, token, key=lambda gap: gap.upto)
        return known[index] if index < len(known) else None

    def at(self, pair: Pair, cursor: Token) -> Gap | None:
        """Return the gap in which *cursor* stands, None if it stands in none."""
        gap = self.next(pair, cursor)
        return gap if gap is not None and gap.after <= cursor else None

    def covers(self, pair: Pair, after: Token, upto: Token) -> bool:
        """Return whether all of ``(after, upto]`` lies in one gap."""
        gap = self.at(pair, after)
        return gap is not None and upto <= gap.upto

    def last_end(self, pair: Pair, position: Token) -> Token:
        """Return where the last gap up to *position* ends, 0 if there is none.

        From there on nothing is missing.
        """
        known = self._gaps.get(pair, [])
        index = bisect_right(known, position, key=lambda gap: gap.upto)
        return known[index - 1].upto if index else 0

    def of(self, cause: Cause) -> list[tuple[Pair, Gap]]:
        """Return every gap that *cause* made, with its pair."""
        return [(pair, gap) for pair, gap in self if gap.cause is cause]

    def damage(self) -> list[str]:
        """Return, in words, every range of rows that the disk does not give back."""
        return [
            f"stream {stream} of {instance}: {gap.words()}"
            for (stream, instance), gap in self.of(Cause.DAMAGE)
        ]

    def keep(self, pair: Pair, floor: Token, position: Token) -> None:
        """Forget what ends at or below *floor*, or above *position*."""
        known = self._gaps.get(pair, [])
        known[:] = [gap for gap in known if floor < gap.upto <= position]
