"""What is different with a server of the dialect of 2017 (protocol.md section 7.2 and 9).

It resumes in band: between REPLICATE and POSITION it sends what was missed, in any order, and
only POSITION says how far that went. Afterwards it may repeat a token without marking a batch.
"""

from __future__ import annotations

from enum import Enum, auto

from tcprepl import limits
from tcprepl.ids import Pair, Token
from tcprepl.protocol.events import RowsReceived


class Verdict(Enum):
    """What to do with a batch."""

    #: It was applied before.
    STALE = auto()
    #: It was missed; hand it over without a position, which comes with POSITION.
    MISSED = auto()
    #: It was missed and is kept here until POSITION comes: see `Resumption.take_kept`.
    KEPT = auto()
    #: Hand it over; its token is the position.
    LIVE = auto()


class Resumption:
    """What was asked for on this connection and has not had its POSITION yet.

    A reader whose positions are committed with its rows cannot commit a row that has no
    position. For it the rows are kept until POSITION comes, then handed over in the order of
    their tokens. What is kept is bounded; beyond that rows are handed over as they come, and
    will come again if the connection is lost before POSITION.

    Attributes:
        asked: The token that was asked for, of each pair. To be read only.
    """

    def __init__(self, *, keep: bool) -> None:
        """Begin with nothing asked.

        Args:
            keep: Whether rows are kept until their position is known.
        """
        self.asked: dict[Pair, Token] = {}
        self._keep = keep
        self._kept: dict[Pair, list[tuple[Token, bytes]]] = {}
        self._kept_bytes = 0

    def ask(self, pair: Pair, token: Token) -> None:
        """Note that *pair* was asked for from *token* on."""
        self.asked[pair] = token

    def clear(self) -> None:
        """Forget everything: the connection was lost, what is missing is asked for again."""
        self.asked.clear()
        self._kept.clear()
        self._kept_bytes = 0

    def judge(self, batch: RowsReceived, known: Token | None) -> Verdict:
        """Say what to do with *batch* of a pair that is applied up to *known*."""
        pair = (batch.stream, batch.instance)
        asked = self.asked.get(pair)
        if asked is None:
            return Verdict.STALE if known is not None and batch.token < known else Verdict.LIVE
        if batch.token <= asked:
            return Verdict.STALE
        size = sum(map(len, batch.rows))
        if not self._keep or self._kept_bytes + size > limits.MAX_BATCH_BYTES:
            return Verdict.MISSED
        self._kept.setdefault(pair, []).extend((batch.token, row) for row in batch.rows)
        self._kept_bytes += size
        return Verdict.KEPT

    def end(self, pair: Pair) -> None:
        """Note that POSITION came: what was asked for, if anything was, is there."""
        self.asked.pop(pair, None)

    def take_kept(self, pair: Pair) -> list[tuple[Token, bytes]]:
        """Return the rows that were kept of *pair*, in the order of their tokens."""
        kept = self._kept.pop(pair, [])
        self._kept_bytes -= sum(len(row) for _, row in kept)
        kept.sort(key=lambda update: update[0])
        return kept
