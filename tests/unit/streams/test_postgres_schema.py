"""The functions that fence writers, and keep transaction ids."""

from __future__ import annotations

import pytest

from tcprepl.storage.fenced import FENCED
from tcprepl.storage.postgresql import Link, bring_up_to_date
from tcprepl.streams.postgres_schema import KNOWN, SCHEMA
from tests import postgres_world
from tests.postgres_world import sql

pytestmark = pytest.mark.postgresql

TAKE = (
    "INSERT INTO writers (name, epoch, commits, holder, taken_at, held_until)"
    " VALUES ('w', 3, 5, 'x', now(), now()) RETURNING number"
)
REMEMBER = "SELECT remember('{{s,s}}', '{{{}}}', '{{i,i}}', '{{1,2}}', '{{1,2}}', {}, {})"


@pytest.fixture
def where() -> tuple[str, str]:
    """Return a URL and a schema with the tables."""
    url, schema = postgres_world.url_of(postgres_world.server(), "postgres"), ""
    schema = postgres_world.fresh_schema()
    link = Link(url, schema)
    bring_up_to_date(link, schema, SCHEMA)
    link.close()
    return url, schema


def refused(where: tuple[str, str], statement: str) -> str | None:
    """Return the SQLSTATE of what a statement raises."""
    try:
        sql(*where, statement)
    except postgres_world.psycopg.Error as error:
        return error.sqlstate
    return None


def test_who_has_the_epoch_keeps_the_lease_and_nobody_else(where: tuple[str, str]) -> None:
    ((number,),) = sql(*where, TAKE)
    assert refused(where, f"SELECT fence({number}, 3, 6, 60)") is None
    assert refused(where, f"SELECT fence({number}, 3, 0, 60)") is None
    left = "SELECT commits, held_until > clock_timestamp() + interval '50 s' FROM writers"
    assert sql(*where, left) == [(6, True)]
    for epoch in (2, 4):
        assert refused(where, f"SELECT fence({number}, {epoch}, 9, 60)") == FENCED
    assert refused(where, f"SELECT fence({number + 1}, 3, 9, 60)") == FENCED
    assert sql(*where, left) == [(6, True)]


def test_a_transaction_id_is_taken_once_until_it_is_old(where: tuple[str, str]) -> None:
    assert refused(where, REMEMBER.format("a,b", 1_000, 0)) is None
    assert refused(where, REMEMBER.format("c,b", 2_000, 1_000)) == KNOWN
    assert refused(where, REMEMBER.format("c,b", 2_000, 1_001)) is None
    found = sql(*where, "SELECT id, written_ms FROM transactions ORDER BY id")
    assert found == [("a", 1_000), ("b", 2_000), ("c", 2_000)]
