"""A PostgreSQL of the tests' own, started when the first one asks for it; empty databases in it."""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Iterator
from functools import cache
from itertools import count
from typing import Any, TypeAlias

import psycopg
from twisted.internet.task import Clock

from tcprepl.streams.retention import Retention
from tests.harness import FULL
from tests.interop.servers import Postgres
from tests.log_kit import PostgresStore

_numbers = count(1)
#: Which PostgreSQL the tests of faults run against: the system's, and at full size the newest, too.
RELEASES = ("system", "newest") if FULL else ("system",)


@cache
def server() -> Postgres:
    """Return the server of this test process, which ends with it."""
    started = Postgres.start()
    atexit.register(started.stop)
    return started


def url_of(postgres: Postgres, database: str) -> str:
    """Return the URL of a database."""
    return f"postgresql://{postgres.user}@127.0.0.1:{postgres.port}/{database}"


def fresh_url(postgres: Postgres | None = None) -> str:
    """Return the URL of an empty database."""
    postgres = postgres or server()
    name = f"test{next(_numbers)}"
    with psycopg.connect(url_of(postgres, "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy".encode())
    return url_of(postgres, name)


def fresh_schema() -> str:
    """Return the name of a schema that nobody has used in this process's server."""
    return f"log{next(_numbers)}"


TABLES = (
    "writers",
    "pairs",
    "blocks",
    "transactions",
    "incarnations",
    "beginnings",
    "producers",
    "answers",
)
Dump: TypeAlias = dict[str, list[tuple[Any, ...]]]


def sql(url: str, schema: str, statement: str, values: Any = ()) -> list[tuple[Any, ...]]:
    """Run a statement in a schema and return its rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"SET search_path TO {schema}".encode())
        cursor = connection.execute(statement.encode(), values)
        return [] if cursor.description is None else cursor.fetchall()


def lapse(url: str, schema: str) -> None:
    """Let all leases be over, as if time had passed."""
    sql(url, schema, "UPDATE writers SET held_until = clock_timestamp()")


def dump(url: str, schema: str) -> Dump:
    """Return all that a schema holds."""
    return {table: sql(url, schema, f"SELECT * FROM {table}") for table in TABLES}


def restore(url: str, schema: str, held: Dump) -> None:
    """Let a schema hold what it held, and let time pass."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"SET search_path TO {schema}".encode())
        connection.execute(f"TRUNCATE {', '.join(TABLES)}".encode())
        for table, rows in held.items():
            for row in rows:
                places = ", ".join(["%s"] * len(row))
                statement = f"INSERT INTO {table} OVERRIDING SYSTEM VALUE VALUES ({places})"
                connection.execute(statement.encode(), row)
    lapse(url, schema)


@contextlib.contextmanager
def make_postgresql(
    retention: Retention | None = None, *, with_clock: bool = False
) -> Iterator[PostgresStore]:
    """Make a log in a schema of its own."""
    url = url_of(server(), "postgres")
    store = PostgresStore(url, fresh_schema(), retention, Clock() if with_clock else None)
    try:
        yield store
    finally:
        store.close()
