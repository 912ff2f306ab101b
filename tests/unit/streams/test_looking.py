"""A log that is looked at: as it is where that can be done, else a copy of it."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from tcprepl.errors import LogCorrupt, LogUnavailable
from tcprepl.storage import sqlite as storage
from tcprepl.streams import looking
from tcprepl.streams.engine import StoredPair
from tcprepl.streams.looking import UnchangedDatabase, looking_into
from tcprepl.streams.sqlite_schema import DATABASE_NAME
from tests.log_kit import SqliteStore, add, row


def seen(directory: Path) -> list[tuple[Path, StoredPair, list[int]]]:
    """Return what a look finds, and where."""
    with looking_into(directory) as database:
        found = []
        for pair in database.pairs():
            page = database.page(pair, pair.floor, pair.position)
            assert page.block is not None
            found.append((database.directory, pair, list(page.block.tokens)))
        return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with two rows."""
    store = SqliteStore(tmp_path / "data")
    add(store, "push_rules", row("a"), row("b"))
    store.close()
    return tmp_path / "data"


def test_a_log_is_read_where_it_is(data: Path) -> None:
    names = sorted(data.iterdir())
    ((where, pair, tokens),) = seen(data)
    assert (where, pair.stream, tokens) == (data, "push_rules", [1, 2])
    assert sorted(data.iterdir()) == names
    with closing(UnchangedDatabase(data)) as database:
        assert len(database.pairs()) == 1


def test_what_cannot_be_read_there_is_copied_with_what_belongs_to_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(data)
    add(store, "push_rules", row("c"))
    killed = tmp_path / "killed"
    shutil.copytree(data, killed)
    store.close()
    monkeypatch.setattr(looking, "can_be_read_unchanged", lambda path, schema: False)
    ((where, _, tokens),) = seen(killed)
    assert tokens == [1, 2, 3]
    assert where != killed
    assert not where.exists()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(LogUnavailable, match="No space left on device; TMPDIR says"):
        seen(killed)


def test_what_is_no_log_is_refused(data: Path) -> None:
    (data / DATABASE_NAME).write_bytes(b"no database at all, just text\n" * 1_000)
    with pytest.raises(LogCorrupt, match="keep a copy of the directory"):
        seen(data)
    assert not list(data.glob(f"*{storage.UNFINISHED}"))
