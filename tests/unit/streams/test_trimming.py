"""What has to go goes; what a damaged file keeps of it keeps nobody from writing."""

from __future__ import annotations

import random
import sqlite3
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from tcprepl.errors import LogUnavailable
from tcprepl.streams import trimming
from tcprepl.streams.blocks import render
from tcprepl.streams.damaged_file import attempted, end_of_damage
from tcprepl.streams.database import Database
from tcprepl.streams.engine import Commit, Freed, StoredPair
from tcprepl.streams.log import Appended, Block
from tcprepl.streams.sqlite_schema import DATABASE_NAME
from tcprepl.streams.trimming import Trimming

PAGE = 8_192
#: A pair whose file is damaged, and one beside it.
OURS, THEIRS = 1, 2


def row(number: int, size: int) -> bytes:
    """Return a row that does not get small."""
    return b'["%b"]' % b64encode(random.Random(number).randbytes(size))[:size]


def append(pair: int, first: int, count: int, size: int) -> Commit:
    """Return a commit of blocks of one row each."""
    tokens = range(first, first + count)
    blocks = [(pair, render("s", str(pair), [n], [row(n, size)], 1_234)) for n in tokens]
    counts = count, sum(len(block.lines) for _, block in blocks)
    return Commit([StoredPair(pair, "s", str(pair), tokens[-1], 0, *counts)], blocks)


class File:
    """The file of a log, opened and closed at will.

    Attributes:
        path: Where it is.
        database: The database while it is open.
    """

    def __init__(self, where: Path) -> None:
        self.path = where / DATABASE_NAME
        self._where = where
        self.database = Database(where)

    def write(self, *commits: Commit) -> list[Freed]:
        """Write *commits*."""
        return [self.database.write(commit) for commit in commits]

    def ask(self, statement: str) -> list[tuple[int, ...]]:
        """Return what the file says."""
        with closing(sqlite3.connect(self.path)) as connection:
            found = connection.execute(statement).fetchall()
            connection.commit()
            return found

    def close(self) -> None:
        """Close it: nothing stands beside it any more."""
        self.database.close()
        self.ask("PRAGMA wal_checkpoint(TRUNCATE)")

    def damage(self, change: Callable[[bytearray], None]) -> None:
        """Change bytes of it while nobody has it open."""
        self.close()
        content = bytearray(self.path.read_bytes())
        change(content)
        self.path.write_bytes(content)
        self.database = Database(self._where)

    def trim(self, floor: int, commit: Commit | None = None) -> Freed:
        """Remove blocks of ours up to *floor*, along with *commit*; return all that came of it."""
        all_of_it = Freed()
        trims = {OURS: floor}
        for number in range(200):
            one = commit if commit is not None and not number else Commit()
            one.trims, one.shrink = trims, True
            freed = self.database.write(one)
            all_of_it.trimmed += freed.trimmed
            all_of_it.damaged += freed.damaged
            trims = freed.unfinished
            if not trims:
                return all_of_it
        raise AssertionError(f"it does not end: {all_of_it.damaged[-3:]}")

    def lasts(self, pair: int) -> list[int]:
        """Return the tokens of the pair's blocks that can be read."""
        with closing(sqlite3.connect(self.path)) as connection:
            found: list[int] = []
            try:
                statement = "SELECT last FROM blocks WHERE pair = ? ORDER BY last DESC"
                found.extend(last for (last,) in connection.execute(statement, (pair,)))
            except sqlite3.DatabaseError:
                found.append(-1)
            return found[::-1]

    def counts(self, pair: int) -> tuple[int, ...]:
        """Return what the file says of rows and bytes of the pair."""
        return self.ask(f"SELECT rows, bytes FROM pairs WHERE id = {pair}")[0]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    made = File(tmp_path)
    yield made
    made.database.close()


def page_of(content: bytearray, some: bytes) -> int:
    """Return where the page begins that holds *some*."""
    at = content.find(some)
    assert at >= 0
    return at // PAGE * PAGE


def break_page_of(some: bytes, content: bytearray) -> None:
    """Make the page with *some* one of no kind there is."""
    content[page_of(content, some)] = 0x77


def invert_pointer_map(content: bytearray) -> None:
    """Make page 2, which says whose each page is, say something else of all of them."""
    content[PAGE : 2 * PAGE] = bytes(byte ^ 0xFF for byte in content[PAGE : 2 * PAGE])


def expected(*commits: Commit, above: int = 0) -> tuple[int, int]:
    """Return rows and bytes of what *commits* hold above a token."""
    held = [block for one in commits for _, block in one.blocks if block.last > above]
    return sum(len(block.tokens) for block in held), sum(len(block.lines) for block in held)


def body_of(file: File, last: int) -> bytes:
    """Return the first bytes of the body of a block of ours that stands apart."""
    ((body,),) = file.ask(
        f"SELECT bodies.body FROM blocks JOIN bodies ON bodies.id = blocks.body"
        f" WHERE pair = {OURS} AND last = {last}"
    )
    assert isinstance(body, bytes)
    return body[:60]


def test_a_broken_page_of_bodies_keeps_its_bodies_alone(file: File) -> None:
    ours, theirs = append(OURS, 1, 60, 3_000), append(THEIRS, 1, 3, 3_000)
    file.write(ours, theirs)
    file.damage(partial(break_page_of, body_of(file, 11)))
    more = append(THEIRS, 4, 3, 3_000)
    freed = file.trim(40, more)
    assert file.lasts(OURS) == [*range(41, 61)]
    assert file.lasts(THEIRS) == [1, 2, 3, 4, 5, 6]
    assert file.counts(OURS) == expected(ours, above=40)
    assert file.counts(THEIRS) == expected(theirs, more)
    assert sum(rows for _, rows, _ in freed.trimmed) == 40
    # All blocks are gone, so nothing is left to be told.
    assert [words for pair, words in freed.damaged if pair is not None] == []
    file.trim(60)
    assert file.lasts(OURS) == []
    assert file.counts(OURS) == (0, 0)


def test_a_broken_page_of_blocks_is_passed_over(file: File) -> None:
    ours, theirs = append(OURS, 1, 3_000, 40), append(THEIRS, 1, 3, 40)
    file.write(ours, theirs)
    file.damage(partial(break_page_of, row(1_500, 40)[2:]))
    more = append(THEIRS, 4, 3, 40)
    freed = file.trim(2_900, more)
    assert [pair for pair, _ in freed.damaged] == [OURS]
    left = file.lasts(OURS)
    assert left[-100:] == [*range(2_901, 3_001)]
    assert len(left) < 300  # a page beside the broken one cannot be emptied either
    assert file.lasts(THEIRS) == [1, 2, 3, 4, 5, 6]
    # What cannot be removed counts no more, or retention would let go of all that comes.
    assert file.counts(OURS) == expected(ours, above=2_900)
    pair = file.database.pairs()[0]
    assert not file.database.is_trimmed(pair)
    # A process that starts tries again, and passes it over as well.
    file.damage(lambda content: None)
    pair = file.database.pairs()[0]
    assert not file.database.is_trimmed(pair)
    assert file.trim(2_950).damaged
    assert file.counts(OURS) == expected(ours, above=2_950)
    assert file.trim(2_960).damaged == []


def test_what_stands_behind_damage_counts(file: File) -> None:
    """Or a process that is started each day would keep another week each time."""
    file.write(append(OURS, 1, 3_000, 40))
    file.damage(partial(break_page_of, row(1_500, 40)[2:]))
    assert file.trim(1_450).damaged, "the page beside the broken one cannot be emptied"
    held = [rows for last, rows, *_ in file.database.oldest(file.database.pairs()[0], 1_450)]
    rows, size = file.counts(OURS)
    assert 2_900 - 1_450 < sum(held) <= rows < sum(held) + 100
    assert size == rows * expected(append(OURS, 2_000, 1, 40))[1]


@pytest.mark.parametrize("size", [40, 3_000, 30_000])
def test_pages_whose_owners_are_not_known_keep_nobody_from_writing(file: File, size: int) -> None:
    file.write(append(OURS, 1, 800, size), append(THEIRS, 1, 3, size))
    file.damage(invert_pointer_map)
    told = []
    for number in range(5):
        more = append(THEIRS, 4 + number, 1, size)
        told += file.trim(100 + 150 * number, more).damaged
    told += file.trim(790).damaged
    assert file.lasts(THEIRS) == [*range(1, 9)]
    # Giving pages back is tried once.
    assert len([words for _, words in told if "given back" in words]) <= 1


def test_a_disk_that_refuses_is_no_damage(file: File) -> None:
    file.write(append(OURS, 1, 3, 3_000))
    failing = mock.patch.object(
        trimming, "delete_blocks", side_effect=sqlite3.OperationalError("database or disk is full")
    )
    with failing, pytest.raises(LogUnavailable):
        file.database.write(Commit(trims={OURS: 2}))
    assert file.lasts(OURS) == [1, 2, 3]
    assert file.trim(2).damaged == []
    assert file.lasts(OURS) == [3]


def test_a_disk_that_refuses_to_clean_around_damage_has_written_all_else(file: File) -> None:
    """What was to go comes again, but for what has gone."""
    theirs = append(THEIRS, 1, 10, 3_000)
    file.write(append(OURS, 1, 60, 3_000), theirs)
    file.damage(partial(break_page_of, body_of(file, 11)))
    more = append(THEIRS, 11, 3, 3_000)
    more.trims, more.shrink = {THEIRS: 4, OURS: 40}, True
    full = sqlite3.OperationalError("database or disk is full")
    with mock.patch.object(Trimming, "_trim_around", side_effect=full):
        (freed,) = file.write(more)
    assert (freed.unfinished, freed.spare, freed.damaged) == ({OURS: 40}, True, [])
    assert [(pair, rows) for pair, rows, _ in freed.trimmed] == [(THEIRS, 4)]
    assert file.lasts(THEIRS) == [*range(5, 14)]
    assert file.counts(THEIRS) == expected(theirs, more, above=4)
    file.trim(40)
    assert file.lasts(OURS) == [*range(41, 61)]


def test_what_the_system_refuses_is_not_told_as_damage(file: File) -> None:
    file.write(append(OURS, 1, 60, 40))
    pair = file.database.pairs()[0]
    reader, writer = file.database._read_connection, file.database._writer
    assert writer is not None
    reader.set_progress_handler(lambda: 1, 1)  # it is interrupted
    with pytest.raises(LogUnavailable, match="interrupted"):
        list(file.database.oldest(pair, 0))
    with pytest.raises(LogUnavailable, match="interrupted"):
        file.database.is_trimmed(pair)
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        end_of_damage(reader, OURS, 0, 60)
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        trimming._oldest(reader, OURS, 0, 60)
    with pytest.raises(sqlite3.OperationalError, match="database is locked"):
        attempted(writer, mock.Mock(side_effect=sqlite3.OperationalError("database is locked")))


@pytest.mark.parametrize(
    "change",
    [
        "rows = 'x'",
        "rows = -5",
        "bytes = x'01'",
        "bytes = bytes | (1 << 40)",
        "rows = rows + 1000000",
        "written_ms = 'x'",
        "rows = 1.5, bytes = 'y', written_ms = 2.5",
    ],
)
def test_a_count_that_is_none_stops_nothing(file: File, change: str) -> None:
    """It may be wrong for a while; once its block has gone it is right."""
    ours = append(OURS, 1, 9, 3_000)
    file.write(ours)
    file.ask(f"UPDATE blocks SET {change} WHERE last = 4")
    pair = file.database.pairs()[0]
    found = list(file.database.oldest(pair, 0))
    assert [last for last, *_ in found] == [*range(1, 10)]
    assert all(type(value) is int and value >= 0 for one in found for value in one)
    file.trim(5)
    assert file.lasts(OURS) == [6, 7, 8, 9]
    assert file.counts(OURS) == expected(ours, above=5)
    file.trim(9)
    assert file.counts(OURS) == (0, 0)


@pytest.mark.parametrize("change", ["rows = 'x'", "bytes = -3", "rows = NULL"])
def test_counts_of_a_pair_that_are_none_are_counted_anew(file: File, change: str) -> None:
    ours = append(OURS, 1, 9, 3_000)
    file.write(ours)
    with closing(sqlite3.connect(file.path)) as connection:
        # a bit of the file that has turned asks for no constraint
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET sql = replace(sql, ' NOT NULL', '')")
        connection.commit()
    file.ask(f"UPDATE pairs SET {change}")
    file.trim(5)
    assert file.counts(OURS) == expected(ours, above=5)


def test_what_cannot_be_read_is_a_block_of_nothing_to_retention(file: File) -> None:
    """It is older than all, and goes in its turn."""
    file.write(append(OURS, 1, 3_000, 40))
    file.damage(partial(break_page_of, row(1_500, 40)[2:]))
    pair = file.database.pairs()[0]
    found = list(file.database.oldest(pair, 0))
    (broken,) = [number for number, one in enumerate(found) if one[1:] == (0, 0, 0)]
    lasts = [last for last, *_ in found]
    assert lasts == [*range(1, lasts[broken - 1] + 1), *range(lasts[broken], 3_001)]
    assert 1 < broken < 1_500 <= lasts[broken] < 1_700


def test_damage_that_a_file_begins_with_may_be_what_is_to_go(file: File) -> None:
    file.write(append(OURS, 1, 3_000, 40))
    file.damage(partial(break_page_of, row(1, 40)[2:]))
    pair = file.database.pairs()[0]
    assert not file.database.is_trimmed(replace(pair, floor=1))
    told = file.trim(1).damaged
    assert [words.partition(":")[0] for _, words in told] == [
        "blocks cannot all be removed, the first of them up to token 1"
    ]


def test_the_newest_rows_are_not_given_up_for_what_cannot_be_read(file: File) -> None:
    """They may be in memory."""
    file.write(append(OURS, 1, 3_000, 40))
    file.damage(partial(break_page_of, row(3_000, 40)[2:]))
    pair = file.database.pairs()[0]
    assert all(rows for _, rows, _, _ in file.database.oldest(pair, 0))


def test_a_block_whose_token_is_none_stands_behind_all(file: File) -> None:
    ours = append(OURS, 1, 5, 3_000)
    file.write(ours)
    file.ask("UPDATE blocks SET last = 'x' WHERE last = 5")
    pair = file.database.pairs()[0]
    assert [last for last, *_ in file.database.oldest(pair, 0)] == [1, 2, 3, 4]
    file.trim(5)
    assert file.ask("SELECT last FROM blocks") == [("x",)]


def test_ids_of_transactions_that_cannot_be_removed_keep_nobody_from_writing(file: File) -> None:
    answers = [("s", f"transaction-{n:09}", Appended("s", "1", 1, 1), 50) for n in range(2_000)]
    file.write(Commit(transactions=answers))
    file.damage(partial(break_page_of, b"transaction-000001000"))
    commit = append(OURS, 1, 3, 40)
    commit.expire_before_ms = 60
    (freed,) = file.write(commit)
    assert [pair for pair, words in freed.damaged if "transaction ids" in words] == [None]
    assert file.lasts(OURS) == [1, 2, 3]


def test_the_system_has_the_pages_back_once_the_last_of_them_is_given(file: File) -> None:
    """Not only when the next thousand pages have been written."""
    file.write(append(OURS, 1, 400, 20_000))
    file.close()
    file.database = Database(file.path.parent)
    before = file.path.stat().st_size
    file.trim(400)
    freed = Freed(spare=True)
    while freed.spare:
        (freed,) = file.write(Commit(shrink=True))
    assert freed.shrunk
    assert file.path.stat().st_size < before / 2
    (freed,) = file.write(Commit(shrink=True))
    assert not freed.shrunk


def test_blocks_of_nobody(file: File) -> None:
    """Where the row of a pair is gone there is nothing to count."""
    file.write(Commit(blocks=[(OURS, Block("s", "1", [1], b"x\n", 5))]))
    assert file.trim(1).trimmed == [(OURS, 0, 0)]
    assert file.lasts(OURS) == []
