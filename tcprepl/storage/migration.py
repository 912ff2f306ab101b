"""Copying a database from SQLite to PostgreSQL or back: resumed, compared, never half served.

A `Kind` (a log, an outbox) says what tables there are; a `Source` reads them in the order of their
keys, a `Target` takes them, a bounded part in each transaction, together with how far that is. So
whoever is killed goes on from there, and nobody serves the target before all of it was read
again on both sides and found equal. `tcprepl.storage.migrating_sqlite` and
`tcprepl.storage.migrating_postgres` have the sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import msgpack

from tcprepl.errors import LogCorrupt
from tcprepl.storage.postgresql import PostgresSchema
from tcprepl.storage.sqlite import Schema

Row: TypeAlias = tuple[Any, ...]

#: Rows, and about as many bytes, that are read and written at once.
BATCH_ROWS: Final = 2_000
BATCH_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Table:
    """A table that is copied; both sides have the columns.

    Attributes:
        name: Its name.
        columns: What is copied; the first of them are the key.
        key: How many columns are the key.
        size: What says how large a row is, in SQL, and never NULL; None if all are small.
        holds: The column that says how many rows of a log one of this table holds; they count.
        of_pair: Whether the first column is the id of a pair, which each side gives out itself.
        writer: What PostgreSQL's column ``writer`` holds there: ``name``, ``number``, or nothing
            if there is no such column.
        sqlite: How a column is read from SQLite, in SQL, where not by its name.
        postgres: As that, from PostgreSQL.
    """

    name: str
    columns: tuple[str, ...]
    key: int = 1
    size: str | None = None
    holds: str | None = None
    of_pair: bool = False
    writer: str = ""
    sqlite: Mapping[str, str] = field(default_factory=dict)
    postgres: Mapping[str, str] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns of the key."""
        return self.columns[: self.key]

    def weight(self, rows: Sequence[Row]) -> int:
        """Return how many rows people would say that these are."""
        if self.holds is None:
            return len(rows)
        place = self.columns.index(self.holds)
        return sum(row[place] for row in rows)

    @property
    def weighed(self) -> str:
        """The same of all of them, in SQL."""
        return "count(*)" if self.holds is None else f"coalesce(sum({self.holds}), 0)"


@dataclass(frozen=True, slots=True)
class Kind:
    """What can be migrated.

    Attributes:
        what: What it is called.
        file: The SQLite database in a data directory.
        lock: The lock file there of the process that uses it.
        sqlite: What the file holds.
        postgres: What a schema of PostgreSQL holds.
        tables: What is copied; if there are pairs, they come first.
        identity: The tables that tell one database, as it is now, from all others.
        obstacles: What keeps a database in PostgreSQL from being copied: a query that finds it,
            and what to say, with what was found.
    """

    what: str
    file: str
    lock: str
    sqlite: Schema
    postgres: PostgresSchema
    tables: Sequence[Table]
    identity: Sequence[str]
    obstacles: Sequence[tuple[str, str]] = ()


class Progress(NamedTuple):
    """How far a copy is.

    Attributes:
        table: The number of the table that is being copied.
        after: The key up to which it is, as the source counts; None at its beginning.
        done: The rows that were copied, of all tables, as `Table.weight` counts.
    """

    table: int = 0
    after: tuple[Any, ...] | None = None
    done: int = 0

    def packed(self) -> bytes:
        """Return it as it is stored."""
        packed: bytes = msgpack.packb(self)
        return packed

    @classmethod
    def unpacked(cls, packed: bytes) -> Progress:
        """Return what `packed` packed."""
        return cls(*msgpack.unpackb(packed, use_list=False))


class Side(Protocol):
    """A database that is read.

    Attributes:
        where: What it is called, without a password.
    """

    where: str

    def count(self, table: Table) -> int:
        """Return how many rows there are, as `Table.weight` counts."""
        ...

    def read(self, table: Table, after: tuple[Any, ...] | None) -> list[Row]:
        """Return the next rows behind a key, in the order of keys; none at the end."""
        ...


class Source(Side, Protocol):
    """Where to copy from; nobody else writes there until it is closed."""

    def release(self) -> None:
        """See that nobody has written there, and give it back.

        Raises:
            LogError: Somebody has, or it cannot be known.
        """
        ...


class Target(Side, Protocol):
    """Where to copy to.

    Attributes:
        first_id: The id of its first pair.
    """

    @property
    def first_id(self) -> int: ...  # noqa: D102 - see the class

    def begin(self, identity: str, source: str) -> Progress | None:
        """Begin, or go on with, a copy of the source with this identity.

        Returns:
            How far it is; None if it is complete and only has to be compared.

        Raises:
            LogError: It holds something else.
        """
        ...

    def write(self, table: Table, rows: Sequence[Row], progress: Progress) -> None:
        """Write rows and how far that is, all or nothing."""
        ...

    def finish(self) -> None:
        """Let it be served; all of it is on disk then."""
        ...


class Step(NamedTuple):
    """What is going on, for people.

    Attributes:
        doing: ``copying`` or ``comparing``.
        done: Rows of all tables that are done.
        total: All of them.
        begun_at: With how many rows that were done before this began.
    """

    doing: str
    done: int
    total: int
    begun_at: int


@dataclass(frozen=True, slots=True)
class Migrated:
    """What was copied, and found equal.

    Attributes:
        counts: The rows of each table.
        resumed: How many of them an earlier attempt had copied.
    """

    counts: Mapping[str, int]
    resumed: int


def migrate(kind: Kind, source: Source, target: Target, tell: Callable[[Step], object]) -> Migrated:
    """Copy *source* to *target*, compare them, and let *target* be served.

    Raises:
        LogCorrupt: They are not equal; the target is not served.
        LogError: One of them is in the way, or refuses; what was copied is gone on from.
    """
    counts = {table.name: source.count(table) for table in kind.tables}
    total = sum(counts.values())
    begun = target.begin(_identity(kind, source, counts), source.where)
    numbers = _numbers(kind, source, target.first_id)
    at = begun or Progress(len(kind.tables), None, total)
    resumed = at.done
    while at.table < len(kind.tables):
        table = kind.tables[at.table]
        if rows := source.read(table, at.after):
            at = Progress(at.table, rows[-1][: table.key], at.done + table.weight(rows))
            target.write(table, _numbered(table, rows, numbers), at)
            tell(Step("copying", at.done, total, resumed))
        else:
            at = Progress(at.table + 1, None, at.done)
    compared = 0

    def tell_more(count: int) -> None:
        nonlocal compared
        compared += count
        tell(Step("comparing", compared, 2 * total, 0))

    for table in kind.tables:
        wanted = _summed(table, source, numbers, tell_more)
        found = _summed(table, target, None, tell_more)
        if wanted != found:
            raise LogCorrupt(
                f"{target.where}, table {table.name}: {found[0]} rows with checksum {found[1]}; "
                f"expected {wanted[0]} with {wanted[1]}, as in {source.where}; it is not served: "
                "remove it and begin again"
            )
    source.release()
    target.finish()
    return Migrated(counts, resumed)


def _identity(kind: Kind, source: Source, counts: Mapping[str, int]) -> str:
    """Return what tells *source*, as it is now, from every other one."""
    digest = hashlib.sha256(msgpack.packb(counts))
    for table in kind.tables:
        if table.name in kind.identity:
            digest.update(_summed(table, source, None, lambda _: None)[1].encode())
    return digest.hexdigest()


def _numbers(kind: Kind, source: Source, first_id: int) -> dict[int, int]:
    """Return the id in the target of each pair of *source*, in the same order."""
    table = kind.tables[0]
    if not table.of_pair:
        return {}
    ids = (row[0] for rows in _all(table, source) for row in rows)
    return {id_: number for number, id_ in enumerate(ids, first_id)}


def _numbered(table: Table, rows: Sequence[Row], numbers: Mapping[int, int] | None) -> list[Row]:
    if numbers is None or not table.of_pair:
        return list(rows)
    return [(numbers[row[0]], *row[1:]) for row in rows]


def _all(table: Table, side: Side) -> Iterator[list[Row]]:
    after = None
    while rows := side.read(table, after):
        yield rows
        after = rows[-1][: table.key]


def _summed(
    table: Table,
    side: Side,
    numbers: Mapping[int, int] | None,
    tell_more: Callable[[int], object],
) -> tuple[int, str]:
    """Return how many rows there are, and a checksum of all that they hold."""
    count = 0
    digest = hashlib.sha256()
    for rows in _all(table, side):
        count += len(rows)
        digest.update(b"".join(map(msgpack.packb, _numbered(table, rows, numbers))))
        tell_more(table.weight(rows))
    return count, digest.hexdigest()
