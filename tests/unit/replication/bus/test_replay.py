"""Where a process that comes back begins with each pair."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from tcprepl.ids import Pair, Token
from tcprepl.replication.bus.delivered import Stand
from tcprepl.replication.bus.replay import (
    Covered,
    End,
    NotInLogError,
    Start,
    Unsaid,
    in_order,
    starts_of,
    unsaid_of,
)
from tcprepl.streams.gaps import Cause, Gap
from tcprepl.streams.memory import MemoryLog
from tcprepl.streams.registry import Registry, StreamDef

EVENTS: Pair = ("events", "w1")


def make_log(*tokens: Token) -> MemoryLog:
    """Return a log with rows of these tokens."""
    log = MemoryLog(Registry([StreamDef("events")]), lambda: 0)
    if tokens:
        log.append(*EVENTS, [b"[]"] * len(tokens), tokens=list(tokens))
    return log


def start(log: MemoryLog, stand: Stand, end: End) -> Start:
    """Return where one begins that stood there."""
    found: list[Any] = []
    deferred = Deferred.fromCoroutine(
        starts_of(log, {EVENTS: stand, ("x", "y"): stand}, {EVENTS: end})
    )
    deferred.addBoth(found.append)
    if isinstance(found[0], dict):
        ((pair, answer),) = found[0].items()
        assert pair == EVENTS
        return answer  # type: ignore[no-any-return]
    found[0].raiseException()
    raise AssertionError


def test_it_begins_just_before_the_first_row_that_it_missed() -> None:
    log = make_log(3, 5, 9, 9, 12)
    assert start(log, Stand(5), End(12, 12)) == Start(5, 8, 5, missed=True)
    assert start(log, Stand(9), End(12, 12)) == Start(9, 11, 9, missed=True)


def test_it_was_told_of_the_last_row_if_nobody_told_it_more() -> None:
    log = make_log(3, 5, 9, 12)
    assert start(log, Stand(8, told=False), End(12, 12)) == Start(5, 8, 8, missed=True)
    assert start(log, Stand(2, told=False), End(12, 12)) == Start(0, 2, 2, missed=True)


def test_one_that_missed_nothing_is_told_of_all_that_others_used() -> None:
    log = make_log(3, 5)
    assert start(log, Stand(5), End(5, 8)) == Start(5, 8, 5)


def test_rows_that_are_gone_are_left_to_its_database() -> None:
    log = make_log(3, 5, 9)
    log.gaps.add(EVENTS, Gap(5, 7, Cause.UPSTREAM))
    assert start(log, Stand(5), End(9, 9)) == Start(7, 7, 7, missed=True)
    assert start(log, Stand(8, told=False), End(9, 9)) == Start(7, 8, 8, missed=True)


def test_a_place_that_the_log_does_not_have_is_none() -> None:
    with pytest.raises(NotInLogError, match="events of w1 ends at 3"):
        start(make_log(3), Stand(5), End(3, 3))
    with pytest.raises(NotInLogError):
        start(make_log(3), Stand(2_000, told=False), End(3, 3))


def test_a_position_without_rows_moves_it() -> None:
    log = make_log(3)
    log.advance(*EVENTS, 9)
    assert start(log, Stand(3), End(9, 9)) == Start(3, 9, 9)


def test_the_highest_comes_first() -> None:
    starts = {EVENTS: Start(1, 2, 2), ("events", "w2"): Start(3, 7, 5), ("x", "y"): Start(4, 4, 4)}
    assert [start.new for _, start in in_order(starts)] == [7, 4, 2]


@given(st.lists(st.lists(st.integers(1, 60), min_size=1), max_size=12), st.integers(0, 60))
def test_what_is_covered_leaves_no_token_out(blocks: list[list[int]], token: int) -> None:
    covered, used = Covered(), set()
    for block in blocks:
        covered.add("events", sorted(block))
        used |= set(block)
    end = token
    while end + 1 in used:
        end += 1
    assert covered.end("events", token) == end
    assert covered.end("typing", token) == token
    covered.add("typing", range(1, 60))
    assert covered.end("typing", token) == token
    assert len(covered._runs.get("events", ())) <= 64


W2: Pair = ("events", "w2")


def unsaid(**starts: Start) -> Unsaid:
    """Return what is not said to w1 of events."""
    found = unsaid_of("w1", {("events", name): start for name, start in starts.items()})
    assert found is not None
    return found


def test_a_stream_that_it_writes_itself_is_told_with_the_first_row_of_another() -> None:
    later = unsaid(w1=Start(9, 9, 9, missed=True), w2=Start(4, 6, 5))
    said, announced = later.told(
        b"POSITION events w2 5 7\nRDATA events w1 8 [8]\nRDATA events w2 batch [9]\n"
        b"RDATA events w2 9 [9]\nRDATA events w3 10 [10]\nPOSITION events w3 10 11\n"
    )
    assert said.decode().splitlines() == [
        "RDATA events w1 8 [8]",
        "POSITION events w2 4 8",
        "RDATA events w2 batch [9]",
        "RDATA events w2 9 [9]",
        "RDATA events w3 10 [10]",
        "POSITION events w3 10 11",
    ]
    assert announced == {b"POSITION events w2 4 8"}
    assert not later.streams


def test_a_position_that_says_that_rows_are_missing_is_told() -> None:
    later = unsaid(w1=Start(9, 9, 9), w2=Start(4, 6, 5))
    assert later.told(b"POSITION events w2 9 9\n") == (b"POSITION events w2 9 9\n", set())
    assert not later.streams


def test_a_writer_that_comes_first_meanwhile_is_told_as_well() -> None:
    later = unsaid(w1=Start(9, 9, 9), w2=Start(4, 6, 5))
    assert later.told(b"POSITION events w3 7 7\n") == (b"", set())
    assert (later.prev(W2), later.prev(("events", "w3")), later.prev(EVENTS)) == (4, 7, None)
    assert later.told(b"RDATA events w3 9 [9]\n")[0].startswith(b"POSITION events w3 7 8\n")
    other = unsaid(w1=Start(9, 9, 9), w2=Start(4, 6, 5))
    assert other.told(b"RDATA events w3 9 [9]\n")[0].startswith(b"POSITION events w3 8 8\n")


def test_what_it_does_not_write_or_missed_rows_of_is_told_at_once() -> None:
    w2, missed = Start(4, 6, 5), Start(4, 6, 4, missed=True)
    assert unsaid_of("w9", {EVENTS: w2, W2: w2}) is None
    assert unsaid_of("w1", {EVENTS: w2, W2: missed}) is None
    assert unsaid_of("w1", {EVENTS: w2}) is None
    assert unsaid_of("a", {("typing", "a"): w2, ("typing", "b"): w2}) is None
