"""What a relay knows beside the rows: shifts of tokens, gaps, streams it met (protocol.md 15.4).

A relay keeps the tokens of its upstream as long as they grow. When a stream begins anew up
there (the in-memory streams of a restarted Synapse do), the relay's tokens go on growing
all the same: from then on they are the upstream's plus an *offset*. What was lost on the way
is a *gap*: readers are told of it whenever they come to pass it.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_right, insort
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from tcprepl.errors import LogCorrupt, LogUnavailable
from tcprepl.ids import StreamName, Token
from tcprepl.replication.serving.readers import Pair

#: The file in the data directory.
FILE_NAME: Final = "relay.sqlite3"

_CREATE: Final = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS epochs (
    stream TEXT NOT NULL, instance TEXT NOT NULL,
    offset INTEGER NOT NULL, start INTEGER NOT NULL,
    PRIMARY KEY (stream, instance)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS gaps (
    stream TEXT NOT NULL, instance TEXT NOT NULL,
    after INTEGER NOT NULL, upto INTEGER NOT NULL, lost INTEGER NOT NULL,
    PRIMARY KEY (stream, instance, after)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS streams (name TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class Epoch(NamedTuple):
    """How our tokens of a (stream, instance) follow from the upstream's.

    Attributes:
        offset: Ours less the upstream's.
        start: Our token at which this began to hold.
    """

    offset: int = 0
    start: Token = 0


@dataclass(frozen=True, slots=True, order=True)
class Gap:
    """Tokens of ours, ``(after, upto]``, in which rows may be missing.

    Attributes:
        after: Where it begins.
        upto: Where it ends.
        lost: Whether rows that concern readers are missing; False where the relay's record
            only begins, or where a stream began anew.
    """

    after: Token
    upto: Token
    lost: bool

    def words(self) -> str:
        """Return what is missing, in words."""
        if self.lost:
            return (
                f"rows in ({self.after}, {self.upto}] may be missing: the upstream could not "
                f"tell them"
            )
        if not self.after:
            return f"rows up to {self.upto} were never held: the relay's record begins after them"
        return f"the stream began anew upstream after {self.after}"


class Gaps:
    """The gaps of every (stream, instance), in token order, for all who serve readers.

    A *cursor* is the token up to which a reader has everything. It *stands in* a gap from the
    gap's beginning on: the next that it could be given is behind the gap. At its end it has
    passed the gap.
    """

    def __init__(self) -> None:
        self._gaps: dict[Pair, list[Gap]] = {}

    def add(self, pair: Pair, gap: Gap) -> None:
        """Add *gap*; it replaces one that begins at the same token."""
        known = self._gaps.setdefault(pair, [])
        known[:] = [other for other in known if other.after != gap.after]
        insort(known, gap)

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

    def chain(self, pair: Pair, cursor: Token, position: Token) -> list[Gap]:
        """Return the gap in which *cursor* stands, and those that adjoin it, in order.

        The last one's end is where its reader can go on. A gap that ends above *position* is
        nobody's yet: it is noted before the position moves over it.
        """
        found: list[Gap] = []
        gap = self.at(pair, cursor)
        while gap is not None and gap.upto <= position:
            found.append(gap)
            gap = self.at(pair, gap.upto)
        return found

    def readable(self, pair: Pair, cursor: Token, upto: Token) -> Token:
        """Return how far *cursor*, which stands in no gap, may be served.

        That is *upto*, or where the next gap begins if it does so before.
        """
        gap = self.next(pair, cursor)
        return upto if gap is None else min(upto, gap.after)

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

    def all(self) -> list[tuple[Pair, Gap]]:
        """Return every gap."""
        return [(pair, gap) for pair, known in self._gaps.items() for gap in known]

    def keep(self, pair: Pair, floor: Token, position: Token) -> None:
        """Forget what ends at or below *floor*, or above *position*."""
        known = self._gaps.get(pair, [])
        known[:] = [gap for gap in known if floor < gap.upto <= position]


class RelayState:
    """Offsets, gaps and names of streams, on disk before anything depends on them.

    Attributes:
        gaps: The gaps.
    """

    def __init__(self, directory: Path | str | None) -> None:
        """Open the state in *directory*; None keeps it in memory.

        Raises:
            LogCorrupt: The file is damaged, or is not ours.
            LogUnavailable: The directory cannot be used, or the disk refuses.
        """
        self._path = ":memory:" if directory is None else str(Path(directory) / FILE_NAME)
        self.gaps = Gaps()
        try:
            if directory is not None:
                Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path)
            self._connection.executescript(_CREATE)
            self._epochs = {
                (stream, instance): Epoch(offset, start)
                for stream, instance, offset, start in self._connection.execute(
                    "SELECT stream, instance, offset, start FROM epochs"
                )
            }
            for stream, instance, after, upto, lost in self._connection.execute(
                "SELECT stream, instance, after, upto, lost FROM gaps"
            ):
                self.gaps.add((stream, instance), Gap(after, upto, bool(lost)))
            self._streams = {
                name for (name,) in self._connection.execute("SELECT name FROM streams")
            }
        except (sqlite3.Error, OSError) as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> LogUnavailable | LogCorrupt:
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(
            error, sqlite3.OperationalError
        )
        if damaged:
            return LogCorrupt(f"{self._path}: {error}")
        return LogUnavailable(f"{self._path}: {error}")

    def epoch(self, pair: Pair) -> Epoch:
        """Return how our tokens of *pair* follow from the upstream's."""
        return self._epochs.get(pair, Epoch())

    def set_epoch(self, pair: Pair, epoch: Epoch) -> None:
        """Let *epoch* hold for *pair* from now on.

        Raises:
            LogUnavailable: The disk refuses.
        """
        self._write("INSERT OR REPLACE INTO epochs VALUES (?, ?, ?, ?)", (*pair, *epoch))
        self._epochs[pair] = epoch

    def add_gap(self, pair: Pair, gap: Gap) -> None:
        """Remember *gap*.

        Raises:
            LogUnavailable: The disk refuses.
        """
        self._write(
            "INSERT OR REPLACE INTO gaps VALUES (?, ?, ?, ?, ?)",
            (*pair, gap.after, gap.upto, gap.lost),
        )
        self.gaps.add(pair, gap)

    def settle(self, pair: Pair, floor: Token, position: Token) -> None:
        """Forget the gaps of *pair* that are past retention, and those never logged.

        A gap that ends above the position was announced to nobody: the process died first.
        """
        self._write(
            "DELETE FROM gaps WHERE stream = ? AND instance = ? AND (upto <= ? OR upto > ?)",
            (*pair, floor, position),
        )
        self.gaps.keep(pair, floor, position)

    def streams(self) -> set[StreamName]:
        """Return the streams that were added."""
        return set(self._streams)

    def add_stream(self, name: StreamName) -> None:
        """Remember that there is a stream *name*.

        Raises:
            LogUnavailable: The disk refuses.
        """
        self._write("INSERT OR IGNORE INTO streams VALUES (?)", (name,))
        self._streams.add(name)

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        try:
            with self._connection:
                self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
