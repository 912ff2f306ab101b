"""A migration that is killed, at any moment: begun again, it ends with all that there was."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tcprepl.app.migrating import migrate_data
from tcprepl.errors import LogUnavailable
from tcprepl.streams.postgres_database import PostgresDatabase
from tests import postgres_world
from tests.harness import FULL
from tests.log_kit import DURABLE, PostgresStore, SqliteStore, read_all, result, row

pytestmark = pytest.mark.postgresql

#: Rows of the large log, and how many of them an append has.
ROWS, EACH = (1_000_000, 1_000) if FULL else (3_000, 30)
#: With which of these it is killed: begin (1, 2), six writes, finish (15, 16), rename within it.
MOMENTS = (2, 9, 15, 16, 17, 19) if FULL else (7, 16)
#: Dies by SIGKILL before, or after, the statement with a number is answered.
KILLED = """
import os, signal, sys
from pathlib import Path
from tcprepl.app.migrating import migrate_data
from tcprepl.storage import migrating_postgres, migrating_sqlite
from tcprepl.storage.migrating_postgres import PostgresTarget
from tcprepl.storage.migrating_sqlite import SqliteTarget
from tests.harness import FULL
source, target, moment = sys.argv[1:]
migrating_postgres.BATCH_ROWS = migrating_sqlite.BATCH_ROWS = 3
left = int(moment)
def counted(function):
    def call(*args):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = function(*args)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer
    return call
for side in PostgresTarget, SqliteTarget:
    for name in "begin", "write", "finish":
        setattr(side, name, counted(getattr(side, name)))
os.rename = counted(os.rename)
sides = [side if "://" in side else Path(side) for side in (source, target)]
migrate_data(*sides, "master", lambda step: None)
"""


def log_of(directory: Path, rows: int, each: int) -> list[tuple[int, bytes]]:
    """Make a log and return its rows."""
    store = SqliteStore(directory)
    waiting = [
        store.log.append(DURABLE, "w", [row(f"{first + n}") for n in range(each)])
        for first in range(0, rows, each)
    ]
    store.settle()
    assert result(waiting[-1]).last == rows
    found = read_all(store.log, DURABLE, 0)
    store.close()
    return found


def refused(where: str | Path) -> str:
    """Return why no server can be started on a side."""
    if isinstance(where, Path):
        with pytest.raises(LogUnavailable) as caught:
            SqliteStore(where)
    else:
        with pytest.raises(LogUnavailable) as caught:
            PostgresDatabase(where, "other").take()
    return str(caught.value)


def is_complete(where: str | Path) -> bool:
    """Return whether all was done before it was killed."""
    if isinstance(where, Path):
        return (where / "log.sqlite3").exists()
    return postgres_world.sql(where, "tcprepl", "SELECT * FROM migration") == []


def rows_of(where: str | Path) -> list[tuple[int, bytes]]:
    """Return the rows of a side, as a reader gets them."""
    store = SqliteStore(where) if isinstance(where, Path) else PostgresStore(where, "tcprepl")
    found = read_all(store.log, DURABLE, 0)
    store.close()
    return found


@pytest.mark.parametrize("way", ["there", "back"])
def test_what_is_killed_anywhere_goes_on(way: str, tmp_path: Path) -> None:
    """The target is served not at all, or whole."""
    rows = log_of(tmp_path / "a", 30, 3)
    source: str | Path = tmp_path / "a"
    if way == "back":
        source = postgres_world.fresh_url()
        migrate_data(tmp_path / "a", source, "master", lambda _: None)
    for moment in MOMENTS:
        target: str | Path = tmp_path / f"b{moment}"
        if way == "there":
            target = postgres_world.fresh_url()
        child = subprocess.run(
            [sys.executable, "-c", KILLED, str(source), str(target), str(moment)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert child.returncode in (0, -signal.SIGKILL), child.stderr
        if isinstance(source, str):  # nobody waits for the end of its lease
            postgres_world.sql(source, "tcprepl", "UPDATE migration SET held_until = now()")
        if not is_complete(target):
            assert "finish that" in refused(target)
            migrate_data(source, target, "master", lambda _: None)
        assert rows_of(target) == rows
        if child.returncode == 0:
            return
    assert not FULL, "there are more moments"


def test_a_large_log_is_migrated_and_compared(tmp_path: Path) -> None:
    rows = log_of(tmp_path / "a", ROWS, EACH)
    url = postgres_world.fresh_url()
    assert migrate_data(tmp_path / "a", url, "master", lambda _: None).counts["blocks"] == ROWS
    migrate_data(url, tmp_path / "b", "master", lambda _: None)
    assert rows_of(url) == rows
    assert rows_of(tmp_path / "b") == rows
