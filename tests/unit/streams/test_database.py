"""The SQLite file: what is in it, and what is said when it is not what it should be."""

from __future__ import annotations

import random
import sqlite3
from base64 import b64encode
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from unittest import mock
from zlib import crc32

import msgpack
import pytest

from tcprepl import limits
from tcprepl.errors import LogCorrupt, LogError, LogTooNew, LogUnavailable
from tcprepl.storage import sqlite as storage
from tcprepl.streams import block_store, bodies, damaged_file, trimming
from tcprepl.streams import database as database_module
from tcprepl.streams import history as history_module
from tcprepl.streams.blocks import render
from tcprepl.streams.database import Database
from tcprepl.streams.engine import TRIMMED_BYTES, Commit, Freed, StoredPair
from tcprepl.streams.history import History
from tcprepl.streams.log import Appended, Block
from tcprepl.streams.pages import DiskPage
from tcprepl.streams.paging import PageBuilder
from tcprepl.streams.producers import Produced, ProducerState
from tcprepl.streams.sqlite_schema import DATABASE_NAME, SCHEMA, SCHEMA_VERSION
from tests.damage import place_of
from tests.log_kit import DURABLE, SqliteStore, result, row


def block(*tokens: int) -> Block:
    """Return a block with these tokens."""
    rows = [b'["%d"]' % token for token in tokens]
    return render("s", "i", list(tokens), rows, 1_234)


def stored(**changes: int) -> StoredPair:
    """Return a row of ``pairs``."""
    pair = StoredPair(1, "s", "i", 3, 0, 3, len(block(1, 2, 3).lines))
    for name, value in changes.items():
        setattr(pair, name, value)
    return pair


def tokens(database: Database, after: int, upto: int) -> list[int]:
    """Return the tokens of a page that is all there is."""
    page = database.page(stored(), after, upto)
    assert (page.after, page.upto, page.damage) == (after, upto, None)
    return [] if page.block is None else list(page.block.tokens)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """Return a database with a block of three rows."""
    made = Database(tmp_path)
    made.write(Commit(pairs=[stored()], blocks=[(1, block(1, 2, 3))]))
    return made


def test_a_block_of_the_release_before_is_read_and_misses_none(tmp_path: Path) -> None:
    """It says nothing of the block before it, and its file nothing of the newest."""
    made = Database(tmp_path)
    made.write(Commit(pairs=[stored(position=5)], blocks=[(1, block(1, 2, 3)), (1, block(5))]))
    made.close()
    with closing(sqlite3.connect(made.path)) as connection, connection:
        for token in (3, 5):
            lines = block(*range(1, 4) if token == 3 else [5]).lines
            body = msgpack.packb(([1, 2, 3] if token == 3 else [5], False, lines))
            connection.execute(
                "UPDATE blocks SET body = ?, crc = ? WHERE last = ?", (body, crc32(body), token)
            )
        connection.execute("ALTER TABLE pairs DROP COLUMN newest")
        connection.execute("ALTER TABLE incarnations DROP COLUMN ended")
        connection.execute("DROP TABLE bodies")
        connection.execute("PRAGMA user_version=3")
    again = Database(tmp_path)
    assert tokens(again, 0, 5) == [1, 2, 3, 5]
    again.write(Commit(pairs=[stored(position=7)], blocks=[(1, block(7))]))
    again.write(Commit(pairs=[stored(position=9)], blocks=[(1, block(9))]))
    assert tokens(again, 0, 9) == [1, 2, 3, 5, 7, 9]
    with closing(sqlite3.connect(made.path)) as connection, connection:
        connection.execute("DELETE FROM blocks WHERE last IN (5, 7)")
    page = again.page(stored(), 0, 9)
    assert page.damage is not None
    assert (page.upto, page.damage.after, page.damage.upto) == (3, 3, 7)
    again.close()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        *(
            (f"DROP TABLE {name}", f"table {name} is not there")
            for name in (
                "pairs", "blocks", "bodies", "transactions", "incarnations", "beginnings",
                "producers", "answers",
            )
        ),
        ("DROP INDEX transactions_by_age", "index transactions_by_age is not there"),
        ("ALTER TABLE pairs DROP COLUMN newest", "column newest of table pairs is not there"),
        ("PRAGMA user_version=6", "table bodies already exists"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_of_its_schema_is_refused(
    database: Database, tmp_path: Path, damage: str, told: str
) -> None:
    """At the start: later some would be served, and others wait for ever."""
    database.close()
    _spoil(tmp_path, damage)
    for _ in range(2):
        with pytest.raises(LogCorrupt, match=f"{told}; stop the process"):
            Database(tmp_path)


@pytest.mark.parametrize("token", [5, 9])
def test_what_is_read_no_further_still_misses_a_block(database: Database, token: int) -> None:
    """The next one says so, unless it is damaged itself, or is the one that is not there."""
    database.write(Commit(pairs=[stored(position=5)], blocks=[(1, block(5))]))
    database.write(Commit(pairs=[stored(position=9)], blocks=[(1, block(9))]))
    with closing(sqlite3.connect(database.path)) as connection, connection:
        connection.execute("DELETE FROM blocks WHERE last = ?", (token,))
        connection.commit()
        read = database.page(stored(), 0, 7)
        assert (read.damage is not None) is (token == 5)
        assert read.upto == (3 if token == 5 else 7)
        connection.execute("UPDATE blocks SET crc = crc + 1")
        connection.commit()
        page = PageBuilder(stored(), 3, lambda: 3, str)
        assert database._ended(connection, stored(), page, 7) == DiskPage(3, 7)
        connection.execute("DROP TABLE pairs")
        with pytest.raises(sqlite3.OperationalError):
            database._ended(connection, stored(), page, 7)
        connection.rollback()
    broken = mock.Mock()
    broken.execute.side_effect = sqlite3.DatabaseError
    assert database._ended(broken, stored(), page, 7) == DiskPage(3, 7)
    database.close()


def test_a_commit_that_fails_is_not_the_block_before(database: Database) -> None:
    with pytest.raises(LogError):
        database.write(Commit(pairs=[stored(position=5)], blocks=[(1, block(5)), (1, block(5))]))
    database.write(Commit(pairs=[stored(position=6)], blocks=[(1, block(6))]))
    assert tokens(database, 0, 6) == [1, 2, 3, 6]
    database.close()


def test_what_is_written_is_there_the_next_time(database: Database, tmp_path: Path) -> None:
    answer = Appended("s", "i", 1, 3)
    database.write(Commit(transactions=[("s", "t", answer, 50)]))
    database.close()
    again = Database(tmp_path)
    assert again.pairs() == [stored()]
    assert tokens(again, 0, 3) == [1, 2, 3]
    assert again.page(stored(), 3, 9) == DiskPage(3, 9)
    assert again.transaction("s", "t", 50) == answer
    assert again.transaction("s", "t", 51) is None
    assert again.transaction("s", "u", 0) is None
    assert list(again.oldest(stored(), 0)) == [(3, 3, len(block(1, 2, 3).lines), 1_234)]
    again.close()


def test_trims_and_expiry(database: Database) -> None:
    size = len(block(1, 2, 3).lines)
    database.write(
        Commit(pairs=[stored(position=5, rows=2, size_bytes=20)], blocks=[(1, block(5))])
    )
    assert database.write(Commit(trims={1: 4})) == Freed([(1, 3, size)])
    assert tokens(database, 4, 5) == [5]
    (pair,) = database.pairs()
    assert (pair.position, pair.floor, pair.rows) == (5, 4, 2)
    database.write(Commit(transactions=[("s", "t", Appended("s", "i", 1, 1), 50)]))
    database.write(Commit(expire_before_ms=51))
    assert database.transaction("s", "t", 0) is None
    assert not Commit()
    assert Commit(expire_before_ms=0)
    database.close()


def begin(database: Database, position: int, name: str) -> History:
    """Begin an incarnation in the file, and return the history as the process knows it."""
    known = database.history()
    begun = known.begin({("s", "i"): position}, 5, name)
    database.write(Commit(begun=begun, oldest_incarnation=known.incarnations[0].number))
    return known


def test_incarnations_are_noted(database: Database) -> None:
    assert database.history().incarnations == []
    begin(database, 3, "x")
    begin(database, 3, "y")
    begin(database, 7, "z")
    noted = database.history()
    assert noted.incarnations == [(1, "x", 5), (2, "y", 5), (3, "z", 5)]
    assert [noted.shared(("s", "i"), 9, name) for name in "xyz"] == [3, 7, 9]
    database.close()


def test_forgotten_incarnations_are_deleted_and_where_the_oldest_began_stays(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "MAX_INCARNATIONS", 2)
    for position, name in [(1, "v"), (2, "w"), (2, "x"), (2, "y"), (4, "z")]:
        known = begin(database, position, name)
        noted = database.history()
        assert noted.incarnations == known.incarnations
        assert noted._began == known._began
    assert known._began == {("s", "i"): ([2, 5], [2, 4])}
    database.close()


def test_a_commit_is_all_or_nothing(database: Database) -> None:
    with pytest.raises(LogError):
        database.write(Commit(pairs=[stored(position=9)], blocks=[(1, block(9)), (1, block(3))]))
    assert database.pairs() == [stored()]
    database.write(Commit(blocks=[(1, block(9))]))
    database.close()


def test_a_database_that_another_program_holds_is_refused(database: Database) -> None:
    assert database._writer is not None
    database._writer.execute("PRAGMA busy_timeout=0")
    with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LogUnavailable, match="another program holds"):
            database.write(Commit(blocks=[(1, block(9))]))
    database.write(Commit(blocks=[(1, block(9))]))
    database.close()


def test_whatever_fails_in_a_commit_all_of_it_is_undone(database: Database) -> None:
    """Also what is no fault of the database: the next commit is not to find a transaction open."""
    with pytest.raises(OverflowError):
        database.write(Commit(blocks=[(1, block(9))], producers={"p": ProducerState(2**63, 0, 1)}))
    database.write(Commit(blocks=[(1, block(10))]))
    assert tokens(database, 0, 10) == [1, 2, 3, 10]
    database.close()


def test_after_a_roll_back_that_fails_there_is_a_new_connection(database: Database) -> None:
    real = database._writer
    assert real is not None

    class Broken:
        in_transaction = True

        def execute(self, *_: object) -> object:
            raise sqlite3.OperationalError("disk I/O error")

        close = execute

    database._writer = Broken()  # type: ignore[assignment]
    with pytest.raises(LogUnavailable, match="check the disk of"):
        database.write(Commit(blocks=[(1, block(9))]))
    assert database._writer is None
    real.close()
    with (
        mock.patch.object(database, "_connect", side_effect=sqlite3.OperationalError("no")),
        pytest.raises(LogUnavailable),
    ):
        database.write(Commit(blocks=[(1, block(9))]))
    database.write(Commit(blocks=[(1, block(9))]))
    assert tokens(database, 0, 9) == [1, 2, 3, 9]
    database.close()


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("database or disk is full", "free space in"),
        ("attempt to write a readonly database", "make .* writable"),
        ("unable to open database file", "make .* writable"),
        ("database is locked", "another program holds"),
        ("disk I/O error", "check the disk"),
    ],
)
def test_every_refusal_says_what_to_do(database: Database, text: str, advice: str) -> None:
    error = database.explained(sqlite3.OperationalError(text))
    assert isinstance(error, LogUnavailable)
    with pytest.raises(LogUnavailable, match=f"{text}; {advice}"):
        raise error
    damage = database.explained(sqlite3.DatabaseError("malformed"))
    assert isinstance(damage, LogCorrupt)
    assert "`tcprepl restore`" in str(damage)
    database.close()


def test_a_newer_schema_is_refused(database: Database, tmp_path: Path) -> None:
    database.close()
    with closing(sqlite3.connect(tmp_path / DATABASE_NAME)) as connection:
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    with pytest.raises(LogTooNew, match=r"version 8 .* reads up to 7: run the newer tcprepl") as e:
        Database(tmp_path)
    assert (e.value.version, e.value.supported) == (8, 7)


def test_the_database_of_another_program_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / DATABASE_NAME)) as connection:
        connection.execute("CREATE TABLE other (x)")
    with pytest.raises(LogCorrupt, match="another program"):
        Database(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / DATABASE_NAME).write_bytes(b"not a database at all, just text\n" * 1_000)
    with pytest.raises(LogCorrupt, match=r"log\.sqlite3.*keep a copy of the directory"):
        Database(tmp_path)


def test_a_file_that_cannot_be_read_again_is_let_go_of(tmp_path: Path) -> None:
    refuses = mock.patch(
        "tcprepl.streams.database.open_reader", side_effect=LogUnavailable("no more files")
    )
    with refuses, pytest.raises(LogUnavailable, match="no more files"):
        Database(tmp_path)
    Database(tmp_path).close()


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LogUnavailable, match="nowhere"):
        Database(tmp_path / "nowhere")


def _spoil(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path / DATABASE_NAME)) as connection:
        connection.execute(statement)
        connection.commit()


def test_a_page_is_as_many_blocks_as_fit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not fit comes alone; nothing above the position is taken."""
    monkeypatch.setattr(limits, "PAGE_ROWS", 4)
    database.write(Commit(blocks=[(1, block(5)), (1, block(*range(10, 19))), (1, block(20))]))
    found = []
    after = 0
    while after < 19:
        page = database.page(stored(), after, 19)
        found.append((page.upto, list(page.block.tokens) if page.block else []))
        after = page.upto
    assert found == [(5, [1, 2, 3, 5]), (19, list(range(10, 19)))]
    monkeypatch.setattr(limits, "PAGE_BYTES", 40)
    assert database.page(stored(), 0, 19).upto == 3
    database.close()


def test_a_page_ends_before_a_block_that_was_altered(database: Database, tmp_path: Path) -> None:
    """The rows of that block, and no others, are damaged."""
    database.write(Commit(blocks=[(1, block(7, 8)), (1, block(10))]))
    _spoil(tmp_path, "UPDATE blocks SET body = zeroblob(100) WHERE last = 8")
    page = database.page(stored(), 0, 20)
    assert page.block is not None
    assert (page.upto, list(page.block.tokens)) == (3, [1, 2, 3])
    for after in (3, 5, 7):
        page = database.page(stored(), after, 20)
        assert (page.upto, page.block) == (after, None)
        assert page.damage is not None
        assert (page.damage.after, page.damage.upto) == (3, 8)
        assert "checksum of its block, at token 8, does not match" in page.damage.detail
    assert tokens(database, 8, 20) == [10]
    _spoil(tmp_path, "UPDATE blocks SET body = zeroblob(100) WHERE last = 3")
    page = database.page(stored(), 1, 20)
    assert page.damage is not None
    assert (page.damage.after, page.damage.upto) == (0, 3)
    database.close()


def _scribble(path: Path, token: int, offset: int | None, scribble: bytes) -> None:
    """Overwrite a part of the block that holds *token*, or at *offset* in a page of it."""
    file = path / DATABASE_NAME
    content = bytearray(file.read_bytes())
    place = place_of(file, token)
    if offset is not None:
        place = place // SCHEMA.page_size * SCHEMA.page_size + offset
    content[place : place + len(scribble)] = scribble
    file.write_bytes(bytes(content))


def _in_file(tmp_path: Path, size: int) -> None:
    """Make a file with 30 blocks of 100 rows of *size* bytes, which do not get much smaller."""
    database = Database(tmp_path)
    noise = random.Random(7)
    for first in range(1, 3_001, 100):
        rows = [b'["%b"]' % b64encode(noise.randbytes(size)) for _ in range(100)]
        made = render("s", "i", range(first, first + 100), rows, 0)
        database.write(Commit(pairs=[stored(position=first + 99)], blocks=[(1, made)]))
    database.close()


def _walk(database: Database) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the tokens that are read, and the gaps."""
    found: list[int] = []
    gaps: list[tuple[int, int]] = []
    after = 0
    while after < 3_000:
        page = database.page(stored(), after, 3_000)
        found += page.block.tokens if page.block is not None else []
        after = page.upto
        if page.damage is not None:
            gaps.append((page.damage.after, page.damage.upto))
            after = page.damage.upto
    return found, gaps


@pytest.mark.parametrize("size", [10, 500])
def test_a_byte_that_changed_on_the_disk_costs_the_rows_of_its_block(
    tmp_path: Path, size: int
) -> None:
    """Whether the block fits a page of the file or not."""
    _in_file(tmp_path, size)
    _scribble(tmp_path, 150, None, b"666")
    database = Database(tmp_path)
    found, gaps = _walk(database)
    assert gaps == [(100, 200)]
    assert found == [*range(1, 101), *range(201, 3_001)]
    database.close()


def test_a_chain_of_pages_that_is_broken_costs_its_block(tmp_path: Path) -> None:
    """What is looked through while others are searched for holds no long bodies."""
    _in_file(tmp_path, 500)
    _scribble(tmp_path, 150, 0, b"\xff" * 4)
    database = Database(tmp_path)
    found, gaps = _walk(database)
    assert gaps == [(100, 200)]
    assert found == [*range(1, 101), *range(201, 3_001)]
    database.close()


def test_a_chain_of_before_that_is_broken_costs_its_block_and_perhaps_a_neighbour(
    tmp_path: Path,
) -> None:
    """SQLite looks at what it passes while it searches: what is next to it may be out of reach."""
    with (
        mock.patch.object(bodies, "COMPRESSED_BYTES", 1_000_000),
        mock.patch.object(block_store, "INLINE_BODY_BYTES", 1_000_000),
    ):
        _in_file(tmp_path, 240)  # of blocks of that size four stand in a page
    _scribble(tmp_path, 150, 0, b"\xff" * 4)
    database = Database(tmp_path)
    found, gaps = _walk(database)
    ((after, upto),) = gaps
    assert after == 100
    assert upto in (200, 300)
    assert found == [*range(1, 101), *range(upto + 1, 3_001)]
    database.close()


@pytest.mark.parametrize("last", ["NULL", "'x'", "last + 90"])
def test_a_block_whose_token_is_none_it_can_have_is_damaged(
    database: Database, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """The index of a damaged file can name rows that say something else themselves."""
    database.write(Commit(blocks=[(1, block(7, 8)), (1, block(10))]))
    spoilt = f"SELECT iif(last = 8, {last}, last), "
    for module, name in ((database_module, "SELECT_BLOCKS"), (damaged_file, "SELECT_NEXT")):
        statement = getattr(module, name)
        monkeypatch.setattr(module, name, statement.replace("SELECT last", spoilt[:-2]))
    page = database.page(stored(), 0, 20)
    assert (page.upto, page.damage) == (3, None)
    page = database.page(stored(), 3, 20)
    assert (page.upto, page.block) == (3, None)
    assert page.damage is not None
    assert (page.damage.after, page.damage.upto) == (3, 8)
    assert "which it cannot" in page.damage.detail
    assert tokens(database, 8, 20) == [10]
    database.close()


@pytest.mark.parametrize("first", [150, 1750, 2950])
def test_a_page_of_the_file_that_is_broken_costs_the_blocks_in_it(
    tmp_path: Path, first: int
) -> None:
    """What is before and behind it is read, wherever it is."""
    _in_file(tmp_path, 20)
    _scribble(tmp_path, first, 0, b"\xff" * 200)
    database = Database(tmp_path)
    found, gaps = _walk(database)
    (after, _), *_, (_, upto) = (gaps[0], *gaps)
    assert gaps == [(gone, gone + 100) for gone in range(after, upto, 100)]
    assert after < first <= upto
    assert upto - after <= 400
    assert found == [*range(1, after + 1), *range(upto + 1, 3_001)]
    database.close()


@pytest.mark.parametrize("first", [150, 1750])
def test_a_page_of_the_index_that_is_broken_costs_the_blocks_in_it(
    tmp_path: Path, first: int
) -> None:
    """Those of one row each stand there as they are."""
    database = Database(tmp_path)
    blocks = [(1, block(token)) for token in range(1, 3_001)]
    database.write(Commit(pairs=[stored(position=3_000)], blocks=blocks))
    database.close()
    _scribble(tmp_path, first, 0, b"\xff" * 200)
    database = Database(tmp_path)
    found, gaps = _walk(database)
    ((after, upto),) = gaps
    assert after < first <= upto
    assert upto - after <= 200
    assert found == [*range(1, after + 1), *range(upto + 1, 3_001)]
    database.close()


def test_reads_that_fail_are_explained(database: Database, tmp_path: Path) -> None:
    _spoil(tmp_path, "ALTER TABLE blocks RENAME TO gone")
    _spoil(tmp_path, "ALTER TABLE pairs RENAME TO gone2")
    _spoil(tmp_path, "ALTER TABLE transactions RENAME TO gone3")
    _spoil(tmp_path, "ALTER TABLE incarnations RENAME TO gone4")
    _spoil(tmp_path, "ALTER TABLE producers RENAME TO gone5")
    for call in (
        lambda: database.page(stored(), 0, 3),
        lambda: list(database.oldest(stored(), 0)),
        database.pairs,
        database.history,
        lambda: database.transaction("s", "t", 0),
        lambda: list(database.producers()),
        database.newest_ms,
        lambda: database.is_trimmed(stored()),
    ):
        with pytest.raises(LogCorrupt, match="no such table"):  # trying again would not help
            call()
    database.close()


def test_a_closed_database_says_so(database: Database) -> None:
    database.close()
    database.close()
    with pytest.raises(LogUnavailable, match="closed"):
        database.pairs()


def test_a_commit_is_on_the_disk_before_it_is_answered(database: Database) -> None:
    """Also in the connection that is made after one that failed."""
    for connection in (database._writer, database._connect()):
        assert connection is not None
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.close()


def many(database: Database, count: int, line_bytes: int = 20_000) -> None:
    """Add *count* blocks of one long row each, which does not get small, after the first one."""
    row = b'["%b"]' % b64encode(random.Random(7).randbytes(line_bytes))[:line_bytes]
    blocks = [(1, render("s", "i", [4 + number], [row], 0)) for number in range(count)]
    size = sum(len(one.lines) for _, one in blocks)
    pair = stored(position=3 + count, rows=count, size_bytes=size)
    database.write(Commit(pairs=[pair], blocks=blocks))


def test_a_commit_trims_a_part_and_says_what_is_left(database: Database) -> None:
    many(database, 600)
    rows = parts = 0
    trims = {1: 601}
    while trims:
        freed = database.write(Commit(trims=trims))
        (pair,) = database.pairs()
        assert pair.floor == 601  # readers of the next process are told from the first part on
        assert database.is_trimmed(pair) == (not freed.unfinished)
        ((_, part, size),) = freed.trimmed
        assert size <= TRIMMED_BYTES + 30_000
        rows += part
        parts += 1
        trims = freed.unfinished
    assert parts > 2
    assert rows == 601
    (pair,) = database.pairs()
    assert pair.rows == 2
    assert tokens(database, 601, 603) == [602, 603]
    database.close()


def test_many_pairs_share_what_one_commit_trims(database: Database) -> None:
    many(database, 400)
    other = StoredPair(2, "s", "j", 1, 0, 1, 10)
    database.write(Commit(pairs=[other], blocks=[(2, block(1))]))
    freed = database.write(Commit(trims={1: 400, 2: 1}))
    assert freed.unfinished == {1: 400, 2: 1}
    while freed.unfinished:
        freed = database.write(Commit(trims=freed.unfinished))
    assert [(pair.floor, pair.rows) for pair in database.pairs()] == [(400, 3), (1, 0)]
    database.close()


def file_bytes(database: Database) -> int:
    """Return the size of the file, once the log beside it is in it."""
    with closing(sqlite3.connect(database.path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return database.path.stat().st_size


def shrink(database: Database) -> int:
    """Remove all rows but the newest, and all pages to spare; return in how many commits."""
    freed = database.write(Commit(trims={1: 1_000_000}))
    commits = 1
    while freed.unfinished or freed.spare:
        freed = database.write(Commit(trims=freed.unfinished, shrink=freed.spare))
        commits += 1
    return commits


def test_the_file_shrinks_to_what_it_holds(database: Database) -> None:
    many(database, 1_500)
    before = file_bytes(database)
    assert shrink(database) > 10
    assert file_bytes(database) < before / 4
    database.close()


def test_a_commit_gives_back_as_many_pages_as_it_says(database: Database) -> None:
    """Not one alone: each commit is an fsync."""
    many(database, 1_500)
    freed = database.write(Commit(trims={1: 1_000_000}))
    while freed.unfinished:
        freed = database.write(Commit(trims=freed.unfinished))
    assert freed.spare
    with closing(sqlite3.connect(database.path)) as connection:
        pages = []
        for _ in range(3):
            pages += connection.execute("PRAGMA page_count").fetchone()
            assert database.write(Commit(shrink=True)).spare
    assert pages[0] - pages[1] == pages[1] - pages[2] == trimming._SHRUNK_PAGES
    database.close()


def test_a_file_of_before_shrinks_too(tmp_path: Path) -> None:
    """One that holds little is converted when it is opened; a large one is left as it is."""
    with mock.patch.object(
        database_module, "SCHEMA", replace(database_module.SCHEMA, shrinks=False)
    ):
        database = Database(tmp_path)
        database.write(Commit(pairs=[stored()], blocks=[(1, block(1, 2, 3))]))
        many(database, 1_500)
        before = file_bytes(database)
        shrink(database)
        assert file_bytes(database) == before
        database.close()
    with mock.patch.object(storage, "CONVERTED_BYTES", 0):
        Database(tmp_path).close()
        assert (tmp_path / DATABASE_NAME).stat().st_size == before
    database = Database(tmp_path)
    assert file_bytes(database) < before / 4
    many(database, 1_500)
    shrink(database)
    assert file_bytes(database) < before / 4
    database.close()


@pytest.mark.parametrize("body", ["CAST(body AS TEXT) || '!'", "'text'", "5", "x''", "1.5"])
def test_a_block_that_is_no_blob_any_longer_is_damaged(
    database: Database, tmp_path: Path, body: str
) -> None:
    """The type of a value is a number in the file, as easily damaged as the value."""
    database.write(Commit(blocks=[(1, block(7, 8)), (1, block(10))]))
    _spoil(tmp_path, f"UPDATE blocks SET body = {body} WHERE last = 8")
    page = database.page(stored(), 3, 20)
    assert page.damage is not None
    assert (page.damage.after, page.damage.upto) == (3, 8)
    assert tokens(database, 8, 20) == [10]
    database.close()


_NUMBER = """
ALTER TABLE incarnations RENAME TO older;
CREATE TABLE incarnations (number TEXT, id TEXT UNIQUE, began_ms INTEGER, ended INTEGER);
INSERT INTO incarnations SELECT number, id, began_ms, ended FROM older;
"""


@pytest.mark.parametrize(
    ("table", "damage"),
    [
        ("pairs", "UPDATE pairs SET position = 'x'"),
        ("incarnations", "UPDATE incarnations SET began_ms = 'x'"),
        ("incarnations", "UPDATE incarnations SET ended = 'x'"),
        ("incarnations", _NUMBER),
        ("beginnings", "INSERT INTO beginnings VALUES (1, 1, 'x')"),
        ("producers", "UPDATE producers SET sequence = 'x'"),
        ("answers", "UPDATE answers SET body = 5"),
        ("answers", "UPDATE answers SET body = 'text'"),
        ("answers", "UPDATE answers SET body = x'c1'"),
        ("answers", "UPDATE answers SET body = x'920191950505010101'"),
        ("times", "UPDATE blocks SET written_ms = 'x'"),
    ],
)
def test_what_is_no_row_of_its_table_is_damage(tmp_path: Path, table: str, damage: str) -> None:
    store = SqliteStore(tmp_path)
    result(store.log.claim("p"))
    result(store.log.append(DURABLE, "master", [row("a")], produced=Produced("p", 1, 1)))
    store.close()
    with closing(sqlite3.connect(tmp_path / DATABASE_NAME)) as connection:
        connection.executescript(damage)
        connection.commit()
    with pytest.raises(LogCorrupt, match=f"a row of {table}.* is none"):
        SqliteStore(tmp_path)


@pytest.mark.parametrize(
    ("table", "damage"),
    [
        ("pairs", "UPDATE pairs SET position = 0"),
        ("pairs", "UPDATE pairs SET position = -1, newest = 0"),
        ("pairs", "UPDATE pairs SET position = 9223372036854775807"),
        ("pairs", "UPDATE pairs SET floor = 2"),
        ("pairs", "UPDATE pairs SET floor = -1"),
        ("pairs", "UPDATE pairs SET instance = 'a b'"),
        ("pairs", "UPDATE pairs SET stream = ''"),
        ("producers", "UPDATE producers SET sequence = -1"),
        ("producers", "UPDATE producers SET epoch = -1"),
    ],
)
def test_what_a_log_cannot_be_at_is_damage(tmp_path: Path, table: str, damage: str) -> None:
    """One that went on there would give tokens out twice, or say what no reader can read."""
    store = SqliteStore(tmp_path)
    result(store.log.claim("p"))
    result(store.log.append(DURABLE, "master", [row("a")], produced=Produced("p", 1, 1)))
    store.close()
    _spoil(tmp_path, damage)
    with pytest.raises(LogCorrupt, match=f"a row of {table} cannot be: .*'.*; stop the process"):
        SqliteStore(tmp_path)


def test_a_transaction_that_is_none_is_damage(database: Database, tmp_path: Path) -> None:
    database.write(Commit(transactions=[("s", "t", Appended("s", "i", 1, 2), 5)]))
    assert database.transaction("s", "t", 0) == Appended("s", "i", 1, 2)
    assert database.transaction("s", "u", 0) is None
    _spoil(tmp_path, "UPDATE transactions SET first = 'x'")
    with pytest.raises(LogCorrupt, match="a row of transactions is none"):
        database.transaction("s", "t", 0)
    database.close()


def test_a_block_without_a_time_is_damaged(database: Database, tmp_path: Path) -> None:
    database.write(Commit(blocks=[(1, block(7, 8)), (1, block(10))]))
    _spoil(tmp_path, "UPDATE blocks SET written_ms = 'x' WHERE last = 8")
    page = database.page(stored(), 3, 20)
    assert page.damage is not None
    assert (page.damage.after, page.damage.upto) == (3, 8)
    assert "has no time" in page.damage.detail
    assert tokens(database, 8, 20) == [10]
    database.close()


def test_a_newest_block_that_is_no_token_is_not_known(database: Database, tmp_path: Path) -> None:
    database.write(Commit(pairs=[stored()], blocks=[(1, block(7, 8))]))
    _spoil(tmp_path, "UPDATE pairs SET newest = 'x'")
    assert tokens(database, 3, 20) == [7, 8]
    database.write(Commit(blocks=[(1, block(10))]))
    assert tokens(database, 3, 20) == [7, 8, 10]
    database.close()
