"""The schema of the SQLite file of a log."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from tcprepl.streams import sqlite_schema
from tcprepl.streams.sqlite_schema import SCHEMA, SCHEMA_VERSION


def test_every_version_can_be_brought_up_to_the_newest() -> None:
    assert set(SCHEMA.upgrades) == set(range(1, SCHEMA_VERSION))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in vars(sqlite_schema)
        if name.startswith(("SELECT_", "INSERT_", "UPSERT_", "DELETE_", "NEWEST"))
    ],
)
def test_every_statement_is_one_of_the_schema(name: str) -> None:
    """SQLite plans it, so all that it names is there."""
    statement: str = getattr(sqlite_schema, name)
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCHEMA.create)
        connection.execute(f"EXPLAIN {statement}", (None,) * statement.count("?"))
