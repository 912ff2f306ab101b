"""The conformance kit of the log: what every store has to do, as checks on one that is made.

`check_log(make)` runs all of them; `CHECKS` has them by name, for parametrised tests. *make*
gives a `Store`: a log with a clock that the check moves, and a way to let commits happen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tcprepl.errors import (
    EpochFenced,
    LogUnavailable,
    SequenceHole,
    TokenFromFuture,
    TokenOrder,
    TokenTooOld,
    UnknownStream,
)
from tcprepl.limits import MAX_TOKEN
from tcprepl.storage.worker import Done, InlineWorker, Worker
from tcprepl.streams.gaps import Gaps
from tcprepl.streams.group_commit import CLEANING_PAUSE_S
from tcprepl.streams.log import Appended, Block, Log, Page
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.postgres_database import PostgresDatabase
from tcprepl.streams.postgresql import PostgresLog
from tcprepl.streams.producers import Produced, ProducerState
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.streams.retention import Bounds, Retention
from tcprepl.streams.sqlite import SqliteLog

#: A durable stream, an ephemeral one, and an ephemeral one of states.
DURABLE, EPHEMERAL, STATES = "push_rules", "sparks", "typing"
#: A durable one of states, as a relay has it.
RELAYED = "relayed_typing"
START_MS = 1_700_000_000_000


class Store(Protocol):
    """A log under test."""

    log: Log
    now_ms: int

    def settle(self) -> None:
        """Let everything happen that waits to happen."""


class Make(Protocol):
    """Makes a store."""

    def __call__(
        self, retention: Retention | None = None
    ) -> contextlib.AbstractContextManager[Store]:
        """Return a fresh one."""


def make_registry() -> Registry:
    """Return the built-in streams, an opaque ephemeral one, and durable states."""
    relayed = StreamDef(RELAYED, key=lambda row: row[0])
    return Registry([StreamDef(EPHEMERAL, durable=False), relayed])


def result(deferred: Deferred[Any]) -> Any:
    """Return what *deferred* has fired with; raise its failure."""
    found: list[Any] = []

    def look(answer: Any) -> Any:
        found.append(answer)
        return None if isinstance(answer, Failure) else answer

    deferred.addBoth(look)
    assert found, "has not fired"
    if isinstance(found[0], Failure):
        found[0].raiseException()
    return found[0]


def row(text: str) -> bytes:
    """Return a row of the durable stream."""
    return b'["@%b:x"]' % text.encode()


def typing(room: str, *users: str) -> bytes:
    """Return a row of the stream of states."""
    names = ",".join(f'"{user}"' for user in users)
    return f'["{room}",[{names}]]'.encode()


def add(store: Store, stream: str, *rows: bytes, instance: str = "w", **kwargs: Any) -> Appended:
    """Append, let it happen, and return the answer."""
    waiting = store.log.append(stream, instance, list(rows), **kwargs)
    store.settle()
    answer = result(waiting)
    assert isinstance(answer, Appended)
    return answer


def rows_in(page: Page) -> list[tuple[int, bytes]]:
    """Return what a page holds, after checking that it is sound."""
    found = list(page.rows())
    lines = page.lines.split(b"\n")
    assert lines.pop() == b""
    assert len(lines) == len(found) == len(page.tokens)
    assert list(page.tokens) == sorted(page.tokens)
    for index, (line, token) in enumerate(zip(lines, page.tokens, strict=True)):
        follows = index + 1 < len(page.tokens) and page.tokens[index + 1] == token
        assert line.split(b" ")[3] == (b"batch" if follows else b"%d" % token)
    return found


def read_all(
    log: Log, stream: str, after: int, upto: int = MAX_TOKEN, instance: str = "w", **kwargs: Any
) -> list[tuple[int, bytes]]:
    """Read page after page."""
    found = []
    while True:
        page = log.read(stream, instance, after, upto, **kwargs)
        found += rows_in(page)
        assert page.upto > after or not page.limited
        after = page.upto
        if not page.limited:
            return found


CHECKS: dict[str, Callable[[Make], None]] = {}


def check(function: Callable[[Make], None]) -> Callable[[Make], None]:
    """Take *function* into the kit."""
    CHECKS[function.__name__] = function
    return function


def each(*streams: str) -> Callable[[Callable[[Make, str], None]], Callable[[Make, str], None]]:
    """Take a function into the kit, once for each of *streams*."""

    def decorate(function: Callable[[Make, str], None]) -> Callable[[Make, str], None]:
        for stream in streams:
            CHECKS[f"{function.__name__}-{stream}"] = partial(function, stream=stream)
        return function

    return decorate


def check_log(make: Make) -> None:
    """Run every check on stores that *make* makes."""
    for function in CHECKS.values():
        function(make)


@check
def a_log_begins_an_incarnation_of_its_own(make: Make) -> None:
    with make() as store, make() as other:
        history = store.log.history
        assert history.current != other.log.history.current
        add(store, DURABLE, row("a"))
        assert history.shared((DURABLE, "w"), 1, history.current) == 1
        assert history.shared((DURABLE, "w"), 1, other.log.history.current) is None


@check
def nothing_is_wrong_with_a_log_that_was_just_opened(make: Make) -> None:
    with make() as store:
        assert store.log.trouble is None


@each(DURABLE, EPHEMERAL)
def tokens_ascend_from_one_and_the_answer_says_which(make: Make, stream: str) -> None:
    with make() as store:
        assert add(store, stream, row("a")) == Appended(stream, "w", 1, 1)
        assert add(store, stream, row("b"), row("c")) == Appended(stream, "w", 2, 3)
        assert store.log.position(stream, "w") == 3
        assert read_all(store.log, stream, 0) == [(1, row("a")), (2, row("b")), (3, row("c"))]


@check
def the_rows_of_a_batch_share_one_token(make: Make) -> None:
    with make() as store:
        add(store, DURABLE, row("a"))
        assert add(store, DURABLE, row("b"), row("c"), batch=True) == Appended(DURABLE, "w", 2, 2)
        assert add(store, DURABLE, row("d"), batch=True) == Appended(DURABLE, "w", 3, 3)
        page = store.log.read(DURABLE, "w", 0, 9)
        assert page.lines == (
            b'RDATA push_rules w 1 ["@a:x"]\n'
            b'RDATA push_rules w batch ["@b:x"]\n'
            b'RDATA push_rules w 2 ["@c:x"]\n'
            b'RDATA push_rules w 3 ["@d:x"]\n'
        )
        assert list(page.tokens) == [1, 2, 2, 3]


@each(DURABLE, EPHEMERAL)
def given_tokens_are_used_and_must_ascend(make: Make, stream: str) -> None:
    with make() as store:
        rows = [row("a"), row("b"), row("c")]
        assert add(store, stream, *rows, tokens=[5, 5, 9]) == Appended(stream, "w", 5, 9)
        assert read_all(store.log, stream, 0) == [(5, rows[0]), (5, rows[1]), (9, rows[2])]
        assert add(store, stream, *rows, tokens=[10, 11, 12]).last == 12
        assert add(store, stream, *rows, tokens=[13, 15, 15]).last == 15
        for bad in ([15], [14], [16, 15], [MAX_TOKEN + 1]):
            with pytest.raises(TokenOrder):
                store.log.append(stream, "w", rows[: len(bad)], tokens=bad)
        assert add(store, stream, row("d")).first == 16


@each(DURABLE, EPHEMERAL)
def tokens_end_at_the_largest(make: Make, stream: str) -> None:
    with make() as store:
        add(store, stream, row("a"), tokens=[MAX_TOKEN])
        with pytest.raises(TokenOrder):
            store.log.append(stream, "w", [row("b")])
        with pytest.raises(TokenOrder):
            store.log.advance(stream, "w", MAX_TOKEN + 1)
        assert read_all(store.log, stream, 0) == [(MAX_TOKEN, row("a"))]


@check
def calls_without_sense_are_refused_and_change_nothing(make: Make) -> None:
    with make() as store:
        with pytest.raises(ValueError, match="at least one row"):
            store.log.append(DURABLE, "w", [])
        with pytest.raises(ValueError, match="2 rows and 1 tokens"):
            store.log.append(DURABLE, "w", [row("a"), row("b")], tokens=[1])
        with pytest.raises(ValueError, match="either batch or tokens"):
            store.log.append(DURABLE, "w", [row("a")], tokens=[1], batch=True)
        with pytest.raises(UnknownStream):
            store.log.append("nothing", "w", [row("a")])
        with pytest.raises(ValueError, match="instance name"):
            store.log.append(DURABLE, "w w", [row("a")])
        assert store.log.position(DURABLE, "w") == 0


@check
def what_is_not_known_is_empty(make: Make) -> None:
    with make() as store:
        log = store.log
        assert log.pairs() == []
        assert log.position(DURABLE, "w") == log.floor(DURABLE, "w") == 0
        assert log.restart_point(DURABLE, "w") == 0
        assert log.read(DURABLE, "w", 0, 9) == Page((), b"", 0, False)
        with pytest.raises(TokenFromFuture):
            log.read(DURABLE, "w", 1, 9)
        log.trim(DURABLE, "w", 5)
        assert log.pairs() == []


@check
def a_pair_can_be_made_known_before_its_first_row(make: Make) -> None:
    with make() as store:
        store.log.ensure(STATES, "w")
        store.log.ensure(DURABLE, "w")
        store.log.ensure(DURABLE, "w")
        store.settle()
        assert store.log.pairs() == [(STATES, "w"), (DURABLE, "w")]
        assert store.log.position(STATES, "w") == 0
        with pytest.raises(UnknownStream):
            store.log.ensure("nothing", "w")


@check
def instances_are_apart(make: Make) -> None:
    with make() as store:
        add(store, DURABLE, row("a"), instance="one")
        add(store, DURABLE, row("b"), tokens=[7], instance="two")
        add(store, DURABLE, row("c"), instance="one")
        assert read_all(store.log, DURABLE, 0, instance="one") == [(1, row("a")), (2, row("c"))]
        assert read_all(store.log, DURABLE, 0, instance="two") == [(7, row("b"))]
        assert store.log.pairs() == [(DURABLE, "one"), (DURABLE, "two")]


@each(DURABLE, EPHEMERAL)
def listeners_hear_in_order_and_before_the_answer(make: Make, stream: str) -> None:
    with make() as store:
        heard: list[Any] = []
        store.log.add_listener(lambda block: heard.append((block.first, block.last)))
        store.log.add_position_listener(lambda *moved: heard.append(moved))
        for count in (1, 2, 1):
            waiting = store.log.append(stream, "w", [row("a")] * count)
            waiting.addCallback(lambda answer: heard.append(answer.last))
            store.settle()
        moved = store.log.advance(stream, "w", 9)
        moved.addCallback(heard.append)
        store.settle()
        assert heard == [(1, 1), 1, (2, 3), 3, (4, 4), 4, (stream, "w", 4, 9), None]
        assert store.log.position(stream, "w") == 9


@each(DURABLE, STATES)
def a_block_says_what_was_appended(make: Make, stream: str) -> None:
    with make() as store:
        heard: list[Block] = []
        store.log.add_listener(heard.append)
        add(store, stream, typing("!a"), typing("!bb", "@x"))
        (block,) = heard
        assert (block.stream, block.instance, list(block.tokens)) == (stream, "w", [1, 2])
        assert block.written_ms == START_MS
        lines = block.lines.split(b"\n")
        assert list(block.ends) == [len(lines[0]) + 1, len(block.lines)]
        assert block.lines == store.log.read(stream, "w", 0, 2).lines


@each(DURABLE, EPHEMERAL)
def a_listener_that_fails_keeps_nothing_from_the_others(make: Make, stream: str) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("on purpose")

    with make() as store:
        heard: list[Any] = []
        store.log.add_listener(broken)
        store.log.add_listener(lambda block: heard.append(block.last))
        store.log.add_position_listener(broken)
        store.log.add_position_listener(lambda *moved: heard.append(moved[3]))
        add(store, stream, row("a"))
        result_of = store.log.advance(stream, "w", 3)
        store.settle()
        assert result(result_of) is None
        assert heard == [1, 3]


@each(DURABLE, EPHEMERAL)
def a_listener_that_appends_is_heard_in_order_by_all(make: Make, stream: str) -> None:
    with make() as store:
        early: list[int] = []
        late: list[int] = []

        def answer_back(block: Block) -> None:
            early.append(block.last)
            if block.last < 3:
                store.log.append(block.stream, "w", [row("again")])

        store.log.add_listener(answer_back)
        store.log.add_listener(lambda block: late.append(block.last))
        add(store, stream, row("a"))
        for _ in range(3):
            store.settle()
        assert early == late == [1, 2, 3]


@each(DURABLE, EPHEMERAL)
def a_position_moves_without_rows_and_never_back(make: Make, stream: str) -> None:
    with make() as store:
        heard: list[Any] = []
        store.log.add_position_listener(lambda *moved: heard.append(moved[2:]))
        for token in (4, 4, 8):
            waiting = store.log.advance(stream, "w", token)
            store.settle()
            assert result(waiting) is None
        assert heard == [(0, 4), (4, 8)]
        with pytest.raises(TokenOrder):
            store.log.advance(stream, "w", 7)
        assert add(store, stream, row("a")).first == 9
        assert store.log.read(stream, "w", 8, 20).upto == 9
        assert read_all(store.log, stream, 0, 20) == [(9, row("a"))]
        assert store.log.read(stream, "w", 4, 8) == Page((), b"", 8, False)


@each(DURABLE, EPHEMERAL, STATES)
def a_read_is_half_open_and_bounded_by_the_position(make: Make, stream: str) -> None:
    with make() as store:
        rows = [typing(f"!{index}") for index in range(10)]
        add(store, stream, *rows[:4])
        add(store, stream, *rows[4:])
        everything = list(enumerate(rows, 1))
        for after in range(11):
            for upto in range(12):
                page = store.log.read(stream, "w", after, upto)
                assert rows_in(page) == everything[after : max(after, upto)]
                assert page.upto == max(after, min(upto, 10))
                assert not page.limited
        with pytest.raises(TokenFromFuture) as caught:
            store.log.read(stream, "w", 11, 12)
        assert (caught.value.token, caught.value.held) == (11, 10)


@each(DURABLE, EPHEMERAL)
def limits_never_part_a_token(make: Make, stream: str) -> None:
    with make() as store:
        tokens = [1, 2, 2, 2, 3, 5, 5, 6]
        rows = [row(str(index)) for index in range(len(tokens))]
        add(store, stream, *rows[:5], tokens=tokens[:5])
        add(store, stream, *rows[5:], tokens=tokens[5:])
        everything = list(zip(tokens, rows, strict=True))
        for limit in range(1, 10):
            page = store.log.read(stream, "w", 0, 99, limit_rows=limit)
            assert len(page.tokens) <= max(limit, 1)
            assert page.limited == (len(page.tokens) < 8)
            assert read_all(store.log, stream, 0, limit_rows=limit) == everything
            assert read_all(store.log, stream, 0, limit_bytes=limit * 25) == everything
            assert read_all(store.log, stream, 1, 5, limit_rows=limit) == everything[1:7]
        page = store.log.read(stream, "w", 1, 99, limit_rows=1)
        assert (list(page.tokens), page.upto, page.limited) == ([2, 2, 2], 2, True)


@each(DURABLE, EPHEMERAL)
def what_was_trimmed_is_said_to_be_gone(make: Make, stream: str) -> None:
    with make() as store:
        log = store.log
        add(store, stream, *[row(str(index)) for index in range(4)])
        add(store, stream, *[row(str(index)) for index in range(4)])
        for upto in (2, 1, 4):
            log.trim(stream, "w", upto)
            store.settle()
        assert log.floor(stream, "w") == log.restart_point(stream, "w") == 4
        with pytest.raises(TokenTooOld, match="acknowledged") as caught:
            log.read(stream, "w", 3, 8)
        assert (caught.value.token, caught.value.held) == (3, 4)
        with pytest.raises(TokenTooOld):
            log.read(stream, "w", 0, 8, compacted=True)
        assert [token for token, _ in read_all(log, stream, 4)] == [5, 6, 7, 8]
        log.trim(stream, "w", 6, "never written down")
        store.settle()
        with pytest.raises(TokenTooOld, match=r"rows up to 6 are gone \(never written down\)"):
            log.read(stream, "w", 3, 8)
        assert [token for token, _ in read_all(log, stream, 6)] == [7, 8]
        log.trim(stream, "w", 99)
        store.settle()
        assert log.floor(stream, "w") == log.position(stream, "w") == 8
        assert log.read(stream, "w", 8, 99) == Page((), b"", 8, False)
        assert add(store, stream, row("new")).first == 9
        assert read_all(log, stream, 8) == [(9, row("new"))]


def _bounded(**bounds: Any) -> Retention:
    return Retention(durable=Bounds(**bounds), ephemeral=Bounds(**bounds), recent_bytes=60)


@each(DURABLE, EPHEMERAL)
def rows_go_by_their_number(make: Make, stream: str) -> None:
    with make(_bounded(max_rows=3)) as store:
        for index in range(6):
            add(store, stream, row(str(index)))
            store.settle()
        assert store.log.floor(stream, "w") == 3
        assert [token for token, _ in read_all(store.log, stream, 3)] == [4, 5, 6]
        with pytest.raises(TokenTooOld, match=r"retention\.rows=3"):
            store.log.read(stream, "w", 2, 6)


@each(DURABLE, EPHEMERAL)
def rows_go_by_their_bytes(make: Make, stream: str) -> None:
    with make(_bounded(max_bytes=100)) as store:
        for index in range(6):
            add(store, stream, row(str(index)))
            store.settle()
        held = read_all(store.log, stream, store.log.floor(stream, "w"))
        assert 50 < sum(len(f"RDATA {stream} w {token} ") + len(r) + 1 for token, r in held) <= 100
        with pytest.raises(TokenTooOld, match=r"retention\.bytes=100"):
            store.log.read(stream, "w", 0, 6)


@each(DURABLE, EPHEMERAL)
def rows_go_by_their_age(make: Make, stream: str) -> None:
    with make(_bounded(max_age_s=10)) as store:
        add(store, stream, row("a"))
        store.now_ms += 6_000
        add(store, stream, row("b"))
        store.now_ms += 6_000
        add(store, stream, row("c"))
        store.settle()
        assert store.log.floor(stream, "w") == 1
        with pytest.raises(TokenTooOld, match=r"retention\.age=10s"):
            store.log.read(stream, "w", 0, 6)
        assert [token for token, _ in read_all(store.log, stream, 1)] == [2, 3]


@check
def one_stream_may_have_bounds_of_its_own(make: Make) -> None:
    retention = Retention(streams={DURABLE: Bounds(max_rows=1), EPHEMERAL: Bounds(max_rows=1)})
    with make(retention) as store:
        for stream in (DURABLE, EPHEMERAL, "pushers"):
            for index in range(3):
                add(store, stream, row(str(index)))
                store.settle()
        assert store.log.floor(DURABLE, "w") == store.log.floor(EPHEMERAL, "w") == 2
        assert store.log.floor("pushers", "w") == 0


@each(DURABLE, EPHEMERAL)
def the_bounds_may_be_changed_at_any_time(make: Make, stream: str) -> None:
    with make(_bounded(max_rows=9)) as store:
        for index in range(6):
            add(store, stream, row(str(index)))
            store.settle()
        assert store.log.floor(stream, "w") == 0
        store.log.retain(_bounded(max_rows=3))
        add(store, stream, row("6"))
        store.settle()
        assert store.log.floor(stream, "w") == 4
        store.log.retain(_bounded(max_rows=5))
        for index in range(7, 9):
            add(store, stream, row(str(index)))
            store.settle()
        assert store.log.floor(stream, "w") == 4


@each(DURABLE, EPHEMERAL)
def a_transaction_id_makes_a_retry_safe(make: Make, stream: str) -> None:
    with make(Retention(transaction_age_s=60)) as store:
        first = add(store, stream, row("a"), row("b"), transaction_id="t1")
        assert add(store, stream, row("a"), row("b"), transaction_id="t1") == first
        assert add(store, stream, row("c"), transaction_id="t2").first == 3
        other = "pushers" if stream == DURABLE else STATES
        assert add(store, other, row("a"), transaction_id="t1").first == 1
        store.now_ms += 61_000
        assert add(store, stream, row("a"), transaction_id="t1").first == 4
        assert len(read_all(store.log, stream, 0)) == 4


def claim(store: Store, name: str = "p", epoch: int | None = None) -> ProducerState:
    """Claim a producer's name, let it happen, and return the answer."""
    waiting = store.log.claim(name, epoch)
    store.settle()
    state = result(waiting)
    assert isinstance(state, ProducerState)
    return state


@each(DURABLE, EPHEMERAL)
def a_producer_s_append_is_taken_once_and_in_order(make: Make, stream: str) -> None:
    with make() as store:
        assert claim(store)[:2] == (1, 0)
        first = add(store, stream, row("a"), row("b"), produced=Produced("p", 1, 1))
        assert first == Appended(stream, "w", 1, 2)
        assert add(store, stream, row("c"), produced=Produced("p", 1, 2)).last == 3
        assert add(store, stream, row("a"), row("b"), produced=Produced("p", 1, 1)) == first
        with pytest.raises(SequenceHole, match="expected 3"):
            add(store, stream, row("e"), produced=Produced("p", 1, 4))
        other = "pushers" if stream == DURABLE else STATES
        assert add(store, other, row("x"), produced=Produced("p", 1, 3)).last == 1
        assert [r for _, r in read_all(store.log, stream, 0)] == [row("a"), row("b"), row("c")]
        assert claim(store, epoch=1)[:2] == (1, 3)


@each(DURABLE, EPHEMERAL)
def who_claimed_a_name_before_writes_nothing(make: Make, stream: str) -> None:
    with make() as store:
        assert claim(store).epoch == 1
        add(store, stream, row("a"), produced=Produced("p", 1, 1))
        assert claim(store)[:2] == (2, 1)
        for sequence in (1, 2, 3):
            with pytest.raises(EpochFenced, match="the current one is 2"):
                add(store, stream, row("z"), produced=Produced("p", 1, sequence))
        with pytest.raises(EpochFenced):
            claim(store, epoch=1)
        with pytest.raises(EpochFenced, match="nobody"):
            add(store, stream, row("z"), produced=Produced("q", 1, 1))
        assert add(store, stream, row("b"), produced=Produced("p", 2, 2)).last == 2
        assert read_all(store.log, stream, 0) == [(1, row("a")), (2, row("b"))]


@check
def a_producer_that_is_not_used_is_forgotten(make: Make) -> None:
    with make(Retention(transaction_age_s=60)) as store:
        claim(store)
        add(store, DURABLE, row("a"), produced=Produced("p", 1, 1))
        store.now_ms += 61_000
        claim(store, "q")
        store.log.expire()  # type: ignore[attr-defined]
        store.settle()
        with pytest.raises(EpochFenced, match="nobody"):
            add(store, DURABLE, row("b"), produced=Produced("p", 1, 2))
        assert claim(store)[:2] == (1, 0)
        add(store, DURABLE, row("b"), produced=Produced("q", 1, 1))


@check
def a_stream_of_states_keeps_the_newest_row_of_each_key(make: Make) -> None:
    with make(_bounded(max_rows=1)) as store:
        log = store.log
        add(store, STATES, typing("!a", "@1"))
        add(store, STATES, typing("!b", "@1"))
        add(store, STATES, typing("!a", "@1", "@2"))
        add(store, STATES, typing("!c", "@1"))
        add(store, STATES, typing("!b"))
        add(store, STATES, typing("!d", "@1"))
        assert log.floor(STATES, "w") == 5
        assert log.restart_point(STATES, "w") == 0
        with pytest.raises(TokenTooOld, match=r"retention\.rows=1"):
            log.read(STATES, "w", 0, 6)
        expected = [
            (3, typing("!a", "@1", "@2")),
            (4, typing("!c", "@1")),
            (6, typing("!d", "@1")),
        ]
        assert read_all(log, STATES, 0, compacted=True) == expected
        for limit in (1, 2):
            # a reader under way is told of blanks that it may or may not have to know of
            found = read_all(log, STATES, 0, compacted=True, limit_rows=limit)
            assert [item for item in found if item[1] != typing("!b")] == expected
        page = log.read(STATES, "w", 0, 9, compacted=True)
        assert (page.upto, page.limited) == (6, False)


@check
def a_reader_of_states_hears_of_what_goes_blank_meanwhile(make: Make) -> None:
    with make(_bounded(max_rows=1)) as store:
        log = store.log
        add(store, STATES, typing("!a", "@1"), typing("!b", "@1"), typing("!c", "@1"))
        add(store, STATES, typing("!d", "@1"))
        page = log.read(STATES, "w", 0, 9, limit_rows=1, compacted=True)
        assert rows_in(page) == [(1, typing("!a", "@1"))]
        add(store, STATES, typing("!a"))
        add(store, STATES, typing("!e", "@1"))
        rest = read_all(log, STATES, page.upto, compacted=True)
        assert [token for token, _ in rest] == [2, 3, 4, 5, 6]
        assert rest[3] == (5, typing("!a"))


@check
def a_flush_waits_for_what_was_appended(make: Make) -> None:
    with make() as store:
        assert result(store.log.flush()) is None
        waiting = store.log.append(DURABLE, "w", [row("a")])
        flushed = store.log.flush()
        store.settle()
        assert result(flushed) is None
        assert result(waiting).last == 1


@check
def a_closed_log_takes_nothing_and_says_so(make: Make) -> None:
    with make() as store:
        add(store, DURABLE, row("a"))
        pending = store.log.append(DURABLE, "w", [row("b")])
        closed = store.log.close()
        store.settle()
        assert result(closed) is None
        assert result(pending).last == 2
        assert result(store.log.close()) is None
        for stream in (DURABLE, EPHEMERAL):
            for waiting in (
                store.log.append(stream, "w", [row("c")]),
                store.log.advance(stream, "w", 9),
                store.log.claim("p"),
            ):
                with pytest.raises(LogUnavailable, match="closed"):
                    result(waiting)
        store.log.trim(DURABLE, "w", 1)


class LateWorker(InlineWorker):
    """Jobs wait until the test lets them run."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def submit(self, job: Callable[[], Any], done: Done[Any]) -> None:
        """Keep the job."""
        self.jobs.append(lambda: InlineWorker.submit(self, job, done))

    def run(self) -> None:
        """Let the jobs run that were given so far."""
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job()


# --- the stores of this project -----------------------------------------------------------


@dataclass
class MemoryStore:
    """A log in memory."""

    retention: Retention | None = None
    now_ms: int = START_MS
    log: MemoryLog = field(init=False)

    def __post_init__(self) -> None:
        """Make the log."""
        self.log = MemoryLog(make_registry(), lambda: self.now_ms, self.retention)

    def settle(self) -> None:
        """Do nothing: everything happens at once."""


@dataclass
class SqliteStore:
    """A log on disk; with a clock commits wait for the next turn, without they do not."""

    directory: Path
    retention: Retention | None = None
    clock: Clock | None = None
    now_ms: int = START_MS
    registry: Registry = field(default_factory=make_registry)
    reading_worker: Worker | None = None
    gaps: Gaps | None = None
    log: SqliteLog = field(init=False)

    def __post_init__(self) -> None:
        """Open the log."""
        self.open()

    def open(self) -> None:
        """Open the log, again after `close`."""
        self.log = SqliteLog(
            self.directory,
            self.registry,
            lambda: self.now_ms,
            InlineWorker(),
            self.retention,
            self.clock,
            self.gaps,
            self.reading_worker,
        )

    def settle(self) -> None:
        """Let the reactor turn a few times."""
        if self.clock is not None:
            for _ in range(4):
                self.clock.advance(CLEANING_PAUSE_S)

    def close(self) -> None:
        """Close the log."""
        closed = self.log.close()
        self.settle()
        result(closed)

    def reopen(self) -> None:
        """Close the log and open it again."""
        self.close()
        self.open()


@dataclass
class PostgresStore:
    """A log in PostgreSQL; with a clock commits wait for the next turn, without they do not."""

    url: str
    schema: str
    retention: Retention | None = None
    clock: Clock | None = None
    now_ms: int = START_MS
    registry: Registry = field(default_factory=make_registry)
    reading_worker: Worker | None = None
    gaps: Gaps | None = None
    looking_worker: Worker | None = None
    writer: str = "master"
    worker: Worker = field(default_factory=InlineWorker)
    lease_s: float = 10.0
    log: PostgresLog = field(init=False)

    def __post_init__(self) -> None:
        """Open the log."""
        self.open()

    def open(self) -> None:
        """Open the log, again after `close`."""
        database = PostgresDatabase(
            self.url,
            self.writer,
            schema=self.schema,
            lease_s=self.lease_s,
            transaction_age_s=(self.retention or Retention()).transaction_age_s,
        )
        database.take()
        self.log = PostgresLog(
            database,
            self.registry,
            lambda: self.now_ms,
            self.worker,
            self.retention,
            self.clock,
            self.gaps,
            self.reading_worker,
            self.looking_worker,
        )

    def settle(self) -> None:
        """Let the reactor turn a few times."""
        if self.clock is not None:
            for _ in range(4):
                self.clock.advance(CLEANING_PAUSE_S)

    def close(self) -> None:
        """Close the log."""
        closed = self.log.close()
        self.settle()
        result(closed)

    def reopen(self) -> None:
        """Close the log and open it again."""
        self.close()
        self.open()


@contextlib.contextmanager
def make_memory(retention: Retention | None = None) -> Iterator[Store]:
    """Make a log in memory."""
    yield MemoryStore(retention)
