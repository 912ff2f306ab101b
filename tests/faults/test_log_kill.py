"""Writers and readers that are killed: nothing acknowledged is lost, no token goes back."""

from __future__ import annotations

import random
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tcprepl.errors import LogLocked
from tcprepl.streams.position_store import SqlitePositionStore
from tests.harness import Running, pause
from tests.log_kit import SqliteStore, add, read_all, row, typing

ROUNDS = 6


def writer(where: Path, *args: str) -> Running:
    """Start a writer."""
    return Running([sys.executable, "-m", "tests.faults.log_writer", *args], where, "writer")


def test_a_killed_writer_loses_no_row_that_it_acknowledged(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    moments = random.Random(seed)
    data = tmp_path / "data"
    rows: dict[int, list[str]] = {}
    typed = 0
    for number in range(ROUNDS):
        with writer(tmp_path / str(number), "publish", str(data), "3") as process:
            process.wait_for_lines(10)
            pause(moments.random() / 4)
            process.kill()
            lines = process.lines
        assert not any(line.startswith("failed") for line in lines), lines[-1]
        newest_typed = typed
        for line in lines[1:]:
            stream, first, last, count, name = line.split(" ")
            if stream == "typing":
                # no token of an earlier process comes again
                assert int(first) > typed
                newest_typed = max(newest_typed, int(first))
            else:
                for index in range(int(count)):
                    token = int(first) if first == last else int(first) + index
                    rows.setdefault(token, []).append(f'["{name}/{index}"]')
        typed = newest_typed
    store = SqliteStore(data)
    assert store.log.position("typing", "w") > typed
    found: dict[int, list[str]] = {}
    for token, text in read_all(store.log, "push_rules", 0):
        found.setdefault(token, []).append(text.decode())
    assert list(found) == sorted(found)
    assert len(rows) > 10 * ROUNDS / 2
    for token, expected in rows.items():
        assert found[token] == expected
    # what was on its way when the kill came may be there too: whole appends, each once
    unacknowledged = [text for token in found if token not in rows for text in found[token]]
    everything = [text for texts in found.values() for text in texts]
    assert len(set(everything)) == len(everything)
    assert len(unacknowledged) <= ROUNDS * 3 * 4
    store.close()


def test_a_second_process_is_told_who_has_the_directory(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with writer(tmp_path, "hold", str(data)) as process:
        process.wait_for_output(r"open \d+")
        with pytest.raises(LogLocked, match=f"in use by process {process.pid}: stop that one"):
            SqliteStore(data)
        with writer(tmp_path, "hold", str(data)) as second:
            assert second.wait() == 1
            assert "LogLocked" in second.stderr
        process.kill()
    store = SqliteStore(data)
    add(store, "push_rules", row("a"))
    store.close()


def test_a_killed_reader_has_applied_exactly_what_its_position_says(tmp_path: Path) -> None:
    path = tmp_path / "worker.db"
    for number in range(ROUNDS):
        with writer(tmp_path / str(number), "positions", str(path)) as process:
            process.wait_for_lines(20 + number)
            process.kill()
            last = int(process.lines[-1])
        with closing(sqlite3.connect(path)) as connection:
            store = SqlitePositionStore(connection)
            token = store.load()["typing", "master"]
            assert token in (last, last + 1)
            seen = [found for (found,) in connection.execute("SELECT token FROM seen")]
            assert seen == list(range(1, token + 1))


def test_a_log_that_was_killed_has_no_states(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with writer(tmp_path, "publish", str(data), "1") as process:
        process.wait_for_lines(10)
        process.kill()
    store = SqliteStore(data)
    assert read_all(store.log, "typing", 0, compacted=True) == []
    before = store.log.position("typing", "w")
    assert add(store, "typing", typing("!r:x")).first == before + 1
    store.close()
