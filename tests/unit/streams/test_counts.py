"""What is counted of a pair, beside what its blocks hold."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tcprepl.streams.counts import Counts
from tcprepl.streams.looking import LookedAt, looking_into
from tcprepl.streams.pages import DiskPage
from tcprepl.streams.sqlite_schema import DATABASE_NAME
from tests.log_kit import SqliteStore, add, row


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with three blocks of two rows each: at tokens 2, 4 and 6."""
    store = SqliteStore(tmp_path)
    for name in "abc":
        add(store, "push_rules", row(name), row(name))
    store.close()
    return tmp_path


def faults(data: Path, *damage: str) -> list[str]:
    """Return what is said of the counts after *damage*, without what to do and where."""
    with closing(sqlite3.connect(data / DATABASE_NAME)) as connection:
        connection.executescript(";".join(damage))
    with looking_into(data) as database:
        return [said.split(";")[0].split(": ", 1)[1] for said in _said(database)]


def _said(database: LookedAt) -> Iterator[str]:
    (pair,) = database.pairs()
    counts = Counts(database, pair)
    token = pair.floor
    while token < pair.position:
        page: DiskPage = database.page(pair, token, pair.position)
        yield from counts.of(page)
        token = page.damage.upto if page.damage is not None else page.upto
    yield from counts.ended()


def test_what_is_counted_right(data: Path) -> None:
    assert faults(data) == []
    assert faults(data, "UPDATE pairs SET floor = 3") == []
    assert faults(data, "UPDATE pairs SET floor = 6") == []


def test_a_block_of_which_something_else_is_said(data: Path) -> None:
    """The sum of the pair is that of what the blocks hold: it is not told besides."""
    (said,) = faults(data, "UPDATE blocks SET rows = 3, bytes = 0 WHERE last = 4")
    assert said.startswith("the block at token 4 has 2 rows and ")
    assert said.endswith(" bytes, and 3 rows and 0 bytes are said of it")
    (said,) = faults(data, "UPDATE pairs SET floor = 3")  # it is in a page all the same
    assert said.startswith("the block at token 4 has ")


def test_a_pair_of_which_something_else_is_said(data: Path) -> None:
    (said,) = faults(data, "UPDATE pairs SET rows = -1")
    assert said.startswith("its blocks have 6 rows and ")
    assert ", and -1 rows and " in said


def test_what_cannot_be_read_has_what_is_said_of_it(data: Path) -> None:
    """The damage itself is told by the page."""
    assert faults(data, "UPDATE blocks SET crc = crc + 1 WHERE last = 4") == []
    assert faults(data, "UPDATE blocks SET crc = crc + 1") == []


def test_a_number_that_is_none_is_nothing(data: Path) -> None:
    (said,) = faults(data, "UPDATE blocks SET bytes = 'x' WHERE last = 4")
    assert said.endswith(" bytes, and 2 rows and 0 bytes are said of it")


def test_a_pair_of_which_not_everything_can_be_read_is_not_judged(data: Path) -> None:
    """What cannot be removed is in the file, and counts no more."""
    damage = "UPDATE blocks SET rows = 0, bytes = 0, written_ms = 0, crc = crc + 1 WHERE last = 4"
    assert faults(data, damage, "UPDATE pairs SET rows = 1") == []


def test_a_pair_of_which_nothing_can_be_read_is_not_judged(data: Path) -> None:
    """What the file says of it may be all that is right."""
    assert faults(data, "UPDATE blocks SET crc = crc + 1", "UPDATE pairs SET rows = 1") == []
