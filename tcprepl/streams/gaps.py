"""Where a log has rows missing (protocol.md sections 7.3, 13.1 and 15.4).

A gap is a range of tokens of one (stream, instance) of which nothing is known. The log has
them: those of a relay, whose upstream could not tell its rows, and those of blocks that the
disk does not give back as they were written. Whoever reads passes each of them knowingly.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from tcprepl.ids import Pair, Token
from tcprepl.protocol.display import few


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
        several: Whether it is the damage of more than one block; *detail* is of the last.
    """

    after: Token
    upto: Token
    cause: Cause
    detail: str = ""
    several: bool = False

    @property
    def lost(self) -> bool:
        """Whether rows that concern readers are missing."""
        return self.cause.lost

    @property
    def tokens(self) -> int:
        """How many tokens there are in it."""
        return self.upto - self.after

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
            which = "several blocks, the last: " if self.several else ""
            return f"rows in {where} cannot be read: {which}{self.detail}"
        return f"rows in {where} are gone: {self.detail}"


def outgrows(longer: int, shorter: int) -> bool:
    """Return whether a gap of *longer* tokens is to be told again that was told with *shorter*.

    It is, once it has come to the next power of two: a run of any length is told a few times.
    """
    return longer.bit_length() > shorter.bit_length()


def in_words(gaps: Sequence[Gap]) -> str:
    """Return what is missing in *gaps*, each of which begins where the one before ends."""
    told: list[Gap] = []
    for gap in gaps:
        if told and gap.cause is told[-1].cause is Cause.DAMAGE:
            told.append(_joined((told.pop(), gap)))
        else:
            told.append(gap)
    return "; ".join(few(told, "gap", say=Gap.words))


def _joined(damage: Sequence[Gap]) -> Gap:
    """Return ranges that adjoin, or overlap, as one."""
    after = min(gap.after for gap in damage)
    last = max(damage, key=lambda gap: (gap.upto, gap.tokens))
    return last if last.after == after else replace(last, after=after, several=True)


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

        Damage that adjoins other damage is one gap with it: of a disk that fails there may be
        as many damaged blocks as there are blocks.

        Returns:
            Whether it is to be told: it was not known, nor does it go on from what was told.
        """
        known = self._gaps.setdefault(pair, [])
        new = gap not in known
        if gap.cause is Cause.DAMAGE:
            near = [
                other
                for other in known
                if other.cause is gap.cause and other.after <= gap.upto and gap.after <= other.upto
            ]
            if near:
                gap = _joined((*near, gap))
                new = outgrows(gap.tokens, max(other.tokens for other in near))
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
        """Return, in words, which rows the disk does not give back: of many ranges the first."""
        return few(self.of(Cause.DAMAGE), "damaged range", say=_of_pair)

    def keep(self, pair: Pair, floor: Token, position: Token) -> None:
        """Forget what ends at or below *floor*, or above *position*.

        Of damage what is at or below the floor is forgotten, too: a range may have many blocks.
        """
        known = self._gaps.get(pair, [])
        known[:] = [
            replace(gap, after=floor) if gap.cause is Cause.DAMAGE and gap.after < floor else gap
            for gap in known
            if floor < gap.upto <= position
        ]


def _of_pair(found: tuple[Pair, Gap]) -> str:
    (stream, instance), gap = found
    return f"stream {stream} of {instance}: {gap.words()}"
