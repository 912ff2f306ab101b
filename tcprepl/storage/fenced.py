"""A database that one process at a time writes under a name: leases, epochs, commits in doubt.

Every commit begins with the function ``fence``: it locks the row of the name, compares the epoch,
and keeps the lease. A process that was asleep for longer than its lease, and whose name another has
taken, writes nothing.

A connection can break when it is not known whether the last commit went through. Each has a number,
which it leaves in the row of the name: whoever asks that row, once it is unlocked, knows. Until
then no other commit is made. One that did not go through never will: what was sent of it is of an
epoch that is over by then. A row that says less than what was acknowledged is that of a
database that has lost something, and nothing more is written to it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

import psycopg

from tcprepl.errors import LogCorrupt, LogFenced, LogHeld, LogUnavailable
from tcprepl.logger import get_logger
from tcprepl.storage.postgresql import (
    Connection,
    Link,
    PostgresSchema,
    bring_up_to_date,
    check_server,
    explained,
    is_lost,
)

logger = get_logger(__name__)

T = TypeVar("T")

#: How long a name belongs to a process that is not heard of.
LEASE_S: Final = 10.0
#: How often the database is asked again while it is away.
RETRY_S: Final = 0.5
#: SQLSTATE of what ``fence`` raises.
FENCED: Final = "TR001"
#: The lock that is shared by who commits, and had alone by who wants nobody to.
GATE: Final = "hashtextextended(current_schema() || '.gate', 0)"

CREATE_WRITERS: Final = """
CREATE TABLE writers (
    name text COLLATE "C" PRIMARY KEY,
    number bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    epoch bigint NOT NULL,
    commits bigint NOT NULL,
    holder text NOT NULL,
    taken_at timestamptz NOT NULL,
    held_until timestamptz NOT NULL
) WITH (fillfactor = 50);
"""
#: What `tcprepl.storage.migration` keeps while it copies into this schema, or out of it: one row.
CREATE_MIGRATION: Final = """
CREATE TABLE migration (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    fills boolean NOT NULL,
    other text NOT NULL,
    holder text NOT NULL,
    held_until timestamptz NOT NULL,
    source text NOT NULL,
    progress bytea
);
"""
CREATE_FENCE: Final = f"""
CREATE FUNCTION fence(my_number bigint, my_epoch bigint, my_commit bigint, lease_s float8)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared({GATE});
    UPDATE writers SET commits = greatest(commits, my_commit),
        held_until = clock_timestamp() + make_interval(secs => lease_s)
        WHERE number = my_number AND epoch = my_epoch;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this epoch is over' USING ERRCODE = '{FENCED}';
    END IF;
END $$;
"""  # noqa: S608 - of our own constants
_TAKE = (
    "INSERT INTO writers AS w (name, epoch, commits, holder, taken_at, held_until)"
    " VALUES (%(name)s, 1, 0, %(holder)s, clock_timestamp(),"
    " clock_timestamp() + make_interval(secs => %(lease)s))"
    " ON CONFLICT (name) DO UPDATE SET epoch = w.epoch + 1, holder = excluded.holder,"
    " taken_at = excluded.taken_at, held_until = excluded.held_until"
    " WHERE w.held_until <= clock_timestamp() RETURNING number, epoch, commits"
)
_HOLDER = (
    "SELECT holder, epoch, held_until::text,"
    " greatest(0, extract(epoch FROM held_until - clock_timestamp()))::float8"
    " FROM writers WHERE name = %s"
)


class Held(NamedTuple):
    """A name that this process holds.

    Attributes:
        number: The number of the name.
        epoch: Which taking of it this is; commits in doubt that were not done count, too.
    """

    number: int
    epoch: int


class FencedDatabase:
    """A schema that this process writes under a name; calls block, one thread at a time.

    Attributes:
        where: Where it is, without the password.
        writer: The name.
        lease_s: How long the name belongs to a process that is not heard of.
        holder: What we say of ourselves to who wants the name, too.
        held: What `take` got, or what followed it.
        away: Why the database cannot be used now; None while it can.
        waits_for: Who holds the name while `take` waits; empty when nobody is waited for.
        away_since: Since when, in seconds of `time.monotonic`.
        renewed_at: When the lease was renewed last, likewise.
    """

    def __init__(
        self, url: str, writer: str, name: str, schema: PostgresSchema, lease_s: float
    ) -> None:
        """Connect to nothing yet: `take` comes first.

        Args:
            url: ``postgresql://...``.
            writer: The name to write under.
            name: The name of the schema.
            schema: What it holds; among others what `CREATE_WRITERS`, `CREATE_MIGRATION` and
                `CREATE_FENCE` make.
            lease_s: How long the name belongs to this process without being renewed.
        """
        self._url = url
        self._name = name
        self._schema = schema
        self._writing = Link(url, name)
        self.where = self._writing.where
        self.writer = writer
        self.lease_s = lease_s
        self.holder = f"{socket.gethostname()}:{os.getpid()}"
        self.held = Held(0, 0)
        self.waits_for = ""
        self.away: str | None = None
        self.away_since: float | None = None
        self.renewed_at = time.monotonic()
        self._commits = 0
        self._stopping = threading.Event()

    # --- the name -----------------------------------------------------------------------------

    def take(self, *, standby: bool = False) -> None:
        """Check the server, make the tables, and take the name, before all else.

        Who held it last and has not let go of it, a process that was killed, say, still has it
        until its lease is over: that is waited for, unless it is kept meanwhile.

        Args:
            standby: Whether to wait for as long as somebody holds it.

        Raises:
            LogHeld: Somebody holds it and is alive.
            LogTooNew: A newer version of tcprepl has made the tables.
            LogUnavailable: The database cannot be used, or `stop` was called.
        """
        try:
            check_server(self._url, self._writing)
            bring_up_to_date(self._writing, self._name, self._schema)
            seen: tuple[int, str] | None = None
            while not self._taken():
                with self._writing.using() as connection:
                    found = connection.execute(_HOLDER, (self.writer,)).fetchone()
                holder, epoch, until, left_s = found or ("", 0, "", 0.0)
                if not standby and seen is not None and seen != (epoch, until):
                    raise LogHeld(self.where, self.writer, holder)
                seen = epoch, until
                self.waits_for = holder
                if self._stopping.wait(min(left_s, self.lease_s / 3)):
                    raise LogUnavailable(f"{self.where}: stopped while {holder} held the instance")
        except BaseException:
            self._writing.close()
            raise
        finally:
            self.waits_for = ""

    def _taken(self) -> bool:
        with self._writing.using() as connection, connection.transaction():
            connection.execute(f"SELECT pg_advisory_xact_lock_shared({GATE})")
            self._check_whole(connection)
            found = connection.execute(
                _TAKE, {"name": self.writer, "holder": self.holder, "lease": self.lease_s}
            ).fetchone()
        if found is None:
            return False
        number, epoch, self._commits = found
        self.held = Held(number, epoch)
        return True

    def _check_whole(self, connection: Connection) -> None:
        """See that nobody is copying into this schema, or out of it.

        Raises:
            LogUnavailable: Somebody is, or has not finished.
        """
        found = connection.execute(
            "SELECT fills, other, holder, held_until > clock_timestamp() FROM migration"
        ).fetchone()
        if found is None:
            return
        fills, other, holder, alive = found
        where = f"{self.where}, schema {self._name}"
        if fills:
            raise LogUnavailable(
                f"{where}: it holds a part of what is migrated from {other}; finish that: "
                f"tcprepl migrate {other} {self.where}, or begin empty: DROP SCHEMA {self._name} "
                "CASCADE"
            )
        if alive:
            raise LogUnavailable(
                f"{where}: {holder} migrates it to {other}; wait for that, or stop it"
            )
        connection.execute("DELETE FROM migration")  # of one that was killed

    def stop(self) -> None:
        """Wait for nothing any more; for the reactor's thread."""
        self._stopping.set()

    def release(self) -> None:
        """Give the name back, and close the connection."""
        if self._writing.connected and self.away is None:
            try:
                with self._writing.using() as connection:
                    connection.rollback()
                    connection.execute(
                        "UPDATE writers SET held_until = clock_timestamp()"
                        " WHERE number = %s AND epoch = %s",
                        self.held,
                    )
            except (LogUnavailable, LogCorrupt) as error:
                logger.warning("postgresql.release_failed", reason=str(error))
        self._writing.close()

    # --- commits ------------------------------------------------------------------------------

    def fence(self, connection: Connection, number: int) -> None:
        """Let the transaction of commit *number* go on only while the name is ours."""
        connection.execute(
            "SELECT fence(%s, %s, %s, %s)",
            (self.held.number, self.held.epoch, number, self.lease_s),
        )

    def commit(
        self,
        write: Callable[[Connection, int], T],
        written: Callable[[Connection], T],
        *,
        beginning: bool = False,
    ) -> T:
        """Write one commit, all or nothing, and return once it is committed.

        Args:
            write: Does it, from BEGIN to COMMIT, on a connection and with the commit's number; its
                first statement is `fence`.
            written: Gives what *write* would have returned, if the connection broke and the
                commit is found to have gone through.
            beginning: Whether a transaction of ours is open already; then a connection that breaks
                is the end of it.

        Raises:
            LogFenced: Another process has taken the name: nothing was, or ever will be written.
            LogUnavailable: The database refused, or is away; nothing was written.
        """
        number = self._commits + 1
        in_doubt = False
        try:
            with self._writing.using() as connection:
                if not beginning and self.away is not None:
                    self._check_row(connection)
                try:
                    answer = write(connection, number)
                except psycopg.Error as error:
                    if not is_lost(error, connection):
                        raise
                    in_doubt = True
                    self._note_away(explained(error, self.where))
                    self._writing.close()
            if in_doubt:
                if beginning:
                    raise LogUnavailable(f"{self.where}: the connection broke: {self.away}")
                answer = self._settled(written, number)
        except LogFenced:
            raise
        except LogUnavailable as error:
            if isinstance(error.__cause__, psycopg.Error) and error.__cause__.sqlstate == FENCED:
                raise self._fenced() from None
            if not self._writing.connected:
                self._note_away(error)
            raise
        self._commits = number
        self.renewed_at = time.monotonic()
        self._note_back()
        return answer

    def _settled(self, written: Callable[[Connection], T], number: int) -> T:
        """Find out whether commit *number* went through, however long that takes.

        Raises:
            LogFenced: It is not known, and another process has the name.
            LogUnavailable: It did not, or `stop` was called.
        """
        while True:
            try:
                with self._writing.using() as connection:
                    done = self._has_done(connection, number)
                    answer = [written(connection)] if done else []
                break
            except LogFenced:
                raise
            except LogUnavailable as error:
                self._note_away(error)
                if self._stopping.wait(RETRY_S):
                    raise
        if not answer:
            raise LogUnavailable(f"{self.where}: not written: {self.away}")
        return answer[0]

    def _has_done(self, connection: Connection, number: int) -> bool:
        """Return whether commit *number* went through; if it did not, it never will.

        What was sent of it may still wait in the server, before `fence`. So our epoch ends then.

        Raises:
            LogFenced: The name is somebody else's, or the database has lost commits.
        """
        number_of_name, epoch = self.held
        with connection.transaction():
            if self._check_row(connection) >= number:
                return True
            connection.execute(
                "UPDATE writers SET epoch = epoch + 1 WHERE number = %s AND epoch = %s", self.held
            )
        self.held = Held(number_of_name, epoch + 1)
        return False

    def _check_row(self, connection: Connection) -> int:
        """Return the number of the last commit, once nothing that is past `fence` is under way.

        Raises:
            LogFenced: The name is somebody else's, or the database has lost commits.
        """
        found = connection.execute(
            "SELECT commits FROM writers WHERE number = %s AND epoch = %s FOR UPDATE", self.held
        ).fetchone()
        if found is None:
            raise self._fenced()
        if found[0] < self._commits:
            raise LogFenced(
                self.writer,
                f"{self.where} has lost rows that were acknowledged: it was restored from a copy, "
                "or a standby took over that was behind; start again, and readers are told",
            )
        return int(found[0])

    def _fenced(self) -> LogFenced:
        """Return the error that ends this process."""
        holder = "another process"
        try:
            with self._writing.using() as connection:
                found = connection.execute(_HOLDER, (self.writer,)).fetchone()
            holder = found[0] if found and found[0] else holder
        except LogUnavailable:
            pass
        if holder == self.holder:
            what = "another server found it gone, and began after it"
        else:
            what = f"it was taken over by {holder}"
        return LogFenced(
            self.writer,
            f"{what}, because this process had not been heard of for "
            f"{self.lease_s:g} s; nothing more is written here, and this process ends",
        )

    # --- the database away --------------------------------------------------------------------

    def _note_away(self, error: Exception) -> None:
        if self.away is None:
            self.away_since = time.monotonic()
            logger.error("postgresql.away", database=self.where, reason=str(error))
        self.away = str(error)

    def _note_back(self) -> None:
        if self.away is not None and self.away_since is not None:
            gone_s = round(time.monotonic() - self.away_since, 1)
            logger.info("postgresql.back", database=self.where, gone_s=gone_s)
        self.away = self.away_since = None
