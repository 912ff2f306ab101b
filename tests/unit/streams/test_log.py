"""Every store does what the log promises."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from tcprepl.streams.blocks import render
from tcprepl.streams.log import Page, line_ends, row_of
from tcprepl.streams.retention import Retention
from tests.log_kit import CHECKS, Make, SqliteStore, Store, check_log, make_memory
from tests.postgres_world import make_postgresql


def _on_disk(directory: Path, with_clock: bool) -> Make:
    numbers = itertools.count()

    @contextlib.contextmanager
    def make(retention: Retention | None = None) -> Iterator[Store]:
        store = SqliteStore(
            directory / str(next(numbers)), retention, Clock() if with_clock else None
        )
        try:
            yield store
        finally:
            store.close()

    return make


_POSTGRESQL = [
    pytest.param(name, marks=pytest.mark.postgresql) for name in ("postgresql", "postgresql-turns")
]


@pytest.fixture(params=["memory", "sqlite", "sqlite-turns", *_POSTGRESQL])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Make stores of each kind."""
    if request.param == "memory":
        return make_memory
    if request.param.startswith("postgresql"):
        return partial(make_postgresql, with_clock=request.param.endswith("turns"))
    return _on_disk(tmp_path, request.param == "sqlite-turns")


@pytest.mark.parametrize("promise", CHECKS.values(), ids=CHECKS.keys())
def test_the_log_keeps_its_promises(promise: Callable[[Make], None], make: Make) -> None:
    promise(make)


def test_the_kit_runs_all_checks_in_one_call() -> None:
    check_log(make_memory)


def test_a_page_gives_rows_and_tokens() -> None:
    block = render("typing", "master", [1, 1, 2], [b'["a b",[]]', b"[1]", b"[ 2 ]"], 5)
    page = Page(block.tokens, block.lines, 2, False)
    assert list(page.rows()) == [(1, b'["a b",[]]'), (1, b"[1]"), (2, b"[ 2 ]")]
    assert (block.first, block.last) == (1, 2)


def test_ends_are_just_past_each_line() -> None:
    lines = [b"RDATA s i 1 []\n", b"\n", b"RDATA s i 10 [1]\n"]
    assert line_ends(b"".join(lines)) == [15, 16, 33]
    assert line_ends(b"") == []
    assert row_of(b"RDATA s i 10 [ 1, 2 ]") == b"[ 1, 2 ]"
