"""Where a reader keeps its positions: in memory, or in SQLite beside its own data."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeAlias

import msgpack

from tcprepl.errors import LogCorrupt, LogUnavailable
from tcprepl.ids import IncarnationId, Pair, Token
from tcprepl.storage.sqlite import Durability, Schema, open_database
from tcprepl.streams.lineage import NEW, Lineage, Places

#: Token by (stream, instance).
Positions: TypeAlias = Mapping[Pair, Token]

_CREATE = """
CREATE TABLE IF NOT EXISTS tcprepl_positions (
    stream TEXT NOT NULL,
    instance TEXT NOT NULL,
    token INTEGER NOT NULL,
    PRIMARY KEY (stream, instance)
) WITHOUT ROWID
"""
#: A table of its own: one that an earlier release made, or the caller, is left as it is.
_CREATE_LINEAGES = """
CREATE TABLE IF NOT EXISTS tcprepl_lineages (
    stream TEXT NOT NULL,
    instance TEXT NOT NULL,
    lineage BLOB NOT NULL,
    PRIMARY KEY (stream, instance)
) WITHOUT ROWID
"""
_SAVE = (
    "INSERT INTO tcprepl_positions (stream, instance, token) VALUES (?, ?, ?)"
    " ON CONFLICT (stream, instance) DO UPDATE SET token = excluded.token"
)
_SAVE_LINEAGE = (
    "INSERT INTO tcprepl_lineages (stream, instance, lineage) VALUES (?, ?, ?)"
    " ON CONFLICT (stream, instance) DO UPDATE SET lineage = excluded.lineage"
)


_TABLES = f"{_CREATE};{_CREATE_LINEAGES};"
_SCHEMA = Schema(_TABLES, upgrades={0: _TABLES}, if_damaged="move the file away to begin anew")


class PositionStore(Protocol):
    """Keeps the token up to which each (stream, instance) has been applied.

    Attributes:
        atomic: Whether `save` also commits what the handler of a batch wrote: it is then
            called after each batch, else once for all batches of a read.
    """

    atomic: bool

    def load(self) -> dict[Pair, Token]:
        """Return every saved position."""
        ...

    def places(self, pair: Pair, token: Token) -> Places:
        """Return in which incarnations of the server's log *pair* was read up to *token*.

        The newest comes first, with *token*. Empty where that is not known.
        """
        ...

    def save(self, positions: Positions, incarnation: IncarnationId | None = None) -> None:
        """Save positions, all of them or none; they may be lower than before, after a reset.

        Args:
            positions: The positions that moved.
            incarnation: In which incarnation of the server's log; None if it named none.
        """
        ...

    def rollback(self) -> None:
        """Undo what was written since the last `save` in a transaction shared with it.

        Called if `atomic`, whenever a handler, a callback or `save` itself has failed. If it
        raises, the client gives up: nothing may be committed on top.
        """
        ...

    def close(self) -> None:
        """Release what the store holds."""
        ...


class MemoryPositionStore:
    """Positions that do not outlive the process."""

    atomic = False

    def __init__(self, positions: Positions | None = None) -> None:
        self._positions = dict(positions or {})
        self._lineages: dict[Pair, Lineage] = {}

    def load(self) -> dict[Pair, Token]:
        """Return every saved position."""
        return dict(self._positions)

    def places(self, pair: Pair, token: Token) -> Places:
        """Return in which incarnations *pair* was read up to *token*."""
        lineage = self._lineages.get(pair)
        return () if lineage is None else lineage.places(token)

    def save(self, positions: Positions, incarnation: IncarnationId | None = None) -> None:
        """Save positions."""
        for pair, token in positions.items():
            lineage = self._lineages.get(pair, NEW)
            before = self._positions.get(pair, 0)
            self._lineages[pair] = lineage.entered(incarnation, before, token)
        self._positions.update(positions)

    def rollback(self) -> None:
        """Do nothing: handlers share no transaction with this store."""

    def close(self) -> None:
        """Do nothing."""


class SqlitePositionStore:
    """Positions in SQLite, which survive the death of the process.

    With a path the store has a database of its own (WAL, ``synchronous=NORMAL``): a saved
    position survives ``kill -9``, and at worst a power cut brings back an earlier one, after
    which rows come twice, never not at all.

    **Exactly once.** Give the store the connection that the rows are written with. `save`
    then commits on it, so that what the handler wrote and the position that covers it
    become true in one transaction, or not at all. Whatever a handler wrote when it failed, or
    when the position could not be saved, is undone before it is called again. The same holds for
    `on_reset` and `on_position`. None of them commits (``with connection:`` does)::

        connection = sqlite3.connect("worker.db")

        def handler(stream, instance, token, rows):
            for row in rows:
                connection.execute("INSERT INTO seen VALUES (?)", (row.user_id,))

        client = ReplicationClient(
            reactor, endpoint, ["push_rules"], handler,
            positions=SqlitePositionStore(connection),
        )

    The connection must not be in autocommit mode, and belongs to one client. Whoever else
    writes on it commits before the reactor's turn ends: what is left open when a handler is
    called is committed or undone with what the handler writes. While an async handler
    waits, nobody else may write on it at all. Set `synchronous=FULL` on it if the rows
    have to survive a power cut.
    """

    def __init__(self, database: Path | str | sqlite3.Connection) -> None:
        """Open the store, and create its table if need be.

        Args:
            database: Path of a database of its own, or the caller's connection, which the
                caller goes on owning.

        Raises:
            LogUnavailable: the database cannot be opened.
            LogCorrupt: the file is not a database.
            ValueError: the connection is in autocommit mode.
        """
        self._owned = not isinstance(database, sqlite3.Connection)
        self.atomic = not self._owned
        if isinstance(database, sqlite3.Connection):
            if database.isolation_level is None or getattr(database, "autocommit", None) is True:
                raise ValueError("the connection is in autocommit mode: it cannot commit both")
            self._connection = database
            self._where = "the caller's database"
        else:
            self._where = str(database)
            self._connection = open_database(Path(database), _SCHEMA, Durability.PROCESS_DEATH)
            self._connection.isolation_level = "DEFERRED"  # what is written waits for a commit
        #: The positions and the lineages as they are on disk; None if that is to be looked up.
        self._saved: tuple[dict[Pair, Token], dict[Pair, Lineage]] | None = None
        try:
            self._connection.execute(_CREATE)
            self._connection.execute(_CREATE_LINEAGES)
            self._connection.commit()
        except sqlite3.Error as error:
            self.close()
            raise self._explained(error) from error

    def _explained(self, error: sqlite3.Error) -> LogCorrupt | LogUnavailable:
        if type(error) is not sqlite3.DatabaseError:
            # The disk, a lock, or what the handler wrote: a constraint checked at the commit.
            return LogUnavailable(f"positions in {self._where}: {error}")
        return LogCorrupt(
            f"positions in {self._where}: {error}; move the file away to begin anew",
            table="tcprepl_positions",
        )

    def load(self) -> dict[Pair, Token]:
        """Return every saved position."""
        self._saved = None
        try:
            return dict(self._on_disk()[0])
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def places(self, pair: Pair, token: Token) -> Places:
        """Return in which incarnations *pair* was read up to *token*."""
        try:
            lineage = self._on_disk()[1].get(pair)
        except sqlite3.Error as error:
            raise self._explained(error) from error
        return () if lineage is None else lineage.places(token)

    def _on_disk(self) -> tuple[dict[Pair, Token], dict[Pair, Lineage]]:
        if self._saved is None:
            found = self._connection.execute(
                "SELECT stream, instance, token FROM tcprepl_positions ORDER BY stream, instance"
            )
            positions = {(stream, instance): token for stream, instance, token in found}
            if not all(type(token) is int and token >= 0 for token in positions.values()):
                raise sqlite3.DatabaseError("a position is no token")
            found = self._connection.execute(
                "SELECT stream, instance, lineage FROM tcprepl_lineages"
            )
            try:
                lineages = {(stream, instance): Lineage(kept) for stream, instance, kept in found}
            except (ValueError, TypeError, msgpack.UnpackException) as error:
                raise sqlite3.DatabaseError(f"a lineage is none: {error}") from error
            self._saved = positions, lineages
        return self._saved

    def save(self, positions: Positions, incarnation: IncarnationId | None = None) -> None:
        """Save positions, and commit what else was written on the connection.

        Raises:
            LogUnavailable: the disk refused; everything since the last commit is undone.
        """
        try:
            before, lineages = self._on_disk()
            for pair, token in positions.items():
                lineage = lineages.get(pair, NEW)
                entered = lineage.entered(incarnation, before.get(pair, 0), token)
                if entered is not lineage:
                    lineages[pair] = entered
                    self._connection.execute(_SAVE_LINEAGE, (*pair, entered.stored()))
            self._connection.executemany(
                _SAVE, [(*pair, token) for pair, token in positions.items()]
            )
            self._connection.commit()
            before.update(positions)
        except sqlite3.Error as error:
            self.rollback()
            raise self._explained(error) from error

    def rollback(self) -> None:
        """Undo everything on the connection since the last commit.

        Raises:
            LogUnavailable: It still stands, and the next commit would make it true.
        """
        self._saved = None
        try:
            self._connection.rollback()
        except sqlite3.Error as error:
            with suppress(sqlite3.ProgrammingError):  # closed, which undid it
                if self._connection.in_transaction:
                    raise self._explained(error) from error

    def close(self) -> None:
        """Close the store's own connection; the caller's stays open."""
        if self._owned:
            self._connection.close()
