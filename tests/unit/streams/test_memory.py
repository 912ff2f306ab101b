"""Streams in memory, beyond what every log promises."""

from __future__ import annotations

import pytest

from tcprepl.errors import TokenOrder
from tcprepl.limits import MAX_TOKEN
from tcprepl.streams.memory import RESTARTED, MemoryLog, MemoryStream
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.streams.retention import Bounds, Retention
from tcprepl.streams.ring import BLANKS_KEPT
from tests.log_kit import typing


def tokens(stream: MemoryStream, after: int) -> list[int]:
    """Return the tokens of the page after *after*."""
    return list(stream.page(after, stream.position, 9, 1_000).tokens)


def test_a_stream_that_begins_above_zero_says_why_earlier_rows_are_gone() -> None:
    stream = MemoryStream(StreamDef("s", durable=False), "w", Bounds(), start=7)
    assert stream.floor == stream.position == stream.restart_point == 7
    assert stream.bound == RESTARTED
    assert not stream.compactable(3)
    stream.add(range(8, 10), [b"[]", b"[]"], 0)
    stream.expire(0)
    assert stream.held == (2, len(b"RDATA s w 8 []\n") * 2)
    assert tokens(stream, 7) == [8, 9]


def test_a_reader_that_missed_blank_rows_has_to_begin_again() -> None:
    stream = MemoryStream(Registry().get("typing"), "w", Bounds(max_rows=1))
    stream.add(range(1, 3), [typing("!a", "@1"), typing("!b", "@1")], 0)
    stream.expire(0)
    token = 3
    for number in range(3 * BLANKS_KEPT):
        stream.add(range(token, token + 1), [typing(f"!{number % 2_500}")], 0)
        stream.expire(0)
        token += 1
    assert not stream.compactable(1)
    assert stream.compactable(0)
    assert stream.compactable(token - 10)
    assert tokens(stream, 0)[:2] == [1, 2]


def test_a_holder_of_states_of_an_earlier_process_has_to_begin_again() -> None:
    stream = MemoryStream(Registry().get("typing"), "w", Bounds(max_rows=1), start=7)
    stream.add(range(8, 10), [typing("!a", "@1"), typing("!b", "@1")], 0)
    stream.expire(0)
    stream.add(range(10, 11), [typing("!c", "@1")], 0)
    stream.expire(0)
    assert not stream.compactable(6)
    for after in (0, 7):
        assert stream.compactable(after)
        assert tokens(stream, after) == [8, 9, 10]


def test_a_durable_stream_of_states_is_kept_as_it_is() -> None:
    typing_stream = Registry().get("typing")
    durable = StreamDef("typing", typing_stream.row_type, key=typing_stream.key)
    log = MemoryLog(Registry([durable]), lambda: 0, Retention(durable=Bounds(max_rows=1)))
    for _ in range(3):
        log.append("typing", "w", [typing("!a", "@1")])
    assert log.restart_point("typing", "w") == log.floor("typing", "w") == 2


def test_expiry_takes_the_ids_of_old_transactions() -> None:
    now = 0
    log = MemoryLog(Registry(), lambda: now, Retention(transaction_age_s=1))
    log.append("events", "w", [b"[]"], transaction_id="t")
    now = 5_000
    log.expire()
    log.append("events", "w", [b"[]"], transaction_id="t")
    assert log.position("events", "w") == 2


def test_states_that_are_trimmed_are_kept_for_who_begins() -> None:
    stream = MemoryStream(Registry().get("typing"), "w", Bounds())
    stream.add(range(1, 4), [typing("!a", "@1"), typing("!b", "@1"), typing("!a", "@2")], 0)
    stream.trim(3, "read by all")
    assert (stream.floor, stream.bound, stream.held) == (3, "read by all", (0, 0))
    assert tokens(stream, 0) == [2, 3]


def test_expiry_takes_old_rows_of_every_stream() -> None:
    now = 0
    log = MemoryLog(Registry(), lambda: now, Retention(durable=Bounds(max_age_s=1)))
    for instance in ("v", "w"):
        log.append("events", instance, [b"[]"])
    now = 5_000
    log.expire()
    assert [log.floor("events", instance) for instance in ("v", "w")] == [1, 1]


def test_a_position_may_move_to_the_last_token_and_no_further() -> None:
    log = MemoryLog(Registry(), lambda: 0)
    log.advance("events", "w", MAX_TOKEN)
    assert log.position("events", "w") == MAX_TOKEN
    with pytest.raises(TokenOrder):
        log.advance("events", "w", MAX_TOKEN + 1)
