"""A durable stream: recent rows from memory, earlier ones from the disk, the oldest go."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from tcprepl.errors import LogUnavailable, TokenTooOld
from tcprepl.streams.durable import DurableStream
from tcprepl.streams.retention import Bounds, Retention
from tests.log_kit import DURABLE, SqliteStore, add, read_all, row


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    """Return a log that holds about two rows in memory."""
    return SqliteStore(tmp_path, Retention(recent_bytes=60))


def stream(store: SqliteStore) -> DurableStream:
    """Return the stream behind the log."""
    found = store.log._pairs[DURABLE, "w"]
    assert isinstance(found, DurableStream)
    return found


def test_recent_rows_never_touch_the_disk(store: SqliteStore) -> None:
    for index in range(9):
        add(store, DURABLE, row(str(index)))
    with mock.patch.object(store.log._database, "page", side_effect=LogUnavailable("away")):
        assert [token for token, _ in read_all(store.log, DURABLE, 7)] == [8, 9]
        with pytest.raises(LogUnavailable, match="away"):
            store.log.read(DURABLE, "w", 6, 9)
    assert len(read_all(store.log, DURABLE, 0)) == 9
    store.close()


def test_a_block_that_is_read_in_parts_is_fetched_once(store: SqliteStore) -> None:
    rows = [row(str(index)) for index in range(100)]
    add(store, DURABLE, *rows)
    add(store, DURABLE, *rows)
    database = store.log._database
    with mock.patch.object(database, "page", wraps=database.page) as fetch:
        found = read_all(store.log, DURABLE, 0, limit_rows=10)
    assert [token for token, _ in found] == list(range(1, 201))
    assert fetch.call_count == 1
    assert read_all(store.log, DURABLE, 0) == found
    store.close()


def test_expiry_waits_for_what_is_on_its_way_out(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path, Retention(durable=Bounds(max_rows=3)))
    for index in range(3):
        add(store, DURABLE, row(str(index)))
    found = stream(store)
    assert found.beyond_retention(store.now_ms) == 0
    found.stored.rows += 1
    assert found.beyond_retention(store.now_ms) == 1
    found.trimming = True
    assert found.beyond_retention(store.now_ms) == 0
    store.close()


def test_everything_may_go_and_the_position_stays(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path, Retention(durable=Bounds(max_age_s=1)))
    add(store, DURABLE, row("a"), row("b"))
    store.now_ms += 5_000
    store.log.expire()
    assert store.log.floor(DURABLE, "w") == store.log.position(DURABLE, "w") == 2
    store.reopen()
    assert store.log.floor(DURABLE, "w") == store.log.position(DURABLE, "w") == 2
    with pytest.raises(TokenTooOld, match="let go before"):
        store.log.read(DURABLE, "w", 0, 2)
    assert add(store, DURABLE, row("c")).first == 3
    store.close()
