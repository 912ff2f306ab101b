"""A migration as a user asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcprepl.app.migrating import migrate_data
from tcprepl.errors import ConfigError, LogUnavailable
from tests import postgres_world
from tests.log_kit import DURABLE, SqliteStore, add, row

pytestmark = pytest.mark.postgresql


def test_there_and_back(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "a")
    add(store, DURABLE, row("a"))
    store.close()
    url = postgres_world.fresh_url()
    assert migrate_data(tmp_path / "a", url, "main", lambda _: None).counts["blocks"] == 1
    assert migrate_data(url, tmp_path / "b", "", lambda _: None).counts["pairs"] == 1
    back = SqliteStore(tmp_path / "b")
    assert back.log.position(DURABLE, "w") == 1
    back.close()
    with pytest.raises(LogUnavailable, match="is there already"):
        migrate_data(url, tmp_path / "b", "", lambda _: None)
    with pytest.raises(LogUnavailable, match="is not empty"):
        migrate_data(tmp_path / "b", url, "main", lambda _: None)


def test_two_of_a_sort_are_no_migration(tmp_path: Path) -> None:
    for source, target in ((tmp_path, tmp_path), ("postgresql://a", "postgresql://b")):
        with pytest.raises(ConfigError, match="expected a directory and postgresql://"):
            migrate_data(source, target, "main", lambda _: None)
