"""The newest blocks, and the newest row of each key."""

from __future__ import annotations

import pytest

from tcprepl.streams import ring as ring_module
from tcprepl.streams.blocks import render, rows_of
from tcprepl.streams.json_rows import JsonRows
from tcprepl.streams.log import Block
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.streams.ring import BLANKS_KEPT, CompactedRows, Ring, drain_until
from tcprepl.streams.rows import TypingRow
from tests.log_kit import typing


def block(*tokens: int) -> Block:
    """Return a block with these tokens."""
    return render("s", "i", list(tokens), [b"[]"] * len(tokens), 0)


def test_a_ring_counts_what_it_holds() -> None:
    ring = Ring()
    assert len(ring) == 0
    for token in range(1, 1_001):
        ring.append(block(token))
        if token > 10:
            assert ring.evict().last == token - 10
            assert ring.oldest.last == token - 9
        assert len(ring) == ring.rows == min(token, 10)
        assert len(ring._blocks) < 100, "the places of those that went go, too"
        assert ring.size_bytes == sum(len(found.lines) for found in ring.after(0))
    assert [found.last for found in ring.after(995)] == [996, 997, 998, 999, 1000]
    assert list(ring.after(1_000)) == []


def test_what_is_drained_is_whole_blocks() -> None:
    ring = Ring()
    for tokens in ((1, 2), (3, 4), (5, 6)):
        ring.append(block(*tokens))
    assert [found.last for found in drain_until(ring, 5)] == [2, 4]
    assert [found.last for found in drain_until(ring, 6)] == [6]
    assert drain_until(ring, 9) == []


def _fold(compacted: CompactedRows, token: int, *rows: bytes) -> None:
    compacted.fold(render("typing", "i", range(token, token + len(rows)), rows, 0))


def _state(compacted: CompactedRows, after: int = 0) -> list[tuple[int, bytes]]:
    return [
        (token, row)
        for found in compacted.after(after, "i")
        for token, row in zip(found.tokens, rows_of(found), strict=True)
    ]


def test_rows_that_are_not_of_the_stream_are_left_out() -> None:
    compacted = CompactedRows(Registry().get("typing"))
    _fold(compacted, 1, b"nonsense", b"[5,[]]", typing("!a", "@1"))
    assert _state(compacted) == [(3, typing("!a", "@1"))]
    _fold(compacted, 4, typing("!b", "@1"))
    assert len(compacted) == 2


def test_keys_that_come_with_rows_are_taken_as_they_are() -> None:
    compacted = CompactedRows(Registry().get("typing"))
    rows = [typing("!a", "@1"), typing("!b", "@1"), typing("!a", "@2")]
    joined = JsonRows(b"".join(row + b"\n" for row in rows), 3, ("a", "b", "a"))
    compacted.fold(render("typing", "i", range(1, 4), joined, 0))
    assert _state(compacted) == [(2, rows[1]), (3, rows[2])]


def test_a_newest_row_that_says_nothing_leaves_the_one_before() -> None:
    compacted = CompactedRows(Registry().get("typing"))
    _fold(compacted, 1, typing("!a", "@1"), typing("!a", "@2"), b'["!a",5]')
    assert _state(compacted) == [(2, typing("!a", "@2"))]


def test_a_key_may_be_anywhere_in_a_row() -> None:
    compacted = CompactedRows(StreamDef("typing", durable=False, key=lambda row: row[1]))
    _fold(compacted, 1, b"[1,5]", b"[2,6]", b"[3,5]")
    assert _state(compacted) == [(2, b"[2,6]"), (3, b"[3,5]")]


def test_memory_is_bounded_by_the_keys_and_some_blank_rows() -> None:
    compacted = CompactedRows(Registry().get("typing"))
    _fold(compacted, 1, typing("!stays", "@1"))
    token = 2
    for number in range(5 * BLANKS_KEPT):
        _fold(compacted, token, typing(f"!{number}", "@1"), typing(f"!{number}"))
        token += 2
    assert _state(compacted) == [(1, typing("!stays", "@1"))]
    assert len(compacted) == 1
    assert compacted.blank_floor > 0
    # a reader who is above that floor hears of every blank row since
    blanks = _state(compacted, compacted.blank_floor)
    assert len(blanks) >= BLANKS_KEPT
    assert blanks[-1] == (token - 1, typing(f"!{5 * BLANKS_KEPT - 1}"))


def test_many_changes_of_few_keys_cost_nothing() -> None:
    compacted = CompactedRows(Registry().get("typing"))
    for token in range(1, 10_000):
        _fold(compacted, token, typing(f"!{token % 3}", f"@{token}"))
        assert len(compacted) <= 3  # whoever looks folds what waits
    assert [row for _, row in _state(compacted)] == [
        typing("!1", "@9997"),
        typing("!2", "@9998"),
        typing("!0", "@9999"),
    ]
    assert compacted.blank_floor == 0


def test_states_come_in_blocks_that_part_no_token() -> None:
    compacted = CompactedRows(Registry().get("typing"))
    rows = [typing(f"!{number}", "@1") for number in range(1_200)]
    compacted.fold(render("typing", "i", [1] * 600 + list(range(2, 602)), rows, 0))
    found = list(compacted.after(0, "i"))
    assert [len(part.tokens) for part in found] == [600, 500, 100]
    assert [row for part in found for row in rows_of(part)] == rows


def test_what_falls_out_is_folded_when_it_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is bounded, also when nobody ever looks."""
    monkeypatch.setattr(ring_module, "FOLD_BYTES", 1_000)
    compacted = CompactedRows(Registry().get("typing"))
    for token in range(1, 200):
        _fold(compacted, token, typing("!a", f"@{token}"))
        assert sum(len(block.lines) for block in compacted._waiting) < 1_000
    assert _state(compacted) == [(199, typing("!a", "@199"))]


def test_a_look_while_much_is_folded_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold goes on a step with each block; who looks has all of it."""
    monkeypatch.setattr(ring_module, "FOLD_BYTES", 20_000)
    monkeypatch.setattr(ring_module, "STEP_ROWS", 10)
    compacted = CompactedRows(Registry().get("typing"))
    token = 0
    while compacted._folding is None:
        token += 1
        _fold(compacted, token, typing(f"!{token}", "@1"))
    assert [found for found, _ in _state(compacted)] == list(range(1, token + 1))
    assert compacted._folding is None


def test_no_fold_does_what_there_is_to_do_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of many keys are folded, and room is made, a step with each that comes."""
    monkeypatch.setattr(ring_module, "FOLD_BYTES", 20_000)
    monkeypatch.setattr(ring_module, "STEP_ROWS", 10)
    monkeypatch.setattr(ring_module, "STEP_STATES", 20)
    judged: list[object] = []

    def is_blank(row: TypingRow) -> bool:
        judged.append(row)
        return False

    compacted = CompactedRows(
        StreamDef("typing", TypingRow, durable=False, key=lambda row: row.room_id, blank=is_blank)
    )
    most_held = 0
    for token in range(1, 20_001):
        judged.clear()
        _fold(compacted, token, typing(f"!{token % 3_000}", "@1"))
        assert len(judged) <= 10
        assert sum(len(block.lines) for block in compacted._waiting) < 2 * 20_000
        most_held = max(most_held, len(compacted._tokens))
    assert most_held < 3 * (3_000 + BLANKS_KEPT)
    assert len(compacted) == 3_000
    assert [token for token, _ in _state(compacted)] == list(range(17_001, 20_001))


def test_a_look_while_room_is_made_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "BLANKS_KEPT", 1)
    monkeypatch.setattr(ring_module, "STEP_STATES", 1)
    compacted = CompactedRows(Registry().get("typing"))
    token = 0
    newest: dict[int, int] = {}

    def change(key: int) -> None:
        nonlocal token
        token += 1
        newest.pop(key, None)
        newest[key] = token
        _fold(compacted, token, typing(f"!{key}", "@1"))

    for _ in range(3):
        for key in range(10):
            change(key)
        assert len(compacted) == 10
    for key in range(10, 90):  # the first begins to make room, a step with each
        change(key)
        assert [token for token, _ in _state(compacted)] == list(newest.values())
    assert len(compacted._tokens) < 2 * (90 + 1)


def test_many_states_have_their_own_stream_and_instance_in_every_block() -> None:
    compacted = CompactedRows(Registry().get("typing"))
    _fold(compacted, 1, *[typing(f"!{number}", "@1") for number in range(1_200)])
    found = list(compacted.after(0, "i"))
    assert len(found) > 2
    assert {(part.stream, part.instance) for part in found} == {("typing", "i")}
    lines = b"".join(part.lines for part in found).splitlines()
    assert {tuple(line.split(b" ")[:3]) for line in lines} == {(b"RDATA", b"typing", b"i")}
