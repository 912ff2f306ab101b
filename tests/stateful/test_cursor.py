"""Cursors against plain lists: whatever happens to a log, nobody misses a row unknowingly.

The model is what the log has published: a list of rows for each pair, spans that were lost, and
spans of damaged blocks. Readers of every kind follow it through appends, moves, trims, gaps of a
relay, restarts, kills, copies that are put back, and damage on the disk, with any limits. After
each answer a reader has exactly the rows of the model up to where its cursor stands, less what
it was told to be missing; a reader of states has, at the head, the state of the writer.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tcprepl import limits
from tcprepl.streams.cursor import AT_HEAD, Cursor, Limits, Restart, Void
from tcprepl.streams.gaps import Cause, Gap, Gaps
from tcprepl.streams.lineage import Lineage
from tcprepl.streams.log import Page
from tcprepl.streams.pages import Reading
from tcprepl.streams.retention import Bounds, Retention
from tcprepl.streams.sqlite_schema import DATABASE_NAME
from tests import postgres_world
from tests.log_kit import (
    DURABLE,
    EPHEMERAL,
    RELAYED,
    STATES,
    LateWorker,
    MemoryStore,
    PostgresStore,
    SqliteStore,
    result,
    rows_in,
    typing,
)

Pair: TypeAlias = tuple[str, str]
Rows: TypeAlias = list[tuple[int, bytes]]
Span: TypeAlias = tuple[int, int]

PAIRS: list[Pair] = [(DURABLE, "a"), (EPHEMERAL, "a"), (STATES, "a"), (RELAYED, "a")]
#: What outlives the process.
ON_DISK = (DURABLE, RELAYED)
#: Most of what happens, happens to what is on the disk.
pairs = st.sampled_from([(DURABLE, "a"), (DURABLE, "a"), *PAIRS])
SMALL = Retention(
    durable=Bounds(max_rows=30),
    ephemeral=Bounds(max_rows=5),
    recent_bytes=120,
    reserved_tokens=10,
)


@dataclass
class Truth:
    """What a log has published.

    Attributes:
        rows: The rows of each pair that it has, or has let go.
        position: Where each pair is.
        lost: Spans that an upstream could not tell.
        damaged: Spans of blocks that were damaged.
    """

    rows: dict[Pair, Rows] = field(default_factory=dict)
    position: dict[Pair, int] = field(default_factory=dict)
    lost: dict[Pair, list[Gap]] = field(default_factory=dict)
    damaged: dict[Pair, list[Span]] = field(default_factory=dict)

    def copy(self) -> Truth:
        """Return it as it is now."""
        return Truth(
            {pair: list(rows) for pair, rows in self.rows.items()},
            dict(self.position),
            {pair: list(gaps) for pair, gaps in self.lost.items()},
            {pair: list(spans) for pair, spans in self.damaged.items()},
        )


class Follower:
    """A reader of one pair, over as many cursors as it takes.

    Attributes:
        at: The token that it has got to.
        rows: What it has got.
        missing: What it was told to be missing.
        state: The newest row of each key that it has got.
    """

    def __init__(self, pair: Pair, *, compacted: bool) -> None:
        self.pair = pair
        self.compacted = compacted
        self.at = 0
        self.start = 0
        self.rows: Rows = []
        self.missing: list[Span] = []
        self.state: dict[str, bytes] = {}
        self.lineage = Lineage()
        self.cursor: Cursor | None = None

    def begin(self, after: int) -> None:
        """Forget what it has above *after*, and read on from there."""
        self.rows = [item for item in self.rows if item[0] <= after]
        self.missing = [
            (low, min(high, after)) for low, high in self.missing if low < min(high, after)
        ]
        self.start = min(self.start, after)
        self.at = after

    def take(self, page: Page) -> None:
        """Take rows."""
        for token, row in rows_in(page):
            self.rows.append((token, row))
            room, _, users = row.decode()[2:].partition('",')
            if users == "[]]":
                self.state.pop(room, None)
            else:
                self.state[room] = row
        self.at = page.upto


class CursorMachine(RuleBasedStateMachine):
    """A log, its operator, and those who follow it."""

    def make(self, where: Path, gaps: Gaps) -> Any:
        """Return a store."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.where = Path(tempfile.mkdtemp())
        self.number = 0
        self.truth = Truth()
        self.copies: list[tuple[Path, Truth]] = []
        self.worker = LateWorker()
        self.followers = [
            Follower(pair, compacted=compacted) for pair in PAIRS for compacted in (False, True)
        ]
        #: So that a page of the disk is a few blocks, and the disk has several pages.
        self.pages = mock.patch.object(limits, "PAGE_ROWS", 9)
        self.pages.start()

    @initialize()
    def start(self) -> None:
        """Open the log."""
        self.open(self.where / "0")

    def open(self, where: Path) -> None:
        """Open the log in *where*, with the gaps that its relay remembers."""
        gaps = Gaps()
        for pair, known in self.truth.lost.items():
            for gap in known:
                gaps.add(pair, gap)
        self.store = self.make(where, gaps)
        for follower in self.followers:
            follower.cursor = None

    def teardown(self) -> None:
        """Close the log, once everybody has caught up."""
        self.catch_up()
        if not isinstance(self.store, MemoryStore):
            self.worker.run()
            self.store.close()
        self.pages.stop()
        shutil.rmtree(self.where)

    # -- what happens to the log -------------------------------------------------------

    @rule(
        pair=pairs,
        what=st.lists(
            st.tuples(st.sampled_from("xyz"), st.sampled_from(["", "@1", "@2"])),
            min_size=1,
            max_size=8,
        ),
        batch=st.booleans(),
    )
    def append(self, pair: Pair, what: list[tuple[str, str]], batch: bool) -> None:
        """Append rows."""
        rows = [typing(f"!{room}", *([user] if user else [])) for room, user in what]
        answer = result(self.store.log.append(*pair, rows, batch=batch))
        tokens = [answer.first] * len(rows) if batch else range(answer.first, answer.last + 1)
        self.truth.rows.setdefault(pair, []).extend(zip(tokens, rows, strict=True))
        self.truth.position[pair] = answer.last

    @rule(pair=pairs, step=st.integers(1, 5))
    def move(self, pair: Pair, step: int) -> None:
        """Move a position without rows."""
        token = self.store.log.position(*pair) + step
        assert result(self.store.log.advance(*pair, token)) is None
        self.truth.position[pair] = token

    @rule(pair=pairs, step=st.integers(1, 5), cause=st.sampled_from([Cause.UPSTREAM, Cause.ANEW]))
    def lose(self, pair: Pair, step: int, cause: Cause) -> None:
        """Go over rows that an upstream could not tell."""
        if pair[0] not in ON_DISK:
            return  # a relay has all of them on disk
        position = self.store.log.position(*pair)
        gap = Gap(position, position + step, cause)
        self.store.log.gaps.add(pair, gap)
        self.truth.lost.setdefault(pair, []).append(gap)
        self.move(pair, step)

    @rule(pair=pairs, back=st.integers(0, 12))
    def trim(self, pair: Pair, back: int) -> None:
        """Forget what is acknowledged."""
        self.store.log.trim(*pair, self.store.log.position(*pair) - back)

    @rule()
    def read_the_disk(self) -> None:
        """Let pages come that are on their way."""
        self.worker.run()

    # -- who follows it ----------------------------------------------------------------

    @rule(
        number=st.integers(0, 2 * len(PAIRS) - 1),
        answers=st.integers(1, 6),
        rows=st.integers(1, 6),
        size=st.sampled_from([1, 60, 200, 9_999]),
        ahead=st.sampled_from([1, 3, 99]),
        anew=st.booleans(),
    )
    def follow(
        self, number: int, answers: int, rows: int, size: int, ahead: int, anew: bool
    ) -> None:
        """Ask for some answers, with a cursor of before or a new one."""
        follower = self.followers[number]
        if anew or follower.cursor is None:
            self.place(follower)
        for _ in range(answers):
            if not self.ask(follower, Limits(follower.at + ahead, rows, size)):
                return

    def place(self, follower: Follower) -> None:
        """Give *follower* a cursor where it is."""
        places = follower.lineage.places(follower.at)
        follower.cursor = self.store.log.cursor(
            follower.pair, follower.at, places, compacted=follower.compacted
        )

    @rule()
    def catch_up(self) -> None:
        """Let everybody come to the head."""
        for follower in self.followers:
            if follower.cursor is None:
                self.place(follower)
            for _ in range(1_000):
                self.worker.run()
                if not self.ask(follower, Limits()) and not self.worker.jobs:
                    break
            assert follower.at == self.store.log.position(*follower.pair)

    @rule(
        number=st.integers(0, 2 * len(PAIRS) - 1),
        beyond=st.one_of(st.integers(1, 9), st.just(limits.MAX_TOKEN)),
    )
    def come_from_elsewhere(self, number: int, beyond: int) -> None:
        """Ask with a token that was never written, or that nobody can write."""
        follower = self.followers[number]
        token = min(self.store.log.position(*follower.pair) + beyond, limits.MAX_TOKEN)
        cursor = self.store.log.cursor(follower.pair, token, compacted=follower.compacted)
        answer = cursor.next()
        assert isinstance(answer, Restart)
        assert (answer.after, answer.why) == (token, Void.AHEAD)
        assert answer.start == cursor.token == self.store.log.restart_point(*follower.pair)

    def ask(self, follower: Follower, asked: Limits) -> bool:
        """Ask once and check the answer; return whether to ask on."""
        assert follower.cursor is not None
        log, pair, before = self.store.log, follower.pair, follower.at
        answer = follower.cursor.next(asked)
        if isinstance(answer, Reading):
            assert not answer.done
            return False
        if answer is AT_HEAD:
            assert before >= min(asked.upto, log.position(*pair))
            self.compare(follower)
            return False
        assert follower.cursor.token != before or isinstance(answer, Restart)
        if isinstance(answer, Restart):
            self.check_restart(follower, answer)
        elif isinstance(answer, Gap):
            assert (answer.after, follower.cursor.token) == (before, answer.upto)
            assert answer.upto <= max(asked.upto, before)
            self.check_gap(pair, answer)
            follower.missing.append((answer.after, answer.upto))
            follower.at = answer.upto
        else:
            assert answer.upto == follower.cursor.token <= asked.upto
            assert len(answer.tokens) <= asked.rows or len(set(answer.tokens)) == 1
            follower.take(answer)
        follower.lineage = follower.lineage.entered(log.history.current, before, follower.at)
        self.compare(follower)
        return True

    def check_restart(self, follower: Follower, answer: Restart) -> None:
        """It had a reason, and says where to go on."""
        log, pair = self.store.log, follower.pair
        assert answer.after == follower.at
        assert follower.cursor is not None
        assert answer.start == follower.cursor.token
        if answer.why is Void.STATES:
            assert pair[0] == STATES
            assert (answer.start, answer.compacted) == (0, True)
            assert answer.held == log.floor(*pair)
        else:
            assert answer.why in (Void.FORKED, Void.AHEAD)
            theirs = [item for item in follower.rows if item[0] <= answer.start]
            truth = [item for item in self.truth.rows.get(pair, []) if item[0] <= answer.start]
            assert answer.compacted or set(theirs) <= set(truth)
        if pair[0] == STATES or (pair[0] == RELAYED and answer.why is Void.FORKED):
            assert answer.start == 0  # a state cannot be undone row by row
        if answer.compacted or answer.why is Void.AHEAD or not answer.start:
            follower.state, follower.rows, follower.missing = {}, [], []
            follower.start = answer.start
        follower.begin(answer.start)

    def check_gap(self, pair: Pair, gap: Gap) -> None:
        """It is one of those that there are, and no larger."""
        if gap.cause is Cause.RETENTION:
            assert gap.upto <= self.store.log.floor(*pair)
        elif gap.cause is Cause.DAMAGE:
            spans = self.truth.damaged[pair]
            tokens = sorted({token for token, _ in self.truth.rows[pair] if token > gap.after})
            # who asks for less than what is damaged is told of a part, which may have no row
            rows = [token for token in tokens if token <= gap.upto] or tokens[:1]
            assert rows
            assert all(any(low < token <= high for low, high in spans) for token in rows)
        else:
            known = self.truth.lost[pair]
            assert any(one.after <= gap.after and gap.upto <= one.upto for one in known)

    def compare(self, follower: Follower) -> None:
        """A reader has what there is up to its token, less what it was told to miss."""
        log, pair = self.store.log, follower.pair
        truth = self.truth.rows.get(pair, [])
        if pair[0] == STATES:
            if follower.at == log.position(*pair) and not follower.missing:
                state: dict[str, bytes] = {}
                for _, row in truth:
                    room, _, users = row.decode()[2:].partition('",')
                    if users == "[]]":
                        state.pop(room, None)
                    else:
                        state[room] = row
                assert follower.state == state
            return
        missed = {token for low, high in follower.missing for token in range(low + 1, high + 1)}
        for gap in self.truth.lost.get(pair, []):
            passed = range(max(gap.after, follower.start) + 1, min(gap.upto, follower.at) + 1)
            assert missed.issuperset(passed)
        assert follower.rows == [
            (token, row)
            for token, row in truth
            if follower.start < token <= follower.at and token not in missed
        ]

    @invariant()
    def nothing_goes_back(self) -> None:
        """Positions are those of the model."""
        for pair, position in self.truth.position.items():
            assert self.store.log.position(*pair) >= position


class MemoryMachine(CursorMachine):
    """A log in memory."""

    def make(self, where: Path, gaps: Gaps) -> Any:
        """Return a store."""
        return MemoryStore(SMALL)


class SqliteMachine(CursorMachine):
    """A log on disk, which ends, is copied, put back and damaged; pages come late."""

    removes: bool | None = None

    def make(self, where: Path, gaps: Gaps) -> Any:
        """Return a store."""
        return SqliteStore(where, SMALL, reading_worker=self.worker, gaps=gaps)

    def leave(self) -> None:
        """Close the log; what was only in memory is gone."""
        self.worker.run()
        self.store.close()
        for pair in PAIRS:
            if pair[0] not in ON_DISK:
                self.truth.rows.pop(pair, None)
                # whoever has them has to be told that they are void
                for follower in self.followers:
                    if follower.pair == pair and pair[0] == EPHEMERAL:
                        follower.rows, follower.start = [], follower.at

    @rule()
    def restart(self) -> None:
        """Close the log and open it again."""
        self.leave()
        self.open(self.store.directory)

    @rule()
    def copy(self) -> None:
        """Keep a copy of the directory, as it is now."""
        self.number += 1
        where = self.where / f"copy{self.number}"
        shutil.copytree(self.store.directory, where)
        self.copies.append((where, self.truth.copy()))

    @precondition(lambda self: self.copies)
    @rule(data=st.data())
    def put_a_copy_back(self, data: st.DataObject) -> None:
        """Go on from a copy of before: what came after it is a future that is lost."""
        kept, truth = data.draw(st.sampled_from(self.copies), label="copy")
        self.leave()
        self.number += 1
        where = self.where / str(self.number)
        shutil.copytree(kept, where)
        self.truth = truth.copy()
        for pair in PAIRS:
            if pair[0] not in ON_DISK:
                self.truth.rows.pop(pair, None)
        self.open(where)

    @rule(data=st.data(), removed=st.booleans())
    def damage_a_block(self, data: st.DataObject, removed: bool) -> None:
        """Change what is on the disk of one block, or take it away.

        One that was taken away is all that is damaged in its log: only what is behind it says that
        it is not there, and while that is read from memory, nobody sees what is in the file.
        """
        if self.removes:
            return
        removed = self.removes = removed if self.removes is None else self.removes
        with closing(sqlite3.connect(self.store.directory / DATABASE_NAME)) as connection:
            found = connection.execute(
                "SELECT stream, instance, pair, last FROM blocks JOIN pairs ON pair = id"
            ).fetchall()
            if not found:
                return
            stream, instance, number, last = data.draw(st.sampled_from(found), label="block")
            (before,) = connection.execute(
                "SELECT max(last) FROM blocks WHERE pair = ? AND last < ?", (number, last)
            ).fetchone()
            change = "DELETE FROM blocks" if removed else "UPDATE blocks SET crc = crc + 1"
            connection.execute(f"{change} WHERE pair = ? AND last = ?", (number, last))
            connection.commit()
        spans = self.truth.damaged.setdefault((stream, instance), [])
        spans.append((before or 0, last))


class PostgresMachine(SqliteMachine):
    """A log in PostgreSQL, to which the same happens."""

    def __init__(self) -> None:
        super().__init__()
        self.url, self.schema = postgres_world.url_of(postgres_world.server(), "postgres"), ""
        self.dumps: list[tuple[postgres_world.Dump, Truth]] = []

    def make(self, where: Path, gaps: Gaps) -> Any:
        """Return a store."""
        self.schema = self.schema or postgres_world.fresh_schema()
        return PostgresStore(self.url, self.schema, SMALL, reading_worker=self.worker, gaps=gaps)

    @rule()
    def restart(self) -> None:
        """Close the log and open it again."""
        self.leave()
        self.open(self.where)

    @rule()
    def copy(self) -> None:
        """Keep a copy of the database, as it is now."""
        self.dumps.append((postgres_world.dump(self.url, self.schema), self.truth.copy()))

    @precondition(lambda self: self.dumps)
    @rule(data=st.data())
    def put_a_copy_back(self, data: st.DataObject) -> None:
        """Go on from a copy of before: what came after it is a future that is lost."""
        number = data.draw(st.integers(0, len(self.dumps) - 1), label="copy")
        self.leave()
        kept, truth = self.dumps[number]
        postgres_world.restore(self.url, self.schema, kept)
        self.truth = truth.copy()
        for pair in PAIRS:
            if pair[0] not in ON_DISK:
                self.truth.rows.pop(pair, None)
        self.open(self.where)

    @rule(data=st.data())
    def damage_a_block(self, data: st.DataObject) -> None:
        """Change what is on the disk of one block."""
        found = postgres_world.sql(
            self.url,
            self.schema,
            "SELECT stream, instance, pair, last, (SELECT max(last) FROM blocks AS earlier"
            " WHERE earlier.pair = blocks.pair AND earlier.last < blocks.last)"
            " FROM blocks JOIN pairs ON pair = id ORDER BY pair, last",
        )
        if not found:
            return
        stream, instance, number, last, before = data.draw(st.sampled_from(found), label="block")
        postgres_world.sql(
            self.url,
            self.schema,
            "UPDATE blocks SET crc = crc + 1 WHERE pair = %s AND last = %s",
            (number, last),
        )
        spans = self.truth.damaged.setdefault((stream, instance), [])
        spans.append((before or 0, last))


#: Commits that reach the disk take their time.
_FEWER = settings(max_examples=max(10, settings.default.max_examples // 3))

TestMemoryCursors = MemoryMachine.TestCase
TestSqliteCursors = SqliteMachine.TestCase
TestSqliteCursors.settings = _FEWER

TestPostgresCursors = pytest.mark.postgresql(PostgresMachine.TestCase)
TestPostgresCursors.settings = settings(
    _FEWER, max_examples=max(5, settings.default.max_examples // 10)
)
