"""The one door to PostgreSQL: how a database is reached, checked, brought up to date and explained.

Needs psycopg 3 (``pip install 'tcprepl[postgresql]'``). A `Link` is a connection that one thread
uses at a time; it is made anew when it is gone, and no call on it takes longer than it may: a
network that swallows everything ends in an error as a refusal does. Calls block: they belong
into a thread.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tcprepl.errors import LogCorrupt, LogError, LogTooNew, LogUnavailable
from tcprepl.logger import get_logger

logger = get_logger(__name__)

#: How long one host may take to let us in.
CONNECT_WITHIN_S: Final = 5
#: How long the server works on one statement, and how long it lets a transaction lie open.
STATEMENT_WITHIN_S: Final = 20.0
IDLE_WITHIN_S: Final = 10.0
#: How long we wait for an answer: longer than the server takes to give up.
ANSWER_WITHIN_S: Final = 25.0
#: The oldest server that will do.
OLDEST_SERVER: Final = 130_000

#: More connections than this share of those that are let in are many.
CONNECTIONS_SHARE: Final = 0.8
#: What the URL does not say itself.
_DEFAULTS: Final[Mapping[str, Any]] = {
    "connect_timeout": CONNECT_WITHIN_S,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "application_name": "tcprepl",
}
#: The server ends what a process that is gone, or asleep, has begun: it holds up nobody for long.
_SETTINGS: Final[Mapping[str, str]] = {
    "statement_timeout": f"{STATEMENT_WITHIN_S:g}s",
    "idle_in_transaction_session_timeout": f"{IDLE_WITHIN_S:g}s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "3",
    "tcp_keepalives_count": "3",
    "client_encoding": "UTF8",
    "standard_conforming_strings": "on",
}


@dataclass(frozen=True, slots=True)
class PostgresSchema:
    """What a schema of a database holds.

    Attributes:
        create: The statements that make it.
        version: The version that they make, which its table ``meta`` says.
        upgrades: From each older version, the statements that make the next one of it.
    """

    create: str
    version: int = 1
    upgrades: Mapping[int, str] = field(default_factory=dict)


def displayed(url: str) -> str:
    """Return where a URL leads, without the password."""
    try:
        said = conninfo_to_dict(url)
    except psycopg.Error:
        return "postgresql://..."
    hosts = str(said.get("host") or "localhost").split(",")
    ports = str(said.get("port") or "").split(",")
    at = ",".join(
        f"{host}:{port}" if (port := ports[min(number, len(ports) - 1)]) else host
        for number, host in enumerate(hosts)
    )
    return f"postgresql://{at}/{said.get('dbname') or ''}"


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection on which nothing is waited for longer than `ANSWER_WITHIN_S`."""

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Wait as psycopg does, but not for ever."""
        return super().wait(_bounded(gen), *args, **kwargs)


def _bounded(gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Run *gen*, to which psycopg comes back every 0.1 s while nothing happens."""
    end = time.monotonic() + ANSWER_WITHIN_S
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if time.monotonic() > end:
                raise psycopg.OperationalError(f"no answer within {ANSWER_WITHIN_S:g} s")
            wanted = gen.send(ready)
    except StopIteration as stop:
        return stop.value


class Link:
    """One connection, for one thread at a time.

    Args:
        url: Where the database is.
        schema: The schema in which names are looked up.
    """

    def __init__(self, url: str, schema: str) -> None:
        self.where = displayed(url)
        self._url = url
        self._schema = schema
        self._connection: Connection | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None

    @contextmanager
    def using(self) -> Iterator[Connection]:
        """Give the connection, made if need be; what psycopg raises within is one of our errors.

        A connection on which something failed is rolled back, or closed if it is not known how
        it is.

        Raises:
            LogUnavailable: The server refuses, or cannot be reached: a later try may succeed.
            LogCorrupt: What it has is damaged.
        """
        try:
            if self._connection is None:
                self._connection = self._connect()
            yield self._connection
        except psycopg.Error as error:
            self._settle(error)
            raise explained(error, self.where) from error
        except BaseException:
            self.close()
            raise

    def _connect(self) -> Connection:
        connection = connect(self._url)
        try:
            names = sql.SQL("SET search_path TO {}").format(sql.Identifier(self._schema))
            connection.execute(names)
        except BaseException:
            connection.close()
            raise
        return connection

    def _settle(self, error: psycopg.Error) -> None:
        connection = self._connection
        if connection is None:
            return
        if is_lost(error, connection):
            self.close()
            return
        try:
            connection.execute("ROLLBACK")
        except psycopg.Error:
            self.close()

    def close(self) -> None:
        """Close the connection; the next use makes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()


def connect(url: str) -> Connection:
    """Return a connection in autocommit mode, with our settings.

    Raises:
        psycopg.Error: The URL is none, or nobody lets us in.
    """
    said = {**_DEFAULTS, **conninfo_to_dict(url)}
    connection = Connection.connect(make_conninfo(**said), autocommit=True)
    try:
        for name, value in _SETTINGS.items():
            connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        if connection.execute("SHOW synchronous_commit").fetchone() == ("off",):
            connection.execute("SET synchronous_commit TO on")
    except BaseException:
        connection.close()
        raise
    return connection


def is_lost(error: psycopg.Error, connection: psycopg.Connection[Any]) -> bool:
    """Return whether it cannot be known from *error* what became of what was under way."""
    state = error.sqlstate
    return connection.closed or state is None or state.startswith(("08", "57P"))


def explained(error: psycopg.Error, where: str) -> LogError:
    """Return *error* as one of ours: what is wrong, where, and what to do."""
    text = " ".join(str(error).split())
    if isinstance(error, errors.DataCorrupted | errors.IndexCorrupted):
        return LogCorrupt(f"{where}: {text}; restore the database from a backup")
    if isinstance(error, errors.InsufficientPrivilege):
        todo = "GRANT this user what it lacks, or let it own the schema"
    elif isinstance(error, errors.ReadOnlySqlTransaction):
        todo = "this is a standby: name the primary, or all hosts and target_session_attrs"
    elif isinstance(error, errors.DiskFull):
        todo = "free space on the disk of the database"
    elif isinstance(error, errors.QueryCanceled | errors.LockNotAvailable):
        todo = "it is overloaded, or something holds a lock: look at pg_stat_activity"
    elif isinstance(error, psycopg.OperationalError):
        todo = "check that PostgreSQL runs there, can be reached and lets this user in"
    else:
        todo = "look at its log"
    return LogUnavailable(f"{where}: {text}; {todo}")


def check_server(url: str, link: Link) -> None:
    """See that a server will do, and log what to set where a power cut would cost something.

    Raises:
        LogUnavailable: It does not.
    """
    for reason in look_at_server(url, link):
        logger.warning("postgresql.not_durable", database=link.where, reason=reason)


def look_at_server(url: str, link: Link) -> list[str]:
    """Return what a power cut would cost at a server, each with what to do after a semicolon.

    Raises:
        LogUnavailable: It will not do: too old, a standby, another encoding, or behind a pooler
            that gives each transaction another connection.
    """
    with link.using() as connection:
        pid, encoding, standby, fsync = connection.execute(
            "SELECT pg_backend_pid(), current_setting('server_encoding'), pg_is_in_recovery(),"
            " current_setting('fsync')"
        ).fetchone() or (0, "", False, "")
        version = connection.info.server_version
        with connect(url) as other:
            (same,) = other.execute("SELECT pg_backend_pid()").fetchone() or (0,)
            (durable,) = other.execute(
                "SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'"
            ).fetchone() or ("",)
    where = link.where
    if version < OLDEST_SERVER:
        raise LogUnavailable(f"{where}: PostgreSQL {version // 10_000} is too old; use 13 or newer")
    if standby:
        raise LogUnavailable(
            f"{where}: it is a standby, which takes nothing; name the primary, or all hosts with "
            "target_session_attrs=read-write"
        )
    if encoding != "UTF8":
        raise LogUnavailable(
            f"{where}: its encoding is {encoding}, which is not UTF8; CREATE DATABASE ... TEMPLATE "
            "template0 ENCODING 'UTF8', and name that one"
        )
    if same == pid:
        raise LogUnavailable(
            f"{where}: a connection pooler in transaction mode is in between, and LISTEN does not "
            "go through it; connect to PostgreSQL itself, or set pool_mode = session"
        )
    unsafe = []
    if durable == "off":
        unsafe.append(
            "synchronous_commit is off: it is turned on for what tcprepl commits; "
            "ALTER DATABASE ... SET synchronous_commit = on does it for those who publish in SQL"
        )
    if fsync != "on":
        unsafe.append("fsync is off: a power cut destroys the database; set fsync = on")
    return unsafe


def look_at_load(link: Link) -> list[str]:
    """Return what will go wrong in time, each with what to do after a semicolon."""
    with link.using() as connection:
        vacuum, most, used = connection.execute(
            "SELECT current_setting('autovacuum'), current_setting('max_connections')::int"
            " - current_setting('superuser_reserved_connections')::int, (SELECT count(*)::int"
            " FROM pg_stat_activity WHERE backend_type = 'client backend')"
        ).fetchone() or ("on", 0, 0)
    found = []
    if vacuum != "on":
        found.append(
            "autovacuum is off: what retention takes away keeps its room; set autovacuum = on"
        )
    if used > most * CONNECTIONS_SHARE:
        found.append(
            f"{used} of {most} connections are there: soon none is let in; raise max_connections, "
            "or see in pg_stat_activity who leaves them open"
        )
    return found


def bring_up_to_date(link: Link, name: str, wanted: PostgresSchema) -> None:
    """Make the schema *name*, or one of an older version into today's, all or nothing.

    Raises:
        LogCorrupt: Its table ``meta`` is damaged, or another program's.
        LogTooNew: A newer version of tcprepl wrote it.
        LogUnavailable: It cannot be made.
    """
    with link.using() as connection, connection.transaction():
        # whoever else starts waits, and finds it made
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (name,))
        (found,) = connection.execute(
            "SELECT to_regclass(quote_ident(%s) || '.meta')::text", (name,)
        ).fetchone() or (None,)
        if found is None:
            schema = sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(name))
            connection.execute(schema)
            connection.execute(wanted.create.encode())
            connection.execute("CREATE TABLE meta (version integer NOT NULL)")
            connection.execute("INSERT INTO meta VALUES (%s)", (wanted.version,))
            return
        (version,) = connection.execute("SELECT version FROM meta").fetchone() or (0,)
        if version > wanted.version:
            raise LogTooNew(f"{link.where}, schema {name},", version, wanted.version)
        if version < wanted.version and version not in wanted.upgrades:
            raise LogCorrupt(
                f"{link.where}, schema {name}: its table meta names version {version}, which "
                "tcprepl never wrote; restore a good dump, or name another database"
            )
        for number in range(version, wanted.version):
            connection.execute(wanted.upgrades[number].encode())
        if version < wanted.version:
            connection.execute("UPDATE meta SET version = %s", (wanted.version,))
