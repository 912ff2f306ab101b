"""PostgreSQL's sides of a migration: a schema that nobody serves, marked so that nobody begins to.

The row of the table ``migration`` is the mark. One that is copied into has it until it is complete,
whatever happens; one that is copied from for as long as the copying process is heard of, which
learns of it if somebody has served it since (`tcprepl.storage.fenced`).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from psycopg import sql

from tcprepl.errors import LogHeld, LogUnavailable
from tcprepl.storage.fenced import GATE, LEASE_S
from tcprepl.storage.migration import BATCH_BYTES, BATCH_ROWS, Kind, Progress, Row, Table
from tcprepl.storage.postgresql import Connection, Link, bring_up_to_date, check_server

_MARK: Final = (
    "INSERT INTO migration (fills, other, holder, held_until, source, progress) VALUES"
    " (%s, %s, %s, clock_timestamp() + make_interval(secs => %s), %s, %s)"
)
_HELD: Final = (
    "SELECT name, holder, epoch, held_until::text,"
    " extract(epoch FROM held_until - clock_timestamp())::float8"
    " FROM writers WHERE held_until > clock_timestamp()"
)
#: What to do about who serves it; a migration has no --standby.
_STOP_IT: Final = "stop it, then migrate"
_COPIED: Final = (
    "SELECT '', holder, 0, held_until::text,"
    " extract(epoch FROM held_until - clock_timestamp())::float8"
    " FROM migration WHERE held_until > clock_timestamp()"
)


class _PostgresSide:
    """A schema."""

    def __init__(self, url: str, schema: str, kind: Kind, lease_s: float = LEASE_S) -> None:
        """Note where it is; nothing is asked of it yet.

        Args:
            url: ``postgresql://...``.
            schema: The name of the schema.
            kind: What it holds.
            lease_s: How long it is kept from others if we are not heard of.
        """
        self._url = url
        self._schema = schema
        self._kind = kind
        self._lease_s = lease_s
        self._link = Link(url, schema)
        self.where = self._link.where
        self._holder = f"{socket.gethostname()}:{os.getpid()}"

    def count(self, table: Table) -> int:
        """Return how many rows there are."""
        with self._link.using() as connection:
            return _count(connection, table.name, table.weighed)

    def read(self, table: Table, after: tuple[Any, ...] | None) -> list[Row]:
        """Return the next rows behind a key, in the order of keys; none at the end."""
        columns = ", ".join(table.postgres.get(name, name) for name in table.columns)
        keys = ", ".join(table.keys)
        behind = "" if after is None else f"WHERE ({keys}) > ({', '.join(['%s'] * table.key)})"
        found = f"SELECT * FROM {table.name} {behind} ORDER BY {keys} LIMIT {BATCH_ROWS}"  # noqa: S608
        if table.size is not None:
            found = (
                f"SELECT * FROM (SELECT *, sum({table.size}) OVER (ORDER BY {keys}) - {table.size}"  # noqa: S608
                f" AS bytes_before FROM ({found}) AS next) AS sized"
                f" WHERE bytes_before < {BATCH_BYTES}"
            )
        statement = f"SELECT {columns} FROM ({found}) AS {table.name} ORDER BY {keys}"  # noqa: S608
        with self._link.using() as connection:
            return connection.execute(statement.encode(), after, binary=True).fetchall()

    def _wait_until_nobody_has_it(self) -> None:
        """Wait for the leases of those who are gone.

        Raises:
            LogHeld: Somebody who serves it keeps one.
            LogUnavailable: Somebody who migrates it does.
        """
        seen: dict[str, tuple[int, str]] = {}
        while True:
            with self._link.using() as connection:
                held = connection.execute(f"{_HELD} UNION ALL {_COPIED}").fetchall()
            if not held:
                return
            for name, holder, epoch, until, _ in held:
                if seen.setdefault(name, (epoch, until)) == (epoch, until):
                    continue
                if not name:
                    raise self._migrated_by(holder)
                raise LogHeld(self.where, name, holder, _STOP_IT)
            left_s = min(left_s for *_, left_s in held)
            time.sleep(min(max(0.0, left_s), self._lease_s / 3) + 0.01)

    def _migrated_by(self, holder: str) -> LogUnavailable:
        return LogUnavailable(
            f"{self.where}, schema {self._schema}: {holder} migrates it; wait for that, or stop it"
        )

    def close(self) -> None:
        """Close the connection."""
        self._link.close()


class PostgresSource(_PostgresSide):
    """A schema that is copied from; nobody takes a name in it meanwhile."""

    def open(self, target: str) -> None:
        """See that nobody serves it, and that it can be copied; mark it.

        Args:
            target: Where it goes.

        Raises:
            LogHeld: A process serves it.
            LogUnavailable: There is none, something is in the way, or the database refuses.
        """
        check_server(self._url, self._link)
        with self._link.using() as connection:
            (found,) = connection.execute(
                "SELECT to_regclass(quote_ident(%s) || '.meta')::text", (self._schema,)
            ).fetchone() or (None,)
        if found is None:
            raise LogUnavailable(
                f"{self.where}: there is no {self._kind.what}: no schema {self._schema} is in it"
            )
        bring_up_to_date(self._link, self._schema, self._kind.postgres)
        self._wait_until_nobody_has_it()
        with self._link.using() as connection, connection.transaction():
            connection.execute(f"SELECT pg_advisory_xact_lock({GATE})")
            held = connection.execute(_HELD).fetchone()
            if held is not None:
                raise LogHeld(self.where, held[0], held[1], _STOP_IT)
            for other, holder, fills in connection.execute(
                "SELECT other, holder, fills FROM migration"
                " WHERE fills OR held_until > clock_timestamp()"
            ).fetchall():
                if not fills:
                    raise self._migrated_by(holder)
                raise LogUnavailable(
                    f"{self.where}, schema {self._schema}: it holds only a part of {other}: finish "
                    "that migration first"
                )
            for query, text in self._kind.obstacles:
                if (found := connection.execute(query.encode()).fetchone()) is not None:
                    raise LogUnavailable(f"{self.where}: {text.format(*found)}")
            # who wakes up writes nothing
            connection.execute("UPDATE writers SET epoch = epoch + 1")
            connection.execute("DELETE FROM migration")
            connection.execute(_MARK, (False, target, self._holder, self._lease_s, "", None))
        self._kept_at = time.monotonic()

    def read(self, table: Table, after: tuple[Any, ...] | None) -> list[Row]:
        """Return the next rows behind a key, in the order of keys; none at the end.

        Raises:
            LogUnavailable: Somebody has served it meanwhile, or the database refuses.
        """
        if time.monotonic() - self._kept_at > self._lease_s / 3:
            self._keep()
        return super().read(table, after)

    def _keep(self) -> None:
        with self._link.using() as connection:
            kept = connection.execute(
                "UPDATE migration SET held_until = clock_timestamp() + make_interval(secs => %s)"
                " WHERE NOT fills AND holder = %s",
                (self._lease_s, self._holder),
            ).rowcount
        self._kept_at = time.monotonic()
        if not kept:
            raise LogUnavailable(
                f"{self.where}: it was served meanwhile, because this process had not been heard "
                f"of for {self._lease_s:g} s; stop the server and begin again"
            )

    def release(self) -> None:
        """See that nobody has served it.

        Raises:
            LogUnavailable: Somebody has, or the database refuses.
        """
        self._keep()

    def close(self) -> None:
        """Let others serve it again; if the database is away, they wait for our lease."""
        if self._link.connected:
            with suppress(LogUnavailable), self._link.using() as connection:
                connection.execute(
                    "DELETE FROM migration WHERE NOT fills AND holder = %s", (self._holder,)
                )
        super().close()


class PostgresTarget(_PostgresSide):
    """A schema that is copied into, and marked until it is complete."""

    def __init__(self, url: str, schema: str, kind: Kind, writer: str) -> None:
        """Note where it is; `begin` makes it.

        Args:
            url: ``postgresql://...``.
            schema: The name of the schema.
            kind: What it is to hold.
            writer: The name under which all of it will have been written.
        """
        super().__init__(url, schema, kind)
        self._writer = writer
        self._number = 0
        self._progress = b""

    @property
    def first_id(self) -> int:
        """The id of its first pair."""
        return self._number << 32

    def begin(self, identity: str, source: str) -> Progress | None:
        """Begin, or go on; see `Target.begin`.

        Raises:
            LogHeld: A process serves it.
            LogUnavailable: It holds something else, or the database refuses.
        """
        check_server(self._url, self._link)
        bring_up_to_date(self._link, self._schema, self._kind.postgres)
        with self._link.using() as connection, connection.transaction():
            connection.execute(f"SELECT pg_advisory_xact_lock({GATE})")
            found = connection.execute("SELECT fills, other, source, progress FROM migration")
            mark = found.fetchone()
            if mark is None:
                self._begin_empty(connection, identity, source)
            else:
                fills, other, known, self._progress = mark
                if not fills or known != identity:
                    raise LogUnavailable(
                        f"{self.where}, schema {self._schema}: it is a part of {other}, which was "
                        "another one, or has been served since: begin anew with DROP SCHEMA "
                        f"{self._schema} CASCADE"
                    )
            (self._number,) = connection.execute(
                "SELECT number FROM writers WHERE name = %s", (self._writer,)
            ).fetchone() or (0,)
        if not self._number:
            raise LogUnavailable(
                f"{self.where}: the migration was begun with another name than {self._writer}: "
                "give that one"
            )
        return Progress.unpacked(self._progress)

    def _begin_empty(self, connection: Connection, identity: str, source: str) -> None:
        held = connection.execute(_HELD).fetchone()
        if held is not None:
            raise LogHeld(self.where, held[0], held[1], _STOP_IT)
        names = ["writers", *(table.name for table in self._kind.tables)]
        if used := [name for name in names if _count(connection, name)]:
            raise LogUnavailable(
                f"{self.where}, schema {self._schema}: it is not empty (table {used[0]}): it has "
                "what was migrated, or written, before, and can be served; to migrate into "
                "something new, name another database"
            )
        self._progress = Progress().packed()
        connection.execute(_MARK, (True, source, self._holder, 0.0, identity, self._progress))
        connection.execute(
            "INSERT INTO writers (name, epoch, commits, holder, taken_at, held_until)"
            " VALUES (%s, 1, 0, %s, clock_timestamp(), clock_timestamp())",
            (self._writer, self._holder),
        )

    def write(self, table: Table, rows: Sequence[Row], progress: Progress) -> None:
        """Write rows and how far that is, all or nothing.

        Raises:
            LogUnavailable: Another process is at it, or the database refuses.
        """
        more = {"": (), "name": (self._writer,), "number": (self._number,)}[table.writer]
        columns = [*table.columns, *(["writer"] if table.writer else [])]
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        into = sql.Identifier(table.name)
        with self._link.using() as connection, connection.transaction():
            alone = connection.execute(
                "UPDATE migration SET progress = %s WHERE fills AND progress = %s",
                (progress.packed(), self._progress),
            ).rowcount
            if not alone:
                raise LogUnavailable(f"{self.where}: another process is migrating into it, too")
            cursor = connection.cursor()
            nothing = sql.SQL("SELECT {} FROM {} LIMIT 0").format(names, into)
            types = [column.type_code for column in cursor.execute(nothing).description or ()]
            copy = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(into, names)
            with cursor.copy(copy) as writer:
                writer.set_types(types)
                for row in rows:
                    writer.write_row((*row, *more))
        self._progress = progress.packed()

    def finish(self) -> None:
        """Let it be served."""
        with self._link.using() as connection:
            connection.execute("DELETE FROM migration")


def _count(connection: Connection, name: str, what: str = "count(*)") -> int:
    statement = f"SELECT {what} FROM {name}"  # noqa: S608 - of our own constants
    (found,) = connection.execute(statement.encode()).fetchone() or (0,)
    return int(found)
