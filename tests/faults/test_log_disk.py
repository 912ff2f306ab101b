"""A disk that is full, that tears writes, that alters what was written."""

from __future__ import annotations

import random
import re
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tcprepl.errors import LogCorrupt, LogTooNew, LogUnavailable
from tcprepl.streams.retention import Retention
from tcprepl.streams.sqlite_schema import DATABASE_NAME, SCHEMA, SCHEMA_VERSION
from tests.damage import place_of
from tests.harness import Running
from tests.log_kit import DURABLE, SqliteStore, add, read_all, result, row

NOTHING_RECENT = Retention(recent_bytes=0)


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.faults.log_writer", "fill", str(tmp_path / "d"), "600000"]
    with Running(argv, tmp_path) as process:
        assert process.wait() == 0
        lines = process.lines
    match = re.match(r"position (\d+) acknowledged (\d+)", lines[2])
    assert match is not None
    assert match[1] == match[2]
    acknowledged = int(match[1])
    assert acknowledged > 0
    assert lines[1].startswith("refused")
    assert str(tmp_path / "d") in lines[1]
    assert lines[3] == f"readable {acknowledged}"
    assert lines[4] == "refused again"
    # both refused appends had been given their ten tokens
    assert lines[5] == f"again {acknowledged + 21}"
    assert lines[6] == f"readable {acknowledged + 1}"
    store = SqliteStore(tmp_path / "d")
    assert len(read_all(store.log, DURABLE, 0)) == acknowledged + 1
    store.close()


def test_a_disk_that_is_full_says_where_to_make_room(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path, NOTHING_RECENT)
    writer = store.log._database._writer
    assert writer is not None
    (pages,) = writer.execute("PRAGMA page_count").fetchone()
    writer.execute(f"PRAGMA max_page_count={pages + 4}")
    acknowledged = 0
    text = row("x" * 5_000)
    refusal = ""
    while not refusal:
        try:
            acknowledged = add(store, DURABLE, text).last
        except LogUnavailable as error:
            refusal = str(error)
    assert refusal.endswith(f"full; free space in {tmp_path}")
    assert len(read_all(store.log, DURABLE, 0)) == acknowledged
    # trimming makes room by itself: what goes makes place for what comes
    store.log.trim(DURABLE, "w", acknowledged)
    assert add(store, DURABLE, text).first > acknowledged
    writer.execute(f"PRAGMA max_page_count={1 << 30}")
    assert add(store, DURABLE, *[text] * 50)
    assert len(read_all(store.log, DURABLE, acknowledged)) == 51
    store.close()


def test_a_torn_write_leaves_what_was_written_before(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "data")
    for index in range(30):
        add(store, DURABLE, row(str(index)), row(str(index)))
    wal = store.directory / f"{DATABASE_NAME}-wal"
    size = wal.stat().st_size
    everything = read_all(store.log, DURABLE, 0)
    whole = set()
    for number, cut in enumerate((0, 1, 100, 4_000, 17_000, 50_000, size // 2, size - 10, size)):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(store.directory, copy)
        with (copy / wal.name).open("r+b") as file:
            file.truncate(size - cut)
        torn = SqliteStore(copy)
        found = read_all(torn.log, DURABLE, 0)
        assert found == everything[: len(found)]
        assert len(found) % 2 == 0
        assert torn.log.position(DURABLE, "w") == len(found)
        whole.add(len(found))
        assert add(torn, DURABLE, row("new")).first == len(found) + 1
        torn.close()
    assert 60 in whole
    assert len(whole) > 2
    store.close()


def test_altered_pages_are_noticed_and_the_rest_can_be_read(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path, NOTHING_RECENT)
    for index in range(10):
        add(store, DURABLE, *[row(f"{index}-{number}" * 20) for number in range(500)])
    store.close()
    path = tmp_path / DATABASE_NAME
    content = bytearray(path.read_bytes())
    mark = place_of(path, 2_250)
    content[mark : mark + 5] = b"rdata"
    path.write_bytes(content)
    store.open()
    with pytest.raises(
        LogCorrupt, match=r"push_rules of w: rows in \(2000, 2500\] .*log.sqlite3: "
    ) as caught:
        read_all(store.log, DURABLE, 0)
    assert caught.value.token == 2_500
    assert "tcprepl restore" in str(caught.value)
    # what came before it, and what came after, is there
    assert len(read_all(store.log, DURABLE, 0, 1_999)) == 1_999
    assert len(read_all(store.log, DURABLE, 2_500)) == 2_500
    assert add(store, DURABLE, row("new")).first == 5_001
    # once it is trimmed, nothing is left of it
    store.log.trim(DURABLE, "w", caught.value.token)
    assert len(read_all(store.log, DURABLE, 2_500)) == 2_501
    store.close()


@pytest.mark.parametrize("page", range(1, 8))
def test_a_page_of_noise_never_gives_wrong_rows(tmp_path: Path, page: int) -> None:
    store = SqliteStore(tmp_path, NOTHING_RECENT)
    noise = random.Random(7)  # it does not get smaller by much
    rows = [row(noise.randbytes(150).hex()) for _ in range(1_000)]
    for start in range(0, 1_000, 100):
        add(store, DURABLE, *rows[start : start + 100])
    store.close()
    path = tmp_path / DATABASE_NAME
    content = bytearray(path.read_bytes())
    size = SCHEMA.page_size
    assert len(content) > 8 * size
    content[page * size : (page + 1) * size] = bytes(
        (number * 37 + 11) % 256 for number in range(size)
    )
    path.write_bytes(content)
    complaint = ""
    try:
        store.open()
        found = read_all(store.log, DURABLE, 0)
    except LogCorrupt as error:
        complaint = str(error)
    assert str(path) in complaint or found == list(enumerate(rows, 1))


def test_a_log_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    add(store, DURABLE, row("a"))
    store.close()
    path = tmp_path / DATABASE_NAME
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(LogTooNew, match="run the newer tcprepl"):
        store.open()
    assert path.read_bytes() == before


def test_a_directory_without_permission_is_named(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    writer = store.log._database._writer
    assert writer is not None
    writer.execute("PRAGMA query_only=ON")
    answered = store.log.append(DURABLE, "w", [row("a")])
    with pytest.raises(LogUnavailable, match=f"readonly.*make {tmp_path} writable"):
        result(answered)
    writer.execute("PRAGMA query_only=OFF")
    assert add(store, DURABLE, row("a")).first == 2
    store.close()
