"""A copy of tables from one side to another, broken off anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tcprepl.errors import LogCorrupt, LogUnavailable
from tcprepl.storage import migration as module
from tcprepl.storage.migration import Kind, Migrated, Progress, Row, Step, Table, migrate
from tcprepl.storage.postgresql import PostgresSchema
from tcprepl.storage.sqlite import Schema

PAIRS = Table("pairs", ("id", "name"), of_pair=True)
BLOCKS = Table("blocks", ("pair", "last", "rows"), key=2, of_pair=True, holds="rows")
WORDS = Table("words", ("word",))
KIND = Kind(
    "log", "f", "lock", Schema(""), PostgresSchema(""), (PAIRS, BLOCKS, WORDS), ("pairs",), ()
)


class Tables:
    """Both sides, in memory, two rows at a time."""

    where = "memory"
    first_id = 101

    def __init__(self, **tables: list[Row]) -> None:
        self.tables: dict[str, list[Row]] = {"pairs": [], "blocks": [], "words": []} | tables
        self.identity = ""
        self.progress: Progress | None = Progress()
        self.refuses_after = 1_000
        self.released = self.finished = False

    def count(self, table: Table) -> int:
        return table.weight(self.tables[table.name])

    def read(self, table: Table, after: tuple[Any, ...] | None) -> list[Row]:
        rows = sorted(self.tables[table.name])
        return [row for row in rows if after is None or row[: table.key] > after][:2]

    def begin(self, identity: str, source: str) -> Progress | None:
        if self.identity not in ("", identity):
            raise LogUnavailable(f"another than {source}")
        self.identity = identity
        return self.progress

    def write(self, table: Table, rows: Sequence[Row], progress: Progress) -> None:
        if not self.refuses_after:
            raise LogUnavailable("full")
        self.refuses_after -= 1
        self.tables[table.name] += rows
        self.progress = Progress.unpacked(progress.packed())

    def release(self) -> None:
        self.released = True

    def finish(self) -> None:
        assert not self.finished
        self.finished = True


def source() -> Tables:
    """Return something to copy."""
    return Tables(
        pairs=[(7, "a"), (9, "b"), (12, "c")],
        blocks=[(pair, last, 10) for pair in (7, 9, 12) for last in (1, 4, 9)],
        words=[(word,) for word in ("", "x", "y")],
    )


WANTED = {
    "pairs": [(101, "a"), (102, "b"), (103, "c")],
    "blocks": [(pair, last, 10) for pair in (101, 102, 103) for last in (1, 4, 9)],
    "words": [("",), ("x",), ("y",)],
}


def test_all_is_copied_compared_and_counted() -> None:
    given, target, told = source(), Tables(), list[Step]()
    moved = migrate(KIND, given, target, told.append)
    assert moved == Migrated({"pairs": 3, "blocks": 90, "words": 3}, 0)
    assert target.tables == WANTED
    assert given.released
    assert target.finished
    assert told[0] == ("copying", 2, 96, 0)
    assert told[-1] == ("comparing", 192, 192, 0)


def test_what_was_broken_off_anywhere_goes_on() -> None:
    for writes in range(9):
        target = Tables()
        target.refuses_after = writes
        with pytest.raises(LogUnavailable):
            migrate(KIND, source(), target, lambda _: None)
        assert not target.finished
        target.refuses_after = 1_000
        assert target.progress is not None
        done = target.progress.done
        assert migrate(KIND, source(), target, lambda _: None).resumed == done
        assert target.tables == WANTED


def test_what_is_complete_is_only_compared() -> None:
    target = Tables(**WANTED)
    target.progress = None
    assert migrate(KIND, source(), target, lambda _: None).resumed == 96
    assert target.finished


@pytest.mark.parametrize("table", ["pairs", "blocks", "words"])
def test_what_is_not_equal_is_not_served(table: str) -> None:
    given, target = source(), Tables(**{name: list(rows) for name, rows in WANTED.items()})
    target.progress = None
    target.tables[table].pop()
    with pytest.raises(LogCorrupt, match=f"table {table}: . rows with .* expected . with .*remove"):
        migrate(KIND, given, target, lambda _: None)
    assert not target.finished
    assert not given.released


def test_a_source_is_known_again() -> None:
    known = module._identity(KIND, source(), {})
    assert module._identity(KIND, source(), {}) == known
    assert module._identity(KIND, source(), {"words": 1}) != known
    other = source()
    other.tables["words"].append(("z",))
    assert module._identity(KIND, other, {}) == known  # only what tells it is looked at
    other.tables["pairs"][0] = (7, "z")
    assert module._identity(KIND, other, {}) != known
