"""Where each known process stood when it was heard of last (protocol.md section 15.7).

A process that comes back is given what it missed. So its place is kept: in memory exactly, and
in a file of a few small rows, so that the bus can end at any moment, by kill -9 even. A
process that is at the head needs no tokens there: whatever the log holds has been given to
it. A place that is not right costs a fetch from the database, and no row: a process compares
what it is told with where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from tcprepl.errors import LogError
from tcprepl.ids import InstanceName, Pair, Token
from tcprepl.logger import get_logger
from tcprepl.replication.bus.delivered import Stand
from tcprepl.storage.sqlite import Durability, Schema, explaining, open_database, private_directory

log = get_logger(__name__)

#: The file in the data directory.
FILE_NAME: Final = "bus.sqlite3"
#: Processes whose places are kept: those that left longest ago are forgotten first.
MAX_PLACES: Final = 1_000
#: How often the time is written down until which the bus ran, at most.
ALIVE_INTERVAL_S: Final = 10.0

_CREATE: Final = """
CREATE TABLE IF NOT EXISTS places (process TEXT PRIMARY KEY, place BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""
_SCHEMA: Final = Schema(_CREATE)


_T = TypeVar("_T")


class Replayed(Enum):
    """What a process was given that subscribed."""

    #: What it missed.
    LINES = "replayed"
    #: Nothing: nobody knows who it is, or it was never here.
    UNKNOWN = "unknown"
    #: Nothing: it was away for longer than is replayed.
    TOO_LONG = "away_too_long"
    #: Nothing: it missed more rows than are replayed.
    TOO_MANY = "too_many_rows"
    #: Nothing: it is another process under the same name.
    BEGAN_ANEW = "began_anew"
    #: Nothing: it left at once when it was last given what it missed.
    LEFT_AT_ONCE = "left_at_once"
    #: Nothing: the log does not have, or does not give, what it missed.
    NOT_IN_LOG = "not_in_log"

    @property
    def told(self) -> str:
        """What the status says of it; nothing of one that nobody knows."""
        return "" if self is Replayed.UNKNOWN else self.value


class Place(msgspec.Struct):
    """Where a process stood.

    Attributes:
        left_at: When it left (seconds of the reactor).
        stands: Up to where it has each pair.
        rows: Rows that it has missed up to `counted_at`.
        counted_at: How many rows the log had taken since the start of the bus by then.
        pid: The number of the process, where it is known; otherwise 0.
        others: The number of the first line beside the rows that it was not given, in this run of
            the bus.
        left_at_once: Whether it left right after it had been given what it had missed.
    """

    left_at: float
    stands: dict[Pair, Stand]
    rows: int = 0
    counted_at: int = 0
    pid: int = 0
    others: int | None = None
    left_at_once: bool = False


class _Written(msgspec.Struct, array_like=True):
    """A place on disk; without stands it is that of a process at the head."""

    left_at: float
    rows: int
    pid: int
    stands: list[tuple[str, str, Token, bool]] | None
    left_at_once: bool = False


class Places:
    """The places of all known processes that are away, and which of them are here.

    Invariant: what is noted is written down before the call returns, or the disk refused, which is
    logged, and costs a fetch at most; then it is owed, and written with what is noted next.

    Args:
        directory: The data directory; None keeps everything in memory.
        now: Returns the time, in seconds of the reactor.

    Attributes:
        said: The pairs that processes may be told of, as the last run of the bus knew them.
        instances: Which instance each process is, as it said once.
    """

    def __init__(self, directory: Path | None, now: Callable[[], float]) -> None:
        """Open the file in *directory*.

        Raises:
            LogCorrupt: The file is damaged, or is not ours.
            LogUnavailable: The directory cannot be used, or the disk refuses.
        """
        self._path = None if directory is None else Path(directory) / FILE_NAME
        self._now = now
        self._away: dict[str, Place] = {}
        self._alive_at = float("-inf")
        #: What the disk has not taken, by table and key: a statement and its values.
        self._owed: dict[tuple[str, object], tuple[str, tuple[object, ...]]] = {}
        if self._path is not None:
            private_directory(self._path.parent)
        self._database = open_database(self._path, _SCHEMA, Durability.PROCESS_DEATH)
        with explaining(self._path, _SCHEMA):
            self._rows = self._database.execute("SELECT process, place FROM places").fetchall()
            facts = dict(self._database.execute("SELECT name, value FROM facts").fetchall())
        self._ended_at = _read(facts.get("alive"), float) or 0.0
        self.instances = _read(facts.get("instances"), dict[str, InstanceName]) or {}
        self.said: set[Pair] = set(_read(facts.get("said"), list[tuple[str, str]]) or ())

    def load(self, heads: Mapping[Pair, Token]) -> None:
        """Take up where everybody stood when the last run of the bus ended.

        Args:
            heads: Where the log ends.
        """
        at_head = {pair: Stand(token) for pair, token in heads.items()}
        for process, blob in self._rows:
            written = _read(blob, _Written)
            if written is None:
                continue
            if written.stands is None:
                self._away[process] = Place(self._ended_at, dict(at_head), pid=written.pid)
                self._write(process, self._away[process])
            else:
                self._away[process] = Place(
                    written.left_at,
                    {(s, i): Stand(token, told) for s, i, token, told in written.stands},
                    rows=written.rows,
                    pid=written.pid,
                    left_at_once=written.left_at_once,
                )
        self._rows = []

    def away(self) -> list[tuple[str, Place]]:
        """Return who is away, and where each stands."""
        return list(self._away.items())

    def take(self, process: str) -> Place | None:
        """Return where *process* stood when it left, if it did; it is away no longer."""
        return self._away.pop(process, None)

    def at_head(self, process: str, pid: int) -> None:
        """Write down that *process* is here and has everything."""
        self._put(process, _Written(0.0, 0, pid, None))

    def leave(self, process: str, place: Place) -> None:
        """Note that *process* is away, and where it stands."""
        self._away.pop(process, None)
        self._away[process] = place
        self._write(process, place)
        while len(self._away) > MAX_PLACES:
            self.forget(next(iter(self._away)))

    def stay(self, process: str, place: Place) -> None:
        """Write down where *process* stands that is here, but not at the head."""
        self._write(process, place)

    def forget(self, process: str) -> None:
        """Forget *process*."""
        self._away.pop(process, None)
        self._execute("places", "DELETE FROM places WHERE process = ?", (process,))

    def alive(self, said: set[Pair]) -> None:
        """Write down, now and then, that the bus runs, and of which pairs processes are told.

        What the disk has refused before is tried again.
        """
        now = self._now()
        if now - self._alive_at >= ALIVE_INTERVAL_S:
            self._alive_at = now
            self._fact("alive", now)
        if said != self.said:
            self.said = set(said)
            self._fact("said", sorted(said))
        self._write_owed()

    def is_instance(self, process: str, instance: InstanceName) -> None:
        """Note that *process* is *instance*."""
        if self.instances.get(process) != instance:
            self.instances[process] = instance
            self._fact("instances", self.instances)

    def _fact(self, name: str, value: object) -> None:
        statement = "INSERT OR REPLACE INTO facts VALUES (?, ?)"
        self._execute("facts", statement, (name, msgspec.msgpack.encode(value)))

    def _write(self, process: str, place: Place) -> None:
        stands = [(*pair, *stand) for pair, stand in place.stands.items()]
        self._put(
            process,
            _Written(place.left_at, place.rows, place.pid, stands, place.left_at_once),
        )

    def _put(self, process: str, written: _Written) -> None:
        statement = "INSERT OR REPLACE INTO places VALUES (?, ?)"
        self._execute("places", statement, (process, msgspec.msgpack.encode(written)))

    def _execute(self, table: str, statement: str, values: tuple[object, ...]) -> None:
        self._owed[table, values[0]] = statement, values
        self._write_owed()

    def _write_owed(self) -> None:
        try:
            with explaining(self._path, _SCHEMA):
                for key, (statement, values) in list(self._owed.items()):
                    self._database.execute(statement, values)
                    del self._owed[key]
        except LogError as error:
            log.warning("bus.place.not_written", error=str(error))

    def close(self) -> None:
        """Write down until when the bus ran, and close the file."""
        self._fact("alive", self._now())
        self._database.close()


def _read(blob: bytes | None, kind: type[_T]) -> _T | None:
    """Return what was written down; None if nothing was, or something else."""
    try:
        return None if blob is None else msgspec.msgpack.decode(blob, type=kind)
    except msgspec.DecodeError:
        return None
