"""Rows, blocks and pages, whatever is in them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcprepl.errors import BadRow
from tcprepl.streams import ring as ring_module
from tcprepl.streams.blocks import cut_page, render, rows_of
from tcprepl.streams.bodies import decode_block, encode_block
from tcprepl.streams.log import Block
from tcprepl.streams.memory import MemoryStream
from tcprepl.streams.registry import Registry, StreamDef
from tcprepl.streams.retention import Bounds
from tcprepl.streams.ring import CompactedRows
from tests.log_kit import rows_in, typing

REGISTRY = Registry([StreamDef("opaque")])

any_text = st.text(st.characters())  # lone surrogates too
finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=12,
)
flags = st.booleans() | st.sampled_from([0, 1])
maybe_text = st.none() | any_text
#: Rows that fit, by stream.
FITTING: dict[str, st.SearchStrategy[list[Any]]] = {
    "typing": st.tuples(any_text, st.lists(any_text, max_size=3)).map(list),
    "presence": st.tuples(
        any_text, any_text, st.integers(), st.integers(), st.integers(), maybe_text, flags
    ).map(list),
    "caches": st.tuples(
        any_text, st.none() | st.lists(json_values, max_size=3), st.none() | st.integers()
    ).map(list),
    "account_data": st.tuples(any_text, maybe_text, any_text).map(list)
    | st.tuples(any_text, maybe_text, any_text, json_values).map(list),
    "device_lists": st.tuples(any_text).map(list)
    | st.tuples(any_text, flags | maybe_text).map(list)
    | st.tuples(any_text, flags, flags).map(list),
    "receipts": st.tuples(
        any_text, any_text, any_text, any_text, st.dictionaries(any_text, json_values, max_size=2)
    ).map(list),
    "events": st.tuples(
        st.just("state"), st.tuples(any_text, any_text, any_text, maybe_text).map(list)
    ).map(list),
    "opaque": json_values.map(lambda value: [value]),
}


@given(st.data())
def test_what_fits_comes_back_the_same(data: st.DataObject) -> None:
    stream = data.draw(st.sampled_from(sorted(FITTING)))
    given_rows = data.draw(st.lists(FITTING[stream], min_size=1, max_size=5))
    lines = REGISTRY.encode_rows(stream, given_rows)
    assert [json.loads(line) for line in lines] == given_rows
    assert REGISTRY.check_json_rows(stream, lines) == lines
    assert not any(b"\n" in line or b"\r" in line for line in lines)
    decoded = list(REGISTRY.rows(stream, lines))
    assert decoded == [REGISTRY.decode_row(stream, line) for line in lines]
    again = REGISTRY.encode_rows(stream, decoded)
    if stream != "events":  # a state row is written with all four of its fields
        assert [json.loads(line) for line in again] == given_rows


@given(st.sampled_from(REGISTRY.names()), json_values)
def test_any_json_is_a_row_or_refused(stream: str, value: Any) -> None:
    text = json.dumps(value).encode()
    try:
        checked = REGISTRY.check_json_rows(stream, [text])
    except BadRow:
        with pytest.raises(BadRow):
            REGISTRY.encode_rows(stream, [value])
    else:
        REGISTRY.decode_row(stream, checked[0])
        assert REGISTRY.encode_rows(stream, [value])


@given(st.sampled_from(REGISTRY.names()), st.binary(max_size=60))
def test_any_bytes_are_a_row_or_refused(stream: str, text: bytes) -> None:
    for call in (
        lambda: REGISTRY.decode_row(stream, text),
        lambda: REGISTRY.check_json_rows(stream, [text]),
    ):
        with suppress(BadRow):
            call()


@given(st.sampled_from([math.nan, math.inf, -math.inf]), st.data())
def test_no_nan_gets_through(bad: float, data: st.DataObject) -> None:
    value: Any = bad
    for _ in range(data.draw(st.integers(0, 4))):
        beside = data.draw(json_values)
        value = data.draw(st.sampled_from([[value], [beside, value], {"k": value, "n": None}]))
    with pytest.raises(BadRow, match="numbers that JSON has"):
        REGISTRY.encode_rows("opaque", [[None], value])


#: Tokens of rows, ascending, with groups.
ascending = st.lists(st.integers(0, 2), min_size=1, max_size=60).map(
    lambda steps: [1 + sum(steps[: index + 1]) for index in range(len(steps))]
)


def blocks_of(tokens: list[int], cuts: list[int]) -> list[Block]:
    """Part rows into blocks at *cuts*, moved so that no token is parted."""
    groups = [list(group) for _, group in groupby(tokens)]
    parts: list[list[int]] = [[]]
    for index, group in enumerate(groups):
        if index in cuts and parts[-1]:
            parts.append([])
        parts[-1] += group
    made, count = [], 0
    for part in parts:
        consecutive = part == list(range(part[0], part[-1] + 1))
        rows = [b'["%d"]' % (count + index) for index in range(len(part))]
        count += len(part)
        given_tokens = range(part[0], part[-1] + 1) if consecutive else part
        made.append(render("s", "i", given_tokens, rows, 0))
    return made


@given(
    ascending,
    st.lists(st.integers(0, 40), max_size=10),
    st.integers(0, 130),
    st.integers(0, 130),
    st.integers(1, 40),
    st.integers(1, 800),
)
def test_pages_are_the_list_cut_at_tokens(
    tokens: list[int],
    cuts: list[int],
    after: int,
    upto: int,
    limit_rows: int,
    limit_bytes: int,
) -> None:
    blocks = blocks_of(tokens, cuts)
    expected = [(t, b'["%d"]' % n) for n, t in enumerate(tokens) if after < t <= upto]
    found: list[tuple[int, bytes]] = []
    place = after
    while True:
        rest = [block for block in blocks if block.last > place]
        page = cut_page(rest, place, max(upto, place), limit_rows, limit_bytes)
        rows = rows_in(page)
        found += rows
        if len(rows) > limit_rows or len(page.lines) > limit_bytes:
            assert len({token for token, _ in rows}) == 1
        if not page.limited:
            assert page.upto == max(upto, after)
            break
        assert rows
        assert page.upto == rows[-1][0]
        place = page.upto
    assert found == expected


@given(ascending, st.booleans(), st.booleans(), st.integers(1, 2_000))
def test_a_block_on_disk_is_the_block(
    tokens: list[int], consecutive: bool, compressed: bool, length: int
) -> None:
    given_tokens = range(1, len(tokens) + 1) if consecutive else tokens
    block = render("s", "i", given_tokens, [b"[%d]" % t * length for t in tokens], 5)
    body = encode_block(block, tokens[0], compressed=compressed)
    back, before = decode_block("s", "i", body, 5)
    assert before == tokens[0]
    assert list(back.tokens) == list(block.tokens)
    assert back.lines == block.lines
    assert list(rows_of(back)) == list(rows_of(block))
    assert back.ends == block.ends


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=80), st.integers(1, 5))
def test_the_newest_row_of_each_key_is_kept(changes: list[tuple[int, bool]], at_once: int) -> None:
    compacted = CompactedRows(REGISTRY.get("typing"))
    state: dict[int, tuple[int, bytes]] = {}
    rows = [typing(f"!{key}", *(["@u"] if on else [])) for key, on in changes]
    for number, start in enumerate(range(0, len(rows), at_once)):
        part: Sequence[bytes] = rows[start : start + at_once]
        if number % 2:  # with the keys beside the rows
            part = REGISTRY.check_json_rows("typing", part)
        compacted.fold(render("typing", "i", range(start + 1, start + 1 + len(part)), part, 0))
    for token, ((key, on), row) in enumerate(zip(changes, rows, strict=True), 1):
        state.pop(key, None)
        if on:
            state[key] = (token, row)
    found = [
        (token, row)
        for block in compacted.after(0, "i")
        for token, row in zip(block.tokens, rows_of(block), strict=True)
    ]
    assert found == list(state.values())
    assert len(compacted) == len(state)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()) | st.just("look"), max_size=120),
    st.integers(1, 200),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
)
def test_who_looks_sees_all_whatever_is_under_way(
    steps: list[tuple[int, bool] | str], fold_bytes: int, rows: int, states: int, blanks: int
) -> None:
    """Rows are folded and room is made in steps, and a look may come between any two."""
    newest: dict[int, tuple[int, bytes, bool]] = {}
    sizes = {"FOLD_BYTES": fold_bytes, "STEP_ROWS": rows, "STEP_STATES": states}
    with mock.patch.multiple(ring_module, BLANKS_KEPT=blanks, **sizes):
        compacted = CompactedRows(REGISTRY.get("typing"))
        for token, step in enumerate([*steps, "look"], 1):
            if isinstance(step, tuple):
                key, on = step
                row = typing(f"!{key}", *(["@u"] if on else []))
                newest.pop(key, None)
                newest[key] = token, row, on
                compacted.fold(render("typing", "i", [token], [row], 0))
                continue
            floor = compacted.blank_floor
            assert rows_after(compacted, 0) == [(t, row) for t, row, on in newest.values() if on]
            for after in {1, floor, floor + 1, token // 2, token - 1} - {0}:
                if after >= floor:  # a reader that hears of blank rows, too
                    expected = [(t, row) for t, row, _ in newest.values() if t > after]
                    assert rows_after(compacted, after) == expected
            assert len(compacted) == sum(on for _, _, on in newest.values())
            held = len(compacted._tokens)
            assert held <= 4 * (len(compacted) + blanks)


def rows_after(compacted: CompactedRows, after: int) -> list[tuple[int, bytes]]:
    """Return the states newer than *after*."""
    return [
        (token, row)
        for block in compacted.after(after, "i")
        for token, row in zip(block.tokens, rows_of(block), strict=True)
    ]


@settings(max_examples=4 * settings.default.max_examples)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans()) | st.just(1), min_size=10, max_size=60),
    st.integers(1, 2),
)
def test_a_reader_of_states_ends_with_what_everybody_has(
    steps: list[tuple[int, bool] | int], held: int
) -> None:
    """Between its pages keys change, go blank, and fall out of the ring."""
    stream = MemoryStream(REGISTRY.get("typing"), "i", Bounds(max_rows=held))
    published: dict[str, bytes] = {}
    seen: dict[str, bytes] = {}
    after, compacted = 0, True

    def take_page(limit_rows: int) -> bool:
        nonlocal after, compacted
        if after < stream.floor and not (compacted and stream.compactable(after)):
            after, compacted = stream.restart_point, True
            seen.clear()
            return True
        page = stream.page(after, stream.position, limit_rows, 10_000)
        for _, row in rows_in(page):
            apply(seen, row)
        after, compacted = page.upto, page.limited
        return page.limited

    def apply(state: dict[str, bytes], row: bytes) -> None:
        room, users = json.loads(row)
        state.pop(room, None)
        if users:
            state[room] = row

    for step in steps:
        if isinstance(step, int):
            take_page(step)
        else:
            key, on = step
            row = typing(f"!{key}", *([f"@{stream.position}"] if on else []))
            stream.add(range(stream.position + 1, stream.position + 2), [row], 0)
            stream.expire(0)
            apply(published, row)
    while take_page(1):
        pass
    assert seen == published
