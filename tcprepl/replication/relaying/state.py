"""What a relay knows beside the rows: shifts of tokens, gaps, streams it met (protocol.md 15.4).

A relay keeps the tokens of its upstream as long as they grow. When a stream begins anew up
there (the in-memory streams of a restarted Synapse do), the relay's tokens go on growing
all the same: from then on they are the upstream's plus an *offset*. What was lost on the way
is a *gap*: readers are told of it whenever they come to pass it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from tcprepl.errors import LogError
from tcprepl.ids import IncarnationId, Pair, StreamName, Token
from tcprepl.storage.sqlite import Schema, explaining, open_database, private_directory, transaction
from tcprepl.streams.gaps import Cause, Gap, Gaps
from tcprepl.streams.lineage import NEW, Lineage, Places

#: The file in the data directory.
FILE_NAME: Final = "relay.sqlite3"

_CREATE: Final = """
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
CREATE TABLE IF NOT EXISTS followed (since INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS lineages (
    stream TEXT NOT NULL, instance TEXT NOT NULL, lineage BLOB NOT NULL,
    PRIMARY KEY (stream, instance)
) WITHOUT ROWID;
"""
#: Streams in the order in which they were met: places of the meta-stream's token count on it.
_ORDER: Final = """
CREATE TABLE met (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
INSERT INTO met (name) SELECT name FROM streams ORDER BY name;
DROP TABLE streams;
"""
_SET_EPOCH: Final = "INSERT OR REPLACE INTO epochs VALUES (?, ?, ?, ?)"
_ADD_GAP: Final = "INSERT OR REPLACE INTO gaps VALUES (?, ?, ?, ?, ?)"
SET_LINEAGE: Final = "INSERT OR REPLACE INTO lineages VALUES (?, ?, ?)"
_SCHEMA: Final = Schema(_CREATE + _ORDER, version=2, upgrades={0: _CREATE, 1: _ORDER})


class Epoch(NamedTuple):
    """How our tokens of a (stream, instance) follow from the upstream's.

    Attributes:
        offset: Ours less the upstream's.
        start: Our token at which this began to hold.
    """

    offset: int = 0
    start: Token = 0


class RelayState:
    """Offsets, gaps and names of streams, on disk before anything depends on them.

    Attributes:
        gaps: The gaps: give them to the log, whose readers have to be told of them.
    """

    def __init__(self, directory: Path | str | None) -> None:
        """Open the state in *directory*; None keeps it in memory.

        Raises:
            LogCorrupt: The file is damaged, or is not ours.
            LogUnavailable: The directory cannot be used, or the disk refuses.
        """
        self._path = None if directory is None else Path(directory) / FILE_NAME
        self.gaps = Gaps()
        if self._path is not None:
            private_directory(self._path.parent)
        self._connection = open_database(self._path, _SCHEMA)
        try:
            with explaining(self._path, _SCHEMA):
                self._load()
        except LogError:
            self._connection.close()
            raise

    def _load(self) -> None:
        execute = self._connection.execute
        self._epochs = {
            (stream, instance): Epoch(offset, start)
            for stream, instance, offset, start in execute(
                "SELECT stream, instance, offset, start FROM epochs"
            )
        }
        for stream, instance, after, upto, lost in execute(
            "SELECT stream, instance, after, upto, lost FROM gaps"
        ):
            cause = Cause.UPSTREAM if lost else Cause.ANEW if after else Cause.RECORD
            self.gaps.add((stream, instance), Gap(after, upto, cause))
        self._lineages = {
            (stream, instance): Lineage(kept)
            for stream, instance, kept in execute("SELECT stream, instance, lineage FROM lineages")
        }
        followed = execute("SELECT 1 FROM followed").fetchone()
        self._followed = followed is not None or bool(self._epochs)
        self._streams = {name: None for (name,) in execute("SELECT name FROM met ORDER BY number")}

    def pairs(self) -> list[Pair]:
        """Return every pair of which something was noted."""
        return list(self._epochs)

    def has_epoch(self, pair: Pair) -> bool:
        """Return whether something was noted of *pair*."""
        return pair in self._epochs

    def epoch(self, pair: Pair) -> Epoch:
        """Return how our tokens of *pair* follow from the upstream's."""
        return self._epochs.get(pair, Epoch())

    def set_epoch(self, pair: Pair, epoch: Epoch) -> None:
        """Let *epoch* hold for *pair* from now on.

        Raises:
            LogUnavailable: The disk refuses.
        """
        self._write(_SET_EPOCH, (*pair, *epoch))
        self._epochs[pair] = epoch

    def enter(
        self, pair: Pair, incarnation: IncarnationId | None, before: Token, token: Token
    ) -> None:
        """Note that *pair* moves from *before* to *token*, as the upstream counts.

        Args:
            pair: The (stream, instance).
            incarnation: That of the upstream's log; None if it named none.
            before: Up to where the pair was taken.
            token: Up to where it will be.

        Raises:
            LogUnavailable: The disk refuses.
        """
        lineage = self._lineages.get(pair, NEW)
        entered = lineage.entered(incarnation, before, token)
        if entered is not lineage:
            self._write(SET_LINEAGE, (*pair, entered.stored()))
            self._lineages[pair] = entered

    def begin_anew(
        self,
        pair: Pair,
        incarnation: IncarnationId | None,
        before: Token,
        token: Token,
        *,
        gap: Gap,
        epoch: Epoch,
    ) -> None:
        """Note all at once that *pair* goes back, or that it goes on elsewhere.

        Who knew the incarnation without the epoch would take the rows of before for rows of it.

        Args:
            pair: The (stream, instance).
            incarnation: That of the upstream's log; None if it named none.
            before: Up to where the pair was taken, as the upstream counts.
            token: After which it goes on, as the upstream counts.
            gap: What our readers are told.
            epoch: How our tokens follow from the upstream's.

        Raises:
            LogUnavailable: The disk refuses; nothing was noted.
        """
        entered = self._lineages.get(pair, NEW).entered(incarnation, before, token)
        with explaining(self._path, _SCHEMA), transaction(self._connection) as cursor:
            cursor.execute(SET_LINEAGE, (*pair, entered.stored()))
            cursor.execute(_ADD_GAP, (*pair, gap.after, gap.upto, gap.lost))
            cursor.execute(_SET_EPOCH, (*pair, *epoch))
        self._lineages[pair] = entered
        self.gaps.add(pair, gap)
        self._epochs[pair] = epoch

    def places(self, pair: Pair, token: Token) -> Places:
        """Return in which incarnations of the upstream's log *pair* was taken up to *token*."""
        lineage = self._lineages.get(pair)
        return () if lineage is None else lineage.places(token)

    def add_gap(self, pair: Pair, gap: Gap) -> None:
        """Remember *gap*.

        Raises:
            LogUnavailable: The disk refuses.
        """
        self._write(_ADD_GAP, (*pair, gap.after, gap.upto, gap.lost))
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

    def follow(self) -> bool:
        """Note that the upstream is being listened to; return whether it ever was before.

        Raises:
            LogUnavailable: The disk refuses.
        """
        before = self._followed
        if not before:
            self._write("INSERT OR IGNORE INTO followed VALUES (?)", (1,))
            self._followed = True
        return before

    def streams(self) -> list[StreamName]:
        """Return the streams that were added, in the order in which they were."""
        return list(self._streams)

    def add_stream(self, name: StreamName) -> None:
        """Remember that there is a stream *name*.

        Raises:
            LogUnavailable: The disk refuses.
        """
        self._write("INSERT OR IGNORE INTO met (name) VALUES (?)", (name,))
        self._streams[name] = None

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        with explaining(self._path, _SCHEMA):
            self._connection.execute(statement, values)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
