"""In which incarnations of a log a reader got what it has (protocol.md section 7.11).

A reader keeps, with each position, the incarnation in which it got it, and where earlier ones
ended for it. So a server that does not know the newest (it was restored from a copy of before)
can still tell the last row that both have.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgpack

from tcprepl.ids import IncarnationId, Token
from tcprepl.limits import MAX_SAID_INCARNATIONS

#: (token, incarnation) pairs, newest first: the reader's rows up to *token* are of *incarnation*.
Places: TypeAlias = tuple[tuple[Token, IncarnationId], ...]


class Lineage:
    """What a reader has of one (stream, instance): the newest incarnations that it read from.

    Invariant: the rows in ``(entered of one, entered of the next]`` were got in that one; the
    rows above the last, in the last. None stands for a server that named no incarnation.

    One never changes; where the disk refuses to keep the next one, this one still holds.
    """

    __slots__ = ("_entered",)

    def __init__(self, stored: bytes | None = None) -> None:
        """Begin with nothing, or with what `stored` returned."""
        self._entered: list[tuple[IncarnationId | None, Token]] = (
            [] if stored is None else [(name, token) for name, token in msgpack.unpackb(stored)]
        )

    def stored(self) -> bytes:
        """Return what there is to keep."""
        packed: bytes = msgpack.packb(self._entered)
        return packed

    def entered(self, incarnation: IncarnationId | None, before: Token, token: Token) -> Lineage:
        """Return what holds once the position moves from *before* to *token* in *incarnation*.

        Returns:
            Nearly always this very one: there is nothing new to keep.
        """
        at = min(before, token)
        newest, since = self._entered[-1] if self._entered else (None, 0)
        if newest == incarnation and since <= at:
            return self
        entered = self._entered[:]
        # where the position went back, what was got above it is void
        while entered and entered[-1][1] >= at:
            entered.pop()
        entered.append((incarnation, at))
        next_one = Lineage()
        next_one._entered = entered[-MAX_SAID_INCARNATIONS:]
        return next_one

    def places(self, token: Token) -> Places:
        """Return what a reader at *token* says of itself; nothing where it does not know."""
        found: list[tuple[Token, IncarnationId]] = []
        for incarnation, entered in reversed(self._entered):
            if incarnation is None:
                break
            found.append((token, incarnation))
            token = min(token, entered)
        return tuple(found)


#: What a reader has that has read nothing.
NEW: Final = Lineage()
