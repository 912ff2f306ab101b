"""A log against plain lists: restarts, kills, a disk that refuses, trims, limits, states.

The model is what was acknowledged. Whatever happens, a read from the floor gives exactly
that, tokens never go back, and a reader of states that begins at the restart point, goes on
page by page while everything else happens, and begins again when told to, ends with the
state of somebody who has read every row.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from twisted.internet.task import Clock

from tcprepl.errors import LogUnavailable, TokenOrder, TokenTooOld
from tcprepl.streams.blocks import rows_of
from tcprepl.streams.log import Block
from tcprepl.streams.retention import Bounds, Retention
from tests import postgres_world
from tests.log_kit import (
    DURABLE,
    EPHEMERAL,
    STATES,
    MemoryStore,
    PostgresStore,
    SqliteStore,
    read_all,
    result,
    rows_in,
    typing,
)

Pair: TypeAlias = tuple[str, str]

pairs = st.sampled_from([(DURABLE, "a"), (DURABLE, "b"), (EPHEMERAL, "a"), (STATES, "a")])
changes = st.lists(
    st.tuples(st.sampled_from("xyz"), st.sampled_from(["", "@1", "@2"])), min_size=1, max_size=6
)
SMALL = Retention(
    durable=Bounds(max_rows=12, max_age_s=100),
    ephemeral=Bounds(max_rows=5, max_age_s=100),
    recent_bytes=150,
    reserved_tokens=10,
)


class StateReader:
    """Follows the stream of states, a page at a time."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget everything."""
        self.after = 0
        self.compacted = True
        self.state: dict[str, str] = {}

    def take(self, rows: list[tuple[int, bytes]]) -> None:
        """Apply rows."""
        for _, row in rows:
            room, _, users = row.decode()[2:].partition('",')
            if users == "[]]":
                self.state.pop(room, None)
            else:
                self.state[room] = users


class LogMachine(RuleBasedStateMachine):
    """Writers, readers and an operator at one log."""

    make: Callable[..., Any]

    def __init__(self) -> None:
        super().__init__()
        self.where = Path(tempfile.mkdtemp())
        self.number = 0
        self.store: Any = None
        self.published: dict[Pair, list[tuple[int, bytes]]] = {}
        self.highest: dict[Pair, int] = {}
        # the highest token that this process gave out, to refused rows too
        self.given = 0
        self.floors: dict[Pair, int] = {}
        self.heard: list[tuple[Pair, int, bytes]] = []
        self.expected: list[tuple[Pair, int, bytes]] = []
        self.count = 0

    @initialize()
    def start(self) -> None:
        """Open the log."""
        self.store = type(self).make(self.where / "0")
        self.reader = StateReader()
        self.listen()

    def listen(self) -> None:
        """Hear what is published."""

        def hear(block: Block) -> None:
            pair = (block.stream, block.instance)
            for token, row in zip(block.tokens, rows_of(block), strict=True):
                self.heard.append((pair, token, row))

        self.store.log.add_listener(hear)

    def teardown(self) -> None:
        """Close the log."""
        if not isinstance(self.store, MemoryStore):
            self.store.close()
        shutil.rmtree(self.where)

    def _publish(self, pair: Pair, rows: list[bytes], **kwargs: Any) -> None:
        answered = self.store.log.append(*pair, rows, **kwargs)
        self.store.settle()
        answer = result(answered)
        if kwargs.get("tokens"):
            tokens = kwargs["tokens"]
        elif kwargs.get("batch"):
            tokens = [answer.first] * len(rows)
        else:
            tokens = list(range(answer.first, answer.last + 1))
        assert (answer.first, answer.last) == (tokens[0], tokens[-1])
        assert answer.first > self.highest.get(pair, 0)
        self.highest[pair] = answer.last
        new = list(zip(tokens, rows, strict=True))
        self.published.setdefault(pair, []).extend(new)
        self.expected += [(pair, token, row) for token, row in new]

    def _rows(self, what: list[tuple[str, str]]) -> list[bytes]:
        return [typing(f"!{room}", *([user] if user else [])) for room, user in what]

    @rule(pair=pairs, what=changes, batch=st.booleans())
    def append(self, pair: Pair, what: list[tuple[str, str]], batch: bool) -> None:
        """Append rows."""
        self._publish(pair, self._rows(what), batch=batch)

    @rule(pair=pairs, what=changes, steps=st.lists(st.integers(0, 3), min_size=6, max_size=6))
    def append_with_tokens(self, pair: Pair, what: list[tuple[str, str]], steps: list[int]) -> None:
        """Append rows with tokens of their own."""
        token = max(self.store.log.position(*pair), self.given) + 20
        tokens = []
        for index, _ in enumerate(what):
            token += steps[index] if index else 1
            tokens.append(token)
        self._publish(pair, self._rows(what), tokens=tokens)

    @rule(pair=pairs, counts=st.lists(st.integers(1, 4), min_size=2, max_size=5))
    def append_at_once(self, pair: Pair, counts: list[int]) -> None:
        """Append several times within one turn."""
        calls = []
        for count in counts:
            rows = self._rows([("x", "@1")] * count)
            calls.append((rows, self.store.log.append(*pair, rows)))
        self.store.settle()
        for rows, answered in calls:
            answer = result(answered)
            assert answer.last - answer.first + 1 == len(rows)
            assert answer.first > self.highest.get(pair, 0)
            self.highest[pair] = answer.last
            new = list(zip(range(answer.first, answer.last + 1), rows, strict=True))
            self.published.setdefault(pair, []).extend(new)
            self.expected += [(pair, token, row) for token, row in new]

    @rule(pair=pairs, back=st.integers(0, 5))
    def append_backwards(self, pair: Pair, back: int) -> None:
        """Try to go back."""
        position = self.store.log.position(*pair)
        with pytest.raises(TokenOrder) as caught:
            self.store.log.append(*pair, [b"[]"], tokens=[position - back])
        assert caught.value.held >= position

    @rule(pair=pairs, step=st.integers(0, 30))
    def advance(self, pair: Pair, step: int) -> None:
        """Move a position without rows."""
        given = self.given if pair == (DURABLE, "a") else 0
        token = max(self.store.log.position(*pair), self.highest.get(pair, 0), given) + step
        moved = self.store.log.advance(*pair, token)
        self.store.settle()
        assert result(moved) is None
        assert self.store.log.position(*pair) == token
        self.highest[pair] = token

    @rule(pair=pairs, what=changes)
    def retry(self, pair: Pair, what: list[tuple[str, str]]) -> None:
        """Publish with a transaction id, twice."""
        self.count += 1
        name = f"t{self.count}"
        self._publish(pair, self._rows(what), transaction_id=name)
        again = self.store.log.append(*pair, self._rows(what), transaction_id=name)
        self.store.settle()
        assert result(again).last == self.highest[pair]

    @rule(pair=pairs, back=st.integers(0, 8))
    def trim(self, pair: Pair, back: int) -> None:
        """Forget what is acknowledged."""
        upto = self.store.log.position(*pair) - back
        floor = self.store.log.floor(*pair)
        self.store.log.trim(*pair, upto)
        self.store.settle()
        assert self.store.log.floor(*pair) == max(floor, upto)

    @rule(seconds=st.sampled_from([1, 40, 200]))
    def let_time_pass(self, seconds: int) -> None:
        """Let rows grow old."""
        self.store.now_ms += seconds * 1_000
        self.store.log.expire()
        self.store.settle()

    @rule(
        pair=pairs,
        back=st.integers(0, 15),
        ahead=st.integers(0, 5),
        limit_rows=st.integers(1, 8),
        limit_bytes=st.sampled_from([1, 60, 200, 9_999]),
    )
    def read(self, pair: Pair, back: int, ahead: int, limit_rows: int, limit_bytes: int) -> None:
        """Read a part, page by page."""
        log = self.store.log
        after = max(log.floor(*pair), log.position(*pair) - back)
        upto = after + ahead
        found = read_all(
            log, pair[0], after, upto, pair[1], limit_rows=limit_rows, limit_bytes=limit_bytes
        )
        assert found == [item for item in self.published.get(pair, []) if after < item[0] <= upto]

    @rule(pair=pairs, below=st.integers(1, 5))
    def read_what_is_gone(self, pair: Pair, below: int) -> None:
        """Be told that rows are gone."""
        floor = self.store.log.floor(*pair)
        if floor - below < 0:
            return
        with pytest.raises(TokenTooOld) as caught:
            self.store.log.read(*pair, floor - below, floor + 9)
        assert caught.value.held == floor

    @rule(pages=st.integers(1, 4), limit_rows=st.integers(1, 4))
    def read_states(self, pages: int, limit_rows: int) -> None:
        """Read states on, and begin again when told to."""
        pair = (STATES, "a")
        for _ in range(pages):
            reader = self.reader
            try:
                page = self.store.log.read(
                    *pair,
                    reader.after,
                    self.store.log.position(*pair),
                    limit_rows=limit_rows,
                    compacted=reader.compacted,
                )
            except TokenTooOld:
                reader.begin()
                assert self.store.log.restart_point(*pair) == 0
                continue
            reader.take(rows_in(page))
            reader.after = page.upto
            reader.compacted = page.limited
            if not page.limited:
                self.check_states()

    def check_states(self) -> None:
        """A reader at the head has the state of one who has read everything."""
        complete = StateReader()
        complete.take(self.published.get((STATES, "a"), []))
        assert self.reader.state == complete.state

    @invariant()
    def everything_acknowledged_is_there(self) -> None:
        """What is above the floor is complete, and positions and floors never go back."""
        if self.store is None:
            return
        log = self.store.log
        assert self.heard == self.expected
        for pair, rows in self.published.items():
            floor, position = log.floor(*pair), log.position(*pair)
            assert self.floors.get(pair, 0) <= floor <= position
            assert position >= (rows[-1][0] if rows else 0)
            self.floors[pair] = floor
            found = read_all(log, pair[0], floor, instance=pair[1])
            assert found == [item for item in rows if item[0] > floor]


class MemoryMachine(LogMachine):
    """The log in memory."""

    make = staticmethod(lambda where: MemoryStore(SMALL))


class SqliteMachine(LogMachine):
    """The log on disk, which outlives its processes."""

    make = staticmethod(lambda where, **clock: SqliteStore(where, SMALL, **clock))

    def _process_ended(self) -> None:
        """What was in memory is gone; the disk is as it was."""
        self.given = 0
        for pair in list(self.published):
            if pair[0] != DURABLE:
                # a new process has no states: its writers publish anew
                self.published[pair] = []
                self.highest[pair] = max(self.highest.get(pair, 0), self.store.log.position(*pair))
        self.listen()

    @precondition(lambda self: self.store is not None)
    @rule()
    def restart(self) -> None:
        """Close the log and open it again."""
        self.store.reopen()
        self._process_ended()

    @precondition(lambda self: self.store is not None)
    @rule()
    def kill(self) -> None:
        """Go on from what is on the disk, as after a SIGKILL."""
        self.number += 1
        where = self.where / str(self.number)
        shutil.copytree(self.store.directory, where)
        self.store.close()
        # it opens at that time, or its clock would go on from its newest stamp and be ahead
        self.store = type(self).make(where, now_ms=self.store.now_ms)
        self._process_ended()

    @precondition(lambda self: self.store is not None)
    @rule(what=changes)
    def append_to_a_full_disk(self, what: list[tuple[str, str]]) -> None:
        """Nothing of it is published, and the log goes on."""
        refusal = mock.patch.object(
            self.store.log._database, "write", side_effect=LogUnavailable("disk full")
        )
        with refusal:
            answered = self.store.log.append(DURABLE, "a", self._rows(what))
            self.store.settle()
            with pytest.raises(LogUnavailable):
                result(answered)
        pair = (DURABLE, "a")
        self.given = max(self.given, self.highest.get(pair, 0)) + len(what)


class PostgresMachine(SqliteMachine):
    """The log in PostgreSQL, which outlives its processes."""

    make = staticmethod(
        lambda where: PostgresStore(
            postgres_world.url_of(postgres_world.server(), "postgres"),
            postgres_world.fresh_schema(),
            SMALL,
        )
    )

    @precondition(lambda self: self.store is not None)
    @rule()
    def kill(self) -> None:
        """Go on from what is in the database, as after a SIGKILL and the end of the lease."""
        postgres_world.lapse(self.store.url, self.store.schema)
        self.store.log._database._writing.close()
        self.store.log._database._reading.close()
        self.store.open()
        self._process_ended()


class TurnsMachine(SqliteMachine):
    """The log on disk, with one commit for each turn of a reactor."""

    make = staticmethod(lambda where, **clock: SqliteStore(where, SMALL, Clock(), **clock))


#: Commits that reach the disk take their time.
_FEWER = settings(max_examples=max(10, settings.default.max_examples // 3))

TestMemoryLog = MemoryMachine.TestCase
TestSqliteLog = SqliteMachine.TestCase
TestSqliteLog.settings = _FEWER
TestSqliteLogWithTurns = TurnsMachine.TestCase
TestSqliteLogWithTurns.settings = _FEWER
TestPostgresLog = pytest.mark.postgresql(PostgresMachine.TestCase)
TestPostgresLog.settings = settings(
    _FEWER, max_examples=max(5, settings.default.max_examples // 10)
)
