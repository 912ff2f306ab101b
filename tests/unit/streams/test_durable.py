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


def test_what_is_held_is_counted_and_goes_by_bytes(tmp_path: Path) -> None:
    """As many of the oldest blocks go as have to, and none more."""
    store = SqliteStore(tmp_path)
    for index in range(9):
        add(store, DURABLE, row(str(index)))
    found = stream(store)
    lines = [f"RDATA {DURABLE} w {index + 1} ".encode() + row(str(index)) for index in range(9)]
    size = len(lines[0]) + 1
    assert (found.stored.rows, found.stored.size_bytes) == (9, 9 * size)
    for held in (1, 4, 8):
        found.bounds = Bounds(max_bytes=held * size)
        found._oldest = None
        assert found.beyond_retention(store.now_ms) == 9 - held
    store.close()


def test_the_disk_is_asked_only_for_what_is_not_in_memory(store: SqliteStore) -> None:
    for index in range(9):
        add(store, DURABLE, row(str(index)))
    database = store.log._database
    recent = stream(store)._recent.oldest.first
    with mock.patch.object(database, "page", wraps=database.page) as fetch:
        page = store.log.read(DURABLE, "w", 0, 5)
    assert fetch.call_args.args[1:] == (0, recent - 1)
    assert list(page.tokens) == [1, 2, 3, 4, 5]
    assert (page.upto, page.limited) == (5, False)
    page = store.log.read(DURABLE, "w", 0, 9)
    assert list(page.tokens) == list(range(1, recent))
    assert (page.upto, page.limited) == (recent - 1, True)
    store.close()


def test_what_is_let_go_of_is_not_kept_in_memory(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    for index in range(3):
        add(store, DURABLE, row(str(index)))
    for upto in (1, 2, 3):
        store.log.trim(DURABLE, "w", upto)
        assert len(stream(store)._recent) == 3 - upto
    store.close()


def test_it_is_said_which_bound_let_rows_go(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path, Retention(durable=Bounds(max_rows=3)))
    for index in range(4):
        add(store, DURABLE, row(str(index)))
    found = stream(store)
    assert (found.floor, found.bound) == (1, "retention.rows=3")
    store.close()
