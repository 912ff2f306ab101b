"""What is published on the homeserver's channel: rows into the log, the rest to everybody.

A connection that publishes is read like a connection to a Redis on which one writer is heard
(`tcprepl.replication.relaying.lines`), but for this: we are the only one who can have lost what
it said before, since it said it to nobody else. So the first row that comes on a connection
counts, as it does for those who listen at a Redis; only what is before it may be missing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tcprepl.ids import Pair
from tcprepl.protocol.commands import PositionCommand
from tcprepl.protocol.events import RowsReceived
from tcprepl.replication.bus.silent import ROW_FOR_EVERY_TOKEN, SilentMoves
from tcprepl.replication.following.descending import DESCENDING
from tcprepl.replication.relaying.intake import IN_MEMORY
from tcprepl.replication.relaying.lines import Follower, Followers, LineReader


class PublishedLines(LineReader):
    """Reads what one connection publishes.

    Args:
        followers: Where rows and positions go.
        on_other: Called with each line that is neither, behind the rows before it.
        say: Called with each line that the log has no use for, since it has the row already:
            those who listen have to hear it all the same, as at a Redis.
        on_pair: Called with each pair of which something is said on this connection, once.
        alone: Tells whether nobody else writes the stream of a pair.
        silent: Where it is noted that rows may have been lost before they were published.
    """

    def __init__(
        self,
        followers: Followers,
        on_other: Callable[[bytes], object],
        say: Callable[[bytes], object],
        on_pair: Callable[[Pair], object],
        alone: Callable[[Pair], bool],
        silent: SilentMoves,
    ) -> None:
        super().__init__(followers, on_other)
        self._say = say
        self._on_pair = on_pair
        self._alone = alone
        self._silent = silent
        self._met: set[Pair] = set()

        #: What the log had already, until the rows before it are on their way there.
        self._repeats: list[bytes] = []

    def _other(self, line: bytes, events: list[Any]) -> None:
        self._deliver(events)
        events.clear()
        self.intake.after(partial(self._on_other, line), len(line))

    def _deliver(self, events: list[Any]) -> None:
        super()._deliver(events)
        repeats, self._repeats = self._repeats, []
        for line in repeats:
            self.intake.after(partial(self._say, line), len(line))

    def _proves(self, event: RowsReceived | PositionCommand) -> bool:
        return True

    def _heard(
        self, follower: Follower, event: RowsReceived | PositionCommand
    ) -> RowsReceived | PositionCommand | None:
        if (
            isinstance(event, RowsReceived)
            and event.token <= follower.top
            and event.stream not in IN_MEMORY | DESCENDING
            and self.intake.passed_over(follower.pair, event.token) is None
        ):
            self._repeat(event)
            return None
        heard = super()._heard(follower, event)
        return self._judged(follower, heard) if isinstance(heard, PositionCommand) else heard

    def _judged(self, follower: Follower, position: PositionCommand) -> PositionCommand:
        """Return *position*, so that its rows are fetched if it should have some and has none."""
        pair, token = follower.pair, position.token
        prev = token if position.prev is None else position.prev
        if pair[0] not in ROW_FOR_EVERY_TOKEN or not prev <= follower.top < token:
            return position
        if not self._alone(pair):
            return position
        self._silent.note(pair, follower.top, token)
        if not self.followers.fetches:
            return position
        return PositionCommand(*pair, token, token)

    def _first_heard(
        self, follower: Follower, event: RowsReceived | PositionCommand
    ) -> list[RowsReceived | PositionCommand]:
        """Return what the first line of a pair on this connection says.

        Of a row, that nothing is known about those between the last one that we have and it.
        A position is taken at its word: a writer whose counter has grown is taken for the same.
        """
        if follower.pair not in self._met:  # another connection may say it, too
            self._met.add(follower.pair)
            self._on_pair(follower.pair)
        stream, instance = follower.pair
        known = follower.delivery.known.get(follower.pair)
        if isinstance(event, PositionCommand):
            return [self._of_all(event)]
        row, before = self._readable(event), event.token - 1
        if stream in DESCENDING:
            return super()._first_heard(follower, event) if known is None else [row]
        if known is None or known < before or (known > before and stream in IN_MEMORY):
            return [PositionCommand(stream, instance, before, before), row]
        if known == before or self.intake.passed_over(follower.pair, event.token) is not None:
            return [row]
        self._repeat(event)
        return []

    def _repeat(self, event: RowsReceived) -> None:
        """Say rows that the log has already, or takes them to be."""
        head = f"RDATA {event.stream} {event.instance}".encode()
        *others, last = event.rows
        self._repeats += [b"%b batch %b" % (head, row) for row in others]
        self._repeats.append(b"%b %d %b" % (head, event.token, last))
