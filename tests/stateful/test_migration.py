"""Any log, migrated at any moment, is the log that it was, for whoever reads or writes.

The machine of `tests.stateful.test_log` goes on with the log on the other engine: whatever it knows
of rows, floors, positions, states and transaction ids has to hold there. And the log that was left
is opened beside it: to a reader with any cursor they are one.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any, TypeAlias

import pytest
from hypothesis import settings
from hypothesis.stateful import precondition, rule

from tcprepl.errors import StreamError
from tcprepl.ids import IncarnationId
from tcprepl.storage.migrating_postgres import PostgresSource, PostgresTarget
from tcprepl.storage.migrating_sqlite import SqliteSource, SqliteTarget
from tcprepl.storage.migration import migrate
from tcprepl.streams.log import Log
from tcprepl.streams.migration import LOG
from tests import postgres_world
from tests.log_kit import PostgresStore, SqliteStore, rows_in
from tests.stateful.test_log import SMALL, SqliteMachine

#: What a reader with a cursor gets: the rows of a page and where it ends; or why it gets none.
Got: TypeAlias = tuple[Any, ...]


def got(log: Log, pair: tuple[str, str], after: int, *, compacted: bool) -> Got:
    """Return what a reader gets at a token."""
    try:
        page = log.read(*pair, after, log.position(*pair), limit_rows=5, compacted=compacted)
    except StreamError as error:
        return type(error).__name__, getattr(error, "held", None)
    return rows_in(page), page.upto, page.limited


def observed(log: Log, known: list[IncarnationId]) -> dict[Any, Any]:
    """Return all that readers can notice: with each cursor, from each incarnation."""
    found: dict[Any, Any] = {"gaps": [(pair, gap.after, gap.upto) for pair, gap in log.gaps]}
    for pair in log.pairs():
        position = log.position(*pair)
        found[pair] = position, log.floor(*pair), log.restart_point(*pair)
        tokens = sorted({0, *range(max(0, position - 40), position + 2)})
        for token in tokens:
            for compacted in (False, True):
                found[pair, token, compacted] = got(log, pair, token, compacted=compacted)
            for incarnation in known:
                found[pair, token, incarnation] = log.history.shared(pair, token, incarnation)
    return found


class MigratingMachine(SqliteMachine):
    """A log that goes from a directory to PostgreSQL, and from there to another directory."""

    def _side(self, store: Any) -> Any:
        """Open what is copied from; nobody has it."""
        if isinstance(store, SqliteStore):
            return SqliteSource(store.directory, LOG)
        source = PostgresSource(store.url, store.schema, LOG)
        source.open("elsewhere")
        return source

    @precondition(lambda self: self.store is not None)
    @rule()
    def move(self) -> None:
        """Close the log, and go on with it on the other engine."""
        left = self.store
        left.close()
        self.number += 1
        if isinstance(left, SqliteStore):
            url = postgres_world.url_of(postgres_world.server(), "postgres")
            schema = postgres_world.fresh_schema()
            with (
                closing(self._side(left)) as source,
                closing(PostgresTarget(url, schema, LOG, "master")) as target,
            ):
                migrate(LOG, source, target, lambda _: None)
            moved: Any = PostgresStore(url, schema, SMALL, now_ms=left.now_ms)
        else:
            where = self.where / str(self.number)
            with (
                closing(self._side(left)) as source,
                closing(SqliteTarget(where, LOG)) as target,
            ):
                migrate(LOG, source, target, lambda _: None)
            moved = SqliteStore(where, SMALL, now_ms=left.now_ms)
        left.open()
        known = [one.id for one in left.log.history.incarnations[-5:-1]]
        assert observed(moved.log, known) == observed(left.log, known)
        left.close()
        self.store = moved
        self._process_ended()

    @precondition(lambda self: self.store is not None)
    @rule()
    def kill(self) -> None:
        """Go on from what is stored, as after a SIGKILL."""
        if isinstance(self.store, SqliteStore):
            super().kill()
            return
        postgres_world.lapse(self.store.url, self.store.schema)
        self.store.log._database._writing.close()
        self.store.log._database._reading.close()
        self.store.open()
        self._process_ended()


TestMigratedLog = pytest.mark.postgresql(MigratingMachine.TestCase)
TestMigratedLog.settings = settings(
    max_examples=max(3, settings.default.max_examples // 20), stateful_step_count=25
)
