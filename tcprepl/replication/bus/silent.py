"""Positions that moved without a row, where every token is that of a row (protocol.md 15.7).

That is how a writer looks that lost rows on the way: it has written them, and says that it is
behind them, and nobody was told. Where instances share a sequence, and in streams that take
tokens for what they do not publish, it means nothing.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tcprepl import metrics
from tcprepl.ids import Pair, Token
from tcprepl.logger import get_logger
from tcprepl.protocol.display import counted

log = get_logger(__name__)

#: Streams of Synapse whose writers publish a row for every token that they take, if all is well.
#: In others tokens are taken for nothing: a receipt that is older than the one there, for instance.
ROW_FOR_EVERY_TOKEN: Final = frozenset({"federation", "to_device", "typing"})
#: Pairs that the status names.
_SHOWN: Final = 20


class _Moves(NamedTuple):
    times: int
    before: Token
    now: Token


class SilentMoves:
    """Counts them, for each pair."""

    def __init__(self) -> None:
        self._by_pair: dict[Pair, _Moves] = {}

    def note(self, pair: Pair, before: Token, now: Token) -> None:
        """Note that *pair* moved from *before* to *now*, and no row came."""
        stream, instance = pair
        moves = self._by_pair.pop(pair, None)
        self._by_pair[pair] = _Moves(1 if moves is None else moves.times + 1, before, now)
        metrics.BUS_SILENT_MOVES.labels(stream, instance).inc()
        log.warning(
            "bus.position.without_rows",
            stream=stream,
            instance=instance,
            before=before,
            now=now,
            reason="in this stream every token is that of a row: some may have been lost",
        )

    def words(self) -> list[str]:
        """Return the newest of them in words."""
        return [
            f"{stream} of {instance}: {counted(moves.times, 'time')}, the last time "
            f"({moves.before}, {moves.now}]"
            for (stream, instance), moves in list(self._by_pair.items())[-_SHOWN:]
        ]
